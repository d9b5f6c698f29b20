"""ONNX Runtime's CUDA provider: its options, and its errors.

The provider's options, and the reasons:

- Every node must run on the device, or the session is not made: a silent fallback to the CPU would be slow.
- `sdpa_kernel`: flash attention where it exists (float16), memory-efficient attention otherwise (float32), at every
  length. The provider's default keeps packed attention off flash below 513 tokens.
- SkipLayerNormalization takes its statistics in float32 (strict mode), and TF32 is off.
- The arena grows by what is asked for, not by doubling. A warm-up with the largest micro-batch makes it grow once.
"""

import re
from pathlib import Path
from typing import Any

from bgem3.runtime.artifact import ArtifactError, verify_help
from bgem3.runtime.cuda_runtime import PROVIDER, preload_libraries
from bgem3.runtime.ort import make_session, onnxruntime_errors

SETTINGS = {"session.disable_cpu_ep_fallback": "1"}
FLASH, EFFICIENT, UNFUSED = 1, 2, 16  # bits of the provider's sdpa_kernel option
UNREADABLE = re.compile("INVALID_PROTOBUF|INVALID_GRAPH|NO_SUCHFILE|external data", re.IGNORECASE)
OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate memory|smaller than requested bytes|ALLOC_FAILED", re.IGNORECASE
)


class DeviceMemoryError(RuntimeError):
    """The device has too little free memory for the model or for one text."""


def open_cuda_session(path: Path, device_id: int, memory_limit: int | None, cuda_graphs: bool) -> Any:
    """Open a graph on a CUDA device.

    Raises
    ------
    DeviceMemoryError, ArtifactError, RuntimeError
        If the weights do not fit the device's free memory, ONNX Runtime cannot read the graph, or a part of the graph
        cannot run on the device.
    """
    preload_libraries()
    try:
        session = make_session(
            path, 1, SETTINGS, providers=[(PROVIDER, provider_options(device_id, memory_limit, cuda_graphs))]
        )
    except cuda_errors() as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                f"cuda:{device_id} has too little free memory for the weights in {path.parent} ({error}); free some, "
                "raise the memory limit, or load the model with device='cpu'"
            ) from None
        if UNREADABLE.search(str(error)):
            raise ArtifactError(f"ONNX Runtime cannot read {path} ({error}); {verify_help(path)}") from None
        raise RuntimeError(f"{_not_loaded(device_id)}; its error: {error}") from None
    if PROVIDER not in session.get_providers():
        raise RuntimeError(_not_loaded(device_id))
    return session


def provider_options(device_id: int, memory_limit: int | None = None, cuda_graphs: bool = False) -> dict[str, Any]:
    """Return the CUDA provider's options; this module's docstring gives the reasons."""
    return {
        "device_id": device_id,
        "arena_extend_strategy": "kSameAsRequested",
        "sdpa_kernel": FLASH | EFFICIENT | UNFUSED,
        "enable_skip_layer_norm_strict_mode": 1,
        "use_tf32": 0,
        "enable_cuda_graph": int(cuda_graphs),
        **({} if memory_limit is None else {"gpu_mem_limit": memory_limit}),
    }


def cuda_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of opening and running a graph on CUDA; some runs raise a plain RuntimeError."""
    return (RuntimeError, *onnxruntime_errors())


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether ONNX Runtime failed for lack of the device's memory."""
    return OUT_OF_MEMORY.search(str(error)) is not None


def _not_loaded(device_id: int) -> str:
    return (
        f"device 'cuda:{device_id}' was asked for, but ONNX Runtime did not load its CUDA provider for every part of "
        "the graph; most often a CUDA or cuDNN library is missing or of another major version (ONNX Runtime says more "
        "above): `pip install 'bgem3[gpu]'` brings the right ones, or use device='cpu'"
    )
