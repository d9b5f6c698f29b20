"""Time scores and search beside FlagEmbedding's loops, PyTorch and SciPy, on one machine.

usage: python -m benchmarks.eval.search [--corpus 10000 30000 100000] [--output JSON]

Vectors are random, of BGE-M3's width. Lengths are log-normal with XQuAD's parameters; token ids follow Zipf's law.
Results are compared before anything is timed. The calls take turns, and medians are reported. A rival that would take
minutes, or more memory than there is, is timed on a part, and its time is scaled. A corpus of 100,000 passages takes
19 GB in the folder for temporary files.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from FlagEmbedding.inference.embedder.encoder_only.m3 import M3Embedder
from numpy.typing import NDArray
from scipy.sparse import csr_array

from benchmarks.eval.files import report_parser, write_report
from bgem3.runtime.bench import seconds_of
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.machine import resident_bytes
from bgem3.scoring import Embeddings, HybridSearcher, MultiVectors, multivector_scores, sparse_scores
from bgem3.scoring.corpus import By

N_DIMS, VOCABULARY, N_QUERY_VECTORS = 1024, 250_002, 32
Lengths = tuple[float, float, int, int]  # of texts in tokens: median, log deviation, least, most
PASSAGE: Lengths = (168.0, 0.41, 20, 700)
QUERY: Lengths = (15.0, 0.3, 4, 40)
N_COMMON_TOKENS = 60_000  # that texts are made of
PADDED_BATCH = 64  # passages in PyTorch's padded batches, which hold passages of similar lengths
N_COPIED = 2500  # passages that memory holds a second time, padded or in compact storage
FLAG_PAIRS = (100, 2000)  # queries and passages that FlagEmbedding's dict loop is timed on
N_PER_PART = 2500  # passages of a corpus made at once: 2 GB of float32 vectors
N_QUERIES = 50
Array = NDArray[Any]


def main() -> None:
    """Measure, and write the report."""
    parser = report_parser(__doc__, "search_cpu.json")
    parser.add_argument("--corpus", type=int, nargs="+", default=[10_000, 30_000, 100_000], help="sizes to search")
    arguments = parser.parse_args()
    report = {
        "threads": available_cpus(),
        "maxsim": {"100": maxsim(100, 25), "10000": maxsim(10_000, 5)},
        "lexical": lexical(1000, 100_000, 5),
        "search": {str(n): search(n) for n in arguments.corpus},
    }
    write_report(arguments.output, report, ("FlagEmbedding", "scipy", "torch"))


def random_lengths(rng: np.random.Generator, n_texts: int, kind: Lengths) -> Array:
    """Return token counts of texts."""
    median, deviation, least, most = kind
    return np.clip(rng.lognormal(np.log(median), deviation, n_texts), least, most).astype(np.int64)


def unit_rows(rng: np.random.Generator, n_rows: int) -> Array:
    """Return random rows of unit length."""
    rows = np.empty((n_rows, N_DIMS), np.float32)
    for part in np.array_split(rows, max(1, n_rows // 4096)):  # the copies for the norms stay small
        rng.standard_normal(out=part, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def lexical_rows(rng: np.random.Generator, lengths: Array) -> csr_array:
    """Return lexical weights of texts whose tokens follow Zipf's law."""
    frequency = 1 / (np.arange(1, N_COMMON_TOKENS + 1) + 2.7) ** 1.05
    token_ids = rng.choice(N_COMMON_TOKENS, lengths.sum(), p=frequency / frequency.sum())
    keys = np.unique(np.repeat(np.arange(len(lengths)), lengths) * VOCABULARY + token_ids)
    weights = (0.3 * rng.random(len(keys))).astype(np.float32)
    return csr_array((weights, divmod(keys, VOCABULARY)), shape=(len(lengths), VOCABULARY))


