"""Encoders measured beside each other, after a look at whether they compute the same."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bgem3.runtime.bench_hardware import seconds_of
from bgem3.runtime.bench_report import TIME_LIMIT, attempt, is_missing, not_run
from bgem3.runtime.session import OUTPUTS, Output

MIN_COSINE = 0.99  # to the first encoder's vectors; one below computes something else, and its speed says nothing
WARM_UP = 5  # untimed queries before a block: what ran before left its threads spinning and the caches full
SECONDS_PER_ENCODER = 5.0  # of timed queries, where they are slow

Encode = Callable[[list[str], tuple[Output, ...]], Any]
Encoders = dict[str, Encode | str]
"""How to encode texts, by the encoder's name; or, in words, why it cannot run. What is returned has ``dense``, (N, D),
and if asked for ``multivector``, N arrays (vectors, M)."""


def query_latency(
    encoders: Encoders, queries: list[str], outputs: tuple[Output, ...], n_calls: int, deadline: float
) -> dict[str, Any]:
    """Time single queries, tokenizing included, in blocks of one encoder at a time.

    Parameters
    ----------
    queries : encoded one by one, all of them in each block
    outputs : the heads asked for
    n_calls : timed calls of each encoder; fewer, but at least a block, where they take over SECONDS_PER_ENCODER
    deadline : on ``time.perf_counter``'s clock; no block starts after it

    Returns
    -------
    By encoder: ``p50_ms``, ``p95_ms``, ``n_calls``, and how far its vectors are from the first encoder's
    """
    ready, cells = _start(encoders, queries[:1], outputs, deadline)  # one text, as is timed
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(0, n_calls, len(queries)):
        for name, encode in ready.items():
            if sum(seconds[name]) < SECONDS_PER_ENCODER and time.perf_counter() < deadline:
                for query in queries[:WARM_UP]:
                    encode([query], outputs)
                seconds[name] += [seconds_of(partial(encode, [query], outputs)) for query in queries]
    for name, times in seconds.items():
        if not times:
            cells[name] = not_run(TIME_LIMIT)
            continue
        p50, p95 = np.percentile(times, [50, 95]) * 1000
        cells[name] |= {"p50_ms": float(p50), "p95_ms": float(p95), "n_calls": len(times)}
    return cells


def bulk_throughput(
    encoders: Encoders,
    texts: list[str],
    n_tokens: int,
    flop: int,
    n_repeats: int,
    deadline: float,
    matrix_rate: float | None = None,
) -> dict[str, Any]:
    """Time all texts at once with all three heads, the encoders taking turns; medians are given.

    Parameters
    ----------
    n_tokens, flop : of all texts, padding left out
    n_repeats : timed calls of each encoder
    deadline : on ``time.perf_counter``'s clock; no call starts after it
    matrix_rate : FLOP/s of the device's matrix products

    Returns
    -------
    By encoder: ``tokens_per_s``, ``flop_per_s``, its ``share_of_matrix_rate``, all ``seconds``, and how far its vectors
    are from the first encoder's
    """
    ready, cells = _start(encoders, texts, OUTPUTS, deadline)
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(n_repeats):
        for name, encode in ready.items():
            if time.perf_counter() < deadline:
                seconds[name].append(seconds_of(partial(encode, texts, OUTPUTS)))
    for name, times in seconds.items():
        if not times:
            cells[name] = not_run(TIME_LIMIT)
            continue
        median = statistics.median(times)
        cells[name] |= {"tokens_per_s": n_tokens / median, "flop_per_s": flop / median, "seconds": times}
        if matrix_rate:
            cells[name]["share_of_matrix_rate"] = flop / median / matrix_rate
    return cells


def _start(
    encoders: Encoders, texts: list[str], outputs: tuple[Output, ...], deadline: float
) -> tuple[dict[str, Encode], dict[str, Any]]:
    """Encode once with each; return those to be timed, and what there is to say of each."""
    ready: dict[str, Encode] = {}
    cells: dict[str, Any] = {}
    expected = None
    for name, encode in encoders.items():
        if isinstance(encode, str) or time.perf_counter() >= deadline:
            cells[name] = not_run(encode if isinstance(encode, str) else TIME_LIMIT)
            continue
        found = attempt(partial(encode, texts, outputs))
        expected = found if expected is None and not is_missing(found) else expected
        cells[name] = found if is_missing(found) else attempt(partial(agreement, found, expected, outputs))
        if not is_missing(cells[name]):
            ready[name] = encode
    return ready, cells


def agreement(found: Any, expected: Any, outputs: tuple[Output, ...]) -> dict[str, Any]:
    """Return the lowest cosine of two encoders' vectors, by head; with ``not_run`` if one is below MIN_COSINE."""
    pairs = {"dense": [(found.dense, expected.dense)]}
    if "multivector" in outputs:
        pairs["multivector"] = list(zip(found.multivector, expected.multivector, strict=True))
    cosines = {f"{head}_min_cosine": min(_min_cosine(*pair) for pair in both) for head, both in pairs.items()}
    is_same = min(cosines.values()) >= MIN_COSINE
    return cosines if is_same else cosines | not_run("its outputs are not the first encoder's, so it is not timed")


def _min_cosine(found: Any, expected: Any) -> float:
    cosines = np.einsum("nd,nd->n", np.asarray(found, np.float32), np.asarray(expected, np.float32))
    return float(np.nan_to_num(cosines, nan=-1.0).min())  # vectors are unit length
