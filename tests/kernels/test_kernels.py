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
from bgem3.runtime.custom_ops import library
from tests.kernels.cpu_kernels import supported_kernels

pytestmark = pytest.mark.skipif(library() is None, reason="the operators were not compiled: no C compiler was found")

Array = NDArray[Any]
KERNELS = supported_kernels()
SHAPES = [(1, 64, 64), (5, 36, 50), (7, 1, 1), (100, 256, 192), (13, 130, 65)]  # rows, inputs, outputs
NOT_FINITE = [np.nan, np.inf, -np.inf]


def run(
    kind: str,
    inputs: list[tuple[str, Array | None]],
    kernels: str,
    *,
    constants: tuple[str, ...] = (),
    n_threads: object = 2,
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
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(arrays[name], name) for name in constants if name in arrays],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads if isinstance(n_threads, int) else 2
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


def product_with(kernels: str, rows: Array, dtype: type[np.generic], gelu: int, with_residual: bool) -> Array:
    """Return the product of rows (T, 300) with a weight, the same in every call."""
    rng = np.random.default_rng(8)
    weight = random_weight(rng, 300, 70).astype(dtype)
    weight[:, 3] = 0
    residual = np.ones((len(rows), 70), np.float32) if with_residual else None
    smoothing = np.full(300, 0.5, np.float32) if dtype == np.int8 else None
    return linear(rows, weight, kernels, gelu=gelu, residual=residual, smoothing=smoothing)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [np.int8, np.float16])
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(("gelu", "with_residual"), [(0, False), (1, False), (1, True)])
def test_a_value_that_is_not_finite_leaves_only_its_own_row_not_finite(
    kernels: str, dtype: type[np.generic], value: float, gelu: int, with_residual: bool
) -> None:
    rows = np.random.default_rng(7).standard_normal((60, 300), np.float32)
    plain = product_with(kernels, rows, dtype, gelu, with_residual)
    damaged = [0, 7, 31, 48, 59]
    rows[damaged, [0, 127, 128, 298, 299]] = value
    found = product_with(kernels, rows, dtype, gelu, with_residual)
    others = np.setdiff1d(np.arange(60), damaged)
    np.testing.assert_array_equal(found[others], plain[others])
    if np.isnan(value) or dtype == np.int8:
        assert np.isnan(found[damaged]).all()
    elif not gelu:
        assert not np.isfinite(found[damaged]).any()


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_row_whose_range_is_not_finite_is_nan(kernels: str) -> None:
    rows = np.ones((2, 8), np.float32)
    rows[0, :2] = [3e38, -3e38]
    found = linear(rows, np.ones((8, 3), np.int8), kernels)
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], 8)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("part", ["residual", "weight"])
def test_what_is_not_finite_in_a_residual_or_a_float16_weight_stays_where_it_is(
    kernels: str, value: float, part: str
) -> None:
    rng = np.random.default_rng(9)
    rows, weight = rng.random((20, 50), np.float32) + 0.1, rng.random((50, 30)).astype(np.float16)
    residual = rng.random((20, 30), np.float32)
    plain = linear(rows, weight, kernels, residual=residual)
    mask = np.zeros(plain.shape, bool)
    if part == "residual":
        residual[4, 5], mask[4, 5] = value, True
    else:
        weight[11, 7], mask[:, 7] = value, True
    found = linear(rows, weight, kernels, residual=residual)
    np.testing.assert_array_equal(found[mask], np.full(mask.sum(), value, np.float32))
    np.testing.assert_array_equal(found[~mask], plain[~mask])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("token", [0, 299, 570])
def test_attention_to_values_that_are_not_finite_is_softmax_attention(
    kernels: str, value: float, part: int, token: int
) -> None:
    limits, n_heads, size = [0, 40, 300, 580], 2, 20
    qkv = np.random.default_rng(10).standard_normal((580, 3, n_heads, size), np.float32)
    plain = attend(qkv.reshape(580, -1), limits, n_heads, kernels).reshape(580, n_heads, size)
    qkv[token, part, 1, 3] = value
    found = attend(qkv.reshape(580, -1), limits, n_heads, kernels).reshape(580, n_heads, size)
    text = next(slice(*pair) for pair in itertools.pairwise(limits) if pair[0] <= token < pair[1])
    q, k, v = qkv[text, :, 1].astype(np.float64).transpose(1, 0, 2)
    with np.errstate(invalid="ignore"):  # infinite minus infinite
        expected = softmax(q @ k.T / np.sqrt(size), axis=-1) @ v
    np.testing.assert_allclose(found[text, 1], expected, atol=5e-6)
    assert not np.isfinite(expected).all()
    found[text, 1] = plain[text, 1]
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_text_of_one_token_whose_query_is_not_finite_is_nan(kernels: str, value: float) -> None:
    for key in (1, -1):
        qkv = np.array([[value, key, 5]], np.float32)
        assert np.isnan(attend(qkv, [0, 1], 1, kernels)).all()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("limits", [[0], [0, 0], [0, 0, 0]])
