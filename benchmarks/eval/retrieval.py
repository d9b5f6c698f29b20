"""Evaluate retrieval by each score, with equal and tuned weights, beside FlagEmbedding on the same checkpoint.

usage: python -m benchmarks.eval.retrieval --checkpoint FOLDER --artifact FOLDER --texts FILE [FILE ...]

The artifact has the checkpoint's fp32 graph. Every question has to find its passage among those of its file, which is
in SQuAD's flat form. Weights are tuned on the questions of every other passage; "held_out" are the remaining ones.
FlagEmbedding's scores come from its own functions on its own embeddings.
"""

from pathlib import Path
from typing import Any

import numpy as np
from FlagEmbedding import BGEM3FlagModel as FlagEmbedding
from numpy.typing import NDArray

from benchmarks.eval.files import Texts, mean_quality, read_texts, report_parser, write_report
from bgem3.runtime import BGEM3Model
from bgem3.scoring import MultiVectors, Weights, hybrid_scores, multivector_scores, tune_weights
from bgem3.scoring.hybrid import score_matrix
from bgem3.scoring.ranking import top_k
from bgem3.scoring.tuning import ALONE, EQUAL

METRICS = ("recall@1", "mrr@10", "ndcg@10")
MAX_LENGTH = 512
Scores = dict[str, NDArray[np.float32]]


def main() -> None:
    """Evaluate, and write the report."""
    parser = report_parser(__doc__, "retrieval.json")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--n-passages", type=int, help="of each file; default: all")
    arguments = parser.parse_args()
    theirs = FlagEmbedding(str(arguments.checkpoint), use_fp16=False, devices="cpu")
    with BGEM3Model.load(arguments.artifact, "cpu", "fp32") as ours:
        files = {path.stem: evaluate(ours, theirs, read_texts(path, arguments.n_passages)) for path in arguments.texts}
    report = {"metric_of_tuning": "ndcg@10", "files": files}
    write_report(arguments.output, report, ("FlagEmbedding", "torch"))


def evaluate(ours: BGEM3Model, theirs: FlagEmbedding, texts: Texts) -> dict[str, Any]:
    """Return the quality of each score on both sides, and what compact storage of multi-vectors changes."""
    max_length = min(MAX_LENGTH, ours.spec.max_length)
    queries, passages = (ours.encode(side, max_length=max_length) for side in (texts.questions, texts.passages))
    scores = score_matrix(queries, passages)
    sides: dict[str, Scores] = {
        "bgem3": {name: getattr(scores, name) for name in ALONE},
        "FlagEmbedding": flag_scores(theirs, texts, max_length),
    }
    is_tuned_on = texts.answers % 2 == 0
    tuning = tune_weights(queries[is_tuned_on], passages, texts.judgments_of(is_tuned_on))
    weights = {**ALONE, "equal": EQUAL, "tuned": tuning.weights}
    parts = {"all": np.ones(len(is_tuned_on), bool), "held_out": ~is_tuned_on}
    differences = {name: sides["bgem3"][name] - sides["FlagEmbedding"][name] for name in ALONE}
    return {
        "n_questions": len(texts.questions),
        "n_passages": len(texts.passages),
        "tuned_weights": tuning.weights,
        "largest_difference_to_flagembedding": {name: float(abs(d).max()) for name, d in differences.items()},
        **{
            side: {part: qualities(found, texts, weights, rows) for part, rows in parts.items()}
            for side, found in sides.items()
        },
        "multivector_storage": {
            kind: storage_loss(kind, queries.multivector, passages.multivector, texts) for kind in ("float16", "int8")
        },
    }


def flag_scores(model: FlagEmbedding, texts: Texts, max_length: int) -> Scores:
    """Return FlagEmbedding's three scores of every question with every passage, (Q, P) each."""
    heads = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    queries, passages = (
        model.encode(side, batch_size=8, max_length=max_length, **heads) for side in (texts.questions, texts.passages)
    )
    colbert = [[model.colbert_score(q, p).item() for p in passages["colbert_vecs"]] for q in queries["colbert_vecs"]]
    return {
        "dense": queries["dense_vecs"] @ passages["dense_vecs"].T,
        "sparse": model.compute_lexical_matching_score(queries["lexical_weights"], passages["lexical_weights"]),
        "multivector": np.array(colbert),
    }


def qualities(scores: Scores, texts: Texts, weights: dict[str, Weights], rows: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the quality of the hybrid score of some questions, for each set of weights."""
    hybrid = {name: hybrid_scores(*(values[rows] for values in scores.values()), w) for name, w in weights.items()}
    return {name: mean_quality(values, texts.judgments_of(rows), METRICS) for name, values in hybrid.items()}


def storage_loss(kind: str, queries: MultiVectors, passages: MultiVectors, texts: Texts) -> dict[str, float]:
    """Return how multi-vector scores and rankings change with a compact storage of the passages."""
    stored, bound = passages.stored_as(kind)
    scores, expected = multivector_scores(queries, stored), multivector_scores(queries, passages)
    rankings = zip(top_k(scores, 10), top_k(expected, 10), strict=True)
    return {
        "largest_difference": float(abs(scores - expected).max()),
        "mean_difference": float(abs(scores - expected).mean()),
        "bound": bound,
        "top_10_kept": float(np.mean([len(np.intersect1d(found, best)) / len(best) for found, best in rankings])),
        **mean_quality(scores, texts.judgments_of(...), METRICS),
    }


if __name__ == "__main__":
    main()
