"""Damage done to saved arrays, and the error that the use of damaged things ends in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring import Embeddings, HybridSearcher
from bgem3.scoring.array_files import read_npz
from bgem3.scoring.corpus import BYS
from bgem3.scoring.storage import INDEX
from bgem3.scoring.stored_arrays import LARGEST_VOCABULARY
from tests.scoring.corpus import VOCABULARY, make_embeddings

N_TEXTS = 6
Array = NDArray[Any]
Change = Callable[[Array], Array]


def replaced(place: int, value: int) -> Change:
    """Return the function that replaces one value."""
    return lambda array: np.concatenate([array[:place], [value], array[place:][1:]]).astype(array.dtype)


def values(*given: int) -> dict[str, Change]:
    """Return the function that gives these values in the same dtype, whatever there was."""
    return {str(given): lambda array: np.array(given, array.dtype)}


ANY: dict[str, Change] = {
    "strings": lambda array: array.astype("S"),
    "objects": lambda array: array.astype("O"),
    "big-endian": lambda array: array.astype(">c8"),
    "rank 0": lambda array: array.ravel()[0] if array.size else np.array(0, array.dtype),
    "one rank more": lambda array: array[None],
    "an item less": lambda array: array[:-1],
    "no item": lambda array: array[:0],
}
INDEX_DAMAGE: dict[str, Change] = {
    "the largest": lambda array: replaced(0, np.iinfo(array.dtype).max)(array),
    "negative": replaced(1, -1),
    "a million": replaced(0, 10**6),
}
REVERSED: dict[str, Change] = {"reversed": lambda array: array[::-1]}
REPEATED: dict[str, Change] = {"repeated": lambda array: replaced(0, array[1])(array)}
OFFSETS = INDEX_DAMAGE | REVERSED | {
    "from 1": replaced(0, 1),
    "one beyond": lambda array: replaced(len(array) - 1, array[-1] + 1)(array),
    "descending": lambda array: replaced(2, array[-1])(array),
}  # fmt: skip
SHAPES = values(N_TEXTS, -1) | values(N_TEXTS, 3) | values(N_TEXTS, LARGEST_VOCABULARY + 1) | values(2**62, VOCABULARY)
DAMAGE: dict[str, dict[str, Change]] = {
    "sparse_indices": INDEX_DAMAGE | {"the size": replaced(0, VOCABULARY)},
    "sparse_indptr": OFFSETS,
    "sparse_first_seen": INDEX_DAMAGE | REPEATED | REVERSED,
    "sparse_shape": SHAPES,
    "multivector": {"flat": np.ravel},
    "multivector_offsets": OFFSETS,
    "ids": REPEATED | {"another part's": replaced(0, 13)},
    "vocabulary_size": values(-1) | values(3) | values(VOCABULARY + 1) | values(LARGEST_VOCABULARY + 1),
    "posting_tokens": INDEX_DAMAGE | REVERSED | REPEATED,
    "posting_starts": OFFSETS,
    "posting_common_tokens": values(*range(99)),
    "posting_common_weights": {"a passage less": lambda array: array[:, 1:]},
}  # what every loader refuses, beside ANY


def use_embeddings(path: Path) -> None:
    """Load embeddings, convert and search them."""
    embeddings = Embeddings.load(path)
    embeddings.to_qdrant()
    embeddings.to_flag()
    if len(embeddings.outputs) == 3:
        HybridSearcher.build(embeddings).search(make_embeddings(2, 20))  # these queries have every token


def use_searcher(folder: Path) -> None:
    """Open a searcher, search and append."""
    searcher = HybridSearcher.open(folder)
    for by in BYS:
        searcher.search(make_embeddings(2, 20), k=3, by=by)
    searcher.append(make_embeddings(3, 2), [10**6, 10**6 + 1])


def outcome(use: Callable[[Any], object], damaged: Any) -> str:
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


def use_damaged(path: Path, name: str, change: Change | None) -> str:
    """Change or remove an array of what was saved, return what its use ends in, and undo the change."""
    place = part_of(path)
    file = place if place.is_file() else place / f"{name}.npy"
    arrays, before = read(place), file.read_bytes()
    rest = {other: array for other, array in arrays.items() if other != name}
    if file == place:
        np.savez(file, **(rest if change is None else rest | {name: change(arrays[name])}))  # type: ignore[arg-type]
    elif change is None:
        file.unlink()
    else:
        file.unlink()  # it may be mapped
        np.save(file, change(arrays[name]))
    try:
        return outcome(use_searcher if path.name == "searcher" else use_embeddings, path)
    finally:
        file.unlink(missing_ok=True)
        file.write_bytes(before)
