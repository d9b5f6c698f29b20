"""The values that BGE-M3's authors published, to check an artifact of the real checkpoint.

Sources: the BGE-M3 tutorial (float32) and the model card (float16) of the FlagEmbedding project. They differ by up to
6e-4, so each is compared with its own precision.
"""

import json
from pathlib import Path

import numpy as np

from bgem3.runtime.model import BGEM3Model

HUB_ID = "BAAI/bge-m3"
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-3}
"""Largest absolute difference from the published values, by precision."""


def compare_published(model: BGEM3Model) -> dict[str, float]:
    """Return the largest absolute difference from the published values, by output.

    A token missing from either side counts with its whole weight.
    """
    values = json.loads(Path(__file__).with_name("published_values.json").read_text(encoding="utf-8"))
    published, queries = values[model.precision], values["queries"]
    scores = model.score(queries, values["passages"], weights=published["hybrid_weights"])
    differences = {}
    for name in ("dense", "sparse", "multivector", "hybrid"):
        expected = np.array(published[name])
        differences[name] = float(np.abs(getattr(scores, name)[: len(expected)] - expected).max())
    weights = model.encode(queries, outputs=("sparse",)).lexical_weights
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
