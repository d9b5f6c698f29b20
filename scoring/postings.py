"""An inverted index of lexical weights: for each token id, the passages that hold it and their weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.scoring.storage import array_of


class Postings:
    """Lexical weights of P passages by token id; only token ids that occur take room.

    Parameters
    ----------
    n_passages : P
    tokens : (T,) int32 array of the token ids that occur, ascending
    starts : (T + 1,) int64 array; token i owns entries ``starts[i]:starts[i + 1]``
    passages : (nnz,) int32 array, each token's passages in ascending order
    weights : (nnz,) float32 array
    """

    def __init__(
        self,
        n_passages: int,
        tokens: NDArray[np.int32],
        starts: NDArray[np.int64],
        passages: NDArray[np.int32],
        weights: NDArray[np.float32],
    ) -> None:
        self.n_passages = n_passages
        self.tokens = tokens
        self.starts = starts
        self.passages = passages
        self.weights = weights

    @classmethod
    def build(cls, weights: csr_array) -> "Postings":
        """Invert (P, V) lexical weights, one row per passage."""
        columns = weights.tocsc()
        columns.sum_duplicates()
        tokens = np.flatnonzero(np.diff(columns.indptr))
        starts = np.append(columns.indptr[tokens], columns.indptr[-1]).astype(np.int64)
        return cls(
            weights.shape[0],
            tokens.astype(np.int32),
            starts,
            columns.indices.astype(np.int32, copy=False),
            columns.data.astype(np.float32, copy=False),
        )

    def scores(self, query_weights: csr_array) -> NDArray[np.float32]:
        """Score every query with every passage: ``Σ_t w_q[t] · w_p[t]`` over the token ids that both have.

        Parameters
        ----------
        query_weights : (Q, V) float32 csr_array

        Returns
        -------
        (Q, P) float32 array; nothing else of that size is made

        Examples
        --------
        >>> from scipy.sparse import csr_array
        >>> postings = Postings.build(csr_array([[0.0, 2.0], [1.0, 1.0]]))
        >>> postings.scores(csr_array([[0.0, 0.5]])).tolist()
        [[1.0, 0.5]]
        """
        scores = np.zeros((query_weights.shape[0], self.n_passages), np.float32)
        places = np.searchsorted(self.tokens, query_weights.indices)
        is_held = places < len(self.tokens)
        is_held[is_held] = self.tokens[places[is_held]] == query_weights.indices[is_held]
        indptr = query_weights.indptr.tolist()
        for row, first, last in zip(scores, indptr[:-1], indptr[1:], strict=True):
            for entry in (first + np.flatnonzero(is_held[first:last])).tolist():
                posting = slice(self.starts[places[entry]], self.starts[places[entry] + 1])
                row[self.passages[posting]] += query_weights.data[entry] * self.weights[posting]
        return scores

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what :meth:`from_arrays` takes, by the names that files give them."""
        return {
            "posting_tokens": self.tokens,
            "posting_starts": self.starts,
            "posting_passages": self.passages,
            "posting_weights": self.weights,
        }

    @classmethod
    def from_arrays(cls, n_passages: int, arrays: Mapping[str, NDArray[Any]], where: Path) -> "Postings":
        """Put together what was read from ``where``; ValueError if an array is missing."""
        names = ("tokens", "starts", "passages", "weights")
        return cls(n_passages, *(array_of(arrays, f"posting_{name}", where) for name in names))
