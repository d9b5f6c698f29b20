"""How fast scores and search are, beside FlagEmbedding's loops, torch and SciPy, in one run.

usage: python scripts/bench_search.py [--parts maxsim lexical search] [--corpus 10000 30000 100000] [--work FOLDER]

Vectors are random, of BGE-M3's width; lengths are log-normal as those of XQuAD's English texts are (in tokens,
passages: median 168, deviation of the logarithm 0.41; questions: 15, 0.3); token ids follow Zipf's law. Results are
compared before anything is timed; repeats are interleaved; medians are reported. FlagEmbedding's dict loop takes
minutes for the whole, so it is timed on a part and scaled by the number of pairs; torch's padded batches and compact
storage are timed on 2,500 of 10,000 passages, so that memory holds them, and scaled by the number of vectors. The
search part writes 19 GB for 100,000 passages (int8 multi-vectors), and holds a part of them in memory. Needs the
extra `bench`.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from FlagEmbedding.inference.embedder.encoder_only.m3 import M3Embedder
from matplotlib.figure import Figure
from scipy.sparse import csr_array

from bgem3.runtime.bench_hardware import processor_name, seconds_of
from bgem3.scoring import Embeddings, HybridSearcher, MultiVectors, multivector_scores, sparse_scores

N_DIMS, VOCABULARY, N_QUERY_VECTORS = 1024, 250_002, 32
PADDED_PER_BATCH = 64  # passages of torch's padded batch, sorted by length
FLAG_PAIRS = (100, 2000)  # queries and passages that FlagEmbedding's dict loop is timed on
N_QUERIES = 50
N_AT_MOST = 2500  # passages that are held once more, padded or in compact storage
PASSAGE, QUERY = (168.0, 0.41, 20, 700), (15.0, 0.3, 4, 40)  # lengths: median, deviation of the logarithm, limits
PARTS = ("maxsim", "lexical", "search")


def main() -> None:
    """Measure the parts asked for, keep the others of the file, and write JSON and a plot."""
    parser = argparse.ArgumentParser(description="Speed of scores and search.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--corpus", type=int, nargs="+", default=[10_000, 30_000, 100_000], help="sizes to search")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, help="where corpora are written; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/search_cpu.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    report |= {
        "processor": processor_name(),
        "threads": arguments.threads,
        "versions": {name: version(name) for name in ("bgem3", "FlagEmbedding", "numpy", "scipy", "torch")},
    }
    if "maxsim" in arguments.parts:
        report["maxsim"] = {str(n): maxsim(n, arguments.repeats) for n in (100, 10_000)}
    if "lexical" in arguments.parts:
        report["lexical"] = lexical(1000, 100_000, arguments.repeats)
    if "search" in arguments.parts:
        with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
            report["search"] = {str(n): search(n, Path(folder) / str(n)) for n in arguments.corpus}
        plot(report["search"], arguments.output.with_suffix(".png"))
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def lengths_of(rng: np.random.Generator, n_texts: int, kind: tuple[float, float, int, int]) -> np.ndarray:
    """Return token counts of texts."""
    median, deviation, low, high = kind
    return np.clip(rng.lognormal(np.log(median), deviation, n_texts), low, high).astype(np.int64)


def unit_rows(rng: np.random.Generator, n_rows: int) -> np.ndarray:
    """Return random rows of unit length."""
    rows = rng.standard_normal((n_rows, N_DIMS), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def lexical_rows(rng: np.random.Generator, lengths: np.ndarray) -> csr_array:
    """Return lexical weights of texts whose tokens follow Zipf's law."""
    share = 1 / (np.arange(1, 60_001) + 2.7) ** 1.05
    token_ids = np.searchsorted(np.cumsum(share) / share.sum(), rng.random(lengths.sum()))
    keys = np.unique(np.repeat(np.arange(len(lengths)), lengths) * VOCABULARY + np.minimum(token_ids, 59_999))
    weights = (0.3 * rng.random(len(keys))).astype(np.float32)
    return csr_array((weights, divmod(keys, VOCABULARY)), shape=(len(lengths), VOCABULARY))


