"""Files and folders that appear whole or not at all.

Each is written beside its target under a random temporary name, and takes the target's place in one step. The writer
holds an ``flock`` on what it writes. The next writer of the same target removes temporary files whose lock is free,
because a killed process left them.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = re.compile(
    r"\.bgem3-([0-9a-f]{16})-[0-9a-f]{16}\.(partial|replaced)"
)  # of temporary files; a digest of the target's
FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
NO_REPLACE, EXCHANGE = 1, 2  # renameat2's flags
CURRENT_FOLDER = -100  # AT_FDCWD
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # a write fails so without a file's name


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give an open file whose content replaces that of ``path`` when the block ends, or is removed if the block raises.

    An existing file keeps its mode, and its owner where the system allows it. A link is kept, and the file that it
    points to is replaced. What is no regular file (a device, a pipe) is written to directly.

    Raises
    ------
    OSError
        If the file cannot be written, for instance IsADirectoryError if ``path`` is a folder.
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
        error.filename = str(target)  # nobody asked for the temporary file
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if found:
                _keep_owner_and_mode(descriptor, found)
            os.fsync(descriptor)
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


@contextmanager
def whole_folder(target: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """Give an empty folder that becomes ``target`` when the block ends, or is removed if the block raises.

    A target that exists is exchanged with the new folder in one step where the system can (Linux), and then removed.
    Elsewhere it is renamed first; :func:`recover` restores it if the process is killed before the second rename.

    Parameters
    ----------
    target : the folder to make, in a folder that there is
    may_replace : tells whether what is at a path may be replaced; called only if something is there

    Raises
    ------
    FileExistsError
        If something is at ``target`` that may not be replaced.
    OSError
        If the folder cannot be written.
    """
    target = target.absolute()
    recover(target)
    folder, descriptor = _new_folder(target)
    try:
        yield folder
        sync_tree(folder)
        _put(folder, target, may_replace)
        _sync_folder(target.parent)
    finally:
        remove(folder)  # the new folder if something failed, else what it replaced
        if descriptor is not None:
            os.close(descriptor)


def recover(target: Path) -> None:
    """Remove what killed writers of ``target`` left beside it, and restore a target that they had renamed.

    What a living process writes is left alone, and so is everything where the system has no ``flock``.
    """
    with suppress(OSError):  # nothing to read, or nobody else's to remove: writing then says what is wrong
        for entry in list(os.scandir(target.parent)):
            match = NAME.fullmatch(entry.name)
            if match and match[1] == _digest(target):
                with suppress(OSError):  # another process was faster
                    _recover_one(Path(entry.path), target)


def is_temporary(name: str) -> bool:
    """Return whether a file's name is one that this module gives until the file is whole."""
    return NAME.fullmatch(name) is not None


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder, and its name, is on disk, where the system can."""
    for place, _, names in os.walk(folder):
        for name in names:
            if not os.path.islink(os.path.join(place, name)):
                _sync(Path(place, name))
        _sync_folder(Path(place))
    _sync_folder(folder.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as that is allowed; what is left, the next writer removes."""
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):
            path.chmod(0o700)  # it may have the mode of a read-only target
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _stat(path: Path) -> os.stat_result | None:
    """Return what the system knows of a file, or None if there is none; a link counts as what it points to."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _digest(target: Path) -> str:
    return hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()


def _temporary(target: Path, kind: str) -> Path:
    """Return a random name beside the target; it is short, however long the target's name is."""
    return target.with_name(f".bgem3-{_digest(target)}-{secrets.token_hex(8)}.{kind}")


def _new_file(target: Path) -> tuple[Path, int]:
    """Make a temporary file and lock it; return its path and descriptor."""
    while True:
        path = _temporary(target, "partial")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS, 0o666)
        _lock(descriptor)
        if _is_at(path, descriptor):
            return path, descriptor
        os.close(descriptor)  # another process removed it before it was locked


def _new_folder(target: Path) -> tuple[Path, int | None]:
    """Make a temporary folder and lock it; return its path, and its descriptor where the system has ``flock``."""
    while True:
        path = _temporary(target, "partial")
        path.mkdir()
        if fcntl is None:
            return path, None
        with suppress(FileNotFoundError):  # another process removed it before it was locked
            descriptor = os.open(path, os.O_RDONLY | FLAGS)
            _lock(descriptor)
            if _is_at(path, descriptor):
                return path, descriptor
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock an open file or folder, where the system and the file system can."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _try_lock(descriptor: int) -> bool:
    """Lock an open file or folder, or return False if another process holds it or the file system cannot lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file or folder is the one at a path."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _recover_one(path: Path, target: Path) -> None:
    if fcntl is None:
        return
    if path.is_symlink():  # a replaced target; nothing else here is a link
        _restore_orremove(path, target)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | FLAGS)
    try:
        if _try_lock(descriptor):
            _restore_orremove(path, target)
    finally:
        os.close(descriptor)


def _restore_orremove(path: Path, target: Path) -> None:
    if path.suffix == ".replaced" and not os.path.lexists(target):
        path.rename(target)
    else:
        remove(path)


def _put(folder: Path, target: Path, may_replace: Callable[[Path], bool]) -> None:
    """Give a whole folder the target's name; what was there before is then at ``folder``."""
    refusal = FileExistsError(f"{target} exists and is not overwritten; choose another folder")
    if not os.path.lexists(target):
        with suppress(FileExistsError):  # it has appeared since
            if not _rename(folder, target, NO_REPLACE):
                folder.rename(target)
            return
    if not may_replace(target):
        raise refusal
    if not target.is_symlink():
        folder.chmod(stat.S_IMODE(target.stat().st_mode))
    if not _rename(folder, target, EXCHANGE):
        _replace_in_two_steps(folder, target)
    elif not may_replace(folder):  # something else took the target's place since it was looked at
        _rename(folder, target, EXCHANGE)
        raise refusal


def _replace_in_two_steps(folder: Path, target: Path) -> None:
    replaced = _temporary(target, "replaced")
    descriptor = None if target.is_symlink() or fcntl is None else os.open(target, os.O_RDONLY | FLAGS)
    try:
        if descriptor is not None:
            _try_lock(descriptor)  # so that no other process restores it between the two steps
        target.rename(replaced)
        try:
            folder.rename(target)
        except BaseException:
            replaced.rename(target)
            raise
        replaced.rename(folder)  # from here on it may be removed
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _rename(path: Path, to: Path, flag: int) -> bool:
    """Rename with ``renameat2``, or return False where the system or the file system lacks it."""
    if sys.platform != "linux":
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(CURRENT_FOLDER, os.fsencode(path), CURRENT_FOLDER, os.fsencode(to), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(path), None, str(to))


def _keep_owner_and_mode(descriptor: int, found: os.stat_result) -> None:
    if hasattr(os, "fchown"):
        with suppress(OSError):  # only the system's administrator may give files away
            os.fchown(descriptor, found.st_uid, found.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode))


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where the system can."""
    if os.name == "posix":
        _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file's or folder's content is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)
