"""Measure a full-size model on CPU: sizes, and time and peak memory of export, load, and a text of 8192 tokens.

usage: python -m benchmarks.eval.full_size [--checkpoint FOLDER] [--output JSON]

Without a checkpoint, one with random weights is made. Each step runs in a process of its own, whose peak memory is the
step's. Needs 9 GB of disk for a while.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.artifact import make_checkpoint
from benchmarks.eval.files import report_parser, write_report
from bgem3.runtime import BGEM3Model
from bgem3.runtime.bench import seconds_of
from bgem3.runtime.machine import resident_bytes

N_TOKENS = 8192
PRECISIONS = ("fp16", "fp32")
Report = dict[str, Any]


def main() -> None:
    """Measure, and write the report."""
    parser = report_parser(__doc__, "full_size_cpu.json")
    parser.add_argument("--checkpoint", type=Path, help="default: full size, random weights")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), arguments.checkpoint)
    write_report(arguments.output, report, ("torch",))


def measure(folder: Path, checkpoint: Path | None = None) -> Report:
    """Export and encode; return sizes in bytes, times in seconds and peak resident memory in bytes."""
    artifact = folder / "artifact"
    checkpoint = checkpoint or make_checkpoint(folder)
    report: Report = {"checkpoint_bytes": size(checkpoint)}
    report["export"] = run_apart(export, checkpoint, artifact)
    report["artifact_bytes"] = {path.name: size(path) for path in artifact.iterdir()}
    return report | {precision: run_apart(encode, artifact, precision) for precision in PRECISIONS}


def export(checkpoint: Path, artifact: Path) -> Report:
    """Export every form, and return its parity with PyTorch."""
    from bgem3.export import export_model  # here, because the processes that encode need no torch

    return {"parity": export_model(checkpoint, artifact, PRECISIONS, portable=True)["parity"]}


def encode(artifact: Path, precision: str) -> Report:
    """Load the artifact, encode a short text, and then a long one."""
    start = time.perf_counter()
    with BGEM3Model.load(artifact, "cpu", precision) as model:
        load_s = time.perf_counter() - start
        first_s = load_s + seconds_of(partial(model.encode, ["What is BM25?"]))
        start = time.perf_counter()
        found = model.encode(["honey " * N_TOKENS])
    return {
        "load_s": load_s,
        "first_embedding_s": first_s,
        "encode_longest_s": time.perf_counter() - start,
        "n_tokens": int(found.n_tokens[0]),
        "finite": bool(np.isfinite(found.multivector.packed).all()),
    }


def run_apart(step: Callable[..., Report], *arguments: object) -> Report:
    """Run a step in a new process; return its report with its time and peak memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        start = time.perf_counter()
        report = pool.submit(step, *arguments).result()
        wall_s = time.perf_counter() - start
        return report | {"wall_s": wall_s, "peak_bytes": pool.submit(resident_bytes).result()}


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


if __name__ == "__main__":
    main()