def timed(contestants: dict[str, Callable[[], object]], n_repeats: int) -> dict[str, float]:
    """Return each contestant's median seconds, repeats interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(n_repeats):
        for name, run in contestants.items():
            seconds[name].append(seconds_of(run))
    return {name: statistics.median(times) for name, times in seconds.items()}


def maxsim(n_passages: int, n_repeats: int) -> dict[str, Any]:
    """Time MaxSim of one query with many passages, in every storage and beside the others."""
    rng = np.random.default_rng(0)
    lengths = lengths_of(rng, n_passages, PASSAGE)
    packed = np.empty((int(lengths.sum()), N_DIMS), np.float32)
    for first in range(0, len(packed), 4096):
        packed[first : first + 4096] = unit_rows(rng, len(packed[first : first + 4096]))
    passages = MultiVectors(packed, np.concatenate([[0], np.cumsum(lengths)]))
    some = passages.take(np.arange(min(n_passages, N_AT_MOST)))
    half, byte = some.stored_as("float16")[0], some.stored_as("int8")[0]
    query, arrays = unit_rows(rng, N_QUERY_VECTORS), list(passages)
    padded = padded_batches(list(some))
    torch_query = torch.from_numpy(query)

    def torch_padded() -> np.ndarray:
        scores = np.empty(len(some), np.float32)
        for index, vectors, mask in padded:
            similarities = torch_query @ vectors.transpose(1, 2)  # (passages, query vectors, padded length)
            scores[index] = similarities.masked_fill(~mask[:, None], -torch.inf).amax(-1).mean(-1).numpy()
        return scores

    def flag() -> np.ndarray:
        return np.array([M3Embedder.colbert_score(None, query, passage).item() for passage in arrays])

    left, right = (rng.standard_normal((2048, N_DIMS), dtype=np.float32) for _ in range(2))
    contestants: dict[str, Callable[[], Any]] = {
        "bgem3": lambda: multivector_scores([query], passages)[0],
        "FlagEmbedding": flag,
        "torch, padded": torch_padded,
        "bgem3, float16": lambda: multivector_scores([query], half)[0],
        "bgem3, int8": lambda: multivector_scores([query], byte)[0],
        "SGEMM (2048, 1024) x (1024, 2048)": lambda: left @ right.T,
    }
    ours = contestants["bgem3"]()
    for name, tolerance in (("FlagEmbedding", 1e-5), ("torch, padded", 1e-5), ("bgem3, float16", 1e-3)):
        found = contestants[name]()
        np.testing.assert_allclose(found, ours[: len(found)], atol=tolerance)
    seconds = timed(contestants, n_repeats if n_passages > 1000 else 5 * n_repeats)
    sgemm = 2 * 2048 * 2048 * N_DIMS / seconds.popitem()[1] / 1e9
    for name in ("torch, padded", "bgem3, float16", "bgem3, int8"):
        seconds[name] *= len(packed) / len(some.packed)
    rates = {name: 2 * N_QUERY_VECTORS * len(packed) * N_DIMS / s / 1e9 for name, s in seconds.items()}
    return {
        "n_vectors": len(packed),
        "n_passages_padded_or_compact": len(some),
        "seconds": seconds,
        "sgemm_gflops": sgemm,
        "share_of_sgemm": {name: rate / sgemm for name, rate in rates.items()},
        "times_as_fast_as": {name: s / seconds["bgem3"] for name, s in seconds.items()},
    }


def padded_batches(arrays: list[np.ndarray]) -> list[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Return padded passages and their masks, made before the clock starts."""
    order = np.argsort([len(array) for array in arrays])
    batches = []
    for first in range(0, len(order), PADDED_PER_BATCH):
        index = order[first : first + PADDED_PER_BATCH]
        lengths = torch.tensor([len(arrays[i]) for i in index])
        vectors = torch.zeros(len(index), int(lengths.max()), N_DIMS)
        for row, i in zip(vectors, index, strict=True):
            row[: len(arrays[i])] = torch.from_numpy(arrays[i])
        batches.append((index, vectors, torch.arange(vectors.shape[1]) < lengths[:, None]))
    return batches


def lexical(n_queries: int, n_passages: int, n_repeats: int) -> dict[str, Any]:
    """Time lexical scores, all queries with all passages, from the two matrices to a dense (Q, P) array."""
    rng = np.random.default_rng(0)
    queries = lexical_rows(rng, lengths_of(rng, n_queries, QUERY))
    passages = lexical_rows(rng, lengths_of(rng, n_passages, PASSAGE))
    few, some = FLAG_PAIRS
    dicts = [lexical_dicts(matrix[:n]) for matrix, n in ((queries, few), (passages, some))]
    scipy = lambda: (queries @ passages.T).toarray()  # noqa: E731
    ours = sparse_scores(queries, passages)
    np.testing.assert_allclose(ours, scipy(), atol=1e-5)
    flag = lambda: M3Embedder.compute_lexical_matching_score(None, *dicts)  # noqa: E731
    np.testing.assert_allclose(ours[:few, :some], flag(), atol=1e-5)
    del ours
    seconds = timed(
        {"bgem3": lambda: sparse_scores(queries, passages), "SciPy": scipy, "FlagEmbedding": flag}, n_repeats
    )
    seconds["FlagEmbedding"] *= n_queries * n_passages / (few * some)
    return {
        "n_queries": n_queries,
        "n_passages": n_passages,
        "tokens_per_query": queries.nnz / n_queries,
        "tokens_per_passage": passages.nnz / n_passages,
        "seconds": seconds,
        "flagembedding_timed_on_pairs": few * some,
        "times_as_fast_as": {name: time / seconds["bgem3"] for name, time in seconds.items()},
    }


