"""The stand-ins for ONNX Runtime's contrib operators equal torch's operators and ONNX Runtime's CPU kernels."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

from tests.export.contrib_ops import Array, evaluate, for_cpu

N_HEADS, HEAD_SIZE = 3, 8
HIDDEN = N_HEADS * HEAD_SIZE

with_each_dtype = pytest.mark.parametrize("dtype", [np.float16, np.float32])
with_mixed_lengths = pytest.mark.parametrize(
    "lengths", [[1], [6], [1, 1, 1], [4, 4], [3, 1, 5], [1, 2, 4], [5, 2, 1, 0]], ids=str
)


def save_node(
    folder: Path, kind: str, inputs: dict[str, Array], domain: str = "com.microsoft", **settings: Any
) -> Path:
    """Write a model of one node; an input of size 0 is left out, and ``bias`` lies in an external data file."""
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    given = [name if inputs[name].size else "" for name in inputs]
    values = [helper.make_tensor_value_info(name, types[name], None) for name in given if name not in ("", "bias")]
    output = helper.make_tensor_value_info("output", next(iter(types.values())), None)
    weights = [numpy_helper.from_array(inputs[name], name) for name in given if name == "bias"]
    node = helper.make_node(kind, given, ["output"], domain=domain, **settings)
    graph = helper.make_graph([node], kind, values, [output], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save_model(model, folder / "node.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "node.onnx"


def feeds(inputs: dict[str, Array]) -> dict[str, Array]:
    return {name: array for name, array in inputs.items() if array.size and name != "bias"}


def run_in_numpy(folder: Path, kind: str, inputs: dict[str, Array], **settings: Any) -> Array:
    return evaluate(save_node(folder, kind, inputs, **settings), feeds(inputs))["output"]


def run_in_ort(path: Path, inputs: dict[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["output"], feeds(inputs))[0])


def assert_rounded_once(found: Array, expected: Array, dtype: Any) -> None:
    """Allow float32's errors, and one rounding to float16."""
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    np.testing.assert_allclose(found, expected, rtol=np.finfo(dtype).eps, atol=2e-6)


def normal(seed: int, shape: tuple[int, ...], dtype: Any) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def double(array: Array) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64))


def packed_inputs(lengths: list[int], dtype: Any) -> dict[str, Array]:
    """Make random queries, keys and values, and the layout of texts of these lengths."""
    is_token = np.arange(max(lengths)) < np.array(lengths)[:, None]  # (B, S)
    slots = np.concatenate([np.flatnonzero(is_token), np.flatnonzero(~is_token)])
    left_out = np.empty(0, dtype)
    return {
        "query": 2 * normal(1, (sum(lengths), N_HEADS, 3, HEAD_SIZE), dtype),
        "key": left_out,
        "value": left_out,
        "bias": normal(2, (3 * HIDDEN,), dtype),
        "token_offset": slots.reshape(is_token.shape).astype(np.int32),
        "cumulative_sequence_length": np.cumsum([0, *lengths], dtype=np.int32),
    }


def attend_text_by_text(inputs: dict[str, Array], scale: float | None = None) -> Array:
    """Compute packed attention by torch in float64."""
    parts = double(inputs["query"]) + double(inputs["bias"]).reshape(3, N_HEADS, HEAD_SIZE).transpose(0, 1)
    queries, keys, values = parts.permute(2, 1, 0, 3)  # (N, T, H) each
    ends = inputs["cumulative_sequence_length"].tolist()
    texts = [slice(start, end) for start, end in itertools.pairwise(ends)]
    attend = functional.scaled_dot_product_attention
    contexts = [attend(queries[:, text], keys[:, text], values[:, text], scale=scale) for text in texts]
    return np.asarray(torch.cat(contexts, dim=1).transpose(0, 1).reshape(-1, HIDDEN))


def test_the_layout_is_the_one_in_the_operators_documentation() -> None:
    inputs = packed_inputs([1, 2, 4], np.float32)
    assert inputs["token_offset"].flatten().tolist() == [0, 4, 5, 8, 9, 10, 11, 1, 2, 3, 6, 7]
    assert inputs["cumulative_sequence_length"].tolist() == [0, 1, 1 + 2, 1 + 2 + 4]