def maxsim(n_passages: int, n_repeats: int) -> dict[str, Any]:
    """Time MaxSim of one query with many passages, in every storage and beside the others."""
    rng = np.random.default_rng(0)
    lengths = random_lengths(rng, n_passages, PASSAGE)
    passages = MultiVectors(unit_rows(rng, int(lengths.sum())), np.concatenate([[0], np.cumsum(lengths)]))
    some = passages.take(np.arange(min(n_passages, N_COPIED)))
    compact = {kind: some.stored_as(kind)[0] for kind in ("float16", "int8")}
    query, arrays = unit_rows(rng, N_QUERY_VECTORS), list(passages)
    square = rng.standard_normal((2048, N_DIMS), dtype=np.float32)
    calls: dict[str, Callable[[], Any]] = {
        "bgem3": lambda: multivector_scores([query], passages)[0],
        "FlagEmbedding": lambda: np.array([M3Embedder.colbert_score(None, query, p).item() for p in arrays]),
        "torch, padded": partial(torch_maxsim, torch.from_numpy(query), padded_batches(list(some))),
        "bgem3, float16": lambda: multivector_scores([query], compact["float16"])[0],
        "bgem3, int8": lambda: multivector_scores([query], compact["int8"])[0],
        "SGEMM (2048, 1024) x (1024, 2048)": lambda: square @ square.T,
    }
    ours = calls["bgem3"]()
    for name, tolerance in (("FlagEmbedding", 1e-5), ("torch, padded", 1e-5), ("bgem3, float16", 1e-3)):
        found = calls[name]()
        np.testing.assert_allclose(found, ours[: len(found)], atol=tolerance)
    seconds = median_seconds(calls, n_repeats)
    sgemm = 2e-9 * 2048 * 2048 * N_DIMS / seconds.popitem()[1]  # GFLOP/s; the last call
    for name in ("torch, padded", "bgem3, float16", "bgem3, int8"):
        seconds[name] *= len(passages.packed) / len(some.packed)
    gflop = 2e-9 * N_QUERY_VECTORS * len(passages.packed) * N_DIMS
    return {
        "n_vectors": len(passages.packed),
        "n_passages_padded_or_compact": len(some),
        "sgemm_gflops": sgemm,
        "share_of_sgemm": {name: gflop / taken / sgemm for name, taken in seconds.items()},
        **compared(seconds),
    }


def median_seconds(calls: dict[str, Callable[[], object]], n_repeats: int) -> dict[str, float]:
    """Return each call's median time; the calls take turns."""
    turns = [[seconds_of(call) for call in calls.values()] for _ in range(n_repeats)]
    return {name: statistics.median(times) for name, times in zip(calls, zip(*turns, strict=True), strict=True)}


