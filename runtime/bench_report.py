"""BenchReport: what a benchmark measured so far, kept on disk, under a time limit."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Column, Table

from bgem3.runtime.ort import onnxruntime_errors
from bgem3.scoring.atomic_files import whole_file

PARTS = ("matrix_rate", "parity", "attention_kernels", "memory", "breakdown", "scenarios")
"""The parts of a report, in the order in which they are measured."""

COLUMNS = ("query 16", "query 16 dense", "clients 16", "8x128", "rerank 20", "mix", "mix dense", "long 2048")
"""The scenarios that the table has room for."""

CANNOT_RUN = (AttributeError, ImportError, OSError, RuntimeError, TypeError, ValueError)
"""What libraries raise that do not fit the machine or each other, or that run out of memory."""

TIME_LIMIT = "time limit"


def not_run(reason: str) -> dict[str, str]:
    """Return what stands in place of a measurement that could not be made."""
    return {"not_run": reason}


def is_missing(value: Any) -> bool:
    """Tell whether a measurement could not be made."""
    return isinstance(value, dict) and "not_run" in value


def attempt(measure: Callable[[], Any]) -> Any:
    """Return what ``measure`` returns, or why it could not be measured."""
    expected: tuple[type[Exception], ...] = (*CANNOT_RUN, *onnxruntime_errors())
    try:
        return measure()
    except expected as error:
        return not_run(f"{type(error).__name__}: {error}")


class BenchReport:
    """Takes measurements one by one and writes each to a file, so that a killed benchmark keeps what it measured.

    Parameters
    ----------
    path : JSON file to write, None for none
    time_limit : seconds from now; measurements asked for later are marked as not run
    show_progress : say on standard error what is being measured
    resume : begin with what the file holds

    Attributes
    ----------
    data : the measurements: part by part, each a dict by name; ``failed`` and ``seconds`` are kept up to date
    deadline : when the time limit ends, on ``time.perf_counter``'s clock
    """

    def __init__(self, path: Path | None, time_limit: float, show_progress: bool = False, resume: bool = False) -> None:
        self.data: dict[str, Any] = {}
        if resume and path is not None and path.is_file():
            self.data = json.loads(path.read_text(encoding="utf-8"))
        self._start = time.perf_counter()
        self.deadline = self._start + time_limit
        self._path = path
        self._show_progress = show_progress

    @property
    def seconds_left(self) -> float:
        """What is left of the time limit, at least 0."""
        return max(0.0, self.deadline - time.perf_counter())

    def step(self, measure: Callable[[], Any], *names: str) -> Any:
        """Measure, keep the result under its names, a path into ``data``, and return it."""
        self.say(", ".join(names))
        return self.keep(attempt(measure) if self.seconds_left else not_run(TIME_LIMIT), *names)

    def keep(self, value: Any, *names: str) -> Any:
        """Put a result under its names, and all that there is on disk."""
        place = self.data
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = value
        self.data |= {"failed": failures(self.data), "seconds": time.perf_counter() - self._start}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._path) as file:
                file.write((json.dumps(self.data, indent=2, ensure_ascii=False) + "\n").encode())
        return value

    def say(self, what: str) -> None:
        """Tell on standard error what is under way."""
        if self._show_progress:
            print(f"{time.perf_counter() - self._start:6.0f} s  {what}", file=sys.stderr, flush=True)


def failures(data: dict[str, Any]) -> list[str]:
    """Say, in words, what of a report is wrong: parity, an encoder's outputs, or bgem3 not running at all."""
    failed = []
    for precision, report in data.get("parity", {}).items():
        failed += [f"parity, {precision}: {missed}" for missed in report.get("missed", ())]
        if is_missing(report) and report["not_run"] != TIME_LIMIT:
            failed.append(f"parity, {precision}: {report['not_run']}")
    for label, found in data.get("encoders", {}).items():
        is_ours, has_other_outputs = found["kind"] == "bgem3", "agreement" in found  # what was compared did run
        if is_missing(found) and found["not_run"] != TIME_LIMIT and (is_ours or has_other_outputs):
            failed.append(f"{label}: {found['not_run']}")
        broke = {name: cell["not_run"] for name, cell in found.get("scenarios", {}).items() if "broke" in cell}
        failed += [f"{label}, {name}: {reason}" for name, reason in broke.items() if is_ours]
    return failed


def summary(data: dict[str, Any]) -> Group:
    """Return a report in short: a table with an encoder a row, and lines on all else."""
    scenarios, encoders = data.get("scenarios", {}), data.get("encoders", {})
    columns = {name: scenarios[name] for name in COLUMNS if name in scenarios}
    titles = [f"{name}\n{'tokens/s' if _is_bulk(scenario) else 'ms'}" for name, scenario in columns.items()]
    table = Table(Column("encoder", overflow="fold"), *(Column(title, justify="right") for title in titles))
    for title in ("start\ns", "peak\nGB"):
        table.add_column(title, justify="right")
    for label, found in encoders.items():
        cells = [_figure(found["scenarios"].get(name, {}), _is_bulk(scenario)) for name, scenario in columns.items()]
        if any(cells):
            start, peak = min(found["cold_start_s"]), found.get("peak_rss_bytes", 0) / 1e9
            table.add_row(label, *cells, f"{start:.1f}", f"{peak:.2f}")
    device = data["environment"].get("gpu", {}).get("name") or data["environment"]["processor"]
    reasons = [f"{label}: {found['not_run']}" for label, found in encoders.items() if is_missing(found)]
    busy = data.get("cpus_used_by_others", [])
    lines = [*_findings(data), *reasons, *(f"FAILED {reason}" for reason in data["failed"])]
    lines += [f"other processes used {max(busy):.1f} CPUs meanwhile"] if busy else []
    title = f"{device}, {data['environment']['n_threads']} threads, {data['settings']['weights']} weights"
    return Group(title, *([table] if table.row_count else []), *lines)


def _is_bulk(scenario: dict[str, Any]) -> bool:
    return scenario["group"] in ("bulk", "shapes")


def _figure(cell: dict[str, Any], is_bulk: bool) -> str:
    if "p50_s" not in cell:
        return ""
    value = cell["tokens_per_s"] if is_bulk else 1000 * cell["p50_s"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _findings(data: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each finding that is no encoder's speed."""
    for precision, found in data.get("matrix_rate", {}).items():
        if not is_missing(found):
            yield f"matrix products, {precision}: {found['flop_per_s'] / 1e12:.3g} TFLOP/s"
    for precision, report in data.get("parity", {}).items():
        if not is_missing(report):
            values = [f"{name} {value:.9g}" for name, value in report.items() if name.endswith("cosine")]
            yield f"parity, {precision}: {'; '.join(report['missed']) or 'passed'}; {', '.join(values)}"
    for n_tokens, found in data.get("attention_kernels", {}).items():
        if "n_nodes" in found:
            yield f"attention, {n_tokens} tokens: {', '.join(found['n_nodes'])}"
    for precision, memory in data.get("memory", {}).items():
        stages = memory.get("stages", {}) | ({"growth": memory["growth_mib"]} if "growth_mib" in memory else {})
        for stage, found in stages.items():
            if "random shapes" not in stage:
                yield f"memory, {precision}, {stage}: {', '.join(f'{name} {value}' for name, value in found.items())}"
