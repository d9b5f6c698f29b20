"""A text's result depends on the text alone: not on the batch, its order, the token budget or the other outputs."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgem3.runtime import BGEM3Model, Embeddings
from bgem3.runtime.cpu_session import OUTPUTS, Output

TOLERANCE = 1e-5
WORDS = [
    "BM25",
    "is",
    "хлеб",
    "面包",
    "the",
    "a",
    "<mask>",
    "</s>",
    "<pad>",
    "🚀",
    "é",
    "शहद",
    "?",
    "queries",
    "x" * 30,
]
texts = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join) | st.text(max_size=40).filter(
    lambda text: text.isprintable()
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_same(found: Embeddings, i: int, expected: Embeddings, j: int) -> None:
    """Compare text i of one result with text j of another, every output that both hold."""
    assert found.n_tokens[i] == expected.n_tokens[j]
    assert found.truncated[i] == expected.truncated[j]
    for name in set(found.outputs) & set(expected.outputs):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if name == "sparse":
            ours, theirs = ours[[i]].toarray(), theirs[[j]].toarray()
        else:
            ours, theirs = ours[i], theirs[j]
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


@given(batch=st.lists(texts, min_size=1, max_size=12), token_budget=st.integers(1, 400), data=st.data())
@quick
def test_a_text_alone_equals_the_text_in_any_batch_order_and_budget(
    random_artifact: Path, random_model: BGEM3Model, batch: list[str], token_budget: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(batch))))
    with BGEM3Model.load(random_artifact, "cpu", "fp32", token_budget=token_budget) as model:
        together = model.encode([batch[i] for i in order])
    for place, i in enumerate(order):
        assert_same(together, place, random_model.encode([batch[i]]), 0)


@pytest.mark.parametrize(
    "outputs", [c for n in (1, 2) for c in itertools.combinations(OUTPUTS, n)], ids=lambda outputs: "+".join(outputs)
)
@given(batch=st.lists(texts, min_size=1, max_size=8))
@quick
def test_outputs_asked_for_alone_equal_those_asked_for_together(
    random_model: BGEM3Model, outputs: tuple[Output, ...], batch: list[str]
) -> None:
    alone, together = random_model.encode(batch, outputs), random_model.encode(batch)
    assert set(alone.outputs) == set(outputs)
    for i in range(len(batch)):
        assert_same(alone, i, together, i)


@given(queries=st.lists(texts, min_size=1, max_size=4), passages=st.lists(texts, min_size=1, max_size=4))
@quick
def test_scores_equal_a_plain_python_loop_over_the_embeddings(
    random_model: BGEM3Model, queries: list[str], passages: list[str]
) -> None:
    weights = (0.5, 0.3, 0.9)
    scores = random_model.score(queries, passages, weights)
    pairs = list(itertools.product(queries, passages))
    pairwise = random_model.score_pairs(pairs, weights)
    query, passage = random_model.encode(queries), random_model.encode(passages)
    for n, (i, j) in enumerate(itertools.product(range(len(queries)), range(len(passages)))):
        expected = plain_scores(query, i, passage, j, weights)
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(scores, name)[i, j], value, atol=TOLERANCE, rtol=TOLERANCE)
            np.testing.assert_allclose(getattr(pairwise, name)[n], value, atol=TOLERANCE, rtol=TOLERANCE)


def plain_scores(
    query: Embeddings, i: int, passage: Embeddings, j: int, weights: tuple[float, float, float]
) -> dict[str, Any]:
    """Compute the four scores of one pair with loops over Python floats."""
    dense = sum(a * b for a, b in zip(query.dense[i].tolist(), passage.dense[j].tolist(), strict=True))
    w_query, w_passage = query.lexical_weights[i], passage.lexical_weights[j]
    sparse = sum(float(w) * float(w_passage[token]) for token, w in w_query.items() if token in w_passage)
    passage_vectors = passage.multivector[j].tolist()
    best = [
        max(sum(a * b for a, b in zip(q, p, strict=True)) for p in passage_vectors)
        for q in query.multivector[i].tolist()
    ]
    multivector = sum(best) / len(best)
    parts = (dense, sparse, multivector)
    hybrid = sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
    return {"dense": dense, "sparse": sparse, "multivector": multivector, "hybrid": hybrid}
