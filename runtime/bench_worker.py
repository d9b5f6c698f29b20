"""One encoder of a benchmark, in a process of its own, under its own Python, which need not have bgem3.

`bgem3.runtime.bench_contest` starts it and asks. Requests are lines of JSON on standard input; each is answered by a
line on standard output, and nothing is computed between them. An error ends the process, and the last line on standard
error says what it was. NAME is a scenario's:

    {"prepare": SETTINGS}                           write what the encoder loads, if it is not there yet
    {"load": SETTINGS, "workloads": {NAME: {"texts": [...], "outputs": [...], "is_single": bool, "n_clients": N}}}
    {"tune": NAME, "n_texts": N}                    the fastest variant and batch size for some of its texts
    {"save": NAME, "path": NPZ}                     encode once, and write the outputs
    {"run": NAME, "n_calls": N, "seconds": S}       time up to N calls within S seconds, at least one

The last two take "batch_size" as well, and the last "variant".
"""

import contextlib
import gc
import importlib
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from bgem3.runtime.bench_peer_files import Settings
from bgem3.runtime.bench_peers import PEERS, Encoded, Peer

QUERY = "What is BM25?"
FEW_TOKENS = 1100  # characters / 4: workloads of up to so many are run once before the clock starts
MUCH_SLOWER = 1.25
ONCE = 3.0  # seconds; a call that takes longer is timed once to tune, a shorter one three times


class Contestant:
    """An encoder, open in one of its variants at a time."""

    def __init__(self, peer: Peer, settings: Settings, workloads: dict[str, dict[str, Any]]) -> None:
        self._peer, self._settings, self._workloads = peer, settings, workloads
        self._variants = peer.variants(settings)
        self._opened, self._encode = self._variants[0], peer.open(settings, self._variants[0])
        self._lock: Any = contextlib.nullcontext() if peer.is_thread_safe else threading.Lock()

    def encode(self, texts: list[str], outputs: Sequence[str], batch_size: int) -> Encoded:
        """Encode texts with the variant that is open."""
        with self._lock:
            return self._encode(texts, tuple(outputs), batch_size)

    def switch(self, variant: str) -> bool:
        """Open a variant in place of the one before, since the memory is there for one; tell whether it was another."""
        if variant == self._opened:
            return False
        del self._encode
        gc.collect()
        self._opened, self._encode = variant, self._peer.open(self._settings, variant)
        return True

    def tune(self, name: str, n_texts: int) -> dict[str, Any]:
        """Time every variant and batch size on texts spread over a workload's."""
        workload = self._workloads[name]
        tried: dict[tuple[str, int], float] = {}
        outputs = self._heads(workload)
        texts = [workload["texts"][i] for i in np.linspace(0, len(workload["texts"]) - 1, n_texts).astype(int)]
        for variant in self._variants:
            self.switch(variant)
            for size in sorted({min(size, n_texts) for size in self._peer.batch_sizes}):
                tried[variant, size] = quickest(partial(self.encode, texts, outputs, size))
                if tried[variant, size] > MUCH_SLOWER * min(tried.values()):
                    break  # larger batches are slower still
        variant, size = min(tried, key=lambda choice: tried[choice])
        seconds = {f"{named} {n}".strip(): value for (named, n), value in tried.items()}
        return {"variant": variant, "batch_size": size, "tried_seconds": seconds}

    def _heads(self, workload: dict[str, Any]) -> list[str]:
        """Return the heads of a workload that the encoder has."""
        return [head for head in workload["outputs"] if head in self._peer.outputs]

    def save(self, name: str, path: str, batch_size: int) -> None:
        """Write the outputs: dense (N, D), vectors (V, M), and entries (L, 2), text and token id, of weights (L,)."""
        workload = self._workloads[name]
        found = self.encode(workload["texts"], self._heads(workload), batch_size)
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
        """Return the seconds of each call, and how long all of them took; the clients share the calls."""
        workload = self._workloads[name]
        texts, n_clients = workload["texts"], workload["n_clients"]
        calls = itertools.cycle([[text] for text in texts] if workload["is_single"] else [texts])
        is_cold = self.switch(variant)
        is_small = workload["is_single"] or sum(map(len, texts)) // 4 <= FEW_TOKENS
        numbers, lock = itertools.count(), threading.Lock()
        times: list[float] = []

        def call() -> float:
            with lock:
                batch = next(calls)
            return seconds_of(partial(self.encode, batch, workload["outputs"], batch_size))

        def client(_: int) -> None:
            while next(numbers) < n_calls and (not times or time.perf_counter() < deadline):
                times.append(call())

        if is_cold or is_small:
            call()
        deadline = time.perf_counter() + seconds
        if n_clients == 1:
            wall = seconds_of(partial(client, 0))
        else:
            with ThreadPoolExecutor(n_clients) as pool:
                wall = seconds_of(lambda: list(pool.map(client, range(n_clients))))
        return {"seconds": times, "wall_s": wall}


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def quickest(call: Callable[[], object]) -> float:
    """Return the shortest of three calls; of one, where it takes long."""
    first = seconds_of(call)
    return first if first > ONCE else min(first, seconds_of(call), seconds_of(call))


def rss_bytes(which: str) -> int:
    """Return this process's resident memory as Linux counts it: "VmRSS", now, or "VmHWM", at its peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.findall(rf"{which}:\s+(\d+) kB", status)[0])


def load(peer: Peer, request: dict[str, Any]) -> tuple[Contestant, dict[str, Any]]:
    """Open an encoder; return it with its times, memory and versions."""
    answer: dict[str, Any] = {"versions": {"python": sys.version.split()[0]}}
    answer["import_s"] = seconds_of(lambda: [importlib.import_module(name) for name in peer.modules])
    start = time.perf_counter()
    contestant = Contestant(peer, request["load"], request["workloads"])
    answer["load_s"] = time.perf_counter() - start
    answer["first_s"] = seconds_of(lambda: contestant.encode([QUERY], peer.outputs, 1))
    answer["loaded_rss_bytes"] = rss_bytes("VmRSS")
    for package in peer.packages:
        name = re.split(r"[\[=<>~]", package)[0]
        with contextlib.suppress(PackageNotFoundError):
            answer["versions"][name] = version(name)
    return contestant, answer


def main() -> None:
    """Answer requests until there are no more."""
    peer = PEERS[sys.argv[-1]]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    contestant: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = {}
        if "prepare" in request:
            assert peer.prepare
            peer.prepare(request["prepare"])
        elif "load" in request:
            contestant, answer = load(peer, request)
        elif "tune" in request:
            answer = contestant.tune(request.pop("tune"), **request)
        elif "save" in request:
            contestant.save(request.pop("save"), **request)
        else:
            answer = contestant.run(request.pop("run"), **request)
            answer["peak_rss_bytes"] = rss_bytes("VmHWM")
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
