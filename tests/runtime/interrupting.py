"""Exceptions that fall into a function after any number of its steps, and threads that may hang."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType, ModuleType
from typing import Any, TypeVar

from bgem3.runtime import BGEM3Model, Embeddings
from bgem3.runtime.encoder_session import CLOSED

Value = TypeVar("Value")
SECONDS = 60


def interrupted_after(
    n_steps: int, error: BaseException, module: ModuleType, call: Callable[[], Value]
) -> tuple[Value | None, bool]:
    """Call a function, and raise an error before the n-th bytecode instruction of a module's functions.

    Return the function's value, or None if it raised the error, and whether it has that many steps.
    """
    n_done, was_due = 0, False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal n_done, was_due
        if event == "call":
            frame.f_trace_opcodes = frame.f_code.co_filename == module.__file__
            return trace if frame.f_trace_opcodes else None
        if event == "opcode":
            n_done += 1
            if n_done == n_steps:
                was_due = True
                raise error
        return trace

    sys.settrace(trace)
    try:
        return call(), was_due
    except type(error):
        return None, True
    finally:
        sys.settrace(None)


def interrupted_everywhere(
    error: BaseException, module: ModuleType, call: Callable[[], Value]
) -> Iterator[Value | None]:
    """Yield the value of a call that is interrupted at its first step, at its second, and so on."""
    n_steps, was_due = 0, True
    while was_due:
        n_steps += 1
        value, was_due = interrupted_after(n_steps, error, module, call)
        yield value


def run_script(script: str, *arguments: object) -> None:
    """Run a script in a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert process.returncode == 0, process.stderr


def in_thread(function: Callable[[], Value]) -> "Future[Value]":
    """Call a function in a thread of its own, which does not keep the process from ending where it hangs."""
    future: Future[Value] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def encode_until_closed(model: BGEM3Model, texts: list[str], check: Callable[[Embeddings], None]) -> None:
    """Encode in four threads, close the model in two others, and check that each caller hears of it."""
    n_encoded = [0] * 4

    def work(i: int) -> str:
        while True:
            try:
                found = model.encode(texts)
            except RuntimeError as error:
                return str(error)
            check(found)
            n_encoded[i] += 1

    callers = [in_thread(lambda i=i: work(i)) for i in range(4)]  # type: ignore[misc]
    while min(n_encoded) == 0 and not any(caller.done() for caller in callers):
        time.sleep(0.001)
    for closer in [in_thread(model.close) for _ in range(2)]:
        closer.result(SECONDS)
    assert [caller.result(SECONDS) for caller in callers] == [CLOSED] * 4
