"""The files of a checkpoint, and the explanation of what a folder lacks. Needs no torch."""

import hashlib
import json
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bgem3.runtime.artifact import is_artifact, pointer_help, sha256_of

HEAD_FILES = ("sparse_linear.pt", "colbert_linear.pt")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""The backbone's file, or the name before ``.index.json`` of the list of its parts; the first that is there is read."""

LONGEST_HEADER = 1 << 26  # bytes; a safetensors header of BGE-M3 has 50 kB
ADAPTER_FILES = ("adapter_config.*", "adapter_model.*", "adapter_model-*", "pytorch_adapter.*")
ADAPTER_TENSOR = re.compile(
    r"(^|\.)(lora_|ia3_|hada_|lokr_|oft_|boft_|vera_|vblora_|fourierft_|adapters\.|base_layer\.|modules_to_save\.)"
)
TENSOR_SUFFIXES = (".safetensors", ".bin", ".pt")
ADAPTER_DEPTHS = ("", "*/", "*/*/")  # a trainer's checkpoint-500/, or adapters/NAME/
MERGE = (
    "merge it first: load the base model and the adapter with peft, call merge_and_unload(), and save the result with "
    "save_pretrained() to a new folder, beside tokenizer.json and the heads. Move the adapter's files out of the "
    "folder if the weights have been merged already"
)
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".msgpack", ".h5", ".ot", ".gguf")


class CheckpointError(ValueError):
    """The checkpoint is missing, incomplete, damaged, or not of BGE-M3's form."""


def checkpoint_files(folder: Path, heads: Sequence[str] = HEAD_FILES) -> list[Path]:
    """List the files that decide what is exported, the given heads' among them, whether they are there or not."""
    names = ("config.json", "tokenizer.json", *heads)
    return [*(folder / name for name in names), *weight_files(folder)]


def weight_files(folder: Path) -> list[Path]:
    """List the backbone's files: one, or the parts that an index names.

    Raises
    ------
    CheckpointError
        If the index cannot be read.
    """
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if _is_listed(folder / name):
            return [folder / name]
        if _is_listed(index):
            return [folder / part for part in _parts(index)]
    return [folder / WEIGHT_FILES[0]]


def checkpoint_hash(folder: Path) -> str:
    """Return one hex SHA-256 over the names and contents of the checkpoint's files, an adapter's included."""
    digest = hashlib.sha256()
    stored = weight_heads(folder)
    heads = [name for name in HEAD_FILES if _is_listed(folder / name) or name not in stored]
    for path in [*checkpoint_files(folder, heads), *adapter_files(folder)]:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def adapter_files(folder: Path) -> list[Path]:
    """List the files of adapters (PEFT's, such as LoRA) in a folder, and, of a checkpoint, in two levels below it."""
    depths = ADAPTER_DEPTHS if (folder / "config.json").is_file() else ADAPTER_DEPTHS[:1]
    patterns = [f"{depth}{name}" for depth in depths for name in ADAPTER_FILES]
    found = {path for pattern in patterns for path in folder.glob(pattern) if _is_listed(path)}
    read = {*weight_files(folder), *(folder / name for name in HEAD_FILES)}  # in which export looks for adapters itself
    others = {path for depth in depths for path in folder.glob(f"{depth}*") if path.suffix in TENSOR_SUFFIXES} - read
    return sorted(found | {path for path in others if any(map(_is_lora, _tensor_names(path)))})


def _is_lora(name: str) -> bool:
    return ADAPTER_TENSOR.search(name) is not None and re.search(r"lora_\w+\.(\w+\.)?weight$", name) is not None


def weight_heads(folder: Path) -> set[str]:
    """Return the head files whose layer the backbone's files hold, as whole models do that a trainer saves."""
    names = {name for path in weight_files(folder) for name in _tensor_names(path)}
    ends = {file: f"{file.removesuffix('.pt')}.weight" for file in HEAD_FILES}
    return {file for file, end in ends.items() if any(f".{name}".endswith(f".{end}") for name in names)}


def missing_heads(folder: Path, heads: Sequence[str]) -> list[str]:
    """Return the heads' files that are not there, and whose layers the weights do not hold."""
    missing = [name for name in heads if not (folder / name).is_file()]
    stored = weight_heads(folder) if missing else set()
    return [name for name in missing if name not in stored]


def check_adapters(folder: Path, source: str) -> None:
    """Raise CheckpointError if a folder holds an adapter."""
    adapters = adapter_files(folder)
    if adapters:
        names = ", ".join(path.relative_to(folder).as_posix() for path in adapters[:3])
        raise CheckpointError(f"{source} holds {_adapter_kind(adapters)} ({names}); {MERGE}")


def check_pointer(path: Path) -> None:
    """Raise CheckpointError if a file is what git leaves in the place of one that git-lfs or git-annex keeps."""
    help_ = pointer_help(path) if path.is_file() else None
    if help_:
        raise CheckpointError(f"{path} {help_.removeprefix('it ')}")


