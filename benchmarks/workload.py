"""Scenarios: the texts that encoders are timed on."""

from typing import Any

from benchmarks.peer import ALL_HEADS
from bgem3.runtime.bench import ExactTexts, passages
from bgem3.runtime.tokenizer import TextTokenizer

Scenario = dict[str, Any]
"""``title`` and ``group``; ``texts``, their number ``n_texts`` and ``n_tokens``; ``outputs``, the heads asked for;
``is_single``, whether each call encodes one text and not all; ``n_clients``, the threads that call at the same time;
``batch_size``, None where each encoder's best one is taken; ``n_turns``, in how many turns it runs."""

MIX = "mix"  # the scenario on which outputs are compared and batch sizes are chosen
QUICK = ("query 16", "query 16 dense", "clients 4", "8x128", MIX, f"{MIX} dense")
NAMES = (
    *(f"query {n_tokens}{heads}" for n_tokens in (8, 16, 32) for heads in ("", " dense")),
    *("clients 1", "clients 4", "clients 16", "1x128", "8x16", "8x128", "1x512", "4x512"),
    *(MIX, f"{MIX} dense", "rerank 20", "rerank 100", "long 2048", "long 8192"),
)
"""All scenarios, in the order in which they run; "8x16" is a batch of 8 texts of 16 tokens. Long texts come last, so
that peak memory is known without them."""

N_QUERIES = 20
CLIENT_TOKENS = 16
MIX_PASSAGES, MIX_QUESTIONS, QUESTION_TOKENS = 8, 16, 14  # as in XQuAD, whose questions are of 14 tokens in the median


def make_scenario(name: str, exact: ExactTexts, tokenizer: TextTokenizer, max_length: int, n_turns: int) -> Scenario:
    """Return the scenario of a name; raise ValueError if the model does not take texts so long."""
    kind, *numbers = name.split()
    count = int(numbers[0]) if numbers and numbers[0].isdigit() else 1
    group, n_texts, n_tokens = kind, 1, CLIENT_TOKENS
    if kind in ("query", "long"):
        n_texts, n_tokens = N_QUERIES if kind == "query" else 1, count
        title = f"one {'query' if kind == 'query' else 'text'} of {n_tokens} tokens"
    elif kind == "clients":
        title, n_texts = f"{count} threads with a query of {n_tokens} tokens each", N_QUERIES
    elif kind == "rerank":
        title = f"one query and {count} passages"
    elif kind == MIX:
        group, n_texts, n_tokens = "bulk", MIX_QUESTIONS, QUESTION_TOKENS
        title = f"{MIX_PASSAGES} passages and {MIX_QUESTIONS} questions"
    else:
        group, (n_texts, n_tokens) = "shapes", map(int, kind.split("x"))
        title = f"{n_texts} texts of {n_tokens} tokens, one batch"
    title += ", dense alone" * name.endswith("dense")
    if n_tokens > max_length:
        raise ValueError(
            f"{name!r} needs texts of {n_tokens} tokens; this model takes at most {max_length}: "
            "name shorter scenarios with --scenarios"
        )
    texts = passages(exact, {"rerank": count, MIX: MIX_PASSAGES}.get(kind, 0)) + exact(n_tokens, n_texts)
    return {
        "title": title,
        "group": group,
        "outputs": ("dense",) if name.endswith("dense") else ALL_HEADS,
        "is_single": kind in ("query", "clients"),
        "n_clients": count if kind == "clients" else 1,
        "batch_size": None if group in ("bulk", "rerank") else n_texts if group == "shapes" else 1,
        "n_turns": 1 if group in ("long", "rerank") else n_turns,
        "n_texts": len(texts),
        "n_tokens": int(tokenizer(texts, max_length).lengths.sum()),
        "texts": texts,
    }
