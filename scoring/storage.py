"""Named arrays on disk: one .npz file, or a folder of parts that opens memory-mapped. Nothing is pickled.

A folder holds ``index.json`` and one sub-folder of .npy files per part. A save writes new parts under new names. It
then replaces ``index.json``, which lists the parts, in one step, and removes the parts that are no longer listed.
``.bgem3.unlisted`` names the parts that a save adds and removes. If the save is stopped, the next one removes those
parts that the note names and ``index.json`` does not list, and nothing else. A process locks ``.bgem3.lock`` while it
saves. Readers need no lock: if ``index.json`` has changed while they opened the parts, they open them again.
"""

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from bgem3.scoring.array_files import map_npy
from bgem3.scoring.atomic_files import is_temporary, remove, sync_tree, whole_file
from bgem3.scoring.index_file import PART, read_index

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
FORMAT = 1
INDEX, LOCK, UNLISTED = "index.json", ".bgem3.lock", ".bgem3.unlisted"
N_TRIES = 1000  # times that a folder is read or locked anew because another process changed it meanwhile


def save_npz(path: Path, arrays: Arrays) -> None:
    """Write arrays to one .npz file, whole or not at all."""
    with whole_file(path) as file:
        write_npz(file, arrays)


def write_npz(file: BinaryIO, arrays: Arrays) -> None:
    """Write arrays to an open file in the .npz format."""
    np.savez(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def locked_folder(folder: Path, kind: str) -> Iterator[Path]:
    """Make a folder if there is none, and keep other processes and threads from saving to it until the block ends.

    The block gets the folder's real path, with all links followed. If it raises before anything was ever saved there,
    the folder is left as it was found.

    Raises
    ------
    ValueError
        If the folder holds something else.
    OSError
        If it is no folder, or cannot be made or written to.
    """
    folder = Path(os.path.realpath(folder))
    is_new, is_unlocked = not folder.exists(), not (folder / LOCK).exists()
    try:
        _check_folder(folder, kind)
    except ValueError:
        if not (folder / LOCK).exists():  # else another process may be saving there for the first time
            raise
    lock = _lock(folder)
    try:
        _check_folder(folder, kind)
        yield folder
    except BaseException:
        if is_unlocked and not (folder / INDEX).exists():
            with suppress(OSError):  # Windows removes no open file; a folder that is not empty stays
                (folder / LOCK).unlink()
                if is_new:
                    folder.rmdir()
        raise
    finally:
        lock.release()


def save_parts(
    folder: Path, kind: str, parts: Sequence[Arrays | str], facts: Mapping[str, Any], known: Sequence[str] | None = None
) -> list[str]:
    """Make a folder hold these parts and no others; call it in a block of :func:`locked_folder`.

    Parameters
    ----------
    folder : a locked folder
    kind : what the parts are, checked by :func:`load_parts`
    parts : arrays to write, or the name of a part that the folder already holds
    facts : kept in ``index.json``; anything that JSON can hold
    known : the parts that the folder must hold, if it holds any; None if they may be any

    Returns
    -------
    The parts' names

    Raises
    ------
    RuntimeError
        If the folder holds other parts than those known.
    OSError
        If the disk is full or not writable. What was written is removed.
    """
    listed = _listed(folder, kind)
    if known is not None and listed and listed != list(known):
        raise RuntimeError(
            f"{folder} no longer holds the {kind} that was opened or saved here: another save has replaced it. Nothing "
            "was written; open it again and repeat the change, or save to another folder"
        )
    left = _remove_unlisted(folder, listed)
    names = [part if isinstance(part, str) else f"part-{secrets.token_hex(6)}" for part in parts]
    unlisted = [*left, *(name for name in (*names, *listed) if (name in names) != (name in listed))]
    if unlisted:
        with whole_file(folder / UNLISTED) as file:
            file.write("".join(f"{name}\n" for name in unlisted).encode())
    try:
        for name, part in zip(names, parts, strict=True):
            if not isinstance(part, str):
                _write_part(folder / name, part)
        index = {"format": FORMAT, "kind": kind, "parts": names, **facts}
        with whole_file(folder / INDEX) as file:
            file.write((json.dumps(index, indent=1) + "\n").encode())
    finally:
        _remove_unlisted(folder, _listed(folder, kind))
    return names


def load_parts(folder: Path, kind: str) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, Any]]:
    """Open a folder's parts memory-mapped, read-only. While others save, they are those before or after a save, whole.

    Returns
    -------
    The parts' arrays by name, in their order, and the facts

    Raises
    ------
    FileNotFoundError
        If the folder has no ``index.json``, or a part is missing.
    ValueError
        If the folder holds another kind or format, or a file is damaged.
    RuntimeError
        If the folder changes all the time.
    """
    for _ in range(N_TRIES):
        index = _read_index(folder, kind)
        error: Exception | None = None
        try:
            parts = {name: _map_part(folder / name) for name in index["parts"]}
        except (OSError, ValueError) as caught:
            error = caught
        if _read_index(folder, kind) == index:  # else a save may have removed parts before they were mapped
            if error is not None:
                raise error
            return parts, index
    raise RuntimeError(f"{folder} could not be opened: it was saved {N_TRIES} times meanwhile; try again")


