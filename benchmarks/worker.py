"""Run one encoder in a process of its own, under its own Python, which need not have bgem3.

Requests are lines of JSON on standard input, each answered by a line on standard output. An error ends the process, and
the last line on standard error says what it was. NAME is a scenario's:

    {"prepare": SETTINGS}                      write what the encoder loads
    {"open": SETTINGS, "variant": VARIANT}     open it, and encode one short query with every head
    {"workloads": {NAME: {"texts": [...], "outputs": [...], "is_single": bool, "n_clients": N}}}
    {"tune": NAME, "n_texts": N}               find the fastest variant and batch size for some of the texts
    {"save": NAME, "path": NPZ}                encode once, and write the outputs
    {"run": NAME, "n_calls": N, "seconds": S, "variant": VARIANT, "batch_size": B}
                                               time up to N calls begun within S seconds, at least one
"""

import contextlib
import gc
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peer import Encoded, Peer, Settings
from benchmarks.peers import PEERS

QUERY = "What is BM25?"
MUCH_SLOWER = 1.25  # times as slow as the best: no larger batch is tried, since it would be slower still
ONCE = 3.0  # seconds; a longer call is timed once while tuning, a shorter one three times
FEW_TOKENS = 1100  # estimated as characters / 4; a smaller workload is encoded once before the clock starts


class Worker:
    """An encoder, open in one of its variants at a time; each method answers the request of its name."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._lock: Any = contextlib.nullcontext() if peer.is_thread_safe else threading.Lock()
        self._workloads: dict[str, dict[str, Any]] = {}
        self._settings: Settings = {}
        self._variant: str | None = None

    def prepare(self, settings: Settings) -> None:
        """Write what the encoder loads."""
        self._peer.prepare(settings)

    def open(self, settings: Settings, variant: str) -> dict[str, float]:
        """Open the encoder; return the seconds that it and the first embedding took."""
        self._settings = settings
        load_s = seconds_of(partial(self._switch, variant))
        return {"load_s": load_s, "first_s": seconds_of(partial(self._encode, [QUERY], self._peer.outputs, 1))}

    def workloads(self, workloads: dict[str, dict[str, Any]]) -> None:
        """Take the scenarios' texts."""
        self._workloads = workloads

    def tune(self, name: str, n_texts: int) -> dict[str, Any]:
        """Time every variant and batch size on texts spread over a workload's."""
        texts = self._workloads[name]["texts"]
        texts = [texts[i] for i in np.linspace(0, len(texts) - 1, n_texts).astype(int)]
        tried: dict[tuple[str, int], float] = {}
        for variant in self._peer.variants(self._settings):
            self._switch(variant)
            for size in sorted({min(size, n_texts) for size in self._peer.batch_sizes}):
                tried[variant, size] = quickest(partial(self._encode, texts, self._heads(name), size))
                if tried[variant, size] > MUCH_SLOWER * min(tried.values()):
                    break
        variant, size = min(tried, key=lambda choice: tried[choice])
        seconds = {f"{named} {n}".strip(): value for (named, n), value in tried.items()}
        return {"variant": variant, "batch_size": size, "tried_seconds": seconds}

    def save(self, name: str, path: str) -> None:
        """Write dense (N, D), vectors (V, M), and for lexical weights (L,) their entries (L, 2): text and token id."""
        found = self._encode(self._workloads[name]["texts"], self._heads(name), self._peer.batch_sizes[:2][-1])
        arrays: dict[str, Any] = {"dense": found.dense}
        if found.multivector is not None:
            arrays["vectors"] = np.concatenate(list(found.multivector))
        if found.lexical is not None:
            texts = enumerate(found.lexical())
            weights = {(i, int(token)): weight for i, text in texts for token, weight in text.items()}
            arrays["weights"] = np.array(list(weights.values()), np.float32)
            arrays["entries"] = np.array(list(weights), np.int64).reshape(-1, 2)
        np.savez(path, **arrays)

    def run(self, name: str, variant: str, batch_size: int, n_calls: int, seconds: float) -> dict[str, Any]:
        """Return the seconds of each call, and of all together; the clients share the calls."""
        workload = self._workloads[name]
        texts, n_clients = workload["texts"], workload["n_clients"]
        calls = itertools.cycle([[text] for text in texts] if workload["is_single"] else [texts])
        numbers, lock = itertools.count(), threading.Lock()
        times: list[float] = []

        def call() -> float:
            with lock:
                batch = next(calls)
            return seconds_of(partial(self._encode, batch, tuple(workload["outputs"]), batch_size))

        def client(_: int) -> None:
            while next(numbers) < n_calls and (not times or time.perf_counter() < deadline):
                times.append(call())

        is_new = self._switch(variant)
        if is_new or workload["is_single"] or sum(map(len, texts)) // 4 <= FEW_TOKENS:
            call()
        deadline = time.perf_counter() + seconds
        with ThreadPoolExecutor(n_clients) as pool:
            wall = seconds_of(lambda: list(pool.map(client, range(n_clients))))
        return {"seconds": times, "wall_s": wall}

    def _heads(self, name: str) -> tuple[str, ...]:
        """Return the heads of a workload that the encoder has."""
        return tuple(head for head in self._workloads[name]["outputs"] if head in self._peer.outputs)

    def _switch(self, variant: str) -> bool:
        """Open a variant in place of the open one, since there is memory for one; return whether it was another."""
        if variant == self._variant:
            return False
        self._call: Any = None
        gc.collect()
        self._variant, self._call = variant, self._peer.open(self._settings, variant)
        return True

    def _encode(self, texts: list[str], outputs: tuple[str, ...], batch_size: int) -> Encoded:
        with self._lock:
            found: Encoded = self._call(texts, outputs, batch_size)
        return found


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def quickest(call: Callable[[], object]) -> float:
    """Return the shortest of three calls, or the only one where it takes long."""
    first = seconds_of(call)
    return first if first > ONCE else min(first, seconds_of(call), seconds_of(call))


def main(name: str) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    worker = Worker(PEERS[name])
    for line in sys.stdin:
        request = json.loads(line)
        method, argument = next(iter(request.items()))
        answer = getattr(worker, method)(argument, **{key: request[key] for key in request if key != method})
        print(json.dumps(answer), file=answers, flush=True)
