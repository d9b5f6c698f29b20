"""Measure one artifact on this machine: latency, throughput, memory, and where the time goes."""

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Column, Table
from tqdm import tqdm

from bgem3.runtime.artifact import Artifact, read_artifact
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.device import open_encoder
from bgem3.runtime.machine import describe_machine, memory_in_use
from bgem3.runtime.manifest import ModelSpec
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.reference import Reference
from bgem3.runtime.tokenizer import TextTokenizer

LEAST_CALLS = 3  # timed calls of a workload, however long one takes: a median needs three
PASSAGE_TOKENS, PASSAGE_SPREAD = 168, 0.41  # median and log deviation of lengths, as of XQuAD's English passages
LEAST_SHARE = 0.01  # of a call's time; the table leaves out smaller shares, which would be most of its rows
CONTROL_FLOW = ("If", "Loop")  # their time includes the operators inside, which the profile lists, too


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The workloads to measure, and the number of timed calls.

    Attributes
    ----------
    lengths : tokens of the single texts whose latency is measured
    batches : texts and tokens per text of the batches whose throughput is measured
    n_passages : texts of the batch of mixed lengths; 0 leaves it out
    n_calls : timed calls of each workload at most
    seconds : no call of a workload begins later than this, after the first three
    """

    lengths: tuple[int, ...] = (8, 16, 32, 128, 512)
    batches: tuple[tuple[int, int], ...]
    n_passages: int
    n_calls: int = 50
    seconds: float = 4.0

    def quick(self) -> "Effort":
        """Return a small part of the same measurements."""
        return replace(self, lengths=(16, 128), batches=self.batches[:1], n_passages=0, n_calls=10, seconds=1.0)


EFFORTS = {
    "cpu": Effort(batches=((8, 128), (8, 16), (4, 512)), n_passages=16),
    "cuda": Effort(batches=((64, 128), (64, 512), (32, 2048)), n_passages=256, n_calls=500),
}
PROFILED = Effort(lengths=(16,), batches=((8, 128),), n_passages=0)  # calls whose time is divided among the operators


class ExactTexts:
    """Makes texts of exactly a given number of tokens, CLS and EOS included, from random words of one token each.

    Parameters
    ----------
    tokenizer, spec : the model's; the counts of words add up, because no token crosses a space
    sentences : where the words come from; words of other scripts than Latin, and with marks, are left out
    """

    def __init__(self, tokenizer: TextTokenizer, spec: ModelSpec, sentences: Sequence[str]) -> None:
        words = sorted({word for text in sentences for word in text.split() if word.isascii() and word.isalpha()})
        lengths = tokenizer(words, spec.max_length).lengths.tolist()
        self._words = [word for word, n_tokens in zip(words, lengths, strict=True) if n_tokens == 3] or ["a"]

    def __call__(self, n_tokens: int, n_texts: int = 1) -> list[str]:
        """Return the same ``n_texts`` texts of ``n_tokens`` tokens in every call."""
        draw = random.Random(0)
        return [" ".join(draw.choices(self._words, k=n_tokens - 2)) for _ in range(n_texts)]


def run_bench(
    artifact: str | Path,
    *,
    device: str = "auto",
    precision: str | None = None,
    n_threads: int | None = None,
    quick: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Measure an artifact on one device, as :meth:`BGEM3Model.load` opens it; ``quick`` takes seconds.

    Returns
    -------
    The machine, versions and settings; ``load_s`` and ``first_call_s``; ``workloads``, the times of each;
    ``memory_mib``; and ``time_shares``, by workload the share of each step or operator in the time of one call.
    """
    start = time.perf_counter()
    with BGEM3Model.load(artifact, device, precision, n_threads) as model:
        load_s = time.perf_counter() - start
        opened = read_artifact(artifact)
        exact = ExactTexts(model.tokenizer, model.spec, Reference.load(opened.folder).texts)
        report = {
            "artifact": str(artifact),
            "source": opened.manifest["source"]["id"],
            "precision": model.precision,
            "n_threads": n_threads or available_cpus(),
            "is_quick": quick,
            **describe_machine(model.device),
            "load_s": load_s,
            "first_call_s": seconds_of(partial(model.encode, exact(16))),
        }
        effort = EFFORTS[model.device.partition(":")[0]]
        report |= _measure_all(model, effort.quick() if quick else effort, exact, show_progress)
        profiled = make_workloads(exact, PROFILED, model.spec.max_length)
        if model.device != "cpu":
            return report | {"time_shares": {name: _host_share(model, profiled[name]) for name in profiled}}
    profile = partial(_profile, opened, report["precision"], report["n_threads"])
    return report | {"time_shares": {name: profile(profiled[name]) for name in profiled}}


def _measure_all(model: BGEM3Model, effort: Effort, exact: ExactTexts, show_progress: bool) -> dict[str, Any]:
    memory = {"loaded": memory_in_use(model.device)}
    workloads = make_workloads(exact, effort, model.spec.max_length)
    measured = {}
    for name in tqdm(workloads, "measuring", leave=False, disable=not show_progress):
        texts = workloads[name]
        n_tokens = int(model.tokenizer(texts, model.spec.max_length).lengths.sum())
        measured[name] = measure(partial(model.encode, texts), len(texts), n_tokens, effort)
    return {"workloads": measured, "memory_mib": memory | {"peak": memory_in_use(model.device)}}


