"""The hub: what is downloaded from it, where its cache is, and why a download failed."""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from bgem3.runtime.checkpoint_files import CheckpointError

# what the system says of a folder or a disk that cannot be written
UNWRITABLE = tuple(
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "EEXIST", "ENOTDIR", "ENAMETOOLONG", "ENOSPC", "EDQUOT", "EFBIG")
)
NO_SPACE = re.compile("no space left|os error 28", re.IGNORECASE)


def is_hub_id(source: str) -> bool:
    """Tell whether a source has the form owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def download(hub_id: str, patterns: Sequence[str], cache_dir: str | Path | None) -> Path:
    """Download the files of a repository that match, and return the snapshot's folder in the hub's cache.

    Where the hub cannot be reached, a snapshot in the cache is returned as it is, be it whole or not.

    Parameters
    ----------
    hub_id : "owner/name"
    patterns : of file names; those in the repository's folders are left out
    cache_dir : the hub's download cache, None for its default

    Raises
    ------
    CheckpointError
        If the repository cannot be had, or the cache cannot be written; the message says why and what to do.
    """
    import huggingface_hub  # half a second to import, and not needed for a local folder

    cache = cache_folder(cache_dir)
    _check_cache(cache)
    failures: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, *_client_errors())
    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub_id, allow_patterns=list(patterns), ignore_patterns="*/*", cache_dir=cache_dir
            )
        )
    except failures as error:
        raise CheckpointError(_explain_failure(hub_id, cache, error)) from error


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Return the hub's cache folder, its default one for None."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE is set, so that nothing is asked of the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def is_unwritable(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it follows from, says that a folder or a disk cannot be written."""
    while error is not None:
        if NO_SPACE.search(str(error)) or (isinstance(error, OSError) and error.errno in UNWRITABLE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_cache(cache: Path) -> None:
    """Raise CheckpointError if the cache cannot be a folder, since a file is there or on the way to it."""
    place = next((place for place in (cache, *cache.absolute().parents) if os.path.exists(place)), cache)
    if os.path.exists(place) and not os.path.isdir(place):
        raise CheckpointError(
            f"the hub's cache {cache} cannot be made: {place} is a file; name another folder as cache_dir (--cache-dir)"
        )


def _client_errors() -> tuple[type[Exception], ...]:
    """Return the kinds of errors of huggingface_hub's HTTP client, which is another library in each of its versions."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind is not Exception)


def _explain_failure(hub_id: str, cache: Path, error: BaseException) -> str:
    import huggingface_hub

    errors = huggingface_hub.errors
    failed = f"cannot download {hub_id} from the hub"
    local = "or give the checkpoint's local folder"
    if is_offline():
        return (
            f"{failed}: it is offline, since HF_HUB_OFFLINE is set, and its cache {cache} holds no snapshot of "
            f"{hub_id}; check the id and the network, download it once without HF_HUB_OFFLINE, name the cache that has "
            f"it as cache_dir (--cache-dir), {local}"
        )
    if is_unwritable(error):
        return (
            f"{failed}: its cache {cache} cannot be written ({error}); free space there, or name another folder as "
            "cache_dir (--cache-dir)"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{failed} ({error}): its owner grants access; accept the terms at https://huggingface.co/{hub_id} and log "
            f"in with `hf auth login`, {local}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{failed} ({error}): there is no such repository, or it is private; check the id, log in with "
            f"`hf auth login` if it is private, {local}"
        )
    return f"{failed} ({error}); check the id and the network, {local}"
