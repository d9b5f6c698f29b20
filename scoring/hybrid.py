"""Hybrid score: the weighted mean of the other three."""

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
LARGEST_WEIGHT = 1e30  # its products with scores are far from overflow in float32


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The four scores of the same texts, each a float32 array: (Q, P) from ``score``, (N,) from ``score_pairs``."""

    dense: NDArray[np.float32]
    sparse: NDArray[np.float32]
    multivector: NDArray[np.float32]
    hybrid: NDArray[np.float32]


def score_matrix(queries: Embeddings, passages: Embeddings, weights: Weights = DEFAULT_WEIGHTS) -> Scores:
    """Score every query with every passage in all four ways.

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
    """Score query ``query_index[i]`` with passage ``passage_index[i]`` in all four ways.

    Parameters
    ----------
    queries, passages : Embeddings
        Q and P texts with all three outputs.
    query_index, passage_index : N ints each
        Positions in ``queries`` and ``passages``; a text may appear in any number of pairs.
    weights : Weights
        Weights of the dense, sparse and multi-vector score in the hybrid score.

    Returns
    -------
    Scores
        Four (N,) arrays.

    Raises
    ------
    AttributeError, ValueError
        As :func:`score_matrix`, and ValueError if the two indexes differ in length.
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
    """Combine three scores: ``(w_d·dense + w_s·sparse + w_m·multivector) / (w_d + w_s + w_m)``.

    The division by the weights' sum is FlagEmbedding's ``compute_score``; the plain weighted sum of
    the BGE-M3 tutorial is the same wherever the weights add up to one.

    Parameters
    ----------
    dense, sparse, multivector : float arrays of one shape, (Q, P) or (N,)
    weights : three finite numbers in the order dense, sparse, multi-vector; only their ratio matters

    Returns
    -------
    float32 array of the same shape; a score of weight 0 takes no part, even where it is infinite

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
        if weight:  # 0 · -inf, of a passage without multi-vectors, would be NaN
            weighted += np.float32(weight) * array
    return weighted / np.float32(w_dense + w_sparse + w_multivector)


def check_weights(weights: Sequence[float]) -> Weights:
    """Return ``weights`` as three floats, or raise ValueError saying what is wrong with them."""
    values = tuple(weights) if isinstance(weights, Iterable) else ()
    if len(values) != 3 or not all(isinstance(weight, Real) for weight in values):
        raise ValueError(f"weights must be three numbers (dense, sparse, multi-vector), found {weights!r}")
    dense, sparse, multivector = map(float, values)
    largest = max(abs(dense), abs(sparse), abs(multivector))
    if not np.isfinite((dense, sparse, multivector)).all() or largest > LARGEST_WEIGHT:
        raise ValueError(f"weights must be finite and at most {LARGEST_WEIGHT:g}, found {weights}")
    if abs(dense + sparse + multivector) <= max(1e-6 * largest, 1 / LARGEST_WEIGHT):  # 0 but for rounding
        raise ValueError(f"weights must not sum to 0 (their sum divides the score), found {weights}")
    return dense, sparse, multivector
