"""Arrays that come from damaged or foreign files are refused where they are read: no crash, no wrong score.

Everything that could end a process runs in one of its own, so that a segmentation fault fails a test.
"""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.scoring import Embeddings, HybridSearcher, MultiVectors, multivector_scores, sparse_scores, storage
from bgem3.scoring.array_files import read_npz
from bgem3.scoring.stored_arrays import LARGEST_VOCABULARY
from tests.scoring.corpus import VOCABULARY, make_embeddings
from tests.scoring.damage import N_TEXTS, outcome, use_embeddings, use_matrix, use_searcher, use_vectors, write

Array = NDArray[Any]


class Worker:
    """A process that uses damaged things, and another one after it has crashed."""

    def __init__(self) -> None:
        self._pool = self._start()

    def outcome(self, use: Callable[[Any], None], damaged: Any) -> str:
        try:
            return self._pool.submit(outcome, use, damaged).result(60)
        except BrokenProcessPool:
            self._pool = self._start()
            return "the process crashed"

    def close(self) -> None:
        self._pool.shutdown()

    @staticmethod
    def _start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def replaced(place: int, value: int) -> Callable[[Array], Array]:
    """Return the function that replaces one value, in the same dtype."""

    def change(array: Array) -> Array:
        array = array.copy()
        array[place] = value
        return array

    return change


def cast(dtype: str) -> Callable[[Array], Array]:
    """Return the function that changes the dtype only."""
    return lambda array: array.astype(dtype)


def constant(*values: Any, dtype: Any = None) -> Callable[[Array], Array]:
    """Return the function that gives these values, whatever there was."""
    return lambda array: np.array(values, dtype or array.dtype)


FOREIGN = {dtype: cast(dtype) for dtype in ("U", "O", "S", ">i4", "complex64")}
SHAPES: dict[str, Callable[[Array], Array]] = {
    "rank 0": lambda array: array.ravel()[0] if array.size else np.array(0, array.dtype),
    "one rank more": lambda array: array[None],
    "an item less": lambda array: array[:-1],
    "an item more": lambda array: np.concatenate([array, array[-1:]]),
    "nothing": lambda array: array[:0],
}
RANGES: dict[str, Callable[[Array], Array]] = {
    "the largest": lambda array: replaced(0, np.iinfo(array.dtype).max)(array),
    "the smallest": lambda array: replaced(-1, np.iinfo(array.dtype).min)(array),
    "negative": replaced(1, -1),
    "a million": replaced(0, 10**6),
}
OFFSETS: dict[str, Callable[[Array], Array]] = RANGES | {
    "reversed": lambda array: array[::-1],
    "from 1": replaced(0, 1),
    "one beyond": lambda array: replaced(-1, array[-1] + 1)(array),
    "one short": lambda array: replaced(-1, array[-1] - 1)(array),
    "descending": lambda array: replaced(2, array[-1])(array),
    "float64": cast("float64"),
    "uint64": cast("uint64"),
}

EMBEDDINGS_DAMAGE = {
    "n_tokens": FOREIGN | SHAPES | {"float32": cast("float32")},
    "truncated": FOREIGN | SHAPES | {"int8": cast("int8")},
    "dense": FOREIGN | SHAPES | {"int32": cast("int32"), ">f4": cast(">f4"), "flat": lambda array: array.ravel()},
    "sparse_data": FOREIGN | SHAPES | {"int32": cast("int32")},
    "sparse_indices": FOREIGN | SHAPES | RANGES | {"the width": replaced(0, VOCABULARY), "uint32": cast("uint32")},
    "sparse_indptr": FOREIGN | SHAPES | OFFSETS,
    "sparse_first_seen": FOREIGN
    | SHAPES
    | RANGES
    | {"repeated": lambda array: replaced(0, array[1])(array), "reversed": lambda array: array[::-1]},
    "sparse_shape": FOREIGN
    | SHAPES
    | {
        f"{rows}, {columns}": constant(rows, columns)
        for rows, columns in (
            (N_TEXTS, -1), (N_TEXTS, 3), (N_TEXTS, 0), (N_TEXTS, 2**62), (N_TEXTS, LARGEST_VOCABULARY + 1),
            (-N_TEXTS, VOCABULARY), (N_TEXTS + 1, VOCABULARY), (0, VOCABULARY), (2**62, VOCABULARY),
        )
    },
    "multivector": FOREIGN | SHAPES | {"int16": cast("int16"), "flat": lambda array: array.ravel()},
    "multivector_offsets": FOREIGN | SHAPES | OFFSETS,
    "multivector_scales": FOREIGN | SHAPES | {"float64": cast("float64")},
}  # fmt: skip


