"""The four BGE-M3 scores, computed with NumPy and SciPy from embeddings.

Each score is one formula in one file, as a matrix (every query with every passage) and pair by pair.
Formulas: arXiv 2402.03216, section 3.2.
"""

from bgem3.scoring.dense import dense_pair_scores, dense_scores
from bgem3.scoring.embeddings import Embeddings
from bgem3.scoring.hybrid import Scores, Weights, hybrid_scores
from bgem3.scoring.multivector import MultiVectors, multivector_pair_scores, multivector_scores
from bgem3.scoring.sparse import sparse_pair_scores, sparse_scores

__all__ = [
    "Embeddings",
    "MultiVectors",
    "Scores",
    "Weights",
    "dense_pair_scores",
    "dense_scores",
    "hybrid_scores",
    "multivector_pair_scores",
    "multivector_scores",
    "sparse_pair_scores",
    "sparse_scores",
]
