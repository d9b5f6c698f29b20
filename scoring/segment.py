"""Segment: passages that were added to a corpus together, in the form in which they are searched and saved."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.embeddings import Embeddings
from bgem3.scoring.postings import Postings, checked_rows
from bgem3.scoring.stored_arrays import FLOATS, LARGEST_VOCABULARY, OFFSETS, StoredArrays
from bgem3.scoring.token_vectors import MultiVectors, Storage

NUMBERS = ("vocabulary_size", "storage_error")  # fields that files store as arrays of one value


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The ids and the three outputs of passages that were added to a corpus together."""

    ids: NDArray[Any]  # int64 or str (P,)
    dense: NDArray[np.float32]  # (P, D)
    postings: Postings
    vocabulary_size: int
    multivector: MultiVectors
    storage_error: float  # the largest ``‖v - stored v‖`` of the token vectors

    @classmethod
    def build(cls, passages: Embeddings, ids: NDArray[Any], storage: Storage) -> "Segment":
        """Return the segment of passages, with their lexical weights inverted and their multi-vectors in a storage.

        Raise AttributeError if an output is missing, and ValueError if outputs do not fit one another.
        """
        _check_outputs(passages)
        multivector, error = passages.multivector.without_gaps(), 0.0
        if multivector.storage != storage:
            multivector, error = multivector.stored_as(storage)
        return cls(
            ids=ids,
            dense=passages.dense,
            postings=Postings.build(checked_rows(passages.sparse)),
            vocabulary_size=passages.sparse.shape[1],
            multivector=multivector,
            storage_error=error,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that :meth:`from_arrays` reads, by their names in files."""
        named = {"ids": self.ids, "dense": self.dense}
        named |= {name: np.array([getattr(self, name)]) for name in NUMBERS}
        return named | self.postings.arrays() | self.multivector.arrays()

    @classmethod
    def from_arrays(cls, stored: StoredArrays) -> "Segment":
        """Return the segment of stored arrays, or raise ValueError if an array is missing or does not fit."""
        ids = stored.take("ids", ("int64", "str"), (None,))
        vocabulary_size = int(stored.number("vocabulary_size", OFFSETS, 0, LARGEST_VOCABULARY))
        return cls(
            ids=ids,
            dense=stored.take("dense", FLOATS, (len(ids), None)),
            postings=Postings.from_arrays(stored, len(ids), vocabulary_size),
            vocabulary_size=vocabulary_size,
            multivector=MultiVectors.from_arrays(stored, len(ids)),
            storage_error=stored.take("storage_error", ("float64",), (1,))[0].item(),
        )

    def __len__(self) -> int:
        return len(self.ids)


def _check_outputs(passages: Embeddings) -> None:
    """Raise ValueError if the outputs are of different texts, or a score could not read them."""
    multivector, sparse, dense = passages.multivector, passages.sparse, passages.dense
    multivector.check()
    if dense.ndim != 2 or dense.dtype.name not in FLOATS:
        raise ValueError(f"dense vectors must be a (texts, dims) array of floats, found {dense.dtype} {dense.shape}")
    n_texts = {len(passages), len(dense), sparse.shape[0], len(multivector)}
    if len(n_texts) > 1:
        raise ValueError(
            f"outputs must be of the same texts, found {len(passages)} token counts, {len(dense)} dense vectors, "
            f"{sparse.shape[0]} rows of sparse weights and {len(multivector)} multi-vectors"
        )
    if sparse.shape[1] > LARGEST_VOCABULARY:
        raise ValueError(
            f"sparse weights must have at most {LARGEST_VOCABULARY} token ids, found {sparse.shape[1]} columns"
        )