def _check_folder(folder: Path, kind: str) -> None:
    """Raise ValueError or OSError if a save to the folder could harm what is there."""
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, "this is no folder; save to a new one", str(folder))
    if os.path.lexists(folder / INDEX):
        _read_index(folder, kind)
        return
    ours = {LOCK, UNLISTED, *_noted(folder)}  # left by a first save that was stopped
    others = sorted(path.name for path in folder.iterdir() if path.name not in ours and not is_temporary(path.name))
    if others:
        names = ", ".join(map(repr, others[:3])) + (", ..." if len(others) > 3 else "")
        raise ValueError(
            f"{folder} holds other files ({names}) and no {INDEX}; save to a new folder, or to one saved before"
        )


def _lock(folder: Path) -> FileLock:
    """Lock a folder for saving; made anew if another process, whose first save failed, removes it meanwhile."""
    for _ in range(N_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            lock = FileLock(folder / LOCK, mode=folder.stat().st_mode & 0o666)  # for all who may write to the folder
            lock.acquire()
            return lock
    raise FileNotFoundError(f"{folder} was removed {N_TRIES} times while it was to be locked")


def _listed(folder: Path, kind: str) -> list[str]:
    """Return the names of the parts that a folder's index lists; none if it has no index."""
    return list(_read_index(folder, kind)["parts"]) if (folder / INDEX).exists() else []


def _noted(folder: Path) -> list[str]:
    """Return the names of the parts that a save which did not end was to add or remove."""
    path = folder / UNLISTED
    if path.is_symlink() or not path.is_file():
        return []
    return [name for name in path.read_text(encoding="utf-8", errors="replace").split("\n") if PART.fullmatch(name)]


def _remove_unlisted(folder: Path, listed: Sequence[str]) -> list[str]:
    """Remove the noted parts that are not listed; return those that cannot be removed, as mapped files on Windows."""
    noted = [name for name in _noted(folder) if name not in listed]
    for name in noted:
        remove(folder / name)
    left = [name for name in noted if (folder / name).exists()]
    if not left:
        (folder / UNLISTED).unlink(missing_ok=True)
    return left


def _write_part(folder: Path, arrays: Arrays) -> None:
    folder.mkdir()
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("xb") as file:
            # given the file itself, NumPy writes with C's stdio and overlooks a full disk
            np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)
    sync_tree(folder)


def _map_part(folder: Path) -> dict[str, NDArray[Any]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing, but {INDEX} lists it; save the whole again to a new folder")
    return {path.stem: map_npy(path) for path in sorted(folder.glob("*.npy"))}


def _read_index(folder: Path, kind: str) -> dict[str, Any]:
    return read_index(folder / INDEX, kind, FORMAT)
