"""The reference outputs of an artifact folder: what the checkpoint gives in PyTorch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.runtime.artifact import COPY_AGAIN, REFERENCE_FILE, ArtifactError


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The outputs of the checkpoint for N texts, in PyTorch float32, each text alone.

    Attributes
    ----------
    texts : N texts
    n_tokens : int32 array (N,)
    dense : float32 array (N, D)
    sparse : float32 csr_array (N, V)
    multivector : float32 array (K, M), a sample of the texts' vectors
    multivector_rows : int64 array (K,), the positions of the sample among all vectors of the N texts
    """

    texts: list[str]
    n_tokens: NDArray[np.int32]
    dense: NDArray[np.float32]
    sparse: csr_array
    multivector: NDArray[np.float32]
    multivector_rows: NDArray[np.int64]

    def save(self, folder: Path) -> None:
        """Write the reference into an artifact folder."""
        parts = {f"sparse_{name}": getattr(self.sparse, name) for name in ("data", "indices", "indptr", "shape")}
        np.savez_compressed(
            folder / REFERENCE_FILE,
            texts=np.frombuffer(json.dumps(self.texts).encode(), np.uint8),
            n_tokens=self.n_tokens,
            dense=self.dense,
            **parts,
            multivector=self.multivector,
            multivector_rows=self.multivector_rows,
        )

    def head(self, max_tokens: int) -> "Reference":
        """Return the leading texts, up to the first of more than ``max_tokens`` tokens."""
        is_long = self.n_tokens > max_tokens
        n_texts = int(is_long.argmax()) if is_long.any() else len(self.texts)
        n_rows = int(np.searchsorted(self.multivector_rows, (self.n_tokens[:n_texts] - 1).sum()))
        return Reference(
            texts=self.texts[:n_texts],
            n_tokens=self.n_tokens[:n_texts],
            dense=self.dense[:n_texts],
            sparse=self.sparse[:n_texts],
            multivector=self.multivector[:n_rows],
            multivector_rows=self.multivector_rows[:n_rows],
        )

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """Read the reference of an artifact folder, or raise ArtifactError."""
        path = folder / REFERENCE_FILE
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls._from_arrays(arrays)
        except Exception as error:  # NumPy and zipfile raise nearly every kind there is for a damaged file
            raise ArtifactError(
                f"{path} is not a reference that an export wrote ({error!r:.200}); {COPY_AGAIN}"
            ) from None

    @classmethod
    def _from_arrays(cls, arrays: Any) -> "Reference":
        """Read the arrays of a file; raise KeyError, TypeError or ValueError if they are not those of a reference."""
        texts = json.loads(arrays["texts"].tobytes())
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts is not a list of texts")
        n_tokens = _array(arrays, "n_tokens", "i", (len(texts),))
        dense = _array(arrays, "dense", "f", (len(texts), None))
        vectors = _array(arrays, "multivector", "f", (None, None))
        rows = _array(arrays, "multivector_rows", "i", (len(vectors),))
        n_vectors = int(n_tokens.sum()) - len(texts)
        if (n_tokens < 2).any() or (np.diff(rows) <= 0).any() or not ((rows >= 0) & (rows < n_vectors)).all():
            raise ValueError("n_tokens and multivector_rows do not belong together")
        shape = tuple(int(n) for n in _array(arrays, "sparse_shape", "i", (2,)))
        parts = (("sparse_data", "f"), ("sparse_indices", "i"), ("sparse_indptr", "i"))
        sparse = csr_array(tuple(_array(arrays, name, kind, (None,)) for name, kind in parts), shape=shape)
        sparse.check_format(full_check=True)
        if shape[0] != len(texts):
            raise ValueError(f"sparse has {shape[0]} rows, expected {len(texts)}")
        return cls(
            texts=texts, n_tokens=n_tokens, dense=dense, sparse=sparse, multivector=vectors, multivector_rows=rows
        )


def _array(arrays: Any, name: str, kind: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Return an array of a file; raise TypeError if its kind of numbers or its shape is another (None: any length)."""
    array: NDArray[Any] = arrays[name]
    has_shape = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if array.dtype.kind != kind or not has_shape:
        raise TypeError(f"{name} is {array.dtype} {array.shape}, expected {kind} {shape}")
    return array
