"""Forked processes, which can neither run nor destroy the ONNX Runtime objects that they inherit.

`fork` copies a session without its threads, and with its locks as they are. A run may wait for them for ever. So may
the destructors of sessions and of arrays in their memory, which Python calls when the child exits. So the child never
destroys an inherited object.

One case is left. From version 1.29 on, `import onnxruntime` starts a thread for telemetry, and children hang in exit()
because they lack it. `bgem3.runtime.ort.import_onnxruntime` switches telemetry off; a program that imports
onnxruntime before it loads a model should set ORT_DISABLE_TELEMETRY=1, or end its children with ``os._exit``.
"""

import ctypes
import os
import weakref
from typing import Any

_inherited: "weakref.WeakSet[Any]" = weakref.WeakSet()


def leave_to_parent(owner: Any) -> None:
    """Keep forked processes from destroying an object and everything that it refers to."""
    _inherited.add(owner)


def check_process(process: int) -> None:
    """Raise RuntimeError if this process is not the one that loaded the model, given by its id."""
    if os.getpid() != process:
        raise RuntimeError(
            f"this model was loaded in process {process}, and process {os.getpid()} was forked from it without the "
            "model's threads; load the model in the child process, or start processes with "
            'multiprocessing.get_context("spawn")'
        )


def _keep_forever() -> None:
    for owner in _inherited:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_forever)
