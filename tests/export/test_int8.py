"""The int8 graphs: exact integer sums, values close to float32, and a quality gate that can refuse."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from bgem3.export import export_model, int8
from bgem3.export import quality_gate as quality
from bgem3.export.cpu_graph import build_probe
from bgem3.export.quantization import PARTS
from bgem3.export.reference import SENTENCES
from bgem3.runtime import BGEM3Model, ParityError, cli, cpu_session
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import EXACT_PRODUCTS, product_settings
from bgem3.runtime.ort import open_cpu_session
from tests.export.checkpoints import settings, weights

TEXTS = ["", *SENTENCES, " ".join(SENTENCES)]
N_LAYERS = 2  # of the demo checkpoint
PAIRS = [("What opens early?", SENTENCES[3]), ("When does the library open?", SENTENCES[11])]


def test_a_cpu_whose_products_saturate_gets_exact_ones(
    int8_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A probe with another sum stands for such a CPU; the exact kernels give the same sums here."""
    probe = build_probe()
    onnx.save(probe, tmp_path / "probe.onnx")
    exact = open_cpu_session(tmp_path / "probe.onnx", 1, settings=EXACT_PRODUCTS)
    for value in (255, 0):
        rows = np.full((1, 64), value, np.uint8)
        (found,) = exact.run(None, {"rows": rows, "scales": np.full((1, 1), 0.5, np.float32)})
        assert (found == (value - 128) * 127 * 64 * 0.5).all()
    probe.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((64, 16), 126, np.int8), "weight"))
    onnx.save(probe, tmp_path / "probe.onnx")
    with caplog.at_level(logging.INFO):
        assert product_settings(tmp_path / "probe.onnx") == EXACT_PRODUCTS
    assert "products saturate" in caplog.text
    with BGEM3Model.load(int8_artifact, "cpu", "int8") as model:
        expected = model.encode(TEXTS).dense
    monkeypatch.setattr(cpu_session, "product_settings", lambda probe: EXACT_PRODUCTS)
    with BGEM3Model.load(int8_artifact, "cpu", "int8") as model:
        np.testing.assert_allclose(model.encode(TEXTS).dense, expected, atol=1e-6)
    library = next(Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*"))
    assert next(iter(EXACT_PRODUCTS)).encode() in library.read_bytes(), "ONNX Runtime ignores settings of other names"


def test_the_graph_multiplies_in_int8_and_keeps_the_heads_in_float32(int8_artifact: Path) -> None:
    model = onnx.load(int8_artifact / "int8/cpu.onnx", load_external_data=False)
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["MatMulIntegerToFloat"] == 6 * N_LAYERS
    assert counts["QuantizeLinear"] == 4 * N_LAYERS  # one for query, key and value together
    assert counts["Gemm"] == 2
    kinds = Counter(tensor.data_type for tensor in model.graph.initializer if tensor.external_data)
    assert kinds[TensorProto.INT8] == 6 * N_LAYERS + 1  # with the token embeddings
    names = {path.name for path in (int8_artifact / "int8").iterdir()}
    assert names == {"weights.bin", "cpu.onnx", "native.onnx", "probe.onnx"}
    sizes = {name: (int8_artifact / name / "weights.bin").stat().st_size for name in ("fp32", "int8")}
    assert sizes["int8"] < 0.5 * sizes["fp32"]  # position embeddings are a large part of a small model


def test_int8_is_close_to_float32_and_the_manifest_says_how_close(int8_artifact: Path) -> None:
    report = read_artifact(int8_artifact).manifest["int8"]
    assert report["kept_float32"] == []
    assert report["quality"]["dense_min_cosine"] >= 0.998
    assert report["quality"]["bounds"] == quality.BOUNDS
    assert set(report["error_by_group"]) == {f"layer.{i}.{kind}" for i in range(N_LAYERS) for kind in PARTS}
    found: dict[str, NDArray[np.float32]] = {}
    for precision in ("fp32", "int8"):
        with BGEM3Model.load(int8_artifact, "cpu", precision) as model:
            found[precision] = model.encode(TEXTS).dense
            alone = np.concatenate([model.encode([text]).dense for text in TEXTS])
        np.testing.assert_allclose(alone, found[precision], atol=1e-5)
    cosines = (found["fp32"] * found["int8"]).sum(axis=1)
    assert cosines[1:].min() >= 0.999
    assert cosines[0] >= 0.99  # the demo's rows of the empty text are nearly zero, and a shift makes them large
    assert abs(found["int8"] - found["fp32"]).max() > 1e-6, "int8 cannot equal float32: was it run?"


def test_a_failed_gate_keeps_more_groups_in_float32_and_then_refuses(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    n_kept: list[int] = []
    cosines: list[float] = []

    def write(checkpoint: Any, folder: Path, tensors: Any, rounded: Any, kept: Sequence[str]) -> None:
        n_kept.append(len(kept))
        original_write(checkpoint, folder, tensors, rounded, list(kept))

    def compare(*arguments: Any) -> dict[str, Any]:
        report = quality.compare_quality(*arguments)
        cosines.append(report["dense_min_cosine"])
        return report

    original_write = int8._write
    monkeypatch.setattr(int8, "_write", write)
    monkeypatch.setattr(int8, "compare_quality", compare)
    monkeypatch.setattr(int8, "calibration_texts", lambda: list(SENTENCES))
    monkeypatch.setattr(int8, "held_out_pairs", lambda: PAIRS)
    monkeypatch.setattr(int8, "SHARES_KEPT", (0.0, 0.15, 1.0))
    monkeypatch.setitem(quality.BOUNDS, "dense_min_cosine", 1.1)
    folder = tmp_path / "artifact"
    assert cli.main(["export", str(demo_checkpoint), str(folder), "--precision", "fp16", "int8", "--json"]) == 1
    words = "int8 loses too much of this checkpoint, even with 8 of 8 groups"
    assert f"no int8 graph is written: {words}" in capsys.readouterr().err
    assert n_kept == [0, 1, 8]
    assert cosines[0] < cosines[2]
    assert cosines[2] >= 0.9999, "only the token embeddings are int8"
    artifact = read_artifact(folder, check_hashes=True)
    assert {graph.precision for graph in artifact.graphs} == {"fp16"}
    assert "its bound 1.1" in artifact.manifest["int8"]["refused"]
    assert not (folder / "int8").exists()
    with pytest.raises(ParityError, match=words):
        export_model(demo_checkpoint, tmp_path / "alone", "int8")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(("n_positions", "outputs"), [(64, ("dense",)), (5, ("dense", "sparse", "multivector"))])
def test_int8_takes_few_positions_fewer_outputs_and_the_users_own_texts(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_positions: int, outputs: Any
) -> None:
    for path in demo_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name = "embeddings.position_embeddings.weight"
    weights(lambda t: t | {name: t[name][: n_positions + 2].clone()})(tmp_path)
    settings(max_position_embeddings=n_positions + 2)(tmp_path)
    monkeypatch.setattr(int8, "held_out_pairs", lambda: PAIRS)
    manifest = export_model(tmp_path, tmp_path / "artifact", "int8", outputs=outputs, calibration=list(SENTENCES[:5]))
    assert json.loads((tmp_path / "artifact/manifest.json").read_text(encoding="utf-8")) == manifest
    assert manifest["int8"]["n_calibration_texts"] == 5
    assert ("hybrid_top_passages_changed" in manifest["int8"]["quality"]) == (len(outputs) == 3)
    with BGEM3Model.load(tmp_path / "artifact", "cpu") as model:
        assert model.encode(["a long text " * 100]).n_tokens.tolist() == [n_positions]
