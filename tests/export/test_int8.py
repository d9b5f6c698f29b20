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

from bgem3.export import export_model, int8, smoothing
from bgem3.export import quality_gate as quality
from bgem3.export.calibration import sample_inputs
from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.export.cpu_graph import build_cpu_graph, build_probe
from bgem3.export.gptq import round_weight
from bgem3.export.quantization import PARTS, column_scales, dequantized_rows, groups, parts, quantize_weight
from bgem3.export.reference import SENTENCES
from bgem3.export.sensitivity import output_sensitivities
from bgem3.export.smoothing import fit_smoothing, fit_smoothings, smooth
from bgem3.export.weights import WeightsFile, encoder_tensors
from bgem3.runtime import BGEM3Model, ParityError, cli
from bgem3.runtime import cpu_session as session
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import EXACT_PRODUCTS, PROBE, open_session, product_settings

TEXTS = ["", *SENTENCES, " ".join(SENTENCES)]
N_LAYERS = 2  # of the demo checkpoint
QUANTIZED = 6 * N_LAYERS


@pytest.fixture(scope="module")
def artifact(int8_artifact: Path) -> Path:
    return int8_artifact


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
    cosines = (found.dense * expected.dense).sum(axis=1)
    assert cosines[1:].min() >= 0.999
    assert cosines[0] >= 0.99  # of the empty text the demo makes nearly zero rows, which a shift makes large ones
    assert abs(found.dense - expected.dense).max() > 1e-6, "int8 cannot equal float32: was it run?"


@pytest.fixture
def graph_folder(demo_checkpoint: Path, tmp_path: Path) -> Path:
    """A folder in which an int8 graph can be written and run."""
    (tmp_path / "int8").mkdir()
    (tmp_path / "tokenizer.json").write_bytes((demo_checkpoint / "tokenizer.json").read_bytes())
    return tmp_path


def test_smoothing_changes_nothing_in_exact_arithmetic(
    artifact: Path, checkpoint: Checkpoint, graph_folder: Path
) -> None:
    samples = sample_inputs(checkpoint, list(SENTENCES[:4]))
    sensitivities = output_sensitivities(checkpoint, list(SENTENCES[:4]))
    tensors = {name: np.asarray(values) for name, values in encoder_tensors(checkpoint.model)}
    smoothings = fit_smoothings(samples, tensors, sensitivities)
    assert set(smoothings) == set(groups(checkpoint.spec))
    assert all(np.ptp(smoothing.factors) > 0.1 for smoothing in smoothings.values())
    assert all(smoothing.shifts.any() != group.endswith("output") for group, smoothing in smoothings.items())
    smooth(tensors, smoothings, checkpoint.spec)
    with WeightsFile(graph_folder / "int8/weights.bin", np.float32) as weights:
        for name, values in tensors.items():
            weights.write(name, values)
    onnx.save(build_cpu_graph(checkpoint.spec, weights), graph_folder / int8.FILE)
    found = int8._encode(checkpoint, graph_folder, TEXTS)
    with BGEM3Model.load(artifact, "cpu", "fp32") as model:
        expected = model.encode(TEXTS)
    np.testing.assert_allclose(found.dense, expected.dense, atol=1e-5)
    np.testing.assert_allclose(found.multivector.packed, expected.multivector.packed, atol=1e-5)
    assert abs(found.sparse - expected.sparse).max() < 1e-5


def test_fitted_smoothing_beats_smoothquant_where_channels_are_off_centre_and_some_outputs_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((256, 64)) + rng.choice([-8, 0, 8], 64)).astype(np.float32)
    weight = rng.standard_normal((64, 48)).astype(np.float32)
    weight[:, 24:] *= rng.choice([1, 20], (64, 1)).astype(np.float32)
    sensitivity = np.where(np.arange(48) < 24, 1, 1e-4).astype(np.float32)

    def error(shifts: NDArray[np.float32], factors: NDArray[np.float32]) -> float:
        smoothed = ((rows - shifts) / factors).astype(np.float32)
        noise = (dequantized_rows(smoothed, "layer.0.qkv") - smoothed) @ (weight * factors[:, None])
        return float((np.square(noise) * sensitivity).mean())

    fitted = fit_smoothing(rows, weight, sensitivity, zero_point=128, is_shifted=True)
    unshifted = fit_smoothing(rows, weight, sensitivity, zero_point=128, is_shifted=False)
    smoothquant = np.sqrt(np.abs(rows).max(axis=0) / np.abs(weight).max(axis=1))
    errors = [
        error(fitted.shifts, fitted.factors),
        error(unshifted.shifts, unshifted.factors),
        error(np.zeros_like(smoothquant), smoothquant),
    ]
    assert not unshifted.shifts.any()
    assert 2 * errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(("group", "zero_point"), [("layer.0.qkv", 128), ("layer.0.output", 64)])