def cases(damage: dict[str, dict[str, Callable[[Array], Array]]]) -> pytest.MarkDecorator:
    """Parametrize over every array and everything that can be wrong with it, and its absence."""
    missing = [pytest.param(name, None, id=f"{name}-missing") for name in damage]
    return pytest.mark.parametrize(
        ("name", "change"),
        missing
        + [pytest.param(name, change, id=f"{name}-{how}") for name in damage for how, change in damage[name].items()],
    )


def int8_embeddings() -> Embeddings:
    full = make_embeddings(0, N_TEXTS)
    vectors, _ = full.multivector.stored_as("int8")
    return Embeddings(
        n_tokens=full.n_tokens,
        truncated=full.truncated,
        dense=full.dense,
        sparse=full.sparse,
        first_seen=full._first_seen,
        multivector=vectors,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with embeddings as a file and as a folder, and a searcher of two parts."""
    folder = tmp_path_factory.mktemp("saved")
    int8_embeddings().save(folder / "file.npz")
    int8_embeddings().save(folder / "folder")
    searcher = HybridSearcher.build(make_embeddings(1, 9), storage="int8")
    searcher.append(make_embeddings(2, 5))
    searcher.save(folder / "searcher")
    return folder


def damaged_copy(saved: Path, target: Path, name: str, change: Callable[[Array], Array] | None) -> Path:
    """Copy what was saved and change an array of it, of the first part."""
    shutil.copytree(saved, target) if saved.is_dir() else shutil.copy(saved, target)
    place = target
    if target.is_dir():
        place = target / json.loads((target / storage.INDEX).read_text())["parts"][0]
    arrays = read_npz(place) if place.is_file() else {file.stem: np.load(file) for file in place.glob("*.npy")}
    array = arrays.pop(name)
    write(place, arrays if change is None else arrays | {name: change(array)})
    return target


@cases(EMBEDDINGS_DAMAGE)
@pytest.mark.parametrize("kind", ["file.npz", "folder"])
def test_embeddings_with_an_array_that_does_not_fit_are_not_loaded(
    saved: Path, tmp_path: Path, worker: Worker, kind: str, name: str, change: Callable[[Array], Array] | None
) -> None:
    if change is None and (name == "sparse_first_seen" or (name, kind) == ("dense", "file.npz")):
        pytest.skip("embeddings without this array are whole")
    path = damaged_copy(saved / kind, tmp_path / kind, name, change)
    found = worker.outcome(use_embeddings, path)
    assert found.startswith(f"ValueError: {path}"), found
    assert any(name in found for name in EMBEDDINGS_DAMAGE), "the message names an array"
    assert "again" in found


SEARCHER_DAMAGE = {
    "ids": FOREIGN
    | SHAPES
    | {"repeated": lambda array: replaced(0, array[1])(array), "another part's": replaced(0, 13)},
    "dense": FOREIGN
    | SHAPES
    | {"narrower": lambda array: array[:, 1:], "wider": lambda array: array.repeat(2, axis=1)},
    "vocabulary_size": FOREIGN
    | SHAPES
    | {str(value): constant(value) for value in (-1, 0, 3, VOCABULARY + 1, LARGEST_VOCABULARY + 1, 2**62)},
    "storage_error": FOREIGN | SHAPES,
    "posting_tokens": FOREIGN
    | SHAPES
    | RANGES
    | {"reversed": lambda array: array[::-1], "the size": replaced(-1, VOCABULARY), "repeated": replaced(0, 1)},
    "posting_starts": FOREIGN | SHAPES | OFFSETS,
    "posting_passages": FOREIGN | SHAPES | {"int64": cast("int64"), "uint32": cast("uint32")},
    "posting_weights": FOREIGN | SHAPES | {"float64": cast("float64")},
    "posting_common_tokens": FOREIGN | {"rank 0": SHAPES["rank 0"]} | {"as many": constant(*range(99))},
    "posting_common_weights": FOREIGN
    | {"rank 1": lambda array: array.ravel(), "a passage less": lambda array: array[:, 1:]},
    "multivector": FOREIGN | SHAPES | {"float32": cast("float32"), "narrower": lambda array: array[:, 1:]},
    "multivector_offsets": FOREIGN | SHAPES | OFFSETS,
    "multivector_scales": FOREIGN | SHAPES,
}


@cases(SEARCHER_DAMAGE)
def test_a_corpus_with_an_array_that_does_not_fit_is_not_opened(
    saved: Path, tmp_path: Path, worker: Worker, name: str, change: Callable[[Array], Array] | None
) -> None:
    path = damaged_copy(saved / "searcher", tmp_path / "searcher", name, change)
    found = worker.outcome(use_searcher, path)
    assert found.startswith(f"ValueError: {path}"), found
    assert "again" in found
    assert outcome(HybridSearcher.open, path) == found, "it is refused when it is opened"  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [*RANGES.values(), replaced(0, 9)], ids=[*RANGES, "the number of passages"])
def test_postings_that_name_no_passage_are_refused_by_the_search_that_meets_them(
    saved: Path, tmp_path: Path, worker: Worker, change: Callable[[Array], Array]
) -> None:
    path = damaged_copy(saved / "searcher", tmp_path / "searcher", "posting_passages", change)
    found = worker.outcome(use_searcher, path)
    assert found.startswith("ValueError: postings must name passages from 0 to 8, found others"), found


@pytest.mark.parametrize("kind", ["file.npz", "folder"])
def test_lexical_weights_that_name_a_token_twice_in_one_text_are_not_loaded(
    saved: Path, tmp_path: Path, kind: str
) -> None:
    def repeat(indices: Array) -> Array:
        return replaced(1, indices[0])(indices)

    path = damaged_copy(saved / kind, tmp_path / kind, "sparse_indices", repeat)
    with pytest.raises(ValueError, match="'sparse_indices' must hold each token id of a text once"):
        Embeddings.load(path)


def test_lexical_weights_in_any_order_within_a_text_are_loaded_and_score_the_same(tmp_path: Path) -> None:
    embeddings = make_embeddings(0, N_TEXTS)
    arrays = embeddings._arrays()
    rows = zip(arrays["sparse_indptr"][:-1], arrays["sparse_indptr"][1:], strict=True)
    order = np.concatenate([np.arange(first, last)[::-1] for first, last in rows])
    arrays |= {name: arrays[name][order] for name in ("sparse_data", "sparse_indices")}
    del arrays["sparse_first_seen"]
    write(tmp_path / "file.npz", arrays)
    loaded = Embeddings.load(tmp_path / "file.npz")
    np.testing.assert_array_equal(loaded.sparse.toarray(), embeddings.sparse.toarray())
    found, expected = (HybridSearcher.build(texts).search(embeddings, 2) for texts in (loaded, embeddings))
    np.testing.assert_array_equal(found.scores.sparse, expected.scores.sparse)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["dense", "posting_weights", "multivector_scales"])
def test_a_corpus_that_is_not_finite_gives_no_ranking(
    saved: Path, tmp_path: Path, worker: Worker, name: str, value: float
) -> None:
    path = damaged_copy(saved / "searcher", tmp_path / "searcher", name, lambda array: np.full_like(array, value))
    assert worker.outcome(use_searcher, path).startswith("ValueError: a score is NaN")


def test_parts_of_two_corpora_are_not_opened_as_one(tmp_path: Path) -> None:
    def opened(second: HybridSearcher) -> str:
        for name, searcher in (("first", HybridSearcher.build(make_embeddings(1, 5))), ("second", second)):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            searcher.save(tmp_path / name)
        first, other = ((tmp_path / name / storage.INDEX) for name in ("first", "second"))
        index, part = json.loads(first.read_text()), json.loads(other.read_text())["parts"][0]
        shutil.copytree(tmp_path / "second" / part, tmp_path / "first" / part)
        index |= {"parts": [*index["parts"], part], "n_passages": 5 + len(second)}
        first.write_text(json.dumps(index))
        return outcome(HybridSearcher.open, tmp_path / "first")  # type: ignore[arg-type]

    more, narrow = make_embeddings(3, 4), make_embeddings(3, 4, 7)
    assert opened(HybridSearcher.build(more, range(5, 9))) == "", "parts of one corpus are"
    assert "holds an id twice" in opened(HybridSearcher.build(more, range(4, 8)))
    assert "one kind of ids, found ['int64', 'str_']" in opened(HybridSearcher.build(more, list("abcd")))
    assert "one width of dense vectors, found [8, 7]" in opened(HybridSearcher.build(narrow, range(5, 9)))
    assert "one storage of multi-vectors, found ['float32', 'int8']" in opened(
        HybridSearcher.build(more, range(5, 9), "int8")
    )


def npz_of(members: dict[str, bytes], **options: Any) -> bytes:
    """Return the bytes of an .npz file of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy_of(header: str, data: bytes = b"") -> bytes:
    """Return the bytes of a .npy file with this header."""
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode("latin-1") + b"\n" + data


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def damaged_npz(content: bytes) -> dict[str, bytes]:
    """Return ways in which the bytes of an .npz file may be wrong."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    compressed = buffer.getvalue()
    npy = io.BytesIO()
    np.save(npy, arrays["dense"])
    encrypted = bytearray(npz_of({"n_tokens.npy": npy.getvalue()}))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    headers = {
        "nested": "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 9000 + "}",
        "signs": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 9000 + "1,)}",
        "not ended": "{'descr': '<f4', 'fortran_order': False, 'shape': (",
        "huge": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
        "larger than int64": "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 40 + ",)}",
        "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}",
        "empty descr": "{'descr': (), 'fortran_order': False, 'shape': (1,)}",
        "unknown descr": "{'descr': 'zz9', 'fortran_order': False, 'shape': (1,)}",
        "a list": "[1, 2, 3]",
        "an expression": "__import__('os').getcwd()",
    }
    return {
        "nothing": b"",
        "text": b"n_tokens, dense",
        "a .npy file": npy.getvalue(),
        "half": content[: len(content) // 2],
        "without its last byte": content[:-1],
        "a byte of a value changed": flipped(content, content.index(arrays["dense"].tobytes()[:16])),
        "half of the compressed": compressed[: len(compressed) // 2],
        "a compressed byte changed": flipped(compressed, compressed.index(b"dense.npy") + 60),
        "encrypted": bytes(encrypted),
        "no member": npz_of({}),
        "a member that is no array": npz_of({"n_tokens.npy": b"hello"}),
        "a member cut short": npz_of({"n_tokens.npy": npy.getvalue()[:-5]}),
        "a bomb": npz_of({"dense.npy": bytes(128 << 20)}, compression=zipfile.ZIP_DEFLATED),
    } | {f"a header, {name}": npz_of({"n_tokens.npy": npy_of(header, bytes(16))}) for name, header in headers.items()}


CONTENT = io.BytesIO()
np.savez(CONTENT, **make_embeddings(0, N_TEXTS)._arrays())  # type: ignore[arg-type]
DAMAGED_NPZ = damaged_npz(CONTENT.getvalue())


@pytest.mark.parametrize("name", DAMAGED_NPZ)
def test_a_damaged_npz_file_is_not_loaded(tmp_path: Path, worker: Worker, name: str) -> None:
    path = tmp_path / "saved.npz"
    path.write_bytes(DAMAGED_NPZ[name])
    found = worker.outcome(use_embeddings, path)
    assert found.startswith(f"ValueError: {path}"), found
    assert "save it again" in found or "no array 'n_tokens'" in found


@pytest.mark.parametrize("name", [name for name in DAMAGED_NPZ if name.startswith("a header")])
def test_a_npy_file_with_a_damaged_header_is_not_mapped(saved: Path, tmp_path: Path, worker: Worker, name: str) -> None:
    folder = shutil.copytree(saved / "folder", tmp_path / "folder")
    (path,) = folder.glob("*/n_tokens.npy")
    with zipfile.ZipFile(io.BytesIO(DAMAGED_NPZ[name])) as archive:
        path.write_bytes(archive.read("n_tokens.npy"))
    assert worker.outcome(use_embeddings, folder).startswith(f"ValueError: {path} is damaged (")


def test_compressed_and_fortran_ordered_arrays_are_loaded(tmp_path: Path) -> None:
    embeddings = make_embeddings(0, N_TEXTS)
    arrays = embeddings._arrays()
    np.savez_compressed(tmp_path / "other.npz", **arrays | {"dense": np.asfortranarray(arrays["dense"])})  # type: ignore[arg-type]
    loaded = Embeddings.load(tmp_path / "other.npz")
    np.testing.assert_array_equal(loaded.dense, embeddings.dense)
    np.testing.assert_array_equal(loaded.sparse.toarray(), embeddings.sparse.toarray())


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(
    saved: Path, tmp_path: Path, worker: Worker, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "file.npz")
    folder = shutil.copytree(saved / "folder", tmp_path / "folder")
    (dense,) = folder.glob("*/dense.npy")
    no_index = shutil.copytree(saved / "searcher", tmp_path / "searcher")
    for path in (dense, no_index / storage.INDEX):
        path.unlink()
        make(path)
    assert "is no regular file" in worker.outcome(use_embeddings, tmp_path / "file.npz")
    assert f"ValueError: {dense} is damaged (no regular file)" in worker.outcome(use_embeddings, folder)
    assert "index.json is damaged: it is no regular file" in worker.outcome(use_searcher, no_index)


PART = "part-0123456789ab"
INDEX_VALUES: dict[str, list[Any]] = {
    "format": [None, "1", True, 1.0, [1], -1, 99, 10**400],
    "kind": [None, 1, "embeddings", ["hybrid searcher"], ""],
    "parts": [
        None, {}, "part-0123456789ab", 3, [], [1], [None], [[PART]], ["../searcher"], ["/etc"], [PART + "/.."],
        ["part-0123456789ab\n"], [""], ["."], [".."], ["a\\b"], ["part-\0"], ["part-" + "0" * 4000],
    ],
    "n_passages": [None, "14", True, 14.0, -1, 13, 15, 10**30, []],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{value!r:.30}".encode("unicode_escape").decode())
        for name, values in INDEX_VALUES.items()
        for value in ["missing", *values]
    ],
)
def test_an_index_with_a_value_that_does_not_fit_is_refused(
    saved: Path, tmp_path: Path, worker: Worker, name: str, value: Any
) -> None:
    folder = shutil.copytree(saved / "searcher", tmp_path / "searcher")
    index = json.loads((folder / storage.INDEX).read_text())
    if value == "missing":
        del index[name]
    else:
        index[name] = value
    (folder / storage.INDEX).write_text(json.dumps(index))
    found = worker.outcome(use_searcher, folder)
    assert found.startswith(f"ValueError: {folder}"), found


def test_an_index_that_names_a_part_twice_or_one_that_is_not_there_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "searcher", tmp_path / "searcher")
    path = folder / storage.INDEX
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"parts": index["parts"][:1] * 2}))
    with pytest.raises(ValueError, match="it lists a part twice"):
        HybridSearcher.open(folder)
    path.write_text(json.dumps(index | {"parts": [*index["parts"], PART]}))
    with pytest.raises((ValueError, FileNotFoundError), match=PART):
        HybridSearcher.open(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b'"parts"', b"\xff\xfe", b"\x00" * 9, "{\"kind\": \"\u00e9\"}".encode("latin-1"),
     b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"NaN", b"{}" * 2],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
@pytest.mark.parametrize("kind", ["folder", "searcher"])
def test_an_index_that_is_no_json_object_is_refused(
    saved: Path, tmp_path: Path, worker: Worker, content: bytes, kind: str
) -> None:
    folder = shutil.copytree(saved / kind, tmp_path / kind)
    (folder / storage.INDEX).write_bytes(content)
    found = worker.outcome(use_embeddings if kind == "folder" else use_searcher, folder)
    assert found.startswith(f"ValueError: {folder / storage.INDEX} is damaged: "), found
    assert "again" in found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(PART),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


@given(changes=st.dictionaries(st.sampled_from(["format", "kind", "parts", "n_passages"]), json_values, min_size=1))
@settings(max_examples=200, deadline=None)
def test_no_json_in_an_index_ends_in_anything_but_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, saved: Path, changes: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        shutil.copytree(saved / "searcher", folder)
    index = json.loads((saved / "searcher" / storage.INDEX).read_text())
    (folder / storage.INDEX).write_text(json.dumps(index | changes))
    found = outcome(use_searcher, folder)
    is_same = all(type(index[name]) is type(value) and index[name] == value for name, value in changes.items())
    assert is_same if not found else found.startswith(("ValueError: ", "FileNotFoundError: ")), found


def fuzzed(array: Array, rng: np.random.Generator) -> Array:
    """Return an array with some values, its shape or its dtype changed."""
    choice = rng.integers(0, 6)
    if choice == 0 and array.size:
        values = array.copy()
        wild = rng.choice([0, 1, -1, 2**31 - 1, -(2**31), 2**62, int(rng.integers(-99, 99))])
        with np.errstate(all="ignore"):
            values.flat[rng.integers(0, array.size, 1 + rng.integers(0, 3))] = np.int64(wild).astype(array.dtype)
        return values
    if choice == 1:
        return rng.permutation(array) if array.ndim else array
    if choice == 2:
        return array[: rng.integers(0, len(array) + 1)]
    if choice == 3:
        return np.concatenate([array, array[: rng.integers(0, len(array) + 1)]])
    if choice == 4:
        return array.astype(rng.choice(["int8", "int32", "int64", "uint64", "float16", "float64", "U3", "bool"]))
    return rng.integers(-3, 99, array.shape).astype(array.dtype)


def fuzz(use: Callable[[Path], None], place: Path, opened: Path, seeds: range) -> list[str]:
    """Use a part with one to three of its arrays changed, seed by seed; return what is neither whole nor refused."""
    if place.is_file():
        arrays = read_npz(place)
    else:
        arrays = {file.stem: np.array(np.load(file)) for file in place.glob("*.npy")}
    wrong = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        names = rng.choice(sorted(arrays), 1 + rng.integers(0, 3), replace=False)
        with np.errstate(all="ignore"):
            write(place, arrays | {name: fuzzed(arrays[name], rng) for name in names})
        found = outcome(use, opened)
        if found and not found.startswith("ValueError: "):
            wrong.append(f"seed {seed}, {names}: {found}")
    return wrong


@pytest.mark.parametrize("kind", ["file.npz", "searcher"])
def test_changed_arrays_are_refused_or_harmless(saved: Path, tmp_path: Path, kind: str) -> None:
    assert_fuzzed_in_a_process(saved / kind, tmp_path / kind, range(250))


@pytest.mark.stress
@pytest.mark.parametrize("kind", ["file.npz", "folder", "searcher"])
def test_changed_arrays_are_refused_or_harmless_thousands_of_times(saved: Path, tmp_path: Path, kind: str) -> None:
    assert_fuzzed_in_a_process(saved / kind, tmp_path / kind, range(1000, 11_000))


def assert_fuzzed_in_a_process(original: Path, target: Path, seeds: range) -> None:
    shutil.copytree(original, target) if original.is_dir() else shutil.copy(original, target)
    place = target
    if target.is_dir():
        place = target / json.loads((target / storage.INDEX).read_text())["parts"][0]
    use = use_searcher if target.name == "searcher" else use_embeddings
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(fuzz, use, place, target, seeds).result(600) == []


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_an_npz_file_with_changed_bytes_is_refused_or_holds_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(CONTENT.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content), len(content) // 3]))])
    found = outcome(use_embeddings, path)
    assert found == "" or found.startswith("ValueError: "), found


def with_indices(layout: str, value: int) -> Any:
    """Return a (4, 40) matrix of a layout with one index out of place."""
    matrix = make_embeddings(1, 4).sparse.asformat(layout)
    indices = matrix.row if layout == "coo" else matrix.indices
    indices[0] = value
    return matrix


def with_indptr(*indptr: int) -> csr_array:
    matrix = csr_array(np.ones((4, 3), np.float32))
    matrix.indptr = np.array(indptr, np.int32)
    return matrix


@pytest.mark.parametrize(
    "matrix",
    [
        *(with_indices(layout, value) for layout in ("csr", "csc", "coo", "bsr") for value in (-1, 10**6, 2**31 - 1)),
        with_indptr(0, 12, 9, 3, 12),
        with_indptr(0, -5, 0, 3, 12),
        with_indptr(3, 6, 9, 12, 12),
        with_indptr(0, 3, 6, 9, 10**6),
    ],
)
def test_a_matrix_with_indices_out_of_range_is_refused_by_every_score(worker: Worker, matrix: Any) -> None:
    assert worker.outcome(use_matrix, matrix).startswith(
        "ValueError: sparse weights must be a valid (texts, vocabulary)"
    )


def test_a_matrix_of_any_layout_gives_the_same_scores() -> None:
    matrix = make_embeddings(1, 4).sparse
    expected = sparse_scores(matrix, matrix)
    for layout in ("csr", "csc", "coo", "bsr", "lil", "dok", "dia"):
        np.testing.assert_array_equal(sparse_scores(matrix.asformat(layout), matrix.asformat(layout)), expected)
    np.testing.assert_array_equal(sparse_scores(matrix.toarray(), matrix.toarray()), expected)


PACKED = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    "vectors",
    [
        *(
            MultiVectors(PACKED, np.array(offsets))
            for offsets in ([0, 5], [0, 10**15], [-1, 4], [0, 3, 2, 4], [[0, 4]])
        ),
        MultiVectors(PACKED, np.array([0.0, 4.0])),
        MultiVectors(PACKED, np.array([], np.int64)),
        MultiVectors(PACKED.ravel(), np.array([0, 16])),
        MultiVectors(PACKED.astype(np.int8), np.array([0, 4])),
        MultiVectors(PACKED.astype(np.int8), np.array([0, 4]), np.ones(3, np.float32)),
    ],
)
def test_multivectors_whose_offsets_or_scales_do_not_fit_are_refused_by_every_score(
    worker: Worker, vectors: MultiVectors
) -> None:
    assert worker.outcome(use_vectors, vectors).startswith("ValueError: ")


def test_a_window_on_packed_vectors_scores_as_its_texts_do(tmp_path: Path) -> None:
    full = make_embeddings(1, 6)
    vectors = full.multivector
    window = MultiVectors(vectors.packed, vectors.offsets[2:5])
    part = full[2:4]
    assert_scores = np.testing.assert_allclose
    assert_scores(multivector_scores(window, window), multivector_scores(part.multivector, part.multivector), rtol=1e-6)
    part._multivector = window
    part.save(tmp_path / "window.npz")
    loaded = Embeddings.load(tmp_path / "window.npz").multivector
    for found, expected in zip(loaded, window, strict=True):
        np.testing.assert_array_equal(found, expected)
