"""Where a checkpoint's files are: a folder, or the hub. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path

from bgem3.runtime.checkpoint_files import (
    HEAD_FILES,
    CheckpointError,
    check_adapters,
    check_pointer,
    checkpoint_files,
    checkpoint_hash,
    explain_missing,
    missing_heads,
    weight_files,
)
from bgem3.runtime.hub import download, is_hub_id, is_offline

__all__ = ["HEAD_FILES", "CheckpointError", "checkpoint_files", "checkpoint_hash", "find_checkpoint", "find_heads"]

HEADS_FROM = "BAAI/bge-m3"  # whose heads most fine-tunes were trained with
WHOLE = "; is it a whole BGE-M3 checkpoint?"


def find_checkpoint(source: str | Path, cache_dir: str | Path | None = None, heads: Sequence[str] = HEAD_FILES) -> Path:
    """Return the local folder of a whole checkpoint, downloading it if ``source`` is a hub id.

    Parameters
    ----------
    source : a folder, or a hub id such as "BAAI/bge-m3"
    cache_dir : the hub's download cache, None for its default
    heads : the files of the heads that it must have, here or as tensors among its weights

    Raises
    ------
    CheckpointError
        If it is neither a folder nor a model on the hub (or in the hub's local cache, when offline), a file is missing
        or a git-lfs pointer, or an adapter lies beside the weights. Heads count as files: without them, sparse weights
        and multi-vectors are random.
    """
    is_folder = Path(source).is_dir()
    folder = Path(source) if is_folder else _download_checkpoint(str(source), heads, cache_dir)
    check_adapters(folder, str(source))
    files = checkpoint_files(folder, ())
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        reason = explain_missing(folder, missing) or (WHOLE if is_folder else _explain_snapshot(folder))
        raise CheckpointError(f"{source} has no {' and no '.join(missing)}{reason}")
    for path in (*files, *(folder / name for name in heads)):
        check_pointer(path)
    headless = missing_heads(folder, heads)
    if headless:
        found = f"{source} has no {' and no '.join(headless)}"
        explained = explain_missing(folder, headless)
        if explained:
            raise CheckpointError(f"{found}{explained}")
        place = "" if is_folder else _explain_snapshot(folder)
        raise CheckpointError(f"{found}{place}; {_ways_without(source, headless)}")
    return folder


def find_heads(source: str | Path, heads: Sequence[str], cache_dir: str | Path | None = None) -> Path:
    """Return the local folder with the given heads' files of a checkpoint; of a hub id, only these are downloaded.

    Raises
    ------
    CheckpointError
        If ``source`` is neither a folder nor a model on the hub, or lacks one of the files.
    """
    is_folder = Path(source).is_dir()
    folder = Path(source) if is_folder else download(_checked_id(source), heads, cache_dir)
    missing = [name for name in heads if not (folder / name).is_file()]
    if missing:
        place = "" if is_folder else _explain_snapshot(folder)
        reason = explain_missing(folder, missing) or f"{place}; name a checkpoint that has them"
        raise CheckpointError(f"heads_from={str(source)!r} has no {' and no '.join(missing)}{reason}")
    for name in heads:
        check_pointer(folder / name)
    return folder


def _download_checkpoint(hub_id: str, heads: Sequence[str], cache_dir: str | Path | None) -> Path:
    _checked_id(hub_id)
    folder = Path()
    for weights in ("model*.safetensors", "pytorch_model*.bin"):
        folder = download(hub_id, ["*.json", *heads, weights], cache_dir)
        if any(path.is_file() for path in weight_files(folder)):
            break
    return folder


def _checked_id(source: str | Path) -> str:
    """Return a hub id, or raise CheckpointError if it has another form."""
    path = Path(source)
    if path.is_file():
        raise CheckpointError(f"{source} is a file; give the checkpoint's folder, {path.parent}")
    if path.is_symlink():
        raise CheckpointError(f"{source} is a link to {path.readlink()}, which is not there; check the path")
    name, _, revision = str(source).rpartition("@")
    if is_hub_id(name):
        raise CheckpointError(
            f"{source} names a revision, which is not taken; download it (`hf download {name} --revision {revision}`) "
            "and give the folder that this prints"
        )
    if not is_hub_id(str(source)):
        raise CheckpointError(
            f"{source} is neither a folder nor a hub id of the form owner/name; check the path, or use 'BAAI/bge-m3'"
        )
    return str(source)


def _explain_snapshot(folder: Path) -> str:
    """Say why files may be missing from a snapshot in the hub's cache, and what to do."""
    if is_offline():
        return (
            f": its folder in the hub's cache, {folder}, is not whole, and the hub is offline, since HF_HUB_OFFLINE is "
            "set; download the rest once without HF_HUB_OFFLINE, copy the files there, or give a whole local folder"
        )
    return (
        f" in {folder}: the repository lacks them, or the hub could not be reached and its cache has only a part; "
        "check the id and the network, or give a whole local folder"
    )


def _ways_without(source: str | Path, missing: Sequence[str]) -> str:
    """Say what a checkpoint without some heads gives, and how to export it all the same."""
    outputs = [
        "dense",
        *(output for output, file in zip(("sparse", "multivector"), HEAD_FILES, strict=True) if file not in missing),
    ]
    ways = [
        f"export it without them (`bgem3 export CHECKPOINT FOLDER --outputs {' '.join(outputs)}`, outputs={outputs})"
    ]
    if str(source) != HEADS_FROM:
        ways.insert(
            0, f"take those of the model that it was tuned from (--heads-from {HEADS_FROM}, heads_from={HEADS_FROM!r})"
        )
    return f"a checkpoint without its trained heads gives random sparse weights and multi-vectors; {', or '.join(ways)}"