def lexical_dicts(matrix: csr_array) -> list[dict[str, float]]:
    """Return FlagEmbedding's form of lexical weights."""
    rows = zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
    return [dict(zip(matrix.indices[a:b].astype(str).tolist(), matrix.data[a:b], strict=True)) for a, b in rows]


def search(n_passages: int, folder: Path, n_per_part: int = 5000) -> dict[str, Any]:
    """Build a corpus part by part on disk, open it, and time queries one by one."""
    rng = np.random.default_rng(0)
    bank = MultiVectors.pack([unit_rows(rng, 8192)]).stored_as("int8")[0]  # token vectors are drawn from these
    start = time.perf_counter()
    searcher = None
    for first in range(0, n_passages, n_per_part):
        part = corpus(rng, min(n_per_part, n_passages - first), PASSAGE, bank)
        if searcher is None:
            searcher = HybridSearcher.build(part, storage="int8")
        else:
            searcher.append(part)
        searcher.save(folder)
    built = time.perf_counter() - start
    queries = [corpus(rng, 1, QUERY, bank, "float32") for _ in range(N_QUERIES)]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # its memory holds nothing of the building
        found = pool.submit(query, folder, queries).result()
    size = sum(path.stat().st_size for path in folder.rglob("*.npy"))
    shutil.rmtree(folder)
    return {"bytes_on_disk": size, "build_seconds": built, "candidates": 100, "storage": "int8"} | found


def query(folder: Path, queries: list[Embeddings]) -> dict[str, Any]:
    """Open a corpus and search it, query by query: the first time, what is read may have to come from the disk."""
    searcher = HybridSearcher.open(folder)
    opened = statistics.median(seconds_of(lambda: HybridSearcher.open(folder)) for _ in range(5))
    seconds = {}
    with PeakMemory() as memory:
        for by in ("both", "dense", "sparse"):
            call = partial(searcher.search, k=10, candidates=100, by=by)
            first, again = ([seconds_of(partial(call, query)) for query in queries] for _ in range(2))
            seconds[by] = {"p50": statistics.median(again), "p95": float(np.quantile(again, 0.95))}
            if by == "both":
                seconds["both, first time"] = {"p50": statistics.median(first), "p95": float(np.quantile(first, 0.95))}
    return {
        "open_seconds": opened,
        "seconds_per_query": seconds,
        "own_memory_bytes": memory.peak,
        "n_queries": len(queries),
    }


def corpus(
    rng: np.random.Generator,
    n_texts: int,
    kind: tuple[float, float, int, int],
    bank: MultiVectors,
    storage: str = "int8",
) -> Embeddings:
    """Return embeddings of texts of real lengths."""
    lengths = lengths_of(rng, n_texts, kind)
    drawn = rng.integers(0, len(bank.packed), lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    vectors = MultiVectors(bank.packed[drawn], offsets, bank.scales[drawn])
    return Embeddings(
        n_tokens=(lengths + 1).astype(np.int32),
        truncated=np.zeros(n_texts, bool),
        dense=unit_rows(rng, n_texts),
        sparse=lexical_rows(rng, lengths),
        multivector=vectors if storage == "int8" else vectors.stored_as("float32")[0],
    )


class PeakMemory:
    """By how much this process's memory that is not pages of files grows at most, looked at every 5 ms."""

    def __enter__(self) -> "PeakMemory":
        self.peak, self._stopped = 0, threading.Event()
        self._before = self._memory()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.005):
            self.peak = max(self.peak, self._memory() - self._before)

    def _memory(self) -> int:
        memory = psutil.Process().memory_info()
        return int(memory.rss - memory.shared)


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the median time of a query against the size of the corpus."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for by in ("dense", "sparse", "both", "both, first time"):
        sizes = [int(n) for n in report]
        axes.plot(sizes, [1000 * report[str(n)]["seconds_per_query"][by]["p50"] for n in sizes], "o-", label=by)
    axes.set(xlabel="passages", ylabel="median ms per query", xscale="log", ylim=(0, None))
    axes.legend(title="candidates by")
    figure.savefig(path)


if __name__ == "__main__":
    main()
