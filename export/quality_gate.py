"""The quality gate of int8: embeddings and rankings on held-out texts, compared with the checkpoint in float32."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.export.checkpoint import Checkpoint
from bgem3.export.reference import reference_outputs
from bgem3.runtime.manifest import OUTPUTS
from bgem3.scoring import Embeddings, MultiVectors, dense_scores, multivector_scores, sparse_scores
from bgem3.scoring.hybrid import score_matrix

N_TOP_TOKENS = 5  # a text's heaviest tokens, which decide most of its sparse scores
N_TOP_PASSAGES = 10  # passages that a search shows
BOUNDS = {
    "dense_mean_cosine": 0.999,
    "dense_min_cosine": 0.998,
    "multivector_5th_percentile_cosine": 0.995,
    "top_tokens_changed": 0.3,
    "top_tokens_gap": 0.05,
    **{f"{score}_top_passages_changed": 0.05 for score in ("dense", "sparse", "multivector", "hybrid")},
}
"""Least value of each cosine, and largest value of each other figure.

Many tokens of a long text weigh nearly the same, so the least noise may change its five heaviest. The bound on their
change is loose, and the bound on the gap, how much lighter the new ones are, is tight. Shares are taken over few texts;
their bounds leave room for chance.
"""
SCORES: dict[str, Callable[..., NDArray[np.float32]]] = {
    "dense": dense_scores,
    "sparse": sparse_scores,
    "multivector": multivector_scores,
}


def quality_reference(
    checkpoint: Checkpoint, pairs: list[tuple[str, str]], *, show_progress: bool = False
) -> tuple[list[str], Embeddings]:
    """Encode the pairs' questions and then their passages in float32; return these texts and their embeddings."""
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
    """Compare embeddings of questions, followed by passages, with those of the same texts in float32.

    Returns
    -------
    dict
        - ``dense_mean_cosine``, ``dense_min_cosine``, ``multivector_5th_percentile_cosine``
        - ``top_tokens_changed``: share of texts whose five heaviest tokens changed
        - ``top_tokens_gap``: the largest difference in reference weight between a token that left the five heaviest
          and one that entered, as a share of the text's heaviest weight
        - ``SCORE_top_passages_changed``, for each score: share of each question's ten best passages that changed
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
    ours, theirs = (_scores(embeddings, n_questions) for embeddings in (found, expected))
    for score in theirs:
        report[f"{score}_top_passages_changed"] = _changed_passages(ours[score], theirs[score])
    return report


def _scores(embeddings: Embeddings, n_questions: int) -> dict[str, NDArray[np.float32]]:
    """Score the first texts, questions, with the others, passages, by every score that the outputs allow."""
    questions, passages = embeddings[:n_questions], embeddings[n_questions:]
    if embeddings.outputs == OUTPUTS:
        return vars(score_matrix(questions, passages))
    return {name: SCORES[name](getattr(questions, name), getattr(passages, name)) for name in embeddings.outputs}


def _top_token_gap(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float | None:
    """Return the gap between a text's five heaviest tokens (see `compare_quality`); None if they are the same."""
    ours, theirs = (set(np.argsort(-weights, kind="stable")[:N_TOP_TOKENS].tolist()) for weights in (found, expected))
    left, entered = [expected[list(tokens)] for tokens in (theirs - ours, ours - theirs)]
    return float((left.max() - entered.min()) / expected.max()) if len(left) else None


def _changed_passages(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the share of changed columns among each row's ten highest; a tie with the tenth is no change."""
    n_top = min(N_TOP_PASSAGES, expected.shape[1])
    top = np.argsort(-found, axis=1, kind="stable")[:, :n_top]
    tenth = np.sort(expected, axis=1)[:, -n_top, None]
    return float((np.take_along_axis(expected, top, axis=1) < tenth).mean())
