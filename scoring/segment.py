"""Passages of a searched corpus that were added together: what a search reads, and what is saved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.embeddings import Embeddings
from bgem3.scoring.payloads import check_ids
from bgem3.scoring.postings import Postings
from bgem3.scoring.storage import array_of
from bgem3.scoring.token_vectors import MultiVectors, Storage

NUMBERS = ("vocabulary_size", "storage_error")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Passages that were added together.

    Attributes
    ----------
    ids : (P,) int64 or str array
    dense : (P, D) float32 array
    postings, multivector : the passages' lexical weights and token vectors
    vocabulary_size : how many token ids lexical weights may have
    storage_error : the largest ``‖v - stored v‖`` of the token vectors
    """

    ids: NDArray[Any]
    dense: NDArray[np.float32]
    postings: Postings
    vocabulary_size: int
    multivector: MultiVectors
    storage_error: float

    @classmethod
    def build(cls, passages: Embeddings, ids: NDArray[Any], storage: Storage) -> "Segment":
        """Invert the passages' lexical weights, and store their multi-vectors as asked."""
        multivector, error = passages.multivector, 0.0
        if multivector.storage != storage:
            multivector, error = multivector.stored_as(storage)
        return cls(
            ids=ids,
            dense=passages.dense,
            postings=Postings.build(passages.sparse),
            vocabulary_size=passages.sparse.shape[1],
            multivector=multivector,
            storage_error=error,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what :meth:`from_arrays` takes, by the names that files give them."""
        named = {"ids": self.ids, "dense": self.dense}
        named |= {name: np.array([getattr(self, name)]) for name in NUMBERS}
        return named | self.postings.arrays() | self.multivector.arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], where: Path) -> "Segment":
        """Put together what was read from ``where``; ValueError if an array is missing."""
        ids, dense, *numbers = (array_of(arrays, name, where) for name in ("ids", "dense", *NUMBERS))
        return cls(
            ids=ids,
            dense=dense,
            postings=Postings.from_arrays(arrays, where),
            multivector=MultiVectors.from_arrays(arrays, where),
            **{name: number[0].item() for name, number in zip(NUMBERS, numbers, strict=True)},
        )


def checked_ids(ids: Sequence[int] | Sequence[str] | None, n_passages: int, first: int) -> NDArray[Any]:
    """Return ids as an int64 or str array, the numbers from ``first`` on for None; ValueError if they do not fit."""
    if ids is None:
        return np.arange(first, first + n_passages)
    array = np.asarray(check_ids(ids, n_passages))
    if not len(array):
        return array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iuU" or len(np.unique(array)) != n_passages:
        raise ValueError(
            f"ids must be different whole numbers, or different strings, found {array.dtype} {array!r:.80}"
        )
    return array.astype(np.int64) if array.dtype.kind in "iu" else array
