"""The machine: what it is, the device memory in use, and the rate of its matrix products."""

import importlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bgem3.runtime import cuda
from bgem3.runtime.bench_report import attempt
from bgem3.runtime.device import device_number

LIBRARIES = ("bgem3", "numpy", "tokenizers", "onnx", "torch", "transformers", "FlagEmbedding")
SHAPES = {
    "cpu": [(512, 1024, 4096)],  # BGE-M3's largest product, for the tokens of one micro-batch
    "cuda": [(16384, 1024, 4096), (8192, 8192, 8192)],
}
"""Matrix products (m, k, n) that are timed: (m, k) x (k, n)."""


def environment(device: str, n_threads: int) -> dict[str, Any]:
    """Describe the device, the processor and the libraries; ``n_threads`` is what the encoders are given."""
    described: dict[str, Any] = {
        "device": device,
        "processor": processor_name(),
        "n_threads": n_threads,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {"onnxruntime": onnxruntime.__version__} | _versions(),
    }
    if device.startswith("cuda"):
        described["gpu"] = attempt(lambda: query_gpu(device, "name", "driver_version", "memory.total"))
    return described


def processor_name() -> str:
    """Return the CPU's model as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.processor()


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # noqa: PERF203
            found[name] = "not installed"
    return found


def query_gpu(device: str, *fields: str) -> dict[str, str]:
    """Ask nvidia-smi for fields of a device, "cuda" or "cuda:N".

    Raises
    ------
    RuntimeError
        If there is no nvidia-smi, or it fails.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([*command, f"--id={_physical_id(device)}"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise RuntimeError("nvidia-smi is not on the PATH; it comes with NVIDIA's driver") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"nvidia-smi failed: {error.stdout}{error.stderr}".strip()) from None
    return dict(zip(fields, (value.strip() for value in done.stdout.split(",")), strict=True))


def device_memory_mib(device: str) -> int:
    """Return the memory of a CUDA device that is in use, by every process, in MiB."""
    free, total = cuda.device_memory(cuda.import_cudart(), device_number(device))
    return (total - free) >> 20


def _physical_id(device: str) -> str:
    """Return nvidia-smi's name for a device: CUDA counts the visible ones, nvidia-smi counts all."""
    number = device_number(device)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[number] if number < len(visible) else str(number)


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def onnxruntime_matrix_rate(device: str, precision: str, n_threads: int, n_repeats: int = 30) -> dict[str, float]:
    """Measure ONNX Runtime's matrix products in FLOP/s, by shape.

    Parameters
    ----------
    device : "cpu" or "cuda:N"
    precision : of the products on CUDA, "fp16" or "fp32"; on CPU they are fp32
    n_threads : on CPU
    n_repeats : timed products, of which the median counts

    Raises
    ------
    ImportError
        If onnx, which writes the graph, is not installed.
    RuntimeError
        If ONNX Runtime does not take the device.
    """
    return _rates(_onnxruntime_product, device, precision, n_threads, n_repeats)


def torch_matrix_rate(device: str, precision: str, n_threads: int, n_repeats: int = 30) -> dict[str, float]:
    """Measure PyTorch's matrix products; as :func:`onnxruntime_matrix_rate`."""
    return _rates(_torch_product, device, precision, n_threads, n_repeats)


def _rates(
    product: Callable[[Any, Any, str, int], Callable[[], object]],
    device: str,
    precision: str,
    n_threads: int,
    n_repeats: int,
) -> dict[str, float]:
    kind = device.partition(":")[0]
    dtype = np.float16 if (kind, precision) == ("cuda", "fp16") else np.float32
    rng = np.random.default_rng(0)  # random numbers: zeros draw less power and run faster
    rates = {}
    for m, k, n in SHAPES[kind]:
        rows, weight = (rng.standard_normal(shape, dtype=np.float32).astype(dtype) for shape in ((m, k), (k, n)))
        run = product(rows, weight, device, n_threads)
        run()
        seconds = statistics.median(seconds_of(run) for _ in range(n_repeats))
        rates[f"({m}, {k}) x ({k}, {n})"] = 2 * m * k * n / seconds
    return rates


def _onnxruntime_product(rows: Any, weight: Any, device: str, n_threads: int) -> Callable[[], object]:
    onnx = importlib.import_module("onnx")
    is_cuda = device.startswith("cuda")
    place = ("cuda", device_number(device)) if is_cuda else ("cpu", 0)
    if is_cuda and cuda.PROVIDER not in onnxruntime.get_available_providers():
        raise RuntimeError(f"onnxruntime {onnxruntime.__version__} has no {cuda.PROVIDER}")
    kind = onnx.helper.np_dtype_to_tensor_dtype(rows.dtype)
    values = [onnx.helper.make_tensor_value_info(name, kind, None) for name in ("rows", "product")]
    node = onnx.helper.make_node("MatMul", ["rows", "weight"], ["product"])
    initializer = onnx.numpy_helper.from_array(weight, "weight")
    graph = onnx.helper.make_graph([node], "product", values[:1], values[1:], [initializer])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    provider = (cuda.PROVIDER, {"device_id": place[1], "use_tf32": 0}) if is_cuda else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
    if is_cuda and session.get_providers()[0] != cuda.PROVIDER:
        raise RuntimeError(f"ONNX Runtime fell back to {session.get_providers()}, expected {cuda.PROVIDER} first")
    binding = session.io_binding()
    binding.bind_ortvalue_input("rows", onnxruntime.OrtValue.ortvalue_from_numpy(rows, *place))
    binding.bind_output("product", *place)
    return lambda: session.run_with_iobinding(binding)  # returns when the device is done


def _torch_product(rows: Any, weight: Any, device: str, n_threads: int) -> Callable[[], object]:
    torch = importlib.import_module("torch")
    if not device.startswith("cuda"):
        torch.set_num_threads(n_threads)
    elif not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA device")
    left, right = torch.from_numpy(rows).to(device), torch.from_numpy(weight).to(device)

    def run() -> None:
        left @ right
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return run
