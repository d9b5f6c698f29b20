"""Corpus: the segments that a search runs over, and the scores of queries with their passages."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.dense import dense_scores
from bgem3.scoring.embeddings import Embeddings
from bgem3.scoring.ids import has_repeats
from bgem3.scoring.multivector import multivector_candidate_scores
from bgem3.scoring.ranking import top_k
from bgem3.scoring.segment import Segment
from bgem3.scoring.stored_arrays import DAMAGED

By: TypeAlias = Literal["dense", "sparse", "both"]
"""The scores that retrieve candidates."""

BYS: tuple[By, ...] = get_args(By)
MEMORY_BUDGET = 64 << 20  # bytes of dense and lexical scores at once; queries are scored in blocks that fit

Vector: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Passages in one or more segments, in the order in which they were added; never changed."""

    segments: tuple[Segment, ...]

    @property
    def ids(self) -> NDArray[Any]:
        """The passages' ids (P,). A segment without passages has no kind of ids and is left out."""
        return np.concatenate([segment.ids for segment in self.segments if len(segment)] or [self.segments[0].ids])

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    def candidates(
        self, queries: Embeddings, n_candidates: int, by: By
    ) -> Iterator[tuple[int, NDArray[np.int64], tuple[Vector, Vector, Vector]]]:
        """Retrieve passages for each query: ``n_candidates`` by each of the scores that ``by`` names.

        Yields
        ------
        query : int
            The query's position.
        candidates : int64 array (C,)
            The candidates' positions, ascending.
        scores : three float32 arrays (C,)
            Their dense, sparse and multi-vector scores.
        """
        n_at_once = max(1, MEMORY_BUDGET // (8 * max(1, len(self))))
        for first in range(0, len(queries), n_at_once):
            block = queries[first : first + n_at_once]
            sparse = np.concatenate([segment.postings.scores(block.sparse) for segment in self.segments], axis=1)
            best = [] if by == "dense" else [top_k(sparse, n_candidates)]
            if by != "sparse":
                dense = np.concatenate([dense_scores(block.dense, s.dense) for s in self.segments], axis=1)
                best.append(top_k(dense, n_candidates))
            for i in range(len(block)):
                chosen = np.unique(np.concatenate([columns[i] for columns in best]))
                exact = dense[i, chosen] if by != "sparse" else self._dense_scores(block.dense[[i]], chosen)
                multivector = self._multivector_scores(block.multivector[i], chosen)
                yield first + i, chosen, (exact, sparse[i, chosen], multivector)

    def check_widths(self, texts: Embeddings) -> None:
        """Raise ValueError if texts have other widths than the passages."""
        own = self.segments[0]
        for name, found, expected in (
            ("dense vectors", texts.dense.shape[1], own.dense.shape[1]),
            ("multivector vectors", texts.multivector.packed.shape[1], own.multivector.packed.shape[1]),
            ("sparse weights", texts.sparse.shape[1], own.vocabulary_size),
        ):
            if found != expected and len(texts):
                raise ValueError(
                    f"{name} must be as wide as the corpus's, {expected}, found {found}; "
                    "were both encoded by the same model?"
                )

    def check_new(self, added: NDArray[Any]) -> None:
        """Raise ValueError if ids are not of the corpus's kind, or an id is in the corpus."""
        if not len(self):
            return
        ids = self.ids
        if added.dtype.kind != ids.dtype.kind:
            raise ValueError(f"ids must be of the corpus's kind, found {added.dtype} for {ids.dtype}")
        taken = added[np.isin(added, ids)]
        if len(taken):
            raise ValueError(f"ids must be new, but {taken[:5].tolist()} are in the corpus")

    def check(self, where: object) -> None:
        """Raise ValueError if there is no segment, segments do not fit one another, or an id is in it twice."""
        if not self.segments:
            raise ValueError(f"{where}: it has no part; {DAMAGED}")
        filled = [segment for segment in self.segments if len(segment)]
        for name, values in (
            ("width of dense vectors", [segment.dense.shape[1] for segment in self.segments]),
            ("width of multi-vectors", [segment.multivector.packed.shape[1] for segment in self.segments]),
            ("storage of multi-vectors", [segment.multivector.storage for segment in self.segments]),
            ("vocabulary size", [segment.vocabulary_size for segment in self.segments]),
            ("kind of ids", [segment.ids.dtype.type.__name__ for segment in filled]),
        ):
            if len(set(values)) > 1:
                raise ValueError(f"{where}: its parts must have one {name}, found {values[:8]}; {DAMAGED}")
        if has_repeats(self.ids):
            raise ValueError(f"{where}: it holds an id twice; {DAMAGED}")

    def _dense_scores(self, query: NDArray[np.float32], index: NDArray[np.int64]) -> Vector:
        return self._scores(index, lambda segment, local: dense_scores(query, segment.dense[local])[0])

    def _multivector_scores(self, query: NDArray[np.float32], index: NDArray[np.int64]) -> Vector:
        return self._scores(
            index, lambda segment, local: multivector_candidate_scores(query, segment.multivector, local)
        )

    def _scores(self, index: NDArray[np.int64], score: Callable[[Segment, NDArray[np.int64]], Vector]) -> Vector:
        """Return the scores of the passages at ascending positions, computed segment by segment."""
        scores, start = [np.empty(0, np.float32)], 0
        for segment in self.segments:
            first, last = np.searchsorted(index, [start, start + len(segment)])
            if first < last:
                scores.append(score(segment, index[first:last] - start))
            start += len(segment)
        return np.concatenate(scores)
