"""Concurrent requests that run as one, with tasks that wait until they may end."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bgem3.runtime import BGEM3Model, cpu_session, heads
from bgem3.runtime.coalescing import RequestCoalescer
from bgem3.runtime.cpu_session import COALESCED_TOKENS, CpuSession
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.heads import Arrays
from bgem3.runtime.manifest import Output
from bgem3.runtime.packing import PackedBatch
from tests.runtime.interrupting import in_thread

SECONDS = 60


class Runs:
    """Doubles numbers in groups, keeps the groups, and lets none end before it may."""

    def __init__(self, n_at_once: int = 1) -> None:
        self.groups: list[list[int]] = []
        self.may_end = threading.Event()
        self.errors: dict[int, BaseException] = {}  # by the number of the group
        self.coalescer: RequestCoalescer[int, int] = RequestCoalescer(
            lambda group, task: sum(group) + task <= 10 and 7 not in [*group, task], n_at_once, (RuntimeError,)
        )

    def run(self, tasks: list[int]) -> list[int]:
        self.groups.append(tasks)
        number = len(self.groups)
        assert self.may_end.wait(SECONDS)
        if number in self.errors:
            raise self.errors[number]
        return [2 * task for task in tasks]

    def call(self, task: int) -> int:
        return self.coalescer(task, self.run)

    def outcomes(self, tasks: list[int], n_leading: int = 1) -> list[int | type[BaseException]]:
        """Run the leading tasks, and the others one after another meanwhile; return values or types of errors."""
        futures = []
        for n_before, task in enumerate(tasks):
            futures.append(in_thread(lambda task=task: self.call(task)))  # type: ignore[misc]
            n_running = min(n_before + 1, n_leading)
            wait_until(lambda n=n_running: len(self.groups) == n)  # type: ignore[misc]
            wait_until(lambda n=n_before + 1 - n_running: n_waiting(self.coalescer) == n)  # type: ignore[misc]
        self.may_end.set()
        return [type(error) if (error := future.exception(SECONDS)) else future.result() for future in futures]


def n_waiting(coalescer: RequestCoalescer[Any, Any]) -> int:
    """Return how many calls no group has taken yet."""
    return sum(call.leader is None for call in coalescer._calls.copy())


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_tasks_that_come_during_a_run_make_up_the_next_one_as_far_as_they_fit() -> None:
    runs = Runs()
    assert runs.outcomes([1, 2, 3, 7, 4, 6, 5]) == [2, 4, 6, 14, 8, 12, 10]
    assert runs.groups == [[1], [2, 3, 4], [7], [6], [5]]
    assert runs.call(9) == 18, "a call that finds nobody running does not wait"


def test_as_many_groups_run_at_once_as_may() -> None:
    assert Runs(n_at_once=2).outcomes([1, 2, 3, 4], n_leading=2) == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("tasks", "error", "expected"),
    [
        pytest.param([1], RuntimeError(), [RuntimeError], id="alone"),
        pytest.param([1, 2, 3], RuntimeError(), [2, 4, 6], id="each_runs_its_task_alone_after_a_failed_run"),
        pytest.param([1, 2, 3], KeyboardInterrupt(), [2, KeyboardInterrupt, 6], id="an_interrupt_hits_the_leader"),
        pytest.param([1, 2, 3], TimeoutError(), [2, TimeoutError, 6], id="an_exception_that_no_task_causes"),
    ],
)
def test_an_error_of_a_run_is_raised_by_the_call_that_it_belongs_to(
    tasks: list[int], error: BaseException, expected: list[int | type[BaseException]]
) -> None:
    runs = Runs()
    runs.errors[min(len(tasks), 2)] = error
    assert runs.outcomes(tasks) == expected
    assert runs.call(5) == 10, "later calls are not affected"


def test_a_call_within_a_call_of_the_same_thread_runs_alone() -> None:
    """As a signal handler's would, which runs wherever the thread is."""
    runs = Runs()
    runs.may_end.set()
    assert runs.coalescer(4, lambda tasks: [runs.call(task) for task in tasks]) == 8
    assert runs.groups == [[4]]
    assert not runs.coalescer._calls


def test_a_result_and_a_model_that_are_dropped_are_freed_at_once(random_artifact: Path) -> None:
    coalescer: RequestCoalescer[int, NDArray[np.float32]] = RequestCoalescer(lambda group, task: True)
    model = BGEM3Model.load(random_artifact, "cpu")
    model.encode(["one text"])
    session = weakref.ref(model._session)
    gc.disable()
    try:
        result = weakref.ref(coalescer(1, lambda tasks: [np.empty(3, np.float32)]))
        del model
        assert result() is None
        assert session() is None
    finally:
        gc.enable()


def open_session(folder: Path, token_budget: int | None = None) -> tuple[BGEM3Model, CpuSession]:
    """Load a model whose session runs one group at a time."""
    model = BGEM3Model.load(folder, "cpu", n_threads=available_cpus(), token_budget=token_budget)
    assert isinstance(model._session, CpuSession)
    return model, model._session


@pytest.mark.parametrize("most_tokens", [30, COALESCED_TOKENS])
def test_concurrent_queries_share_runs_within_the_token_budget_and_keep_their_values(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, most_tokens: int
) -> None:
    model, session = open_session(random_artifact, token_budget=most_tokens)
    queries = [[f"query {i} " + "the " * (i % 4)] for i in range(12)]
    alone = [model.encode(query) for query in queries]
    may_go_on, sizes, run = threading.Event(), [], session._run

    def counted(batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        sizes.append((len(batch.text_index), len(batch.token_ids)))
        assert may_go_on.wait(SECONDS)
        return run(batch, outputs)

    monkeypatch.setattr(session, "_run", counted)
    with ThreadPoolExecutor(8) as pool:
        together = [pool.submit(model.encode, query) for query in queries]
        wait_until(lambda: n_waiting(session._coalescer) == 7)
        may_go_on.set()
        dense = list(pool.map(lambda query: model.encode(query, outputs=["dense"]), queries))
    assert sum(n_texts for n_texts, _ in sizes) == 24
    assert max(sizes)[0] > 1
    assert max(n_tokens for _, n_tokens in sizes) <= most_tokens
    for future, expected, dense_alone in zip(together, alone, dense, strict=True):
        found = future.result()
        np.testing.assert_array_equal(found.dense, expected.dense)
        np.testing.assert_array_equal(dense_alone.dense, expected.dense)
        np.testing.assert_array_equal(found.multivector.packed, expected.multivector.packed)
        assert abs(found.sparse - expected.sparse).max() == 0


def test_no_exception_of_a_signal_handler_is_taken_for_a_failed_run(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, session = open_session(random_artifact)
    check, may_go_on = heads.check_arrays, threading.Event()

    def alarmed(arrays: Arrays, *arguments: Any) -> None:
        assert may_go_on.wait(SECONDS)
        if len(arrays["dense"]) > 1:
            raise RuntimeError("alarm")  # as a handler would here, in the thread that runs the group
        check(arrays, *arguments)

    monkeypatch.setattr(cpu_session, "check_arrays", alarmed)
    calls = [in_thread(lambda: model.encode(["text"])) for _ in range(3)]
    wait_until(lambda: n_waiting(session._coalescer) == 2)
    may_go_on.set()
    errors = [call.exception(SECONDS) for call in calls]
    assert [str(error) for error in errors if error] == ["alarm"]