@with_each_dtype
@with_mixed_lengths
def test_packed_attention_equals_attention_text_by_text(lengths: list[int], dtype: Any, tmp_path: Path) -> None:
    inputs = packed_inputs(lengths, dtype)
    found = run_in_numpy(tmp_path, "PackedMultiHeadAttention", inputs, num_heads=N_HEADS)
    assert_rounded_once(found, attend_text_by_text(inputs), dtype)


@with_each_dtype
@with_mixed_lengths
def test_packed_attention_in_standard_operators_equals_the_numpy_one(
    lengths: list[int], dtype: Any, tmp_path: Path
) -> None:
    inputs = packed_inputs(lengths, dtype)
    path = save_node(tmp_path, "PackedMultiHeadAttention", inputs, num_heads=N_HEADS)
    found = run_in_ort(for_cpu(path, tmp_path / "cpu.onnx"), inputs)
    assert_rounded_once(found, evaluate(path, feeds(inputs))["output"], dtype)


def test_a_given_scale_replaces_the_default(tmp_path: Path) -> None:
    inputs = packed_inputs([3, 1, 5], np.float32)
    path = save_node(tmp_path, "PackedMultiHeadAttention", inputs, num_heads=N_HEADS, scale=0.25)
    expected = attend_text_by_text(inputs, scale=0.25)
    assert_rounded_once(evaluate(path, feeds(inputs))["output"], expected, np.float32)
    assert_rounded_once(run_in_ort(for_cpu(path, tmp_path / "cpu.onnx"), inputs), expected, np.float32)


def test_separate_queries_keys_and_values_give_the_same_attention(tmp_path: Path) -> None:
    inputs = packed_inputs([3, 1, 5], np.float16)
    expected = attend_text_by_text(inputs)
    query, key, value = inputs["query"].transpose(2, 0, 1, 3).reshape(3, -1, HIDDEN)
    separate = inputs | {"query": query, "key": key, "value": value}
    found = run_in_numpy(tmp_path, "PackedMultiHeadAttention", separate, num_heads=N_HEADS)
    assert_rounded_once(found, expected, np.float16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_offset": np.array([[0, 1], [2, 3]], np.int32)},  # a token of the second text in the first's padding
        {"token_offset": np.array([[2, 0], [3, 1]], np.int32)},  # the texts' first tokens swapped
        {"cumulative_sequence_length": np.array([0, 2, 3], np.int32)},  # a token too many in the first text
    ],
    ids=["padding", "texts", "lengths"],
)
def test_a_wrong_layout_changes_the_attention(wrong: dict[str, Array], tmp_path: Path) -> None:
    inputs = packed_inputs([1, 2], np.float32)
    found = run_in_numpy(tmp_path, "PackedMultiHeadAttention", inputs | wrong, num_heads=N_HEADS)
    assert np.abs(found - attend_text_by_text(inputs)).max() > 0.1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token_offset": np.arange(4, dtype=np.int32)}, "token_offset"),
        ({"token_offset": np.arange(4).reshape(2, 2)}, "token_offset .* int32"),
        ({"token_offset": np.array([[0, 2], [2, 1]], np.int32)}, "each of 4 slots once"),
        ({"cumulative_sequence_length": np.array([0, 3], np.int32)}, r"\(3,\)"),
        ({"cumulative_sequence_length": np.array([0, 1, 3])}, "int32"),
        ({"cumulative_sequence_length": np.array([0, 1, 2], np.int32)}, "from 0 to 3"),
        ({"cumulative_sequence_length": np.array([0, 3, 3], np.int32)}, "steps of 0 to 2"),
        ({"bias": np.zeros(HIDDEN, np.float32)}, r"\(72,\)"),
        ({"bias": np.zeros(3 * HIDDEN, np.float16)}, "float32"),
        ({"query": np.zeros((3, 3, N_HEADS + 1, HEAD_SIZE), np.float32)}, r"\(T, 3, 3, H\)"),
        ({"query": np.zeros((3, HIDDEN), np.float32)}, "query, key and value"),
        ({"key": np.zeros((3, HIDDEN), np.float32)}, "alone"),
    ],
)
def test_attention_refuses_what_the_kernel_does_not_take(wrong: dict[str, Array], message: str, tmp_path: Path) -> None:
    inputs = packed_inputs([1, 2], np.float32) | wrong
    with pytest.raises(ValueError, match=message):
        run_in_numpy(tmp_path, "PackedMultiHeadAttention", inputs, num_heads=N_HEADS)


