"""The Markdown tables of a report. The best of a column is bold; "–" stands where an encoder did not run."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.results import Report, fastest, first_encoder, machine, ratios, timings

Column = tuple[str, dict[str, str]]
"""A title, and the text of each encoder that has one."""

BY_RATE = ("clients", "shapes", "bulk")  # groups of scenarios with a column of tokens per second
BY_TIME = ("query", "clients", "rerank", "long")  # groups with a column of median times
FOOTPRINT = {
    "disk_bytes": "on disk",
    "import_s": "import",
    "load_s": "load",
    "cold_start_s": "cold start",
    "loaded_rss_bytes": "loaded memory",
    "peak_rss_bytes": "peak memory",
}
IN_README = ("bgem3 int8", "bgem3 fp32", "bge-m3-lite int8", "optimum ONNX", "OpenVINO", "FlagEmbedding")


def column(
    title: str, values: Mapping[str, Any], show: Callable[[Any], str] = str, best: Callable[..., Any] | None = None
) -> Column:
    """Return a column whose best values are bold, with all that read the same."""
    shown = {label: show(value) for label, value in values.items()}
    bold = show(best(values.values())) if best and values else None
    return title, {label: f"**{text}**" if text == bold else text for label, text in shown.items()}


def table(labels: Sequence[str], columns: Sequence[Column], corner: str = "encoder") -> str:
    """Write a table with a row for each label."""
    rows = [[corner, *(title for title, _ in columns)], ["---", *("--:" for _ in columns)]]
    rows += [[label, *(cells.get(label, "–") for _, cells in columns)] for label in labels]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def speed(
    report: Report,
    names: Sequence[str],
    *,
    beside: str = "",
    footprint_of: Sequence[str] = (),
    labels: Sequence[str] | None = None,
) -> str:
    """Write the median times or rates of some scenarios.

    Parameters
    ----------
    beside : a scenario in which the first encoder is compared with each other one
    footprint_of : which columns of the footprint to add
    labels : the rows; None for all encoders that ran, the fastest in the last scenario first
    """
    names, columns = [name for name in names if name in report["scenarios"]], []
    for name in names:
        found, group = timings(report, name), report["scenarios"][name]["group"]
        if group in BY_TIME:
            columns.append(column(name, {label: each.p50 for label, each in found.items()}, seconds, min))
        if group in BY_RATE:
            rates = {label: each.tokens_per_s for label, each in found.items()}
            columns.append(column(f"{name}, tokens/s", rates, "{:,.0f}".format, max))
    if beside:
        first = first_encoder(report)
        faster = {label: statistics.median(turns) for label, turns in ratios(report, beside).items()}
        words = {first: ""} | {label: f"{digits(times, 2)}x as fast" for label, times in faster.items()}
        columns.append(column(f"{first} is", words))
    columns += [each for each in footprint_columns(report) if each[0] in footprint_of]
    return table(fastest(report, names) if labels is None else labels, columns)


def readme(report: Report) -> str:
    """Write the README's table: bgem3 in int8 and float32, and the best row of the four nearest rivals."""
    ranked = fastest(report, ["mix"])
    best = [next((label for label in ranked if label.startswith(name)), "") for name in IN_README]
    labels = [label for label in ranked if label in best]
    footprint = ("cold start", "peak memory")
    return speed(report, ("query 16", "rerank 20", "mix"), beside="mix", footprint_of=footprint, labels=labels)


def footprint_columns(report: Report) -> list[Column]:
    """Return what each encoder takes on disk, in memory, and until its first embedding."""
    columns = []
    for name, title in FOOTPRINT.items():
        found = {label: encoder[name] for label, encoder in report["encoders"].items() if encoder.get(name)}
        if name.endswith("bytes"):
            columns.append(column(title, found, lambda size: f"{size / 1e9:.2f} GB", min))
        else:
            medians = {label: statistics.median(turns) for label, turns in found.items()}
            columns.append(column(title, medians, seconds, min))
    return [each for each in columns if each[1]]


