"""Embeddings made from a seed, for tests of search and storage."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.scoring import Embeddings, MultiVectors

VOCABULARY = 40


def unit_rows(rng: np.random.Generator, n_rows: int, n_dims: int) -> NDArray[np.float32]:
    """Return random rows of unit length."""
    rows = rng.standard_normal((n_rows, n_dims)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def make_embeddings(seed: int, n_texts: int, n_dims: int = 8) -> Embeddings:
    """Return embeddings of texts of 1 to 6 vectors; about a third have no lexical weights, as empty texts have none."""
    rng = np.random.default_rng(seed)
    n_tokens = rng.integers(2, 8, n_texts).astype(np.int32)
    is_held = rng.random((n_texts, VOCABULARY)) < 0.2 * (rng.random((n_texts, 1)) < 0.7)
    sparse = csr_array((rng.random((n_texts, VOCABULARY)) * is_held).astype(np.float32))
    rows = np.repeat(np.arange(n_texts), np.diff(sparse.indptr))
    offsets = np.concatenate([[0], np.cumsum(n_tokens - 1, dtype=np.int64)])
    return Embeddings(
        n_tokens=n_tokens,
        truncated=rng.random(n_texts) < 0.2,
        dense=unit_rows(rng, n_texts, n_dims),
        sparse=sparse,
        first_seen=np.lexsort((rng.random(sparse.nnz), rows)),
        multivector=MultiVectors(unit_rows(rng, int(offsets[-1]), n_dims), offsets),
    )
