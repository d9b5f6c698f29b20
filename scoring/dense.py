"""Dense score: the inner product of two L2-normalized CLS embeddings."""

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.float32 import as_float32

ROWS_PER_BLOCK = 2048  # passages converted to float32 at once; bounds the copy to 8 MB at 1,024 dims


def dense_scores(query_vectors: NDArray[np.floating], passage_vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Score every query with every passage: ``s(q, p) = e_q · e_p``.

    Source: arXiv 2402.03216, section 3.2. Products are summed in float32 whatever the inputs' dtype.

    Parameters
    ----------
    query_vectors : float array (Q, D)
        Rows of unit length.
    passage_vectors : float array (P, D)
        Rows of unit length.

    Returns
    -------
    float32 array (Q, P)

    Raises
    ------
    ValueError
        If an array is not 2-D or the widths differ.

    Examples
    --------
    >>> import numpy as np
    >>> dense_scores(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5], [0.0, 1.0]])).tolist()
    [[0.5, 0.0]]
    """
    query_vectors, passage_vectors = _check(query_vectors, passage_vectors)
    queries = as_float32(query_vectors)
    scores = np.empty((len(queries), len(passage_vectors)), np.float32)
    step = ROWS_PER_BLOCK if passage_vectors.dtype != np.float32 else max(1, len(passage_vectors))
    for first in range(0, len(passage_vectors), step):
        passages = as_float32(passage_vectors[first : first + step])
        np.matmul(queries, passages.T, out=scores[:, first : first + step])
    return scores


def dense_pair_scores(
    query_vectors: NDArray[np.floating], passage_vectors: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Score query i with passage i only, as :func:`dense_scores`: float arrays (N, D) give float32 scores (N,).

    Examples
    --------
    >>> import numpy as np
    >>> dense_pair_scores(np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    query_vectors, passage_vectors = _check(query_vectors, passage_vectors)
    if len(query_vectors) != len(passage_vectors):
        raise ValueError(
            f"pairs need as many queries as passages, found {len(query_vectors)} and {len(passage_vectors)}"
        )
    queries, passages = as_float32(query_vectors), as_float32(passage_vectors)
    return np.asarray(np.einsum("nd,nd->n", queries, passages), np.float32)


def _check(
    query_vectors: NDArray[np.floating], passage_vectors: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return both sides as arrays, or raise ValueError if they are not 2-D arrays of one width."""
    queries, passages = np.asarray(query_vectors), np.asarray(passage_vectors)
    if queries.ndim != 2 or passages.ndim != 2 or queries.shape[1] != passages.shape[1]:
        raise ValueError(
            f"dense vectors must be (texts, dims) of one width, found shapes {queries.shape} and "
            f"{passages.shape}; were both sides encoded by the same model?"
        )
    return queries, passages
