"""The choice of the device, the graph and the session that a model runs on."""

import logging
import re
from pathlib import Path

from bgem3.runtime import cuda_runtime, custom_ops
from bgem3.runtime.artifact import Artifact
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.cuda_session import CudaSession
from bgem3.runtime.encoder_session import EncoderSession
from bgem3.runtime.graph_file import check_graph, check_locations
from bgem3.runtime.manifest import GraphEntry

INSTALL = (
    "on a machine where `nvidia-smi` shows the device, `pip uninstall onnxruntime` and then `pip install 'bgem3[gpu]'` "
    "(the two share one import name)"
)

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
    kernels : of our custom CPU operators: "auto" takes this CPU's fastest, "none" takes ONNX Runtime's own operators
    profile : prefix of a file for the time of each operator on the CPU
    """
    check_device(device)
    if device == "cpu":
        for name, value in (("cuda_graphs", cuda_graphs), ("device_memory_limit", device_memory_limit)):
            if value:
                raise ValueError(f"{name} is for CUDA, found it with device='cpu'; leave it out")
    elif device != "auto":
        require_cuda(device)
    why_cpu = None
    if device == "auto" and artifact.find_graph(precision, "cuda"):
        why_cpu = cuda_runtime.why_unavailable()
    elif device == "auto":
        why_cpu = f"the artifact has no CUDA graph for {precision or 'any precision'}"
    session: EncoderSession
    if device == "cpu" or why_cpu:
        graph, kernels = _choose_cpu_graph(artifact, precision, kernels)
        session = CpuSession(
            artifact,
            graph,
            n_threads=n_threads or available_cpus(),
            token_budget=token_budget,
            kernels=kernels,
            profile=profile,
        )
    else:
        graph = artifact.graph(precision, "cuda")
        check_graph(artifact, graph)
        session = CudaSession(
            artifact,
            graph,
            device_id=device_number(device),
            token_budget=token_budget,
            memory_limit=device_memory_limit,
            cuda_graphs=cuda_graphs,
        )
    if device == "auto":
        chosen = f"running on {session.device} with {session.precision} weights"
        logger.info("device 'auto': %s", f"{chosen}, since {why_cpu}" if why_cpu else chosen)
    return session


def _choose_cpu_graph(artifact: Artifact, precision: str | None, kernels: str) -> tuple[GraphEntry, str]:
    """Return the graph that runs on the CPU, checked, and the name of its kernels."""
    graph = artifact.graph(precision, "cpu")
    if kernels == "auto":
        custom = artifact.find_graph(graph.precision, "cpu", "bgem3")
        reason = custom_ops.why_unavailable() if custom else "the artifact has no graph over our CPU operators"
        kernels = (not reason and custom_ops.best_kernels()) or "none"
        logger.info("CPU kernels: %s", f"ONNX Runtime's, since {reason}" if reason else kernels)
    if kernels != "none":
        graph = artifact.graph(graph.precision, "cpu", "bgem3")
    check_graph(artifact, graph)
    if graph.probe:
        check_locations(artifact, artifact.folder / graph.probe)
    return graph, kernels


def check_device(device: str) -> None:
    """Raise ValueError unless a device has one of the names that there are."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', found {device!r}")


def require_cuda(device: str) -> None:
    """Raise RuntimeError, saying why and what to do, if a CUDA device cannot be used."""
    reason = cuda_runtime.why_unavailable(device_number(device))
    if reason:
        raise RuntimeError(f"device {device!r} was asked for, but {reason}; {INSTALL}, or use device='cpu'")


def device_number(device: str) -> int:
    """Return N of "cuda:N", 0 of a name without a number."""
    return int(device.partition(":")[2] or 0)
