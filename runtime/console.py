"""The command line's output: UTF-8 in any locale, as tables or JSON, on streams that may be closed."""

import argparse
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.table import Table


def write_utf8() -> None:
    """Let the standard streams write UTF-8; characters that it lacks, as in odd file names, become escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def flush_output() -> None:
    """Write out standard output's buffer; if that fails, drop the buffer, so that Python does not try again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)
        raise


def complain(message: str) -> None:
    """Write a message to standard error, unless it is closed."""
    if sys.stderr is not None:
        try:
            print(f"bgem3: {message}", file=sys.stderr, flush=True)
        except BrokenPipeError:
            _discard(sys.stderr)


def has_progress(arguments: argparse.Namespace) -> bool:
    """Tell whether long work shows a progress bar."""
    return not arguments.json and sys.stderr is not None


def show(arguments: argparse.Namespace, data: object, table: RenderableType) -> None:
    """Print a table, or with ``--json`` the data."""
    if sys.stdout is None:
        return
    if arguments.json:
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        console = Console(markup=False, emoji=False, highlight=False)
        with console.capture() as capture:  # rich would end the process itself if nobody read its output
            console.print(table)
        print(capture.get(), end="")


def info_table(manifest: dict[str, Any], folder: Path) -> Table:
    """Return a table of an artifact's manifest."""
    table = Table("item", "value", title=str(folder), show_header=False)
    table.add_row("source", " ".join(filter(None, (manifest["source"]["id"], manifest["source"]["revision"]))))
    for name, value in manifest["model"].items():
        table.add_row(name, str(value))
    if "outputs" in manifest:
        table.add_row("outputs", " ".join(manifest["outputs"]))
    for name, entry in manifest["files"].items():
        table.add_row(name, f"{entry['size'] / 1e6:,.1f} MB")
    for graph, report in manifest["parity"].items():
        table.add_row(f"{graph} against the checkpoint", _figures(report))
    table.add_row("made with", ", ".join(f"{name} {number}" for name, number in manifest["versions"].items()))
    return table


def parity_table(reports: dict[str, dict[str, Any]]) -> Table:
    """Return a table of each graph's parity with the reference."""
    table = Table("graph", "against the reference", "result")
    for graph, report in reports.items():
        table.add_row(graph, _figures(report), "; ".join(report["missed"]) or ("" if "not_run" in report else "passed"))
    return table


def _figures(report: dict[str, Any]) -> str:
    if "not_run" in report:
        return f"not run: {report['not_run']}"
    shown = {name: value for name, value in report.items() if isinstance(value, float)} | report.get("published", {})
    return "\n".join(
        f"{name} {value:.9g}" if "cosine" in name else f"{name} {value:.2g}" for name, value in shown.items()
    )


def _discard(stream: TextIO) -> None:
    """Send a stream's buffer, and all that follows, to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
