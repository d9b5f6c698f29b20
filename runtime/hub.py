"""The Hugging Face hub: downloads from it, its cache, and why a download failed."""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

# what the system reports of a folder or a disk that cannot be written
UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR),
    *(errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
)
NO_SPACE = re.compile("no space left|os error 28", re.IGNORECASE)  # as libraries put it that hide the system's error


class CheckpointError(ValueError):
    """The checkpoint is missing, incomplete, damaged, or not of BGE-M3's form."""


def is_hub_id(source: str) -> bool:
    """Tell whether a source has the form owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def download(hub_id: str, patterns: Sequence[str], cache_dir: str | Path | None) -> Path:
    """Download the matching files of a repository, and return the snapshot's folder in the hub's cache.

    Files in the repository's subfolders are left out. If the hub cannot be reached, the cache's snapshot is returned,
    complete or not. A download that fails raises CheckpointError, which says why and what to do.
    """
    import huggingface_hub  # takes half a second, and local folders do not need it

    cache = Path(huggingface_hub.constants.HF_HUB_CACHE if cache_dir is None else cache_dir)
    _check_cache(cache)
    try:
        folder = huggingface_hub.snapshot_download(
            hub_id, allow_patterns=list(patterns), ignore_patterns="*/*", cache_dir=cache_dir
        )
    except Exception as error:  # the hub's, the system's, or those of whichever HTTP client this version uses
        raise CheckpointError(
            f"cannot download {hub_id} from the hub{_explain_failure(hub_id, cache, error)}"
        ) from error
    return Path(folder)


def explain_snapshot(folder: Path) -> str:
    """Say why a snapshot in the hub's cache may lack files, and what to do."""
    if _is_offline():
        return (
            f": its folder in the hub's cache, {folder}, is not complete, and the hub is offline, since HF_HUB_OFFLINE "
            "is set; download the rest once without HF_HUB_OFFLINE, copy the files there, or give a whole local folder"
        )
    return (
        f" in {folder}: the repository lacks them, or the hub could not be reached and its cache has only a part; "
        "check the id and the network, or give a whole local folder"
    )


def find_snapshots(folder: Path) -> list[Path]:
    """List the snapshots with a config.json below or beside a folder of the hub's cache, that of ``main`` first.

    The folder may be the cache, a repository's folder in it (``models--OWNER--NAME``), or one of the folders in there.
    """
    if folder.name in ("snapshots", "blobs", "refs"):
        folder = folder.parent
    repositories = [folder] if (folder / "snapshots").is_dir() else sorted(folder.glob("models--*"))
    found = []
    for repository in repositories:
        main = repository / "refs" / "main"
        commit = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else ""
        snapshots = [path.parent for path in repository.glob("snapshots/*/config.json")]
        found += sorted(snapshots, key=lambda path: (path.name != commit, path.name))
    return found


def is_unwritable(error: BaseException | None) -> bool:
    """Tell whether an error, or one that caused it, says that a folder or a disk cannot be written."""
    while error is not None:
        if NO_SPACE.search(str(error)) or (isinstance(error, OSError) and error.errno in UNWRITABLE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _check_cache(cache: Path) -> None:
    """Raise CheckpointError if the cache cannot be a folder, because a file is in its place or above it."""
    place = next(place for place in (cache.absolute(), *cache.absolute().parents) if os.path.exists(place))
    if not place.is_dir():
        raise CheckpointError(
            f"the hub's cache {cache} cannot be made: {place} is a file; name another folder as cache_dir (--cache-dir)"
        )


def _explain_failure(hub_id: str, cache: Path, error: Exception) -> str:
    """Say why a download failed and what to do, in the words that follow "cannot download ID from the hub"."""
    from huggingface_hub import errors

    local = "or give the checkpoint's local folder"
    if _is_offline():
        return (
            f": it is offline, since HF_HUB_OFFLINE is set, and its cache {cache} holds no snapshot of {hub_id}; check "
            "the id and the network, download it once without HF_HUB_OFFLINE, name the cache that has it as cache_dir "
            f"(--cache-dir), {local}"
        )
    if is_unwritable(error):
        return (
            f": its cache {cache} cannot be written ({error}); free space there, or name another folder as cache_dir "
            "(--cache-dir)"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f" ({error}): its owner grants access; accept the terms at https://huggingface.co/{hub_id} and log in with "
            f"`hf auth login`, {local}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f" ({error}): there is no such repository, or it is private; check the id, log in with `hf auth login` if "
            f"it is private, {local}"
        )
    return f" ({error}); check the id and the network, {local}"
