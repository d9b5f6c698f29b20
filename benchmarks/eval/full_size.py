"""Measure a full-size model on CPU: sizes, and time and peak memory of export, load, and a text of 8192 tokens.

usage: python -m benchmarks.eval.full_size [--checkpoint FOLDER] [--output JSON]

Without a checkpoint, one with random weights is made. Each step runs in a process of its own, whose peak memory is the
step's. Needs 9 GB of disk for a while.
"""

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.eval.files import report_parser, write_report
from bgem3.runtime import BGEM3Model
from bgem3.runtime.bench import seconds_of
from bgem3.runtime.machine import resident_bytes

N_TOKENS = 8192
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
    if checkpoint is None:
        checkpoint = import_module("scripts.make_random_checkpoint").make_full_size(folder)
    export = partial(import_module("bgem3.export").export_model, portable=True)
    report: Report = {"checkpoint_bytes": size(checkpoint), "n_cpus": os.cpu_count()}
    manifest, costs = run_apart(export, checkpoint, artifact, ("fp16", "fp32"))
    report["export"] = {"parity": manifest["parity"], **costs}
    report["artifact_bytes"] = {path.name: size(path) for path in artifact.iterdir()}
    for precision in ("fp16", "fp32"):
        found, costs = run_apart(encode, artifact, precision)
        report[precision] = found | costs
    return report


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


def run_apart(step: Callable[..., Any], *arguments: object) -> tuple[Any, dict[str, float]]:
    """Run a step in a new process; return its result, and its time and peak memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        start = time.perf_counter()
        result = pool.submit(step, *arguments).result()
        wall_s = time.perf_counter() - start
        return result, {"wall_s": wall_s, "peak_bytes": pool.submit(resident_bytes).result()}


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


if __name__ == "__main__":
    main()
