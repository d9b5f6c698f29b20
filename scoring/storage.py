"""Named arrays on disk: one .npz file, or a folder of parts that opens memory-mapped. Nothing is pickled.

A folder holds ``index.json`` and one sub-folder of .npy files per part. Parts are written first, under new names;
then ``index.json``, which lists them, is replaced in one step; then parts that are no longer listed are removed. A save
that is stopped at any point leaves what the folder held before. One process may write to a folder at a time.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.array_files import map_npy
from bgem3.scoring.index_file import read_index

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
FORMAT = 1
INDEX = "index.json"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a file beside ``path``, of the same suffix, to write to; it takes its place once it is whole."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        partial.touch()  # a folder that cannot be written to is noticed at once
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_npz(path: Path, arrays: Arrays) -> None:
    """Write arrays to one .npz file, whole or not at all."""
    with whole_file(path) as partial:
        np.savez(partial, **arrays)  # type: ignore[arg-type]


def save_parts(folder: Path, kind: str, parts: Sequence[Arrays | str], facts: Mapping[str, Any]) -> list[str]:
    """Make the folder hold these parts and no others.

    Parameters
    ----------
    folder : made if there is none
    kind : what the parts are, checked by :func:`load_parts`
    parts : arrays to write, or the name of a part that the folder already holds
    facts : kept in ``index.json``; anything that JSON can hold

    Returns
    -------
    The parts' names

    Raises
    ------
    ValueError
        If the folder holds something else.
    """
    if (folder / INDEX).exists():
        read_index(folder / INDEX, kind, FORMAT)
    elif folder.exists() and any(path for path in folder.iterdir() if not path.name.startswith(("part-", "."))):
        raise ValueError(f"{folder} holds other files; save to a new folder, or to one that was saved before")
    folder.mkdir(parents=True, exist_ok=True)
    names = [part if isinstance(part, str) else _write_part(folder, part) for part in parts]
    with whole_file(folder / INDEX) as partial:
        partial.write_text(json.dumps({"format": FORMAT, "kind": kind, "parts": names, **facts}, indent=1) + "\n")
    for old in folder.glob("part-*"):
        if old.name not in names:
            shutil.rmtree(old, ignore_errors=True)  # where a mapped file cannot be removed, the next save does it
    return names


def load_parts(folder: Path, kind: str) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, Any]]:
    """Open a folder's parts memory-mapped, read-only.

    Returns
    -------
    The parts' arrays by name, in their order, and the facts

    Raises
    ------
    FileNotFoundError
        If the folder has no ``index.json``, or a part's file is missing.
    ValueError
        If the folder holds another kind or format, or a file is damaged.
    """
    index = read_index(folder / INDEX, kind, FORMAT)
    parts = {
        name: {path.stem: map_npy(path) for path in sorted((folder / name).glob("*.npy"))} for name in index["parts"]
    }
    return parts, index


def _write_part(folder: Path, arrays: Arrays) -> str:
    name = f"part-{secrets.token_hex(6)}"
    (folder / name).mkdir()
    for array_name, array in arrays.items():
        np.save(folder / name / f"{array_name}.npy", array, allow_pickle=False)
    return name
