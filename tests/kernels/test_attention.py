"""PackedAttention against NumPy, on all kernels that this CPU has."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.kernels.operators import KERNELS, Array, attend, attention_formula, examples, needs_library

pytestmark = needs_library

all_kernels = pytest.mark.parametrize("kernels", KERNELS)


def random_states(n_tokens: int, n_heads: int, size: int) -> Array:
    """Return queries, keys and values side by side."""
    return np.random.default_rng(4).standard_normal((n_tokens, 3 * n_heads * size), np.float32)


@examples
@example([], 1, 4)
@example([0, 2, 0, 0, 3, 0], 2, 2)
@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 4), st.integers(1, 64))
def test_attention_is_softmax_within_each_text(lengths: list[int], n_heads: int, size: int) -> None:
    limits = np.cumsum([0, *lengths]).tolist()
    qkv = random_states(limits[-1], n_heads, size)
    for kernels in KERNELS:
        found = attend(qkv, limits, n_heads, kernels)
        np.testing.assert_allclose(found, attention_formula(qkv, limits, n_heads), atol=5e-6)


@all_kernels
@pytest.mark.parametrize(("lengths", "size"), [([260, 1, 300], 64), ([270], 128)])
def test_long_texts_have_the_same_bits_alone_and_beside_others(kernels: str, lengths: list[int], size: int) -> None:
    limits = np.cumsum([0, *lengths]).tolist()
    qkv = random_states(limits[-1], 1, size)
    found = attend(qkv, limits, 1, kernels)
    np.testing.assert_allclose(found, attention_formula(qkv, limits, 1), atol=5e-6)
    alone = attend(qkv[limits[-2] :], [0, lengths[-1]], 1, kernels)
    np.testing.assert_array_equal(alone, found[limits[-2] :])


@all_kernels
def test_scores_may_be_far_apart(kernels: str) -> None:
    qkv = np.zeros((3, 12), np.float32)
    qkv[:, 0] = 1000  # each query's score is 500 times the first value of a key
    qkv[:, 4] = [-1, 0, 1]
    qkv[:, 8] = [5, 6, 7]
    np.testing.assert_allclose(attend(qkv, [0, 3], 1, kernels)[:, 0], 7)


@all_kernels
@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize(("value", "token"), [(np.nan, 0), (np.inf, 10), (-np.inf, 269), (np.inf, 275)])
def test_values_that_are_not_finite_give_what_softmax_gives(kernels: str, part: int, value: float, token: int) -> None:
    limits, n_heads, size = [0, 10, 270, 275, 276], 2, 20  # 260 tokens are more than a chunk
    qkv = random_states(276, n_heads, size)
    plain = attend(qkv, limits, n_heads, kernels)
    qkv.reshape(276, 3, n_heads, size)[token, part, 1, 3] = value
    found, expected = attend(qkv, limits, n_heads, kernels), attention_formula(qkv, limits, n_heads)
    changed = np.zeros((276, n_heads * size), bool)
    start = max(limit for limit in limits if limit <= token)
    changed[start : limits[limits.index(start) + 1], size:] = True
    assert not np.isfinite(expected[changed]).all()
    np.testing.assert_allclose(found[changed], expected[changed], atol=5e-6)
    np.testing.assert_array_equal(found[~changed], plain[~changed])
