"""The int8 graph: exact integer arithmetic, results that do not depend on the batch, and a gate that can refuse."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bgem3.export import export_model, int8, quality
from bgem3.export.calibration import observe_inputs
from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.export.cpu_graph import build_probe
from bgem3.export.quantization import PARTS, dequantized_rows, groups, parts, quantize_weight, smooth
from bgem3.export.reference import SENTENCES
from bgem3.export.weights import encoder_tensors
from bgem3.runtime import BGEM3Model, ParityError, cli, session
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.session import EXACT_PRODUCTS, PROBE, open_session, product_settings

TEXTS = ["", *SENTENCES, " ".join(SENTENCES)]
N_LAYERS = 2  # of the demo checkpoint
QUANTIZED = 6 * N_LAYERS


@pytest.fixture(scope="module")
def artifact(demo_checkpoint: Path, export_to_folder: Callable[..., Path]) -> Path:
    return export_to_folder(demo_checkpoint, ("fp32", "int8"))


@pytest.fixture(scope="module")
def checkpoint(demo_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(demo_checkpoint)


def product(rows: NDArray[np.uint8], weight: NDArray[np.int8], scales: NDArray[np.float32], folder: Path) -> Any:
    """Run the graph's product operator as the graph has it."""
    model = build_probe()
    del model.graph.input[:], model.graph.output[:], model.graph.initializer[:]
    for name, kind in (("rows", TensorProto.UINT8), ("scales", TensorProto.FLOAT)):
        model.graph.input.append(helper.make_tensor_value_info(name, kind, None))
    model.graph.output.append(helper.make_tensor_value_info("product", TensorProto.FLOAT, None))
    weight_scales, zero_point = np.ones(weight.shape[1], np.float32), np.array(128, np.uint8)
    for name, array in (("weight", weight), ("weight_scales", weight_scales), ("zero_point", zero_point)):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, folder / "product.onnx")
    onnx.save(build_probe(), folder / PROBE)
    session = open_session(folder / "product.onnx", 1, settings=product_settings(folder / "product.onnx"))
    return session.run(["product"], {"rows": rows, "scales": scales})[0]


@pytest.mark.parametrize("n_inner", [4, 1024])
@pytest.mark.parametrize(("activation", "weight"), [(255, 127), (255, -127), (0, 127), (0, -127)])
def test_the_largest_products_there_are_add_up_exactly(
    tmp_path: Path, n_inner: int, activation: int, weight: int
) -> None:
    """Where pairs of products were added in 16 bits, 2 * 255 * 127 would saturate to 32767."""
    rows, weights = np.full((5, n_inner), activation, np.uint8), np.full((n_inner, 40), weight, np.int8)
    found = product(rows, weights, np.ones((5, 1), np.float32), tmp_path)
    assert (found == (activation - 128) * weight * n_inner).all()


def test_every_row_has_its_own_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, weights = rng.integers(0, 256, (6, 64), np.uint8), rng.integers(-127, 128, (64, 32)).astype(np.int8)
    scales = rng.random((6, 1)).astype(np.float32)
    expected = (rows.astype(np.float64) - 128) @ weights * scales
    np.testing.assert_allclose(product(rows, weights, scales, tmp_path), expected, rtol=1e-6)


def test_the_graph_multiplies_in_int8_and_keeps_the_heads_in_float32(artifact: Path) -> None:
    model = onnx.load(artifact / "int8/cpu.onnx", load_external_data=False)
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["MatMulIntegerToFloat"] == QUANTIZED
    assert counts["QuantizeLinear"] == 4 * N_LAYERS  # one for query, key and value together
    assert counts["Gemm"] == 2
    kinds = Counter(tensor.data_type for tensor in model.graph.initializer if tensor.external_data)
    assert kinds[TensorProto.INT8] == QUANTIZED + 1  # and the token embeddings
    files = {"weights.bin", "cpu.onnx", "native.onnx", "probe.onnx"}
    assert {path.name for path in (artifact / "int8").iterdir()} == files


def test_int8_takes_little_more_than_a_byte_a_weight(artifact: Path) -> None:
    sizes = {name: (artifact / name / "weights.bin").stat().st_size for name in ("fp32", "int8")}
    assert sizes["int8"] < 0.5 * sizes["fp32"]  # position embeddings are a large part of a small model


def test_a_texts_values_do_not_depend_on_its_company(artifact: Path) -> None:
    with BGEM3Model.load(artifact, "cpu", "int8") as model:
        together = model.encode(TEXTS)
        for i, text in enumerate(TEXTS):
            alone = model.encode([text])
            np.testing.assert_allclose(alone.dense[0], together.dense[i], atol=1e-5)
            np.testing.assert_allclose(alone.multivector[0], together.multivector[i], atol=1e-5)
            assert abs(alone.sparse - together.sparse[[i]]).max() <= 1e-5