def test_nothing_gives_nothing(kernels: str, limits: list[int]) -> None:
    assert attend(np.ones((0, 12), np.float32), limits, 2, kernels).shape == (0, 4)
    for dtype in (np.int8, np.float16):
        weight = np.ones((8, 3), dtype)
        residual = np.ones((0, 3), np.float32)
        assert linear(np.ones((0, 8), np.float32), weight, kernels, residual=residual).shape == (0, 3)


@pytest.mark.parametrize("kernels", KERNELS)
def test_texts_of_no_tokens_change_nothing(kernels: str) -> None:
    qkv = np.random.default_rng(11).standard_normal((5, 12), np.float32)
    expected = attend(qkv, [0, 2, 5], 2, kernels)
    np.testing.assert_array_equal(attend(qkv, [0, 0, 2, 2, 2, 5, 5], 2, kernels), expected)


ROWS_OF_8 = np.ones((2, 8), np.float32)
LINEAR_INPUTS: dict[str, Array | None] = {
    "rows": ROWS_OF_8,
    "weight": np.ones((8, 3), np.int8),
    "bias": np.ones(3, np.float32),
    "residual": np.ones((2, 3), np.float32),
    "scales": np.ones(3, np.float32),
    "smoothing": np.ones(8, np.float32),
}
CONSTANTS = ("weight", "bias", "scales", "smoothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": np.ones((2, 9), np.float32)}, r"rows have shape \(2, 9\), expected \(T, 8\)"),
        ({"rows": np.ones(8, np.float32)}, r"rows have shape \(8\)"),
        ({"rows": np.ones((), np.float32)}, "rows have 0 dimensions"),
        ({"rows": np.ones((1, 2, 8), np.float32)}, "rows have 3 dimensions"),
        ({"rows": np.ones((2, 8))}, "(?i)type"),
        ({"weight": np.ones((8, 3), np.uint8)}, "(?i)type"),
        ({"weight": np.ones((8, 3), np.float32)}, "(?i)type"),
        ({"weight": None}, "marked single but has an empty string"),
        ({"weight": np.ones(8, np.int8)}, r"the weight has shape \(8\)"),
        ({"weight": np.ones((8, 3, 1), np.int8)}, "the weight has 3 dimensions"),
        ({"weight": np.ones((8193, 1), np.int8)}, "K from 1 to 8192"),
        ({"weight": np.ones((0, 3), np.int8), "rows": np.ones((2, 0), np.float32)}, r"\(0, 3\), expected \(K, N\)"),
        ({"weight": np.ones((8, 0), np.int8), "scales": np.ones(0, np.float32)}, "N from 1 to"),
        ({"weight": np.ones((8, 0), np.float16)}, "N from 1 to"),
        ({"bias": np.ones(4, np.float32)}, r"bias has shape \(4\), expected shape \(3\)"),
        ({"bias": np.ones((3, 1), np.float32)}, r"bias has shape \(3, 1\)"),
        ({"bias": np.array([1, np.nan, 1], np.float32)}, "value 1 of bias is -?nan, expected a finite one"),
        ({"bias": np.ones(3, np.float16)}, "(?i)type"),
        ({"residual": np.ones((2, 4), np.float32)}, r"residual has shape \(2, 4\), expected the output's, \(2, 3\)"),
        ({"residual": np.ones((3, 2), np.float32)}, "residual has"),
        ({"residual": np.ones((1, 3), np.float32)}, "residual has"),
        ({"residual": np.ones(6, np.float32)}, "residual has"),
        ({"residual": np.ones((2, 3, 1), np.float32)}, "residual has 3 dimensions"),
        ({"rows": np.ones((0, 8), np.float32)}, "residual has"),
        ({"rows": np.ones((0, 8), np.float32), "residual": np.ones((0, 4), np.float32)}, "residual has"),
        ({"scales": None}, "no scales"),
        ({"scales": np.ones(4, np.float32)}, "scales has"),
        ({"scales": np.array([1, np.inf, 1], np.float32)}, "value 1 of scales is inf"),
        ({"smoothing": np.ones(3, np.float32)}, "smoothing has"),
        ({"smoothing": np.ones(9, np.float32)}, "smoothing has"),
        ({"gelu": 2}, "gelu is 2, expected 0 or 1"),
        ({"gelu": -1}, "gelu is -1"),
        ({"gelu": 1.0}, "no whole number as its attribute gelu"),
        ({"gelu": None}, "no whole number as its attribute gelu"),
    ],
)
def test_a_product_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    inputs = LINEAR_INPUTS | {name: value for name, value in changes.items() if name != "gelu"}
    with pytest.raises(Exception, match=message):
        run("Linear", list(inputs.items()), "portable", constants=CONSTANTS, gelu=changes.get("gelu", 0))


