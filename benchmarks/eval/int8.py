"""Evaluate int8 on real texts: embeddings and rankings, beside float32 and beside one scale for each tensor.

usage: python -m benchmarks.eval.int8 --checkpoint FOLDER FILE [FILE ...] [--checkpoint ...] [--n-passages N]

Each checkpoint is exported twice: as it is, and with outlier channels. "per_tensor" is ONNX Runtime's own dynamic
quantization of the float32 graph: one scale for each activation tensor, one for each output channel of a weight. Every
question has to find its passage among those of its file, which is in SQuAD's flat form. Embeddings and rankings are
compared on the passages and the first question of each.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import quantize_dynamic

from benchmarks.eval.files import Texts, mean_quality, read_texts, report_parser, write_report
from benchmarks.eval.outliers import add_outliers
from bgem3.export import export_model
from bgem3.export.quality_gate import compare_quality
from bgem3.runtime import BGEM3Model, Embeddings
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.cpus import available_cpus
from bgem3.scoring.hybrid import score_matrix

SCORES = ("dense", "sparse", "multivector", "hybrid")
METRICS = ("recall@1", "mrr@10")
MAX_LENGTH = 512


def main() -> None:
    """Evaluate, and write the report."""
    parser = report_parser(__doc__, "int8_accuracy.json")
    parser.add_argument("--checkpoint", nargs="+", action="append", required=True, metavar=("FOLDER", "FILE"))
    parser.add_argument("--n-passages", type=int, help="of each file; default: all")
    arguments = parser.parse_args()
    reports: dict[str, Any] = {}
    for source, *files in arguments.checkpoint:
        texts = {Path(file).stem: read_texts(Path(file), arguments.n_passages) for file in files}
        name = Path(source).name
        with TemporaryDirectory() as scratch:
            outliers = add_outliers(Path(source), Path(scratch) / "outliers")
            reports[name] = export_and_evaluate(Path(source), Path(scratch) / "artifact", texts)
            reports[f"{name}, outliers"] = export_and_evaluate(outliers, Path(scratch) / "outliers-artifact", texts)
    write_report(arguments.output, {"checkpoints": reports}, ("torch",))


def export_and_evaluate(checkpoint: Path, artifact: Path, texts: dict[str, Texts]) -> dict[str, Any]:
    """Return the groups of weights that stay in float32, and the evaluation of each file's texts."""
    int8 = export_model(checkpoint, artifact, ("fp32", "int8"))["int8"]
    quantize_tensors(artifact)
    files = {name: evaluate(artifact, some) for name, some in texts.items()}
    return {"kept_float32": int8.get("kept_float32", [int8.get("refused")]), "files": files}


def quantize_tensors(artifact: Path) -> None:
    """Quantize the fp32 graph but for its heads dynamically, into the artifact's folder per_tensor."""
    source, target = (artifact / precision / "cpu.onnx" for precision in ("fp32", "per_tensor"))
    target.parent.mkdir()
    nodes = onnx.load(source, load_external_data=False).graph.node
    heads = [node.name for node in nodes if {"sparse.weight", "multivector.weight"} & set(node.input)]
    quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], per_channel=True, nodes_to_exclude=heads)


def evaluate(artifact: Path, texts: Texts) -> dict[str, dict[str, Any]]:
    """Return by kind of int8 what `compare_quality` says of it, and the retrieval by each score."""
    n_questions = len(texts.questions)
    first_questions = np.unique(texts.answers, return_index=True)[1]
    compared = np.concatenate([first_questions, n_questions + np.arange(len(texts.passages))])
    report: dict[str, dict[str, Any]] = {}
    embeddings: dict[str, Embeddings] = {}
    for kind in ("fp32", "int8", "per_tensor"):
        with open_kind(artifact, kind) as model:
            max_length = min(MAX_LENGTH, model.spec.max_length)
            embeddings[kind] = found = model.encode(texts.questions + texts.passages, max_length=max_length)
        scores = score_matrix(found[:n_questions], found[n_questions:])
        report[kind] = {
            score: mean_quality(getattr(scores, score), texts.judgments_of(...), METRICS) for score in SCORES
        }
        if kind != "fp32":
            report[kind] |= compare_quality(found[compared], embeddings["fp32"][compared], len(first_questions))
    return report


def open_kind(artifact: Path, kind: str) -> BGEM3Model:
    """Load a precision of the artifact, or the graph of `quantize_tensors`."""
    if kind != "per_tensor":
        return BGEM3Model.load(artifact, "cpu", kind)
    opened = read_artifact(artifact)
    probe = opened.graph("int8", "cpu").probe  # for exact products on every CPU
    graph = replace(opened.graph("fp32", "cpu"), file=f"{kind}/cpu.onnx", probe=probe)
    return BGEM3Model(opened, CpuSession(opened, graph, n_threads=available_cpus()))


if __name__ == "__main__":
    main()
