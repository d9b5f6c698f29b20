"""Our own CPU operators against NumPy: every kind of kernels that this CPU can run, `portable` among them."""

import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.special import erf, softmax

from bgem3.export.graph import NATIVE_DOMAIN, make_model
from bgem3.export.quantization import INPUTS_PER_BLOCK
from bgem3.runtime.native import best_kernels, library

pytestmark = pytest.mark.skipif(library() is None, reason="the operators were not compiled: no C compiler was found")

Array = NDArray[Any]
KERNELS = ["portable","AVX2","AVX-512 VNNI"]
SHAPES = [(1, 64, 64), (5, 36, 50), (7, 1, 1), (100, 256, 192), (13, 130, 65)]  # rows, inputs, outputs
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}


def run(
    kind: str,
    inputs: list[tuple[str, Array | None]],
    kernels: str,
    *,
    constants: tuple[str, ...] = (),
    n_threads: int = 2,
    **attributes: Any,
) -> Array:
    """Run one operator on named inputs, of which some are constants and some (None) are left out."""
    arrays = {name: array for name, array in inputs if array is not None}
    node = helper.make_node(
        kind, [name if name in arrays else "" for name, _ in inputs], ["y"], domain=NATIVE_DOMAIN, **attributes
    )
    feeds = {name: array for name, array in arrays.items() if name not in constants}
    graph = helper.make_graph(
        [node],
        "operator",
        [helper.make_tensor_value_info(name, TYPES[array.dtype], array.shape) for name, array in feeds.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(arrays[name], name) for name in constants if name in arrays],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 4
    options.add_session_config_entry("bgem3.kernels", kernels)
    options.add_session_config_entry("bgem3.n_threads", str(n_threads))
    options.register_custom_ops_library(str(library()))
    session = onnxruntime.InferenceSession(make_model(graph).SerializeToString(), options)
    return np.asarray(session.run(None, feeds)[0])


def linear(
    rows: Array,
    weight: Array,
    kernels: str,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    scales: Array | None = None,
    smoothing: Array | None = None,
    gelu: int = 0,
    n_threads: int = 2,
) -> Array:
    if weight.dtype == np.int8 and scales is None:
        scales = np.ones(weight.shape[1], np.float32)
    return run(
        "Linear",
        [
            ("rows", rows),
            ("weight", weight),
            ("bias", bias),
            ("residual", residual),
            ("scales", scales),
            ("smoothing", smoothing),
        ],
        kernels,
        constants=("weight", "bias", "scales", "smoothing"),
        n_threads=n_threads,
        gelu=gelu,
    )


def attend(qkv: Array, cu_seqlens: list[int], n_heads: int, kernels: str) -> Array:
    queries, keys, values = (np.ascontiguousarray(part) for part in np.split(qkv, 3, axis=1))
    limits = np.array(cu_seqlens, np.int64)
    inputs: list[tuple[str, Array | None]] = [
        ("queries", queries),
        ("keys", keys),
        ("values", values),
        ("cu_seqlens", limits),
    ]
    return run("PackedAttention", inputs, kernels, n_heads=n_heads)


def quantize(rows: Array) -> tuple[Array, Array]:
    """Quantize rows (T, K) as the operator does: levels from the zero point, and the scale of each, its block's."""
    starts = np.arange(0, rows.shape[1], INPUTS_PER_BLOCK)
    largest = np.maximum.reduceat(rows, starts, axis=1).clip(min=0)  # (T, n_blocks)
    least = np.minimum.reduceat(rows, starts, axis=1).clip(max=0)
    most = min(64, 65536 // rows.shape[1])
    widest = (largest - least).max(axis=1, keepdims=True)
    unit = np.maximum(widest, np.float32(1e-12)) / np.float32(255) / np.float32(most)  # (T, 1)
    factors = np.ceil((largest - least) / np.float32(255) / unit).clip(1, most).astype(np.float32)
    scales, zero_points = factors * unit, np.rint(-least * (1 / (factors * unit)))  # (T, n_blocks)
    scales, zero_points = (
        np.repeat(values, INPUTS_PER_BLOCK, axis=1)[:, : rows.shape[1]] for values in (scales, zero_points)
    )
    levels = np.clip(np.rint(rows * (1 / scales)) + zero_points, 0, 255) - zero_points
    return levels, scales  # both (T, K)


def random_weight(rng: np.random.Generator, n_inputs: int, n_outputs: int) -> Array:
    return rng.integers(-127, 128, (n_inputs, n_outputs)).astype(np.int8)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("shape", [*SHAPES, (51, 2900, 70)])
@pytest.mark.parametrize("offset", [0, 3, -3])
def test_a_product_of_int8_weights_is_its_formula(kernels: str, shape: tuple[int, int, int], offset: int) -> None:
    rng = np.random.default_rng(0)
    n_rows, n_inputs, n_outputs = shape
    rows = rng.standard_normal((n_rows, n_inputs), np.float32) + np.float32(offset)
    rows *= 4 ** np.sin(np.arange(n_inputs, dtype=np.float32) / 99)
    smoothing, scales = rng.random(n_inputs, np.float32) + 0.5, 0.01 * rng.random(n_outputs, np.float32)
    bias, residual = rng.standard_normal(n_outputs, np.float32), rng.standard_normal((n_rows, n_outputs), np.float32)
    weight = random_weight(rng, n_inputs, n_outputs)
    levels, input_scales = quantize(rows * smoothing)
    expected = (levels * input_scales.astype(np.float64)) @ weight * scales + bias
    found = linear(rows, weight, kernels, scales=scales, bias=bias, smoothing=smoothing, residual=residual)
    np.testing.assert_allclose(found, expected + residual, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_large_input_costs_precision_only_in_its_own_block_of_128(kernels: str) -> None:
    rng = np.random.default_rng(6)
    rows, weight = rng.standard_normal((3, 256), np.float32), random_weight(rng, 256, 20)
    rows[:, 5] = 60
    weight[:128] = 0
    errors = linear(rows, weight, kernels) - rows.astype(np.float64) @ weight
    steps = np.ptp(rows[:, 128:], axis=1) / 255
    expected = np.sqrt(np.square(steps).mean() / 12) * np.linalg.norm(weight.astype(np.float64), axis=0).mean()
    assert 0.5 * expected < errors.std() < 1.5 * expected


@pytest.mark.parametrize("kernels", KERNELS)
def test_blocks_may_be_zero_or_far_apart(kernels: str) -> None:
    rows = np.zeros((1, 300), np.float32)
    rows[0, :3], rows[0, 200] = [1e6, -1e6, 5e5], 1e-3
    weight = np.full((300, 2), 3, np.int8)
    np.testing.assert_allclose(linear(rows, weight, kernels), [[1.5e6, 1.5e6]], rtol=1e-2)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_of_float16_weights_is_its_formula(kernels: str, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(5)
    n_rows, n_inputs, n_outputs = shape
    rows, residual = (rng.standard_normal((n_rows, n), np.float32) for n in (n_inputs, n_outputs))
    weight, bias = (
        rng.standard_normal((n_inputs, n_outputs)).astype(np.float16),
        rng.standard_normal(n_outputs, np.float32),
    )
    weight[0, 0] = 6e-8  # a float16 below the normal ones
    expected = rows.astype(np.float64) @ weight.astype(np.float64) + bias + residual
    np.testing.assert_allclose(linear(rows, weight, kernels, bias=bias, residual=residual), expected, atol=5e-5)
    np.testing.assert_allclose(linear(rows, weight, kernels), rows @ weight.astype(np.float32), atol=5e-5)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("value", [1.0, -1.0])
@pytest.mark.parametrize("n_inputs", [1024, 1025, 4096, 8192])
def test_the_largest_sums_are_exact(kernels: str, sign: int, value: float, n_inputs: int) -> None:
    rows = np.full((2, n_inputs), value, np.float32)
    weight = np.full((n_inputs, 70), 127 * sign, np.int8)
    found = linear(rows, weight, kernels)
    np.testing.assert_allclose(found, 127.0 * sign * value * n_inputs, rtol=1e-6)


@pytest.mark.parametrize("kernels", KERNELS)
def test_pairs_of_products_that_overflow_int16_are_exact(kernels: str) -> None:
    rng = np.random.default_rng(1)
    rows = rng.choice(np.array([0.9, 1], np.float32), (33, 256))  # near the top of uint8
    rows[:, 128:] *= 0.25
    weight = rng.choice(np.array([-127, -90, 1, 90, 127], np.int8), (256, 48))
    levels, scales = quantize(rows)
    np.testing.assert_allclose(linear(rows, weight, kernels), (levels * scales) @ weight, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_row_of_zeros_gives_the_bias(kernels: str) -> None:
    bias = np.arange(3, dtype=np.float32)
    found = linear(np.zeros((1, 8), np.float32), np.ones((8, 3), np.int8), kernels, bias=bias)
    np.testing.assert_array_equal(found, bias[None])


@pytest.mark.parametrize("kernels", KERNELS)
def test_gelu_is_exact_to_two_millionths(kernels: str) -> None:
    rows = np.linspace(-9, 9, 4001, dtype=np.float32)[:, None]
    weight = np.full((1, 1), 127, np.int8)
    scales = np.full(1, 1 / 127, np.float32)
    x = linear(rows, weight, kernels, scales=scales)
    np.testing.assert_allclose(x, rows, rtol=1e-6)  # one input is its own largest: nothing is lost
    expected = x.astype(np.float64) * (1 + erf(x.astype(np.float64) / np.sqrt(2))) / 2
    assert np.abs(linear(rows, weight, kernels, scales=scales, gelu=1) - expected).max() < 2e-6


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [np.int8, np.float16])
def test_a_row_has_the_same_bits_in_any_company_and_on_any_number_of_threads(
    kernels: str, dtype: type[np.generic]
) -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((101, 300), np.float32)
    weight = random_weight(rng, 300, 200).astype(dtype)
    together = linear(rows, weight, kernels, gelu=1)
    for row in (0, 47, 48, 100):
        np.testing.assert_array_equal(linear(rows[row : row + 1], weight, kernels, gelu=1)[0], together[row])
    for n_threads in (1, 5):
        np.testing.assert_array_equal(linear(rows, weight, kernels, gelu=1, n_threads=n_threads), together)


@pytest.mark.parametrize("dtype", [np.int8, np.float16])
def test_products_have_the_same_bits_on_all_kernels(dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(3)
    rows, weight = rng.standard_normal((50, 300), np.float32), random_weight(rng, 300, 100).astype(dtype)
    residual = rng.standard_normal((50, 100), np.float32)
    found = [linear(rows, weight, kernels, gelu=1, residual=residual) for kernels in KERNELS]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("lengths", "n_heads", "size"), [([2, 9, 17], 2, 8), ([300, 1, 600], 1, 64), ([40], 3, 100)])
def test_attention_is_softmax_within_each_text(kernels: str, lengths: list[int], n_heads: int, size: int) -> None:
    rng = np.random.default_rng(4)
    limits = np.cumsum([0, *lengths]).tolist()
    qkv = rng.standard_normal((limits[-1], 3 * n_heads * size), np.float32)
    found = attend(qkv, limits, n_heads, kernels)
    q, k, v = qkv.astype(np.float64).reshape(-1, 3, n_heads, size).transpose(1, 2, 0, 3)  # (heads, T, size)
    for start, stop in itertools.pairwise(limits):
        text = slice(start, stop)
        weights = softmax(q[:, text] @ k[:, text].transpose(0, 2, 1) / np.sqrt(size), axis=-1)
        expected = (weights @ v[:, text]).transpose(1, 0, 2).reshape(stop - start, -1)
        np.testing.assert_allclose(found[text], expected, atol=5e-6)
        alone = attend(qkv[text], [0, stop - start], n_heads, kernels)
        np.testing.assert_array_equal(alone, found[text])


@pytest.mark.parametrize("kernels", KERNELS)
def test_attention_keeps_to_scores_far_apart(kernels: str) -> None:
    qkv = np.zeros((3, 12), np.float32)
    qkv[:, 0] = 1000  # each query's score is 500 times the first value of a key
    qkv[:, 4] = [-1, 0, 1]
    qkv[:, 8] = [5, 6, 7]
    np.testing.assert_allclose(attend(qkv, [0, 3], 1, kernels)[:, 0], 7)


def test_inputs_that_do_not_fit_are_refused() -> None:
    rows, weight = np.ones((2, 8), np.float32), np.ones((9, 3), np.int8)
    with pytest.raises(Exception, match="rows do not fit the weight"):
        linear(rows, weight, "portable")
    with pytest.raises(Exception, match="do not fit the weight"):
        linear(rows, weight[:8], "portable", bias=np.ones(4, np.float32))
    with pytest.raises(Exception, match="residual does not fit"):
        linear(rows, weight[:8], "portable", residual=np.ones((2, 4), np.float32))
    with pytest.raises(Exception, match="K at most 8192"):
        linear(np.ones((1, 8193), np.float32), np.ones((8193, 1), np.int8), "portable")
    with pytest.raises(Exception, match="heads must have one size"):
        attend(np.ones((2, 9), np.float32), [0, 2], 2, "portable")
    with pytest.raises(Exception, match="cu_seqlens must run"):
        attend(np.ones((2, 12), np.float32), [0, 3], 2, "portable")


def test_kernels_that_the_cpu_lacks_are_refused() -> None:
    with pytest.raises(Exception, match="names none that this CPU has"):
        linear(np.ones((1, 8), np.float32), np.ones((8, 3), np.int8), "AVX-1024")
