"""Describe this machine: processor, CUDA device, versions, and the memory in use."""

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bgem3.runtime.cuda_runtime import checked, device_memory, import_cudart
from bgem3.runtime.device import device_number
from bgem3.runtime.ort import import_onnxruntime

MIB = 1 << 20


def describe_machine(device: str, packages: Sequence[str] = ("bgem3", "numpy", "tokenizers")) -> dict[str, Any]:
    """Return the names of the device and the processor, and the versions of Python, ONNX Runtime and packages.

    On CUDA, ``gpu`` has the device's name and memory, and the newest CUDA version that its driver runs.
    """
    versions = {name: version(name) for name in packages}
    versions["onnxruntime"] = import_onnxruntime().__version__  # the package may be onnxruntime-gpu
    described: dict[str, Any] = {
        "device": device,
        "processor": processor_name(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **versions},
    }
    if device.startswith("cuda"):
        cudart = import_cudart()
        properties = checked(cudart.cudaGetDeviceProperties(device_number(device)), f"describing {device}")
        driver = checked(cudart.cudaDriverGetVersion(), "asking for the driver's version")
        memory = properties.totalGlobalMem // MIB
        described["gpu"] = {"name": properties.name.decode(), "memory_mib": memory, "driver_cuda": driver}
    return described


def processor_name() -> str:
    """Return the CPU's model as the system gives it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.is_file() else None
    return found[1] if found else platform.processor()


def memory_in_use(device: str) -> dict[str, int]:
    """Return in MiB the peak resident memory of this process and, on CUDA, what all processes use of the device."""
    used = {"peak_resident": resident_bytes("VmHWM") // MIB}
    if device.startswith("cuda"):
        free, total = device_memory(device_number(device))
        used["device"] = (total - free) // MIB
    return used


def resident_bytes(field: str = "VmHWM", process: int | None = None) -> int:
    """Return the resident memory of a process in bytes.

    Parameters
    ----------
    field : of Linux's /proc/PID/status: "VmHWM" the peak, "VmRSS" now, "RssAnon" now and without mapped files
    process : its id; None for this process. Elsewhere than on Linux, only the peak of this process is known.
    """
    status = Path(f"/proc/{process or os.getpid()}/status")
    if status.is_file():
        found = re.search(rf"{field}:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        return 1024 * int(found[1]) if found else 0
    import resource  # Windows has no such module

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak
