"""Our custom CPU operators for ONNX Runtime (runtime/kernels): where their library is, and what this CPU supports."""

import ctypes
import importlib.util
from functools import cache
from pathlib import Path


@cache
def library() -> Path | None:
    """Return the operators' shared library; None if the package was installed where it could not be compiled."""
    spec = importlib.util.find_spec("bgem3.runtime._kernels")
    return Path(spec.origin) if spec is not None and spec.origin else None


@cache
def best_kernels() -> str | None:
    """Return the name of this CPU's fastest kernels ("AVX2"); None where ONNX Runtime's own operators serve.

    They serve where the library is missing, on CPUs other than x86-64, and on those without AVX2. They also serve on
    CPUs with AMX, because ONNX Runtime uses this matrix unit and our kernels do not.

    Raises
    ------
    RuntimeError
        If the library does not load; not an OSError, which an export would take for a failure to write.
    """
    path = library()
    if path is None:
        return None
    try:
        name = ctypes.CDLL(str(path)).bgem3_kernels
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"bgem3's CPU operators in {path} do not load ({error}); reinstall bgem3") from error
    name.restype = ctypes.c_char_p
    found: bytes | None = name()
    return found.decode() if found else None


def why_unavailable() -> str | None:
    """Return the reason why the operators cannot be used on this machine; None if they can."""
    if library() is None:
        return "our CPU operators were not compiled; install gcc, and then bgem3 again"
    return None if best_kernels() else "our CPU operators have no kernels for this CPU"
