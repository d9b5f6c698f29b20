"""Processes that get a model from another one: forked while it encodes, or by pickling."""

import contextlib
import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

from bgem3.runtime import BGEM3FlagModel, BGEM3Model

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork processes")

FORKS = """
import gc, json, multiprocessing, os, signal, sys, threading, time
from bgem3.runtime import BGEM3Model

folder, n_callers, n_times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = BGEM3Model.load(folder, "cpu", "fp32", n_threads=2)
texts = ["a text", "another one"]
expected = model.encode(texts).dense
ended = threading.Event()

def encode_always():
    while not ended.is_set():
        assert (model.encode(texts).dense == expected).all()

def refuses():
    try:
        model.encode(texts)
    except RuntimeError as error:
        assert "load the model in the child" in str(error), error
    else:
        raise AssertionError("the forked process encoded")

def encode(): refuses()
def leave(): pass
def close(): model.close()
def drop():
    globals()["model"] = None
    gc.collect()
def load():
    refuses()
    with BGEM3Model.load(folder, "cpu", "fp32", n_threads=2) as own:
        assert (own.encode(texts).dense == expected).all()

def encode_in_pool(_):
    refuses()
    return 0

def run_forked(action):
    "Fork; the child acts and then exits as Python does. Return its exit code, or None where it hangs."
    child = os.fork()
    if not child:
        action()
        sys.exit(0)
    for _ in range(3000):
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None

def run_process(action):
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join(30)
    code = process.exitcode
    process.kill()
    return code

callers = [threading.Thread(target=encode_always, daemon=True) for _ in range(n_callers)]
for caller in callers:
    caller.start()
time.sleep(0.3)  # without callers, the session's threads sleep by now
codes = {}
for action in (encode, leave, close, drop, load):
    codes[action.__name__] = [run_forked(action) for _ in range(n_times)]
codes["process"] = [run_process(action) for action in (encode, leave, load) for _ in range(n_times)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    codes["pool"] = pool.map(encode_in_pool, range(2 * n_times))
ended.set()
for caller in callers:
    caller.join(60)
    assert not caller.is_alive()
encode_once = model.encode(texts).dense
assert (encode_once == expected).all()
print(json.dumps(codes))
"""


def run_script(script: str, *arguments: object, seconds: int = 120) -> str:
    """Run a script in a process of its own and return what it prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@needs_fork
@pytest.mark.parametrize(("n_callers", "n_times"), [(0, 1), (4, 1), pytest.param(4, 12, marks=pytest.mark.stress)])
def test_a_forked_process_refuses_to_encode_loads_its_own_model_and_exits(
    random_artifact: Path, n_callers: int, n_times: int
) -> None:
    codes = json.loads(run_script(FORKS, random_artifact, n_callers, n_times, seconds=900).splitlines()[-1])
    assert codes == {name: [0] * len(found) for name, found in codes.items()}
    assert sum(map(len, codes.values())) == 10 * n_times


FORKS_WITHIN = """
import os, signal, sys, threading
from bgem3.runtime import BGEM3Model
from bgem3.runtime.cpu_session import CpuSession

model = BGEM3Model.load(sys.argv[1], "cpu", "fp32", n_threads=os.cpu_count())
children = []

def fork():
    children.append(os.fork())

def texts():
    yield "a"
    fork()
    yield "b"

def within_a_run():
    "Fork while this thread runs the first of two micro-batches."
    run = CpuSession._run
    def run_and_fork(*arguments):
        arrays = run(*arguments)
        if not children:
            fork()
        return arrays
    CpuSession._run = run_and_fork
    model.encode(["word " * 100] * 40)

def within_a_wait():
    "Fork while this thread waits for another one's run."
    may_end, begun, run, main = threading.Event(), threading.Event(), CpuSession._run, threading.get_ident()
    def held_run(*arguments):
        if threading.get_ident() != main:
            begun.set()
            may_end.wait()
        return run(*arguments)
    CpuSession._run = held_run
    def handler(*_):
        fork()
        may_end.set()
    signal.signal(signal.SIGALRM, handler)
    other = threading.Thread(target=model.encode, args=(["b"],))
    other.start()
    begun.wait()
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    model.encode(["a"])

action = {"texts": lambda: model.encode(texts()), "run": within_a_run, "wait": within_a_wait}[sys.argv[2]]
error = None
try:
    action()
except RuntimeError as caught:
    error = str(caught)
if children == [0]:
    os._exit(0 if error and "load the model in the child" in error else 1)
assert error is None, error
assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
"""


@needs_fork
@pytest.mark.parametrize("place", ["texts", "run", "wait"])
def test_a_process_that_was_forked_within_encode_refuses_to_go_on(random_artifact: Path, place: str) -> None:
    run_script(FORKS_WITHIN, random_artifact, place)


@pytest.mark.parametrize(
    "pickled", [pickle.dumps, ForkingPickler.dumps, copy.deepcopy, lambda model: pickle.dumps(model, 0)]
)
@pytest.mark.parametrize("kind", [BGEM3Model.load, BGEM3FlagModel])
def test_a_model_that_is_pickled_says_to_load_it_in_the_worker(
    random_artifact: Path, kind: Callable[..., Any], pickled: Callable[[Any], Any]
) -> None:
    with (
        contextlib.closing(kind(random_artifact)) as model,
        pytest.raises(TypeError, match=r"cannot be pickled or copied.*call BGEM3Model\.load in the process"),
    ):
        pickled(model)
