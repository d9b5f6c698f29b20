"""Multi-vector score: late interaction (MaxSim) between the token vectors of two texts."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.token_vectors import MultiVectors

MEMORY_BUDGET = 64 << 20  # bytes of temporary arrays
TOKENS_PER_BLOCK = 2048  # vectors a side in one GEMM, at most: more is no faster, and leaves the cache


def multivector_scores(
    queries: Sequence[NDArray[np.floating]],
    passages: Sequence[NDArray[np.floating]],
    *,
    passage_mask: NDArray[np.bool_] | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> NDArray[np.float32]:
    """Score every query with every passage: ``(1/N) Σ_i max_j E_q[i] · E_p[j]``, N the query's vectors.

    Source: arXiv 2402.03216, section 3.2. Each passage's maximum runs over its own vectors only: no
    padding takes part. The maximum over no vectors is ``-inf``: the score of a passage without any, or with none
    left by the mask. A query without vectors scores 0 with everything.

    Parameters
    ----------
    queries : Q arrays (vectors_i, D), rows of unit length, or :class:`MultiVectors`
    passages : P arrays (vectors_j, D), likewise; float32, float16 or (:class:`MultiVectors` only) int8
    passage_mask : (M,) bool array over the passages' vectors, one after another; False leaves a vector out of the
        maximum (its similarities become ``-inf``). None takes all. To leave out a query's vectors, do not pass them.
    memory_budget : bytes that temporary arrays may take together; at least what 16 vectors a side need

    Returns
    -------
    (Q, P) float32 array

    Raises
    ------
    ValueError
        If the widths or the offsets do not fit, nor the mask, or the budget is too small.

    Examples
    --------
    >>> import numpy as np
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> multivector_scores([query], [query, np.array([[0.5, 0.0]])]).tolist()
    [[1.0, 0.25]]
    >>> multivector_scores([query], [query], passage_mask=np.array([True, False])).tolist()
    [[0.5]]
    """
    query_vectors, passage_vectors = _check(queries, passages, passage_mask)
    scores = np.zeros((len(query_vectors), len(passage_vectors)), np.float32)
    n_rows = block_rows(passage_vectors.packed.shape[1], memory_budget)
    n_query_rows, mask = len(query_vectors.packed), passage_mask
    for q_first in range(0, n_query_rows, n_rows):
        q_last = min(q_first + n_rows, n_query_rows)
        block = query_vectors.rows(q_first, q_last)
        q_texts, q_starts = _segments(query_vectors.offsets, q_first, q_last)
        for first, last in _runs(passage_vectors.offsets, n_rows):
            best = _best_in_run(block, passage_vectors, first, last, n_rows, mask)  # (query vectors, texts of the run)
            scores[q_texts, first:last] += np.add.reduceat(best, q_starts, axis=0)
    scores /= np.maximum(np.diff(query_vectors.offsets), 1)[:, None]
    return scores


def multivector_pair_scores(
    queries: Sequence[NDArray[np.floating]], passages: Sequence[NDArray[np.floating]]
) -> NDArray[np.float32]:
    """Score query i with passage i only; same formula as :func:`multivector_scores`.

    Parameters
    ----------
    queries, passages : N arrays (vectors, D), rows of unit length, or :class:`MultiVectors`

    Returns
    -------
    (N,) float32 array; ``-inf`` for a passage and 0 for a query without vectors

    Raises
    ------
    ValueError
        If the counts or widths differ.

    Examples
    --------
    >>> import numpy as np
    >>> multivector_pair_scores([np.array([[1.0, 0.0]])], [np.array([[0.5, 0.5], [-1.0, 0.0]])]).tolist()
    [0.5]
    """
    for side in (queries, passages):
        if isinstance(side, MultiVectors):
            side.check()
    if len(queries) != len(passages):
        raise ValueError(f"pairs need as many queries as passages, found {len(queries)} and {len(passages)}")
    scores = np.zeros(len(queries), np.float32)
    for i, (query, passage) in enumerate(zip(queries, passages, strict=True)):
        query_vectors, passage_vectors = (np.asarray(a, dtype=np.float32) for a in (query, passage))
        shapes = query_vectors.shape, passage_vectors.shape
        if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
            raise ValueError(
                f"pair {i} must be two (vectors, dims) arrays of one width, found shapes {shapes[0]} and {shapes[1]}; "
                "were both sides encoded by the same model?"
            )
        if len(query_vectors):
            scores[i] = (query_vectors @ passage_vectors.T).max(axis=1, initial=-np.inf).mean()
    return scores


def multivector_candidate_scores(
    query_vectors: NDArray[np.float32], passages: MultiVectors, index: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Score one query with some of the passages; same formula as :func:`multivector_scores`.

    Only the candidates' vectors are read, each where it lies: nothing is gathered first.

    Parameters
    ----------
    query_vectors : (N, D) float32 array
    passages : P texts' vectors
    index : (C,) int64 array of passages

    Returns
    -------
    (C,) float32 array

    Examples
    --------
    >>> import numpy as np
    >>> passages = MultiVectors.pack([np.eye(2), np.array([[0.5, 0.0]]), -np.eye(2)])
    >>> multivector_candidate_scores(np.eye(2, dtype=np.float32), passages, np.array([2, 1])).tolist()
    [0.0, 0.25]
    """
    if not len(query_vectors):
        return np.zeros(len(index), np.float32)
    n_vectors = np.diff(passages.offsets)[index]
    largest = max(TOKENS_PER_BLOCK, int(n_vectors.max(initial=0)))
    similarities = np.empty((len(query_vectors), largest), np.float32)
    scores = np.empty(len(index), np.float32)
    ends = np.concatenate([[0], np.cumsum(n_vectors)])
    for first, last in _runs(ends, largest):
        for start, length, i in zip(
            (ends[first:last] - ends[first]).tolist(), n_vectors[first:last].tolist(), index[first:last], strict=True
        ):
            vectors = passages.rows(int(passages.offsets[i]), int(passages.offsets[i + 1]))
            np.matmul(query_vectors, vectors.T, out=similarities[:, start : start + length])
        filled = similarities[:, : ends[last] - ends[first]]
        scores[first:last] = _segment_max(filled, *_segments(ends, ends[first], ends[last]), first, last).mean(axis=0)
    return scores


