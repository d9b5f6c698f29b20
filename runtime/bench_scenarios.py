"""What encoders are timed on: single queries, clients at once, short lists to rerank, passages in bulk, long texts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.artifact import ModelSpec
from bgem3.runtime.bench_workload import Effort, ExactTexts, encoder_flop, read_texts
from bgem3.runtime.heads import OUTPUTS, Output
from bgem3.runtime.tokenizer import TextTokenizer

QUERY, MIX = "query 16", "mix"
"""The scenarios that settings and batch sizes are chosen on: of single texts, and of many at once."""
CLIENT_TOKENS = 16
LONGEST_SENTENCE = 200  # characters; the reference's longer texts are sentences in a row
MIX_GROUPS, LONG = ("bulk", "rerank"), "long"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Texts, and how they are encoded.

    Attributes
    ----------
    title : what is measured, in words
    group : "query", "clients", "shapes", "rerank", "bulk" or "long"
    outputs : the heads asked for
    texts, lengths : N texts and their tokens, (N,) integers
    flop : floating-point operations of one pass over all texts
    is_single : whether each call encodes one text, taken in turn, and not all of them
    n_clients : threads that call the encoder at once
    """

    title: str
    group: str
    outputs: tuple[Output, ...]
    texts: list[str]
    lengths: NDArray[np.int64]
    flop: int
    is_single: bool
    n_clients: int

    @property
    def tuned_as(self) -> str:
        """The scenario whose choice of settings this one takes: of a batch at a time, or of many batches at once."""
        return MIX if self.group in MIX_GROUPS else QUERY

    @property
    def batch_size(self) -> int | None:
        """The batch size of the texts of one shape, which are one batch; None where the encoder's best is taken."""
        return None if self.group in MIX_GROUPS else 1 if self.is_single else len(self.texts)

    @property
    def tokens_per_call(self) -> float:
        """Tokens of one call, on average."""
        return float(self.lengths.mean() if self.is_single else self.lengths.sum())

    @property
    def flop_per_call(self) -> float:
        """Floating-point operations of one call, on average."""
        return self.flop / len(self.texts) if self.is_single else self.flop

    def workload(self) -> dict[str, Any]:
        """What an encoder's process is told."""
        described = asdict(self)
        return {name: described[name] for name in ("texts", "outputs", "is_single", "n_clients")}

    def described(self) -> dict[str, Any]:
        """What the report says, without the texts."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("texts", "lengths")}
        kept["outputs"] = list(self.outputs)
        n_tokens = int(self.lengths.sum())
        return kept | {"n_texts": len(self.texts), "n_tokens": n_tokens, "lengths": self.lengths.tolist()}


def make_scenarios(
    tokenizer: TextTokenizer,
    spec: ModelSpec,
    effort: Effort,
    known: Sequence[str],
    passages: Path | None,
) -> dict[str, Scenario]:
    """Return the scenarios by name, those whose calls cost least first; longer texts than the model takes are left out.

    Parameters
    ----------
    tokenizer, spec : the model's
    effort : how much is measured
    known : texts of exact lengths are made of their words
    passages : JSON in SQuAD's flat form, for texts of real lengths; None for a mix of the known ones
    """
    exact = ExactTexts(tokenizer, spec, known)
    sentences = [text for text in known if 1 < len(text) <= LONGEST_SENTENCE]
    found: dict[str, Scenario] = {}

    def add(name: str, title: str, group: str, texts: list[str], **options: Any) -> None:
        lengths = tokenizer(texts, spec.max_length).lengths.astype(np.int64)
        measured: dict[str, Any] = {"lengths": lengths, "flop": encoder_flop(lengths, spec)}
        shared: dict[str, Any] = {"outputs": OUTPUTS, "is_single": False, "n_clients": 1} | options
        found[name] = Scenario(title=title, group=group, texts=texts, **measured, **shared)

    def fits(n_tokens: int) -> bool:
        return n_tokens <= spec.max_length

    for n_tokens in filter(fits, effort.query_lengths):
        queries, title = exact(n_tokens, effort.n_queries), f"one query of {n_tokens} tokens"
        add(f"query {n_tokens}", title, "query", queries, is_single=True)
        add(f"query {n_tokens} dense", f"{title}, dense alone", "query", queries, is_single=True, outputs=("dense",))
    for n_clients in effort.n_clients:
        title = f"{n_clients} threads, each with one query of {CLIENT_TOKENS} tokens after another"
        queries = exact(CLIENT_TOKENS, effort.n_queries)
        add(f"clients {n_clients}", title, "clients", queries, is_single=True, n_clients=n_clients)
    for n_texts, n_tokens in effort.shapes:
        if fits(n_tokens):
            title = f"{n_texts} texts of {n_tokens} tokens, one batch"
            add(f"{n_texts}x{n_tokens}", title, "shapes", exact(n_tokens, n_texts))
    for n_passages in effort.n_reranked:
        texts = read_texts(passages, n_passages, 1, sentences)
        add(f"rerank {n_passages}", f"one query and {n_passages} passages", "rerank", texts)
    mix = read_texts(passages, effort.n_passages, effort.n_questions, sentences)
    title = f"{effort.n_passages} passages and {effort.n_questions} questions"
    add(MIX, title, "bulk", mix)
    add(f"{MIX} dense", f"{title}, dense alone", "bulk", mix, outputs=("dense",))
    for n_tokens in filter(fits, effort.long_lengths):
        add(f"long {n_tokens}", f"one text of {n_tokens} tokens", LONG, exact(n_tokens, 1))
    return dict(sorted(found.items(), key=lambda item: item[1].flop_per_call))
