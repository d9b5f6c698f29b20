"""The files of a checkpoint, in a folder or on the hub, and what to do about missing ones. Needs no torch."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from bgem3.runtime.adapters import MERGE, adapter_files, adapter_kind, tensor_names
from bgem3.runtime.artifact import is_artifact, pointer_help, sha256_of
from bgem3.runtime.hub import CheckpointError, download, explain_snapshot, find_snapshots, is_hub_id

HEADS = {"sparse": "sparse_linear.pt", "multivector": "colbert_linear.pt"}
HEAD_FILES = tuple(HEADS.values())
HEADS_FROM = "BAAI/bge-m3"  # most fine-tunes were trained with its heads
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the backbone's file, or of the index of its parts before ``.index.json``. The first one present is read."""

OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".msgpack", ".h5", ".ot", ".gguf")


def find_checkpoint(source: str | Path, cache_dir: str | Path | None = None, heads: Sequence[str] = HEAD_FILES) -> Path:
    """Return the local folder of a whole checkpoint, downloading it if ``source`` is a hub id.

    It must have the files of ``heads``, or their tensors among its weights.

    Raises
    ------
    CheckpointError
        If it is neither a folder nor a model on the hub, a file is missing or a git-lfs pointer, or an adapter lies
        beside the weights.
    """
    is_local = Path(source).is_dir()
    folder = Path(source) if is_local else _download_checkpoint(str(source), heads, cache_dir)
    adapters = _adapter_files(folder)
    if adapters:
        names = ", ".join(path.relative_to(folder).as_posix() for path in adapters[:3])
        raise CheckpointError(f"{source} holds {adapter_kind(adapters)} ({names}); {MERGE}")
    files = checkpoint_files(folder, ())
    advice = "; is it a whole BGE-M3 checkpoint?" if is_local else ""
    _check_present(str(source), folder, [path.name for path in files if not path.is_file()], is_local, advice)
    for path in (*files, *(folder / name for name in heads)):
        _check_pointer(path)
    missing = [name for name in heads if not (folder / name).is_file()]
    missing = [name for name in missing if name not in _stored_heads(folder)]
    _check_present(str(source), folder, missing, is_local, f"; {_ways_without(source, missing)}")
    return folder


def find_heads(source: str | Path, heads: Sequence[str], cache_dir: str | Path | None = None) -> Path:
    """Return the local folder of a checkpoint's heads, or raise CheckpointError if one is missing.

    Only these files are downloaded from the hub.
    """
    is_local = Path(source).is_dir()
    folder = Path(source) if is_local else download(_checked_id(source), heads, cache_dir)
    missing = [name for name in heads if not (folder / name).is_file()]
    _check_present(f"heads_from={str(source)!r}", folder, missing, is_local, "; name a checkpoint that has them")
    for name in heads:
        _check_pointer(folder / name)
    return folder


def checkpoint_files(folder: Path, heads: Sequence[str] = HEAD_FILES) -> list[Path]:
    """List the files that decide what is exported, present or not."""
    return [*(folder / name for name in ("config.json", "tokenizer.json", *heads)), *weight_files(folder)]


def weight_files(folder: Path) -> list[Path]:
    """List the backbone's files: one, or the parts that an index names. An unreadable index raises CheckpointError."""
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if _is_listed(folder / name):
            return [folder / name]
        if _is_listed(index):
            return [folder / part for part in _parts(index)]
    return [folder / WEIGHT_FILES[0]]


def checkpoint_hash(folder: Path) -> str:
    """Return one hex SHA-256 of the names and contents of the checkpoint's files, including those of adapters."""
    digest = hashlib.sha256()
    stored = _stored_heads(folder)
    heads = [name for name in HEAD_FILES if _is_listed(folder / name) or name not in stored]
    for path in [*checkpoint_files(folder, heads), *_adapter_files(folder)]:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _adapter_files(folder: Path) -> list[Path]:
    return adapter_files(folder, checkpoint_files(folder))


def _stored_heads(folder: Path) -> set[str]:
    """Return the heads' files whose tensors are among the weights, as trainers save whole models."""
    names = {f".{name}" for path in weight_files(folder) for name in tensor_names(path)}
    return {file for file in HEAD_FILES if any(name.endswith(f".{Path(file).stem}.weight") for name in names)}


def _download_checkpoint(source: str, heads: Sequence[str], cache_dir: str | Path | None) -> Path:
    hub_id = _checked_id(source)
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


