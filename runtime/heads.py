"""The three heads of a graph: which rows they read, and the shapes and checks of what they give.

Shape letters: B texts of T tokens together, D dimensions of a dense vector, M of a multi-vector row.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.artifact import ArtifactError, verify_help
from bgem3.runtime.manifest import ModelSpec, Output
from bgem3.runtime.packing import PackedBatch

Arrays = dict[Output, NDArray[np.float32]]


def head_rows(cu_seqlens: NDArray[np.int64], outputs: tuple[Output, ...]) -> dict[str, NDArray[np.int64]]:
    """List the tokens that each head reads; an empty list switches the head off."""
    none, tokens, cls = np.empty(0, np.int64), np.arange(cu_seqlens[-1]), cu_seqlens[:-1]
    is_dense_alone = outputs == ("dense",)
    return {
        "state_rows": cls if is_dense_alone else tokens,
        "dense_rows": none if "dense" not in outputs else np.arange(len(cls)) if is_dense_alone else cls,
        "sparse_rows": tokens if "sparse" in outputs else none,
        "multivector_rows": np.delete(tokens, cls) if "multivector" in outputs else none,
    }


def output_rows(n_texts: Any, n_tokens: Any) -> dict[Output, Any]:
    """Return the number of rows of each output, for ints or for arrays of ints."""
    return {"dense": n_texts, "sparse": n_tokens, "multivector": n_tokens - n_texts}


def output_shapes(spec: ModelSpec, n_texts: int, n_tokens: int) -> dict[Output, tuple[int, ...]]:
    """Return the shape of each output: dense (B, D), sparse (T,), multivector (T - B, M)."""
    n_rows = output_rows(n_texts, n_tokens)
    return {
        "dense": (n_rows["dense"], spec.hidden_size),
        "sparse": (n_rows["sparse"],),
        "multivector": (n_rows["multivector"], spec.multivector_size),
    }


def check_arrays(arrays: Arrays, shapes: dict[Output, tuple[int, ...]], path: Path) -> None:
    """Raise ArtifactError if an output of the graph at ``path`` has another shape, or values that are not finite."""
    for name, values in arrays.items():
        if values.shape != shapes[name]:
            raise ArtifactError(
                f"{path} gives {name} of the shape {values.shape}, expected {shapes[name]}; {verify_help(path)}"
            )
        if not np.isfinite(values).all():
            raise ArtifactError(
                f"{path} gives {name} values that are NaN or infinite: its weights are damaged, or too large for the "
                f"precision that it computes in; load another precision or device='cpu', {verify_help(path)}"
            )


def split_arrays(arrays: Arrays, batches: Sequence[PackedBatch]) -> list[Arrays]:
    """Split the outputs of joined micro-batches into those of each."""
    n_texts = np.array([len(batch.text_index) for batch in batches])
    n_tokens = np.array([len(batch.token_ids) for batch in batches])
    n_rows = output_rows(n_texts, n_tokens)
    parts = {name: np.split(values, np.cumsum(n_rows[name])[:-1]) for name, values in arrays.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(batches))]
