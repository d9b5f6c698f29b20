"""Search over a whole corpus: exact, the same after saving, and never saved over another process's passages."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bgem3.scoring import (
    Embeddings,
    HybridSearcher,
    SearchResults,
    corpus,
    dense_scores,
    hybrid_scores,
    multivector_scores,
    sparse_scores,
)
from bgem3.scoring.corpus import BYS, By
from bgem3.scoring.token_vectors import STORAGES, Storage
from tests.scoring.corpus import make_embeddings

WEIGHTS = (0.5, 0.3, 0.9)
NAMES = ("dense", "sparse", "multivector", "hybrid")


def assert_same_results(found: SearchResults, expected: SearchResults) -> None:
    """Compare results bit by bit."""
    np.testing.assert_array_equal(found.ids, expected.ids)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(found.scores, name), getattr(expected.scores, name))


def plain_top(scores: NDArray[np.float32], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda column: (-scores[column], column))[:k]


def widened(texts: Embeddings) -> Embeddings:
    """Return embeddings of a vocabulary that has a token more."""
    n_texts, n_tokens = texts.sparse.shape
    texts.sparse.resize((n_texts, n_tokens + 1))
    return texts


@given(
    seed=st.integers(0, 99),
    n_queries=st.integers(0, 4),
    cuts=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    k=st.integers(1, 5),
    n_candidates=st.integers(5, 8),
    by=st.sampled_from(BYS),
    storage=st.sampled_from(STORAGES),
    budget=st.sampled_from([1, corpus.MEMORY_BUDGET]),
)
@settings(max_examples=60, deadline=None)
def test_search_equals_scoring_everything_and_sorting_in_plain_python(
    seed: int, n_queries: int, cuts: list[int], k: int, n_candidates: int, by: By, storage: Storage, budget: int
) -> None:
    queries, parts = make_embeddings(seed, n_queries), [make_embeddings(seed + i, n) for i, n in enumerate(cuts, 1)]
    passages = Embeddings.concatenate(parts)
    built = HybridSearcher.build(parts[0], storage=storage)
    for part in parts[1:]:
        built.append(part)
    assert len(built) == len(passages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "MEMORY_BUDGET", budget)
        found = built.search(queries, k, WEIGHTS, candidates=n_candidates, by=by)
    assert found.index.shape == (n_queries, min(k, len(passages)))
    stored, error = passages.multivector.stored_as(storage)
    assert built.storage_error == pytest.approx(error)
    dense, sparse = dense_scores(queries.dense, passages.dense), sparse_scores(queries.sparse, passages.sparse)
    multivector = multivector_scores(queries.multivector, stored)
    exact = dense, sparse, multivector, hybrid_scores(dense, sparse, multivector, WEIGHTS)
    for i in range(n_queries):
        chosen = {"dense": {*plain_top(dense[i], n_candidates)}, "sparse": {*plain_top(sparse[i], n_candidates)}}
        candidates = sorted(chosen["dense"] | chosen["sparse"] if by == "both" else chosen[by])
        expected = [candidates[place] for place in plain_top(exact[3][i, candidates], k)]
        assert found.index[i].tolist() == found.ids[i].tolist()
        for name, scores in zip(NAMES, exact, strict=True):
            np.testing.assert_allclose(getattr(found.scores, name)[i], scores[i, found.index[i]], atol=1e-6)
            np.testing.assert_allclose(getattr(found.scores, name)[i], scores[i, expected], atol=1e-6)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_saved_searcher_gives_the_same_bits_and_takes_more_passages(tmp_path: Path, storage: Storage) -> None:
    queries, more = make_embeddings(1, 5), make_embeddings(3, 30)
    built = HybridSearcher.build(make_embeddings(2, 50), [f"p{i}" for i in range(50)], storage)
    before = built.search(queries)
    built.save(tmp_path / "index")
    opened = HybridSearcher.open(tmp_path / "index")
    for saved in (built, opened):
        assert_same_results(saved.search(queries), before)
        assert not saved._corpus.segments[0].dense.flags.owndata, "what is saved is mapped, not held"
    assert before.ids[0, 0] == f"p{before.index[0, 0]}"
    opened.append(more, [f"q{i}" for i in range(30)])
    after = opened.search(queries)
    assert_same_results(HybridSearcher.open(tmp_path / "index").search(queries), before)
    opened.save(tmp_path / "index")
    assert_same_results(HybridSearcher.open(tmp_path / "index").search(queries), after)
    assert opened.storage == storage
    assert repr(opened) == f"HybridSearcher(80 passages, multi-vectors in {storage})"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, e: s.search(e, k=0), "k must be a whole number of at least 1, found 0"),
        (lambda s, e: s.search(e, k=10, candidates=9), "candidates must be a whole number of at least 10, found 9"),
        (lambda s, e: s.search(e, by="lexical"), r"by must be one of \('dense', 'sparse', 'both'\), found 'lexical'"),
        (lambda s, e: s.search(make_embeddings(0, 2, 7)), "dense vectors must be as wide as the corpus's, 8, found 7"),
        (lambda s, e: s.search(widened(e)), "sparse weights must be as wide as the corpus's, .*; were both encoded by"),
        (lambda s, e: s.append(e, [4, 9]), r"ids must be new, but \[4\] are in the corpus"),
        (lambda s, e: s.append(e, ["a", "b"]), "ids must be of the corpus's kind, found <U1 for int64"),
        (lambda s, e: HybridSearcher.build(e, None, "int4"), "storage must be one of .* found 'int4'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_searched_or_added_is_refused(
    call: Callable[[HybridSearcher, Embeddings], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(HybridSearcher.build(make_embeddings(1, 5)), make_embeddings(2, 2))


def test_outputs_that_are_missing_or_of_other_texts_are_named_and_no_passages_leave_no_trace() -> None:
    full = make_embeddings(1, 5)
    searcher = HybridSearcher.build(full)
    dense = Embeddings(n_tokens=full.n_tokens, truncated=full.truncated, dense=full.dense)
    for call in (HybridSearcher.build, searcher.search):
        with pytest.raises(AttributeError, match="'multivector'"):
            call(dense)
    doubled = full[:]
    doubled._dense = np.concatenate([full.dense, full.dense])
    with pytest.raises(ValueError, match="outputs must be of the same texts, found 5 token counts, 10 dense vectors"):
        searcher.append(doubled)
    searcher.append(make_embeddings(0, 0, 7))
    assert len(searcher._corpus.segments) == 1


def assert_stale(searcher: HybridSearcher, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(RuntimeError, match=r"another save has replaced it\. Nothing was written; open it again"):
        searcher.save(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_searcher_whose_folder_another_save_has_replaced_is_refused_until_opened_anew(tmp_path: Path) -> None:
    HybridSearcher.build(make_embeddings(1, 4)).save(tmp_path / "index")
    first, second = (HybridSearcher.open(tmp_path / "index") for _ in range(2))
    for searcher in (first, second):
        searcher.append(make_embeddings(2, 3))
    first.save(tmp_path / "index")
    assert_stale(second, tmp_path / "index")
    second.save(tmp_path / "other")  # as the message advises
    assert len(HybridSearcher.open(tmp_path / "other")) == 7
    first.save(tmp_path / "index")  # its own save has not made it stale


def test_a_link_that_leads_to_another_index_than_it_did_is_not_saved_through(tmp_path: Path) -> None:
    HybridSearcher.build(make_embeddings(1, 6)).save(tmp_path / "v2")
    link = tmp_path / "current"
    link.symlink_to("v1")
    saved = HybridSearcher.build(make_embeddings(2, 3))
    saved.save(link)
    opened = HybridSearcher.open(link)
    link.unlink()
    link.symlink_to("v2")
    for searcher in (opened, saved):
        assert_stale(searcher, link)
    saved.save(tmp_path / "v2")
    saved.append(make_embeddings(3, 1))
    saved.save(link)
    assert len(HybridSearcher.open(link)) == 4


def test_a_searcher_writes_to_each_folder_only_what_it_lacks(tmp_path: Path) -> None:
    searcher = HybridSearcher.build(make_embeddings(1, 4))
    for name in ("a", "b"):
        searcher.save(tmp_path / name)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    searcher.append(make_embeddings(2, 4))
    for name in ("a", "b", "a"):
        searcher.save(tmp_path / name)
        assert len(HybridSearcher.open(tmp_path / name)) == 8
    assert first.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}.items()
    shutil.rmtree(tmp_path / "a")
    searcher.save(tmp_path / "a")
    assert len(HybridSearcher.open(tmp_path / "a")) == 8
