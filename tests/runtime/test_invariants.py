"""A text's result depends on the text alone: not on the batch, its order, the token budget or the other outputs."""

import itertools
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgem3.runtime import BGEM3Model, Embeddings
from bgem3.runtime.manifest import OUTPUTS, Output
from bgem3.scoring import hybrid

TOLERANCE = 1e-5
WORDS = ["BM25", "is", "хлеб", "面包", "the", "a", "<mask>", "</s>", "<pad>", "🚀", "é", "शहद", "?", "x" * 30]
texts = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join) | st.text(max_size=40).filter(str.isprintable)
quick = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_same(found: Embeddings, i: int, expected: Embeddings, j: int) -> None:
    """Compare text i of one result with text j of another, in every output that was found."""
    assert found.n_tokens[i] == expected.n_tokens[j]
    assert found.truncated[i] == expected.truncated[j]
    for name in found.outputs:
        ours, theirs = getattr(found, name), getattr(expected, name)
        if name == "sparse":
            ours, theirs = ours[[i]].toarray(), theirs[[j]].toarray()
        else:
            ours, theirs = ours[i], theirs[j]
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0, strict=True)


@given(
    batch=st.lists(texts, min_size=1, max_size=10),
    token_budget=st.integers(1, 400),
    outputs=st.sets(st.sampled_from(OUTPUTS), min_size=1),
    data=st.data(),
)
@quick
def test_a_text_alone_equals_the_text_in_any_batch_order_budget_and_choice_of_outputs(
    random_artifact: Path,
    random_model: BGEM3Model,
    batch: list[str],
    token_budget: int,
    outputs: set[Output],
    data: st.DataObject,
) -> None:
    order = data.draw(st.permutations(range(len(batch))))
    with BGEM3Model.load(random_artifact, "cpu", "fp32", token_budget=token_budget) as model:
        together = model.encode([batch[i] for i in order], tuple(outputs))
    assert set(together.outputs) == outputs
    for position, i in enumerate(order):
        assert_same(together, position, random_model.encode([batch[i]]), 0)


def test_scores_of_a_matrix_equal_those_of_pairs_and_of_the_embeddings(random_model: BGEM3Model) -> None:
    queries, passages, weights = ["BM25", "хлеб"], ["面包 is", "", "the BM25 🚀"], (0.5, 0.3, 0.9)
    matrix = random_model.score(queries, passages, weights)
    pairs = random_model.score_pairs(list(itertools.product(queries, passages)), weights)
    expected = hybrid.score_matrix(random_model.encode(queries), random_model.encode(passages), weights)
    for name in (*OUTPUTS, "hybrid"):
        np.testing.assert_allclose(getattr(matrix, name), getattr(expected, name), atol=TOLERANCE)
        np.testing.assert_allclose(getattr(pairs, name), getattr(expected, name).reshape(-1), atol=TOLERANCE)
