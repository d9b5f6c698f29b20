"""Rankings: the best of each row of scores, and what a ranking is worth."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the columns of each row's k largest scores, largest first; of equal ones the lower column first.

    Exact: partial selection finds the k-th largest value of a row, and only what reaches it is sorted.

    Parameters
    ----------
    scores : (Q, P) float32 array
    k : at least 1; all P columns if there are fewer

    Returns
    -------
    (Q, min(k, P)) int64 array

    Raises
    ------
    ValueError
        If one of the k largest scores is NaN or infinite. A passage without vectors may score ``-inf``.

    Examples
    --------
    >>> import numpy as np
    >>> top_k(np.array([[0.1, 0.5, 0.5, 0.9, 0.5]], np.float32), 3).tolist()
    [[3, 1, 2]]
    """
    n_queries, n_passages = scores.shape
    k = min(k, n_passages)
    best = np.empty((n_queries, k), np.int64)
    for i, row in enumerate(scores if k else ()):
        largest = np.partition(row, n_passages - k)[n_passages - k :]  # the k-th first, NaN last
        if not (largest < np.inf).all():
            raise ValueError(
                "a score is NaN or infinite: the vectors of a query or passage hold NaN or infinity; encode them again"
            )
        kth = largest[0]
        above = np.flatnonzero(row > kth)
        chosen = np.concatenate([above, np.flatnonzero(row == kth)[: k - len(above)]])
        best[i] = chosen[np.lexsort((chosen, -row[chosen]))]
    return best


def quality(scores: NDArray[np.float32], judgments: Sequence[Mapping[int, float]], metric: str) -> NDArray[np.float64]:
    """Return what each query's ranking is worth, from 0 to 1.

    ``ndcg@k``: ``Σ gain / log2(rank + 1)`` over the judged passages ranked 1 to k, divided by that of the best
    ranking. ``mrr@k``: 1 / rank of the first judged passage, 0 beyond k. ``recall@k``: the share of the
    judged passages that are ranked 1 to k. Equal scores are ranked by column, as :func:`top_k` does.

    Parameters
    ----------
    scores : (Q, P) float32 array
    judgments : for each query {passage column: gain}; a gain must be greater than 0, and each query needs one
    metric : "ndcg@k", "mrr@k" or "recall@k" with a number for k

    Returns
    -------
    (Q,) float64 array

    Raises
    ------
    ValueError
        If the metric is unknown or the judgments do not fit the scores.

    Examples
    --------
    >>> import numpy as np
    >>> quality(np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]]), [{0: 1.0}, {2: 1.0}], "mrr@10").round(3).tolist()
    [1.0, 0.333]
    """
    name, k = check_metric(metric)
    check_judgments(judgments, *scores.shape)
    query = np.repeat(np.arange(len(judgments)), [len(judged) for judged in judgments])
    passage = np.array([column for judged in judgments for column in judged], np.int64)
    gain = np.array([value for judged in judgments for value in judged.values()], np.float64)
    judged_scores = scores[query, passage][:, None]
    rank = np.empty(len(query), np.int64)
    step = max(1, (16 << 20) // max(1, scores.shape[1]))  # judged passages at once: 16 MB of comparisons
    for first in range(0, len(query), step):
        part = slice(first, first + step)
        rows = scores[query[part]]
        is_before = np.arange(scores.shape[1]) < passage[part, None]
        rank[part] = 1 + (rows > judged_scores[part]).sum(1) + ((rows == judged_scores[part]) & is_before).sum(1)
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    if not len(starts):
        return np.zeros(0)
    if name == "mrr":
        first_rank = np.minimum.reduceat(rank, starts)
        return np.where(first_rank <= k, 1 / first_rank, 0.0)
    if name == "recall":
        return np.asarray(np.add.reduceat(rank <= k, starts, dtype=np.float64) / np.diff(np.append(starts, len(query))))
    reached = np.add.reduceat(np.where(rank <= k, gain / np.log2(rank + 1), 0.0), starts)
    ideal = [
        sum(g / np.log2(place + 2) for place, g in enumerate(sorted(judged.values(), reverse=True)[:k]))
        for judged in judgments
    ]
    return np.asarray(reached / np.array(ideal))


def check_metric(metric: str) -> tuple[str, int]:
    """Return a metric's name and its k, or raise ValueError."""
    name, _, k = metric.partition("@")
    if name not in ("ndcg", "mrr", "recall") or not k.isdecimal() or int(k) < 1:
        raise ValueError(f"metric must be 'ndcg@k', 'mrr@k' or 'recall@k' with a k of at least 1, found {metric!r}")
    return name, int(k)


def check_judgments(judgments: Sequence[Mapping[int, float]], n_queries: int, n_passages: int) -> None:
    """Raise ValueError, naming the query, if judgments do not fit that many queries and passages."""
    if len(judgments) != n_queries:
        raise ValueError(f"judgments must be one mapping per query, found {len(judgments)} for {n_queries} queries")
    for i, judged in enumerate(judgments):
        if not judged or not all(0 <= column < n_passages and gain > 0 for column, gain in judged.items()):
            raise ValueError(
                f"judgments of query {i} must map passage numbers below {n_passages} to gains above 0, "
                f"at least one, found {dict(judged)!r:.80}"
            )
