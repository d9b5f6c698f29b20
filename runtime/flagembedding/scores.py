"""Scores in the forms that FlagEmbedding gives them."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring import Scores
from bgem3.scoring.hybrid import Weights

LexicalWeights: TypeAlias = Mapping[str, float]


def named_scores(scores: Scores, weights: Weights) -> dict[str, list[float]]:
    """Return the scores of N pairs under FlagEmbedding's names."""
    w_dense, w_sparse, _ = (np.float32(w) for w in weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        sparse_dense = (w_sparse * scores.sparse + w_dense * scores.dense) / (w_sparse + w_dense)
    return {
        "colbert": scores.multivector.tolist(),
        "sparse": scores.sparse.tolist(),
        "dense": scores.dense.tolist(),
        "sparse+dense": sparse_dense.tolist(),
        "colbert+sparse+dense": scores.hybrid.tolist(),
    }


def lexical_matching_score(
    lexical_weights_1: LexicalWeights | Sequence[LexicalWeights],
    lexical_weights_2: LexicalWeights | Sequence[LexicalWeights],
) -> float | NDArray[np.floating]:
    """Return ``Σ w_1 · w_2`` over shared tokens: a number for two dicts, a matrix for two lists of dicts."""
    if isinstance(lexical_weights_1, Mapping) and isinstance(lexical_weights_2, Mapping):
        shared = lexical_weights_2
        return sum(weight * shared[token] for token, weight in lexical_weights_1.items() if token in shared)
    if isinstance(lexical_weights_1, list) and isinstance(lexical_weights_2, list):
        return np.array([[lexical_matching_score(a, b) for b in lexical_weights_2] for a in lexical_weights_1])
    raise ValueError(
        "lexical weights must be two dicts or two lists of dicts, found "
        f"{type(lexical_weights_1).__name__} and {type(lexical_weights_2).__name__}"
    )
