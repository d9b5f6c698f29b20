"""Run one encoder in a process of its own, under its own Python, which need not have bgem3.

The first line of standard input is a job in JSON; the answers are lines of JSON on standard output. An error ends the
process, and the last line on standard error says what it was.

    {"prepare": true, ...}      write what the encoder loads; answer its size on disk
    {"check": {...}, ...}       open it, write its outputs, and choose its settings: two answers
    {"scenarios": [...], ...}   open it, and time it on each scenario: one answer for opening, one for each scenario
"""

import contextlib
import gc
import importlib.metadata
import itertools
import json
import os
import re
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
ONCE = 3.0  # seconds; a longer call is timed once while choosing settings, a shorter one three times
FEW_TOKENS = 1100  # estimated as characters / 4; a smaller scenario is encoded once before the clock starts


class OpenEncoder:
    """An encoder, open in one of its variants at a time."""

    def __init__(self, peer: Peer, settings: Settings, variant: str) -> None:
        self._peer, self._settings = peer, settings
        self._variant, self._encode = variant, peer.open(settings, variant)
        self._lock: Any = contextlib.nullcontext() if peer.is_thread_safe else threading.Lock()

    def __call__(self, texts: list[str], outputs: list[str] | tuple[str, ...], batch_size: int) -> Encoded:
        """Encode texts with the heads asked for that the encoder has."""
        heads = tuple(head for head in outputs if head in self._peer.outputs)
        with self._lock:
            return self._encode(texts, heads, batch_size)

    def switch(self, variant: str) -> bool:
        """Open a variant in place of the open one, since there is memory for one; return whether it was another."""
        if variant == self._variant:
            return False
        del self._encode
        gc.collect()
        self._variant, self._encode = variant, self._peer.open(self._settings, variant)
        return True

    def save(self, scenario: dict[str, Any], path: str) -> None:
        """Write the outputs: dense (N, D), vectors (V, M) of all texts, and lexical weights (N, vocabulary)."""
        found = self(scenario["texts"], scenario["outputs"], self._peer.batch_sizes[:2][-1])
        arrays: dict[str, Any] = {"dense": found.dense}
        if found.multivector is not None:
            arrays["multivector"] = np.concatenate(list(found.multivector))
        if found.lexical is not None:
            arrays["sparse"] = np.zeros((len(scenario["texts"]), self._settings["vocab_size"]), np.float32)
            for row, weights in zip(arrays["sparse"], found.lexical(), strict=True):
                row[[int(token) for token in weights]] = list(weights.values())
        np.savez(path, **arrays)

    def tune(self, scenario: dict[str, Any]) -> dict[str, Any]:
        """Return the fastest variant and batch size for a scenario's texts, and the seconds of all that were tried."""
        tried: dict[tuple[str, int], float] = {}
        texts = scenario["texts"]
        for variant in self._peer.variants(self._settings):
            self.switch(variant)
            for size in sorted({min(size, len(texts)) for size in self._peer.batch_sizes}):
                tried[variant, size] = quickest(partial(self, texts, scenario["outputs"], size))
                if tried[variant, size] > MUCH_SLOWER * min(tried.values()):
                    break
        variant, size = min(tried, key=lambda choice: tried[choice])
        seconds = {f"{named} {n}".strip(): value for (named, n), value in tried.items()}
        return {"variant": variant, "batch_size": size, "tried_seconds": seconds}

    def run(self, scenario: dict[str, Any]) -> dict[str, Any]:
        """Return the seconds of each call, and of all together; the clients share the calls."""
        texts, n_clients = scenario["texts"], scenario["n_clients"]
        calls = itertools.cycle([[text] for text in texts] if scenario["is_single"] else [texts])
        numbers, lock = itertools.count(), threading.Lock()
        times: list[float] = []

        def call() -> float:
            with lock:
                batch = next(calls)
            return seconds_of(partial(self, batch, scenario["outputs"], scenario["batch_size"]))

        def client(_: int) -> None:
            while next(numbers) < scenario["n_calls"] and (not times or time.perf_counter() < deadline):
                times.append(call())

        is_new = self.switch(scenario["variant"])
        if is_new or scenario["is_single"] or sum(map(len, texts)) // 4 <= FEW_TOKENS:
            call()
        deadline = time.perf_counter() + scenario["most_seconds"]
        with ThreadPoolExecutor(n_clients) as pool:
            wall = seconds_of(lambda: list(pool.map(client, range(n_clients))))
        return {"seconds": times, "wall_s": wall}


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def quickest(call: Callable[[], object]) -> float:
    """Return the shortest of three calls, or the only one where it takes long."""
    first = seconds_of(call)
    return first if first > ONCE else min(first, seconds_of(call), seconds_of(call))


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {"python": sys.version.split()[0]}
    for name in (re.split(r"[\[=<>~]", package)[0] for package in packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def main() -> None:
    """Do the job, and end when standard input is closed: until then the parent reads this process's memory."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    job = json.loads(sys.stdin.readline())
    peer, settings = PEERS[job["peer"]], job["settings"]
    if "prepare" in job:
        peer.prepare(settings)
        answer(disk_bytes=sum(path.stat().st_size for path in peer.files(settings)), versions=versions(peer.packages))
    else:
        start = time.perf_counter()
        encoder = OpenEncoder(peer, settings, job["variant"] or peer.variants(settings)[0])
        load_s = time.perf_counter() - start
        answer(load_s=load_s, first_s=seconds_of(partial(encoder, [QUERY], peer.outputs, 1)))
    if check := job.get("check"):
        encoder.save(check["compare"], check["path"])
        answer(tuned={name: encoder.tune(scenario) for name, scenario in check["tune"].items()})
    for scenario in job.get("scenarios", ()):
        answer(**encoder.run(scenario))
    sys.stdin.read()


if __name__ == "__main__":
    main()
