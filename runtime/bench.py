"""Measure one artifact on this machine: latency, throughput, memory, and where the time goes."""

import json
import random
import statistics
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
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.device import open_encoder
from bgem3.runtime.machine import describe_machine, memory_in_use
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.reference import Reference

LEAST_CALLS = 3  # timed calls of a workload, however long one takes: a median needs three
PASSAGE_TOKENS, PASSAGE_SPREAD = 168, 0.41  # median and log deviation of lengths, as of XQuAD's English passages
LONGEST_WORD = 12  # characters; longer ones are sentences of languages written without spaces
LEAST_SHARE = 0.01  # of a call's time; the table leaves out smaller ones, which would be most of its rows
CONTROL_FLOW = ("If", "Loop")  # operators whose time holds that of the operators inside, which are listed too


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

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


PROFILED = Effort(lengths=(16,), batches=((8, 128),), n_passages=0)  # workloads of which the time is divided


class TextMaker:
    """Makes texts of a given number of tokens from words drawn at random, the same ones every time.

    Parameters
    ----------
    model : its tokenizer counts the tokens
    sentences : where the words come from
    """

    def __init__(self, model: BGEM3Model, sentences: Sequence[str]) -> None:
        words = sorted({word for sentence in sentences for word in sentence.split() if len(word) <= LONGEST_WORD})
        counts = model.tokenizer(words, model.spec.max_length).lengths - 2  # without CLS and EOS
        self._words = [(word, n) for word, n in zip(words, counts.tolist(), strict=True) if n] or [("a", 1)]
        self._random = random.Random(0)

    def __call__(self, n_tokens: int) -> str:
        """Return a text of at least ``n_tokens`` tokens, CLS and EOS included, and at most a word more."""
        chosen, missing = [], n_tokens - 2
        while missing > 0:
            word, n_tokens = self._random.choice(self._words)
            chosen.append(word)
            missing -= n_tokens
        return " ".join(chosen)


def run_bench(
    artifact: str | Path,
    *,
    device: str = "auto",
    precision: str | None = None,
    n_threads: int | None = None,
    quick: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Measure an artifact on one device.

    Parameters
    ----------
    artifact : artifact folder
    device, precision, n_threads : as for :meth:`BGEM3Model.load`
    quick : measure less, which takes seconds
    show_progress : show a progress bar on standard error

    Returns
    -------
    The machine, versions and settings; ``load_s`` and ``first_call_s``; ``workloads``, the times of each;
    ``memory_mib``; and ``time_shares``, by workload the share of each step or operator in the time of one call.

    Raises
    ------
    ArtifactError, ValueError, RuntimeError
        As :meth:`BGEM3Model.load`.
    """
    start = time.perf_counter()
    with BGEM3Model.load(artifact, device, precision, n_threads) as model:
        load_s = time.perf_counter() - start
        opened = read_artifact(artifact)
        maker = TextMaker(model, Reference.load(opened.folder).texts)
        report = {
            "artifact": str(artifact),
            "source": opened.manifest["source"]["id"],
            "precision": model.precision,
            "n_threads": n_threads or available_cpus(),
            "is_quick": quick,
            **describe_machine(model.device),
            "load_s": load_s,
            "first_call_s": seconds_of(partial(model.encode, [maker(16)])),
        }
        effort = EFFORTS[model.device.partition(":")[0]]
        report |= _measure_all(model, effort.quick() if quick else effort, maker, show_progress)
        profiled = make_workloads(maker, PROFILED, model.spec.max_length)
        if model.device != "cpu":
            return report | {"time_shares": {name: _host_share(model, *profiled[name]) for name in profiled}}
    profile = partial(_profile, opened, report["precision"], report["n_threads"])
    return report | {"time_shares": {name: profile(*profiled[name]) for name in profiled}}


def _measure_all(model: BGEM3Model, effort: Effort, maker: TextMaker, show_progress: bool) -> dict[str, Any]:
    memory = {"loaded": memory_in_use(model.device)}
    workloads = make_workloads(maker, effort, model.spec.max_length)
    measured = {
        name: measure(model, *workloads[name], effort)
        for name in tqdm(workloads, "measuring", leave=False, disable=not show_progress)
    }
    return {"workloads": measured, "memory_mib": memory | {"peak": memory_in_use(model.device)}}


def make_workloads(maker: TextMaker, effort: Effort, longest: int) -> dict[str, tuple[list[str], int]]:
    """Return by name the texts of each workload, and the tokens at which encoding cuts them."""
    shapes = [*((1, n_tokens) for n_tokens in effort.lengths), *effort.batches]
    shapes = [(n_texts, min(n_tokens, longest)) for n_texts, n_tokens in shapes]
    workloads = {_name(*shape): ([maker(shape[1]) for _ in range(shape[0])], shape[1]) for shape in shapes}
    if effort.n_passages:
        draws = np.random.default_rng(0).lognormal(np.log(PASSAGE_TOKENS), PASSAGE_SPREAD, effort.n_passages)
        workloads[f"{effort.n_passages} x mixed lengths"] = ([maker(int(n)) for n in draws], longest)
    return workloads


def _name(n_texts: int, n_tokens: int) -> str:
    return f"{n_texts} x {n_tokens} tokens"


def measure(model: BGEM3Model, texts: list[str], max_length: int, effort: Effort) -> dict[str, float]:
    """Encode texts once to warm up, then as often as the effort says; return the times of a call and its rates."""
    n_tokens = int(model.encode(texts, max_length=max_length).n_tokens.sum())
    seconds: list[float] = []
    start = time.perf_counter()
    while len(seconds) < effort.n_calls and (
        len(seconds) < LEAST_CALLS or time.perf_counter() - start < effort.seconds
    ):
        seconds.append(seconds_of(partial(model.encode, texts, max_length=max_length)))
    median = statistics.median(seconds)
    return {
        "n_calls": len(seconds),
        "n_tokens": n_tokens,
        "p50_ms": 1000 * median,
        "p95_ms": 1000 * float(np.quantile(seconds, 0.95)),
        "tokens_per_s": n_tokens / median,
        "texts_per_s": len(texts) / median,
    }


def _host_share(model: BGEM3Model, texts: list[str], max_length: int) -> dict[str, float]:
    """Return the share of tokenizing in a call; ONNX Runtime's clock does not wait for a CUDA device's operators."""
    tokenizing = seconds_of(partial(model.tokenizer, texts, max_length))
    return {"tokenizing": tokenizing / seconds_of(partial(model.encode, texts, max_length=max_length))}


def _profile(artifact: Artifact, precision: str, n_threads: int, texts: list[str], max_length: int) -> dict[str, float]:
    """Return the share of tokenizing, of each of ONNX Runtime's operators and of the rest in the time of a call."""
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        session = open_encoder(artifact, device="cpu", precision=precision, n_threads=n_threads, profile=profile)
        with BGEM3Model(artifact, session) as model:
            tokenizing = seconds_of(partial(model.tokenizer, texts, max_length))
            encode = partial(model.encode, texts, max_length=max_length)
            _, seconds = seconds_of(encode), seconds_of(encode)
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
