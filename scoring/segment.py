"""Passages of a searched corpus that were added together: what a search reads, and what is saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.embeddings import Embeddings
from bgem3.scoring.ids import has_repeats
from bgem3.scoring.postings import Postings, checked_rows
from bgem3.scoring.stored_arrays import DAMAGED, FLOATS, LARGEST_VOCABULARY, OFFSETS, StoredArrays
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
        """Invert the passages' lexical weights, and store their multi-vectors as asked.

        Raises
        ------
        AttributeError
            If an output is missing.
        ValueError
            If the outputs do not fit one another, or the storage is unknown.
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
        """Return what :meth:`from_arrays` takes, by the names that files give them."""
        named = {"ids": self.ids, "dense": self.dense}
        named |= {name: np.array([getattr(self, name)]) for name in NUMBERS}
        return named | self.postings.arrays() | self.multivector.arrays()

    @classmethod
    def from_arrays(cls, stored: StoredArrays) -> "Segment":
        """Put together what was read from a file; ValueError if an array is missing or does not fit."""
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


def check_segments(segments: Sequence[Segment], where: Path) -> None:
    """Raise ValueError if segments differ in width, vocabulary, storage or kind of ids, or an id is there twice."""
    if not segments:
        raise ValueError(f"{where}: it has no part; {DAMAGED}")
    filled = [segment for segment in segments if len(segment.ids)]
    for name, values in (
        ("width of dense vectors", [segment.dense.shape[1] for segment in segments]),
        ("width of multi-vectors", [segment.multivector.packed.shape[1] for segment in segments]),
        ("storage of multi-vectors", [segment.multivector.storage for segment in segments]),
        ("vocabulary size", [segment.vocabulary_size for segment in segments]),
        ("kind of ids", [segment.ids.dtype.type.__name__ for segment in filled]),
    ):
        if len(set(values)) > 1:
            raise ValueError(f"{where}: its parts must have one {name}, found {values[:8]}; {DAMAGED}")
    if filled and has_repeats(np.concatenate([segment.ids for segment in filled])):
        raise ValueError(f"{where}: it holds an id twice; {DAMAGED}")


def _check_outputs(passages: Embeddings) -> None:
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
        raise ValueError(f"sparse weights may have {LARGEST_VOCABULARY} token ids, found {sparse.shape[1]}")
