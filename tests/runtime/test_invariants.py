"""A text's result depends on the text alone: not on the batch, its order, the token budget or the other outputs."""

import itertools
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgem3.runtime import BGEM3Model, Embeddings
from bgem3.runtime.heads import OUTPUTS, Output

TOLERANCE = 1e-5
WORDS = ["BM25", "is", "хлеб", "面包", "the", "a", "<mask>", "</s>", "<pad>", "🚀", "é", "शहद", "?", "x" * 30]
texts = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join) | st.text(max_size=40).filter(str.isprintable)
quick = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
    for position, i in enumerate(order):
        assert_same(together, position, random_model.encode([batch[i]]), 0)


@given(batch=st.lists(texts, min_size=1, max_size=8), outputs=st.sets(st.sampled_from(OUTPUTS), min_size=1))
@quick
def test_outputs_asked_for_alone_equal_those_asked_for_together(
    random_model: BGEM3Model, outputs: set[Output], batch: list[str]
) -> None:
    alone, together = random_model.encode(batch, tuple(outputs)), random_model.encode(batch)
    assert set(alone.outputs) == outputs
    for i in range(len(batch)):
        assert_same(alone, i, together, i)


@given(queries=st.lists(texts, min_size=1, max_size=4), passages=st.lists(texts, min_size=1, max_size=4))
@quick
def test_scores_equal_a_plain_python_loop_over_the_embeddings(
    random_model: BGEM3Model, queries: list[str], passages: list[str]
) -> None:
    weights = (0.5, 0.3, 0.9)
    scores = random_model.score(queries, passages, weights)
    pairwise = random_model.score_pairs(list(itertools.product(queries, passages)), weights)
    query, passage = random_model.encode(queries), random_model.encode(passages)
    for n, (i, j) in enumerate(itertools.product(range(len(queries)), range(len(passages)))):
        expected = plain_scores(query, i, passage, j, weights)
        for name, value in zip(("dense", "sparse", "multivector", "hybrid"), expected, strict=True):
            np.testing.assert_allclose(getattr(scores, name)[i, j], value, atol=TOLERANCE, rtol=TOLERANCE)
            np.testing.assert_allclose(getattr(pairwise, name)[n], value, atol=TOLERANCE, rtol=TOLERANCE)


def plain_scores(
    query: Embeddings, i: int, passage: Embeddings, j: int, weights: tuple[float, float, float]
) -> list[float]:
    """Compute the four scores of one pair with loops over Python floats."""

    def dot(a: np.ndarray, b: np.ndarray) -> float:
        return float(sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)))

    w_query, w_passage = query.lexical_weights[i], passage.lexical_weights[j]
    sparse = sum(float(w) * float(w_passage[token]) for token, w in w_query.items() if token in w_passage)
    best = [max(dot(q, p) for p in passage.multivector[j]) for q in query.multivector[i]]
    parts = [dot(query.dense[i], passage.dense[j]), sparse, sum(best) / len(best)]
    return [*parts, sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)]
