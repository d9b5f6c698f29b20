"""Multi-vector score: late interaction (MaxSim) between the token vectors of two texts."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.token_vectors import MultiVectors

MEMORY_BUDGET = 64 << 20  # bytes of temporary arrays; enough for blocks of TOKENS_PER_BLOCK at 1,024 dims
TOKENS_PER_BLOCK = 2048  # token vectors per side in one matrix product; larger products leave the cache, no faster


def multivector_scores(
    queries: Sequence[NDArray[np.floating]],
    passages: Sequence[NDArray[np.floating]],
    *,
    passage_mask: NDArray[np.bool_] | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> NDArray[np.float32]:
    """Score every query with every passage: ``s(q, p) = (1/N) Σ_i max_j E_q[i] · E_p[j]``, N the query's vectors.

    Source: arXiv 2402.03216, section 3.2. No padding takes part: a passage's maximum is taken over its own vectors.
    A passage without vectors, or with all of them masked, scores ``-inf``: the maximum over no vectors. A query without
    vectors scores 0 with everything.

    Parameters
    ----------
    queries : Q float arrays (N_i, D), or MultiVectors
        Rows of unit length.
    passages : P float arrays (M_j, D), or MultiVectors
        Rows of unit length; MultiVectors may also store int8.
    passage_mask : bool array (M,)
        One value per passage vector, in order; False excludes a vector from the maximum, None includes all.
    memory_budget : int
        Bytes that temporary arrays may take together; at least what blocks of 16 vectors need.

    Returns
    -------
    float32 array (Q, P)

    Raises
    ------
    ValueError
        If widths differ, offsets or the mask do not fit the vectors, or the budget is too small.

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
    for q_first in range(0, len(query_vectors.packed), n_rows):
        q_last = min(q_first + n_rows, len(query_vectors.packed))
        block = query_vectors.rows(q_first, q_last)
        q_texts, q_starts = _segments(query_vectors.offsets, q_first, q_last)
        for first, last in _runs(passage_vectors.offsets, n_rows):
            best = _best_in_run(block, passage_vectors, first, last, n_rows, passage_mask)
            scores[q_texts, first:last] += np.add.reduceat(best, q_starts, axis=0)
    scores /= np.maximum(np.diff(query_vectors.offsets), 1)[:, None]
    return scores


def multivector_pair_scores(
    queries: Sequence[NDArray[np.floating]], passages: Sequence[NDArray[np.floating]]
) -> NDArray[np.float32]:
    """Score query i with passage i only, as :func:`multivector_scores`: N texts a side give float32 scores (N,).

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
    """Score one query's vectors (N, D) with the passages at C positions, as :func:`multivector_scores`.

    Only the vectors of these candidates are read.

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
    """Return how many vectors per side a block may have within the budget, or raise ValueError if fewer than 16.

    A block of n vectors per side needs n² similarities, n² maxima and two blocks of n vectors converted to float32.
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
    """Return each query vector's largest similarity with each of the passages ``first:last``, as (n, last - first)."""
    best = None
    begin, end = int(passages.offsets[first]), int(passages.offsets[last])
    for start in range(begin, max(end, begin + 1), n_rows):  # a text longer than a block takes more than one step
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
    """Return the maximum over each text's columns for the texts ``first:last``; ``-inf`` for a text without columns."""
    if len(texts) == last - first:
        return np.maximum.reduceat(similarities, starts, axis=1)
    best = np.full((len(similarities), last - first), -np.inf, np.float32)
    if len(texts):
        best[:, texts - first] = np.maximum.reduceat(similarities, starts, axis=1)
    return best


def _segments(offsets: NDArray[np.int64], first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the texts that have rows in ``first:last``, and where their rows start relative to ``first``."""
    low = np.searchsorted(offsets, first, side="right") - 1
    texts = np.arange(low, np.searchsorted(offsets, last, side="left"))
    starts = np.maximum(offsets[texts], first)
    has_rows = starts < np.minimum(offsets[texts + 1], last)
    return texts[has_rows], starts[has_rows] - first


def _runs(offsets: NDArray[np.int64], n_rows: int) -> Iterator[tuple[int, int]]:
    """Yield runs of texts as (first, last + 1), each of at most n_rows vectors and n_rows texts, or one longer text."""
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
    """Return both sides packed, or raise ValueError if they or the mask cannot be scored together."""
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
            f"passage_mask must be a bool array with one value for each of the {n_vectors} passage vectors, found "
            f"{passage_mask.dtype} {passage_mask.shape}"
        )
    return query_vectors, passage_vectors
