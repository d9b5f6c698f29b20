"""Adapters, such as LoRA, beside a checkpoint's weights: an export would silently leave them out."""

import json
import pickletools
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

MERGE = (
    "merge it first: load the base model and the adapter with peft, call merge_and_unload(), and save the result with "
    "save_pretrained() to a new folder, beside tokenizer.json and the heads. Move the adapter's files out of the "
    "folder if the weights have been merged already"
)
ADAPTER_FILES = ("adapter_config.*", "adapter_model.*", "adapter_model-*", "pytorch_adapter.*")
ADAPTER_TENSOR = re.compile(
    r"(^|\.)(lora_|ia3_|hada_|lokr_|oft_|boft_|vera_|vblora_|fourierft_|adapters\.|base_layer\.|modules_to_save\.)"
)
LORA_WEIGHT = re.compile(r"(^|\.)lora_\w+\.(\w+\.)?weight$")
TENSOR_SUFFIXES = (".safetensors", ".bin", ".pt")
DEPTHS = ("", "*/", "*/*/")  # a trainer's checkpoint-500/, or adapters/NAME/
LONGEST_HEADER = 1 << 26  # bytes of a file's list of tensors; that of BGE-M3 has 50 kB


def adapter_files(folder: Path, weights: Collection[Path]) -> list[Path]:
    """List the files of adapters in a folder and, if it is a checkpoint's, in two levels below it.

    The checkpoint's own weights are left out, because export looks for adapters among their tensors.
    """
    depths = DEPTHS if (folder / "config.json").is_file() else DEPTHS[:1]
    named = {path for depth in depths for name in ADAPTER_FILES for path in folder.glob(depth + name)}
    tensor_files = {path for depth in depths for path in folder.glob(f"{depth}*") if path.suffix in TENSOR_SUFFIXES}
    lora = {path for path in tensor_files - set(weights) if any(map(LORA_WEIGHT.search, tensor_names(path)))}
    return sorted({path for path in named if path.is_file() or path.is_symlink()} | lora)


def adapter_kind(files: list[Path]) -> str:
    """Return "a LoRA adapter", or another kind if the adapter's settings name one."""
    for path in files:
        if path.name == "adapter_config.json":
            try:
                kind = json.loads(path.read_text(encoding="utf-8-sig"))["peft_type"]
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(kind, str) and kind.upper() != "LORA":
                return f"an adapter ({kind})"
    return "a LoRA adapter"


def tensor_names(path: Path) -> Iterator[str]:
    """Yield the names of a file's tensors; nothing if the file is missing or damaged.

    Of a file that torch.save wrote, all texts in its pickle are yielded; nothing in it is run.
    """
    try:
        if path.is_file():
            yield from _safetensors_names(path) if path.suffix == ".safetensors" else _pickled_texts(path)
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return


def _safetensors_names(path: Path) -> list[str]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size)) if size <= LONGEST_HEADER else None
    return list(header) if isinstance(header, dict) else []


def _pickled_texts(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        (entry,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
        pickled = archive.read(entry) if entry.file_size <= LONGEST_HEADER else b""
    return [str(value) for code, value, _ in pickletools.genops(pickled) if code.name.endswith("UNICODE")]
