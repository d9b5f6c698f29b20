"""The parts of a benchmark: what is measured, of how much, and where in the report it goes."""

import importlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from bgem3.runtime.bench_contest import Encoders, bulk_throughput, query_latency
from bgem3.runtime.bench_hardware import onnxruntime_matrix_rate, torch_matrix_rate
from bgem3.runtime.bench_probe import attention_kernels, memory_use
from bgem3.runtime.bench_report import BenchReport, attempt, is_missing, not_run
from bgem3.runtime.bench_workload import Effort, ExactTexts, encoder_flop, read_texts
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.parity import Reference, judge
from bgem3.runtime.session import OUTPUTS, Output

QUERY_LENGTHS = (8, 16, 32)
N_QUERIES = 20  # different ones of each length
BULK_LENGTHS = (128, 512, 2048)
LONGEST = 8192
LONGEST_SENTENCE = 200  # characters; the reference's longer texts are sentences in a row
KERNEL_LENGTHS = (16, 128, 512, 2048, 8192)
HEADS: dict[str, tuple[Output, ...]] = {"dense": ("dense",), "all heads": OUTPUTS}
PEERS = ("torch packed", "torch padded", "FlagEmbedding")
PADDED = PEERS[1:]  # these take a batch size


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the parts share.

    Attributes
    ----------
    report : where they put what they measure
    model, load : the model, and the arguments it was loaded with
    precisions : those of which parity is measured
    reference : the artifact's own texts and outputs
    checkpoint, passages, effort : as for `bgem3.runtime.bench.run_bench`
    """

    report: BenchReport
    model: BGEM3Model
    load: dict[str, Any]
    precisions: Sequence[str]
    reference: Reference
    checkpoint: str | Path | None
    passages: Path | None
    effort: Effort

    @property
    def is_cuda(self) -> bool:
        return str(self.load["device"]).startswith("cuda")

    @cached_property
    def texts(self) -> ExactTexts:
        return ExactTexts(self.model.tokenizer, self.model.spec, self.reference.texts)

    @cached_property
    def encoders(self) -> Encoders:
        """Every encoder, bgem3 first; PyTorch's and FlagEmbedding's are loaded when they are first needed."""
        found: Encoders = {"bgem3": self.model.encode}
        if self.checkpoint is None:
            return found | dict.fromkeys(PEERS, "needs --checkpoint, what the artifact was exported from")
        self.report.say("loading the checkpoint in PyTorch")
        try:
            peers = importlib.import_module("bgem3.export.peers")
        except ImportError as error:
            return found | dict.fromkeys(PEERS, f"needs the export extra ({error}): `pip install 'bgem3[export]'`")
        load = (self.load[name] for name in ("device", "precision", "n_threads"))
        return found | dict(peers.load_encoders(self.checkpoint, *load))


def measure_matrix_rate(bench: Bench) -> None:
    """How fast the device multiplies matrices: the ceiling of every encoder in this precision."""
    options = (*(bench.load[name] for name in ("device", "precision", "n_threads")), bench.effort.n_products)
    bench.report.step(partial(onnxruntime_matrix_rate, *options), "matrix_rate", "onnxruntime")
    bench.report.step(partial(torch_matrix_rate, *options), "matrix_rate", "torch")


def measure_parity(bench: Bench) -> None:
    """How far each precision is from the checkpoint in PyTorch float32, on texts of up to the model's maximum."""
    for precision in bench.precisions:
        bench.report.step(partial(_parity, bench, precision), "parity", precision)


def _parity(bench: Bench, precision: str) -> dict[str, Any]:
    if precision == bench.model.precision:
        found = bench.model.encode(bench.reference.texts)
    else:
        with BGEM3Model.load(**bench.load | {"precision": precision}) as model:
            found = model.encode(bench.reference.texts)
    report = judge(found, bench.reference, precision) | {"longest_text_tokens": int(found.n_tokens.max())}
    values = (found.dense, found.sparse.data, found.multivector.packed)
    if not all(np.isfinite(array).all() for array in values):
        report["missed"].append("an output is not finite")
    return report


