"""Exceptions that fall into a function after any number of its steps, and threads that may hang."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType, ModuleType
from typing import Any, TypeVar

Value = TypeVar("Value")
MOST_STEPS = 5000


def interrupted_after(
    n_steps: int, error: BaseException, modules: tuple[ModuleType, ...], call: Callable[[], Value]
) -> tuple[Value | None, bool]:
    """Call a function, and raise an error before the n-th bytecode instruction of some modules' functions.

    Returns
    -------
    value : the function's value, or None if it raised the error
    was_due : whether the function has that many steps
    """
    files = {module.__file__ for module in modules}
    n_done, was_due = 0, False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal n_done, was_due
        if event == "call":
            frame.f_trace_opcodes = frame.f_code.co_filename in files
            return trace if frame.f_trace_opcodes else None
        if event == "opcode":
            n_done += 1
            if n_done == n_steps:
                was_due = True
                raise error
        return trace

    sys.settrace(trace)
    try:
        value = call()
    except type(error):
        return None, True
    finally:
        sys.settrace(None)
    return value, was_due


def steps_until_done(
    error: BaseException, modules: tuple[ModuleType, ...], make_call: Callable[[], Callable[[], Value]]
) -> Iterator[tuple[int, Value | None]]:
    """Yield 1, 2, ... and the value of a call that was interrupted after so many steps, until it has no more steps."""
    for n_steps in range(1, MOST_STEPS):
        value, was_due = interrupted_after(n_steps, error, modules, make_call())
        yield n_steps, value
        if not was_due:
            assert value is not None
            return
    raise AssertionError("the call has no end")


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