@pytest.mark.parametrize("computed", CONSTANTS)
def test_a_weight_or_bias_that_is_not_constant_is_refused(computed: str) -> None:
    constants = tuple(name for name in CONSTANTS if name != computed)
    with pytest.raises(Exception, match=f"{computed} is an input or computed, expected a constant"):
        run("Linear", list(LINEAR_INPUTS.items()), "portable", constants=constants, gelu=0)


STATES = np.ones((4, 8), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 0}, "n_heads is 0, expected 1 or more"),
        ({"n_heads": -2}, "n_heads is -2"),
        ({"n_heads": -(2**63)}, "n_heads is -9223372036854775808"),
        ({"n_heads": None}, "no whole number as its attribute n_heads"),
        ({"n_heads": 3}, "3 heads share 8 dimensions"),
        ({"n_heads": 2**62}, "heads share 8 dimensions"),
        ({name: np.ones((4, 258), np.float32) for name in ("queries", "keys", "values")}, "from 1 to 128"),
        ({name: np.ones((4, 0), np.float32) for name in ("queries", "keys", "values")}, "from 1 to 128"),
        ({name: np.ones((2, 4, 4), np.float32) for name in ("queries", "keys", "values")}, "queries have 3 dimensions"),
        ({name: np.ones(4, np.float32) for name in ("queries", "keys", "values")}, r"queries have shape \(4\)"),
        ({"keys": np.ones((3, 8), np.float32)}, r"keys have shape \(3, 8\) and queries shape \(4, 8\)"),
        ({"values": np.ones((4, 6), np.float32)}, "values have"),
        ({"queries": np.ones((5, 8), np.float32)}, "keys have"),
        ({"queries": None}, "marked single but has an empty string"),
        ({"values": np.ones((4, 8))}, "(?i)type"),
        ({"cu_seqlens": np.array([0, 4], np.int32)}, "(?i)type"),
        ({"cu_seqlens": None}, "marked single but has an empty string"),
        ({"cu_seqlens": np.array([], np.int64)}, r"cu_seqlens has shape \(0\)"),
        ({"cu_seqlens": np.array(4)}, "cu_seqlens has 0 dimensions"),
        ({"cu_seqlens": np.array([[0, 4]])}, r"cu_seqlens has shape \(1, 2\)"),
        ({"cu_seqlens": np.array([0])}, "runs from 0 to 0, expected from 0 to the number of tokens, 4"),
        ({"cu_seqlens": np.array([1, 4])}, "runs from 1 to 4"),
        ({"cu_seqlens": np.array([0, 5])}, "runs from 0 to 5"),
        ({"cu_seqlens": np.array([0, 3])}, "runs from 0 to 3"),
        ({"cu_seqlens": np.array([-1, 4])}, "runs from -1 to 4"),
        ({"cu_seqlens": np.array([0, 6, 4])}, "descends from 6 to 4 at index 2"),
        ({"cu_seqlens": np.array([0, -1, 4])}, "descends from 0 to -1 at index 1"),
        ({"cu_seqlens": np.array([0, 2**62, -(2**62), 4])}, "descends"),
    ],
)
def test_attention_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    inputs: dict[str, Any] = {"queries": STATES, "keys": STATES, "values": STATES, "cu_seqlens": np.array([0, 4])}
    inputs |= {name: value for name, value in changes.items() if name != "n_heads"}
    with pytest.raises(Exception, match=message):
        run("PackedAttention", list(inputs.items()), "portable", n_heads=changes.get("n_heads", 2))


@pytest.mark.parametrize("name", ["", "AVX-1024", "portable ", "p" * 31, "p" * 32, "p" * 8000])
def test_kernels_that_the_cpu_lacks_are_refused(name: str) -> None:
    with pytest.raises(Exception, match=r'this CPU has: .*"portable"|bgem3.kernels has \d+ characters'):
        linear(ROWS_OF_8, np.ones((8, 3), np.int8), name)


@pytest.mark.parametrize("n_threads", ["", "0", "-1", "two", "1.5", "4 threads", "65537", str(2**32 + 1), "9" * 25])
def test_a_number_of_threads_that_is_none_is_refused(n_threads: str) -> None:
    with pytest.raises(Exception, match=r"bgem3\.n_threads is .*a whole number from 1 to 65536"):
        run("Linear", list(LINEAR_INPUTS.items()), "portable", constants=CONSTANTS, n_threads=n_threads, gelu=0)
