"""Interrupts of one thread that encodes: the others go on, and later calls are not affected."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tqdm

from bgem3.runtime import BGEM3Model, coalescing, workers
from bgem3.runtime import model as model_module
from bgem3.runtime.coalescing import RequestCoalescer
from bgem3.runtime.workers import Task, Workers
from tests.runtime.interrupting import in_thread, interrupted_after, steps_until_done

SECONDS = 30
MOST_STEPS = 5000
needs_signals = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no POSIX signals")


class Group:
    """Concurrent calls that are merged into groups of at most three."""

    def __init__(self, n_at_once: int) -> None:
        self.may_end = threading.Event()
        self.coalescer: RequestCoalescer[int, int] = RequestCoalescer(
            lambda group, task: len(group) < 3, n_at_once, (ValueError,)
        )

    def run(self, tasks: list[int]) -> list[int]:
        assert self.may_end.wait(SECONDS)
        return [2 * task for task in tasks]

    def call(self, task: int) -> int:
        return self.coalescer(task, self.run)

    def start(self, function: Callable[[], Any]) -> "Future[Any]":
        """Start a call; return when others can see it, or it is over."""
        seen = {id(call) for call in self.coalescer._calls.copy()}
        future = in_thread(function)
        while not future.done() and all(id(call) in seen for call in self.coalescer._calls.copy()):
            threading.Event().wait(0.0002)
        return future


@pytest.mark.parametrize(
    ("place", "n_at_once", "error"),
    [
        (0, 1, KeyboardInterrupt()),
        (1, 1, KeyboardInterrupt()),
        (1, 2, TimeoutError("alarm")),
        (2, 1, TimeoutError("alarm")),
    ],
    ids=str,
)
def test_an_interrupt_at_any_step_of_a_call_leaves_the_others_their_results(
    place: int, n_at_once: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call of this place leads the first group, or the next one, or is one of those that others run."""
    monkeypatch.setattr(coalescing, "RECHECK_SECONDS", 0.01)
    for n_steps in range(1, MOST_STEPS):
        group = Group(n_at_once)

        def interrupted(n_steps: int = n_steps, group: Group = group) -> tuple[int | None, bool]:
            return interrupted_after(n_steps, error, (coalescing,), lambda: group.call(place))

        futures = [group.start(interrupted if task == place else partial(group.call, task)) for task in range(4)]
        group.may_end.set()
        value, has_so_many_steps = futures[place].result(SECONDS)
        assert value in (None, 2 * place)
        others = [i for i in range(4) if i != place]
        assert [futures[i].result(SECONDS) for i in others] == [2 * i for i in others], n_steps
        assert group.call(9) == 18
        assert all(call.caller.is_over for call in group.coalescer._calls)
        if not has_so_many_steps:
            assert value == 2 * place
            break
    assert 30 < n_steps < MOST_STEPS - 1  # Python 3.12 and later trace fewer steps than 3.11


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

    for n_steps, value in steps_until_done(KeyboardInterrupt(), (workers,), lambda: call):
        assert value in (None, 3)
        assert call() == 3, n_steps
    assert n_steps > 50
    pool.close(waits=True)
    with pytest.raises(RuntimeError, match="closed"):
        call()


def run_script(script: str, folder: Path, n_times: int, seconds: int) -> str:
    """Run a script in a process of its own and return what it prints."""
    arguments = [sys.executable, "-c", script, str(folder), str(n_times)]
    process = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


