"""Sparse (lexical) score: the weighted number of tokens that two texts share."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, sparray, spmatrix

from bgem3.scoring.postings import Postings, checked_rows


def sparse_scores(query_weights: csr_array, passage_weights: csr_array) -> NDArray[np.float32]:
    """Score every query with every passage: ``s(q, p) = Σ_t w_q[t] · w_p[t]``, t over the shared token ids.

    Source: arXiv 2402.03216, section 3.2. The score is not normalized: about 0.2 is usual even for a text and itself.
    A text without weighted tokens, such as an empty text, scores 0 with everything.

    Parameters
    ----------
    query_weights : float csr_array (Q, V)
        A row per query, a column per token id.
    passage_weights : float csr_array (P, V)
        A row per passage.

    Returns
    -------
    float32 array (Q, P)

    Raises
    ------
    ValueError
        If the vocabularies differ in size, or a matrix holds an index out of range.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> query, passages = csr_array([[0.5, 0.0, 2.0]]), csr_array([[0.0, 1.0, 0.25], [1.0, 1.0, 0.0]])
    >>> sparse_scores(query, passages).tolist()
    [[0.5, 0.5]]
    """
    query_weights, passage_weights = _check(query_weights, passage_weights)
    return Postings.build(passage_weights).scores(query_weights)


def sparse_pair_scores(query_weights: csr_array, passage_weights: csr_array) -> NDArray[np.float32]:
    """Score query i with passage i only, as :func:`sparse_scores`: csr_arrays (N, V) give float32 scores (N,).

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> sparse_pair_scores(csr_array([[0.5, 2.0]]), csr_array([[1.0, 1.0]])).tolist()
    [2.5]
    """
    query_weights, passage_weights = _check(query_weights, passage_weights)
    if query_weights.shape[0] != passage_weights.shape[0]:
        raise ValueError(
            f"pairs need as many queries as passages, found {query_weights.shape[0]} and {passage_weights.shape[0]}"
        )
    return np.asarray(query_weights.multiply(passage_weights).sum(axis=1), dtype=np.float32)


def _check(query_weights: csr_array, passage_weights: csr_array) -> tuple[csr_array, csr_array]:
    """Return both sides as checked float32 rows, or raise ValueError if they cannot be scored together."""
    for weights in (query_weights, passage_weights):
        if not isinstance(weights, (np.ndarray, sparray, spmatrix)) or weights.ndim != 2:
            raise ValueError(
                "sparse weights must be a (texts, vocabulary) csr_array, such as Embeddings.sparse, "
                f"found {type(weights).__name__}{getattr(weights, 'shape', '')}"
            )
    queries, passages = (checked_rows(weights, np.float32) for weights in (query_weights, passage_weights))
    if queries.shape[1] != passages.shape[1]:
        raise ValueError(
            f"sparse weights must share one vocabulary, found {queries.shape[1]} and {passages.shape[1]} "
            "columns; were both sides encoded by the same model?"
        )
    return queries, passages