def _parts(index: Path) -> list[str]:
    """Return the names of the files that an index names."""
    _check_pointer(index)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values()))
        is_valid = bool(names) and all(Path(name).name == name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"cannot read {index} as the list of the weights' files ({error!r}); get it again"
        ) from None
    if not is_valid:
        raise CheckpointError(f"{index} names files out of its folder, or none: {names[:3]}; get it again")
    return names


def _is_listed(path: Path) -> bool:
    """Tell whether a folder has an entry of this name, even a link that leads nowhere."""
    return path.is_file() or path.is_symlink()


def _check_pointer(path: Path) -> None:
    """Raise CheckpointError if git-lfs or git-annex left a pointer in place of the file."""
    help_ = pointer_help(path) if path.is_file() else None
    if help_:
        raise CheckpointError(f"{path} {help_.removeprefix('it ')}")


def _check_present(source: str, folder: Path, missing: Sequence[str], is_local: bool, advice: str) -> None:
    """Raise CheckpointError if files are missing; ``advice`` is given where the folder shows no better one."""
    if missing:
        reason = _explain_missing(folder, missing) or ("" if is_local else explain_snapshot(folder)) + advice
        raise CheckpointError(f"{source} has no {' and no '.join(missing)}{reason}")


def _explain_missing(folder: Path, names: Sequence[str]) -> str | None:
    """Say why a folder lacks files, and what to do, in the words that follow "SOURCE has no NAMES"; None if unknown."""
    links = [folder / name for name in names if (folder / name).is_symlink()]
    if links:
        return (
            f": {links[0]} is a link to {links[0].readlink()}, which is not there; get the file (`git annex get`, "
            "`dvc pull`), or copy the checkpoint with what its links lead to"
        )
    if is_artifact(folder):
        return ": it is an exported artifact; give the checkpoint that it was exported from"
    pointers = [name for name in names if (folder / f"{name}.dvc").is_file()]
    if pointers:
        return f", but {pointers[0]}.dvc; run `dvc pull` in {folder}"
    if not (folder / "config.json").is_file() and (snapshots := find_snapshots(folder)):
        found = " or ".join(map(str, snapshots[:3]))
        return f": it is a folder of the hub's cache, not a checkpoint; give the snapshot {found}, or the hub id"
    if "config.json" in names:
        stored = {path.parent for name in WEIGHT_FILES for path in folder.glob(f"*/{name}*")}
        below = sorted(stored & {path.parent for path in folder.glob("*/config.json")})
        return f", but {' and '.join(map(str, below[:3]))} has one; is that the checkpoint?" if below else None
    if "tokenizer.json" in names:
        if not (folder / "sentencepiece.bpe.model").is_file():
            return None
        return (
            ", but sentencepiece.bpe.model; write tokenizer.json with transformers: "
            f"`AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})`"
        )
    if set(names) <= {*WEIGHT_FILES, *HEAD_FILES}:
        return _explain_weights(folder, names)
    return ", which the weights' index names; get the missing files, or the checkpoint again"


def _explain_weights(folder: Path, names: Sequence[str]) -> str | None:
    """Say which other forms of the weights or heads there are, and which form is read."""
    found = sorted(
        path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS and path.name not in HEAD_FILES
    )
    if set(names) <= set(HEAD_FILES):
        stems = {Path(name).stem for name in names}
        found = [name for name in found if Path(name).stem in stems]
        how = f"store each head's weight and bias with torch.save as {' and '.join(names)}"
    else:
        how = "only model.safetensors and pytorch_model.bin, whole or in parts with their index, are read: "
        variants = [re.fullmatch(r"(model|pytorch_model)\.\w+(\.safetensors|\.bin)", name) for name in found]
        variant = next(filter(None, variants), None)
        how += (
            f"rename {variant[0]} to {''.join(variant.groups())} to export it"
            if variant
            else "save the model with transformers' save_pretrained()"
        )
    return f", but {', '.join(found)}; {how}" if found else None


def _ways_without(source: str | Path, missing: Sequence[str]) -> str:
    """Say what a checkpoint without some heads gives, and how to export it all the same."""
    outputs = ["dense", *(output for output, file in HEADS.items() if file not in missing)]
    without = f"export it without them (`bgem3 export CHECKPOINT FOLDER --outputs {' '.join(outputs)}`, {outputs=})"
    others = (
        f"take those of the model that it was tuned from (--heads-from {HEADS_FROM}, heads_from={HEADS_FROM!r}), or "
    )
    return (
        "a checkpoint without its trained heads gives random sparse weights and multi-vectors; "
        f"{'' if str(source) == HEADS_FROM else others}{without}"
    )
