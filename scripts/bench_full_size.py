"""Sizes, times and peak memory of a full-size model on CPU: export in every form, load, encode 8192 tokens.

usage: python scripts/bench_full_size.py [--checkpoint FOLDER] [--output JSON]

Without a checkpoint, one of BGE-M3's dimensions is made with seeded random weights (2.27 GB). Each step runs in a
process of its own, whose peak resident memory is read when it ends. Needs 9 GB of disk for a while.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

VOCABULARY = 250002
N_TOKENS = 8192

MAKE = """
from make_demo_checkpoint import make_demo_checkpoint
from make_random_checkpoint import make_random_checkpoint
tokenizer = make_demo_checkpoint(sys.argv[1] + "-tokenizer") / "tokenizer.json"
make_random_checkpoint(tokenizer, sys.argv[1], vocabulary=int(sys.argv[2]))
"""
EXPORT = """
from bgem3.export import export_model
manifest = export_model(sys.argv[1], sys.argv[2], ("fp16", "fp32"), portable=True)
report = {"parity": manifest["parity"]}
"""
ENCODE = """
from bgem3.runtime import BGEM3Model
start = time.perf_counter()
model = BGEM3Model.load(sys.argv[1], "cpu", sys.argv[2])
loaded = time.perf_counter()
model.encode(["What is BM25?"])
first = time.perf_counter()
found = model.encode(["honey " * int(sys.argv[3])])
report = {
    "load_s": loaded - start, "first_embedding_s": first - start, "encode_longest_s": time.perf_counter() - first,
    "n_tokens": int(found.n_tokens[0]), "finite": bool(np.isfinite(found.multivector.packed).all()),
}
"""


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description="Sizes, times and peak memory of a full-size model on CPU.")
    parser.add_argument("--checkpoint", type=Path, help="default: full size, random weights")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/full_size_cpu.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), arguments.checkpoint)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


def measure(folder: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    """Export and encode; return sizes in bytes, times in seconds and peak resident memory in bytes."""
    if checkpoint is None:
        checkpoint = folder / "checkpoint"
        run_step(MAKE, checkpoint, VOCABULARY)
    report: dict[str, Any] = {
        "checkpoint_bytes": _size(checkpoint),
        "n_cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("bgem3", "torch", "onnxruntime", "numpy")},
        "export": run_step(EXPORT, checkpoint, folder / "artifact"),
    }
    report["artifact_bytes"] = {path.name: _size(path) for path in (folder / "artifact").iterdir()}
    for precision in ("fp16", "fp32"):
        report[precision] = run_step(ENCODE, folder / "artifact", precision, N_TOKENS)
    return report


def run_step(code: str, *arguments: object) -> dict[str, Any]:
    """Run code in a process of its own; return its ``report`` with ``wall_s`` and ``peak_bytes``."""
    prelude = f"import json, sys, time; import numpy as np; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    epilogue = "\nprint(json.dumps(globals().get('report', {})))"
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", prelude + code + epilogue, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    with process.stdout:
        printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"a step failed with exit status {process.returncode}; its error is above")
    report: dict[str, Any] = json.loads(printed)
    return report | {"wall_s": time.perf_counter() - start, "peak_bytes": usage.ru_maxrss * 1024}


def _size(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


if __name__ == "__main__":
    main()
