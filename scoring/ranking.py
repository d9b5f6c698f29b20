"""Rankings: the k best passages of each query, and metrics of their quality."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the columns of each row's k largest scores, largest first, as (Q, min(k, P)); ties are ranked by column.

    Raise ValueError if one of them is NaN or ``inf``; a passage without vectors may score ``-inf``.

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
        largest = np.partition(row, n_passages - k)[n_passages - k :]  # the k-th largest comes first, NaN last
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
    """Return the quality of each query's ranking, from 0 to 1.

    ``ndcg@k``: DCG = ``Σ gain / log2(rank + 1)`` over the judged passages at ranks 1 to k, divided by the DCG of the
    ideal ranking (Järvelin and Kekäläinen, 2002). ``mrr@k``: ``1 / rank`` of the first judged passage, 0 if it is
    beyond k. ``recall@k``: the share of the judged passages at ranks 1 to k. Ties are ranked by column.

    Parameters
    ----------
    scores : float32 array (Q, P)
        A row per query.
    judgments : Q mappings {passage column: gain}
        Each has at least one passage; gains are greater than 0.
    metric : str
        "ndcg@k", "mrr@k" or "recall@k" with a number for k.

    Returns
    -------
    float64 array (Q,)

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
    step = max(1, (16 << 20) // max(1, scores.shape[1]))  # judged passages ranked at once; bounds a comparison to 16 MB
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
    """Return the name and the k of a metric, or raise ValueError if it is unknown."""
    name, _, k = metric.partition("@")
    if name not in ("ndcg", "mrr", "recall") or not k.isdecimal() or int(k) < 1:
        raise ValueError(f"metric must be 'ndcg@k', 'mrr@k' or 'recall@k' with a k of at least 1, found {metric!r}")
    return name, int(k)


def check_judgments(judgments: Sequence[Mapping[int, float]], n_queries: int, n_passages: int) -> None:
    """Raise ValueError with the query's number if judgments do not fit so many queries and passages."""
    if len(judgments) != n_queries:
        raise ValueError(f"judgments must be one mapping per query, found {len(judgments)} for {n_queries} queries")
    for i, judged in enumerate(judgments):
        if not judged or not all(0 <= column < n_passages and gain > 0 for column, gain in judged.items()):
            raise ValueError(
                f"judgments of query {i} must map passage numbers below {n_passages} to gains above 0, "
                f"at least one, found {dict(judged)!r:.80}"
            )
