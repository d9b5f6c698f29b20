"""Question-to-passage retrieval by each score, equal and tuned weights, beside FlagEmbedding on the same checkpoint.

usage: python scripts/eval_retrieval.py --checkpoint FOLDER --artifact FOLDER --texts FILE [FILE ...]

The artifact holds the checkpoint's fp32. Each file is in SQuAD's flat form, [{"context": ..., "questions": [...]},
...]: every question has to find its context among the file's. Weights are tuned on the questions of every other
passage, and what the table gives is measured on the remaining ones. FlagEmbedding's scores are its own functions' on
its own embeddings. Needs the extras `bench` and `cpu`.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from FlagEmbedding import BGEM3FlagModel as FlagEmbedding
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from bgem3.runtime import BGEM3Model
from bgem3.runtime.bench_hardware import processor_name
from bgem3.scoring import dense_scores, hybrid_scores, multivector_scores, sparse_scores, tune_weights
from bgem3.scoring.ranking import quality, top_k
from bgem3.scoring.tuning import ALONE, EQUAL

METRICS = ("recall@1", "mrr@10", "ndcg@10")
ALL_HEADS = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


def main() -> None:
    """Evaluate, print a table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description="Retrieval by each score, beside FlagEmbedding.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--n-passages", type=int, help="of each file; default: all")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/retrieval.json"))
    arguments = parser.parse_args()
    theirs = FlagEmbedding(str(arguments.checkpoint), use_fp16=False, devices="cpu")
    with BGEM3Model.load(arguments.artifact, "cpu", "fp32") as ours:
        files = {path.stem: evaluate(ours, theirs, path, arguments.n_passages) for path in arguments.texts}
    report = {
        "metric_of_tuning": "ndcg@10",
        "processor": processor_name(),
        "versions": {name: version(name) for name in ("bgem3", "FlagEmbedding", "numpy", "onnxruntime", "torch")},
        "files": files,
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print_table(files)
    plot(files, arguments.output.with_suffix(".png"))


def evaluate(ours: BGEM3Model, theirs: FlagEmbedding, path: Path, n_passages: int | None) -> dict[str, Any]:
    """Return the quality of each score on both sides, and what compact storage of multi-vectors changes."""
    entries = json.loads(path.read_text(encoding="utf-8-sig"))[:n_passages]
    passages = [entry["context"] for entry in entries]
    questions = [question for entry in entries for question in entry["questions"]]
    right = np.repeat(np.arange(len(entries)), [len(entry["questions"]) for entry in entries])
    judgments = [{int(place): 1.0} for place in right]
    max_length = min(512, ours.spec.max_length)
    query, passage = (ours.encode(texts, max_length=max_length, show_progress=True) for texts in (questions, passages))
    found = {
        "dense": dense_scores(query.dense, passage.dense),
        "sparse": sparse_scores(query.sparse, passage.sparse),
        "multivector": multivector_scores(query.multivector, passage.multivector),
    }
    expected = flag_scores(theirs, questions, passages, max_length)
    is_tuned_on = right % 2 == 0
    tuning = tune_weights(query[is_tuned_on], passage, [j for j, t in zip(judgments, is_tuned_on, strict=True) if t])
    weights = {**ALONE, "equal": EQUAL, "tuned": tuning.weights}
    halves = {"all": np.ones(len(right), bool), "held_out": ~is_tuned_on}
    storage = {}
    for kind in ("float16", "int8"):
        stored, bound = passage.multivector.stored_as(kind)
        scores = multivector_scores(query.multivector, stored)
        storage[kind] = {
            "largest_difference": float(np.abs(scores - found["multivector"]).max()),
            "mean_difference": float(np.abs(scores - found["multivector"]).mean()),
            "bound": bound,
            "top_10_kept": overlap(top_k(scores, 10), top_k(found["multivector"], 10)),
            **{metric: float(quality(scores, judgments, metric).mean()) for metric in METRICS},
        }
    return {
        "n_questions": len(questions),
        "n_passages": len(passages),
        "tuned_weights": tuning.weights,
        "largest_difference_to_flagembedding": {
            name: float(np.abs(found[name] - expected[name]).max()) for name in ALONE
        },
        **{
            side: {half: qualities(scores, judgments, weights, kept) for half, kept in halves.items()}
            for side, scores in (("bgem3", found), ("FlagEmbedding", expected))
        },
        "multivector_storage": storage,
    }


def flag_scores(model: FlagEmbedding, questions: list[str], passages: list[str], max_length: int) -> dict[str, Any]:
    """Return FlagEmbedding's three scores of every question with every passage, (Q, P) each."""
    query, passage = (
        model.encode(texts, batch_size=8, max_length=max_length, **ALL_HEADS) for texts in (questions, passages)
    )
    return {
        "dense": query["dense_vecs"] @ passage["dense_vecs"].T,
        "sparse": model.compute_lexical_matching_score(query["lexical_weights"], passage["lexical_weights"]),
        "multivector": np.array(
            [[model.colbert_score(q, p).item() for p in passage["colbert_vecs"]] for q in query["colbert_vecs"]]
        ),
    }


def qualities(scores: dict[str, Any], judgments: list, weights: dict, kept: np.ndarray) -> dict[str, dict[str, float]]:
    """Return each metric's mean over the kept questions, for each set of weights."""
    judged = [j for j, k in zip(judgments, kept, strict=True) if k]
    return {
        name: {
            metric: float(quality(hybrid_scores(*(s[kept] for s in scores.values()), w), judged, metric).mean())
            for metric in METRICS
        }
        for name, w in weights.items()
    }


def overlap(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the mean share of the expected passages that were found."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, expected, strict=True)]))


def print_table(files: dict[str, dict[str, Any]]) -> None:
    """Print a row for each file and score, on the held-out questions, both sides."""
    table = Table("file", "score", *(f"{metric} (FlagEmbedding)" for metric in METRICS))
    for name, report in files.items():
        for score, values in report["bgem3"]["held_out"].items():
            theirs = report["FlagEmbedding"]["held_out"][score]
            table.add_row(name, score, *(f"{values[m]:.4f} ({theirs[m]:.4f})" for m in METRICS))
        table.add_row(name, "tuned weights", ", ".join(f"{w:.2f}" for w in report["tuned_weights"]))
    Console().print(table)


def plot(files: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw nDCG@10 on the held-out questions: a group of bars a file, a bar a score."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    scores = (*ALONE, "equal", "tuned")
    for place, score in enumerate(scores):
        values = [report["bgem3"]["held_out"][score]["ndcg@10"] for report in files.values()]
        axes.bar(np.arange(len(files)) + (place - 2) * 0.16, values, 0.15, label=score)
    lowest = min(report["bgem3"]["held_out"][score]["ndcg@10"] for report in files.values() for score in scores)
    axes.set(ylabel="nDCG@10, held-out questions", ylim=(max(0, lowest - 0.05), 1), xticks=range(len(files)))
    axes.set_xticklabels(files)
    axes.legend(ncols=5, loc="lower center")
    figure.savefig(path)


if __name__ == "__main__":
    main()
