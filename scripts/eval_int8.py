"""How good int8 is on real texts: embeddings and rankings beside float32, on questions and their passages.

usage: python scripts/eval_int8.py --artifact FOLDER --texts FILE [FILE ...] [--output JSON]

The artifact holds fp32 and int8. Each file is in SQuAD's flat form, [{"context": ..., "questions": [...]}, ...]: the
first question of each entry has to find its context among the file's.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bgem3.export.quality import BOUNDS, compare_quality, question_scores
from bgem3.runtime import BGEM3Model, Embeddings

SCORES = ("dense", "sparse", "multivector", "hybrid")


def main() -> None:
    """Evaluate, print a table and write JSON."""
    parser = argparse.ArgumentParser(description="How good int8 is on real texts.")
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--n-passages", type=int, default=120, help="of each file; default: 120")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    reports = {path.stem: evaluate(arguments.artifact, path, arguments.n_passages) for path in arguments.texts}
    print_table(reports)
    if arguments.output:
        versions = {name: version(name) for name in ("bgem3", "onnxruntime", "numpy")}
        arguments.output.write_text(json.dumps({"files": reports, "versions": versions}, indent=2) + "\n")


def evaluate(artifact: Path, path: Path, n_passages: int) -> dict[str, Any]:
    """Return what `compare_quality` says of int8, and R@1 and MRR@10 of both precisions by score."""
    entries = json.loads(path.read_text(encoding="utf-8"))[:n_passages]
    texts = [entry["questions"][0] for entry in entries] + [entry["context"] for entry in entries]
    embeddings: dict[str, Embeddings] = {}
    for precision in ("fp32", "int8"):
        with BGEM3Model.load(artifact, "cpu", precision) as model:
            embeddings[precision] = model.encode(texts, max_length=min(512, model.spec.max_length), show_progress=True)
    report = compare_quality(embeddings["int8"], embeddings["fp32"], len(entries))
    for precision, found in embeddings.items():
        scores = question_scores(found, len(entries))
        report[precision] = {score: retrieval(getattr(scores, score)) for score in SCORES}
    return report


def retrieval(scores: np.ndarray) -> dict[str, float]:
    """Return R@1 and MRR@10 of (Q, P) scores whose diagonal is right."""
    rank = (scores > np.diag(scores)[:, None]).sum(axis=1)
    return {"recall_at_1": float((rank == 0).mean()), "mrr_at_10": float(np.where(rank < 10, 1 / (rank + 1), 0).mean())}


def print_table(reports: dict[str, dict[str, Any]]) -> None:
    """Print a column a file."""
    table = Table("int8 against fp32", *reports)
    for name in BOUNDS:
        table.add_row(name, *(f"{report[name]:.5f}" for report in reports.values()))
    for score in SCORES:
        for metric in ("recall_at_1", "mrr_at_10"):
            values = []
            for report in reports.values():
                float32, int8 = (report[precision][score][metric] for precision in ("fp32", "int8"))
                values.append(f"{int8:.4f} ({int8 - float32:+.4f})")
            table.add_row(f"{score} {metric}", *values)
    Console().print(table)


if __name__ == "__main__":
    main()
