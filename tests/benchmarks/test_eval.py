"""The evaluations of the laboratory, on small models and texts."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.eval import int8, search
from benchmarks.eval.files import read_texts
from benchmarks.eval.outliers import add_outliers
from bgem3.export.calibration import sample_inputs
from bgem3.export.checkpoint import load_checkpoint
from bgem3.export.quality_gate import BOUNDS
from bgem3.export.reference import SENTENCES, reference_outputs
from scripts.make_demo_checkpoint import demo_pairs


@pytest.fixture(scope="module")
def outliers(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint with outlier channels."""
    return add_outliers(demo_checkpoint, tmp_path_factory.mktemp("outliers") / "checkpoint")


def test_outlier_channels_leave_the_function_as_it_was(demo_checkpoint: Path, outliers: Path) -> None:
    before, after = load_checkpoint(demo_checkpoint), load_checkpoint(outliers)
    expected, found = (reference_outputs(each, ["", *SENTENCES[:5]]) for each in (before, after))
    np.testing.assert_allclose(found.dense, expected.dense, atol=1e-4)
    assert abs(found.sparse - expected.sparse).max() < 1e-4
    largest = [np.abs(sample_inputs(each, [SENTENCES[0]])["layer.0.qkv"]).max() for each in (before, after)]
    assert largest[1] > 3 * largest[0]


def test_outlier_channels_pass_the_gate_and_fail_it_with_one_scale_for_each_tensor(
    outliers: Path, tmp_path: Path
) -> None:
    pairs = [pair for topic in demo_pairs() for pair in topic]
    entries = [{"questions": [question], "context": passage} for question, passage in pairs]
    entries[0]["questions"] = ["Who is open early?", pairs[0][0], "When?"]
    (tmp_path / "texts.json").write_text(json.dumps(entries), encoding="utf-8")
    texts = read_texts(tmp_path / "texts.json")
    assert (len(texts.questions), texts.answers.tolist()[:4]) == (len(pairs) + 2, [0, 0, 0, 1])
    found = int8.export_and_evaluate(outliers, tmp_path / "artifact", {"demo": texts})
    assert found["kept_float32"] == []
    report = found["files"]["demo"]
    assert report["int8"]["dense_min_cosine"] >= BOUNDS["dense_min_cosine"] > report["per_tensor"]["dense_min_cosine"]
    assert report["fp32"]["hybrid"]["recall@1"] > 0.9


def test_search_compares_results_before_it_reports_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FLAG_PAIRS", (2, 3))
    for report in (search.maxsim(4, 1), search.lexical(3, 5, 1)):
        assert report["times_bgem3"]["bgem3"] == 1
        assert all(seconds > 0 for seconds in report["seconds"].values())