def measure_attention_kernels(bench: Bench) -> None:
    """Which attention kernel ONNX Runtime takes for one text of each length."""
    if not bench.is_cuda:
        bench.report.keep(not_run("on CUDA only: ONNX Runtime reports no kernels elsewhere"), "attention_kernels")
        return
    lengths = [n_tokens for n_tokens in KERNEL_LENGTHS if n_tokens <= bench.model.spec.max_length]
    bench.report.step(lambda: attention_kernels(bench.load, lengths, bench.report.seconds_left), "attention_kernels")


def measure_memory(bench: Bench) -> None:
    """Memory of a process with bgem3 alone."""
    effort = bench.effort
    longest = min(LONGEST, bench.model.spec.max_length)
    sizes = (effort.n_packed_tokens, longest, effort.n_batches)
    bench.report.step(lambda: memory_use(bench.load, *sizes, bench.report.seconds_left), "memory")


def measure_latency(bench: Bench) -> None:
    """One query at a time, with dense alone and with all heads."""
    with ExitStack() as stack:
        encoders = bench.encoders
        if bench.is_cuda:
            load = partial(BGEM3Model.load, **bench.load, cuda_graphs=True)
            graphs = attempt(lambda: stack.enter_context(load()))
            ours = {"bgem3": encoders["bgem3"]}
            ours["bgem3, CUDA graphs"] = graphs["not_run"] if is_missing(graphs) else graphs.encode
            encoders = ours | encoders
        for n_tokens in QUERY_LENGTHS:
            for heads, outputs in HEADS.items():
                measure = partial(_query_cell, bench, encoders, n_tokens, outputs)
                bench.report.step(measure, "latency", f"{n_tokens} tokens", heads)


def _query_cell(bench: Bench, encoders: Encoders, n_tokens: int, outputs: tuple[Output, ...]) -> dict[str, Any]:
    queries = bench.texts(n_tokens, N_QUERIES)
    return {"encoders": query_latency(encoders, queries, outputs, bench.effort.n_calls, bench.report.deadline)}


def measure_throughput(bench: Bench) -> None:
    """Many texts at once, with all heads: of one length, one as long as can be, and of mixed lengths."""
    effort, exact = bench.effort, bench.texts
    sentences = [text for text in bench.reference.texts if 1 < len(text) <= LONGEST_SENTENCE]
    mix = partial(read_texts, bench.passages, effort.n_passages, effort.n_questions, sentences)
    workloads: dict[str, Callable[[], list[str]]] = {
        f"{n_tokens} tokens": partial(exact, n_tokens, max(1, effort.n_tokens // n_tokens)) for n_tokens in BULK_LENGTHS
    }
    workloads |= {"mix": mix, f"{LONGEST} tokens": partial(exact, LONGEST, 1)}
    for name, make in workloads.items():
        bench.report.step(partial(_bulk_cell, bench, make), "throughput", name)


def _bulk_cell(bench: Bench, make: Callable[[], list[str]]) -> dict[str, Any]:
    texts, spec = make(), bench.model.spec
    lengths = bench.model.tokenizer(texts, spec.max_length).lengths
    n_tokens, flop = int(lengths.sum()), encoder_flop(lengths, spec)
    rates = [rate for found in bench.report.data.get("matrix_rate", {}).values() for rate in found.values()]
    ceiling = max((rate for rate in rates if isinstance(rate, float)), default=None)
    limits = (bench.effort.n_repeats, bench.report.deadline, ceiling)
    cells = bulk_throughput(_by_batch_size(bench), texts, n_tokens, flop, *limits)
    return {"n_texts": len(texts), "n_tokens": n_tokens, "flop": flop, "encoders": cells}


def _by_batch_size(bench: Bench) -> Encoders:
    """Return every encoder; those that pad once for each batch size."""
    encoders: Encoders = {}
    encode: Any
    for name, encode in bench.encoders.items():
        if name in PADDED and not isinstance(encode, str):
            encoders |= {f"{name}, batch {n}": partial(encode, batch_size=n) for n in bench.effort.batch_sizes}
        else:
            encoders[name] = encode
    return encoders


MEASURES: dict[str, Callable[[Bench], None]] = {
    "matrix_rate": measure_matrix_rate,
    "parity": measure_parity,
    "attention_kernels": measure_attention_kernels,
    "memory": measure_memory,
    "latency": measure_latency,
    "throughput": measure_throughput,
}
"""How each part is measured."""
