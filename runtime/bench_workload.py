"""What is encoded to measure speed: texts of exact token counts, a mix of lengths, and the arithmetic they cost."""

import json
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.artifact import ModelSpec
from bgem3.runtime.tokenizer import TextTokenizer

FILLERS = (" a", ".", ",", " the", "1", "x", "!")  # appended until a text has its tokens; most add one
LONGEST_WORD = 12  # characters; a sentence written without spaces is no word


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    n_turns : in each of which every encoder starts anew and runs the scenarios
    n_calls, cell_seconds : timed calls of an encoder in a scenario and turn: as many as fit the time, at least one
    most_tokens : of a scenario's calls in all turns together: those of many tokens run in fewer turns
    n_queries, query_lengths : single queries, and their tokens
    n_clients : threads that call an encoder at once
    shapes : texts and tokens of batches of one length
    n_reranked : passages beside one query
    n_passages, n_questions : in the mix of real lengths
    long_lengths : tokens of single long texts
    n_products : timed matrix products
    longest : tokens; of parity's texts and of those that memory is measured with
    n_packed_tokens, n_batches : of which memory is measured: a full micro-batch, and batches of random shapes
    """

    n_turns: int = 3
    n_calls: int = 20
    cell_seconds: float = 1.0
    most_tokens: int
    n_queries: int = 20
    query_lengths: tuple[int, ...] = (8, 16, 32)
    n_clients: tuple[int, ...] = (1, 4, 16)
    shapes: tuple[tuple[int, int], ...]
    n_reranked: tuple[int, ...] = (20, 100)
    n_passages: int
    n_questions: int
    long_lengths: tuple[int, ...] = (2048, 8192)
    n_products: int = 30
    longest: int = 8192
    n_packed_tokens: int
    n_batches: int

    def quick(self) -> "Effort":
        """Return less of the same."""
        return replace(
            self,
            n_turns=1,
            n_calls=10,
            query_lengths=(16,),
            n_clients=(4,),
            shapes=self.shapes[:1],
            n_reranked=(),
            n_passages=self.n_passages // 4,
            n_questions=self.n_questions // 4,
            long_lengths=(),
            n_products=3,
            longest=512,
            n_batches=self.n_batches // 40,
        )

    def turns(self, n_tokens: float) -> int:
        """Return in how many turns a scenario runs whose calls take so many tokens."""
        return max(1, min(self.n_turns, int(self.most_tokens / n_tokens)))


EFFORTS = {
    "cpu": Effort(
        most_tokens=7000,
        shapes=((1, 128), (8, 16), (8, 128), (1, 512), (4, 512)),
        n_passages=8,
        n_questions=16,
        n_packed_tokens=1024,
        n_batches=0,
    ),
    "cuda": Effort(
        most_tokens=1_000_000,
        n_calls=200,
        n_queries=100,
        shapes=((1, 128), (8, 16), (8, 128), (64, 128), (1, 512), (64, 512), (32, 2048)),
        n_passages=256,
        n_questions=1024,
        n_packed_tokens=16384,
        n_batches=2000,
    ),
}


class ExactTexts:
    """Makes texts of exactly so many tokens, CLS and EOS included, of words drawn at random.

    Parameters
    ----------
    tokenizer, spec : the model's
    sentences : where the words come from
    """

    def __init__(self, tokenizer: TextTokenizer, spec: ModelSpec, sentences: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._max_length = spec.max_length
        words = {word for sentence in sentences for word in sentence.split() if len(word) <= LONGEST_WORD}
        self._words = sorted(words) or ["a"]

    def __call__(self, n_tokens: int, n_texts: int, *, seed: int = 0) -> list[str]:
        """Return ``n_texts`` texts of ``n_tokens`` tokens; the same seed gives the same texts.

        Raises
        ------
        ValueError
            If the model takes no text of so many tokens.
        """
        if not 2 <= n_tokens <= self._max_length:
            raise ValueError(f"this model takes texts of 2 to {self._max_length} tokens, found {n_tokens}")
        draw = random.Random(seed)
        return [self._text(n_tokens, draw) for _ in range(n_texts)]

    def _text(self, n_tokens: int, draw: random.Random) -> str:
        words = draw.choices(self._words, k=n_tokens)
        n_words = bisect_right(range(len(words) + 1), n_tokens, key=lambda n: self._count(" ".join(words[:n]))) - 1
        text = " ".join(words[:n_words])
        while (found := self._count(text)) < n_tokens:
            longer = [text + filler for filler in FILLERS if found < self._count(text + filler) <= n_tokens]
            if not longer:
                raise ValueError(f"no text of exactly {n_tokens} tokens was found; the nearest has {found}")
            text = longer[0]
        return text

    def _count(self, text: str) -> int:
        tokens = self._tokenizer([text], self._max_length)
        return int(tokens.lengths[0]) + int(tokens.truncated[0])


def read_texts(path: Path | None, n_passages: int, n_questions: int, sentences: Sequence[str]) -> list[str]:
    """Return passages, then questions, evenly spaced over a file; without a file, a seeded mix of sentences.

    Parameters
    ----------
    path : JSON in SQuAD's flat form, ``[{"context": str, "questions": [str, ...]}, ...]``
    n_passages, n_questions : how many, or as many as the file holds
    sentences : what the mix is drawn from: 5 to 15 sentences a passage, one a question

    Raises
    ------
    ValueError
        If the file is of another form.
    """
    if path is None:
        draw = random.Random(0)
        passages = [" ".join(draw.choices(sentences, k=draw.randint(5, 15))) for _ in range(n_passages)]
        return passages + [draw.choice(sentences) for _ in range(n_questions)]
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        passages = [str(entry["context"]) for entry in entries]
        questions = [str(question) for entry in entries for question in entry["questions"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not JSON of the form [{{"context": ..., "questions": [...]}}, ...] ({error!r})'
        ) from None
    return _spread(passages, n_passages) + _spread(questions, n_questions)


def _spread(texts: list[str], count: int) -> list[str]:
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)]


def random_lengths(n_batches: int, longest: int, *, seed: int = 0) -> list[list[int]]:
    """Return the token counts of ``n_batches`` batches of 1 to 16 texts; short texts are as likely as long ones."""
    draw = random.Random(seed)
    return [[round(4 * (longest / 4) ** draw.random()) for _ in range(draw.randint(1, 16))] for _ in range(n_batches)]


def encoder_flop(lengths: NDArray[np.integer], spec: ModelSpec) -> int:
    """Count the floating-point operations of all three heads; padding is no work, so it counts for nothing.

    Per layer and token, ``2 (4 D² + 2 D F)`` for the linear layers and ``4 L D`` for attention within a text of
    L tokens; then ``2 D`` per token for the sparse head, and ``2 D M`` for the multi-vector head on all but CLS.

    Parameters
    ----------
    lengths : (N,) tokens per text
    """
    d, tokens = spec.hidden_size, int(lengths.sum())
    linear = 2 * (4 * d * d + 2 * d * spec.intermediate_size) * tokens
    attention = 4 * d * int((lengths.astype(np.int64) ** 2).sum())
    heads = 2 * d * tokens + 2 * d * spec.multivector_size * (tokens - len(lengths))
    return spec.n_layers * (linear + attention) + heads
