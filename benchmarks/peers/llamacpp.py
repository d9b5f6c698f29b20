"""llama.cpp: the backbone as GGUF in Q8_0; it gives dense vectors alone."""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.peer import TORCH, Encode, Encoded, Peer, Settings


def prepare(settings: Settings) -> None:
    """Convert the backbone with llama.cpp's converter, which llama-cpp-python's source package contains."""
    folder = Path(settings["files"])
    if (folder / "model.gguf").exists():
        return
    with tempfile.TemporaryDirectory() as place:
        package = f"llama-cpp-python=={version('llama-cpp-python')}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", package]
        subprocess.run([*pip, "--dest", place], check=True)
        (archive,) = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(place, filter="data")
        (converter,) = Path(place).glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")
        source = Path(place, "checkpoint")
        shutil.copytree(settings["checkpoint"], source, copy_function=lambda a, b: Path(b).symlink_to(a))
        keep_one_normalizer(source / "tokenizer.json")
        convert = [sys.executable, str(converter), str(source), "--outtype", "q8_0"]
        unfinished = folder / "model.gguf.partial"
        subprocess.run([*convert, "--outfile", str(unfinished)], check=True)
        unfinished.rename(folder / "model.gguf")


def keep_one_normalizer(path: Path) -> None:
    """Replace a tokenizer.json by one with its precompiled normalizer alone: the converter reads no sequence."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    steps = tokenizer["normalizer"].get("normalizers", [tokenizer["normalizer"]])
    tokenizer["normalizer"] = next(step for step in steps if step["type"] == "Precompiled")
    path.unlink()
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def open_llamacpp(settings: Settings) -> Encode:
    """Open the GGUF file with flash attention, which is faster than its default, and room for one longest text."""
    import llama_cpp

    n_tokens, n_threads = settings["max_length"], settings["threads"]
    model = llama_cpp.Llama(
        str(Path(settings["files"], "model.gguf")),
        embedding=True,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_CLS,
        flash_attn=True,
        n_ctx=n_tokens,
        n_batch=n_tokens,
        n_ubatch=n_tokens,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        verbose=False,
    )

    def encode(texts: list[str], _: tuple[str, ...], batch_size: int) -> Encoded:
        batches = (texts[start : start + batch_size] for start in range(0, len(texts), batch_size))
        rows = [row for batch in batches for row in model.embed(batch, normalize=True, truncate=True)]
        return Encoded(dense=np.array(rows, np.float32))

    return encode


PEERS = (
    Peer(
        name="llamacpp",
        label="llama.cpp",
        environment="llamacpp",
        packages=("llama-cpp-python==0.3.36", *TORCH, "sentencepiece", "protobuf"),  # all but the first convert
        modules=("llama_cpp",),
        precisions=("q8_0",),
        outputs=("dense",),
        batch_sizes=(1, 4, 8),
        is_thread_safe=False,
        prepare=prepare,
        open=open_llamacpp,
        files=lambda settings: Path(settings["files"]).glob("*.gguf"),
    ),
)
