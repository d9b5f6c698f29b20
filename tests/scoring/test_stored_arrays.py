"""Arrays that come from damaged or foreign files are refused where they are read: no crash, no wrong score."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bgem3.scoring import (
    Embeddings,
    HybridSearcher,
    MultiVectors,
    multivector_pair_scores,
    multivector_scores,
    sparse_pair_scores,
    sparse_scores,
)
from bgem3.scoring.storage import INDEX
from tests.scoring import damage
from tests.scoring.corpus import make_embeddings
from tests.scoring.damage import N_TEXTS, OFFSETS


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with embeddings as a file, and a searcher of two parts; tests leave both as they were."""
    folder = tmp_path_factory.mktemp("saved")
    texts = make_embeddings(0, N_TEXTS)
    texts._multivector, _ = texts.multivector.stored_as("int8")
    texts.save(folder / "file.npz")
    searcher = HybridSearcher.build(make_embeddings(1, 9), storage="int8")
    searcher.append(make_embeddings(2, 5))
    searcher.save(folder / "searcher")
    return folder


@pytest.mark.parametrize("kind", ["file.npz", "searcher"])
def test_an_array_that_does_not_fit_is_refused_when_it_is_loaded(saved: Path, kind: str) -> None:
    path, whole = saved / kind, set()
    for name, array in damage.read(damage.part_of(path)).items():
        for how, change in {"missing": None, **damage.ANY, **damage.DAMAGE.get(name, {})}.items():
            if change is not None and repr(change(array)) == repr(array):
                continue
            found = damage.use_damaged(path, name, change)
            if found:
                assert found.startswith(f"ValueError: {path}"), (name, how, found)
                assert "again" in found
            else:
                whole.add(f"{name}: {how}")
    assert whole == ({"sparse_first_seen: missing", "dense: missing"} if kind == "file.npz" else set())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["dense", "posting_weights", "multivector_scales"])
def test_a_corpus_that_is_not_finite_gives_no_ranking(saved: Path, name: str, value: float) -> None:
    found = damage.use_damaged(saved / "searcher", name, lambda array: np.full_like(array, value))
    assert found.startswith("ValueError: a score is NaN")


def test_a_part_that_differs_from_the_next_one_is_refused(saved: Path) -> None:
    for name, what in (("dense", "dense vectors"), ("multivector", "multi-vectors")):
        found = damage.use_damaged(saved / "searcher", name, lambda array: array[:, 1:])
        assert f"one width of {what}, found [7, 8]" in found


@pytest.mark.parametrize("value", [-1, 9])
def test_postings_that_name_no_passage_are_refused_by_the_search_that_reads_them(saved: Path, value: int) -> None:
    found = damage.use_damaged(saved / "searcher", "posting_passages", damage.replaced(0, value))
    assert found.startswith("ValueError: postings must name passages from 0 to 8, found others"), found


def test_parts_of_two_corpora_are_not_opened_as_one(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "searcher", tmp_path / "searcher")
    HybridSearcher.build(make_embeddings(3, 4), list("abcd"), "int8").save(tmp_path / "other")
    part = damage.part_of(tmp_path / "other")
    shutil.copytree(part, folder / part.name)
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"parts": [*index["parts"], part.name], "n_passages": 18}))
    with pytest.raises(ValueError, match=r"one kind of ids, found \['int64', 'int64', 'str_'\]"):
        HybridSearcher.open(folder)
    np.save(folder / part.name / "ids.npy", np.arange(13, 17))
    with pytest.raises(ValueError, match="it holds an id twice"):
        HybridSearcher.open(folder)


def test_lexical_weights_in_any_order_within_a_text_load_but_no_token_twice(tmp_path: Path) -> None:
    embeddings = make_embeddings(0, N_TEXTS)
    arrays = embeddings._arrays()
    rows = zip(arrays["sparse_indptr"][:-1], arrays["sparse_indptr"][1:], strict=True)
    order = np.concatenate([np.arange(first, last)[::-1] for first, last in rows])
    arrays |= {name: arrays[name][order] for name in ("sparse_data", "sparse_indices")}
    del arrays["sparse_first_seen"]
    np.savez(tmp_path / "file.npz", **arrays)  # type: ignore[arg-type]
    loaded = Embeddings.load(tmp_path / "file.npz")
    found, expected = (HybridSearcher.build(texts).search(embeddings, 2) for texts in (loaded, embeddings))
    np.testing.assert_array_equal(found.scores.sparse, expected.scores.sparse)
    arrays["sparse_indices"][1] = arrays["sparse_indices"][0]
    np.savez(tmp_path / "file.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'sparse_indices' must hold each token id of a text once"):
        Embeddings.load(tmp_path / "file.npz")


@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "bsr", "offsets"])
@pytest.mark.parametrize("value", [-1, 10**6])
def test_a_matrix_with_indices_out_of_range_is_refused_by_every_score(layout: str, value: int) -> None:
    matrix = make_embeddings(1, 4).sparse.asformat(layout if layout != "offsets" else "csr")
    indices = {"coo": "row", "offsets": "indptr"}.get(layout, "indices")
    getattr(matrix, indices)[1] = value
    passages = make_embeddings(1, 4)
    passages._sparse = matrix
    message = r"sparse weights must be a valid \(texts, vocabulary\)"
    for call in (sparse_scores, sparse_pair_scores):
        with pytest.raises(ValueError, match=message):
            call(matrix, matrix)
    with pytest.raises(ValueError, match=message):
        HybridSearcher.build(passages)


def test_a_matrix_of_any_layout_gives_the_same_scores() -> None:
    matrix = make_embeddings(1, 4).sparse
    expected = sparse_scores(matrix, matrix)
    for layout in ("csc", "coo", "bsr", "lil"):
        np.testing.assert_array_equal(sparse_scores(matrix.asformat(layout), matrix.asformat(layout)), expected)
    np.testing.assert_array_equal(sparse_scores(matrix.toarray(), matrix.toarray()), expected)


def test_multivectors_whose_offsets_or_scales_do_not_fit_are_refused_by_every_score() -> None:
    packed, offsets = np.eye(4, dtype=np.float32), np.arange(5)
    wrong = OFFSETS.keys() - {"from 1"}  # a row that belongs to no text is harmless
    vectors = [MultiVectors(packed, OFFSETS[how](offsets)) for how in wrong]
    vectors.append(MultiVectors(packed.ravel(), np.array([0, 16])))
    vectors += [MultiVectors(packed.astype(np.int8), offsets, scales) for scales in (None, np.ones(3, np.float32))]
    for score, side in itertools.product((multivector_scores, multivector_pair_scores), vectors):
        with pytest.raises(ValueError, match=r"multi-vectors|scales"):
            score(side, side)


def test_a_window_on_packed_vectors_scores_and_saves_as_its_texts_do(tmp_path: Path) -> None:
    full = make_embeddings(1, 6)
    window = MultiVectors(full.multivector.packed, full.multivector.offsets[2:5])
    part = full[2:4]
    expected = multivector_scores(part.multivector, part.multivector)
    np.testing.assert_allclose(multivector_scores(window, window), expected, rtol=1e-6)
    part._multivector = window
    part.save(tmp_path / "window.npz")
    for found, vectors in zip(Embeddings.load(tmp_path / "window.npz").multivector, window, strict=True):
        np.testing.assert_array_equal(found, vectors)
