"""Linear against NumPy, on all kernels that this CPU has."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import erf

from tests.kernels.operators import KERNELS, Array, examples, linear, needs_library, quantize

pytestmark = needs_library

all_kernels = pytest.mark.parametrize("kernels", KERNELS)
all_types = pytest.mark.parametrize("dtype", [np.int8, np.float16])
shapes = st.tuples(st.integers(1, 120), st.integers(1, 700), st.integers(1, 140))


def random_weight(rng: np.random.Generator, n_inputs: int, n_outputs: int) -> Array:
    return rng.integers(-128, 128, (n_inputs, n_outputs)).astype(np.int8)


def check_int8(shape: tuple[int, int, int], seed: int) -> None:
    """Compare a product of int8 weights with its formula, and the bits of all kernels."""
    rng = np.random.default_rng(seed)
    n_rows, n_inputs, n_outputs = shape
    rows = rng.standard_normal((n_rows, n_inputs), np.float32) + np.float32(rng.integers(-3, 4))
    rows *= 4 ** np.sin(np.arange(n_inputs, dtype=np.float32) / 99)
    rows[5:7] = 0
    smoothing, scales = rng.random(n_inputs, np.float32) + 0.5, 0.01 * rng.random(n_outputs, np.float32)
    bias, residual = rng.standard_normal(n_outputs, np.float32), rng.standard_normal((n_rows, n_outputs), np.float32)
    weight = random_weight(rng, n_inputs, n_outputs)
    levels, input_scales = quantize(rows * smoothing)
    expected = (levels * input_scales.astype(np.float64)) @ weight * scales + bias + residual
    options: dict[str, Any] = {"scales": scales, "bias": bias, "smoothing": smoothing, "residual": residual}
    found = [linear(rows, weight, kernels, **options) for kernels in KERNELS]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6, atol=2e-5)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@examples
@example((0, 8, 3), 0)
@given(shapes, st.integers(0, 2**32))
def test_int8_products_are_their_formula_with_the_same_bits_on_all_kernels(
    shape: tuple[int, int, int], seed: int
) -> None:
    check_int8(shape, seed)


@pytest.mark.parametrize("shape", [(51, 2900, 70), (49, 8192, 1)])
def test_int8_products_of_many_inputs_are_their_formula(shape: tuple[int, int, int]) -> None:
    check_int8(shape, seed=0)


@examples
@example((0, 8, 3), 0)
@given(shapes, st.integers(0, 2**32))
def test_float16_products_are_their_formula_with_the_same_bits_on_all_kernels(
    shape: tuple[int, int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n_rows, n_inputs, n_outputs = shape
    rows, residual = (rng.standard_normal((n_rows, n), np.float32) for n in (n_inputs, n_outputs))
    weight = rng.standard_normal((n_inputs, n_outputs)).astype(np.float16)
    weight[0, 0] = 6e-8  # subnormal
    bias = rng.standard_normal(n_outputs, np.float32)
    expected = rows.astype(np.float64) @ weight.astype(np.float64) + bias + residual
    found = [linear(rows, weight, kernels, bias=bias, residual=residual) for kernels in KERNELS]
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@all_kernels
@pytest.mark.parametrize("n_inputs", [1024, 1025, 4096, 8192])
def test_the_largest_sums_are_exact(kernels: str, n_inputs: int) -> None:
    rows = np.repeat([[1], [-1]], n_inputs, axis=1).astype(np.float32)
    weight = np.repeat([[127, -127]], n_inputs, axis=0).astype(np.int8)
    expected = 127.0 * n_inputs * np.array([[1, -1], [-1, 1]])
    np.testing.assert_allclose(linear(rows, weight, kernels), expected, rtol=1e-6)


@all_kernels
def test_pairs_of_products_that_overflow_int16_are_exact(kernels: str) -> None:
    rng = np.random.default_rng(1)
    rows = rng.choice(np.array([0.9, 1], np.float32), (33, 256))  # near the top of uint8
    rows[:, 128:] *= 0.25
    weight = rng.choice(np.array([-128, -90, 1, 90, 127], np.int8), (256, 48))
    levels, scales = quantize(rows)
    np.testing.assert_allclose(linear(rows, weight, kernels), (levels * scales) @ weight, rtol=1e-5, atol=1e-3)


@all_kernels
def test_gelu_is_exact_to_two_millionths(kernels: str) -> None:
    rows = np.linspace(-9, 9, 4001, dtype=np.float32)[:, None]
    weight, scales = np.full((1, 1), 127, np.int8), np.full(1, 1 / 127, np.float32)
    x = linear(rows, weight, kernels, scales=scales).astype(np.float64)
    np.testing.assert_allclose(x, rows, rtol=1e-6)  # one input fills its range: rounding costs nothing
    expected = x * (1 + erf(x / np.sqrt(2))) / 2
    assert np.abs(linear(rows, weight, kernels, scales=scales, gelu=1) - expected).max() < 2e-6


@all_kernels
@all_types
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    kernels: str, dtype: type[np.generic]
) -> None:
    rng = np.random.default_rng(2)
    rows, weight = rng.standard_normal((101, 300), np.float32), random_weight(rng, 300, 200).astype(dtype)
    together = linear(rows, weight, kernels, gelu=1)
    for row in (0, 47, 48, 100):
        np.testing.assert_array_equal(linear(rows[row : row + 1], weight, kernels, gelu=1)[0], together[row])
    for n_threads in (2, 5):
        np.testing.assert_array_equal(linear(rows, weight, kernels, gelu=1, n_threads=n_threads), together)


@all_kernels
@all_types
@pytest.mark.parametrize("gelu", [0, 1])
def test_a_value_that_is_not_finite_leaves_only_its_own_row_not_finite(
    kernels: str, dtype: type[np.generic], gelu: int
) -> None:
    rng = np.random.default_rng(7)
    rows, weight = rng.standard_normal((60, 300), np.float32), random_weight(rng, 300, 70).astype(dtype)
    weight[:, 3] = 0
    residual = np.ones((60, 70), np.float32)
    plain = linear(rows, weight, kernels, gelu=gelu, residual=residual)
    damaged = [0, 7, 31, 48, 59]
    rows[damaged, [0, 127, 128, 298, 299]] = [np.nan, np.inf, -np.inf, np.nan, np.inf]
    if dtype == np.int8:  # finite values, but no finite range
        damaged.append(20)
        rows[20, :2] = [3e38, -3e38]
    found = linear(rows, weight, kernels, gelu=gelu, residual=residual)
    np.testing.assert_array_equal(np.delete(found, damaged, 0), np.delete(plain, damaged, 0))
    are_nan = damaged if dtype == np.int8 else [0, 48]
    assert np.isnan(found[are_nan]).all()
    assert gelu or not np.isfinite(found[damaged]).any()


@all_kernels
def test_a_residual_or_float16_weight_that_is_not_finite_changes_only_its_own_place(kernels: str) -> None:
    rng = np.random.default_rng(9)
    rows, weight = rng.random((20, 50), np.float32) + 0.1, rng.random((50, 30)).astype(np.float16)
    residual = rng.random((20, 30), np.float32)
    expected = linear(rows, weight, kernels, residual=residual)
    for i, value in enumerate((np.nan, np.inf, -np.inf)):
        weight[11, 7 * i] = expected[:, 7 * i] = value
        residual[4 * i, 5] = expected[4 * i, 5] = value
    np.testing.assert_array_equal(linear(rows, weight, kernels, residual=residual), expected)
