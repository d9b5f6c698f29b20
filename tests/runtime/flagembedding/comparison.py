"""FlagEmbedding's results and ours, compared."""

from typing import Any

import numpy as np
import pytest

# Largest absolute difference from FlagEmbedding on CPU. Both compute in float32, from the weights as stored.
EMBEDDINGS_TOLERANCE, SCORES_TOLERANCE = 1e-5, 2e-5
MAX_LENGTH = 128  # tokens, of the random checkpoint
SETTINGS: dict[str, Any] = {
    "devices": "cpu",
    "use_fp16": False,
    "query_max_length": MAX_LENGTH,
    "passage_max_length": MAX_LENGTH,
}
TEXTS = [
    *("the sea", "", "面包 为什么 会 发 起来？", "<mask> is a token", "words " * 50, " ", "👍🏽 1️⃣", "one </s> two"),
    *("Water boils at 100 °C , doesn't it ?", "I 'm sure they 've seen what we 're doing !", "a 'quoted' word . And"),
    *("\ufeffmark", "tab\tand\nnewline\r\n", "x" * 200, "nul\0inside", "e\u0301 é"),
]
ALL_OUTPUTS = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    """Compare to any depth: types, lengths, keys and their order, shapes, dtypes, every number; NaN equals NaN."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one_found, one_expected in zip(found, expected, strict=True):
            assert_same(one_found, one_expected, tolerance)
    elif isinstance(expected, np.ndarray):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    elif isinstance(expected, (int, float, np.floating)):
        assert found == pytest.approx(expected, rel=0, abs=tolerance, nan_ok=True)
    else:
        assert found == expected
