"""Interrupts of one thread that encodes: the others go on, and later calls are not affected."""

import threading
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from bgem3.runtime import coalescing, workers
from bgem3.runtime.coalescing import RequestCoalescer
from bgem3.runtime.workers import Task, Workers
from tests.runtime.interrupting import SECONDS, in_thread, interrupted_after, interrupted_everywhere


@pytest.mark.parametrize(
    ("place", "n_at_once", "error"),
    [
        (0, 1, KeyboardInterrupt()),
        (1, 1, KeyboardInterrupt()),
        (1, 2, TimeoutError("alarm")),
        (2, 1, TimeoutError("alarm")),
    ],
    ids=["first_leader", "next_leader", "second_of_two_leaders", "member"],
)
def test_an_interrupt_at_any_step_of_a_call_leaves_the_others_their_results(
    place: int, n_at_once: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coalescing, "RECHECK_SECONDS", 0.01)
    n_steps, has_so_many_steps = 0, True
    while has_so_many_steps:
        n_steps += 1
        may_end = threading.Event()
        coalescer: RequestCoalescer[int, int] = RequestCoalescer(
            lambda group, task: len(group) < 3, n_at_once, (ValueError,)
        )

        def run(tasks: list[int], may_end: threading.Event = may_end) -> list[int]:
            assert may_end.wait(SECONDS)
            return [2 * task for task in tasks]

        futures: list[Future[Any]] = []
        for task in range(4):
            call = partial(coalescer, task, run)
            seen = {id(other) for other in coalescer._calls.copy()}
            interrupted = partial(interrupted_after, n_steps, error, coalescing, call)
            futures.append(in_thread(interrupted if task == place else call))
            while not futures[-1].done() and {id(other) for other in coalescer._calls.copy()} <= seen:
                threading.Event().wait(0.0002)
        may_end.set()
        value, has_so_many_steps = futures.pop(place).result(SECONDS)
        assert value == 2 * place or (value is None and has_so_many_steps)
        assert [future.result(SECONDS) for future in futures] == [2 * i for i in range(4) if i != place], n_steps
        assert coalescer(9, run) == 18
        assert all(other.caller.is_over for other in coalescer._calls)
    assert n_steps > 30  # Python 3.12 and later trace fewer steps than 3.11


def test_an_interrupt_at_any_step_of_waiting_for_workers_leaves_them_to_others() -> None:
    pool = Workers(2, "worker")

    def call() -> int:
        values: list[int] = []
        tasks = [Task(lambda i=i: values.append(i)) for i in range(3)]  # type: ignore[misc]
        try:
            for task in tasks:
                pool.submit(task)
            for task in tasks:
                pool.wait(task)
        finally:
            pool.cancel(tasks)
        return sum(values)

    for value in interrupted_everywhere(KeyboardInterrupt(), workers, call):
        assert value in (None, 3)
        assert call() == 3
    pool.close(waits=True)
    with pytest.raises(RuntimeError, match="closed"):
        call()
