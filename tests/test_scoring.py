"""Every score equals a plain Python loop, in matrix and pair form."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.scoring import (
    MultiVectors,
    dense_pair_scores,
    dense_scores,
    hybrid_scores,
    multivector_pair_scores,
    multivector_scores,
    sparse_pair_scores,
    sparse_scores,
)
from bgem3.scoring.multivector import TOKENS_PER_BLOCK

TOLERANCE = 1e-5
seeds = st.integers(0, 2**32 - 1)
relaxed = settings(max_examples=50, deadline=None)


def unit_rows(rng: np.random.Generator, n_rows: int, n_dims: int) -> NDArray[np.float32]:
    rows = rng.standard_normal((n_rows, n_dims)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def sparse_rows(rng: np.random.Generator, n_rows: int, n_columns: int) -> csr_array:
    return csr_array((rng.random((n_rows, n_columns)) * (rng.random((n_rows, n_columns)) < 0.3)).astype(np.float32))


@given(seed=seeds, n_queries=st.integers(0, 5), n_passages=st.integers(0, 5), n_dims=st.integers(1, 9))
@relaxed
def test_dense_and_sparse_scores_equal_a_plain_loop(seed: int, n_queries: int, n_passages: int, n_dims: int) -> None:
    rng = np.random.default_rng(seed)
    for make, score, score_pairs in (
        (unit_rows, dense_scores, dense_pair_scores),
        (sparse_rows, sparse_scores, sparse_pair_scores),
    ):
        queries, passages = make(rng, n_queries, n_dims), make(rng, n_passages, n_dims)
        q, p = (a.toarray() if isinstance(a, csr_array) else a for a in (queries, passages))
        expected = [[sum(float(a) * float(b) for a, b in zip(x, y, strict=True)) for y in p] for x in q]
        found = score(queries, passages)
        assert found.shape == (n_queries, n_passages)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.array(expected).reshape(found.shape), atol=TOLERANCE)
        n_pairs = min(n_queries, n_passages)
        pairs = score_pairs(queries[:n_pairs], passages[:n_pairs])
        assert pairs.dtype == np.float32
        np.testing.assert_allclose(pairs, found[:n_pairs, :n_pairs].diagonal(), atol=TOLERANCE)


@given(
    seed=seeds,
    query_lengths=st.lists(st.integers(1, 6), max_size=4),
    passage_lengths=st.lists(st.integers(1, 9), max_size=5),
    dtype=st.sampled_from([np.float16, np.float32]),
)
@relaxed
def test_multivector_scores_equal_a_plain_loop(
    seed: int, query_lengths: list[int], passage_lengths: list[int], dtype: type[np.floating]
) -> None:
    rng = np.random.default_rng(seed)
    queries = [unit_rows(rng, n, 5).astype(dtype) for n in query_lengths]
    passages = [unit_rows(rng, n, 5).astype(dtype) for n in passage_lengths]
    found = multivector_scores(queries, passages)
    assert found.shape == (len(queries), len(passages))
    assert found.dtype == np.float32
    for (i, query), (j, passage) in itertools.product(enumerate(queries), enumerate(passages)):
        rows = [[sum(float(a) * float(b) for a, b in zip(q, p, strict=True)) for p in passage] for q in query]
        expected = sum(max(row) for row in rows) / len(query)
        np.testing.assert_allclose(found[i, j], expected, atol=TOLERANCE)
        np.testing.assert_allclose(multivector_pair_scores([query], [passage])[0], expected, atol=TOLERANCE)


def test_negative_similarities_are_not_floored_at_zero() -> None:
    query, passage = np.array([[1.0, 0.0]]), np.array([[-0.5, 0.1], [-0.9, 0.0]])
    longer = np.array([[-1.0, 0.0]] * 5)
    assert multivector_scores([query], [passage, longer]).tolist() == [[-0.5, -1.0]]


def test_maxsim_over_many_blocks_equals_maxsim_over_each_passage_alone() -> None:
    rng = np.random.default_rng(0)
    lengths = [TOKENS_PER_BLOCK + 7, 3, TOKENS_PER_BLOCK // 2, TOKENS_PER_BLOCK // 2, 1, TOKENS_PER_BLOCK - 1]
    query, passages = unit_rows(rng, 4, 8), [unit_rows(rng, n, 8) for n in lengths]
    expected = [(query @ passage.T).max(axis=1).mean() for passage in passages]
    np.testing.assert_allclose(multivector_scores([query], passages)[0], expected, atol=TOLERANCE)


def test_packed_multivectors_behave_as_a_list_of_arrays() -> None:
    rng = np.random.default_rng(0)
    arrays = [unit_rows(rng, n, 3) for n in (2, 1, 4)]
    packed = MultiVectors.pack(arrays)
    assert len(packed) == 3
    for found, expected in zip(packed, arrays, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(packed[-1], arrays[-1])
    assert [len(a) for a in packed[1:]] == [1, 4]
    assert np.shares_memory(packed[0], packed.packed)
    with pytest.raises(IndexError):
        packed[3]


def test_hybrid_divides_by_the_weights_sum_so_only_their_ratio_matters() -> None:
    dense, sparse, multivector = np.array([0.1, 0.9]), np.array([0.2, 0.4]), np.array([0.5, -0.3])
    found = hybrid_scores(dense, sparse, multivector, weights=(2, 1, 1))
    np.testing.assert_allclose(found, [(0.2 + 0.2 + 0.5) / 4, (1.8 + 0.4 - 0.3) / 4], rtol=1e-6)
    halved = hybrid_scores(dense, sparse, multivector, weights=(0.5, 0.25, 0.25))
    np.testing.assert_allclose(halved, found, rtol=1e-6)