def test_a_copy_for_the_cpu_stays_with_its_weights_and_needs_packed_inputs(tmp_path: Path) -> None:
    inputs = packed_inputs([1, 2], np.float32)
    path = save_node(tmp_path, "PackedMultiHeadAttention", inputs, num_heads=N_HEADS)
    with pytest.raises(ValueError, match="not in the folder"):
        for_cpu(path, tmp_path.parent / "cpu.onnx")
    separate = inputs | {"key": np.zeros((3, HIDDEN), np.float32), "value": np.zeros((3, HIDDEN), np.float32)}
    path = save_node(tmp_path, "PackedMultiHeadAttention", separate, num_heads=N_HEADS)
    with pytest.raises(ValueError, match="does not take packed"):
        for_cpu(path, tmp_path / "cpu.onnx")


@with_each_dtype
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(7, HIDDEN), (2, 3, HIDDEN)], ids=str)
def test_skip_layer_normalisation_equals_torch_and_ort(
    shape: tuple[int, ...], has_bias: bool, dtype: Any, tmp_path: Path
) -> None:
    inputs = {"input": 300 * normal(1, shape, dtype), "skip": 300 * normal(2, shape, dtype)}  # squares exceed float16
    inputs |= {name: normal(seed, (HIDDEN,), dtype) for seed, name in enumerate(("gamma", "beta", "bias"), 3)}
    inputs["bias"] = inputs["bias"][: HIDDEN * has_bias]
    summed = double(inputs["input"]) + double(inputs["skip"]) + (double(inputs["bias"]) if has_bias else 0)
    expected = functional.layer_norm(summed, (HIDDEN,), double(inputs["gamma"]), double(inputs["beta"]), 1e-5).numpy()
    path = save_node(tmp_path, "SkipLayerNormalization", inputs, epsilon=1e-5)
    assert_rounded_once(evaluate(path, feeds(inputs))["output"], expected, dtype)
    assert_rounded_once(run_in_ort(path, inputs), expected, dtype)


@with_each_dtype
def test_bias_gelu_equals_torch_and_ort(dtype: Any, tmp_path: Path) -> None:
    inputs = {"rows": 3 * normal(1, (9, HIDDEN), dtype), "bias": normal(2, (HIDDEN,), dtype)}
    expected = functional.gelu(double(inputs["rows"]) + double(inputs["bias"])).numpy()
    path = save_node(tmp_path, "BiasGelu", inputs)
    assert_rounded_once(evaluate(path, feeds(inputs))["output"], expected, dtype)
    assert_rounded_once(run_in_ort(path, inputs), expected, dtype)


def test_a_product_in_float16_is_rounded_after_its_bias(tmp_path: Path) -> None:
    ones = np.ones((1, 2049), np.float16)
    inputs = {"rows": ones, "weights": ones.T, "added": np.ones(1, np.float16)}
    found = run_in_numpy(tmp_path, "Gemm", inputs, domain="")
    assert found.item() == 2050  # 2049 alone would be rounded to 2048


def test_norms_in_float16_square_in_float32(tmp_path: Path) -> None:
    rows, gamma = 300 * normal(1, (4, HIDDEN), np.float16), normal(2, (HIDDEN,), np.float16)  # squares exceed float16
    lengths = run_in_numpy(tmp_path, "ReduceL2", {"rows": rows, "axes": np.array([-1])}, domain="")
    assert_rounded_once(lengths, np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True), np.float16)
    normalised = run_in_numpy(tmp_path, "LayerNormalization", {"rows": rows, "gamma": gamma}, domain="")
    expected = functional.layer_norm(double(rows), (HIDDEN,), double(gamma)).numpy()
    assert_rounded_once(normalised, expected, np.float16)