def test_smoothing_is_fitted_to_blocks_of_rows_or_to_whole_rows_as_their_share_says(
    monkeypatch: pytest.MonkeyPatch, group: str, zero_point: int
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 256)).astype(np.float32) * np.repeat([10, 1], 128).astype(np.float32)
    if zero_point == 64:
        rows = np.maximum(rows, -0.3 * np.abs(rows))
    weight = rng.standard_normal((256, 48)).astype(np.float32)
    sensitivity = np.ones(48, np.float32)

    def errors() -> tuple[float, float]:
        factors = fit_smoothing(rows, weight, sensitivity, zero_point=zero_point, is_shifted=False).factors
        smoothed = (rows / factors).astype(np.float32)
        blocks = smoothed.reshape(200, 2, 128)
        steps = np.ptp(blocks, axis=2, keepdims=True) / 255
        in_blocks = (np.rint(blocks / steps) * steps).reshape(200, 256)
        found = [
            np.square((rounded - smoothed) @ (weight * factors[:, None])).mean()
            for rounded in (in_blocks, dequantized_rows(smoothed, group))
        ]
        return float(found[0]), float(found[1])

    monkeypatch.setattr(smoothing, "WEIGHT_SHARE", 0.0)
    of_share = {}
    for share in (0.0, 1.0):
        monkeypatch.setattr(smoothing, "WHOLE_ROW_SHARE", share)
        of_share[share] = errors()
    assert of_share[0.0][0] < of_share[1.0][0]
    assert of_share[1.0][1] < of_share[0.0][1]
    zero_point = 192 - zero_point  # the other one
    assert errors()[1] > of_share[1.0][1], "the zero point counts"


def test_sensitivities_are_of_every_projection_and_highest_where_the_sparse_head_reads(checkpoint: Checkpoint) -> None:
    sensitivities = output_sensitivities(checkpoint, [SENTENCES[3]])
    assert set(sensitivities) == {part for group in groups(checkpoint.spec) for part in parts(group)}
    assert all(np.isfinite(values).all() and (values >= 0).all() for values in sensitivities.values())
    assert sensitivities[f"layer.{N_LAYERS - 1}.output"].argmax() == 0  # the demo's rarity, which its sparse head reads
    for layer in range(N_LAYERS):  # the demo's queries are constant, so what an error in them does is little
        assert sensitivities[f"layer.{layer}.query"].max() < 0.1 * sensitivities[f"layer.{layer}.value"].max()


def test_rounding_by_products_beats_rounding_to_the_nearest_on_rows_it_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((12, 96))
    rows = (rng.standard_normal((600, 12)) @ mixing + 0.3 * rng.standard_normal((600, 96))).astype(np.float32)
    weight = rng.standard_normal((96, 40)).astype(np.float32)
    seen, unseen = rows[:300], rows[300:]
    by_products, nearest = round_weight(weight, seen), quantize_weight(weight)
    np.testing.assert_array_equal(by_products.scales, nearest.scales)
    assert np.abs(by_products.values.astype(int)).max() <= 127
    errors = [np.linalg.norm(unseen @ (rounded.values * rounded.scales - weight)) for rounded in (by_products, nearest)]
    assert errors[0] < 0.6 * errors[1]


def test_rounding_by_products_takes_inputs_that_are_always_zero() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    for rows in (np.zeros((5, 8), np.float32), np.eye(8, dtype=np.float32)[:3]):
        rounded = round_weight(weight, rows)
        assert np.abs(rounded.values * rounded.scales - weight).max() <= column_scales(weight).max() * 0.51


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
    zero = {"layer.0.qkv": 128, "layer.0.output": 64}[group]
    found = dequantized_rows(rows, group)
    steps = np.maximum(rows.max(axis=1, keepdims=True) / (255 - zero), rows.min(axis=1, keepdims=True) / -zero)
    assert (np.abs(found - rows) <= 0.501 * steps).all(), "no value may saturate"


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

    def counted(checkpoint: Checkpoint, folder: Path, tensors: Any, rounded: Any, kept: list[str]) -> None:
        tried.append(len(kept))
        write(checkpoint, folder, tensors, rounded, kept)

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


def test_groups_kept_in_float32_make_the_graph_better(checkpoint: Checkpoint, graph_folder: Path) -> None:
    tensors = {name: np.asarray(values) for name, values in encoder_tensors(checkpoint.model)}
    rounded, _ = int8._quantize(checkpoint, list(SENTENCES), tensors, show_progress=False)
    pairs = [("What opens early?", SENTENCES[3]), ("When does the library open?", SENTENCES[11])]
    texts, expected = quality.quality_reference(checkpoint, pairs)
    cosines = []
    every = list(groups(checkpoint.spec))
    for kept in ([], every):
        int8._write(checkpoint, graph_folder, tensors, rounded, kept)
        report = quality.compare_quality(int8._encode(checkpoint, graph_folder, texts), expected, n_questions=2)
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
