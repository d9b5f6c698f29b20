"""The charts of a report, as SVG that reads well on white and on dark pages.

A chart's data is stored in its file, so that a test can tell whether the chart is current.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.peer import ALL_HEADS
from benchmarks.results import Report, fastest, machine, timings

Chart = dict[str, Any]
"""``title`` and ``subtitle``; and by encoder either ``bars``, a value each, or ``lines``, (x, y) points each."""

OURS = "#d55e00"
COLORS = ("#1f7fc0", "#008f68", "#b8609a", "#9a7b00", "#7f6bd6", "#1b8a9a", "#a0653a")
INK = "#757c85"  # contrast 4 to 1 with white and with a dark page
DASHES = {"int8": "-", "fp16": "--", "bf16": "-.", "fp32": ":"}
STYLE = {
    "svg.hashsalt": "bgem3",  # the same chart gets the same bytes
    "svg.fonttype": "none",  # text stays text, in the reader's font
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def charts_of(report: Report) -> dict[str, Chart]:
    """Return the data of each chart that a report has figures for, by name."""
    charts = {"throughput": _throughput(report, "mix"), "throughput_dense": _throughput(report, "mix dense")}
    charts["latency"] = _latency(report)
    return {name: chart for name, chart in charts.items() if chart.get("bars") or chart.get("lines")}


def _throughput(report: Report, scenario: str) -> Chart:
    rates = {label: round(timing.tokens_per_s, 1) for label, timing in timings(report, scenario).items()}
    heads = "dense alone" if scenario.endswith("dense") else "all heads"
    ranked = dict(sorted(rates.items(), key=lambda bar: -bar[1]))
    return {"title": f"Tokens per second, {heads}", "subtitle": machine(report), "bars": ranked}


def _latency(report: Report) -> Chart:
    """Return the median time of one text by its length."""
    lines: dict[str, list[list[float]]] = {}
    for name, scenario in report["scenarios"].items():
        is_alone = scenario["group"] in ("query", "long") or name.startswith("1x")
        if is_alone and len(scenario["outputs"]) == len(ALL_HEADS):
            for label, timing in timings(report, name).items():
                lines.setdefault(label, []).append([scenario["n_tokens"] / scenario["n_texts"], round(timing.p50, 5)])
    ordered = {label: sorted(lines[label]) for label in fastest(report, ["mix"]) if len(lines.get(label, ())) > 1}
    return {"title": "Seconds for one text, by its tokens; all heads", "subtitle": machine(report), "lines": ordered}


def draw(chart: Chart, path: Path) -> None:
    """Write a chart, with its data."""
    with mpl.rc_context(STYLE):
        figure = _draw_bars(chart["bars"]) if "bars" in chart else _draw_lines(chart["lines"])
        figure.suptitle(f"{chart['title']}\n{chart['subtitle']}", fontsize=11)
        metadata = {"Date": None, "Creator": None, "Description": json.dumps(chart, ensure_ascii=False)}
        figure.savefig(path, format="svg", transparent=True, metadata=metadata)


def data_of(path: Path) -> Chart | None:
    """Return the data that a chart's file stores; None without a chart."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    stored = re.search(r"<dc:description>(.*?)</dc:description>", text, re.DOTALL)
    return json.loads(html.unescape(stored[1])) if stored else None


def _draw_bars(bars: dict[str, float]) -> Figure:
    figure = Figure(figsize=(8.4, 1.1 + 0.26 * len(bars)), layout="constrained")
    axes = figure.subplots()
    colors = [OURS if label.startswith("bgem3") else INK for label in bars]
    drawn = axes.barh(list(bars), list(bars.values()), color=colors)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.margins(x=0.1)
    return figure


def _draw_lines(lines: dict[str, list[list[float]]]) -> Figure:
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(label.rsplit(" ", 1)[0] for label in lines))
    colors = dict(zip([name for name in names if name != "bgem3"], COLORS, strict=False)) | {"bgem3": OURS}
    for label, points in lines.items():
        name, precision = label.rsplit(" ", 1)
        width = 2.2 if name == "bgem3" else 1.2
        style = {"color": colors.get(name, INK), "linestyle": DASHES.get(precision, "-"), "linewidth": width}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label, **style)
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    return figure
