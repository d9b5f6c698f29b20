"""Run one encoder in a process of its own, under its own Python, which need not have bgem3.

The first line of standard input is a job in JSON; the answers are lines of JSON on standard output. An error ends the
process, and the last line on standard error says what it was.

    {"prepare": true, ...}      write what the encoder loads; answer its size on disk
    {"check": SCENARIO, ...}    open it; then write its outputs, and choose its batch size
    {"scenarios": [...], ...}   open it; then time it on each scenario
"""

import contextlib
import importlib
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

from benchmarks.peer import Encode
from benchmarks.peers import PEERS

QUERY = "What is BM25?"
MUCH_SLOWER = 1.25  # times as slow as the best: no larger batch is tried, since it would be slower still
ONCE = 3.0  # seconds; a longer call is timed once while choosing a batch size, a shorter one three times
FEW_TOKENS = 1100  # estimated as characters / 4; a smaller scenario is encoded once before the clock starts


def save(encode: Encode, scenario: dict[str, Any], vocab_size: int) -> None:
    """Write the outputs: dense (N, D), the multi-vectors of all texts (V, M), and lexical weights (N, vocabulary)."""
    found = encode(scenario["texts"], scenario["outputs"], scenario["batch_size"])
    arrays: dict[str, Any] = {"dense": found.dense}
    if found.multivector is not None:
        arrays["multivector"] = np.concatenate(list(found.multivector))
    if found.lexical is not None:
        arrays["sparse"] = np.zeros((len(scenario["texts"]), vocab_size), np.float32)
        for row, weights in zip(arrays["sparse"], found.lexical(), strict=True):
            row[[int(token) for token in weights]] = list(weights.values())
    np.savez(scenario["path"], **arrays)


def tune(encode: Encode, scenario: dict[str, Any], batch_sizes: tuple[int, ...]) -> dict[int, float]:
    """Return the seconds that a scenario's texts take by batch size; much slower ones end the search."""
    tried: dict[int, float] = {}
    for size in batch_sizes:
        if tried and (tried[max(tried)] > MUCH_SLOWER * min(tried.values()) or max(tried) >= len(scenario["texts"])):
            break
        tried[size] = quickest(partial(encode, scenario["texts"], scenario["outputs"], size))
    return tried


def run(encode: Encode, scenario: dict[str, Any], is_thread_safe: bool) -> dict[str, Any]:
    """Return the seconds of each call, and of all together; the clients share the calls.

    The calls of an encoder that is not thread-safe wait for each other, as they would in a server.
    """
    texts, n_clients = scenario["texts"], scenario["n_clients"]
    calls = itertools.cycle([[text] for text in texts] if scenario["is_single"] else [texts])
    numbers, lock = itertools.count(), threading.Lock()
    one_at_a_time: Any = contextlib.nullcontext() if is_thread_safe else threading.Lock()
    times: list[float] = []

    def call() -> float:
        with lock:
            batch = next(calls)
        start = time.perf_counter()
        with one_at_a_time:
            encode(batch, scenario["outputs"], scenario["batch_size"])
        return time.perf_counter() - start

    def client(_: int) -> None:
        while next(numbers) < scenario["n_calls"] and (not times or time.perf_counter() < deadline):
            times.append(call())

    if scenario["is_single"] or sum(map(len, texts)) // 4 <= FEW_TOKENS:
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
        for module in peer.modules:
            importlib.import_module(module)
        start = time.perf_counter()
        encode = peer.open(settings)
        load_s = time.perf_counter() - start
        encode([QUERY], peer.outputs, 1)
        answer(load_s=load_s)
    if check := job.get("check"):
        save(encode, check, settings["vocab_size"])
        answer(tried_seconds=tune(encode, check, peer.batch_sizes))
    for scenario in job.get("scenarios", ()):
        answer(**run(encode, scenario, peer.is_thread_safe))
    sys.stdin.read()


if __name__ == "__main__":
    main()
