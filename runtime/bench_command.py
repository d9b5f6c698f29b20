"""The command `bgem3 bench`: its options, and what it does with them."""

import argparse
import importlib
import tempfile
import time
from pathlib import Path
from typing import Any

from bgem3.runtime.bench_report import PARTS


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make an artifact if none is named, measure it, and return the report."""
    bench = importlib.import_module("bgem3.runtime.bench")  # loads onnxruntime, which other commands may not need
    start = time.perf_counter()
    shared = {name: getattr(arguments, name) for name in ("checkpoint", "device", "precision")}
    shared["show_progress"] = not arguments.json
    with tempfile.TemporaryDirectory() as folder:
        artifact = arguments.artifact
        if artifact is None:
            made = {name: getattr(arguments, name) for name in ("tokenizer", "layers", "hidden")}
            artifact, shared["checkpoint"] = bench.make_artifact(Path(folder), **made, **shared)
        report: dict[str, Any] = bench.run_bench(
            artifact,
            n_threads=arguments.threads,
            passages=arguments.passages,
            parts=arguments.parts,
            quick=arguments.quick,
            time_limit=arguments.time_limit - (time.perf_counter() - start),
            output=arguments.output,
            **shared,
        )
    return report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser, but for those of the device, which other commands have too."""
    parser.add_argument(
        "artifact",
        type=Path,
        nargs="?",
        help="artifact folder; default: export the checkpoint, or one of BGE-M3's size with random weights",
    )
    parser.add_argument("--checkpoint", help="hub id or folder that it was exported from, for the encoders beside ours")
    parser.add_argument("--passages", type=Path, help="JSON in SQuAD's flat form; default: a mix of built-in sentences")
    parser.add_argument("--output", type=Path, help="JSON file for the report, written as it grows; default: none")
    parser.add_argument("--parts", nargs="+", default=(), choices=PARTS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="measure less, for a first look")
    parser.add_argument("--time-limit", type=float, default=540.0, help="seconds; the rest is not run; default: 540")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of the random weights; default: the demo's")
    parser.add_argument("--layers", type=int, default=24, help="of the random weights; default: 24, as BGE-M3")
    parser.add_argument("--hidden", type=int, default=1024, help="their width; default: 1024, as BGE-M3")
