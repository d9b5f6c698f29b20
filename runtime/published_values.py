"""The values that BGE-M3's authors published, to check an artifact of the real checkpoint.

Sources: the BGE-M3 tutorial (float32) and the model card (float16) of the FlagEmbedding project. They differ by up to
6e-4, so each is compared with its own precision.
"""

from typing import Any

import numpy as np

from bgem3.runtime.model import BGEM3Model

QUERIES = ("What is BGE M3?", "Defination of BM25")
PASSAGES = (
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms appearing "
    "in each document",
)
HUB_ID = "BAAI/bge-m3"
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-3}

VALUES: dict[str, dict[str, Any]] = {
    "fp32": {
        "dense": [[0.6259035, 0.34749585], [0.349868, 0.6782462]],
        "multivector": [[0.7796662449836731, 0.4621177911758423]],
        "sparse": [[0.19554448500275612, 0.00880391988903284]],
        "hybrid": [[0.5337047390639782, 0.27280585498859483]],
        "hybrid_weights": (1.0, 1.0, 1.0),
        "lexical_weights": [
            {
                "What": 0.08362077,
                "is": 0.081469566,
                "B": 0.12964639,
                "GE": 0.25186998,
                "M": 0.17001738,
                "3": 0.26957875,
                "?": 0.040755156,
            },
            {
                "De": 0.050144322,
                "fin": 0.13689369,
                "ation": 0.045134712,
                "of": 0.06342201,
                "BM": 0.25167602,
                "25": 0.33353207,
            },
        ],
    },
    "fp16": {
        "dense": [[0.6259765625, 0.347412109375], [0.349853515625, 0.67822265625]],
        "multivector": [[0.7796499729, 0.4621465802], [0.4523794651, 0.7898575068]],
        "sparse": [[0.1955566406, 0.0087966919], [0.0, 0.1802978516]],
        "hybrid": [[0.6013619304, 0.3255828023], [0.3208931983, 0.6232916117]],
        "hybrid_weights": (0.4, 0.2, 0.4),
        "lexical_weights": [
            {"What": 0.08356, "is": 0.0814, "B": 0.1296, "GE": 0.252, "M": 0.1702, "3": 0.2695, "?": 0.04092},
            {"De": 0.05005, "fin": 0.1368, "ation": 0.04498, "of": 0.0633, "BM": 0.2515, "25": 0.3335},
        ],
    },
}


def compare_published(model: BGEM3Model) -> dict[str, float]:
    """Return the largest absolute difference from the published values, by output.

    A token missing from either side counts with its whole weight.
    """
    published = VALUES[model.precision]
    scores = model.score(QUERIES, PASSAGES, weights=published["hybrid_weights"])
    differences = {}
    for name in ("dense", "sparse", "multivector", "hybrid"):
        expected = np.array(published[name])
        differences[name] = float(np.abs(getattr(scores, name)[: len(expected)] - expected).max())
    weights = model.encode(QUERIES, outputs=("sparse",)).lexical_weights
    differences["lexical_weights"] = 0.0
    for row, expected_row in zip(weights, published["lexical_weights"], strict=True):
        found = {model.tokenizer.token(int(token_id)): float(weight) for token_id, weight in row.items()}
        for token in found.keys() | expected_row.keys():
            difference = abs(found.get(token, 0.0) - expected_row.get(token, 0.0))
            differences["lexical_weights"] = max(differences["lexical_weights"], difference)
    return differences


def missed_published(differences: dict[str, float], precision: str) -> list[str]:
    """Return, in words, the differences of :func:`compare_published` that exceed the precision's tolerance."""
    return [
        f"{name} is {difference:.2g} off the published values, the tolerance is {TOLERANCE[precision]:g}"
        for name, difference in differences.items()
        if not difference <= TOLERANCE[precision]
    ]
