"""The quality gate of int8: embeddings and rankings on held-out texts, against the checkpoint in float32."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.export.checkpoint import Checkpoint
from bgem3.export.reference import reference_outputs
from bgem3.runtime.artifact import OUTPUTS
from bgem3.scoring import (
    Embeddings,
    MultiVectors,
    Scores,
    dense_scores,
    hybrid_scores,
    multivector_scores,
    sparse_scores,
)
from bgem3.scoring.hybrid import DEFAULT_WEIGHTS

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
    outputs = checkpoint.model.outputs
    offsets = np.cumsum([0, *(reference.n_tokens - 1)])
    return texts, Embeddings(
        n_tokens=reference.n_tokens,
        truncated=np.zeros(len(texts), np.bool_),
        dense=reference.dense,
        sparse=reference.sparse if "sparse" in outputs else None,
        multivector=MultiVectors(reference.multivector, offsets) if "multivector" in outputs else None,
    )


def compare_quality(found: Embeddings, expected: Embeddings, n_questions: int) -> dict[str, Any]:
    """Compare embeddings of questions, and then of passages, with those of the same texts in float32, output by output.

    Returns
    -------
    - ``dense_mean_cosine``, ``dense_min_cosine``, ``multivector_5th_percentile_cosine``
    - ``top_tokens_changed``: share of texts whose five heaviest tokens are others; ``top_tokens_gap``: how much
      heavier in the reference a token that left them is than one that entered, as a share of the text's heaviest
    - ``SCORE_top_passages_changed``: by score, the share of other passages among each question's best ten
    """
    dense = np.einsum("nd,nd->n", found.dense, expected.dense)
    report = {
        "tokens_equal": bool((found.n_tokens == expected.n_tokens).all()),
        "n_texts": len(expected),
        "dense_mean_cosine": float(dense.mean()),
        "dense_min_cosine": float(dense.min()),
    }
    if "multivector" in expected.outputs:
        vectors = np.einsum("nd,nd->n", found.multivector.packed, expected.multivector.packed)
        report["multivector_5th_percentile_cosine"] = float(np.percentile(vectors, 5))
    if "sparse" in expected.outputs:
        rows = zip(found.sparse, expected.sparse, strict=True)
        gaps = [_top_token_gap(ours.toarray().ravel(), theirs.toarray().ravel()) for ours, theirs in rows]
        report["top_tokens_changed"] = float(np.mean([gap is not None for gap in gaps]))
        report["top_tokens_gap"] = max((gap for gap in gaps if gap is not None), default=0.0)
    ours, theirs = (_scores_by_name(embeddings, n_questions) for embeddings in (found, expected))
    for score in theirs:
        report[f"{score}_top_passages_changed"] = _changed_passages(ours[score], theirs[score])
    return report


def question_scores(embeddings: Embeddings, n_questions: int) -> Scores:
    """Score the first texts, questions, with the others, passages."""
    return Scores(**_scores_by_name(embeddings, n_questions))


def _scores_by_name(embeddings: Embeddings, n_questions: int) -> dict[str, NDArray[np.float32]]:
    """Score the questions with the passages by every score that the outputs allow; the hybrid one takes all three."""
    questions, passages = slice(0, n_questions), slice(n_questions, None)
    scores = {"dense": dense_scores(embeddings.dense[questions], embeddings.dense[passages])}
    if "sparse" in embeddings.outputs:
        scores["sparse"] = sparse_scores(embeddings.sparse[questions], embeddings.sparse[passages])
    if "multivector" in embeddings.outputs:
        vectors = list(embeddings.multivector)
        scores["multivector"] = multivector_scores(vectors[questions], vectors[passages])
    if len(scores) == len(OUTPUTS):
        scores["hybrid"] = hybrid_scores(scores["dense"], scores["sparse"], scores["multivector"], DEFAULT_WEIGHTS)
    return scores


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
