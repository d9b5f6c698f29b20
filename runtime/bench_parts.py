"""The parts of a benchmark: what is measured, of how much, and where in the report it goes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from bgem3.runtime.artifact import ModelSpec
from bgem3.runtime.bench_contest import Contest, Row
from bgem3.runtime.bench_environments import PythonFinder
from bgem3.runtime.bench_hardware import matrix_rates
from bgem3.runtime.bench_probe import attention_kernels, memory_use, operator_seconds
from bgem3.runtime.bench_report import BenchReport, not_run
from bgem3.runtime.bench_scenarios import LONGEST_SENTENCE, MIX, QUERY, Scenario, make_scenarios
from bgem3.runtime.bench_workload import Effort, read_texts
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.parity import check_parity
from bgem3.runtime.reference import Reference
from bgem3.runtime.tokenizer import TextTokenizer

KERNEL_LENGTHS = (16, 128, 512, 2048, 8192)
OPERATORS_OF = (QUERY, MIX)
N_CALIBRATION = 40  # texts, with which encoders that quantize are calibrated


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the parts share.

    Attributes
    ----------
    report : where they put what they measure
    spec, tokenizer : the model's
    load : arguments of :meth:`BGEM3Model.load`
    precisions : those of bgem3 that are measured
    reference : the artifact's own texts and outputs
    portable : the portable graph, None if there is none
    checkpoint, passages, work, pythons, cell_limit, effort : as for `bgem3.runtime.bench.run_bench`
    rows, scenario_names : who is timed, on what; no names for all
    """

    report: BenchReport
    spec: ModelSpec
    tokenizer: TextTokenizer
    load: dict[str, Any]
    precisions: Sequence[str]
    reference: Reference
    portable: Path | None
    checkpoint: str | Path | None
    passages: Path | None
    rows: Sequence[Row]
    scenario_names: Sequence[str]
    work: Path
    pythons: PythonFinder
    cell_limit: float
    effort: Effort

    @property
    def is_cuda(self) -> bool:
        return str(self.load["device"]).startswith("cuda")

    @cached_property
    def scenarios(self) -> dict[str, Scenario]:
        return make_scenarios(self.tokenizer, self.spec, self.effort, self.reference.texts, self.passages)

    def settings(self) -> dict[str, Any]:
        """What every encoder's process is told."""
        spec = self.spec
        sentences = [text for text in self.reference.texts if 1 < len(text) <= LONGEST_SENTENCE]
        paths = {"artifact": self.load["folder"], "checkpoint": self.checkpoint, "portable": self.portable}
        return {name: str(path) if path else None for name, path in paths.items()} | {
            "device": self.load["device"],
            "threads": self.load["n_threads"],
            "max_length": spec.max_length,
            "pad_id": spec.pad_id,
            "special_ids": [spec.cls_id, spec.pad_id, spec.eos_id, spec.unk_id],
            "hidden_size": spec.hidden_size,
            "n_heads": spec.n_heads,
            "calibration": read_texts(self.passages, N_CALIBRATION // 2, N_CALIBRATION // 2, sentences),
        }


def measure_matrix_rate(bench: Bench) -> None:
    """How fast the machine multiplies matrices: the ceiling of every encoder in each precision."""
    device, n_threads = bench.load["device"], bench.load["n_threads"]
    for precision in ("fp16", "fp32") if bench.is_cuda else ("fp32", "int8"):
        measure = partial(matrix_rates, device, precision, n_threads, bench.effort.n_products)
        bench.report.step(measure, "matrix_rate", precision)


def measure_parity(bench: Bench) -> None:
    """How far each precision is from the checkpoint in PyTorch float32, on texts of up to the model's maximum."""
    for precision in bench.precisions:
        bench.report.step(partial(_parity, bench, precision), "parity", precision)


def _parity(bench: Bench, precision: str) -> dict[str, Any]:
    reference = bench.reference.head(bench.effort.longest)
    with BGEM3Model.load(**bench.load | {"precision": precision}) as model:
        report = check_parity(model, reference)
    return report | {"longest_text_tokens": int(reference.n_tokens.max())}


def measure_attention_kernels(bench: Bench) -> None:
    """Which attention kernel ONNX Runtime takes for one text of each length."""
    if not bench.is_cuda:
        bench.report.keep(not_run("on CUDA only: ONNX Runtime reports no kernels elsewhere"), "attention_kernels")
        return
    lengths = [n_tokens for n_tokens in KERNEL_LENGTHS if n_tokens <= bench.spec.max_length]
    bench.report.step(lambda: attention_kernels(bench.load, lengths, bench.report.seconds_left), "attention_kernels")


def measure_memory(bench: Bench) -> None:
    """Memory of a process with bgem3 alone, in each precision."""
    effort = bench.effort
    sizes = (effort.n_packed_tokens, min(effort.longest, bench.spec.max_length), effort.n_batches)
    for precision in bench.precisions:
        measure = partial(memory_use, bench.load | {"precision": precision}, *sizes, bench.report.seconds_left)
        bench.report.step(measure, "memory", precision)


def measure_operators(bench: Bench) -> None:
    """Where bgem3's time goes, by operator."""
    if bench.is_cuda:
        bench.report.keep(
            not_run("on CPU only: on CUDA kernels run on after ONNX Runtime stops the clock"), "breakdown"
        )
        return
    workloads = {name: bench.scenarios[name].texts for name in OPERATORS_OF if name in bench.scenarios}
    workloads[QUERY] = workloads[QUERY][:1]
    for precision in bench.precisions:
        load = bench.load | {"precision": precision}
        measure = partial(operator_seconds, load, workloads, bench.report.seconds_left)
        bench.report.step(measure, "breakdown", f"bgem3 {precision}")


def measure_scenarios(bench: Bench) -> None:
    """How long every encoder takes for every scenario, how it starts, and the memory it needs."""
    unknown = set(bench.scenario_names) - set(bench.scenarios)
    if unknown:
        raise ValueError(f"there is no scenario {sorted(unknown)}; there are {list(bench.scenarios)}")
    names = [name for name in bench.scenarios if not bench.scenario_names or name in bench.scenario_names]
    Contest(
        bench.report,
        bench.rows,
        bench.scenarios,
        names,
        bench.settings(),
        bench.work,
        bench.pythons,
        bench.effort,
        bench.cell_limit,
    ).run()


MEASURES: dict[str, Callable[[Bench], None]] = {
    "matrix_rate": measure_matrix_rate,
    "parity": measure_parity,
    "attention_kernels": measure_attention_kernels,
    "memory": measure_memory,
    "breakdown": measure_operators,
    "scenarios": measure_scenarios,
}
"""How each part is measured."""
