"""The quality gate of int8: embeddings and rankings on held-out texts, against the checkpoint in float32."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.export.checkpoint import Checkpoint
from bgem3.export.reference import reference_outputs
from bgem3.runtime.model import DEFAULT_WEIGHTS
from bgem3.scoring import (
    Embeddings,
    MultiVectors,
    Scores,
    dense_scores,
    hybrid_scores,
    multivector_scores,
    sparse_scores,
)

N_TOP_TOKENS = 5
N_TOP_PASSAGES = 10
BOUNDS = {
    "dense_mean_cosine": 0.999,
    "dense_min_cosine": 0.998,
    "multivector_5th_percentile_cosine": 0.995,
    "top_tokens_changed": 0.3,
    "top_tokens_gap": 0.05,
    **{f"{score}_top_passages_changed": 0.05 for score in ("dense", "sparse", "multivector", "hybrid")},
}
"""What int8 must keep to: at least, for cosines, and at most, for the shares that changed.

Of a long text's tokens many weigh nearly the same, so its five heaviest may change by the least noise: what is bounded
closely is how much lighter the new ones are. Shares are of few texts, and their bounds leave room for chance.
"""


def quality_reference(
    checkpoint: Checkpoint, pairs: list[tuple[str, str]], *, show_progress: bool = False
) -> tuple[list[str], Embeddings]:
    """Encode the pairs' questions, then their passages, with the checkpoint in float32; return the texts, too."""
    texts = [question for question, _ in pairs] + [passage for _, passage in pairs]
    reference = reference_outputs(checkpoint, texts, vectors_per_text=None, show_progress=show_progress)
    return texts, Embeddings(
        n_tokens=reference.n_tokens,
        truncated=np.zeros(len(texts), np.bool_),
        dense=reference.dense,
        sparse=reference.sparse,
        multivector=MultiVectors(reference.multivector, np.cumsum([0, *(reference.n_tokens - 1)])),
    )


def compare_quality(found: Embeddings, expected: Embeddings, n_questions: int) -> dict[str, Any]:
    """Compare embeddings of questions, and then of passages, with those of the same texts in float32.

    Returns
    -------
    - ``dense_mean_cosine``, ``dense_min_cosine``, ``multivector_5th_percentile_cosine``
    - ``top_tokens_changed``: share of texts whose five heaviest tokens are others; ``top_tokens_gap``: how much
      heavier in the reference a token that left them is than one that entered, as a share of the text's heaviest
    - ``SCORE_top_passages_changed``: by score, the share of other passages among each question's best ten
    """
    dense = np.einsum("nd,nd->n", found.dense, expected.dense)
    vectors = np.einsum("nd,nd->n", found.multivector.packed, expected.multivector.packed)
    rows = zip(found.sparse, expected.sparse, strict=True)
    gaps = [_top_token_gap(ours.toarray().ravel(), theirs.toarray().ravel()) for ours, theirs in rows]
    report = {
        "tokens_equal": bool((found.n_tokens == expected.n_tokens).all()),
        "n_texts": len(expected),
        "dense_mean_cosine": float(dense.mean()),
        "dense_min_cosine": float(dense.min()),
        "multivector_5th_percentile_cosine": float(np.percentile(vectors, 5)),
        "top_tokens_changed": float(np.mean([gap is not None for gap in gaps])),
        "top_tokens_gap": max((gap for gap in gaps if gap is not None), default=0.0),
    }
    ours, theirs = (question_scores(embeddings, n_questions) for embeddings in (found, expected))
    for score in ("dense", "sparse", "multivector", "hybrid"):
        changed = _changed_passages(getattr(ours, score), getattr(theirs, score))
        report[f"{score}_top_passages_changed"] = changed
    return report


def question_scores(embeddings: Embeddings, n_questions: int) -> Scores:
    """Score the first texts, questions, with the others, passages."""
    questions, passages = slice(0, n_questions), slice(n_questions, None)
    dense = dense_scores(embeddings.dense[questions], embeddings.dense[passages])
    sparse = sparse_scores(embeddings.sparse[questions], embeddings.sparse[passages])
    vectors = list(embeddings.multivector)
    multivector = multivector_scores(vectors[questions], vectors[passages])
    hybrid = hybrid_scores(dense, sparse, multivector, DEFAULT_WEIGHTS)
    return Scores(dense=dense, sparse=sparse, multivector=multivector, hybrid=hybrid)


def _top_token_gap(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float | None:
    """Compare a text's five heaviest tokens; None if they are the same."""
    ours, theirs = (set(np.argsort(-weights, kind="stable")[:N_TOP_TOKENS].tolist()) for weights in (found, expected))
    left, entered = [expected[list(tokens)] for tokens in (theirs - ours, ours - theirs)]
    return float((left.max() - entered.min()) / expected.max()) if len(left) else None


def _changed_passages(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the share of other columns among each row's ten highest; one as high as the tenth is no other."""
    n_top = min(N_TOP_PASSAGES, expected.shape[1])
    top = np.argsort(-found, axis=1, kind="stable")[:, :n_top]
    tenth = np.sort(expected, axis=1)[:, -n_top, None]
    return float((np.take_along_axis(expected, top, axis=1) < tenth).mean())
