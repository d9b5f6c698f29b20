"""Write a report of `python -m benchmarks run` as Markdown tables.

The best of a column is bold; a dash stands where an encoder did not run.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Report = dict[str, Any]

BY_TIME = ("query", "clients", "rerank", "long")  # groups of scenarios with a column of median times
BY_RATE = ("clients", "shapes", "bulk")  # groups with a column of tokens per second
FOOTPRINT = {
    "disk_bytes": "on disk",
    "import_s": "import",
    "load_s": "load",
    "cold_start_s": "cold start",
    "loaded_rss_bytes": "loaded memory",
    "peak_rss_bytes": "peak memory",
}
IN_README = ("bgem3 int8", "bgem3 fp32", "bge-m3-lite int8", "optimum ONNX", "OpenVINO", "FlagEmbedding")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The time of an encoder's calls in one scenario, over all turns.

    Attributes
    ----------
    p50 : seconds of a call, the median
    tokens_per_s : by the median call, or by the wall clock where several clients call
    turns : the median of each turn, in seconds
    """

    p50: float
    tokens_per_s: float
    turns: list[float]


@dataclass(frozen=True)
class Column:
    """A column of a table: a value for each encoder that has one, how to write it, and which one is best."""

    title: str
    values: Mapping[str, Any]
    show: Callable[[Any], str] = str
    best: Callable[[list[Any]], Any] | None = None

    def cells(self, labels: Sequence[str]) -> list[str]:
        """Return the values of some encoders as text, with the best one and its ties in bold."""
        shown = {label: self.show(self.values[label]) for label in labels if label in self.values}
        best = self.show(self.best([self.values[label] for label in shown])) if self.best and shown else None
        bold = {label: f"**{text}**" for label, text in shown.items() if text == best}
        return [(shown | bold).get(label, "–") for label in labels]


def first_encoder(report: Report) -> str:
    """Return the encoder that the others are compared with: bgem3 in int8, where it was measured."""
    return str(next(label for label, found in report["encoders"].items() if found["kind"] == "bgem3"))


def timings(report: Report, scenario: str) -> dict[str, Timing]:
    """Return what each encoder took in a scenario, without encoders that failed there or later."""
    described, found = report["scenarios"].get(scenario, {}), {}
    for label, encoder in report["encoders"].items():
        cell = encoder["scenarios"].get(scenario, {})
        if "seconds" not in cell or "not_run" in encoder:
            continue
        calls = [seconds for turn in cell["seconds"] for seconds in turn]
        p50 = statistics.median(calls)
        n_tokens = described["n_tokens"] / (described["n_texts"] if described["is_single"] else 1)
        per_call = sum(cell["wall_s"]) / len(calls) if described["n_clients"] > 1 else p50
        turns = [statistics.median(turn) for turn in cell["seconds"]]
        found[label] = Timing(p50=p50, tokens_per_s=n_tokens / per_call, turns=turns)
    return found


def ratios(report: Report, scenario: str) -> dict[str, list[float]]:
    """Return how many times as long as the first encoder every other took, turn by turn."""
    found = timings(report, scenario)
    first = found.pop(first_encoder(report), None)
    pairs = {label: zip(timing.turns, first.turns, strict=False) for label, timing in found.items() if first}
    return {label: [theirs / ours for theirs, ours in turns] for label, turns in pairs.items()}


def fastest(report: Report, scenarios: Sequence[str]) -> list[str]:
    """List the encoders that ran any of these scenarios: the first one, then by their rates in the last scenario."""
    found = [timings(report, name) for name in scenarios]
    rates = {label: timing.tokens_per_s for label, timing in (found[-1].items() if found else ())}
    ran = [label for label in report["encoders"] if any(label in each for each in found)]
    return sorted(ran, key=lambda label: (label != first_encoder(report), -rates.get(label, 0.0)))


