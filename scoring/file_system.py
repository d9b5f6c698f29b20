"""Calls to the file system, some of which not every system has: lock, exchange, wait for the disk, remove."""

import errno
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CAN_LOCK = fcntl is not None
FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
NO_REPLACE, EXCHANGE = 1, 2  # flags of Linux's renameat2
CURRENT_FOLDER = -100  # Linux's AT_FDCWD: relative paths start at the current folder
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # the errors of a file system that lacks a call


def lock(descriptor: int) -> None:
    """Wait for the lock of an open file or folder, where the system and the file system can lock."""
    if CAN_LOCK:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder, or return False if another process has locked it or the file system cannot lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file or folder is still the one at a path."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def rename_new(path: Path, to: Path) -> bool:
    """Rename a path or raise FileExistsError if ``to`` exists; return False where this cannot be done in one step."""
    return _renameat2(path, to, NO_REPLACE)


def exchange(path: Path, to: Path) -> bool:
    """Exchange two paths, or return False where this cannot be done in one step."""
    return _renameat2(path, to, EXCHANGE)


def remove(path: Path) -> None:
    """Remove a file, a link or as much of a folder as is allowed; the next writer removes the rest."""
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):
            path.chmod(0o700)  # it may have the mode of a read-only target
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder, and its name, is on disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            if not os.path.islink(os.path.join(place, name)):
                _sync(Path(place, name))
        sync_folder(Path(place))
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where the system can."""
    if os.name == "posix":
        _sync(folder)


def _sync(path: Path) -> None:
    """Wait until the content of a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _renameat2(path: Path, to: Path, flag: int) -> bool:
    """Call Linux's ``renameat2``, or return False where the system or the file system lacks it."""
    if sys.platform != "linux":
        return False
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(CURRENT_FOLDER, os.fsencode(path), CURRENT_FOLDER, os.fsencode(to), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(path), None, str(to))