INTERRUPTS = """
import ctypes, json, os, queue, random, signal, sys, threading, time
from bgem3.runtime import BGEM3Model
import numpy as np

folder, n_interrupts = sys.argv[1], int(sys.argv[2])
model = BGEM3Model.load(folder, "cpu", "fp32", n_threads=2)
texts = [[f"text number {i} " + "word " * i] for i in range(4)]
expected = [model.encode(text) for text in texts]
may_interrupt = [queue.SimpleQueue() for _ in texts]  # a thread tells that it is within `try`
ended, n_seen, n_calls = threading.Event(), [0] * 4, [0] * 4

def encode(i):
    found = model.encode(texts[i])
    assert (found.dense == expected[i].dense).all()
    assert (found.multivector.packed == expected[i].multivector.packed).all()
    assert abs(found.sparse - expected[i].sparse).max() == 0
    n_calls[i] += 1

def work(i):
    while not ended.is_set():
        try:
            may_interrupt[i].put(None)
            while not ended.is_set():
                encode(i)
        except KeyboardInterrupt:
            n_seen[i] += 1
    encode(i)

def interrupt():
    try:
        interrupt_all()
    finally:
        ended.set()

def interrupt_all():
    choose = random.Random(0)
    for number in range(n_interrupts):
        i = 0 if number % 2 else choose.randrange(1, 4)
        may_interrupt[i].get(timeout=60)
        time.sleep(choose.random() * 0.004)
        if i == 0:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            thread = ctypes.c_ulong(threads[i].ident)
            assert ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(KeyboardInterrupt)) == 1
    for allowed in may_interrupt:
        allowed.get(timeout=60)  # every interrupt has come, and every thread encodes again

threads = [None, *(threading.Thread(target=work, args=(i,)) for i in (1, 2, 3))]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it as ignored
for thread in threads[1:]:
    thread.start()
interrupter = threading.Thread(target=interrupt)
interrupter.start()
work(0)
for thread in [*threads[1:], interrupter]:
    thread.join()
print(json.dumps({"seen": n_seen, "calls": n_calls}))
"""


@needs_signals
@pytest.mark.parametrize(("n_interrupts", "seconds"), [(40, 60), pytest.param(1000, 300, marks=pytest.mark.stress)])
def test_interrupts_of_threads_that_encode_leave_values_and_other_threads_alone(
    random_artifact: Path, n_interrupts: int, seconds: int
) -> None:
    figures = json.loads(run_script(INTERRUPTS, random_artifact, n_interrupts, seconds))
    assert sum(figures["seen"]) == n_interrupts
    assert min(figures["calls"]) > 0


HANDLER = """
import json, signal, sys, threading
from bgem3.runtime import BGEM3Model

model = BGEM3Model.load(sys.argv[1], "cpu", "fp32", n_threads=2)
texts = ["a text", "a text of the handler " + "word " * 9]
expected = [model.encode([text]).dense for text in texts]
n_handled, ended = 0, threading.Event()

def handle(*_):
    global n_handled
    assert (model.encode(texts[1:]).dense == expected[1]).all()
    n_handled += 1
    signal.setitimer(signal.ITIMER_REAL, 0.003)

def encode():
    while not ended.is_set():
        assert (model.encode(texts[:1]).dense == expected[0]).all()

signal.signal(signal.SIGALRM, handle)
threads = [threading.Thread(target=encode) for _ in range(2)]
for thread in threads:
    thread.start()
signal.setitimer(signal.ITIMER_REAL, 0.003)
while n_handled < int(sys.argv[2]):
    assert (model.encode(texts[:1]).dense == expected[0]).all()
signal.signal(signal.SIGALRM, signal.SIG_IGN)
ended.set()
for thread in threads:
    thread.join()
"""


@needs_signals
def test_a_signal_handler_may_encode_while_its_thread_encodes(random_artifact: Path) -> None:
    run_script(HANDLER, random_artifact, 60, 60)


def test_no_progress_bar_is_built_where_none_is_shown(demo_model: BGEM3Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt can leave a progress bar's lock taken for every thread."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a progress bar was built")

    monkeypatch.setattr(model_module, "tqdm", refuse)
    monkeypatch.setattr(tqdm.tqdm, "__new__", refuse)
    assert len(demo_model.score(["one"], ["two"]).hybrid) == 1
    with pytest.raises(AssertionError, match="was built"):
        demo_model.encode(["one"], show_progress=True)
