"""The machine: what it is, the device memory in use, and the rate of its matrix products."""

import importlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bgem3.runtime import cuda_runtime as cuda
from bgem3.runtime.bench_peer_files import cpu_flags
from bgem3.runtime.bench_report import attempt, is_missing, not_run
from bgem3.runtime.device import device_number

LIBRARIES = ("bgem3", "numpy", "tokenizers", "onnx")
SHAPES = {
    "cpu": [(512, 1024, 4096)],  # BGE-M3's largest product, for the tokens of one micro-batch
    "cuda": [(16384, 1024, 4096), (8192, 8192, 8192)],
}
"""Matrix products (m, k, n) that are timed: (m, k) x (k, n)."""
INSTRUCTION_SETS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"}
"""CPU flags that decide which matrix products a library takes."""


def environment(device: str, n_threads: int) -> dict[str, Any]:
    """Describe the device, the processor and the libraries; ``n_threads`` is what the encoders are given."""
    described: dict[str, Any] = {
        "device": device,
        "processor": processor_name(),
        "instruction_sets": sorted(INSTRUCTION_SETS & cpu_flags()),
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
    free, total = cuda.device_memory(device_number(device))
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


def matrix_rates(device: str, precision: str, n_threads: int, n_repeats: int = 30) -> dict[str, Any]:
    """Measure the machine's matrix products with ONNX Runtime and, where it is installed, PyTorch.

    Parameters
    ----------
    device : "cpu" or "cuda:N"
    precision : "fp32"; on CUDA "fp16" too; on CPU "int8" too, uint8 x int8 with a scale for each column, without torch
    n_threads : on CPU
    n_repeats : timed products, of which the median counts

    Returns
    -------
    ``flop_per_s``, the highest rate, its ``seconds``, and ``products``, each library's and shape's rate. In place of
    what could not be measured stands ``{"not_run": reason}``.
    """
    libraries = {"onnxruntime": _onnxruntime_product} | ({} if precision == "int8" else {"torch": _torch_product})
    products: dict[str, Any] = {}
    best: dict[str, Any] = {"flop_per_s": 0.0}
    for library, product in libraries.items():
        for m, k, n in SHAPES[device.partition(":")[0]]:
            measure = partial(_product_seconds, product, (m, k, n), device, precision, n_threads, n_repeats)
            seconds = attempt(measure)
            rate = seconds if is_missing(seconds) else 2 * m * k * n / statistics.median(seconds)
            products[f"{library} ({m}, {k}) x ({k}, {n})"] = rate
            if not is_missing(rate) and rate > best["flop_per_s"]:
                best = {"flop_per_s": rate, "seconds": seconds}
    return (best if "seconds" in best else not_run("neither onnx nor torch can multiply here")) | {"products": products}


def _product_seconds(
    product: Callable[[Any, Any, str, int], Callable[[], object]],
    shape: tuple[int, int, int],
    device: str,
    precision: str,
    n_threads: int,
    n_repeats: int,
) -> list[float]:
    m, k, n = shape
    rng = np.random.default_rng(0)  # random numbers: zeros draw less power and run faster
    if precision == "int8":
        rows, weight = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-127, 128, (k, n), np.int8)
    else:
        dtype = np.float16 if precision == "fp16" else np.float32
        rows, weight = (rng.standard_normal(size, dtype=np.float32).astype(dtype) for size in ((m, k), (k, n)))
    run = product(rows, weight, device, n_threads)
    run()
    return [seconds_of(run) for _ in range(n_repeats)]


def _onnxruntime_product(rows: Any, weight: Any, device: str, n_threads: int) -> Callable[[], object]:
    onnx = importlib.import_module("onnx")
    is_cuda = device.startswith("cuda")
    place = ("cuda", device_number(device)) if is_cuda else ("cpu", 0)
    if is_cuda and cuda.PROVIDER not in onnxruntime.get_available_providers():
        raise RuntimeError(f"onnxruntime {onnxruntime.__version__} has no {cuda.PROVIDER}")
    operator, domain, constants = "MatMul", "", {"weight": weight}
    if rows.dtype == np.uint8:
        operator, domain = "MatMulIntegerToFloat", "com.microsoft"
        scales = np.full(weight.shape[1], 0.01, np.float32)
        constants |= {"row_scale": np.float32(0.01), "scales": scales, "zero_point": np.uint8(128)}
    helper = onnx.helper
    kind = helper.np_dtype_to_tensor_dtype(rows.dtype)
    made = kind if operator == "MatMul" else onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(*value, None) for value in (("rows", kind), ("product", made))]
    node = helper.make_node(operator, ["rows", *constants], ["product"], domain=domain)
    initializers = [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
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