def test_int8_is_close_to_float32_and_says_so_in_the_manifest(artifact: Path) -> None:
    report = read_artifact(artifact).manifest["int8"]
    assert report["kept_float32"] == []
    assert report["quality"]["dense_min_cosine"] >= 0.998
    assert report["quality"]["bounds"] == quality.BOUNDS
    assert set(report["error_by_group"]) == {f"layer.{i}.{kind}" for i in range(N_LAYERS) for kind in PARTS}
    with BGEM3Model.load(artifact, "cpu", "fp32") as float32, BGEM3Model.load(artifact, "cpu", "int8") as model:
        expected, found = float32.encode(TEXTS), model.encode(TEXTS)
    assert (found.dense * expected.dense).sum(axis=1).min() >= 0.999
    assert abs(found.dense - expected.dense).max() > 1e-6, "int8 cannot equal float32: was it run?"


def test_smoothing_changes_nothing_in_exact_arithmetic(checkpoint: Checkpoint) -> None:
    seen = observe_inputs(checkpoint, list(SENTENCES[:4]))
    largest = {group: inputs.largest for group, inputs in seen.items()}
    before = {name: np.asarray(values) for name, values in encoder_tensors(checkpoint.model)}
    after = dict(before)
    factors = smooth(after, largest, checkpoint.spec)
    rng = np.random.default_rng(0)
    old: Any
    new: Any
    for group in groups(checkpoint.spec):
        for part in parts(group):
            rows = rng.standard_normal((3, before[f"{part}.weight"].shape[0])).astype(np.float32)
            if group.endswith("attention_output"):  # the values come divided
                value = part.replace("attention_output", "value")
                rows = rng.standard_normal((3, before[f"{value}.weight"].shape[0])).astype(np.float32)
                old = (rows @ before[f"{value}.weight"] + before[f"{value}.bias"]) @ before[f"{part}.weight"]
                qkv = group.replace("attention_output", "qkv")
                new = (rows / factors[qkv]) @ after[f"{value}.weight"] @ after[f"{part}.weight"]
                new = new + after[f"{part}.bias"] - before[f"{part}.bias"]
            elif part.endswith("value"):
                continue
            else:
                old = rows @ before[f"{part}.weight"]
                new = (rows * after.get(f"{group}.smoothing", np.float32(1))) @ after[f"{part}.weight"]
            np.testing.assert_allclose(new, old, rtol=0, atol=1e-4 * np.abs(old).max())


def test_weights_are_rounded_by_at_most_half_a_step_of_their_column() -> None:
    weight = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32) * np.logspace(
        -3, 3, 7, dtype=np.float32
    )
    weight[:, 3] = 0
    quantized = quantize_weight(weight)
    assert quantized.values.dtype == np.int8
    error = np.abs(quantized.values * quantized.scales - weight)
    assert (error <= quantized.scales * 0.5001).all()
    assert np.abs(quantized.values[:, :3]).max(axis=0).tolist() == [127] * 3


@pytest.mark.parametrize("group", ["layer.0.qkv", "layer.0.output"])
def test_rows_are_rounded_by_at_most_half_a_step_of_their_own(group: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((9, 64)).astype(np.float32) * np.logspace(-3, 3, 9, dtype=np.float32)[:, None]
    rows[4] = 0
    if group.endswith("output"):
        rows = np.maximum(rows, -0.17)  # as GELU's
    found = dequantized_rows(rows, group)
    levels = {"layer.0.qkv": 127, "layer.0.output": 191}[group]
    steps = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / levels, 0.17 / 64 if levels == 191 else 1e-12)
    assert (np.abs(found - rows) <= 0.501 * steps).all()


