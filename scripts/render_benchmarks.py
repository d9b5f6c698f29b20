"""Write the benchmarks' tables and plots from the reports of `bgem3 bench`, and nothing from anywhere else.

usage: python scripts/render_benchmarks.py [--check] [DOCUMENT ...]

A document says where a table goes, and of which report in benchmarks/; without a name it is cpu.json:

    <!-- bench:speed --> ... <!-- /bench -->
    <!-- bench:detail cpu_vnni --> ... <!-- /bench -->

What stands between is replaced. A table is speed, dense, detail, footprint, agreement, breakdown, conditions, a group
of scenarios ("query", "shapes" and so on), or page, which is all of it with the plots. The plots of every report that a
document names are written beside the report: benchmarks/cpu_throughput.svg and so on. With --check nothing is written,
and the exit status is 1 where a document or a plot is not what the reports give.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmark_plots import PLOTS
from benchmark_report import Report, machine
from benchmark_tables import agreement, breakdown, conditions, dense, detail, footprint, group, speed

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "DESIGN.md", "benchmarks/README.md")
MARKED = re.compile(r"(<!-- bench:(\S+)(?: (\S+))? -->\n).*?(<!-- /bench -->)", re.DOTALL)
OPENING = re.compile(r"<!-- bench:")
GROUPS = {
    "query": "One query at a time",
    "clients": "Several clients at once",
    "rerank": "A query with its passages",
    "shapes": "Batches of one length",
    "bulk": "Bulk",
    "long": "Long texts",
}
"""Headings of the page, in its order; other groups come after them, under their names."""

PLOTTED = {
    "query": ("latency", "time for one text by its length"),
    "shapes": ("batches", "tokens per second by batch and length"),
}
"""The plots that stand below a group's table, and what they show."""


class RenderError(Exception):
    """A document asks for what there is not; the message says what."""


def main() -> int:
    """Write or check the documents and plots."""
    parser = argparse.ArgumentParser(description="Write the benchmarks' tables and plots from their reports.")
    parser.add_argument("documents", nargs="*", help=f"default: {', '.join(DOCUMENTS)}")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 where something is not current"
    )
    arguments = parser.parse_args()
    try:
        files = render(ROOT, arguments.documents or [name for name in DOCUMENTS if (ROOT / name).is_file()])
    except RenderError as error:
        parser.error(str(error))
    stale = [path for path, text in files.items() if text != (path.read_text("utf-8") if path.is_file() else "")]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is not what the reports give' if arguments.check else 'written'}")
        if not arguments.check:
            write(path, files[path])
    return int(arguments.check and bool(stale))


def render(root: Path, documents: Sequence[str]) -> dict[Path, str]:
    """Return what each document and each plot should hold; a plot that a report has no numbers for holds nothing.

    Raises
    ------
    RenderError
        If a marker is not closed, or names a table or a report that there is not.
    """
    reports: dict[str, Report] = {}
    files: dict[Path, str] = {}
    for document in documents:
        files[root / document] = fill(root / document, root / "benchmarks", reports)
    for name, report in reports.items():
        files |= {root / "benchmarks" / f"{name}_{plot}.svg": draw(report) for plot, draw in PLOTS.items()}
    return files


def fill(path: Path, folder: Path, reports: dict[str, Report]) -> str:
    """Return a document with its tables; reports are read from a folder as they are named, and kept."""
    text = path.read_text(encoding="utf-8")
    if len(OPENING.findall(text)) != len(MARKED.findall(text)):
        raise RenderError(f"{path.name}: a marker is not closed, or not on a line of its own")

    def between(found: re.Match[str]) -> str:
        opening, table, name, closing = found.groups()
        report = read(folder, name or "cpu", reports)
        tables = tables_of(report)
        if table not in tables:
            raise RenderError(f"{path.name}: there is no table {table!r}, only {', '.join(tables)}")
        link = Path(os.path.relpath(folder / f"{name or 'cpu'}.json", path.parent)).as_posix()
        return f"{opening}\n{tables[table](report, link)}\n\n{closing}"

    return MARKED.sub(between, text)


def read(folder: Path, name: str, reports: dict[str, Report]) -> Report:
    """Return a report by its name, from those that were read before or from its file."""
    path = folder / f"{name}.json"
    if name not in reports:
        if not path.is_file():
            raise RenderError(f"there is no {path.name} in {folder.name}")
        reports[name] = json.loads(path.read_text(encoding="utf-8"))
    return reports[name]


def tables_of(report: Report) -> dict[str, Callable[[Report, str], str]]:
    """Return what a marker can name."""
    tables: dict[str, Callable[[Report, str], str]] = {
        "speed": speed,
        "dense": dense,
        "detail": detail,
        "footprint": footprint,
        "agreement": agreement,
        "breakdown": breakdown,
        "conditions": conditions,
        "page": page,
    }
    return tables | {name: partial(group, name=name) for name in groups_of(report)}


def groups_of(report: Report) -> list[str]:
    """List the groups of a report's scenarios, in the page's order."""
    found = dict.fromkeys(scenario["group"] for scenario in report["scenarios"].values())
    return [*(name for name in GROUPS if name in found), *(name for name in found if name not in GROUPS)]


def page(report: Report, link: str) -> str:
    """Write everything that a report holds: tables, plots, and what did not run."""
    return "\n\n".join(_sections(report, link))


def _sections(report: Report, link: str) -> Iterator[str]:
    yield f"## {machine(report)}\n\n{speed(report, link)}"
    yield from _plot(report, link, "throughput", "tokens per second of each encoder, all heads")
    if "mix dense" in report["scenarios"]:
        yield f"### Dense alone\n\n{dense(report, link)}"
        yield from _plot(report, link, "throughput_dense", "tokens per second of each encoder, dense alone")
    for name in groups_of(report):
        yield f"### {GROUPS.get(name, name)}\n\n{group(report, link, name)}"
        if name in PLOTTED:
            yield from _plot(report, link, *PLOTTED[name])
    yield f"### Disk, start and memory\n\n{footprint(report, link)}"
    yield f"### Agreement of the outputs\n\n{agreement(report, link)}"
    if breakdown(report, link):
        yield f"### Where the time goes\n\n{breakdown(report, link)}"
        yield from _plot(report, link, "breakdown", "share of each kind of operator in the time")
    folded = f"<details><summary>A table for each scenario</summary>\n\n{detail(report, link)}\n\n</details>"
    yield f"### Everything\n\n{folded}"


def _plot(report: Report, link: str, plot: str, words: str) -> Iterator[str]:
    """Yield a plot, if the report has numbers for it."""
    if PLOTS[plot](report):
        yield f"![{words}]({link.removesuffix('.json')}_{plot}.svg)"


def write(path: Path, text: str) -> None:
    """Write a file; remove one that should hold nothing."""
    if text:
        path.write_text(text, encoding="utf-8")
    else:
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
