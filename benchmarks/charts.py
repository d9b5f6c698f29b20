"""Draw a report's chart, as SVG that reads well on white and on dark pages.

A chart's data is stored in its file, so that a test can tell whether the chart is current.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.tables import Report, machine, timings

Chart = dict[str, Any]
"""``title``, and ``bars``, a value by encoder."""

OURS = "#d55e00"
INK = "#757c85"  # contrast 4 to 1 with white and with a dark page
STYLE: Any = {
    "svg.hashsalt": "bgem3",  # the same chart gets the same bytes
    "svg.fonttype": "none",  # text stays text, in the reader's font
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "ytick.color"), INK),
}


def throughput(report: Report) -> Chart:
    """Return the data of a report's chart: the tokens per second of the mix, all heads, the fastest first."""
    rates = {label: round(timing.tokens_per_s, 3) for label, timing in timings(report, "mix").items()}
    bars = dict(sorted(rates.items(), key=lambda bar: -bar[1]))
    return {"title": f"Tokens per second, all heads; {machine(report)}", "bars": bars}


def draw(chart: Chart, path: Path) -> None:
    """Write a chart, with its data."""
    bars = chart["bars"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 0.8 + 0.26 * len(bars)), layout="constrained")
        axes = figure.subplots()
        colors = [OURS if label.startswith("bgem3") else INK for label in bars]
        axes.bar_label(axes.barh(list(bars), list(bars.values()), color=colors), fmt="{:,.0f}", padding=3)
        axes.invert_yaxis()
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.margins(x=0.1)
        axes.set_title(chart["title"], loc="left")
        metadata = {"Date": None, "Creator": None, "Description": json.dumps(chart, ensure_ascii=False)}
        figure.savefig(path, format="svg", transparent=True, metadata=metadata)


def data_of(path: Path) -> Chart | None:
    """Return the data that a chart's file stores; None without a chart."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    stored = re.search(r"<dc:description>(.*?)</dc:description>", text, re.DOTALL)
    return json.loads(html.unescape(stored[1])) if stored else None
