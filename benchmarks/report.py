"""Write benchmarks/README.md, the tables in other documents, and the charts, from the reports in benchmarks/results.

A document says where a table goes: ``<!-- bench:readme -->`` ... ``<!-- /bench -->``; what stands between is replaced.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks import charts, tables
from benchmarks.tables import Report, failures, machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
FIRST = "cpu"  # the report that the README and docs/measurements.md quote; the page begins with it
PAGE, INTRODUCTION = "benchmarks/README.md", Path(__file__).with_name("introduction.md")
DOCUMENTS = ("README.md", "docs/measurements.md")
MARKED = re.compile(r"(<!-- bench:(\S+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
BLOCKS: dict[str, Callable[[Report], str]] = {
    "readme": tables.readme,
    "dense": tables.dense,
    "shapes": partial(tables.group, name="shapes"),
}
GROUPS = {
    "query": "One query at a time",
    "clients": "Several clients at once",
    "rerank": "A query with its passages",
    "shapes": "Batches of one length",
    "long": "Long texts",
}


def main(arguments: Sequence[str]) -> int:
    """Write the documents and charts that are not current."""
    argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__).parse_args(arguments)
    for path, content in stale_files().items():
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            charts.draw(content, path)
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def read_reports() -> dict[str, Report]:
    """Return the comparisons of encoders in benchmarks/results by their files' names, the quoted one first."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    names = sorted((name for name in found if "encoders" in found[name]), key=lambda name: name != FIRST)
    return {name: found[name] for name in names}


def stale_files() -> dict[Path, str | charts.Chart]:
    """Return the documents and charts that are not what the reports give, with what they should hold.

    Charts are compared by their data: their bytes depend on matplotlib's version.
    """
    reports = read_reports()
    texts = {ROOT / PAGE: page(reports)}
    for path in (ROOT / name for name in DOCUMENTS):
        if path.is_file():
            texts[path] = fill(path.read_text(encoding="utf-8"), reports[FIRST])
    drawn = {RESULTS / f"{name}_throughput.svg": charts.throughput(each) for name, each in reports.items()}
    stale: dict[Path, str | charts.Chart] = {
        path: text for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    return stale | {path: chart for path, chart in drawn.items() if chart["bars"] and charts.data_of(path) != chart}


def fill(text: str, report: Report) -> str:
    """Return a document with its tables; raise ValueError if a marker is not closed or names no table."""

    def between(found: re.Match[str]) -> str:
        opening, name, closing = found.groups()
        if name not in BLOCKS:
            raise ValueError(f"there is no table {name!r}; there are {', '.join(BLOCKS)}")
        return f"{opening}\n{BLOCKS[name](report)}\n\n{closing}"

    if text.count("<!-- bench:") != len(MARKED.findall(text)):
        raise ValueError("a marker <!-- bench:NAME --> is not closed by <!-- /bench -->, or not alone on its line")
    return MARKED.sub(between, text)


def page(reports: dict[str, Report]) -> str:
    """Return benchmarks/README.md: each report's tables and charts, and one list of all that did not run."""
    parts = [INTRODUCTION.read_text(encoding="utf-8").strip()]
    for name, report in reports.items():
        parts += sections(name, report)
    parts.append("## What did not run\n\nA dash in a table means that the encoder lacks the head, or one of these:")
    parts.append("\n".join(f"- {name}.json: {reason}" for name, each in reports.items() for reason in failures(each)))
    return "\n\n".join(parts) + "\n"


def sections(name: str, report: Report) -> Iterator[str]:
    """Yield a report's tables and chart."""
    groups = {scenario["group"] for scenario in report["scenarios"].values()}
    yield f"## {machine(report)}: [{name}.json](results/{name}.json)\n\n{tables.conditions(report)}"
    if "mix" in report["scenarios"]:
        yield f"{tables.overview(report)}\n\n![throughput](results/{name}_throughput.svg)"
    if "mix dense" in report["scenarios"]:
        yield f"### Dense alone\n\n{tables.dense(report)}"
    for group, title in GROUPS.items():
        if group in groups:
            yield f"### {title}\n\n{tables.group(report, group)}"
    if columns := tables.footprint_columns(report):
        yield f"### Disk, start and memory\n\n{tables.table(list(columns[0].values), columns)}"
        yield f"### Agreement of the outputs\n\n{tables.agreement(report)}"
