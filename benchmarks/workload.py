"""Scenarios: the texts that encoders are timed on."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer import ALL_HEADS
from bgem3.runtime.artifact import ModelSpec
from bgem3.runtime.bench import ExactTexts
from bgem3.runtime.tokenizer import TextTokenizer

Scenario = dict[str, Any]
"""``title`` and ``group``; ``texts`` and their ``lengths`` in tokens; ``outputs``, the heads asked for; ``is_single``,
whether each call encodes one text and not all; ``n_clients``, the threads that call at the same time; ``tuned_as``, the
scenario whose chosen variant it takes; ``n_turns``, in how many turns it runs."""

QUERY, MIX = "query 16", "mix"
"""The scenarios on which batch sizes and variants are chosen: one text at a time, and many at once."""

QUICK = (QUERY, f"{QUERY} dense", "clients 4", "8x128", MIX, f"{MIX} dense")
_QUERIES = [f"query {n}{heads}" for n in (8, 16, 32) for heads in ("", " dense")]
_SHARED = [*_QUERIES, "clients 1", "clients 4", "clients 16", "1x128", "8x16", "8x128", "1x512"]
_LARGE = [MIX, f"{MIX} dense", "rerank 20", "rerank 100", "long 2048", "long 8192"]
SCENARIOS = {"cpu": [*_SHARED, "4x512", *_LARGE], "cuda": [*_SHARED, "64x128", "64x512", "32x2048", *_LARGE]}
"""The scenarios of each device, in the order in which they run; "8x16" is a batch of 8 texts of 16 tokens. Long texts
come last, so that peak memory is known without them."""

CLIENT_TOKENS = 16
LONGEST_SENTENCE = 200  # characters; the reference's longer texts are sentences in a row


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    n_turns : in each turn, every encoder starts anew and runs the scenarios; reranking and long texts run in the first
    n_calls, seconds : timed calls in a scenario and turn: at most so many, begun within so many seconds, at least one
    n_queries, n_passages, n_questions : single queries, and the texts in the mix
    """

    n_turns: int = 3
    n_calls: int = 20
    seconds: float = 1.0
    n_queries: int = 20
    n_passages: int = 8
    n_questions: int = 16


EFFORTS = {
    "quick": Effort(n_turns=1),
    "cpu": Effort(),
    "cuda": Effort(n_calls=200, n_queries=100, n_passages=256, n_questions=1024),
}


class ScenarioMaker:
    """Makes the scenarios of one model.

    Parameters
    ----------
    tokenizer, spec : the model's
    effort : how many texts are made
    sentences : generated texts are made of them and their words
    passages : JSON in SQuAD's flat form, for texts of real lengths; None for random sentences
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        spec: ModelSpec,
        effort: Effort,
        sentences: Sequence[str],
        passages: Path | None = None,
    ) -> None:
        self._tokenizer, self._max_length, self._effort, self._passages = tokenizer, spec.max_length, effort, passages
        self.sentences = [text for text in sentences if 1 < len(text) <= LONGEST_SENTENCE]
        self._exact = ExactTexts(tokenizer, spec, sentences)

    def __call__(self, name: str) -> Scenario:
        """Return the scenario of a name; the texts are the same in every call.

        Raises
        ------
        ValueError
            If the model does not take texts so long.
        """
        kind, *numbers = name.split()
        count = next((int(number) for number in numbers if number.isdigit()), 1)
        effort, group = self._effort, kind
        if kind in ("query", "clients"):
            n_tokens = count if kind == "query" else CLIENT_TOKENS
            texts, title = self.exact(n_tokens, effort.n_queries), f"one query of {n_tokens} tokens at a time"
        elif kind == "long":
            texts, title = self.exact(count, 1), f"one text of {count} tokens"
        elif kind == "rerank":
            texts, title = self.real(count, 1), f"one query and {count} passages"
        elif kind == "mix":
            texts, group = self.real(effort.n_passages, effort.n_questions), "bulk"
            title = f"{effort.n_passages} passages and {effort.n_questions} questions"
        else:
            n_texts, n_tokens = map(int, kind.split("x"))
            texts, group = self.exact(n_tokens, n_texts), "shapes"
            title = f"{n_texts} texts of {n_tokens} tokens, one batch"
        lengths = self._tokenizer(texts, self._max_length).lengths.tolist()
        return {
            "title": f"{title}, from each of {count} threads" if kind == "clients" else title,
            "group": group,
            "outputs": ("dense",) if name.endswith("dense") else ALL_HEADS,
            "is_single": kind in ("query", "clients"),
            "n_clients": count if kind == "clients" else 1,
            "tuned_as": MIX if group in ("bulk", "rerank") else QUERY,
            "n_turns": 1 if group in ("long", "rerank") else effort.n_turns,
            "texts": texts,
            "n_texts": len(texts),
            "n_tokens": sum(lengths),
            "lengths": lengths,
        }

    def exact(self, n_tokens: int, n_texts: int) -> list[str]:
        """Return texts of exactly ``n_tokens`` tokens, CLS and EOS included."""
        if n_tokens > self._max_length:
            raise ValueError(f"this model takes texts of at most {self._max_length} tokens, found {n_tokens}")
        return self._exact(n_tokens, n_texts)

    def real(self, n_passages: int, n_questions: int) -> list[str]:
        """Return passages, then questions, spread evenly over the file, or a seeded mix of sentences without one."""
        if self._passages is not None:
            passages, questions = read_passages(self._passages)
            return spread(passages, n_passages) + spread(questions, n_questions)
        draw = random.Random(0)
        passages = [" ".join(draw.choices(self.sentences, k=draw.randint(5, 15))) for _ in range(n_passages)]
        return passages + [draw.choice(self.sentences) for _ in range(n_questions)]


def longest(name: str) -> int:
    """Return the tokens of a scenario's texts where they all have one length, 0 elsewhere."""
    found = re.fullmatch(r"(?:query|long|\d+x) ?(\d+).*", name)
    return int(found[1]) if found else 0


def spread(texts: list[str], count: int) -> list[str]:
    """Return ``count`` texts, or all, spread evenly over a list."""
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)]


def read_passages(path: Path) -> tuple[list[str], list[str]]:
    """Return the passages and the questions of a file in SQuAD's flat form.

    Raises
    ------
    ValueError
        If the file is not JSON of the form ``[{"context": str, "questions": [str, ...]}, ...]``.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        questions = [str(question) for entry in entries for question in entry["questions"]]
        return [str(entry["context"]) for entry in entries], questions
    except (OSError, ValueError, KeyError, TypeError) as error:
        form = '[{"context": ..., "questions": [...]}, ...]'
        raise ValueError(f"{path} is not JSON of the form {form} ({error!r})") from None
