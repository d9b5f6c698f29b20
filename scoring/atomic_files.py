"""Files and folders that appear whole or not at all.

Each is written beside its target under a random temporary name, and takes the target's place in one step. The writer
locks what it writes with ``flock``. The next writer of the same target removes temporary files that nobody has locked,
because killed processes left them.
"""

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bgem3.scoring.file_system import (
    CAN_LOCK,
    FLAGS,
    exchange,
    is_at,
    lock,
    remove,
    rename_new,
    sync_folder,
    sync_tree,
    try_lock,
)

TEMPORARY = re.compile(r"\.bgem3-([0-9a-f]{16})-[0-9a-f]{16}\.(partial|replaced)")  # digest of the target's name
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # errors of writes, which name no file


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends, or is removed if the block raises.

    An existing file keeps its mode, and its owner where the system allows it. A link is kept, and the file that it
    points to is replaced. A device or a pipe is written to directly. If writing fails, OSError names ``path``.
    """
    try:
        with _whole_file(path) as file:
            yield file
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    found = _stat(path)
    if found and stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if found and not stat.S_ISREG(found.st_mode):
        with path.open("wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    recover(target)
    try:
        partial, descriptor = _new_file(target)
    except OSError as error:
        error.filename = str(target)  # the user knows nothing of the temporary file
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if found:
                _keep_owner_and_mode(descriptor, found)
            os.fsync(descriptor)
            if not CAN_LOCK:
                file.close()  # Windows cannot rename an open file
            os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


@contextmanager
def whole_folder(target: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Create an empty folder that becomes ``target`` when the block ends, or is removed if the block raises.

    On Linux, an existing target is exchanged with the new folder in one step and then removed. Elsewhere it is first
    renamed. If the process is killed before the second rename, :func:`recover` restores it. Something at the target's
    path for which ``may_replace`` returns False stays, and FileExistsError is raised.
    """
    target = target.absolute()
    recover(target)
    folder, descriptor = _new_folder(target)
    try:
        yield folder
        sync_tree(folder)
        _put(folder, target, may_replace)
        sync_folder(target.parent)
    finally:
        remove(folder)  # the new folder after an error, otherwise the old one
        if descriptor is not None:
            os.close(descriptor)


def recover(target: Path) -> None:
    """Remove what killed writers of ``target`` left beside it, and restore a target that they had renamed.

    Files that a living process writes stay, and so do all files where the system has no ``flock``.
    """
    with suppress(OSError):  # the folder cannot be read, or the files belong to others; writing reports the cause
        for entry in list(os.scandir(target.parent)):
            match = TEMPORARY.fullmatch(entry.name)
            if match and match[1] == _digest(target):
                with suppress(OSError):  # another process was faster
                    _recover_one(Path(entry.path), target)


def is_temporary(name: str) -> bool:
    """Return whether a file's name is a temporary name of this module."""
    return TEMPORARY.fullmatch(name) is not None


def _stat(path: Path) -> os.stat_result | None:
    """Return the status of a file, or None if there is none; a link counts as the file that it points to."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _digest(target: Path) -> str:
    return hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()


def _temporary(target: Path, kind: str) -> Path:
    """Return a random path beside the target; its name is short however long the target's name is."""
    return target.with_name(f".bgem3-{_digest(target)}-{secrets.token_hex(8)}.{kind}")


def _new_file(target: Path) -> tuple[Path, int]:
    """Create and lock a temporary file; return its path and descriptor."""
    while True:
        path = _temporary(target, "partial")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, 0o666)
        lock(descriptor)
        if is_at(path, descriptor):
            return path, descriptor
        os.close(descriptor)  # another process removed the file before it was locked


def _new_folder(target: Path) -> tuple[Path, int | None]:
    """Create and lock a temporary folder; return its path, and its descriptor where the system has ``flock``."""
    while True:
        path = _temporary(target, "partial")
        path.mkdir()
        if not CAN_LOCK:
            return path, None
        with suppress(FileNotFoundError):  # another process removed the folder before it was locked
            descriptor = os.open(path, os.O_RDONLY | FLAGS)
            lock(descriptor)
            if is_at(path, descriptor):
                return path, descriptor
            os.close(descriptor)


def _recover_one(path: Path, target: Path) -> None:
    """Restore or remove a temporary file unless a living process has locked it."""
    if not CAN_LOCK:
        return
    if path.is_symlink():  # only a replaced target can be a link
        _restore_or_remove(path, target)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | FLAGS)
    try:
        if try_lock(descriptor):
            _restore_or_remove(path, target)
    finally:
        os.close(descriptor)


def _restore_or_remove(path: Path, target: Path) -> None:
    if path.suffix == ".replaced" and not os.path.lexists(target):
        path.rename(target)
    else:
        remove(path)


def _put(folder: Path, target: Path, may_replace: Callable[[Path], bool]) -> None:
    """Rename a finished folder to the target's name; an existing target ends up at ``folder``."""
    refusal = FileExistsError(f"{target} exists and is not overwritten; choose another folder")
    if not os.path.lexists(target):
        with suppress(FileExistsError):  # another process has just created it
            if not rename_new(folder, target):
                folder.rename(target)
            return
    if not may_replace(target):
        raise refusal
    if not target.is_symlink():
        folder.chmod(stat.S_IMODE(target.stat().st_mode))
    if not exchange(folder, target):
        _replace_in_two_steps(folder, target)
    elif not may_replace(folder):  # after the check above, something else took the target's place
        exchange(folder, target)
        raise refusal


def _replace_in_two_steps(folder: Path, target: Path) -> None:
    """Replace the target where two paths cannot be exchanged; the target ends up at ``folder``."""
    replaced = _temporary(target, "replaced")
    descriptor = None if target.is_symlink() or not CAN_LOCK else os.open(target, os.O_RDONLY | FLAGS)
    try:
        if descriptor is not None:
            try_lock(descriptor)  # so that no other process restores the target between the two steps
        target.rename(replaced)
        try:
            folder.rename(target)
        except BaseException:
            replaced.rename(target)
            raise
        replaced.rename(folder)  # under this name it may be removed
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _keep_owner_and_mode(descriptor: int, found: os.stat_result) -> None:
    if hasattr(os, "fchown"):
        with suppress(OSError):  # only the system's administrator may give files away
            os.fchown(descriptor, found.st_uid, found.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode))
