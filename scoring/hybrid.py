"""Hybrid score: the weighted mean of the dense, sparse and multi-vector score, and all four scores at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.dense import dense_pair_scores, dense_scores
from bgem3.scoring.embeddings import Embeddings
from bgem3.scoring.multivector import multivector_pair_scores, multivector_scores
from bgem3.scoring.sparse import sparse_pair_scores, sparse_scores

Weights: TypeAlias = tuple[float, float, float]
"""Weights of the dense, sparse and multi-vector score, in this order."""

DEFAULT_WEIGHTS: Weights = (0.4, 0.2, 0.4)  # the weights in the example of BGE-M3's model card
LARGEST_WEIGHT = 1e30  # bounds weights, so that their products with scores stay far from float32's 3e38


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The four scores of the same queries and passages, in float32 arrays of one shape.

    The shape is (Q, P) if every query is scored with every passage, and (N,) for N pairs.
    """

    dense: NDArray[np.float32]
    sparse: NDArray[np.float32]
    multivector: NDArray[np.float32]
    hybrid: NDArray[np.float32]


def score_matrix(queries: Embeddings, passages: Embeddings, weights: Weights = DEFAULT_WEIGHTS) -> Scores:
    """Score every query with every passage: the dense, sparse, multi-vector and hybrid score (arXiv 2402.03216, 3.2).

    Parameters
    ----------
    queries, passages : Embeddings
        Q and P texts with all three outputs.
    weights : Weights
        Weights of the dense, sparse and multi-vector score in the hybrid score.

    Returns
    -------
    Scores
        Four (Q, P) arrays.

    Raises
    ------
    AttributeError
        If an output is missing.
    ValueError
        If the widths of the two sides differ, or the weights are not as :func:`hybrid_scores` takes them.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> from bgem3.scoring.token_vectors import MultiVectors
    >>> rows = np.eye(2, dtype=np.float32)
    >>> texts = Embeddings(
    ...     n_tokens=np.array([2, 2], np.int32),
    ...     truncated=np.array([False, False]),
    ...     dense=rows,
    ...     sparse=csr_array(rows / 2),
    ...     multivector=MultiVectors.pack([rows[:1], rows]),
    ... )
    >>> score_matrix(texts, texts, weights=(1, 1, 2)).hybrid.tolist()
    [[0.8125, 0.5], [0.25, 0.8125]]
    """
    dense = dense_scores(queries.dense, passages.dense)
    sparse = sparse_scores(queries.sparse, passages.sparse)
    multivector = multivector_scores(queries.multivector, passages.multivector)
    hybrid = hybrid_scores(dense, sparse, multivector, weights)
    return Scores(dense=dense, sparse=sparse, multivector=multivector, hybrid=hybrid)


def score_pairs(
    queries: Embeddings,
    query_index: Sequence[int],
    passages: Embeddings,
    passage_index: Sequence[int],
    weights: Weights = DEFAULT_WEIGHTS,
) -> Scores:
    """Score query ``query_index[i]`` with passage ``passage_index[i]``, as :func:`score_matrix`, into (N,) arrays.

    A text may be in any number of pairs. Raise ValueError if the two indexes differ in length.
    """
    dense = dense_pair_scores(queries.dense[query_index], passages.dense[passage_index])
    sparse = sparse_pair_scores(queries.sparse[query_index], passages.sparse[passage_index])
    multivector = multivector_pair_scores(
        [queries.multivector[i] for i in query_index], [passages.multivector[i] for i in passage_index]
    )
    hybrid = hybrid_scores(dense, sparse, multivector, weights)
    return Scores(dense=dense, sparse=sparse, multivector=multivector, hybrid=hybrid)


def hybrid_scores(
    dense: NDArray[np.floating],
    sparse: NDArray[np.floating],
    multivector: NDArray[np.floating],
    weights: Weights = DEFAULT_WEIGHTS,
) -> NDArray[np.float32]:
    """Combine three scores: ``s = (w_d · s_d + w_s · s_s + w_m · s_m) / (w_d + w_s + w_m)``.

    Source: arXiv 2402.03216, section 3.2, has the weighted sum. FlagEmbedding's ``compute_score`` divides it by the
    sum of the weights, as this function does.

    Parameters
    ----------
    dense, sparse, multivector : float arrays of one shape, (Q, P) or (N,)
        The scores.
    weights : three finite numbers
        The weights of the dense, sparse and multi-vector score; only their ratio matters.

    Returns
    -------
    float32 array of the same shape
        A score of weight 0 is ignored, even where it is infinite.

    Raises
    ------
    ValueError
        If there are not three weights, one is not finite, their sum is 0, or the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> hybrid_scores(np.array([0.5]), np.array([0.25]), np.array([1.0]), weights=(1, 1, 2)).tolist()
    [0.6875]
    """
    w_dense, w_sparse, w_multivector = check_weights(weights)
    arrays = [np.asarray(a, dtype=np.float32) for a in (dense, sparse, multivector)]
    if not arrays[0].shape == arrays[1].shape == arrays[2].shape:
        raise ValueError(f"the three scores must have one shape, found {', '.join(str(a.shape) for a in arrays)}")
    weighted = np.zeros(arrays[0].shape, np.float32)
    for weight, array in zip((w_dense, w_sparse, w_multivector), arrays, strict=True):
        if weight:  # 0 · -inf would be NaN: a passage without multi-vectors scores -inf
            weighted += np.float32(weight) * array
    return weighted / np.float32(w_dense + w_sparse + w_multivector)


def check_weights(weights: Sequence[float]) -> Weights:
    """Return weights as three floats, or raise ValueError if they are not finite numbers with a sum other than 0."""
    values = tuple(weights) if isinstance(weights, Iterable) else ()
    if len(values) != 3 or not all(isinstance(weight, Real) for weight in values):
        raise ValueError(f"weights must be three numbers (dense, sparse, multi-vector), found {weights!r}")
    dense, sparse, multivector = map(float, values)
    largest = max(abs(dense), abs(sparse), abs(multivector))
    if not np.isfinite((dense, sparse, multivector)).all() or largest > LARGEST_WEIGHT:
        raise ValueError(f"weights must be finite and at most {LARGEST_WEIGHT:g}, found {weights}")
    if abs(dense + sparse + multivector) <= max(1e-6 * largest, 1 / LARGEST_WEIGHT):  # 0 up to rounding
        raise ValueError(f"weights must not sum to 0 (their sum divides the score), found {weights}")
    return dense, sparse, multivector