def table(labels: Sequence[str], columns: Sequence[Column]) -> str:
    """Write a table with a row for each label."""
    rows = [["encoder", *(column.title for column in columns)], ["---"] + ["--:"] * len(columns)]
    rows += [list(row) for row in zip(labels, *(column.cells(labels) for column in columns), strict=True)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def speed(
    report: Report, names: Sequence[str], *, beside: str = "", labels: Sequence[str] = (), footprint: Sequence[str] = ()
) -> str:
    """Write the median times or the rates of some scenarios.

    Parameters
    ----------
    names : scenarios; the report need not have all
    beside : a scenario in which the first encoder is compared with each other one
    labels : the rows; none for all encoders that ran, the fastest in the last scenario first
    footprint : titles of columns to add, such as "cold start"
    """
    names, columns = [name for name in names if name in report["scenarios"]], []
    for name in names:
        found, group = timings(report, name), report["scenarios"][name]["group"]
        if group in BY_TIME:
            columns.append(Column(name, {label: each.p50 for label, each in found.items()}, seconds, min))
        if group in BY_RATE:
            rates = {label: each.tokens_per_s for label, each in found.items()}
            columns.append(Column(f"{name}, tokens/s", rates, "{:,.0f}".format, max))
    if beside:
        medians = {label: statistics.median(turns) for label, turns in ratios(report, beside).items()}
        words = {label: f"{digits(median, 2)}x as fast" for label, median in medians.items()}
        columns.append(Column(f"{first_encoder(report)} is", words | {first_encoder(report): ""}))
    columns += [column for column in footprint_columns(report) if column.title in footprint]
    return table(labels or fastest(report, names), columns)


def overview(report: Report, labels: Sequence[str] = ()) -> str:
    """Write the first table: a query, reranking and a mix of texts with all heads, start and memory."""
    names, footprint = ("query 16", "rerank 20", "mix"), ("cold start", "peak memory")
    return speed(report, names, beside="mix", labels=labels, footprint=footprint)


def readme(report: Report) -> str:
    """Write the README's table: bgem3 in int8 and float32, and the best row of each of the nearest rivals."""
    ranked = fastest(report, ["mix"])
    best = [next((label for label in ranked if label.startswith(name)), "") for name in IN_README]
    return overview(report, [label for label in ranked if label in best])


def dense(report: Report) -> str:
    """Write the table of encoders with the dense head alone."""
    return speed(report, ("query 16 dense", "mix dense"), beside="mix dense")


def group(report: Report, name: str) -> str:
    """Write the table of a group of scenarios."""
    return speed(report, [each for each, found in report["scenarios"].items() if found["group"] == name])


def footprint_columns(report: Report) -> list[Column]:
    """Return what each encoder takes on disk, in memory, and until its first embedding, where it was measured."""
    columns = []
    for name, title in FOOTPRINT.items():
        found = {label: encoder[name] for label, encoder in report["encoders"].items() if encoder.get(name)}
        if name.endswith("bytes"):
            columns.append(Column(title, found, lambda size: f"{size / 1e9:.2f} GB", min))
        else:
            medians = {label: statistics.median(turns) for label, turns in found.items()}
            columns.append(Column(title, medians, seconds, min))
    return [column for column in columns if column.values]


def agreement(report: Report) -> str:
    """Write how near each encoder's outputs are to the first float32 encoder's."""
    encoders = {label: found["agreement"] for label, found in report["encoders"].items() if "agreement" in found}
    names = dict.fromkeys(name for found in encoders.values() for name in found)
    values = {name: {label: found[name] for label, found in encoders.items() if name in found} for name in names}
    return table(list(encoders), [Column(name.replace("_", " "), values[name], "{:.5f}".format) for name in names])


def machine(report: Report) -> str:
    """Name the processor and the number of threads."""
    environment = report["environment"]
    return f"{environment['processor']}, {environment['n_threads']} threads"


def conditions(report: Report) -> str:
    """Say on what machine the report was measured, how, and with which versions."""
    settings, model = report["settings"], report["settings"]["model"]
    found = [report["environment"]["versions"], *(each.get("versions", {}) for each in report["encoders"].values())]
    versions = dict.fromkeys(f"{name} {version}" for each in found for name, version in each.items())
    others = [cpus for cpus in report["cpus_used_by_others"] if cpus is not None]
    said = [
        machine(report),
        f"{model['n_layers']} layers of {model['hidden_size']}, {settings['weights']} weights",
        f"medians of up to {settings['n_turns']} interleaved turns",
        f"other processes used up to {max(others, default=0.0):.2f} CPUs meanwhile",
        ", ".join(versions),
    ]
    return f"{'; '.join(said)}. {settings.get('note', '')}".strip()


def failures(report: Report) -> list[str]:
    """Say which encoders did not run, or did not run every scenario, and why."""
    said = []
    for label, encoder in report["encoders"].items():
        if "not_run" in encoder:
            said.append(f"{label}: {encoder['not_run']}")
            continue
        given = {head for name in encoder["scenarios"] for head in report["scenarios"][name]["outputs"]}
        reasons: dict[str, list[str]] = {}
        for name, scenario in report["scenarios"].items():
            cell = encoder["scenarios"].get(name, {"not_run": "not measured"})
            if "not_run" in cell and given.issuperset(scenario["outputs"]):
                reasons.setdefault(cell["not_run"], []).append(name)
        said += [f"{label}, {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return said


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
