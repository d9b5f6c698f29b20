"""Every score equals a plain Python loop, in matrix and pair form."""

import itertools
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

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
from bgem3.scoring.float32 import as_float32
from bgem3.scoring.hybrid import score_matrix, score_pairs
from bgem3.scoring.multivector import multivector_candidate_scores
from bgem3.scoring.token_vectors import STORAGES, Storage
from tests.scoring.corpus import make_embeddings, unit_rows

TOLERANCE = 1e-5
seeds = st.integers(0, 2**32 - 1)
relaxed = settings(max_examples=50, deadline=None)


def sparse_rows(rng: np.random.Generator, n_rows: int, n_columns: int) -> csr_array:
    """Return rows in which tokens may be missing, have the weight 0, or be given twice: these weights are summed."""
    weights = rng.choice(np.array([0.0, 0.25, 0.5], np.float32), (n_rows, 4))
    token_ids = rng.integers(0, n_columns, weights.shape).astype(np.int32)
    return csr_array((weights.ravel(), token_ids.ravel(), 4 * np.arange(n_rows + 1)), shape=(n_rows, n_columns))


@given(seed=seeds, n_queries=st.integers(0, 5), n_passages=st.integers(0, 5), n_dims=st.integers(1, 9))
@relaxed
def test_dense_and_sparse_scores_equal_a_plain_loop(seed: int, n_queries: int, n_passages: int, n_dims: int) -> None:
    rng = np.random.default_rng(seed)
    for make, score, score_each in (
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
        pairs = score_each(queries[:n_pairs], passages[:n_pairs])
        np.testing.assert_allclose(pairs, found[:n_pairs, :n_pairs].diagonal(), atol=TOLERANCE)


@given(
    seed=seeds,
    query_lengths=st.lists(st.integers(0, 6), max_size=4),
    passage_lengths=st.lists(st.integers(0, 9), max_size=5),
    storage=st.sampled_from(STORAGES),
    is_negative=st.booleans(),
    rows_per_block=st.sampled_from([16, 2048]),
)
@relaxed
def test_multivector_scores_equal_a_plain_loop(
    seed: int,
    query_lengths: list[int],
    passage_lengths: list[int],
    storage: Storage,
    is_negative: bool,
    rows_per_block: int,
) -> None:
    """Also for texts without vectors, duplicate vectors, all-negative similarities, masks and texts cut over blocks."""
    rng = np.random.default_rng(seed)
    queries = [unit_rows(rng, n, 5) for n in query_lengths]
    passages = [unit_rows(rng, n, 5) for n in passage_lengths for n in (n, 3 * n)]
    if is_negative:
        queries = [abs(q) for q in queries]
        passages = [-abs(p[rng.integers(0, max(1, len(p)), len(p))]) for p in passages]
    stored, error = MultiVectors.pack(passages).stored_as(storage)
    mask = rng.random(len(stored.packed)) < 0.8
    budget = 8 * rows_per_block * (rows_per_block + 5) + 64
    found = multivector_scores(queries, stored, memory_budget=budget)
    masked = multivector_scores(queries, stored, passage_mask=mask, memory_budget=budget)
    assert found.shape == masked.shape == (len(queries), len(passages))
    assert found.dtype == np.float32
    for (i, query), (j, passage) in itertools.product(enumerate(queries), enumerate(stored)):
        kept = passage[mask[stored.offsets[j] : stored.offsets[j + 1]]]
        np.testing.assert_allclose(found[i, j], plain_maxsim(query, passage), atol=TOLERANCE)
        np.testing.assert_allclose(masked[i, j], plain_maxsim(query, kept), atol=TOLERANCE)
        np.testing.assert_allclose(found[i, j], plain_maxsim(query, passages[j]), atol=error + TOLERANCE)
        np.testing.assert_allclose(multivector_pair_scores([query], [passage])[0], found[i, j], atol=TOLERANCE)
    order = rng.permutation(len(passages))
    for i, query in enumerate(queries):
        chosen = multivector_candidate_scores(query, stored, order)
        np.testing.assert_allclose(chosen, found[i, order], atol=TOLERANCE)


def plain_maxsim(query: NDArray[np.float32], passage: NDArray[np.float32]) -> float:
    rows = [[sum(float(a) * float(b) for a, b in zip(q, p, strict=True)) for p in passage] for q in query]
    return sum(max(row, default=-math.inf) for row in rows) / len(query) if rows else 0.0


@given(
    values=st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True), max_size=20),
    n_rows=st.sampled_from([1, 300]),
)
@relaxed
def test_float16_becomes_float32_exactly(values: list[float], n_rows: int) -> None:
    halves = np.tile(np.array(values, np.float16), (n_rows, 1))
    np.testing.assert_array_equal(as_float32(halves), halves.astype(np.float32))


