"""How good int8 is on real texts: embeddings and rankings beside float32, and beside one scale for each tensor.

usage: python scripts/eval_int8.py --checkpoint FOLDER FILE [FILE ...] [--checkpoint ...] [--n-passages N] [--output O]

Each checkpoint is exported and evaluated twice: as it is, and with outlier channels (`add_outliers.py`). Beside int8
stands ONNX Runtime's own dynamic quantization of the float32 graph: one scale for each activation tensor, one for each
output channel of a weight. Each file is in SQuAD's flat form, [{"context": ..., "questions": [...]}, ...]: every
question has to find its context among the file's. Embeddings and rankings are compared on the contexts and the first
question of each.
"""

import argparse
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from add_outliers import add_outliers
from onnxruntime.quantization import quantize_dynamic
from rich.console import Console
from rich.table import Table

from bgem3.export import export_model
from bgem3.export.quality_gate import BOUNDS, compare_quality, question_scores
from bgem3.runtime import BGEM3Model, Embeddings
from bgem3.runtime.artifact import Artifact, read_artifact
from bgem3.runtime.cpu_session import PROBE
from bgem3.runtime.device import open_encoder

SCORES = ("dense", "sparse", "multivector", "hybrid")
METRICS = ("recall_at_1", "mrr_at_10")
Reports = dict[str, dict[str, dict[str, Any]]]


def main() -> None:
    """Evaluate, print tables and write JSON."""
    parser = argparse.ArgumentParser(description="How good int8 is on real texts.")
    parser.add_argument("--checkpoint", nargs="+", action="append", required=True, metavar=("FOLDER", "FILE"))
    parser.add_argument("--n-passages", type=int, help="of each file; default: all")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    reports: dict[str, Any] = {}
    for source, *files in arguments.checkpoint:
        with TemporaryDirectory() as scratch:
            paths = {Path(source).name: Path(source)}
            paths[f"{Path(source).name}, outliers"] = add_outliers(Path(source), Path(scratch) / "outliers")
            for name, checkpoint in paths.items():
                artifact = Path(scratch) / "artifact"
                manifest = export_model(checkpoint, artifact, ("fp32", "int8"), overwrite=artifact.exists())
                quantize_tensors(artifact)
                kept = manifest["int8"].get("kept_float32", [manifest["int8"].get("refused")])
                of_files = {Path(file).stem: evaluate(artifact, Path(file), arguments.n_passages) for file in files}
                reports[name] = {"kept_float32": kept, "files": of_files}
                print_table(name, of_files)
    if arguments.output:
        versions = {package: version(package) for package in ("bgem3", "onnxruntime", "numpy")}
        arguments.output.write_text(json.dumps({"checkpoints": reports, "versions": versions}, indent=2) + "\n")


def quantize_tensors(artifact: Path) -> None:
    """Write per_tensor/cpu.onnx into an artifact's folder: its fp32 graph, but for the heads, quantized dynamically."""
    path = artifact / "per_tensor/cpu.onnx"
    path.parent.mkdir()
    model = onnx.load(artifact / "fp32/cpu.onnx", load_external_data=False)
    heads = [node.name for node in model.graph.node if {"sparse.weight", "multivector.weight"} & set(node.input)]
    quantize_dynamic(
        artifact / "fp32/cpu.onnx", path, op_types_to_quantize=["MatMul"], per_channel=True, nodes_to_exclude=heads
    )
    shutil.copy(artifact / "int8" / PROBE, path.with_name(PROBE))  # so that its products are exact on every CPU


def evaluate(artifact: Path, path: Path, n_passages: int | None) -> dict[str, dict[str, Any]]:
    """Return by kind of int8 what `compare_quality` says of it, and R@1 and MRR@10 by score."""
    entries = json.loads(path.read_text(encoding="utf-8-sig"))[:n_passages]
    n_questions = [len(entry["questions"]) for entry in entries]
    right = np.repeat(np.arange(len(entries)), n_questions)
    texts = [question for entry in entries for question in entry["questions"]] + [entry["context"] for entry in entries]
    compared = np.concatenate([np.cumsum([0, *n_questions[:-1]]), np.arange(len(right), len(texts))])
    spec = read_artifact(artifact).spec
    embeddings: dict[str, Embeddings] = {}
    for kind in ("fp32", "int8", "per_tensor"):
        held = Artifact(folder=artifact, spec=spec, graphs={("fp32", "cpu"): f"{kind}/cpu.onnx"}, manifest={})
        with BGEM3Model(held, open_encoder(held, device="cpu", precision="fp32")) as model:
            embeddings[kind] = model.encode(texts, max_length=min(512, spec.max_length))
    report: dict[str, dict[str, Any]] = {}
    for kind, found in embeddings.items():
        scores = question_scores(found, len(right))
        report[kind] = {score: retrieval(getattr(scores, score), right) for score in SCORES}
        if kind != "fp32":
            report[kind] |= compare_quality(found[compared], embeddings["fp32"][compared], len(entries))
    return report


def retrieval(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return R@1 and MRR@10 of (Q, P) scores, given the place (Q,) of each question's right passage."""
    rank = (scores > np.take_along_axis(scores, right[:, None], axis=1)).sum(axis=1)
    mrr = np.where(rank < 10, 1 / (rank + 1), 0).mean()
    return {"recall_at_1": float((rank == 0).mean()), "mrr_at_10": float(mrr)}


def print_table(name: str, reports: Reports) -> None:
    """Print a column for each file and kind of int8."""
    columns = [(file, kind) for file in reports for kind in ("int8", "per_tensor")]
    table = Table(f"{name}: beside fp32", *(f"{file} {kind}" for file, kind in columns))
    for bound in BOUNDS:
        table.add_row(bound, *(f"{reports[file][kind][bound]:.5f}" for file, kind in columns))
    for score in SCORES:
        for metric in METRICS:
            values = []
            for file, kind in columns:
                float32, int8 = (reports[file][one][score][metric] for one in ("fp32", kind))
                values.append(f"{int8:.3f} ({int8 - float32:+.3f})")
            table.add_row(f"{score} {metric}", *values)
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
