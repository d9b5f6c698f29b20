"""Who bgem3 is measured beside: every encoder of a checkpoint that can run here, called alike."""

import contextlib
import importlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.export.torch_encoders import Encoded, TorchPacked, TorchPadded
from bgem3.runtime.session import OUTPUTS, Output

CANNOT_RUN = (AttributeError, ImportError, OSError, RuntimeError, TypeError, ValueError)
"""What a library raises that does not fit the machine or the other libraries."""


class Encoder(Protocol):
    """How every encoder is called; ``batch_size`` counts texts, and has no meaning where texts are packed."""

    def __call__(self, texts: list[str], outputs: Sequence[Output] = OUTPUTS, batch_size: int = 32) -> Encoded: ...


class FlagEmbeddingEncoder:
    """FlagEmbedding's BGEM3FlagModel as it is: outputs in its own precision, ``lexical`` as dicts of id to weight.

    Parameters
    ----------
    checkpoint, device, dtype : as for :class:`TorchPadded`

    Raises
    ------
    ImportError
        If FlagEmbedding is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> None:
        try:
            flag_embedding = importlib.import_module("FlagEmbedding")
        except ImportError as error:
            raise ImportError(
                f"FlagEmbedding cannot be imported ({error}); `pip install FlagEmbedding==1.4.2`"
            ) from error
        self._max_length = checkpoint.spec.max_length
        self._model = flag_embedding.BGEM3FlagModel(
            str(checkpoint.folder), use_fp16=dtype == torch.float16, devices=device
        )

    def __call__(self, texts: list[str], outputs: Sequence[Output] = OUTPUTS, batch_size: int = 256) -> Encoded:
        """Encode texts, ``batch_size`` at a time."""
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            found = self._model.encode(
                texts,
                batch_size=batch_size,
                max_length=self._max_length,
                return_dense="dense" in outputs,
                return_sparse="sparse" in outputs,
                return_colbert_vecs="multivector" in outputs,
            )
        return Encoded(dense=found["dense_vecs"], lexical=found["lexical_weights"], multivector=found["colbert_vecs"])


def load_encoders(
    source: str | Path, device: str, precision: str, n_threads: int | None = None
) -> dict[str, Encoder | str]:
    """Load every encoder of a checkpoint by its name; in place of one that cannot run stands the reason.

    Parameters
    ----------
    source : hub id or checkpoint folder
    device : "cpu", "cuda" or "cuda:N"
    precision : "fp16" computes in float16 on CUDA; everything else is float32
    n_threads : PyTorch's compute threads on CPU, None to leave them as they are

    Raises
    ------
    CheckpointError
        If the checkpoint is not whole.
    """
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    checkpoint = load_checkpoint(source)
    dtype = torch.float16 if precision == "fp16" and device.startswith("cuda") else torch.float32
    options = (checkpoint, "cuda:0" if device == "cuda" else device, dtype)
    return {
        "torch packed": _load(TorchPacked, *options),
        "torch padded": _load(TorchPadded, *options),
        "FlagEmbedding": _load(FlagEmbeddingEncoder, *options),
    }


def _load(
    kind: Callable[[Checkpoint, str, torch.dtype], Encoder], checkpoint: Checkpoint, device: str, dtype: torch.dtype
) -> Encoder | str:
    if device.startswith("cuda") and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device; install a build of PyTorch for CUDA"
    try:
        return kind(checkpoint, device, dtype)
    except CANNOT_RUN as error:
        return f"{type(error).__name__}: {error}"
