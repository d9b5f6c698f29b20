"""Name the kernels that ONNX Runtime runs on a CUDA device."""

import ctypes
import importlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from bgem3.runtime.bench import seconds_of
from bgem3.runtime.model import BGEM3Model

ATTENTION_LOG = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"  # ONNX Runtime reads it when it opens a session
ATTENTION_LINE = re.compile(r"Operator=(\S+).*? DataType=(\S+) SdpaKernel=([A-Z_]+)")
N_KERNELS = 20  # listed, the slowest first


def attention_kernels(load: Callable[[], BGEM3Model], texts: dict[int, list[str]]) -> dict[str, dict[str, int]]:
    """Return how many nodes ran with each operator, data type and kernel, as ONNX Runtime says.

    Parameters
    ----------
    load : loads the model; the environment variable is set meanwhile
    texts : by number of tokens
    """
    found = {}
    os.environ[ATTENTION_LOG] = "1"
    try:
        with load() as model:
            for n_tokens, some in texts.items():
                lines = ATTENTION_LINE.findall(printed_by(partial(model.encode, some)))
                found[str(n_tokens)] = dict(Counter(" ".join(line) for line in lines))
    finally:
        del os.environ[ATTENTION_LOG]
    if not all(found.values()):
        raise RuntimeError(f"ONNX Runtime did not name its attention kernels for every length: {found}")
    return found


def kernel_seconds(load: Callable[[], BGEM3Model], texts: list[str]) -> dict[str, Any]:
    """Return the seconds of one call, of its kernels, and of the slowest kernels; kernels of two streams overlap."""
    profiler = importlib.import_module("torch").profiler  # sees other libraries' kernels, too
    with load() as model:
        model.encode(texts)
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
            seconds = seconds_of(partial(model.encode, texts))
    times = Counter({row.key: row.self_device_time_total / 1e6 for row in profile.key_averages()})
    return {"call_s": seconds, "device_s": times.total(), "kernels_s": dict(times.most_common(N_KERNELS))}


def printed_by(run: Callable[[], object]) -> str:
    """Call a function, and return what libraries printed on standard output meanwhile."""
    with tempfile.TemporaryFile() as file:
        standard_output = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            run()
            ctypes.CDLL(None).fflush(None)
        finally:
            os.dup2(standard_output, 1)
            os.close(standard_output)
        file.seek(0)
        return file.read().decode(errors="replace")
