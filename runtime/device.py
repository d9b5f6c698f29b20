"""Which device a model runs on, and the session for it."""

import logging
import re
from pathlib import Path

from bgem3.runtime import cuda_session as cuda
from bgem3.runtime.artifact import Artifact
from bgem3.runtime.cpu_session import PROBE, CpuSession, choose_graph
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.cuda_session import CudaSession
from bgem3.runtime.graph_file import check_graph, check_locations

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
    kernels: str = "auto",
    profile: Path | None = None,
) -> EncoderSession:
    """Open a session on a device.

    Parameters
    ----------
    device, precision, n_threads, token_budget, device_memory_limit, cuda_graphs : as in `BGEM3Model.load`
    kernels, profile : as in `CpuSession`
    """
    check_device(device)
    if device == "cpu":
        for name, value in (("cuda_graphs", cuda_graphs), ("device_memory_limit", device_memory_limit)):
            if value:
                raise ValueError(f"{name} is for CUDA, found it with device='cpu'; leave it out")
    elif device != "auto":
        require_cuda(device)
    why_cpu = _why_not_cuda(artifact, precision) if device == "auto" else None
    session: EncoderSession
    if device == "cpu" or why_cpu:
        held, path = artifact.graph(precision, "cpu")
        graph, chosen_kernels = choose_graph(path, kernels)
        check_graph(artifact, graph, held, "cpu" if chosen_kernels == "none" else "native")
        if path.with_name(PROBE).is_file():
            check_locations(artifact, path.with_name(PROBE))
        session = CpuSession(
            path,
            held,
            n_threads=n_threads or available_cpus(),
            token_budget=token_budget,
            kernels=kernels,
            profile=profile,
        )
    else:
        held, path = artifact.graph(precision, "cuda")
        check_graph(artifact, path, held, "cuda")
        session = CudaSession(
            path,
            held,
            artifact.spec,
            device_id=device_number(device),
            token_budget=token_budget,
            memory_limit=device_memory_limit,
            cuda_graphs=cuda_graphs,
        )
    if device == "auto":
        chosen = f"running on {session.device} with {session.precision} weights"
        logger.info("device 'auto': %s", f"{chosen}, since {why_cpu}" if why_cpu else chosen)
    return session


def check_device(device: str) -> None:
    """Raise ValueError if a device's name is not one of those there are."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', found {device!r}")


def require_cuda(device: str) -> None:
    """Raise RuntimeError, saying why and what to do, if a CUDA device cannot be used."""
    reason = cuda.why_unavailable(device_number(device))
    if reason:
        raise RuntimeError(f"device {device!r} was asked for, but {reason}; {INSTALL}, or use device='cpu'")


def device_number(device: str) -> int:
    """Return N of "cuda:N", 0 of a name without a number."""
    return int(device.partition(":")[2] or 0)


def _why_not_cuda(artifact: Artifact, precision: str | None) -> str | None:
    """Say why a model whose device is left open cannot run on CUDA, or return None if it can."""
    if not any(device == "cuda" and precision in (None, held) for held, device in artifact.graphs):
        return f"the artifact has no CUDA graph for {precision or 'any precision'}"
    return cuda.why_unavailable()
