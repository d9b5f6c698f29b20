"""Measure what only a CUDA device can show: `python -m benchmarks gpu --help`.

Without an artifact, one with random weights is exported first: of BGE-M3's size, or with --quick of a small model.
PyTorch gives the rate of matrix products, the names of CUDA kernels, and two encoders to compare with.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.artifact import make_artifact
from benchmarks.kernels import attention_kernels, kernel_seconds
from benchmarks.peers import pytorch
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.bench import Effort, ExactTexts, measure, passages
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.device import check_device, require_cuda
from bgem3.runtime.machine import describe_machine, memory_in_use
from bgem3.runtime.manifest import OUTPUTS, ModelSpec, Output
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.ort import onnxruntime_errors
from bgem3.runtime.reference import Reference
from bgem3.runtime.tokenizer import TextTokenizer

CUDA_STEPS = ("matrix_rate", "attention_kernels", "kernels")
STEPS = (*CUDA_STEPS, "query", "bulk", "memory")
LENGTHS = (16, 128, 512, 2048, 8192)
BULK = ((128, 128), (64, 512), (32, 2048))  # texts and tokens per text: several micro-batches each
N_MIXED = 1024  # texts of mixed lengths
TORCH_BATCH = 64  # texts of PyTorch's padded batches
MATRIX_SHAPES = ((16384, 1024, 4096), (8192, 8192, 8192))  # (m, k, n): BGE-M3's largest product, and a square one
N_SHAPES, N_POINTS = 2000, 10  # batches of random shapes, and how often memory is read meanwhile
EXPECTED_ERRORS = (ArithmeticError, AttributeError, ImportError, OSError, RuntimeError, TypeError, ValueError)
BGEM3: dict[str, dict[str, Any]] = {  # options of BGEM3Model.load; a model that captures graphs has one worker
    "bgem3": {},
    "bgem3, captured graphs": {"cuda_graphs": True},
    **{f"bgem3, budget {n}": {"token_budget": n} for n in (8192, 16384, 32768)},
}
TORCH: dict[str, Any] = {"PyTorch SDPA": partial(pytorch.open_padded, "sdpa"), "PyTorch packed": pytorch.open_packed}


class Probe:
    """One artifact on one device. Each public method is a step, and returns its part of the report.

    Parameters
    ----------
    artifact : artifact folder with an fp16 graph
    checkpoint : the folder that it was exported from, for PyTorch; None leaves PyTorch's encoders out
    device : "cuda", "cuda:N" or "cpu"
    is_quick : measure less
    """

    def __init__(self, artifact: Path, checkpoint: Path | None, device: str, is_quick: bool) -> None:
        self._artifact, self._checkpoint, self._device, self._is_quick = artifact, checkpoint, device, is_quick
        self._best_rate = 0.0
        self._load = partial(BGEM3Model.load, artifact, device, "fp16")
        self._spec = read_artifact(artifact).spec
        self._tokenizer = TextTokenizer(artifact / "tokenizer.json", self._spec)
        self._exact = ExactTexts(self._tokenizer, self._spec, Reference.load(artifact).texts)
        self._effort = Effort(batches=(), n_passages=0, n_calls=10 if is_quick else 500, seconds=2)

    @cached_property
    def _bulk(self) -> dict[str, list[str]]:
        divisor = 16 if self._is_quick else 1
        shapes = [(n_texts // divisor, n) for n_texts, n in BULK if n <= self._spec.max_length]
        bulk = {f"{n_texts} x {n_tokens} tokens": self._exact(n_tokens, n_texts) for n_texts, n_tokens in shapes}
        return bulk | {f"{N_MIXED // divisor} x mixed lengths": passages(self._exact, N_MIXED // divisor)}

    def matrix_rate(self) -> dict[str, float]:
        """Return the rate of float16 products in PyTorch by shape, in TFLOP/s."""
        torch = importlib.import_module("torch")
        rates = {}
        for m, k, n in MATRIX_SHAPES:
            options = {"dtype": torch.float16, "device": self._device}
            left, right = torch.randn(m, k, **options), torch.randn(k, n, **options)  # zeros would draw less power
            found = measure(lambda: (left @ right)[0, 0].item(), m, m, self._effort)  # noqa: B023 - called here
            rates[f"({m}, {k}) x ({k}, {n})"] = 2e-9 * m * k * n / found["p50_ms"]
        self._best_rate = max(rates.values())
        return rates

    def attention_kernels(self) -> dict[str, Any]:
        """Return the attention kernels taken for one text of each length."""
        return attention_kernels(self._load, {n: self._exact(n) for n in LENGTHS if n <= self._spec.max_length})

    def kernels(self) -> dict[str, Any]:
        """Return the seconds of each CUDA kernel in one call."""
        return kernel_seconds(self._load, self._exact(512, 32))

    def query(self) -> dict[str, Any]:
        """Time one query of 16 tokens."""
        return self._compare(("bgem3", "bgem3, captured graphs", *TORCH), {"1 x 16 tokens": self._exact(16)})

    def bulk(self) -> dict[str, Any]:
        """Time many texts by token budget, heads and length."""
        dense = self._compare(["bgem3"], self._bulk, ("dense",))
        return self._compare((*BGEM3, *TORCH), self._bulk) | {"bgem3, dense alone": dense["bgem3"]}

    def memory(self) -> dict[str, Any]:
        """Return memory in use while batches of random shapes run, how much it grew, and what closing gives back."""
        rng = np.random.default_rng(0)
        n_shapes = N_SHAPES // (100 if self._is_quick else 1)
        longest = min(2048, self._spec.max_length)
        found = {"before": memory_in_use(self._device)}
        with self._load() as model:
            model.encode(self._exact(min(8192, self._spec.max_length)))
            found["longest text"] = memory_in_use(self._device)
            for number in range(1, n_shapes + 1):
                lengths = np.exp(rng.uniform(np.log(4), np.log(longest), rng.integers(1, 17))).astype(int)
                model.encode(["a " * n for n in lengths])
                if number % (n_shapes // N_POINTS) == 0:
                    found[f"{number} shapes"] = memory_in_use(self._device)
        before, after = found["longest text"], found[f"{n_shapes} shapes"]
        growth = {name: after[name] - before[name] for name in after}
        return {"mib": found | {"closed": memory_in_use(self._device)}, "growth_mib": growth}

    def _compare(
        self, names: Sequence[str], workloads: dict[str, list[str]], outputs: tuple[Output, ...] = OUTPUTS
    ) -> dict[str, Any]:
        return {name: attempt(partial(self._time, name, workloads, outputs)) for name in names}

    def _time(self, name: str, workloads: dict[str, list[str]], outputs: tuple[Output, ...]) -> dict[str, Any]:
        with self._open(name, outputs) as encode:
            return {workload: self._measure(partial(encode, texts), texts) for workload, texts in workloads.items()}

    def _measure(self, encode: Callable[[], object], texts: list[str]) -> dict[str, float]:
        lengths = self._tokenizer(texts, self._spec.max_length).lengths
        found = measure(encode, len(texts), int(lengths.sum()), self._effort)
        rate = 1e-9 * encoder_flop(lengths, self._spec) / found["p50_ms"]
        share = {"share_of_matrix_rate": rate / self._best_rate} if self._best_rate else {}
        return found | {"tflop_per_s": rate} | share

    @contextmanager
    def _open(self, name: str, outputs: tuple[Output, ...]) -> Iterator[Callable[[list[str]], object]]:
        if name in BGEM3:
            with self._load(**BGEM3[name]) as model:
                yield partial(model.encode, outputs=outputs)
            return
        if self._checkpoint is None:
            raise ValueError("PyTorch needs the checkpoint; name it with --checkpoint")
        spec, paths = self._spec, {"artifact": self._artifact, "checkpoint": self._checkpoint}
        run = {"device": self._device, "precision": "fp16", "threads": available_cpus()}
        special_ids = [spec.cls_id, spec.pad_id, spec.eos_id, spec.unk_id]
        encode = TORCH[name](paths | run | vars(spec) | {"special_ids": special_ids})
        yield lambda texts: encode(texts, outputs, TORCH_BATCH)


def encoder_flop(lengths: NDArray[np.integer], spec: ModelSpec) -> int:
    """Count the floating-point operations of all three heads for texts of so many tokens (N,), without padding.

    Per layer and token, ``2 (4 D² + 2 D F)`` for the linear layers and ``4 L D`` for attention within a text of
    L tokens; then ``2 D`` per token for the sparse head, and ``2 D M`` for the multi-vector head on all but CLS.
    """
    d, tokens = spec.hidden_size, int(lengths.sum())
    linear = 2 * (4 * d * d + 2 * d * spec.intermediate_size) * tokens
    attention = 4 * d * int((lengths.astype(np.int64) ** 2).sum())
    heads = 2 * d * tokens + 2 * d * spec.multivector_size * (tokens - len(lengths))
    return spec.n_layers * (linear + attention) + heads


def attempt(step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a step measures, or why it could not."""
    expected: tuple[type[Exception], ...] = (*EXPECTED_ERRORS, *onnxruntime_errors())
    try:
        return step()
    except expected as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main(arguments: Sequence[str]) -> int:
    """Check the options, measure, and write the report after every step; return 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description="Measure a CUDA device.")
    parser.add_argument("artifact", type=Path, nargs="?", help="default: one with random weights is exported")
    parser.add_argument("--checkpoint", type=Path, help="what it was exported from, to measure PyTorch too")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N; cpu tries the steps out; default: cuda")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cuda.json"))
    parser.add_argument("--steps", nargs="+", choices=STEPS, help=f"default: all; on cpu, all but {CUDA_STEPS}")
    parser.add_argument("--quick", action="store_true", help="a small model, and fewer calls")
    options = parser.parse_args(arguments)
    is_cpu = options.device == "cpu"
    steps = options.steps or STEPS[len(CUDA_STEPS) if is_cpu else 0 :]
    try:
        check_device(options.device)
        if not is_cpu:
            require_cuda(options.device)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    if is_cpu and set(steps) & set(CUDA_STEPS):
        parser.error(f"{', '.join(CUDA_STEPS)} need a CUDA device")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        artifact, checkpoint = options.artifact, options.checkpoint
        if artifact is None:
            artifact, checkpoint = make_artifact(Path(folder), checkpoint, ("fp16",), small=options.quick)
        report = describe_machine(options.device, ("bgem3", "numpy", "torch")) | {"is_quick": options.quick}
        probe = Probe(artifact, checkpoint, options.device, options.quick)
        for name in steps:
            print(time.strftime("%X"), name, file=sys.stderr, flush=True)
            report[name] = attempt(getattr(probe, name))
            options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    Console().print_json(data=report)
    failed = [name for name in steps if "error" in report[name]]
    for name in failed:
        print(f"FAILED {name}: {report[name]['error']}")
    print(f"Measured: {', '.join(steps)}. {options.output} has every figure.")
    return int(bool(failed))
