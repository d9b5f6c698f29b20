"""Postings: an inverted index that lists, for each token id, the passages with that token and their weights."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from bgem3.scoring.stored_arrays import StoredArrays


@dataclass(frozen=True, eq=False)
class Postings:
    """Lexical weights of P passages by token id; token ids that do not occur take no memory.

    Tokens in more than half of the passages (commas, articles) cause most of the work. They are stored as rows of a
    dense matrix, which is smaller than their postings and is multiplied by BLAS.

    Parameters
    ----------
    tokens : int32 array (T,)
        The less common token ids that occur, ascending.
    starts : int64 array (T + 1,)
        Token i has the entries ``starts[i]:starts[i + 1]`` of ``passages`` and ``weights``.
    passages : int32 array (E,)
        The passages of each token, ascending.
    weights : float32 array (E,)
        The weight of the token in each passage.
    common_tokens : int32 array (C,)
        The common token ids, ascending.
    common_weights : float32 array (C, P)
        The weight of each common token in each passage.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    passages: NDArray[np.int32]
    weights: NDArray[np.float32]
    common_tokens: NDArray[np.int32]
    common_weights: NDArray[np.float32]

    @classmethod
    def build(cls, weights: csr_array) -> "Postings":
        """Return the postings of lexical weights (P, V) from :func:`checked_rows`, one row per passage."""
        columns = weights.tocsc()
        columns.sum_duplicates()
        n_passages = np.diff(columns.indptr)
        is_common = 2 * n_passages > weights.shape[0]
        tokens, common_tokens = (
            np.flatnonzero(is_chosen).astype(np.int32) for is_chosen in (~is_common & (n_passages > 0), is_common)
        )
        is_entry_common = np.repeat(is_common, n_passages)
        passages, values = columns.indices.astype(np.int32, copy=False), columns.data.astype(np.float32, copy=False)
        common_weights = np.zeros((len(common_tokens), weights.shape[0]), np.float32)
        rows = np.repeat(np.arange(len(common_tokens)), n_passages[common_tokens])
        common_weights[rows, passages[is_entry_common]] = values[is_entry_common]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(n_passages[tokens], dtype=np.int64)])
        return cls(tokens, starts, passages[~is_entry_common], values[~is_entry_common], common_tokens, common_weights)

    def scores(self, query_weights: csr_array) -> NDArray[np.float32]:
        """Score float32 rows of Q queries with every passage, as :func:`bgem3.scoring.sparse_scores`.

        Raise ValueError if a posting names no passage, because the file that it was read from is damaged.

        Examples
        --------
        >>> from scipy.sparse import csr_array
        >>> postings = Postings.build(csr_array([[0.0, 2.0], [1.0, 1.0]]))
        >>> postings.scores(csr_array([[0.0, 0.5]])).tolist()
        [[1.0, 0.5]]
        """
        places, is_found = _find(self.common_tokens, query_weights.indices)
        common = np.zeros((query_weights.shape[0], len(self.common_tokens)), np.float32)
        query = np.repeat(np.arange(len(common)), np.diff(query_weights.indptr))
        np.add.at(common, (query[is_found], places[is_found]), query_weights.data[is_found])
        scores = common @ self.common_weights  # (Q, P)
        places, is_found = _find(self.tokens, query_weights.indices)
        indptr = query_weights.indptr.tolist()
        passages = self.passages.view(np.uint32)  # as uint32 a negative number is out of range, so NumPy raises
        try:
            for row, first, last in zip(scores, indptr[:-1], indptr[1:], strict=True):
                for entry in (first + np.flatnonzero(is_found[first:last])).tolist():
                    posting = slice(self.starts[places[entry]], self.starts[places[entry] + 1])
                    row[passages[posting]] += query_weights.data[entry] * self.weights[posting]
        except IndexError as error:
            raise ValueError(
                f"postings must name passages from 0 to {scores.shape[1] - 1}, found others ({error}); the corpus was "
                "damaged: build and save it again"
            ) from error
        return scores

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that :meth:`from_arrays` reads, by their names in files."""
        return {f"posting_{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, stored: StoredArrays, n_passages: int, vocabulary_size: int) -> "Postings":
        """Return the postings of stored arrays, or raise ValueError if an array is missing or does not fit.

        ``passages`` and ``weights`` are as long as the corpus and are not read here: :meth:`scores` checks them.
        """
        tokens = stored.ascending("posting_tokens", ("int32",), vocabulary_size)
        common_tokens = stored.ascending("posting_common_tokens", ("int32",), vocabulary_size)
        if _find(tokens, common_tokens)[1].any():
            raise stored.error("arrays 'posting_tokens' and 'posting_common_tokens' share a token id")
        passages = stored.take("posting_passages", ("int32",), (None,))
        return cls(
            tokens,
            stored.offsets("posting_starts", len(tokens), len(passages)),
            passages,
            stored.take("posting_weights", ("float32",), passages.shape),
            common_tokens,
            stored.take("posting_common_weights", ("float32",), (len(common_tokens), n_passages)),
        )


def checked_rows(weights: csr_array, dtype: type[np.float32] | None = None) -> csr_array:
    """Return lexical weights of any layout as a csr_array, or raise ValueError if an index is out of range.

    SciPy would write to the address that such an index leads to.
    """
    try:
        layout = getattr(weights, "format", None)
        if layout in ("csc", "bsr"):
            weights.check_format(full_check=True)
        elif layout == "coo":
            weights = coo_array((weights.data, (weights.row, weights.col)), shape=weights.shape)  # checks its indices
        rows = csr_array(weights, dtype=dtype)
        rows.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(
            f"sparse weights must be a valid (texts, vocabulary) csr_array, such as Embeddings.sparse, found {error}"
        ) from error
    return rows


def _find(tokens: NDArray[np.int32], wanted: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the position of each wanted token id in ascending ``tokens``, and whether it is there."""
    places = np.searchsorted(tokens, wanted)
    is_found = places < len(tokens)
    is_found[is_found] = tokens[places[is_found]] == wanted[is_found]
    return places, is_found