def agreement(report: Report) -> str:
    """Write how near each encoder's outputs are to the first float32 encoder's."""
    encoders = {label: found["agreement"] for label, found in report["encoders"].items() if "agreement" in found}
    names = dict.fromkeys(name for found in encoders.values() for name in found)
    columns = []
    for name in names:
        values = {label: found[name] for label, found in encoders.items() if name in found}
        columns.append(column(name.replace("_", " ").replace("min cosine", "cosine, lowest"), values, "{:.5f}".format))
    return table(list(encoders), columns)


def breakdown(report: Report) -> str:
    """Write what share of a call each kind of operator takes, where a report has it."""
    parts = []
    for label, scenarios in report.get("breakdown", {}).items():
        operators = dict.fromkeys(name for spent in scenarios.values() for name in spent)
        columns = []
        for name, spent in scenarios.items():
            total = sum(spent.values())
            shown = {part: f"{seconds(value)}, {value / total:.0%}" for part, value in spent.items()}
            columns.append(column(name, shown | {"all": seconds(total)}))
        parts.append(table([*operators, "all"], columns, corner=label))
    return "\n\n".join(parts)


def detail(report: Report) -> str:
    """Write a table for each scenario, with all that was measured."""
    parts, first = [], first_encoder(report)
    for name, scenario in report["scenarios"].items():
        found, compared = timings(report, name), ratios(report, name)
        beside = {label: f"{_times(turns)} ({digits(min(turns))} to {digits(max(turns))})" for label, turns in compared.items()}
        columns = [
            column("p50", {label: each.p50 for label, each in found.items()}, seconds, min),
            column("p95", {label: each.p95 for label, each in found.items()}, seconds, min),
            column("spread", {label: each.spread for label, each in found.items()}, "{:.1%}".format),
            column("tokens/s", {label: each.tokens_per_s for label, each in found.items()}, "{:,.0f}".format, max),
            column(f"times as long as {first}", {first: ""} | beside),
            column("batch size, variant", {label: _chosen(report, label, name) for label in found}),
        ]
        size = f"{len(scenario['lengths'])} texts, {sum(scenario['lengths']):,} tokens"
        parts.append(f"**{name}**: {scenario['title']} ({size})\n\n{table(fastest(report, [name]), columns)}")
    return "\n\n".join(parts)


def _times(turns: Sequence[float]) -> str:
    return f"{digits(statistics.median(turns))}x"


def _chosen(report: Report, label: str, name: str) -> str:
    cell = report["encoders"][label]["scenarios"][name]
    return ", ".join(str(cell[key]) for key in ("batch_size", "variant") if cell.get(key))


def conditions(report: Report) -> str:
    """Say on what the figures were measured, how, and with which versions."""
    settings, model = report["settings"], report["settings"]["model"]
    versions = dict(report["environment"]["versions"])
    for encoder in report["encoders"].values():
        versions |= encoder.get("versions", {})
    others = [cpus for cpus in report["cpus_used_by_others"] if cpus is not None]
    said = [
        machine(report),
        f"{model['n_layers']} layers of {model['hidden_size']}, {settings['weights']} weights",
        f"medians of up to {settings['n_turns']} interleaved turns",
        f"other processes used up to {max(others, default=0.0):.2f} CPUs meanwhile",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return f"{'; '.join(said)}. {settings.get('note', '')}".strip()


def seconds(value: float) -> str:
    """Return a time with its unit, in three digits.

    >>> seconds(0.064), seconds(5.5), seconds(1234.5)
    ('64.0 ms', '5.50 s', '1,234 s')
    """
    number, unit = (1e3 * value, "ms") if value < 0.9995 else (value, "s")
    return f"{digits(number)} {unit}"


def digits(value: float, n_digits: int = 3) -> str:
    """Return a number in so many digits, or as a whole number with all of its digits.

    >>> digits(0.98765), digits(1.2), digits(12345.6)
    ('0.988', '1.20', '12,346')
    """
    return f"{value:,.0f}" if value >= 10 ** (n_digits - 1) else f"{value:#.{n_digits}g}".rstrip(".")
