"""Which device a model runs on, and the session for it."""

import logging
import re

from bgem3.runtime import cuda
from bgem3.runtime.artifact import Artifact
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.cuda import CudaSession
from bgem3.runtime.session import CpuSession

INSTALL = (
    "on a machine where `nvidia-smi` shows the device, `pip uninstall onnxruntime` and then `pip install 'bgem3[gpu]'` "
    "(the two share one import name)"
)
EncoderSession = CpuSession | CudaSession

logger = logging.getLogger(__name__)


def open_encoder(
    artifact: Artifact,
    *,
    device: str = "auto",
    precision: str | None = None,
    n_threads: int | None = None,
    token_budget: int | None = None,
    device_memory_limit: int | None = None,
    cuda_graphs: bool = False,
) -> EncoderSession:
    """Open a session on a device; the arguments are those of `bgem3.runtime.BGEM3Model.load`."""
    check_device(device)
    if device != "auto":
        return _open(artifact, device, precision, n_threads, token_budget, device_memory_limit, cuda_graphs)
    why_cpu = _why_not_cuda(artifact, precision)
    if why_cpu:
        session = _open(artifact, "cpu", precision, n_threads, token_budget)
    else:
        session = _open(artifact, "cuda", precision, n_threads, token_budget, device_memory_limit, cuda_graphs)
    chosen = f"running on {session.device} with {session.precision} weights"
    logger.info("device 'auto': %s", f"{chosen}, since {why_cpu}" if why_cpu else chosen)
    return session


def check_device(device: str) -> None:
    """Raise ValueError if a device's name is not one of those there are."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', found {device!r}")


def _open(
    artifact: Artifact,
    device: str,
    precision: str | None,
    n_threads: int | None,
    token_budget: int | None,
    device_memory_limit: int | None = None,
    cuda_graphs: bool = False,
) -> EncoderSession:
    if device == "cpu":
        for name, value in (("cuda_graphs", cuda_graphs), ("device_memory_limit", device_memory_limit)):
            if value:
                raise ValueError(f"{name} is for CUDA, found it with device='cpu'; leave it out")
        precision, path = artifact.graph(precision, "cpu")
        return CpuSession(path, precision, n_threads=n_threads or available_cpus(), token_budget=token_budget)
    device_id = int(device.partition(":")[2] or 0)
    reason = cuda.why_unavailable(device_id)
    if reason:
        raise RuntimeError(f"device {device!r} was asked for, but {reason}; {INSTALL}, or use device='cpu'")
    precision, path = artifact.graph(precision, "cuda")
    return CudaSession(
        path,
        precision,
        artifact.spec,
        device_id=device_id,
        token_budget=token_budget,
        memory_limit=device_memory_limit,
        cuda_graphs=cuda_graphs,
    )


def _why_not_cuda(artifact: Artifact, precision: str | None) -> str | None:
    """Say why a model whose device is left open cannot run on CUDA, or return None if it can."""
    if not any(device == "cuda" and precision in (None, held) for held, device in artifact.graphs):
        return f"the artifact has no CUDA graph for {precision or 'any precision'}"
    return cuda.why_unavailable()