def explain_missing(folder: Path, names: Sequence[str]) -> str | None:
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
    snapshots = [] if (folder / "config.json").is_file() else hub_snapshots(folder)
    if snapshots:
        found = " or ".join(str(path) for path in snapshots[:3])
        return f": it is a folder of the hub's cache, not a checkpoint; give the snapshot {found}, or the hub id"
    if "config.json" in names:
        return _explain_place(folder)
    if "tokenizer.json" in names:
        return _explain_tokenizer(folder)
    if set(names) & set(WEIGHT_FILES):
        return _explain_weights(folder)
    if set(names) & set(HEAD_FILES):
        return _explain_heads(folder, names)
    return ", which the weights' index names; get the missing files, or the checkpoint again"


def _explain_place(folder: Path) -> str | None:
    names = (*WEIGHT_FILES, *(f"{name}.index.json" for name in WEIGHT_FILES))
    candidates = sorted(path.parent for path in folder.glob("*/config.json"))
    below = [place for place in candidates if any(_is_listed(place / name) for name in names)]
    if below:
        return f", but {' and '.join(str(path) for path in below[:3])} has one; is that the checkpoint?"
    return None


def _explain_tokenizer(folder: Path) -> str | None:
    if not (folder / "sentencepiece.bpe.model").is_file():
        return None
    return (
        ", but sentencepiece.bpe.model; write tokenizer.json with transformers: "
        f"`AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})`"
    )


def _explain_heads(folder: Path, names: Sequence[str]) -> str | None:
    """Say which other forms of the heads there are, and how to store them as they are read."""
    stems = [name.removesuffix(".pt") for name in names]
    other = sorted(
        path.name for path in folder.iterdir() if path.stem in stems and path.suffix in OTHER_WEIGHTS and path.is_file()
    )
    if not other:
        return None
    return f", but {', '.join(other)}; store each head's weight and bias with torch.save as {' and '.join(names)}"


def _explain_weights(folder: Path) -> str | None:
    """Say which weights there are instead."""
    other = sorted(
        path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS and path.name not in HEAD_FILES
    )
    if not other:
        return None
    expected = "only model.safetensors and pytorch_model.bin, whole or in parts with their index, are read"
    variants = [re.fullmatch(r"(model|pytorch_model)\.\w+(\.safetensors|\.bin)", name) for name in other]
    for variant in filter(None, variants):
        name = "".join(variant.groups())
        return f", but {', '.join(other)}; {expected}: rename {variant[0]} to {name} to export it"
    return f", but {', '.join(other)}; {expected}: save the model with transformers' save_pretrained()"


def hub_snapshots(folder: Path) -> list[Path]:
    """List the snapshots with a config.json near a folder of the hub's cache: below it, or beside it.

    The folder may be the cache itself, a repository's folder in it (``models--OWNER--NAME``), or one of the folders
    in there. The snapshot that the branch ``main`` names comes first.
    """
    if folder.name in ("snapshots", "blobs", "refs"):
        folder = folder.parent
    repositories = [folder] if (folder / "snapshots").is_dir() else sorted(folder.glob("models--*"))
    found = []
    for repository in repositories:
        main = _read_text(repository / "refs" / "main").strip()
        snapshots = [path.parent for path in repository.glob("snapshots/*/config.json")]
        found += sorted(snapshots, key=lambda path: (path.name != main, path.name))
    return found


def _is_listed(path: Path) -> bool:
    """Tell whether a folder has an entry of this name, be it a link that leads nowhere."""
    return path.is_file() or path.is_symlink()


def _parts(index: Path) -> list[str]:
    """Return the names of the files that an index names."""
    check_pointer(index)
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


def _adapter_kind(adapters: list[Path]) -> str:
    """Return "a LoRA adapter", or another kind if the adapter's settings name it."""
    for path in adapters:
        if path.name == "adapter_config.json":
            try:
                kind = json.loads(path.read_text(encoding="utf-8-sig"))["peft_type"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(kind, str) and kind.upper() != "LORA":
                return f"an adapter ({kind})"
    return "a LoRA adapter"


def _tensor_names(path: Path) -> Iterator[str]:
    """Yield the names of a file's tensors, and, of one that torch.save wrote, its other texts; none if it is damaged.

    What torch.save wrote is a pickle; its texts are listed, and nothing in it is run.
    """
    try:
        if path.is_file():
            yield from _header_names(path) if path.suffix == ".safetensors" else _pickled_texts(path)
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return


def _header_names(path: Path) -> list[str]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        names: Any = json.loads(file.read(size)) if size <= LONGEST_HEADER else None
    return list(names) if isinstance(names, dict) else []


def _pickled_texts(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        (entry,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
        pickled = archive.read(entry) if entry.file_size <= LONGEST_HEADER else b""
    return [str(value) for code, value, _ in pickletools.genops(pickled) if code.name.endswith("UNICODE")]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