def make_workloads(exact: ExactTexts, effort: Effort, longest: int) -> dict[str, list[str]]:
    """Return the texts of each workload by name."""
    shapes = [*((1, n_tokens) for n_tokens in effort.lengths), *effort.batches]
    shapes = [(n_texts, min(n_tokens, longest)) for n_texts, n_tokens in shapes]
    workloads = {f"{n_texts} x {n_tokens} tokens": exact(n_tokens, n_texts) for n_texts, n_tokens in shapes}
    if effort.n_passages:
        workloads[f"{effort.n_passages} x mixed lengths"] = passages(exact, effort.n_passages)
    return workloads


def passages(exact: ExactTexts, n_passages: int) -> list[str]:
    """Return texts whose lengths vary as those of real passages do."""
    lengths = np.random.default_rng(0).lognormal(np.log(PASSAGE_TOKENS), PASSAGE_SPREAD, n_passages)
    return [text for n_tokens in lengths for text in exact(int(n_tokens))]


def measure(encode: Callable[[], object], n_texts: int, n_tokens: int, effort: Effort) -> dict[str, float]:
    """Call once to warm up, then as often as the effort says; return the times of a call and its rates."""
    encode()
    seconds: list[float] = []
    start = time.perf_counter()
    while len(seconds) < effort.n_calls and (
        len(seconds) < LEAST_CALLS or time.perf_counter() - start < effort.seconds
    ):
        seconds.append(seconds_of(encode))
    median, p95, p99 = np.quantile(seconds, (0.5, 0.95, 0.99)).tolist()
    return {
        "n_calls": len(seconds),
        "n_tokens": n_tokens,
        "p50_ms": 1000 * median,
        "p95_ms": 1000 * p95,
        "p99_ms": 1000 * p99,
        "tokens_per_s": n_tokens / median,
        "texts_per_s": n_texts / median,
    }


def _host_share(model: BGEM3Model, texts: list[str]) -> dict[str, float]:
    """Return the share of tokenizing in a call; ONNX Runtime's clock does not wait for a CUDA device's operators."""
    tokenizing = seconds_of(partial(model.tokenizer, texts, model.spec.max_length))
    return {"tokenizing": tokenizing / seconds_of(partial(model.encode, texts))}


def _profile(artifact: Artifact, precision: str, n_threads: int, texts: list[str]) -> dict[str, float]:
    """Return the share of tokenizing, of each of ONNX Runtime's operators and of the rest in the time of a call."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "profile"
        session = open_encoder(artifact, device="cpu", precision=precision, n_threads=n_threads, profile=prefix)
        assert isinstance(session, CpuSession)
        with BGEM3Model(artifact, session) as model:
            _, seconds = (seconds_of(partial(model.encode, texts)) for _ in range(2))
            tokenizing = seconds_of(partial(model.tokenizer, texts, model.spec.max_length))
            operators = operator_seconds(session.end_profiling(), n_calls=2)
    rest = max(0.0, seconds - tokenizing - sum(operators.values()))
    steps = operators | {"tokenizing": tokenizing, "the rest": rest}
    return {step: taken / seconds for step, taken in sorted(steps.items(), key=lambda step: -step[1])}


def operator_seconds(path: Path, n_calls: int) -> dict[str, float]:
    """Return the seconds of each operator in the last of ``n_calls`` equal calls, from a profile of ONNX Runtime."""
    events = json.loads(path.read_text(encoding="utf-8"))
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    seconds: Counter[str] = Counter()
    for event in nodes[len(nodes) - len(nodes) // n_calls :]:
        if event["args"]["op_name"] not in CONTROL_FLOW:
            seconds[event["args"]["op_name"]] += event["dur"] / 1e6
    return dict(seconds)


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bench_table(report: dict[str, Any]) -> Group:
    """Return a report as tables."""
    device = report["gpu"]["name"] if "gpu" in report else f"{report['processor']}, {report['n_threads']} threads"
    speed = _table("texts x length", "p50 ms", "p95 ms", "tokens/s", "texts/s", "calls")
    for name, found in report["workloads"].items():
        figures = [f"{found['p50_ms']:.2f}", f"{found['p95_ms']:.2f}", f"{found['tokens_per_s']:,.0f}"]
        speed.add_row(name, *figures, f"{found['texts_per_s']:,.1f}", str(found["n_calls"]))
    memory = _table("memory, MiB", *report["memory_mib"]["loaded"])
    for stage, found in report["memory_mib"].items():
        memory.add_row(stage, *(f"{mib:,}" for mib in found.values()))
    shares = _table("share of a call's time", *report["time_shares"])
    columns = report["time_shares"].values()
    for step in dict.fromkeys(step for found in columns for step, share in found.items() if share >= LEAST_SHARE):
        shares.add_row(step, *(f"{found.get(step, 0):.1%}" for found in columns))
    return Group(
        f"{report['artifact']} ({report['source']}), {report['precision']} weights, on {device}",
        f"loaded in {report['load_s']:.2f} s; first call {1000 * report['first_call_s']:.1f} ms",
        "Texts are random words. Every call returns all outputs of the artifact; one call to warm up is not timed.",
        speed,
        memory,
        shares,
    )


def _table(title: str, *columns: str) -> Table:
    return Table(title, *(Column(name, justify="right") for name in columns))