def compared(seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return the seconds, and how many times as long as bgem3 each takes."""
    return {"seconds": seconds, "times_bgem3": {name: taken / seconds["bgem3"] for name, taken in seconds.items()}}


def padded_batches(arrays: list[Array]) -> list[tuple[Array, torch.Tensor, torch.Tensor]]:
    """Return the passages, padded vectors and masks of each batch, made before the clock starts."""
    order = np.argsort([len(array) for array in arrays])
    batches = []
    for index in (order[first : first + PADDED_BATCH] for first in range(0, len(order), PADDED_BATCH)):
        tensors = [torch.from_numpy(arrays[i]) for i in index]
        lengths = torch.tensor([len(tensor) for tensor in tensors])
        vectors = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        batches.append((index, vectors, torch.arange(vectors.shape[1]) < lengths[:, None]))
    return batches


def torch_maxsim(query: torch.Tensor, batches: list[tuple[Array, torch.Tensor, torch.Tensor]]) -> Array:
    """Return MaxSim of a query with padded passages."""
    scores = np.empty(sum(len(index) for index, _, _ in batches), np.float32)
    for index, vectors, mask in batches:
        similarities = query @ vectors.transpose(1, 2)  # (passages, query vectors, padded length)
        scores[index] = similarities.masked_fill(~mask[:, None], -torch.inf).amax(-1).mean(-1).numpy()
    return scores


def lexical(n_queries: int, n_passages: int, n_repeats: int) -> dict[str, Any]:
    """Time lexical scores of all queries with all passages, from the two matrices to a dense (Q, P) array."""
    rng = np.random.default_rng(0)
    queries = lexical_rows(rng, random_lengths(rng, n_queries, QUERY))
    passages = lexical_rows(rng, random_lengths(rng, n_passages, PASSAGE))
    few, some = FLAG_PAIRS
    dicts = lexical_dicts(queries[:few]), lexical_dicts(passages[:some])
    calls: dict[str, Callable[[], Any]] = {
        "bgem3": lambda: sparse_scores(queries, passages),
        "SciPy": lambda: (queries @ passages.T).toarray(),
        "FlagEmbedding": lambda: M3Embedder.compute_lexical_matching_score(None, *dicts),
    }
    ours = calls["bgem3"]()
    np.testing.assert_allclose(ours, calls["SciPy"](), atol=1e-5)
    np.testing.assert_allclose(ours[:few, :some], calls["FlagEmbedding"](), atol=1e-5)
    del ours
    seconds = median_seconds(calls, n_repeats)
    seconds["FlagEmbedding"] *= n_queries * n_passages / (few * some)
    return {
        "n_queries": n_queries,
        "n_passages": n_passages,
        "tokens_per_query": queries.nnz / n_queries,
        "tokens_per_passage": passages.nnz / n_passages,
        "flagembedding_timed_on_pairs": few * some,
        **compared(seconds),
    }


def lexical_dicts(matrix: csr_array) -> list[dict[str, float]]:
    """Return FlagEmbedding's form of lexical weights."""
    rows = zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
    return [dict(zip(matrix.indices[a:b].astype(str).tolist(), matrix.data[a:b], strict=True)) for a, b in rows]


def search(n_passages: int) -> dict[str, Any]:
    """Write a corpus in parts of ``N_PER_PART`` passages, open it in a new process, and time queries one by one."""
    rng = np.random.default_rng(0)
    bank = unit_rows(rng, 8192)  # token vectors are drawn from these
    queries = [make_texts(rng, 1, QUERY, bank) for _ in range(N_QUERIES)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        searcher = HybridSearcher.build(make_texts(rng, N_PER_PART, PASSAGE, bank), storage="int8")
        searcher.save(folder)
        for _ in range(1, n_passages // N_PER_PART):
            searcher.append(make_texts(rng, N_PER_PART, PASSAGE, bank))
            searcher.save(folder)
        built = time.perf_counter() - start
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # without the memory of building
            found = pool.submit(run_queries, Path(folder), queries).result()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.npy"))
    return {"bytes_on_disk": size, "build_seconds": built, "candidates": 100, "storage": "int8"} | found


def run_queries(folder: Path, queries: list[Embeddings]) -> dict[str, Any]:
    """Open a corpus, and time each query twice: the first time, its candidates may have to come from the disk."""
    searcher = HybridSearcher.open(folder)
    opened = statistics.median(seconds_of(lambda: HybridSearcher.open(folder)) for _ in range(5))
    before = resident_bytes("RssAnon")  # without the pages of mapped files
    seconds: dict[str, dict[str, float]] = {}
    runs: dict[str, By] = {"both, first time": "both", "both": "both", "dense": "dense", "sparse": "sparse"}
    for name, by in runs.items():
        times = [seconds_of(partial(searcher.search, query, k=10, candidates=100, by=by)) for query in queries]
        seconds[name] = dict(zip(("p50", "p95"), np.quantile(times, (0.5, 0.95)).tolist(), strict=True))
    return {
        "open_seconds": opened,
        "seconds_per_query": seconds,
        "own_memory_bytes": resident_bytes("RssAnon") - before,
        "n_queries": len(queries),
    }


def make_texts(rng: np.random.Generator, n_texts: int, kind: Lengths, bank: Array) -> Embeddings:
    """Return embeddings of random texts, with token vectors drawn from a bank (V, D)."""
    lengths = random_lengths(rng, n_texts, kind)
    vectors = bank[rng.integers(0, len(bank), lengths.sum())]
    return Embeddings(
        n_tokens=(lengths + 1).astype(np.int32),
        truncated=np.zeros(n_texts, bool),
        dense=unit_rows(rng, n_texts),
        sparse=lexical_rows(rng, lengths),
        multivector=MultiVectors(vectors, np.concatenate([[0], np.cumsum(lengths)])),
    )


if __name__ == "__main__":
    main()
