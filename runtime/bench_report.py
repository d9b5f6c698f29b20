"""BenchReport: what a benchmark measured so far, kept on disk, under a time limit."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Column, Table

from bgem3.runtime.session import onnxruntime_errors

PARTS = ("matrix_rate", "parity", "attention_kernels", "memory", "latency", "throughput")
"""The parts of a report, in the order in which they are measured: memory before other encoders are loaded."""

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

    Attributes
    ----------
    data : the measurements: part by part, each a dict by name; ``failed`` and ``seconds`` are kept up to date
    deadline : when the time limit ends, on ``time.perf_counter``'s clock
    """

    def __init__(self, path: Path | None, time_limit: float, show_progress: bool = False) -> None:
        self.data: dict[str, Any] = {}
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
            partial = self._path.with_name(f".{self._path.name}.partial")
            partial.write_text(json.dumps(self.data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(partial, self._path)
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
    for names, cell in _missing(data):
        is_ours = names[-1].startswith("bgem3") and cell["not_run"] != TIME_LIMIT
        if is_ours or "dense_min_cosine" in cell:
            failed.append(f"{', '.join(names)}: {cell['not_run']}")
    return failed


def summary(data: dict[str, Any]) -> Group:
    """Return a report in short: a table with an encoder a row, and lines on all else."""
    columns = {f"{name}\np50 ms": by_heads.get("all heads", {}) for name, by_heads in data.get("latency", {}).items()}
    columns |= {f"{name}\ntokens/s": cell for name, cell in data.get("throughput", {}).items()}
    cells = {title.replace(" tokens", ""): cell["encoders"] for title, cell in columns.items() if "encoders" in cell}
    table = Table(Column("encoder", overflow="fold"), *cells)
    for encoder in dict.fromkeys(name for encoders in cells.values() for name in encoders):
        figures = [_figure(encoders.get(encoder, {})) for encoders in cells.values()]
        if any(figures):
            table.add_row(encoder, *figures)
    device = data["environment"].get("gpu", {}).get("name") or data["environment"]["processor"]
    missing = [(names, cell["not_run"]) for names, cell in _missing(data)]
    late = [
        ", ".join(name for name in names if name != "encoders") for names, reason in missing if reason == TIME_LIMIT
    ]
    reasons = dict.fromkeys(f"{names[-1]}: {reason}" for names, reason in missing if reason != TIME_LIMIT)
    lines = [*_findings(data), *reasons, *(f"FAILED {reason}" for reason in data["failed"])]
    lines += [f"not run, for the time limit: {'; '.join(late)}"] if late else []
    return Group(f"{device}, {data['settings']['precision']} weights", *([table] if cells else []), *lines)


def _findings(data: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each finding that is no encoder's speed."""
    for name, rates in data.get("matrix_rate", {}).items():
        if not is_missing(rates):
            yield f"matrix products, {name}: {max(rates.values()) / 1e12:.3g} TFLOP/s"
    for precision, report in data.get("parity", {}).items():
        if not is_missing(report):
            values = [f"{name} {value:.9g}" for name, value in report.items() if name.endswith("cosine")]
            yield f"parity, {precision}: {'; '.join(report['missed']) or 'passed'}; {', '.join(values)}"
    for n_tokens, found in data.get("attention_kernels", {}).items():
        if "n_nodes" in found:
            yield f"attention, {n_tokens} tokens: {', '.join(found['n_nodes'])}"
    memory = data.get("memory", {})
    stages = memory.get("stages", {}) | ({"growth": memory["growth_mib"]} if "growth_mib" in memory else {})
    for stage, found in stages.items():
        if "random shapes" not in stage:
            yield f"memory, {stage}: {', '.join(f'{name} {value}' for name, value in found.items())}"


def _figure(cell: dict[str, Any]) -> str:
    value = cell.get("tokens_per_s") or cell.get("p50_ms")
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _missing(data: dict[str, Any], *names: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the measurements that could not be made, each with its path."""
    if is_missing(data):
        yield names, data
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _missing(value, *names, name)
