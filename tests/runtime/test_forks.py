"""Processes that get a model from another one: forked while it encodes, or by pickling."""

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgem3.runtime import BGEM3FlagModel, BGEM3Model
from tests.runtime.interrupting import run_script

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork processes")

FORKS = """
import gc, multiprocessing, os, signal, sys, threading, time
from bgem3.runtime import BGEM3Model

folder, n_times = sys.argv[1], int(sys.argv[2])
model = BGEM3Model.load(folder, "cpu", "fp32", n_threads=2)
texts = ["a text", "another one"]
expected = model.encode(texts).dense
ended = threading.Event()

def encode_always():
    while not ended.is_set():
        assert (model.encode(texts).dense == expected).all()

def encode(*_):
    try:
        model.encode(texts)
    except RuntimeError as error:
        assert "load the model in the child" in str(error), error
    else:
        raise AssertionError("the forked process encoded")

def leave(): pass
def close(): model.close()
def drop():
    globals()["model"] = None
    gc.collect()
def load():
    encode()
    with BGEM3Model.load(folder, "cpu", "fp32", n_threads=2) as own:
        assert (own.encode(texts).dense == expected).all()

def fork(action):
    "Fork; the child acts and then exits as Python does."
    child = os.fork()
    if not child:
        action()
        sys.exit(0)
    for _ in range(3000):
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            assert os.waitstatus_to_exitcode(status) == 0, action
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    raise AssertionError(f"the child hangs after {action}")

# While no thread encodes, the session's threads sleep.
fork(load)
process = multiprocessing.get_context("fork").Process(target=encode)
process.start()
process.join(30)
assert process.exitcode == 0
with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map(encode, range(4))
callers = [threading.Thread(target=encode_always, daemon=True) for _ in range(4)]
for caller in callers:
    caller.start()
for action in (encode, leave, close, drop, load) * n_times:
    fork(action)
ended.set()
for caller in callers:
    caller.join(60)
    assert not caller.is_alive()
assert (model.encode(texts).dense == expected).all()
"""


@needs_fork
@pytest.mark.parametrize("n_times", [1, pytest.param(6, marks=pytest.mark.stress)])
def test_a_forked_process_refuses_to_encode_loads_its_own_model_and_exits(random_artifact: Path, n_times: int) -> None:
    run_script(FORKS, random_artifact, n_times)


FORKS_WITHIN = """
import os, signal, sys, threading
from bgem3.runtime import BGEM3Model
from bgem3.runtime.cpu_session import CpuSession

model = BGEM3Model.load(sys.argv[1], "cpu", "fp32", n_threads=os.cpu_count())
children, run, main = [], CpuSession._run, threading.get_ident()
may_end, begun = threading.Event(), threading.Event()

def fork(*_):
    children.append(os.fork())
    may_end.set()

def within_a_run():
    "Fork while this thread runs the first of two micro-batches."
    def run_and_fork(*arguments):
        arrays = run(*arguments)
        if not children:
            fork()
        return arrays
    CpuSession._run = run_and_fork
    model.encode(["word " * 100] * 40)

def within_a_wait():
    "Fork while this thread waits for another one's run."
    def delayed_run(*arguments):
        if threading.get_ident() != main:
            begun.set()
            may_end.wait()
        return run(*arguments)
    CpuSession._run = delayed_run
    signal.signal(signal.SIGALRM, fork)
    threading.Thread(target=model.encode, args=(["b"],)).start()
    begun.wait()
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    model.encode(["a"])

error = ""
try:
    globals()[sys.argv[2]]()
except RuntimeError as caught:
    error = str(caught)
if children == [0]:
    os._exit("load the model in the child" not in error)
assert not error, error
assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
"""


@needs_fork
@pytest.mark.parametrize("place", ["within_a_run", "within_a_wait"])
def test_a_process_that_was_forked_within_encode_refuses_to_go_on(random_artifact: Path, place: str) -> None:
    run_script(FORKS_WITHIN, random_artifact, place)


@pytest.mark.parametrize("pickled", [pickle.dumps, copy.deepcopy])
@pytest.mark.parametrize("kind", [BGEM3Model.load, BGEM3FlagModel])
def test_a_model_that_is_pickled_says_to_load_it_in_the_worker(
    random_artifact: Path, kind: Callable[..., Any], pickled: Callable[[Any], Any]
) -> None:
    model = kind(random_artifact)
    with pytest.raises(TypeError, match=r"cannot be pickled or copied.*call BGEM3Model\.load in the process"):
        pickled(model)
    model.close()
