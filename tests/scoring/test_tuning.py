"""Metrics equal their definitions in plain Python, and tuning finds weights that rank judged passages best."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgem3.scoring import tune_weights
from bgem3.scoring.hybrid import score_matrix
from bgem3.scoring.ranking import quality
from tests.scoring.corpus import make_embeddings

ROWS = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0]), min_size=6, max_size=6), max_size=4)


@given(rows=ROWS, k=st.integers(1, 7), data=st.data())
@settings(max_examples=50, deadline=None)
def test_metrics_equal_their_definitions_in_plain_python(rows: list[list[float]], k: int, data: st.DataObject) -> None:
    gains = st.dictionaries(st.integers(0, 5), st.sampled_from([1.0, 2.0, 0.5]), min_size=1, max_size=6)
    judgments = [data.draw(gains) for _ in rows]
    scores = np.array(rows, np.float32).reshape(len(rows), 6)
    expected: dict[str, list[float]] = {"ndcg": [], "mrr": [], "recall": []}
    for row, judged in zip(rows, judgments, strict=True):
        ranking = sorted(range(6), key=lambda column: (-row[column], column))[:k]
        found = [(place, judged[column]) for place, column in enumerate(ranking, 1) if column in judged]
        ideal = sum(gain / math.log2(n + 1) for n, gain in enumerate(sorted(judged.values(), reverse=True)[:k], 1))
        expected["ndcg"].append(sum(gain / math.log2(place + 1) for place, gain in found) / ideal)
        expected["mrr"].append(1 / found[0][0] if found else 0.0)
        expected["recall"].append(len(found) / len(judged))
    for name, values in expected.items():
        np.testing.assert_allclose(quality(scores, judgments, f"{name}@{k}"), values)


def test_tuning_is_at_least_as_good_as_every_score_alone_and_reports_what_it_tried(tmp_path: Path) -> None:
    """Passages are judged by a hybrid of known weights, which tuned weights must rank nearly as well as."""
    queries, passages, planted = make_embeddings(1, 60), make_embeddings(2, 30), (0.2, 0.5, 0.3)
    judgments = [{int(best): 1.0} for best in score_matrix(queries, passages, planted).hybrid.argmax(axis=1)]
    tuning = tune_weights(queries, passages, judgments, "mrr@10")
    assert sum(tuning.weights) == pytest.approx(1)
    assert tuning.quality["tuned"] == max(tuning.tried.values()) > 0.97
    assert tuning.quality["tuned"] > max(tuning.quality[name] for name in ("dense", "sparse", "multivector", "equal"))
    for weights in (tuning.weights, (1.0, 0.0, 0.0)):
        value = quality(score_matrix(queries, passages, weights).hybrid, judgments, "mrr@10").mean()
        assert tuning.tried[weights] == pytest.approx(value)
    table = tuning.table().splitlines()
    assert table[0] == "| score | dense, sparse, multi-vector | mrr@10 |"
    assert table[-1].endswith(f"| {tuning.quality['tuned']:.4f} |")
    tuning.plot(tmp_path / "tuning.png")
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: tune_weights(e, e, [{0: 1.0}] * 3, "ndcg"), "metric must be 'ndcg@k', .* found 'ndcg'"),
        (lambda e: tune_weights(e, e, [{0: 1.0}]), "one mapping per query, found 1 for 3 queries"),
        (lambda e: tune_weights(e, e, [{0: 1.0}, {0: 1.0}, {3: 1.0}]), r"query 2 must map passage numbers below 3"),
        (lambda e: tune_weights(e, e, [{0: 0.0}] * 3), r"gains above 0, at least one, found \{0: 0.0\}"),
        (lambda e: tune_weights(e[:0], e, []), "at least one query with a judged passage, found none"),
    ],
)
def test_judgments_that_do_not_fit_are_refused(call: Callable[..., object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(make_embeddings(1, 3))
