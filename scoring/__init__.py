"""The four BGE-M3 scores, computed with NumPy and SciPy from embeddings, and search by them.

Each score is one formula in one file, as a matrix (every query with every passage) and pair by pair.
Formulas: arXiv 2402.03216, section 3.2. `HybridSearcher` retrieves from a corpus and reranks; `tune_weights` finds the
hybrid's weights.
"""

from bgem3.scoring.dense import dense_pair_scores, dense_scores
from bgem3.scoring.embeddings import Embeddings
from bgem3.scoring.hybrid import Scores, Weights, hybrid_scores
from bgem3.scoring.multivector import multivector_pair_scores, multivector_scores
from bgem3.scoring.searcher import HybridSearcher, SearchResults
from bgem3.scoring.sparse import sparse_pair_scores, sparse_scores
from bgem3.scoring.token_vectors import MultiVectors
from bgem3.scoring.tuning import Tuning, tune_weights

__all__ = [
    "Embeddings",
    "HybridSearcher",
    "MultiVectors",
    "Scores",
    "SearchResults",
    "Tuning",
    "Weights",
    "dense_pair_scores",
    "dense_scores",
    "hybrid_scores",
    "multivector_pair_scores",
    "multivector_scores",
    "sparse_pair_scores",
    "sparse_scores",
    "tune_weights",
]
