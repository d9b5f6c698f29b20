"""Folders of parts, each a set of named arrays, that open memory-mapped and are replaced in one step.

A folder has ``index.json`` and a sub-folder of .npy files per part. A save writes new parts under new names, replaces
``index.json``, which lists the parts, in one step, and removes the parts that it no longer lists.

``.bgem3.unlisted`` names the parts that a save adds and removes. If the save is stopped, the next save removes the
parts that this file names and ``index.json`` does not list, and nothing else.

A process locks ``.bgem3.lock`` while it saves. Readers need no lock: if ``index.json`` has changed while they opened
the parts, they open them again.
"""

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from numpy.typing import NDArray

from bgem3.scoring.array_files import Arrays, map_npy, write_npy
from bgem3.scoring.atomic_files import is_temporary, whole_file
from bgem3.scoring.file_system import remove, sync_tree
from bgem3.scoring.index_file import PART, VERSION, read_index

INDEX, LOCK, UNLISTED = "index.json", ".bgem3.lock", ".bgem3.unlisted"
N_TRIES = 1000  # attempts to read or lock a folder that other processes keep changing; far more than ever needed


@contextmanager
def locked_folder(folder: Path, kind: str) -> Iterator[Path]:
    """Lock a folder, made if there is none, so that other processes and threads wait to save to it.

    The block gets the folder's real path, with all links followed. If the block raises before the folder's first save,
    the folder is restored. A folder with something else raises ValueError.
    """
    folder = Path(os.path.realpath(folder))
    is_new, is_unlocked = not folder.exists(), not (folder / LOCK).exists()
    try:
        _check_folder(folder, kind)
    except ValueError:
        if not (folder / LOCK).exists():  # otherwise another process may be making its first save
            raise
    lock = _lock(folder)
    try:
        _check_folder(folder, kind)
        yield folder
    except BaseException:
        if is_unlocked and not (folder / INDEX).exists():
            with suppress(OSError):  # Windows cannot remove an open file; a folder with files stays
                (folder / LOCK).unlink()
                if is_new:
                    folder.rmdir()
        raise
    finally:
        lock.release()


def save_parts(
    folder: Path, kind: str, parts: Sequence[Arrays | str], facts: Mapping[str, Any], known: Sequence[str] | None = None
) -> None:
    """Replace the parts of a folder; call it inside :func:`locked_folder`.

    A part is given by its arrays, or by its name if the folder has it already. ``facts`` are further values for
    ``index.json``. If the save fails, the new files are removed.

    Raises
    ------
    RuntimeError
        If ``known`` is given and the folder has other parts than these.
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
        index = {"format": VERSION, "kind": kind, "parts": names, **facts}
        with whole_file(folder / INDEX) as file:
            file.write((json.dumps(index, indent=1) + "\n").encode())
    finally:
        _remove_unlisted(folder, _listed(folder, kind))


def load_parts(folder: Path, kind: str) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, Any]]:
    """Return the memory-mapped arrays of a folder's parts, by part and name, and the values of ``index.json``.

    While other processes save, the result is the state before or after a save, never a mixture.

    Raises
    ------
    FileNotFoundError
        If the folder has no ``index.json``, or a part is missing.
    ValueError
        If the folder has another kind or format, or a file is damaged.
    RuntimeError
        If the folder changed on every attempt.
    """
    for _ in range(N_TRIES):
        index = read_index(folder / INDEX, kind)
        error: Exception | None = None
        try:
            parts = {name: _map_part(folder / name) for name in index["parts"]}
        except (OSError, ValueError) as caught:
            error = caught
        if read_index(folder / INDEX, kind) == index:  # otherwise a save may have removed parts before they were mapped
            if error is not None:
                raise error
            return parts, index
    raise RuntimeError(f"{folder} could not be opened: it was saved {N_TRIES} times meanwhile; try again")


def _check_folder(folder: Path, kind: str) -> None:
    """Raise ValueError or OSError if a save to the folder could harm other files in it."""
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, "this is no folder; save to a new one", str(folder))
    if os.path.lexists(folder / INDEX):
        read_index(folder / INDEX, kind)
        return
    own = {LOCK, UNLISTED, *_noted(folder)}  # a first save that was stopped leaves these
    others = sorted(path.name for path in folder.iterdir() if path.name not in own and not is_temporary(path.name))
    if others:
        names = ", ".join(map(repr, others[:3])) + (", ..." if len(others) > 3 else "")
        raise ValueError(
            f"{folder} holds other files ({names}) and no {INDEX}; save to a new folder, or to one saved before"
        )


def _lock(folder: Path) -> FileLock:
    """Lock a folder for saving; create it again if another process, whose first save failed, removes it."""
    for _ in range(N_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            # every user who may write to the folder may lock it
            lock = FileLock(folder / LOCK, mode=folder.stat().st_mode & 0o666)
            lock.acquire()
            return lock
    raise FileNotFoundError(f"{folder} was removed {N_TRIES} times before it could be locked; try again")


def _listed(folder: Path, kind: str) -> list[str]:
    """Return the names of the parts that a folder's index lists; none if there is no index."""
    return list(read_index(folder / INDEX, kind)["parts"]) if (folder / INDEX).exists() else []


def _noted(folder: Path) -> list[str]:
    """Return the names of the parts that an unfinished save was adding or removing."""
    path = folder / UNLISTED
    if path.is_symlink() or not path.is_file():
        return []
    return [name for name in path.read_text(encoding="utf-8", errors="replace").split("\n") if PART.fullmatch(name)]


def _remove_unlisted(folder: Path, listed: Sequence[str]) -> list[str]:
    """Remove the noted parts that are not listed; return the parts left, such as mapped files on Windows."""
    noted = [name for name in _noted(folder) if name not in listed]
    for name in noted:
        remove(folder / name)
    left = [name for name in noted if (folder / name).exists()]
    if not left:
        (folder / UNLISTED).unlink(missing_ok=True)
    return left


def _write_part(folder: Path, arrays: Arrays) -> None:
    """Write the arrays of a part to a new sub-folder, and wait until they are on disk."""
    folder.mkdir()
    for name, array in arrays.items():
        write_npy(folder / f"{name}.npy", array)
    sync_tree(folder)


def _map_part(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the memory-mapped arrays of a part by name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing, but {INDEX} lists it; save everything again to a new folder")
    return {path.stem: map_npy(path) for path in sorted(folder.glob("*.npy"))}