def test_outlier_channels_break_a_scale_for_the_whole_tensor_and_not_one_for_each_row(checkpoint: Checkpoint) -> None:
    """The reason for rows and smoothing: with one scale a few channels take all the levels from the others."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 256)).astype(np.float32)
    rows[:, [5, 99]] *= 100
    rows[7] *= 30
    weight = rng.standard_normal((256, 64)).astype(np.float32)
    scale = np.abs(rows).max() / 127
    per_tensor = (np.rint(rows / scale) * scale) @ weight
    factors = np.sqrt(np.abs(rows).max(axis=0) / np.abs(weight).max(axis=1))
    per_row = dequantized_rows((rows / factors).astype(np.float32), "layer.0.qkv") @ (weight * factors[:, None])
    expected = rows @ weight
    errors = [np.linalg.norm(found - expected) / np.linalg.norm(expected) for found in (per_tensor, per_row)]
    assert errors[0] > 10 * errors[1]


def test_a_gate_that_is_not_passed_keeps_more_in_float32_and_then_refuses(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    write = int8._write

    def counted(checkpoint: Checkpoint, folder: Path, tensors: Any, kept: list[str]) -> None:
        tried.append(len(kept))
        write(checkpoint, folder, tensors, kept)

    monkeypatch.setattr(int8, "_write", counted)
    monkeypatch.setitem(quality.BOUNDS, "dense_min_cosine", 1.1)
    with pytest.raises(
        ParityError, match=r"int8 loses too much .*3 of 8 groups .*dense_min_cosine is .*, its bound 1.1"
    ):
        export_model(demo_checkpoint, tmp_path / "artifact", "int8")
    assert tried == [0, 0, 1, 3]
    assert list(tmp_path.iterdir()) == []


def test_int8_that_is_refused_costs_no_other_precision(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(quality.BOUNDS, "dense_min_cosine", 1.1)
    folder = tmp_path / "artifact"
    arguments = ["export", str(demo_checkpoint), str(folder), "--precision", "fp16", "int8", "--json"]
    assert cli.main(arguments) == 1
    assert "no int8 graph is written: int8 loses too much" in capsys.readouterr().err
    artifact = read_artifact(folder, check_hashes=True)
    assert {precision for precision, _ in artifact.graphs} == {"fp16"}
    assert "its bound 1.1" in artifact.manifest["int8"]["refused"]
    assert not (folder / "int8").exists()


def test_groups_kept_in_float32_make_the_graph_better(
    demo_checkpoint: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    seen = observe_inputs(checkpoint, list(SENTENCES))
    largest = {group: inputs.largest for group, inputs in seen.items()}
    tensors = {name: np.asarray(values) for name, values in encoder_tensors(checkpoint.model)}
    smooth(tensors, largest, checkpoint.spec)
    pairs = [("What opens early?", SENTENCES[3]), ("When does the library open?", SENTENCES[11])]
    texts, expected = quality.quality_reference(checkpoint, pairs)
    (tmp_path / "int8").mkdir()
    (tmp_path / "tokenizer.json").write_bytes((demo_checkpoint / "tokenizer.json").read_bytes())
    cosines = []
    every = list(groups(checkpoint.spec))
    for kept in ([], every):
        int8._write(checkpoint, tmp_path, tensors, kept)
        report = quality.compare_quality(int8._encode(checkpoint, tmp_path, texts), expected, n_questions=2)
        cosines.append(report["dense_min_cosine"])
    assert cosines[0] < cosines[1]  # what is left is the int8 token embeddings
    assert cosines[1] >= 0.9999


def test_calibration_takes_the_users_own_texts(
    demo_checkpoint: Path, tmp_path: Path, make_random_checkpoint: Callable[..., Path]
) -> None:
    manifest = export_model(demo_checkpoint, tmp_path / "artifact", "int8", calibration=list(SENTENCES[:5]))
    assert manifest["int8"]["n_calibration_texts"] == 5
    assert json.loads((tmp_path / "artifact/manifest.json").read_text(encoding="utf-8"))["int8"] == manifest["int8"]


def test_a_cpu_whose_products_saturate_gets_exact_ones(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A probe whose sum is another one stands for such a CPU; the exact kernels give the same sums here."""
    with BGEM3Model.load(artifact, "cpu", "int8") as model:
        expected = model.encode(TEXTS).dense
    assert product_settings(artifact / "fp32/cpu.onnx") == {}
    folder = tmp_path / "artifact"
    shutil.copytree(artifact, folder)
    probe = build_probe()
    probe.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((64, 16), 126, np.int8), "weight"))
    onnx.save(probe, tmp_path / PROBE)
    with caplog.at_level(logging.INFO):
        assert product_settings(tmp_path / "cpu.onnx") == EXACT_PRODUCTS
    assert "products saturate" in caplog.text
    monkeypatch.setattr(session, "product_settings", lambda path: EXACT_PRODUCTS)
    with BGEM3Model.load(folder, "cpu", "int8") as model:
        np.testing.assert_allclose(model.encode(TEXTS).dense, expected, atol=1e-6)


def test_onnx_runtime_knows_the_setting_that_keeps_sums_exact_without_vnni() -> None:
    """A setting of an unknown name would be taken silently, so its name is looked for in the library."""
    library = next(Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*"))
    assert b"session.x64quantprecision" in library.read_bytes()
