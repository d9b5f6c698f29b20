"""Calls that share a run, with tasks that wait to be let go."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.runtime import BGEM3Model
from bgem3.runtime import cpu_session as session_module
from bgem3.runtime.coalescing import SharedRuns
from bgem3.runtime.cpu_session import SHARED_TOKENS, Arrays, CpuSession, Output
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.packing import PackedBatch, join

SECONDS = 60


class Runs:
    """Keeps the groups it is given, holds the first one until it is let go, and doubles numbers."""

    def __init__(self, n_at_once: int = 1, errors: tuple[type[Exception], ...] = (Exception,)) -> None:
        self.groups: list[list[int]] = []
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.errors: dict[int, BaseException] = {}  # by the number of the group
        self.shared: SharedRuns[int, int] = SharedRuns(
            lambda group, task: sum(group) + task <= 10 and 7 not in [*group, task], n_at_once, errors
        )

    def run(self, tasks: list[int]) -> list[int]:
        self.groups.append(tasks)
        number = len(self.groups)
        self.has_begun.set()
        assert self.may_end.wait(SECONDS)
        if number in self.errors:
            raise self.errors[number]
        return [2 * task for task in tasks]

    def call(self, task: int) -> int:
        return self.shared(task, self.run)

    def start(self, pool: ThreadPoolExecutor, tasks: list[int]) -> list[Future[int]]:
        """Start the first task; when it runs, the others, one after another; then let them go."""
        futures = [pool.submit(self.call, tasks[0])]
        assert self.has_begun.wait(SECONDS)
        for i, task in enumerate(tasks[1:], 1):
            futures.append(pool.submit(self.call, task))
            wait_until(lambda n=i: n_waiting(self.shared) == n)  # type: ignore[misc]
        self.may_end.set()
        return futures


def n_waiting(shared: SharedRuns[Any, Any]) -> int:
    """Return how many calls no group has taken yet."""
    return sum(call.leader is None for call in shared._calls.copy())


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_tasks_that_come_during_a_run_make_up_the_next_one_as_far_as_they_fit() -> None:
    runs = Runs()
    with ThreadPoolExecutor(8) as pool:
        futures = runs.start(pool, [1, 2, 3, 7, 4, 6, 5])
        assert [future.result(SECONDS) for future in futures] == [2, 4, 6, 14, 8, 12, 10]
    assert runs.groups == [[1], [2, 3, 4], [7], [6], [5]]
    assert runs.call(9) == 18, "the next one finds nobody busy"


def test_as_many_groups_run_at_once_as_may() -> None:
    runs = Runs(n_at_once=2)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(runs.call, task) for task in (1, 2)]
        wait_until(lambda: len(runs.groups) == 2)
        futures += [pool.submit(runs.call, task) for task in (3, 4)]
        wait_until(lambda: n_waiting(runs.shared) == 2)
        runs.may_end.set()
        assert [future.result(SECONDS) for future in futures] == [2, 4, 6, 8]


def test_a_task_that_fails_alone_raises() -> None:
    runs = Runs()
    runs.may_end.set()
    runs.errors[1] = RuntimeError("spilt")
    with pytest.raises(RuntimeError, match="spilt"):
        runs.call(1)
    assert runs.call(2) == 4


def test_those_that_shared_a_run_that_failed_do_their_tasks_alone() -> None:
    runs = Runs()
    runs.errors[2] = RuntimeError("spilt")
    with ThreadPoolExecutor(8) as pool:
        futures = runs.start(pool, [1, 2, 3])
        assert [future.result(SECONDS) for future in futures] == [2, 4, 6]
    assert [sorted(group) for group in runs.groups[:2]] == [[1], [2, 3]]
    assert sorted(runs.groups[2:]) == [[2], [3]]


def test_an_interrupt_of_the_thread_that_runs_is_its_own() -> None:
    runs = Runs()
    runs.errors[2] = KeyboardInterrupt()
    with ThreadPoolExecutor(8) as pool:
        futures = runs.start(pool, [1, 2, 3, 4])
        errors = [future.exception(SECONDS) for future in futures]
    assert [type(error) for error in errors if error] == [KeyboardInterrupt]
    assert [future.result() for future in futures if not future.exception()] == [
        2 * task for task, error in zip([1, 2, 3, 4], errors, strict=True) if not error
    ]
    assert runs.call(5) == 10


def test_an_error_that_no_run_of_several_tasks_explains_is_raised_by_the_thread_it_hit() -> None:
    runs = Runs(errors=(ValueError,))
    runs.errors[2] = TimeoutError("the alarm of the thread that ran the group")
    with ThreadPoolExecutor(8) as pool:
        futures = runs.start(pool, [1, 2, 3, 4])
        errors = [future.exception(SECONDS) for future in futures]
    assert [type(error) for error in errors] == [type(None), TimeoutError, type(None), type(None)]
    assert [future.result() for future in futures if not future.exception()] == [2, 6, 8]


def test_a_call_within_a_call_of_the_same_thread_runs_alone() -> None:
    """As a signal handler's would, which runs wherever the thread is."""
    runs = Runs()
    runs.may_end.set()
    shared = runs.shared

    def nested(tasks: list[int]) -> list[int]:
        return [shared(task, runs.run) for task in tasks]

    assert shared(4, nested) == 8
    assert runs.groups == [[4]]
    assert not shared._calls


