"""The command `bgem3 bench`: its options, and what it does with them."""

import argparse
import importlib
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from bgem3.runtime.bench_compare import compare_reports
from bgem3.runtime.bench_compare_table import comparison_table
from bgem3.runtime.bench_report import PARTS, summary

QUICK_LIMIT, LIMIT = 120.0, 5400.0  # seconds


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], RenderableType, bool]:
    """Do what is asked; return what `--json` prints, what is shown without it, and whether a check failed."""
    if arguments.compare:
        return compare(*arguments.compare)
    report = measure(arguments)
    return report, summary(report), bool(report["failed"])


def compare(old: Path, new: Path) -> tuple[dict[str, Any], RenderableType, bool]:
    """Compare two reports."""
    found = compare_reports(*(json.loads(path.read_text(encoding="utf-8-sig")) for path in (old, new)))
    return found.described(), comparison_table(found), bool(found.regressions or found.lost)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make an artifact if none is named, measure it, and return the report."""
    bench = importlib.import_module("bgem3.runtime.bench")  # loads onnxruntime, which other commands may not need
    shared = {"device": arguments.device, "show_progress": not arguments.json}
    artifact, checkpoint = arguments.artifact, arguments.checkpoint
    with ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if artifact is None:
            made = {name: getattr(arguments, name) for name in ("tokenizer", "layers", "hidden")}
            made["precisions"] = (arguments.precision,) if arguments.precision else arguments.precisions
            made["portable"] = bool(arguments.peers)
            artifact, checkpoint = bench.make_artifact(work, checkpoint=checkpoint, **made, **shared)
        report: dict[str, Any] = bench.run_bench(
            artifact,
            work=work,
            checkpoint=checkpoint,
            has_random_weights=arguments.artifact is None and arguments.checkpoint is None,
            precision=arguments.precision,
            n_threads=arguments.threads,
            passages=arguments.passages,
            parts=arguments.parts,
            scenarios=arguments.scenarios,
            peers=arguments.peers,
            environments=arguments.environments,
            pythons=dict(arguments.python),
            quick=arguments.quick,
            time_limit=arguments.time_limit or (QUICK_LIMIT if arguments.quick else LIMIT),
            cell_limit=arguments.cell_limit,
            output=arguments.output,
            resume=arguments.resume,
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
    add = parser.add_argument
    add("--checkpoint", help="hub id or folder that it was exported from, for the encoders beside ours")
    add("--peers", nargs="+", default=(), help="encoders beside ours: all, kinds (openvino) or kinds and precisions")
    add("--environments", type=Path, help="folder of their Python environments, made if missing; default: this Python")
    add(
        "--python",
        nargs=1,
        action="extend",
        default=[],
        type=_named_python,
        metavar="NAME=PATH",
        help="a Python to use",
    )
    add("--work", type=Path, help="folder for what is made, kept for the next run; default: a temporary one")
    add("--passages", type=Path, help="JSON in SQuAD's flat form; default: a mix of built-in sentences")
    add("--output", type=Path, help="JSON file for the report, written as it grows; default: none")
    add("--resume", action="store_true", help="go on with the report in --output: what it has is kept, turns are added")
    add("--parts", nargs="+", default=(), choices=PARTS, help="default: all")
    add("--scenarios", nargs="+", default=(), help="names of some, as the report has them; default: all")
    add("--quick", action="store_true", help="measure less, for a first look")
    add("--time-limit", type=float, help="seconds of measuring; the rest is not run; default: 5400, 120 with --quick")
    add(
        "--cell-limit",
        type=float,
        default=100.0,
        help="seconds; who takes longer for one call is left out; default: 100",
    )
    add("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="compare two reports; nothing is measured")
    add("--precisions", nargs="+", default=("fp16",), help="of the artifact that is made; default: fp16")
    add("--tokenizer", type=Path, help="tokenizer.json of the random weights; default: the demo's")
    add("--layers", type=int, default=24, help="of the random weights; default: 24, as BGE-M3")
    add("--hidden", type=int, default=1024, help="their width; default: 1024, as BGE-M3")


def _named_python(text: str) -> tuple[str, Path]:
    name, found, path = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"a Python is named as NAME=PATH, found {text!r}")
    return name, Path(path)