def test_temporary_arrays_stay_within_the_memory_budget() -> None:
    rng = np.random.default_rng(0)
    queries, passages = [unit_rows(rng, 600, 64)], MultiVectors.pack([unit_rows(rng, 1500, 64)] * 3)
    passages, _ = passages.stored_as("int8")
    for budget in (1 << 19, 4 << 20):
        tracemalloc.start()
        multivector_scores(queries, passages, memory_budget=budget)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert budget / 2 < peak < 1.2 * budget


def test_the_four_scores_of_pairs_are_those_of_the_matrix() -> None:
    queries, passages = make_embeddings(1, 3), make_embeddings(2, 4)
    matrix = score_matrix(queries, passages, (1, 2, 3))
    pairs = score_pairs(queries, [2, 0, 2], passages, [3, 0, 1], (1, 2, 3))
    for name in ("dense", "sparse", "multivector", "hybrid"):
        expected = getattr(matrix, name)[[2, 0, 2], [3, 0, 1]]
        np.testing.assert_allclose(getattr(pairs, name), expected, atol=TOLERANCE)


def test_hybrid_divides_by_the_weights_sum_and_ignores_what_has_no_weight() -> None:
    dense, sparse, multivector = np.array([0.1, 0.9]), np.array([0.2, 0.4]), np.array([0.5, -0.3])
    found = hybrid_scores(dense, sparse, multivector, weights=(2, 1, 1))
    np.testing.assert_allclose(found, [(0.2 + 0.2 + 0.5) / 4, (1.8 + 0.4 - 0.3) / 4], rtol=1e-6)
    assert np.isfinite(hybrid_scores(dense, sparse, np.full(2, -np.inf), weights=(1, 1, 0))).all()


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def rows(*shape: int) -> csr_array:
    return csr_array(ones(*shape))


SAME_MODEL = "encoded by the same model"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dense_scores(ones(2, 3), ones(2, 4)), ["one width", r"\(2, 3\) and \(2, 4\)", SAME_MODEL]),
        (lambda: sparse_scores(rows(2, 3), rows(2, 4)), ["share one vocabulary", "3 and 4 columns", SAME_MODEL]),
        (lambda: sparse_pair_scores(rows(2, 3), rows(3, 3)), ["as many queries as passages", "found 2 and 3"]),
        (lambda: sparse_scores([{"5": 0.5}], [{"5": 0.5}]), ["csr_array", "Embeddings.sparse", "found list"]),
        (lambda: multivector_scores([ones(2, 3)], [ones(2, 4)]), ["one width", "found 3 and 4", SAME_MODEL]),
        (
            lambda: multivector_pair_scores([ones(2, 3)] * 2, [ones(2, 3), ones(2, 4)]),
            ["pair 1 must be", "one width", r"\(2, 3\) and \(2, 4\)", SAME_MODEL],
        ),
        (lambda: multivector_scores([], [ones(2, 3)], passage_mask=ones(2)), ["must be a bool array", "float32"]),
        (lambda: multivector_scores([], [], memory_budget=99), ["memory_budget must be at least", "found 99"]),
        (lambda: hybrid_scores(ones(2), ones(2), ones(3)), ["one shape", r"found \(2,\), \(2,\), \(3,\)"]),
    ],
)
def test_scores_refuse_sides_that_do_not_belong_together(call: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(ValueError, match=".*".join(words)):
        call()
