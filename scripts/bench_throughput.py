"""Tokens per second beside FlagEmbedding: same weights, texts, threads and heads, in one run.

usage: python scripts/bench_throughput.py [--passages FILE] [--tokenizer TOKENIZER_JSON | --checkpoint FOLDER]

Passages come from a JSON file in SQuAD's flat form, [{"context": ..., "questions": [...]}, ...]; without one,
sentences are drawn from the built-in texts at random. Without a checkpoint, one of BGE-M3's full size is made
with seeded random weights (speed does not depend on their values), which takes 7 GB of disk for a while.

Every side encodes the same list of passages and questions, with all three heads. Outputs are compared before
anything is timed; repeats are interleaved; medians are reported.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from FlagEmbedding import BGEM3FlagModel as FlagEmbedding
from rich.console import Console
from rich.table import Table

from bgem3.export import export_model
from bgem3.export.random_checkpoint import make_full_size
from bgem3.export.reference import SENTENCES
from bgem3.runtime import BGEM3Model
from bgem3.runtime.bench_hardware import onnxruntime_matrix_rate, processor_name, seconds_of, torch_matrix_rate
from bgem3.runtime.bench_workload import read_texts

# Multiply-adds of BGE-M3's 24 layers of linear weights, twice; attention comes on top.
GFLOP_PER_TOKEN = 2 * 24 * (4 * 1024 * 1024 + 2 * 1024 * 4096) / 1e9
BATCH_SIZES = (1, 4, 8, 16, 32)  # FlagEmbedding's best is looked for among these
DEFAULT_BATCH_SIZE = 256
ALL_HEADS = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


def main() -> None:
    """Measure, print a table and write JSON."""
    arguments = _parser().parse_args()
    texts = read_texts(arguments.passages, arguments.n_passages, arguments.n_questions, SENTENCES)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or make_full_size(folder, arguments.tokenizer)
        artifact = arguments.artifact or Path(folder) / "artifact"
        if not arguments.artifact:
            export_model(checkpoint, artifact, ("fp32",), show_progress=True)
        report = measure(checkpoint, artifact, texts, arguments.threads, arguments.repeats)
    report |= {
        "threads": arguments.threads,
        "processor": processor_name(),
        "versions": {name: version(name) for name in ("bgem3", "FlagEmbedding", "torch", "onnxruntime", "numpy")},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    table = Table("encoder", "tokens/s", "bgem3 is faster by", title=f"{report['n_tokens']} tokens, {len(texts)} texts")
    for name, rate in report["tokens_per_second"].items():
        table.add_row(name, f"{rate:.0f}", f"{report['tokens_per_second']['bgem3'] / rate:.2f}x")
    Console().print(table)
    rates = report["gemm_gflops"]
    share = report["tokens_per_second"]["bgem3"] * GFLOP_PER_TOKEN / rates["onnxruntime"]
    print(
        f"GEMM: ONNX Runtime {rates['onnxruntime']:.0f}, torch {rates['torch']:.0f} GFLOP/s; bgem3 reaches {share:.0%}"
    )


def measure(checkpoint: Path, artifact: Path, texts: list[str], n_threads: int, n_repeats: int) -> dict:
    """Return tokens per second of both sides, and how far their outputs are apart."""
    theirs = FlagEmbedding(str(checkpoint), use_fp16=False, devices="cpu")
    ours = BGEM3Model.load(artifact, device="cpu", precision="fp32", n_threads=n_threads)

    def flag_embedding(batch_size: int) -> dict:
        return theirs.encode(texts, batch_size=batch_size, **ALL_HEADS)

    found, expected = ours.encode(texts, max_length=512), flag_embedding(8)
    difference = float(np.abs(found.dense - expected["dense_vecs"]).max())
    vectors = zip(found.multivector, expected["colbert_vecs"], strict=True)
    difference = max(difference, *(float(np.abs(a - b).max()) for a, b in vectors))
    assert difference < 1e-4, f"outputs differ by {difference}"
    n_tokens = int(found.n_tokens.sum())
    seconds_by_batch = {size: seconds_of(lambda size=size: flag_embedding(size)) for size in BATCH_SIZES}
    best = min(seconds_by_batch, key=lambda size: seconds_by_batch[size])
    contestants: dict[str, Callable[[], object]] = {
        "bgem3": lambda: ours.encode(texts, max_length=512),
        f"FlagEmbedding, its best batch size ({best})": lambda: flag_embedding(best),
        f"FlagEmbedding, its default batch size ({DEFAULT_BATCH_SIZE})": lambda: flag_embedding(DEFAULT_BATCH_SIZE),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(n_repeats):
        for name, run in contestants.items():
            seconds[name].append(seconds_of(run))
    return {
        "n_texts": len(texts),
        "n_tokens": n_tokens,
        "gflop_per_token": GFLOP_PER_TOKEN,
        "gemm_gflops": {
            name: max(rate_of("cpu", "fp32", n_threads).values()) / 1e9
            for name, rate_of in (("onnxruntime", onnxruntime_matrix_rate), ("torch", torch_matrix_rate))
        },
        "max_difference": difference,
        "tokens_per_second": {name: n_tokens / statistics.median(times) for name, times in seconds.items()},
        "seconds": seconds,
        "flagembedding_seconds_by_batch_size": seconds_by_batch,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Tokens per second beside FlagEmbedding.")
    parser.add_argument("--checkpoint", type=Path, help="default: full size, random weights")
    parser.add_argument("--artifact", type=Path, help="the checkpoint's artifact with fp32; default: exported here")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json for the random checkpoint")
    parser.add_argument("--passages", type=Path, help="JSON file of passages with questions")
    parser.add_argument("--n-passages", type=int, default=12)
    parser.add_argument("--n-questions", type=int, default=24)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/throughput_cpu.json"))
    return parser


if __name__ == "__main__":
    main()
