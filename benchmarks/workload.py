"""Scenarios: the texts that encoders are timed on."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer import ALL_HEADS
from bgem3.runtime.artifact import ModelSpec
from bgem3.runtime.tokenizer import TextTokenizer

Scenario = dict[str, Any]
"""``title`` and ``group``; ``texts`` and their ``lengths`` in tokens; ``outputs``, the heads asked for; ``is_single``,
whether each call encodes one text and not all; ``n_clients``, the threads that call at the same time."""

QUERY, MIX = "query 16", "mix"
"""The scenarios on which batch sizes and variants are chosen: one text at a time, and many at once."""

QUICK = (QUERY, f"{QUERY} dense", "clients 4", "8x128", MIX, f"{MIX} dense")
_QUERIES = [f"query {n}{heads}" for n in (8, 16, 32) for heads in ("", " dense")]
_SHARED = [*_QUERIES, "clients 1", "clients 4", "clients 16", "1x128", "8x16", "8x128", "1x512"]
_LARGE = ["rerank 20", "rerank 100", MIX, f"{MIX} dense", "long 2048", "long 8192"]
SCENARIOS = {"cpu": [*_SHARED, "4x512", *_LARGE], "cuda": [*_SHARED, "64x128", "64x512", "32x2048", *_LARGE]}
"""The scenarios of each device; "8x16" is a batch of 8 texts of 16 tokens."""

CLIENT_TOKENS = 16
LONGEST_WORD = 12  # characters; longer ones are sentences of languages written without spaces
LONGEST_SENTENCE = 200  # characters; the reference's longer texts are sentences in a row


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    n_turns : in each turn, every encoder starts anew and runs the scenarios
    n_calls, seconds : timed calls in a scenario and turn: at most so many, begun within so many seconds, at least one
    most_tokens : a scenario whose calls hold more tokens than this in all turns together runs in fewer turns
    n_queries, n_passages, n_questions : single queries, and the texts in the mix
    """

    n_turns: int = 3
    n_calls: int = 20
    seconds: float = 1.0
    most_tokens: int = 7000
    n_queries: int = 20
    n_passages: int = 8
    n_questions: int = 16


EFFORTS = {
    "quick": Effort(n_turns=1),
    "cpu": Effort(),
    "cuda": Effort(n_calls=200, most_tokens=1_000_000, n_queries=100, n_passages=256, n_questions=1024),
}


class ScenarioMaker:
    """Makes the scenarios of one model.

    Parameters
    ----------
    tokenizer, spec : the model's
    effort : how many texts are made
    sentences : the words of generated texts come from them
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
        words = sorted({word for text in sentences for word in text.split() if len(word) <= LONGEST_WORD} | {"a"})
        self._n_tokens = dict(zip(words, (tokenizer(words, self._max_length).lengths - 2).tolist(), strict=True))

    def __call__(self, name: str) -> Scenario:
        """Return the scenario of a name; the texts are the same in every call.

        Raises
        ------
        ValueError
            If the model does not take texts so long.
        """
        kind, *numbers = name.split()
        count = next((int(number) for number in numbers if number.isdigit()), 1)
        effort, outputs = self._effort, ("dense",) if name.endswith("dense") else ALL_HEADS
        scenario: Scenario = {"group": kind, "outputs": outputs, "is_single": False, "n_clients": 1}
        if kind == "query":
            texts, title = self.exact(count, effort.n_queries), f"one query of {count} tokens"
            scenario["is_single"] = True
        elif kind == "clients":
            texts = self.exact(CLIENT_TOKENS, effort.n_queries)
            title = f"{count} threads, each with one query of {CLIENT_TOKENS} tokens after another"
            scenario |= {"is_single": True, "n_clients": count}
        elif kind == "long":
            texts, title = self.exact(count, 1), f"one text of {count} tokens"
        elif kind == "rerank":
            texts, title = self.real(count, 1), f"one query and {count} passages"
        elif kind == "mix":
            texts = self.real(effort.n_passages, effort.n_questions)
            scenario["group"], title = "bulk", f"{effort.n_passages} passages and {effort.n_questions} questions"
        else:
            n_texts, n_tokens = map(int, kind.split("x"))
            texts, title = self.exact(n_tokens, n_texts), f"{n_texts} texts of {n_tokens} tokens, one batch"
            scenario["group"] = "shapes"
        lengths = self._tokenizer(texts, self._max_length).lengths.tolist()
        return scenario | {"title": title, "texts": texts, "lengths": lengths}

    def exact(self, n_tokens: int, n_texts: int) -> list[str]:
        """Return texts of exactly ``n_tokens`` tokens, CLS and EOS included, from words drawn at random."""
        if n_tokens > self._max_length:
            raise ValueError(f"this model takes texts of at most {self._max_length} tokens, found {n_tokens}")
        draw = random.Random(0)
        texts = [self._text(n_tokens - 2, draw) for _ in range(n_texts)]
        found = set(self._tokenizer(texts, self._max_length).lengths.tolist())
        if found != {n_tokens}:
            raise ValueError(f"this tokenizer gives texts of {found} tokens where {n_tokens} were expected")
        return texts

    def _text(self, missing: int, draw: random.Random) -> str:
        words: list[str] = []
        while missing:
            fitting = [word for word, count in self._n_tokens.items() if count <= missing]
            words.append(draw.choice(fitting))
            missing -= self._n_tokens[words[-1]]
        return " ".join(words)

    def real(self, n_passages: int, n_questions: int) -> list[str]:
        """Return passages, then questions, spread evenly over the file, or a seeded mix of sentences without one."""
        if self._passages is not None:
            passages, questions = read_passages(self._passages)
            return spread(passages, n_passages) + spread(questions, n_questions)
        draw = random.Random(0)
        passages = [" ".join(draw.choices(self.sentences, k=draw.randint(5, 15))) for _ in range(n_passages)]
        return passages + [draw.choice(self.sentences) for _ in range(n_questions)]


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
