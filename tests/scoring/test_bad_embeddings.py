"""Embeddings that cannot be scored together."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from bgem3.scoring import (
    dense_pair_scores,
    dense_scores,
    hybrid_scores,
    multivector_pair_scores,
    multivector_scores,
    sparse_pair_scores,
    sparse_scores,
)


def assert_raises(call: Callable[[], object], kind: type[Exception], *words: str) -> None:
    """Check the very type of what a call raises, and that the message holds the words (regexes) in this order."""
    with pytest.raises(kind, match="(?s)" + ".*".join(words)) as caught:
        call()
    assert caught.type is kind


# Scores of arrays that do not belong together


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


SAME_MODEL = "encoded by the same model"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(lambda: dense_scores(ones(2, 3), ones(2, 4)), ["one width", r"\(2, 3\) and \(2, 4\)", SAME_MODEL]),
        pytest.param(
            lambda: dense_scores(ones(3), ones(2, 3)), [r"\(texts, dims\)", r"found shapes \(3,\) and \(2, 3\)"]
        ),
        pytest.param(lambda: dense_pair_scores(ones(2, 3), ones(2, 4)), ["one width", r"\(2, 3\) and \(2, 4\)"]),
        pytest.param(lambda: dense_pair_scores(ones(2, 3), ones(1, 3)), ["as many queries as", "found 2 and 1"]),
        pytest.param(
            lambda: sparse_scores(csr_array(ones(2, 3)), csr_array(ones(2, 4))),
            ["share one vocabulary", "found 3 and 4 columns", SAME_MODEL],
        ),
        pytest.param(
            lambda: sparse_pair_scores(csr_array(ones(2, 3)), csr_array(ones(2, 4))), ["one vocab", "found 3 and 4"]
        ),
        pytest.param(
            lambda: sparse_pair_scores(csr_array(ones(2, 3)), csr_array(ones(3, 3))),
            ["as many queries as passages", "found 2 and 3"],
        ),
        pytest.param(
            lambda: sparse_scores([{"5": 0.5}], [{"5": 0.5}]), ["csr_array", "Embeddings.sparse", "found list"]
        ),
        pytest.param(lambda: sparse_scores(csr_array(ones(2, 3)), None), ["must be a .* csr_array", "found NoneType"]),
        pytest.param(lambda: sparse_scores(ones(3), ones(3)), [r"\(texts, vocabulary\) csr_array", r"ndarray\(3,\)"]),
        pytest.param(
            lambda: multivector_scores([ones(2, 3)], [ones(2, 4)]), ["one width", "found 3 and 4", SAME_MODEL]
        ),
        pytest.param(
            lambda: multivector_scores([ones(2, 3), ones(1, 4)], []), ["one width", r"\[\(1, 4\), \(2, 3\)\]"]
        ),
        pytest.param(
            lambda: multivector_scores(ones(2, 3), ones(2, 3)), ["array per text", r"found shapes \[\(3,\)\]"]
        ),
        pytest.param(
            lambda: multivector_pair_scores([ones(2, 3)] * 2, [ones(2, 3), ones(2, 4)]),
            ["pair 1 must be", "one width", r"\(2, 3\) and \(2, 4\)", SAME_MODEL],
        ),
        pytest.param(
            lambda: multivector_pair_scores([ones(3)], [ones(1, 3)]), ["pair 0 must be", r"\(3,\) and \(1, 3\)"]
        ),
        pytest.param(lambda: multivector_pair_scores([ones(2, 3)], []), ["as many queries as", "found 1 and 0"]),
        pytest.param(lambda: hybrid_scores(ones(2), ones(2), ones(3)), ["one shape", r"found \(2,\), \(2,\), \(3,\)"]),
    ],
    ids=[
        "dense_widths",
        "dense_1d",
        "dense_pair_widths",
        "dense_pair_counts",
        "vocabularies",
        "pair_vocabularies",
        "sparse_pair_counts",
        "lexical_weights",
        "sparse_None",
        "sparse_1d",
        "multivector_widths",
        "mixed_widths",
        "one_text_alone",
        "pair_widths",
        "pair_1d",
        "multivector_pair_counts",
        "hybrid_shapes",
    ],
)
def test_scoring_refuses_embeddings_that_do_not_belong_together(call: Callable[[], object], words: list[str]) -> None:
    assert_raises(call, ValueError, *words)
