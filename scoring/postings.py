"""An inverted index of lexical weights: for each token id, the passages that hold it and their weights."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from bgem3.scoring.stored_arrays import StoredArrays

NAMES = ("tokens", "starts", "passages", "weights", "common_tokens", "common_weights")


class Postings:
    """Lexical weights of P passages by token id; only token ids that occur take room.

    Tokens that more than half of the passages hold (commas, articles) are kept as rows of a matrix, which is smaller
    than their postings and multiplied by BLAS: there are few, and they make up most of the work.

    Parameters
    ----------
    tokens : (T,) int32 array of the other token ids that occur, ascending
    starts : (T + 1,) int64 array; token i owns entries ``starts[i]:starts[i + 1]``
    passages : (nnz,) int32 array, each token's passages in ascending order
    weights : (nnz,) float32 array
    common_tokens : (C,) int32 array of the common token ids, ascending
    common_weights : (C, P) float32 array
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        starts: NDArray[np.int64],
        passages: NDArray[np.int32],
        weights: NDArray[np.float32],
        common_tokens: NDArray[np.int32],
        common_weights: NDArray[np.float32],
    ) -> None:
        self.tokens = tokens
        self.starts = starts
        self.passages = passages
        self.weights = weights
        self.common_tokens = common_tokens
        self.common_weights = common_weights

    @classmethod
    def build(cls, weights: csr_array) -> "Postings":
        """Invert (P, V) lexical weights that :func:`checked_rows` gave, one row per passage."""
        columns = weights.tocsc()
        columns.sum_duplicates()
        n_held = np.diff(columns.indptr)
        is_common = 2 * n_held > weights.shape[0]
        tokens, common_tokens = (
            np.flatnonzero(kept).astype(np.int32) for kept in (~is_common & (n_held > 0), is_common)
        )
        is_entry_common = np.repeat(is_common, n_held)
        passages, values = columns.indices.astype(np.int32, copy=False), columns.data.astype(np.float32, copy=False)
        common_weights = np.zeros((len(common_tokens), weights.shape[0]), np.float32)
        rows = np.repeat(np.arange(len(common_tokens)), n_held[common_tokens])
        common_weights[rows, passages[is_entry_common]] = values[is_entry_common]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(n_held[tokens], dtype=np.int64)])
        return cls(tokens, starts, passages[~is_entry_common], values[~is_entry_common], common_tokens, common_weights)

    def scores(self, query_weights: csr_array) -> NDArray[np.float32]:
        """Score every query with every passage: ``Σ_t w_q[t] · w_p[t]`` over the token ids that both have.

        Parameters
        ----------
        query_weights : (Q, V) float32 csr_array

        Returns
        -------
        (Q, P) float32 array; nothing else of that size is made

        Raises
        ------
        ValueError
            If a posting that is used names no passage, in a file that was damaged.

        Examples
        --------
        >>> from scipy.sparse import coo_array, csr_array
        >>> postings = Postings.build(csr_array([[0.0, 2.0], [1.0, 1.0]]))
        >>> postings.scores(csr_array([[0.0, 0.5]])).tolist()
        [[1.0, 0.5]]
        """
        places, is_held = _find(self.common_tokens, query_weights.indices)
        common = np.zeros((query_weights.shape[0], len(self.common_tokens)), np.float32)
        query = np.repeat(np.arange(len(common)), np.diff(query_weights.indptr))
        np.add.at(common, (query[is_held], places[is_held]), query_weights.data[is_held])
        scores = common @ self.common_weights  # (Q, P)
        places, is_held = _find(self.tokens, query_weights.indices)
        indptr = query_weights.indptr.tolist()
        passages = self.passages.view(np.uint32)  # a negative number is out of range, too: NumPy raises for both
        try:
            for row, first, last in zip(scores, indptr[:-1], indptr[1:], strict=True):
                for entry in (first + np.flatnonzero(is_held[first:last])).tolist():
                    posting = slice(self.starts[places[entry]], self.starts[places[entry] + 1])
                    row[passages[posting]] += query_weights.data[entry] * self.weights[posting]
        except IndexError as error:
            raise ValueError(
                f"postings must name passages from 0 to {scores.shape[1] - 1}, found others ({error}); the corpus was "
                "damaged: build and save it again"
            ) from error
        return scores

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what :meth:`from_arrays` takes, by the names that files give them."""
        return {f"posting_{name}": getattr(self, name) for name in NAMES}

    @classmethod
    def from_arrays(cls, stored: StoredArrays, n_passages: int, vocabulary_size: int) -> "Postings":
        """Put together what was read from a file; ValueError if an array is missing or does not fit.

        What is as long as the corpus (``passages`` and ``weights``) is not read: :meth:`scores` checks what it uses.
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
    """Return lexical weights as a csr_array whose indices are in range: SciPy writes wherever they point to.

    Parameters
    ----------
    weights : a (texts, vocabulary) array, sparse in any layout or not
    dtype : of the result; None leaves it

    Raises
    ------
    ValueError
        If an index is out of range, or offsets do not ascend.
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
            f"sparse weights must be a sound (texts, vocabulary) csr_array, such as Embeddings.sparse, found {error}"
        ) from error
    return rows


def _find(tokens: NDArray[np.int32], wanted: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the place of each wanted token id among ascending ones, and whether it is there."""
    places = np.searchsorted(tokens, wanted)
    is_held = places < len(tokens)
    is_held[is_held] = tokens[places[is_held]] == wanted[is_held]
    return places, is_held
