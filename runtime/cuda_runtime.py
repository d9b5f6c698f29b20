"""The CUDA runtime's calls that the CUDA session makes itself, beside ONNX Runtime: devices, and memory."""

import contextlib
import ctypes
import os
import sys
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.ort import import_onnxruntime

PROVIDER = "CUDAExecutionProvider"


class PinnedBuffers:
    """Page-locked host memory, which a device reads and writes without another copy; a buffer for each name."""

    def __init__(self, device_id: int) -> None:
        self._device_id = device_id
        self._buffers: dict[str, _PinnedBuffer] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an array in the buffer of this name, which grows; not to be used after these buffers are gone."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if name not in self._buffers or len(self._buffers[name].memory) < size:
            self._buffers[name] = _PinnedBuffer(self._device_id, 1 << max(16, (size - 1).bit_length()))
        array: NDArray[Any] = self._buffers[name].memory[:size].view(dtype).reshape(shape)
        return array


class _PinnedBuffer:
    def __init__(self, device_id: int, size: int) -> None:
        cudart = import_cudart()
        choose_device(device_id)  # or else this thread would take memory on device 0 as well
        pointer = checked(cudart.cudaHostAlloc(size, cudart.cudaHostAllocPortable), f"pinning {size} bytes")
        weakref.finalize(self, _free_pinned, cudart, pointer, os.getpid())
        self.memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(pointer)))


def _free_pinned(cudart: Any, pointer: int, process: int) -> None:
    if os.getpid() == process:  # CUDA does not work in a forked process, and the memory is its parent's
        cudart.cudaFreeHost(pointer)


def why_unavailable(device_id: int = 0) -> str | None:
    """Return the reason why a CUDA device cannot be used, or None if none is known."""
    providers = import_onnxruntime().get_available_providers()
    if PROVIDER not in providers:
        return f"the installed ONNX Runtime has no CUDA provider (it has: {', '.join(providers)})"
    try:
        n_devices = checked(import_cudart().cudaGetDeviceCount(), "counting CUDA devices")
    except (ImportError, RuntimeError) as error:
        return str(error)
    if device_id >= n_devices:
        return f"the CUDA devices of this machine end at cuda:{n_devices - 1}" if n_devices else "it has no CUDA device"
    return None


def device_memory(device_id: int) -> tuple[int, int]:
    """Return a device's free and total memory in bytes."""
    cudart = import_cudart()
    before = checked(cudart.cudaGetDevice(), "asking for the current device")
    choose_device(device_id)
    free, total = checked(cudart.cudaMemGetInfo(), f"reading the free memory of cuda:{device_id}")
    choose_device(before)  # other libraries of this thread use it, too
    return free, total


def choose_device(device_id: int) -> None:
    """Make a device the current one of this thread."""
    checked(import_cudart().cudaSetDevice(device_id), f"choosing cuda:{device_id}")


def checked(result: tuple[Any, ...], action: str) -> Any:
    """Return the value of a CUDA runtime call, or raise RuntimeError with the error's name."""
    error, *values = result
    if error:  # cudaSuccess is 0
        raise RuntimeError(f"{action} failed: {error.name}")
    return values[0] if len(values) == 1 else tuple(values)


def import_cudart() -> Any:
    """Import the bindings of the CUDA runtime when they are first needed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise ImportError(f"cuda-bindings cannot be imported ({error})") from error
    return runtime


def preload_libraries() -> None:
    """Load the CUDA libraries that pip installed, which ONNX Runtime would not find."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it could not load
        import_onnxruntime().preload_dlls()
