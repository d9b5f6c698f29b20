"""tune_weights: find the hybrid weights that rank the judged passages of a corpus best."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.atomic_files import whole_file
from bgem3.scoring.embeddings import Embeddings
from bgem3.scoring.hybrid import Weights, hybrid_scores, score_matrix
from bgem3.scoring.ranking import check_judgments, check_metric, quality

ALONE: dict[str, Weights] = {"dense": (1.0, 0.0, 0.0), "sparse": (0.0, 1.0, 0.0), "multivector": (0.0, 0.0, 1.0)}
EQUAL: Weights = (1 / 3, 1 / 3, 1 / 3)
STEPS = (0.1, 0.02)  # grid steps: of the whole simplex, and around its best point; 66 and about 90 points


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The result of :func:`tune_weights`.

    Attributes
    ----------
    metric : str
        The metric, such as "ndcg@10".
    weights : Weights
        The best weights of the dense, sparse and multi-vector score; their sum is 1.
    tried : dict of Weights to float
        The mean quality of all weights that were tried.
    """

    metric: str
    weights: Weights
    tried: dict[Weights, float]

    @property
    def quality(self) -> dict[str, float]:
        """The mean quality of each score alone, of equal weights and of the tuned weights."""
        return {name: self.tried[weights] for name, weights in self._rows.items()}

    def table(self) -> str:
        """Return the qualities as a Markdown table."""
        lines = [f"| score | dense, sparse, multi-vector | {self.metric} |", "|---|---|---|"]
        for name, weights in self._rows.items():
            lines.append(f"| {name} | {', '.join(f'{w:.2f}' for w in weights)} | {self.tried[weights]:.4f} |")
        return "\n".join(lines)

    @property
    def _rows(self) -> dict[str, Weights]:
        return {**ALONE, "equal": EQUAL, "tuned": self.weights}

    def plot(self, path: str | Path) -> None:
        """Plot the quality over the simplex of weights, or raise ImportError if matplotlib is not installed.

        The suffix of ``path`` names the format. Without a suffix, ".png" is appended.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plotting needs matplotlib: `pip install 'bgem3[bench]'`") from error
        figure = Figure(figsize=(6, 5), layout="constrained")
        axes = figure.subplots()
        weights, values = np.array(list(self.tried)), list(self.tried.values())
        x, y = _triangle_xy(weights)
        points = axes.scatter(x, y, c=values, s=60, cmap="viridis")
        figure.colorbar(points, label=self.metric)
        best_x, best_y = _triangle_xy(np.array([self.weights]))
        axes.plot(best_x, best_y, "r*", markersize=16, label="tuned {:.2f}, {:.2f}, {:.2f}".format(*self.weights))
        for name, corner in ALONE.items():
            (corner_x,), (corner_y,) = _triangle_xy(np.array([corner]))
            axes.annotate(
                f"{name}\n{self.tried[corner]:.3f}",
                (corner_x, corner_y),
                xytext=(0, 10 if corner_y else -28),
                textcoords="offset points",
                ha="center",
            )
        axes.set(xlim=(-0.15, 1.15), ylim=(-0.2, 1.1), aspect="equal")
        axes.axis("off")
        axes.legend(loc="upper left")
        path = Path(path) if Path(path).suffix else Path(f"{path}.png")
        with whole_file(path) as file:
            figure.savefig(file, format=path.suffix[1:])


def tune_weights(
    queries: Embeddings, passages: Embeddings, judgments: Sequence[Mapping[int, float]], metric: str = "ndcg@10"
) -> Tuning:
    """Find the hybrid weights that rank judged passages best, each query against all passages.

    A grid search on the simplex of weights tries steps of 0.1, then steps of 0.02 around the best point. Among equally
    good weights, it returns the weights closest to equal ones. Evaluate them on other queries: they are fitted to
    these.

    Parameters
    ----------
    queries, passages : Embeddings
        Q and P texts with all three outputs.
    judgments : Q mappings {position of a passage: gain}
        Each has at least one passage; gains are greater than 0.
    metric : str
        "ndcg@k", "mrr@k" or "recall@k".

    Returns
    -------
    Tuning

    Raises
    ------
    AttributeError
        If an output is missing.
    ValueError
        If the metric is unknown, the judgments do not fit, or there is no query.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> from bgem3.scoring import MultiVectors
    >>> def embed(dense, sparse):
    ...     dense, sparse = np.array(dense, np.float32), csr_array(np.array(sparse, np.float32))
    ...     vectors = MultiVectors.pack([row[None] for row in dense])
    ...     n_tokens, truncated = np.full(len(dense), 2), np.zeros(len(dense), bool)
    ...     return Embeddings(n_tokens=n_tokens, truncated=truncated, dense=dense, sparse=sparse, multivector=vectors)
    >>> queries, passages = embed([[1, 0]], [[1, 0]]), embed([[1, 0], [0, 1]], [[0, 1], [2, 0]])
    >>> tuning = tune_weights(queries, passages, [{1: 1.0}], "mrr@10")  # only the sparse score finds passage 1
    >>> tuning.quality["dense"], tuning.quality["sparse"], tuning.quality["tuned"]
    (0.5, 1.0, 1.0)
    """
    check_metric(metric)
    check_judgments(judgments, len(queries), len(passages))
    if not len(queries):
        raise ValueError("tuning needs at least one query with a judged passage, found none")
    scores = score_matrix(queries, passages)
    parts = scores.dense, scores.sparse, scores.multivector
    tried: dict[Weights, float] = {}

    def best_of(points: Iterator[Weights]) -> Weights:
        for weights in points:
            if weights not in tried:
                tried[weights] = float(quality(hybrid_scores(*parts, weights), judgments, metric).mean())
        return min(tried, key=lambda weights: (-tried[weights], np.ptp(weights)))

    coarse, fine = STEPS
    best_of(iter((*ALONE.values(), EQUAL)))
    center = best_of(_simplex(coarse))
    best = best_of(w for w in _simplex(fine) if max(abs(a - b) for a, b in zip(w, center, strict=True)) <= coarse)
    return Tuning(metric=metric, weights=best, tried=tried)


def _simplex(step: float) -> Iterator[Weights]:
    """Yield all weights that are multiples of a step and have the sum 1."""
    n_steps = round(1 / step)
    for dense in range(n_steps + 1):
        for sparse in range(n_steps + 1 - dense):
            yield dense / n_steps, sparse / n_steps, (n_steps - dense - sparse) / n_steps


def _triangle_xy(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (N, 3) as x and y in a triangle: dense on the left, sparse on the right, multi-vector on top."""
    return weights[:, 1] + weights[:, 2] / 2, weights[:, 2] * np.sqrt(3) / 2
