"""The int8 graphs: exact integer sums, values close to float32, and a quality gate that can refuse."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from bgem3.export import export_model, int8
from bgem3.export import quality_gate as quality
from bgem3.export.cpu_graph import build_probe
from bgem3.export.quantization import PARTS
from bgem3.export.reference import SENTENCES
from bgem3.runtime import BGEM3Model, ParityError
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import EXACT_PRODUCTS, product_settings
from bgem3.runtime.ort import open_cpu_session
from tests.export.checkpoints import settings, weights

TEXTS = ["", *SENTENCES, " ".join(SENTENCES)]
PAIRS = [("What opens early?", SENTENCES[3]), ("When does the library open?", SENTENCES[11])]


def test_a_cpu_whose_products_saturate_gets_exact_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A probe with another sum stands for such a CPU."""
    probe = build_probe()
    onnx.save(probe, tmp_path / "probe.onnx")
    exact = open_cpu_session(tmp_path / "probe.onnx", 1, settings=EXACT_PRODUCTS)
    rows, scales = np.full((1, 64), 255, np.uint8), np.full((1, 1), 0.5, np.float32)
    assert (exact.run(None, {"rows": rows, "scales": scales})[0] == 127 * 127 * 64 * 0.5).all()
    probe.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((64, 16), 126, np.int8), "weight"))
    onnx.save(probe, tmp_path / "probe.onnx")
    with caplog.at_level(logging.INFO):
        assert product_settings(tmp_path / "probe.onnx") == EXACT_PRODUCTS
    assert "products saturate" in caplog.text
    library = next(Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*"))
    assert next(iter(EXACT_PRODUCTS)).encode() in library.read_bytes(), "ONNX Runtime ignores settings of other names"


def test_int8_is_close_to_float32_and_the_manifest_says_how_close(int8_artifact: Path) -> None:
    report = read_artifact(int8_artifact).manifest["int8"]
    assert report["kept_float32"] == []
    assert report["quality"]["dense_min_cosine"] >= 0.998
    assert report["quality"]["bounds"] == quality.BOUNDS
    names = {path.name for path in (int8_artifact / "int8").iterdir()}
    assert names == {"weights.bin", "cpu.onnx", "native.onnx", "probe.onnx"}
    sizes = {name: (int8_artifact / name / "weights.bin").stat().st_size for name in ("fp32", "int8")}
    assert sizes["int8"] < 0.5 * sizes["fp32"]  # position embeddings are a large part of a small model
    assert set(report["error_by_group"]) == {f"layer.{i}.{kind}" for i in range(2) for kind in PARTS}
    with BGEM3Model.load(int8_artifact, "cpu", "fp32") as model:
        expected = model.encode(TEXTS).dense
    with BGEM3Model.load(int8_artifact, "cpu", "int8") as model:
        found = model.encode(TEXTS).dense
    cosines = (found * expected).sum(axis=1)
    assert cosines[1:].min() >= 0.999
    assert cosines[0] >= 0.99  # the demo's rows of the empty text are nearly zero, and a shift makes them large
    assert abs(found - expected).max() > 1e-6, "int8 cannot equal float32: was it run?"


def test_a_failed_gate_keeps_more_groups_in_float32_and_then_refuses(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cosines: list[float] = []

    def compare(*arguments: Any) -> dict[str, Any]:
        report = quality.compare_quality(*arguments)
        cosines.append(report["dense_min_cosine"])
        return report

    monkeypatch.setattr(int8, "compare_quality", compare)
    monkeypatch.setattr(int8, "held_out_pairs", lambda: PAIRS)
    monkeypatch.setattr(int8, "SHARES_KEPT", (0.0, 0.15, 1.0))
    monkeypatch.setitem(quality.BOUNDS, "dense_min_cosine", 1.1)
    folder = tmp_path / "artifact"
    with caplog.at_level(logging.INFO):
        export_model(demo_checkpoint, folder, ("fp16", "int8"), calibration=SENTENCES[:8])
    assert [f"int8 with {n} of 8 groups in float32" in caplog.text for n in range(9)] == [
        n in (0, 1, 8) for n in range(9)
    ]
    words = "int8 loses too much of this checkpoint, even with 8 of 8 groups"
    assert f"no int8 graph is written: {words}" in caplog.text
    assert cosines[0] < cosines[2]
    assert cosines[2] >= 0.9999, "only the token embeddings are int8"
    artifact = read_artifact(folder, check_hashes=True)
    assert {graph.precision for graph in artifact.graphs} == {"fp16"}
    assert "its bound 1.1" in artifact.manifest["int8"]["refused"]
    assert not (folder / "int8").exists()
    monkeypatch.setattr(int8, "SHARES_KEPT", (1.0,))
    with pytest.raises(ParityError, match=words):
        export_model(demo_checkpoint, tmp_path / "alone", "int8", calibration=SENTENCES[:2])
    assert list(tmp_path.iterdir()) == [folder]


def test_int8_takes_few_positions_fewer_outputs_and_the_users_own_texts(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo_checkpoint, tmp_path, dirs_exist_ok=True)
    name, n_positions = "embeddings.position_embeddings.weight", 5
    weights(lambda t: t | {name: t[name][: n_positions + 2].clone()})(tmp_path)
    settings(max_position_embeddings=n_positions + 2)(tmp_path)
    monkeypatch.setattr(int8, "held_out_pairs", lambda: PAIRS)
    texts = SENTENCES[:5]
    manifest = export_model(tmp_path, tmp_path / "artifact", "int8", outputs=("dense", "sparse"), calibration=texts)
    assert json.loads((tmp_path / "artifact/manifest.json").read_text(encoding="utf-8")) == manifest
    assert manifest["int8"]["n_calibration_texts"] == 5
    assert "sparse_top_passages_changed" in manifest["int8"]["quality"]
    assert "hybrid_top_passages_changed" not in manifest["int8"]["quality"]
    with BGEM3Model.load(tmp_path / "artifact", "cpu") as model:
        assert model.encode(["a long text " * 100]).n_tokens.tolist() == [n_positions]
