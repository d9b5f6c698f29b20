"""Exceptions that fall into a function after any number of its steps, and threads that may hang."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import CodeType, FrameType, ModuleType
from typing import Any, TypeVar

Value = TypeVar("Value")


def interrupted_after(
    n_steps: int, error: BaseException, modules: tuple[ModuleType, ...], call: Callable[[], Value]
) -> tuple[Value | None, bool]:
    """Call a function, and raise an error before the n-th bytecode instruction of some modules' functions.

    Returns
    -------
    The function's value, and whether it has that many steps: it returned before the error was due, or it raised it
    (then the value is None), or it swallowed it (then the error is raised here).
    """
    files = {module.__file__ for module in modules}
    n_done, was_due = 0, False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal n_done, was_due
        if event == "call":
            frame.f_trace_opcodes = is_traced(frame.f_code)
            return trace if frame.f_trace_opcodes else None
        if event == "opcode":
            n_done += 1
            if n_done == n_steps:
                was_due = True
                raise error
        return trace

    def is_traced(code: CodeType) -> bool:
        return code.co_filename in files

    sys.settrace(trace)
    try:
        value = call()
    except type(error):
        return None, True
    finally:
        sys.settrace(None)
    return value, was_due


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
