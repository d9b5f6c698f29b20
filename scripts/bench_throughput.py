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
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from FlagEmbedding import BGEM3FlagModel as FlagEmbedding
from make_demo_checkpoint import make_demo_checkpoint
from make_random_checkpoint import make_random_checkpoint
from rich.console import Console
from rich.table import Table

from bgem3.export import export_model
from bgem3.runtime import BGEM3Model

# Multiply-adds of BGE-M3's 24 layers of linear weights, twice; attention comes on top.
GFLOP_PER_TOKEN = 2 * 24 * (4 * 1024 * 1024 + 2 * 1024 * 4096) / 1e9
BATCH_SIZES = (1, 4, 8, 16, 32)  # FlagEmbedding's best is looked for among these
DEFAULT_BATCH_SIZE = 256
ALL_HEADS = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


def main() -> None:
    """Measure, print a table and write JSON."""
    arguments = _parser().parse_args()
    texts = read_texts(arguments.passages, arguments.n_passages, arguments.n_questions)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or make_full_size(arguments.tokenizer, Path(folder))
        artifact = arguments.artifact or Path(folder) / "artifact"
        if not arguments.artifact:
            export_model(checkpoint, artifact, ("fp32",), show_progress=True)
        report = measure(checkpoint, artifact, texts, arguments.threads, arguments.repeats)
    report |= {
        "threads": arguments.threads,
        "processor": _processor(),
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


def make_full_size(tokenizer: Path | None, folder: Path) -> Path:
    """Make a checkpoint of BGE-M3's size, with the demo checkpoint's tokenizer if none is given."""
    tokenizer = tokenizer or make_demo_checkpoint(folder / "tokenizer") / "tokenizer.json"
    return make_random_checkpoint(tokenizer, folder / "checkpoint", vocabulary=250002)


def read_texts(path: Path | None, n_passages: int, n_questions: int) -> list[str]:
    """Return passages and questions, evenly spaced over the file; generated ones without a file."""
    if path is None:
        from bgem3.export.reference import SENTENCES

        draw = random.Random(0)
        passages = [" ".join(draw.choices(SENTENCES, k=draw.randint(5, 15))) for _ in range(n_passages)]
        return passages + [draw.choice(SENTENCES) for _ in range(n_questions)]
    entries = json.loads(path.read_text(encoding="utf-8"))
    passages = [entry["context"] for entry in entries]
    questions = [question for entry in entries for question in entry["questions"]]
    return [
        texts[i]
        for texts, count in ((passages, n_passages), (questions, n_questions))
        for i in np.linspace(0, len(texts) - 1, count).astype(int)
    ]


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
    seconds_by_batch = {size: _seconds(lambda size=size: flag_embedding(size)) for size in BATCH_SIZES}
    best = min(seconds_by_batch, key=lambda size: seconds_by_batch[size])
    contestants: dict[str, Callable[[], object]] = {
        "bgem3": lambda: ours.encode(texts, max_length=512),
        f"FlagEmbedding, its best batch size ({best})": lambda: flag_embedding(best),
        f"FlagEmbedding, its default batch size ({DEFAULT_BATCH_SIZE})": lambda: flag_embedding(DEFAULT_BATCH_SIZE),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(n_repeats):
        for name, run in contestants.items():
            seconds[name].append(_seconds(run))
    return {
        "n_texts": len(texts),
        "n_tokens": n_tokens,
        "gflop_per_token": GFLOP_PER_TOKEN,
        "gemm_gflops": gemm_gflops(n_threads),
        "max_difference": difference,
        "tokens_per_second": {name: n_tokens / statistics.median(times) for name, times in seconds.items()},
        "seconds": seconds,
        "flagembedding_seconds_by_batch_size": seconds_by_batch,
    }


def gemm_gflops(n_threads: int) -> dict[str, float]:
    """Measure the float32 GEMM rate of both runtimes, (512, 1024) x (1024, 4096): the ceiling of each encoder."""
    rng = np.random.default_rng(0)
    rows, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((512, 1024), (1024, 4096)))
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("rows", "product")]
    node = onnx.helper.make_node("MatMul", ["rows", "weight"], ["product"])
    initializer = onnx.numpy_helper.from_array(weight, "weight")
    graph = onnx.helper.make_graph([node], "gemm", values[:1], values[1:], [initializer])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    torch_rows, torch_weight = torch.from_numpy(rows), torch.from_numpy(weight)
    runs = {
        "onnxruntime": lambda: session.run(None, {"rows": rows}),
        "torch": lambda: torch_rows @ torch_weight,
    }
    gflop = 2 * rows.shape[0] * weight.size / 1e9
    return {name: gflop / statistics.median(_seconds(run) for _ in range(30)) for name, run in runs.items()}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(names) or platform.processor()


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
