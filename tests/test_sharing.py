"""Calls that share a run, with tasks that wait to be let go."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from bgem3.runtime import BGEM3Model
from bgem3.runtime.packing import PackedBatch, join
from bgem3.runtime.session import SHARED_TOKENS, Arrays, Output
from bgem3.runtime.sharing import SharedRuns

SECONDS = 60


class Runs:
    """Keeps the groups it is given, holds the first one until it is let go, and doubles numbers."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.shared = SharedRuns(self.run, lambda group, task: (sum(group) + task <= 10) and task != 7)

    def run(self, tasks: list[int]) -> list[int]:
        self.groups.append(tasks)
        self.has_begun.set()
        assert self.may_end.wait(SECONDS)
        if self.error is not None and len(self.groups) == 2:
            raise self.error
        return [2 * task for task in tasks]

    def call(self, pool: ThreadPoolExecutor, tasks: list[int]) -> list[Future[int]]:
        """Start the first task; when it runs, the others, one after another; then let them go."""
        futures = [pool.submit(self.shared, tasks[0])]
        assert self.has_begun.wait(SECONDS)
        for i, task in enumerate(tasks[1:], 1):
            futures.append(pool.submit(self.shared, task))
            while len(self.shared._waiting) < i:
                threading.Event().wait(0.001)
        self.may_end.set()
        return futures


def test_tasks_that_come_during_a_run_make_up_the_next_one_as_far_as_they_fit() -> None:
    runs = Runs()
    with ThreadPoolExecutor(8) as pool:
        futures = runs.call(pool, [1, 2, 3, 7, 4, 6, 5])
        assert [future.result(SECONDS) for future in futures] == [2, 4, 6, 14, 8, 12, 10]
    assert runs.groups == [[1], [2, 3, 4], [7], [6], [5]]
    assert runs.shared(9) == 18, "the next one finds nobody busy"


def test_an_error_reaches_all_that_shared_the_run_and_nobody_else() -> None:
    runs = Runs()
    runs.error = RuntimeError("spilt")
    with ThreadPoolExecutor(8) as pool:
        first, *together, after = runs.call(pool, [1, 2, 3, 9])
        assert first.result(SECONDS) == 2
        for future in together:
            with pytest.raises(RuntimeError, match="spilt"):
                future.result(SECONDS)
        assert after.result(SECONDS) == 18


def test_an_interrupt_of_the_thread_that_runs_leaves_the_others_their_results() -> None:
    runs = Runs()
    runs.error = KeyboardInterrupt()
    with ThreadPoolExecutor(8) as pool:
        first, interrupted, *others = runs.call(pool, [1, 2, 3, 4])
        assert first.result(SECONDS) == 2
        with pytest.raises(KeyboardInterrupt):
            interrupted.result(SECONDS)
        assert [future.result(SECONDS) for future in others] == [6, 8]
    assert runs.groups == [[1], [2, 3, 4], [3, 4]]


@pytest.mark.parametrize("is_leading", [False, True])
def test_an_interrupt_while_waiting_leaves_the_others_their_results(
    monkeypatch: pytest.MonkeyPatch, is_leading: bool
) -> None:
    runs = Runs()
    wait, main = threading.Event.wait, threading.current_thread()

    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is main and timeout is None:
            if is_leading:
                runs.may_end.set()
                assert wait(event, SECONDS)
            raise KeyboardInterrupt
        return wait(event, timeout)

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(runs.shared, 1)
        assert runs.has_begun.wait(SECONDS)
        monkeypatch.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.shared(2)
        monkeypatch.undo()
        runs.may_end.set()
        assert first.result(SECONDS) == 2
        assert pool.submit(runs.shared, 3).result(SECONDS) == 6
    assert runs.groups == ([[1], [2], [3]] if is_leading else [[1], [3]])


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
    random_model: BGEM3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [[f"query number {i} " + "word " * (i % 5)] for i in range(24)]
    alone = [random_model.encode(query) for query in queries]
    sizes: list[int] = []
    run = random_model._session._run  # type: ignore[union-attr]

    def counted(batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        sizes.append(len(batch.text_index))
        assert len(batch.token_ids) <= SHARED_TOKENS
        return run(batch, outputs)

    monkeypatch.setattr(random_model._session, "_run", counted)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(random_model.encode, queries))
        dense = list(pool.map(lambda query: random_model.encode(query, outputs=["dense"]), queries))
    assert sum(sizes) == 48
    assert max(sizes) > 1
    for ours, expected, of_dense in zip(found, alone, dense, strict=True):
        np.testing.assert_allclose(ours.dense, expected.dense, atol=1e-5)
        np.testing.assert_allclose(of_dense.dense, expected.dense, atol=1e-5)
        np.testing.assert_allclose(ours.multivector.packed, expected.multivector.packed, atol=1e-5)
        assert abs(ours.sparse - expected.sparse).max() <= 1e-5
