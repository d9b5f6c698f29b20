"""Saves that are stopped half way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


class Killed(BaseException):
    """Stands for whatever ends a process."""


def stop_everywhere(save: Callable[[], None], check_old: Callable[[], None], patch: pytest.MonkeyPatch) -> int:
    """Stop a save at every call that writes or renames, in turn, until one comes through; return how many did not."""
    n_calls, n_allowed = 0, 0

    def stopping(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal n_calls
            n_calls += 1
            if n_calls > n_allowed:
                raise Killed
            return call(*arguments, **options)

        return run

    for module, name in ((np, "save"), (np, "savez"), (Path, "mkdir"), (Path, "write_text"), (Path, "replace")):
        patch.setattr(module, name, stopping(getattr(module, name)))
    for n_allowed in range(100):
        n_calls = 0
        try:
            save()
        except Killed:
            check_old()
        else:
            return n_allowed
    raise AssertionError("no save came through")
