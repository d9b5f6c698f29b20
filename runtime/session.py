"""One ONNX Runtime session on one device: micro-batch in, requested heads out."""

import logging
import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.artifact import Artifact, ArtifactError
from bgem3.runtime.packing import PackedBatch

Output = Literal["dense", "sparse", "multivector"]
OUTPUTS: tuple[Output, ...] = ("dense", "sparse", "multivector")
ERRORS_ONLY = 3

logger = logging.getLogger(__name__)


class EncoderSession:
    """Runs one artifact graph; :meth:`run` may be called from many threads at once.

    Attributes
    ----------
    device : the device it runs on, "cpu"
    precision : the precision of the stored weights
    """

    def __init__(self, artifact: Artifact, *, device: str, precision: str | None, n_threads: int | None = None) -> None:
        self.device = choose_device(device)
        self.precision, path = artifact.graph(precision, self.device)
        if device == "auto":
            logger.info("device 'auto': running on %s with %s weights", self.device, self.precision)
        self._session = open_session(path, n_threads or available_cpus())
        self._input_names = [value.name for value in self._session.get_inputs()]

    def run(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> dict[Output, NDArray[np.float32]]:
        """Encode a micro-batch of B texts and T tokens.

        Returns
        -------
        The requested outputs only: ``dense`` (B, D), ``sparse`` (T,), ``multivector`` (T - B, M), float32.
        """
        feeds = vars(batch) | head_rows(batch, outputs)
        arrays = self._session.run(list(outputs), {name: feeds[name] for name in self._input_names})
        return dict(zip(outputs, arrays, strict=True))


def head_rows(batch: PackedBatch, outputs: tuple[Output, ...]) -> dict[str, NDArray[np.int64]]:
    """List the tokens each head reads; an empty list switches the head off."""
    n_tokens = len(batch.token_ids)
    none, tokens, cls = np.empty(0, np.int64), np.arange(n_tokens), batch.cu_seqlens[:-1]
    is_dense_alone = outputs == ("dense",)
    return {
        "state_rows": cls if is_dense_alone else tokens,
        "dense_rows": none if "dense" not in outputs else np.arange(len(cls)) if is_dense_alone else cls,
        "sparse_rows": tokens if "sparse" in outputs else none,
        "multivector_rows": np.delete(tokens, cls) if "multivector" in outputs else none,
    }


def choose_device(device: str) -> str:
    """Return "cpu", or raise saying why the device cannot be had.

    Raises
    ------
    ValueError
        If ``device`` is not "auto", "cpu", "cuda" or "cuda:N".
    RuntimeError
        If CUDA was asked for and is not there.
    """
    if device in ("auto", "cpu"):
        return "cpu"
    if not isinstance(device, str) or not re.fullmatch(r"cuda(:[0-9]+)?", device):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', found {device!r}")
    providers = _import_onnxruntime().get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        raise RuntimeError(
            f"device {device!r} was asked for, but the installed ONNX Runtime has no CUDA provider (it has: "
            f"{', '.join(providers)}), and this version of bgem3 exports graphs for CPU only; use device='cpu'"
        )
    return "cuda"


def available_cpus() -> int:
    """Count the CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(path: Path, n_threads: int) -> Any:
    """Open a graph on the CPU provider; ArtifactError if ONNX Runtime cannot."""
    runtime = _import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    state = runtime.capi.onnxruntime_pybind11_state
    try:
        # SkipLayerNormalization is several times slower on CPU than the Add and LayerNormalization it replaces.
        return runtime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
        )
    except (
        state.Fail,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.InvalidArgument,
        state.RuntimeException,
    ) as error:
        raise ArtifactError(
            f"ONNX Runtime {runtime.__version__} cannot open {path} ({error}); check the folder with "
            f"`bgem3 verify {path.parent.parent}`, or export the checkpoint again"
        ) from None


def _import_onnxruntime() -> Any:
    """Import onnxruntime when it is first needed, or say what to install."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"onnxruntime cannot be imported ({error}); `pip install 'bgem3[cpu]'`") from error
    return onnxruntime
