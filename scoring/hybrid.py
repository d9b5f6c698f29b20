"""Hybrid score: the weighted mean of the other three."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Weights: TypeAlias = tuple[float, float, float]
"""Weights of the dense, sparse and multi-vector score, in this order."""

LARGEST_WEIGHT = 1e30  # its products with scores are far from overflow in float32


def hybrid_scores(
    dense: NDArray[np.floating],
    sparse: NDArray[np.floating],
    multivector: NDArray[np.floating],
    weights: Weights = (0.4, 0.2, 0.4),
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


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The four scores of the same texts, each a float32 array: (Q, P) from ``score``, (N,) from ``score_pairs``."""

    dense: NDArray[np.float32]
    sparse: NDArray[np.float32]
    multivector: NDArray[np.float32]
    hybrid: NDArray[np.float32]
