"""Read the texts of evaluations, and write their reports."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.machine import describe_machine
from bgem3.scoring.ranking import quality

RESULTS = Path("benchmarks/results")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Questions, and the passage that answers each of them.

    Attributes
    ----------
    questions, passages : Q and P texts
    answers : int64 (Q,), the passage of each question
    """

    questions: list[str]
    passages: list[str]
    answers: NDArray[np.int64]

    def judgments_of(self, rows: Any) -> list[dict[int, float]]:
        """Return the answers of some questions, as `quality` takes them; rows are an index of an array."""
        return [{int(passage): 1.0} for passage in self.answers[rows]]


def read_texts(path: Path, n_passages: int | None = None) -> Texts:
    """Read the first passages of a file in SQuAD's flat form: ``[{"context": ..., "questions": [...]}, ...]``."""
    entries = json.loads(path.read_text(encoding="utf-8-sig"))[:n_passages]
    return Texts(
        questions=[question for entry in entries for question in entry["questions"]],
        passages=[entry["context"] for entry in entries],
        answers=np.repeat(np.arange(len(entries)), [len(entry["questions"]) for entry in entries]),
    )


def mean_quality(
    scores: NDArray[np.float32], judgments: Sequence[dict[int, float]], metrics: Sequence[str]
) -> dict[str, float]:
    """Return the mean of each metric over the rows of (Q, P) scores."""
    return {metric: float(quality(scores, judgments, metric).mean()) for metric in metrics}


def report_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with --output, which is results/NAME by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / name, help=f"JSON; default: {RESULTS / name}")
    return parser


def write_report(path: Path, results: dict[str, Any], packages: Sequence[str]) -> None:
    """Write results with the machine and the versions, and print the results."""
    machine = describe_machine("cpu", ("bgem3", "numpy", *packages))
    path.write_text(json.dumps(machine | results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))
