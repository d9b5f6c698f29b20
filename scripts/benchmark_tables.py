"""The Markdown tables of a report of `bgem3 bench`.

Bold is the best of a column; below a table stands what did not run, and why. Links lead to the report.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmark_report import (
    Report,
    digits,
    fastest,
    first_of_ours,
    heads,
    machine,
    measured,
    operators,
    reasons,
    seconds,
    times,
)

ABSENT = (None, "not installed")
SHARE = "share_of_matrix_rate"
BY_RATE = ("shapes", "bulk")  # groups of which tokens per second are compared; of the others, times


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: a value of each encoder.

    Attributes
    ----------
    values : by label, of the encoders that have one
    show : how a value is written
    best : min or max, None for a column without a best
    """

    title: str
    values: dict[str, Any]
    show: Callable[[Any], str] = str
    best: Callable[[Sequence[Any]], Any] | None = min

    def cells(self, labels: Sequence[str]) -> list[str]:
        """Write the values of some encoders, the best in bold, with all that read the same."""
        shown = [self.show(self.values[label]) if label in self.values else "–" for label in labels]
        values = [self.values[label] for label in labels if label in self.values]
        best = self.show(self.best(values)) if self.best and values else ""
        return [f"**{text}**" if best and text == best else text for text in shown]


def table(labels: Sequence[str], columns: Sequence[Column]) -> str:
    """Write a table with an encoder a row."""
    rows = [["encoder", *(column.title for column in columns)], ["---", *("--:" for _ in columns)]]
    rows += [list(row) for row in zip(labels, *(column.cells(labels) for column in columns), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def speed(report: Report, link: str) -> str:
    """Write the table of the first screen: encoders with all heads, for a query, for reranking and in bulk."""
    columns = [
        *_latency(report, "query 16", "query of 16 tokens"),
        *_latency(report, "rerank 20", "rerank 20 passages"),
        *_bulk(report, "mix"),
    ]
    names = [name for name in ("query 16", "rerank 20", "mix") if name in report["scenarios"]]
    labels = _who_ran(report, names, by="mix")
    columns += [column for column in _footprint_columns(report) if column.title in ("cold start", "peak memory")]
    return f"{_with_notes(table(labels, columns), reasons(report, names))}\n\n{conditions(report, link)}"


def dense(report: Report, link: str) -> str:
    """Write the table of encoders with the dense head alone."""
    columns = [*_latency(report, "query 16 dense", "query of 16 tokens"), *_bulk(report, "mix dense")]
    names = [name for name in ("query 16 dense", "mix dense") if name in report["scenarios"]]
    labels = _who_ran(report, names, by="mix dense")
    return _with_notes(table(labels, columns), reasons(report, names))


def group(report: Report, link: str, name: str) -> str:
    """Write the table of a group of scenarios: the median time of each, or tokens per second."""
    names = [scenario for scenario, found in report["scenarios"].items() if found["group"] == name]
    columns: list[Column] = []
    for scenario in names:
        if name not in BY_RATE:
            columns += _latency(report, scenario, f"{scenario}, p50" if name == "clients" else scenario)
        if name in (*BY_RATE, "clients"):
            columns += _rate(report, scenario, f"{scenario}, tokens/s")
    return _with_notes(table(_who_ran(report, names, by=names[0]), columns), reasons(report, names))


def detail(report: Report, link: str) -> str:
    """Write all that was measured: a table for each scenario."""
    parts = []
    for name, scenario in report["scenarios"].items():
        title, given = scenario["title"], heads(scenario["outputs"])
        work = f"{scenario['n_texts']} texts, {scenario['n_tokens']:,} tokens"
        work += f", {given}" if given not in title else ""
        work += f", {scenario['n_clients']} clients" if scenario["n_clients"] > 1 else ""
        shown = table(_who_ran(report, [name], by=name), list(_detail_columns(report, name)))
        parts.append(f"**{name}**: {title} ({work})\n\n{shown}")
    return _with_notes("\n\n".join(parts), reasons(report, list(report["scenarios"])))


def footprint(report: Report, link: str) -> str:
    """Write what each encoder takes on disk, in memory, and until its first embedding."""
    return _with_notes(table(_who_ran(report, [], by="mix"), list(_footprint_columns(report))), reasons(report, []))


def agreement(report: Report, link: str) -> str:
    """Write how near each encoder's outputs are to those that it is compared with."""
    names = dict.fromkeys(name for encoder in report["encoders"].values() for name in encoder.get("agreement", {}))
    columns = []
    for name in names:
        encoders = {label: encoder.get("agreement", {}) for label, encoder in report["encoders"].items()}
        values = {label: found[name] for label, found in encoders.items() if name in found}
        title = name.replace("_", " ").replace("min cosine", "cosine, lowest")
        columns.append(Column(title=title, values=values, show="{:.5f}".format, best=None))
    return table(_who_ran(report, [], by="mix"), columns)


def breakdown(report: Report, link: str) -> str:
    """Write what part of the time each kind of operator takes."""
    parts = []
    for label in report["encoders"]:
        if not (scenarios := operators(report, label)):
            continue
        groups = list(dict.fromkeys(group for spent in scenarios.values() for group in spent))
        rows = [[label, *scenarios], ["---", *("--:" for _ in scenarios)]]
        rows += [[group, *(_share(spent, group) for spent in scenarios.values())] for group in groups]
        rows.append(["all", *(seconds(sum(spent.values())) for spent in scenarios.values())])
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join(parts)


def conditions(report: Report, link: str) -> str:
    """Say in a line what the numbers were measured on, of which versions, how, and with which command."""
    settings, model = report["settings"], report["settings"]["model"]
    versions: dict[str, None] = {}
    for found in (report["environment"]["versions"], *(e.get("versions", {}) for e in report["encoders"].values())):
        versions |= dict.fromkeys(
            f"{name} {version}" for name, version in found.items() if version not in ABSENT and name != "python"
        )
    others = max(report.get("cpus_used_by_others", ()), default=0.0)
    said = [
        machine(report),
        f"{model['n_layers']} layers of {model['hidden_size']}, {settings['weights']} weights",
        f"medians of up to {settings['n_turns']} interleaved turns{' (quick)' if settings.get('quick') else ''}",
        f"other processes used up to {others:.2f} CPUs meanwhile",
        ", ".join(versions),
    ]
    rates = {name: rate for name, rate in report.get("matrix_rate", {}).items() if "not_run" not in rate}
    products = ", ".join(f"{name} {rate['flop_per_s'] / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
    said += [f"matrix products alone: {products}"] if products else []
    command = settings.get("command", "bgem3 bench")
    return f"{'; '.join(said)}. Measured by `{command}`: [{link.rsplit('/', 1)[-1]}]({link})."


def _latency(report: Report, scenario: str, title: str) -> Iterator[Column]:
    """Yield a column of median times, if there is such a scenario."""
    if scenario in report["scenarios"]:
        values = {label: cell["p50_s"] for label, cell in measured(report, scenario).items()}
        yield Column(title=title, values=values, show=seconds)


def _rate(report: Report, scenario: str, title: str) -> Iterator[Column]:
    """Yield a column of tokens per second, if there is such a scenario."""
    if scenario in report["scenarios"]:
        values = {label: cell["tokens_per_s"] for label, cell in measured(report, scenario).items()}
        yield Column(title=title, values=values, show="{:,.0f}".format, best=max)


def _bulk(report: Report, scenario: str) -> Iterator[Column]:
    """Yield tokens per second and how many times as fast our first encoder is."""
    yield from _rate(report, scenario, f"{scenario.split()[0]}, tokens/s")
    first, cells = first_of_ours(report), measured(report, scenario)
    values = {
        label: cell["times_first"]["median"]
        for label, cell in cells.items()
        if label != first and "times_first" in cell
    }
    if values:
        title = f"{first} is"
        show = {label: f"{times(value)} as fast" for label, value in values.items()}
        yield Column(title=title, values=show | {first: ""}, best=None)


def _detail_columns(report: Report, scenario: str) -> Iterator[Column]:
    cells, first = measured(report, scenario), first_of_ours(report)
    yield from _latency(report, scenario, "p50")
    yield Column(title="p95", values={label: cell["p95_s"] for label, cell in cells.items()}, show=seconds)
    spreads = {label: cell["spread"] for label, cell in cells.items()}
    yield Column(title="spread", values=spreads, show="{:.1%}".format, best=None)
    yield from _rate(report, scenario, "tokens/s")
    shares = {label: cell[SHARE] for label, cell in cells.items() if cell.get(SHARE)}
    yield Column(title="of the matrix rate", values=shares, show="{:.0%}".format, best=None)
    beside = {
        label: "{}x ({} to {})".format(*(digits(cell["times_first"][name]) for name in ("median", "lowest", "highest")))
        for label, cell in cells.items()
        if "times_first" in cell and label != first
    }
    yield Column(title=f"times as long as {first}", values=beside | {first: ""}, best=None)
    chosen = {label: ", ".join(_chosen(cell)) for label, cell in cells.items()}
    yield Column(title="batch size, variant", values=chosen, best=None)


def _chosen(cell: dict[str, Any]) -> list[str]:
    return [str(cell[name]) for name in ("batch_size", "variant") if cell.get(name)]


def _footprint_columns(report: Report) -> Iterator[Column]:
    titles = {
        "disk_bytes": "on disk",
        "import_s": "import",
        "load_s": "load",
        "cold_start_s": "cold start",
        "loaded_rss_bytes": "loaded memory",
        "peak_rss_bytes": "peak memory",
    }
    for name, title in titles.items():
        values = {label: encoder[name] for label, encoder in report["encoders"].items() if encoder.get(name)}
        if name.endswith("bytes"):
            yield Column(title=title, values=values, show=lambda size: f"{size / 1e9:.2f} GB")
        else:
            medians = {label: statistics.median(values[label]) for label in values}
            yield Column(title=title, values=medians, show=seconds)


def _share(spent: dict[str, float], group: str) -> str:
    if group not in spent:
        return "–"
    return f"{seconds(spent[group])}, {spent[group] / sum(spent.values()):.0%}"


def _who_ran(report: Report, scenarios: Sequence[str], by: str) -> list[str]:
    """List the encoders that ran any of these scenarios, or that ran at all, the fastest in one of them first."""
    ran = {label for name in scenarios for label in measured(report, name)}
    if not scenarios:
        ran = {label for label, encoder in report["encoders"].items() if "not_run" not in encoder}
    return [label for label in fastest(report, by) if label in ran]


def _with_notes(shown: str, notes: Sequence[str]) -> str:
    """Put notes below a table, a line each."""
    return "\n".join([shown, "", *(f"- {note}" for note in notes)]).rstrip()