def test_a_result_that_its_caller_drops_is_freed_at_once() -> None:
    shared: SharedRuns[int, set[int]] = SharedRuns(lambda group, task: True)
    gc.disable()
    try:
        result = weakref.ref(shared(1, lambda tasks: [_Result() for _ in tasks]))
        assert result() is None
    finally:
        gc.enable()


class _Result(set[int]):
    """A set that can be referred to weakly."""


def test_joined_micro_batches_are_the_ones_they_were_joined_of() -> None:
    def batch(lengths: list[int], first: int) -> PackedBatch:
        limits = np.cumsum([0, *lengths])
        tokens = np.arange(limits[-1]) + 100 * first
        text_index = np.arange(first, first + len(lengths))
        return PackedBatch(text_index=text_index, cu_seqlens=limits, token_ids=tokens, position_ids=tokens + 2)

    batches = [batch([2, 3], 0), batch([4], 2), batch([1, 1, 1], 3)]
    joined = join(batches)
    for part, start, stop in zip(batches, (0, 2, 3), (2, 3, 6), strict=True):
        for name, values in vars(joined.texts(start, stop)).items():
            np.testing.assert_array_equal(values, getattr(part, name))


def test_queries_of_many_threads_share_passes_and_keep_their_values(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [[f"query number {i} " + "word " * (i % 5)] for i in range(24)]
    with BGEM3Model.load(random_artifact, "cpu", n_threads=available_cpus()) as model:
        alone = [model.encode(query) for query in queries]
        session = model._session
        assert isinstance(session, CpuSession)
        sizes: list[int] = []
        run, may_go_on = session._run, threading.Event()

        def counted(batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
            sizes.append(len(batch.text_index))
            assert len(batch.token_ids) <= SHARED_TOKENS
            assert may_go_on.wait(SECONDS)
            return run(batch, outputs)

        monkeypatch.setattr(session, "_run", counted)
        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(model.encode, query) for query in queries]
            wait_until(lambda: n_waiting(session._shared_runs) == 7)
            may_go_on.set()
            dense = list(pool.map(lambda query: model.encode(query, outputs=["dense"]), queries))
    assert sum(sizes) == 48
    assert max(sizes) > 1
    for future, expected, of_dense in zip(found, alone, dense, strict=True):
        ours = future.result()
        np.testing.assert_array_equal(ours.dense, expected.dense)
        np.testing.assert_array_equal(of_dense.dense, expected.dense)
        np.testing.assert_array_equal(ours.multivector.packed, expected.multivector.packed)
        assert abs(ours.sparse - expected.sparse).max() == 0


class AlarmError(RuntimeError):
    """What a program's signal handler raises."""


@pytest.mark.parametrize("kind", [AlarmError, RuntimeError, ValueError])
def test_no_exception_of_a_signal_handler_is_taken_for_a_failed_run(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    check, may_go_on = session_module.check_arrays, threading.Event()

    def alarmed(arrays: Arrays, *arguments: Any) -> None:
        assert may_go_on.wait(SECONDS)
        if len(arrays["dense"]) > 1:
            raise kind("alarm")  # as a handler would here, in the thread that runs the group
        check(arrays, *arguments)

    with BGEM3Model.load(random_artifact, "cpu", n_threads=available_cpus()) as model:
        session = model._session
        assert isinstance(session, CpuSession)
        monkeypatch.setattr(session_module, "check_arrays", alarmed)
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(model.encode, ["text"]) for _ in range(3)]
            wait_until(lambda: n_waiting(session._shared_runs) == 2)
            may_go_on.set()
            errors = [call.exception(SECONDS) for call in calls]
    assert [str(error) for error in errors if error] == ["alarm"]


def test_a_token_budget_bounds_what_callers_share(random_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BGEM3Model.load(random_artifact, "cpu", n_threads=available_cpus(), token_budget=20) as model:
        session = model._session
        assert isinstance(session, CpuSession)
        sizes: list[tuple[int, int]] = []
        run = session._run

        def counted(batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
            sizes.append((len(batch.text_index), len(batch.token_ids)))
            return run(batch, outputs)

        monkeypatch.setattr(session, "_run", counted)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(model.encode, [["five words and no more"]] * 16))
    assert all(n_texts == 1 or n_tokens <= 20 for n_texts, n_tokens in sizes)


def test_a_model_that_nobody_holds_gives_its_session_back_at_once(random_artifact: Path) -> None:
    model = BGEM3Model.load(random_artifact, "cpu")
    model.encode(["one text"])
    session = weakref.ref(model._session)
    gc.disable()
    try:
        del model
        assert session() is None
    finally:
        gc.enable()
