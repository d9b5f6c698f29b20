"""Damage done to arrays, and what the use of damaged things ends in.

Uses run in a process of their own, because an index out of range could end it.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring import (
    Embeddings,
    HybridSearcher,
    MultiVectors,
    dense_scores,
    multivector_pair_scores,
    multivector_scores,
    sparse_pair_scores,
    sparse_scores,
)
from bgem3.scoring.array_files import read_npz
from bgem3.scoring.corpus import BYS
from bgem3.scoring.storage import INDEX
from bgem3.scoring.stored_arrays import LARGEST_VOCABULARY
from tests.scoring.corpus import VOCABULARY, make_embeddings

N_TEXTS = 6
T = TypeVar("T")
Array = NDArray[Any]
Change = Callable[[Array], Array]


def replaced(place: int, value: int) -> Change:
    """Return the function that replaces one value."""

    def change(array: Array) -> Array:
        array = array.copy()
        array[place] = value
        return array

    return change


def cast(*dtypes: str) -> dict[str, Change]:
    """Return the functions that change the dtype only."""
    return {dtype: lambda array, dtype=dtype: array.astype(dtype) for dtype in dtypes}  # type: ignore[misc]


def values(*arrays: tuple[int, ...]) -> dict[str, Change]:
    """Return the functions that give these values in the same dtype, whatever there was."""
    return {str(given): lambda array, given=given: np.array(given, array.dtype) for given in arrays}  # type: ignore[misc]


ANY = cast("U", "O", "S", ">i4", "complex64") | {
    "rank 0": lambda array: array.ravel()[0] if array.size else np.array(0, array.dtype),
    "one rank more": lambda array: array[None],
    "an item less": lambda array: array[:-1],
    "an item more": lambda array: np.concatenate([array, array[-1:]]),
    "no item": lambda array: array[:0],
}
INDEX_DAMAGE: dict[str, Change] = {
    "the largest": lambda array: replaced(0, np.iinfo(array.dtype).max)(array),
    "the smallest": lambda array: replaced(-1, np.iinfo(array.dtype).min)(array),
    "negative": replaced(1, -1),
    "a million": replaced(0, 10**6),
}
REVERSED: dict[str, Change] = {"reversed": lambda array: array[::-1]}
REPEATED: dict[str, Change] = {"repeated": lambda array: replaced(0, array[1])(array)}
OFFSETS = INDEX_DAMAGE | REVERSED | cast("float64", "uint64") | {
    "from 1": replaced(0, 1),
    "one beyond": lambda array: replaced(-1, array[-1] + 1)(array),
    "one short": lambda array: replaced(-1, array[-1] - 1)(array),
    "descending": lambda array: replaced(2, array[-1])(array),
}  # fmt: skip
SHAPES = [(N_TEXTS, n) for n in (-1, 3, 0, 2**62, LARGEST_VOCABULARY + 1)] + [
    (n, VOCABULARY) for n in (-N_TEXTS, N_TEXTS + 1, 0, 2**62)
]
TOKENS = INDEX_DAMAGE | REVERSED | {"the size": replaced(-1, VOCABULARY)}

DAMAGE: dict[str, dict[str, Change]] = {
    "n_tokens": cast("float32"),
    "truncated": cast("int8"),
    "dense": cast("int32", ">f4") | {"flat": np.ravel},
    "sparse_data": cast("int32"),
    "sparse_indices": INDEX_DAMAGE | cast("uint32") | {"the size": replaced(0, VOCABULARY)},
    "sparse_indptr": OFFSETS,
    "sparse_first_seen": INDEX_DAMAGE | REPEATED | REVERSED,
    "sparse_shape": values(*SHAPES),
    "multivector": cast("int16") | {"flat": np.ravel},
    "multivector_offsets": OFFSETS,
    "multivector_scales": cast("float64"),
    "ids": REPEATED | {"another part's": replaced(0, 13)},
    "vocabulary_size": values((-1,), (0,), (3,), (VOCABULARY + 1,), (LARGEST_VOCABULARY + 1,), (2**62,)),
    "storage_error": cast("float32"),
    "posting_tokens": TOKENS | REPEATED,
    "posting_starts": OFFSETS,
    "posting_passages": cast("int64", "uint32"),
    "posting_weights": cast("float64"),
    "posting_common_tokens": values(tuple(range(99))),
    "posting_common_weights": {"flat": np.ravel, "a passage less": lambda array: array[:, 1:]},
}  # what every loader refuses, beside ANY


def use_embeddings(path: Path) -> None:
    """Load embeddings, and do with them all that can be done."""
    embeddings = Embeddings.load(path)
    Embeddings.concatenate([embeddings[::2], embeddings[[]]])
    embeddings.to_qdrant()
    embeddings.to_flag()
    queries = make_embeddings(1, len(embeddings))
    if "dense" in embeddings.outputs and embeddings.dense.shape[1] == queries.dense.shape[1]:
        dense_scores(queries.dense, embeddings.dense)
    if "sparse" in embeddings.outputs:
        use_matrix(embeddings.sparse)
    if "multivector" in embeddings.outputs:
        use_vectors(embeddings.multivector)
    if len(embeddings.outputs) == 3:
        HybridSearcher.build(embeddings)


def use_searcher(folder: Path) -> None:
    """Open a searcher, search and append."""
    searcher = HybridSearcher.open(folder)
    for by in BYS:
        searcher.search(make_embeddings(2, 20), k=3, by=by)  # these queries have every token
    searcher.append(make_embeddings(3, 2), ["x", "y"] if searcher.ids.dtype.kind == "U" else [10**6, 10**6 + 1])
    searcher.search(make_embeddings(2, 3))


def use_matrix(matrix: Any) -> None:
    """Score a matrix of lexical weights, on either side."""
    sparse_scores(matrix, matrix)
    sparse_pair_scores(matrix, matrix)


def build_from_matrix(matrix: Any) -> None:
    """Build a searcher of passages with a matrix of lexical weights."""
    passages = make_embeddings(1, matrix.shape[0])
    passages._sparse = matrix
    HybridSearcher.build(passages)


def use_vectors(vectors: MultiVectors) -> None:
    """Score multi-vectors, on either side."""
    multivector_scores(vectors, vectors)
    multivector_pair_scores(vectors, vectors)


def outcome(use: Callable[[Any], None], damaged: Any) -> str:
    """Return the type and message of the error that a use ends in, or nothing."""
    try:
        with np.errstate(all="ignore"):
            use(damaged)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def part_of(path: Path) -> Path:
    """Return where the arrays of what was saved are: the file itself, or the first part of a folder."""
    return path / json.loads((path / INDEX).read_text())["parts"][0] if path.is_dir() else path


def read(place: Path) -> dict[str, Array]:
    return read_npz(place) if place.is_file() else {path.stem: np.load(path) for path in place.glob("*.npy")}


def write(place: Path, arrays: Mapping[str, Array]) -> None:
    """Replace the arrays of an .npz file, or of a part; objects are pickled."""
    if place.is_file():
        np.savez(place, **arrays)  # type: ignore[arg-type]
        return
    for old in place.glob("*.npy"):
        old.unlink()
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)


def use_damaged(path: Path, name: str, change: Change | None) -> str:
    """Change or remove an array of what was saved, return what its use ends in, and undo the change."""
    place = part_of(path)
    arrays = read(place)
    rest = {other: array for other, array in arrays.items() if other != name}
    write(place, rest if change is None else rest | {name: change(arrays[name])})
    try:
        return outcome(use_searcher if path.name == "searcher" else use_embeddings, path)
    finally:
        write(place, arrays)


def use_with_all_damage(path: Path) -> dict[str, str]:
    """Return what the use of what was saved ends in, for every array and every change of it."""
    found = {}
    for name, array in read(part_of(path)).items():
        changes: dict[str, Change | None] = {"missing": None, **ANY, **DAMAGE[name]}
        for how, change in changes.items():
            if change is None or not is_same(change(array), array):
                print(name, how, flush=True)  # the last line names what crashed the process
                found[f"{name}: {how}"] = use_damaged(path, name, change)
    return found


def is_same(found: Array, expected: Array) -> bool:
    return found.dtype == expected.dtype and np.array_equal(found, expected)


def outcomes(use: Callable[[Any], None], damaged: Mapping[str, Any]) -> dict[str, str]:
    """Return what the use of each ends in, in a process of their own."""
    return in_a_process(_outcomes, use, damaged)


def _outcomes(use: Callable[[Any], None], damaged: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, thing in damaged.items():
        print(name, flush=True)
        found[name] = outcome(use, thing)
    return found


def in_a_process(call: Callable[..., T], *arguments: Any) -> T:
    """Return what a call returns in a process of its own, or raise BrokenProcessPool if that crashes."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result(600)