def block_rows(n_dims: int, memory_budget: int) -> int:
    """Return how many vectors a side fit the budget: similarities, maxima, and two converted blocks.

    Raises
    ------
    ValueError
        If fewer than 16 do.
    """
    # 8 n² + 8 n D bytes = budget, solved for n
    n_rows = int((np.sqrt(64.0 * n_dims**2 + 32.0 * memory_budget) - 8 * n_dims) / 16)
    if n_rows < 16:
        raise ValueError(
            f"memory_budget must be at least {128 * (16 + n_dims) + 1024} bytes at {n_dims} dims, found {memory_budget}"
        )
    return min(n_rows, TOKENS_PER_BLOCK)


def _best_in_run(
    block: NDArray[np.float32],
    passages: MultiVectors,
    first: int,
    last: int,
    n_rows: int,
    mask: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """Return each query vector's largest similarity with each passage of a run: (query vectors, last - first)."""
    best = None
    begin, end = int(passages.offsets[first]), int(passages.offsets[last])
    for start in range(begin, max(end, begin + 1), n_rows):  # more than one step for a text longer than a block
        stop = min(start + n_rows, end)
        similarities = block @ passages.rows(start, stop).T  # (query vectors, passage vectors)
        if mask is not None:
            similarities[:, ~mask[start:stop]] = -np.inf
        texts, starts = _segments(passages.offsets, start, stop)
        found = _segment_max(similarities, texts, starts, first, last)
        best = found if best is None else np.maximum(best, found)
    assert best is not None
    return best


def _segment_max(
    similarities: NDArray[np.float32], texts: NDArray[np.int64], starts: NDArray[np.int64], first: int, last: int
) -> NDArray[np.float32]:
    """Return the maximum of each text's columns, ``-inf`` for texts of ``first:last`` that have none."""
    if len(texts) == last - first:
        return np.maximum.reduceat(similarities, starts, axis=1)
    best = np.full((len(similarities), last - first), -np.inf, np.float32)
    if len(texts):
        best[:, texts - first] = np.maximum.reduceat(similarities, starts, axis=1)
    return best


def _segments(offsets: NDArray[np.int64], first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the texts with rows in ``first:last`` and where they start in it, as reduceat takes it."""
    low = np.searchsorted(offsets, first, side="right") - 1
    texts = np.arange(low, np.searchsorted(offsets, last, side="left"))
    starts = np.maximum(offsets[texts], first)
    has_rows = starts < np.minimum(offsets[texts + 1], last)
    return texts[has_rows], starts[has_rows] - first


def _runs(offsets: NDArray[np.int64], n_rows: int) -> Iterator[tuple[int, int]]:
    """Cut texts into runs of at most n_rows vectors and texts, or one longer text, as (first, last + 1)."""
    first, n_texts = 0, len(offsets) - 1
    while first < n_texts:
        last = int(np.searchsorted(offsets, offsets[first] + n_rows, side="right")) - 1
        last = min(max(last, first + 1), first + n_rows)
        yield first, last
        first = last


def _check(
    queries: Sequence[NDArray[np.floating]],
    passages: Sequence[NDArray[np.floating]],
    passage_mask: NDArray[np.bool_] | None,
) -> tuple[MultiVectors, MultiVectors]:
    query_vectors, passage_vectors = MultiVectors.pack(queries), MultiVectors.pack(passages)
    query_vectors.check()
    passage_vectors.check()
    query_vectors = query_vectors.without_gaps()
    widths = [side.packed.shape[1] for side in (query_vectors, passage_vectors) if len(side)]
    if len(set(widths)) > 1:
        raise ValueError(
            f"multi-vectors must have one width, found {widths[0]} and {widths[1]}; "
            "were both sides encoded by the same model?"
        )
    n_vectors = len(passage_vectors.packed)
    if passage_mask is not None and (passage_mask.dtype != np.bool_ or passage_mask.shape != (n_vectors,)):
        raise ValueError(
            f"passage_mask must be a bool array, one value for each of the {n_vectors} passage vectors, found "
            f"{passage_mask.dtype} {passage_mask.shape}"
        )
    return query_vectors, passage_vectors
