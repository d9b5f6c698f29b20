"""The plots of a report of `bgem3 bench`: throughput, latency by length, throughput by batch, time by operator."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmark_panel import LABEL, Panel, Series, room_for_labels
from benchmark_report import (
    Cell,
    Report,
    all_heads,
    first_of_ours,
    heads,
    is_ours,
    machine,
    measured,
    operators,
    seconds,
    times,
)
from svg_chart import INK, OURS, PALETTE, Chart, Point, width_of

WIDTH, TOP, ROW = 840, 54, 30  # pixels


def throughput(report: Report, scenario: str) -> str:
    """Draw how many tokens per second each encoder takes in bulk, as bars."""
    cells = sorted(measured(report, scenario).items(), key=lambda item: -item[1]["tokens_per_s"])
    if not cells:
        return ""
    work = "{n_texts} texts, {n_tokens:,} tokens".format(**report["scenarios"][scenario])
    title = f"Tokens per second, {heads(report['scenarios'][scenario]['outputs'])}"
    chart = Chart(WIDTH, TOP + ROW * len(cells), title, f"{work}; {machine(report)}")
    first = first_of_ours(report)
    words = [
        f"{first} is {times(cell['times_first']['median'])} as fast" if label != first else "" for label, cell in cells
    ]
    left = max(width_of(label) for label, _ in cells) + 8
    rooms = [WIDTH - left - width_of(f"9,999   {said}") for said in words]
    scale = min(room / cell["tokens_per_s"] for room, (_, cell) in zip(rooms, cells, strict=True))
    for row, ((label, cell), said) in enumerate(zip(cells, words, strict=True)):
        y, rate = TOP + ROW * row, f"{cell['tokens_per_s']:,.0f}"
        end = left + scale * cell["tokens_per_s"]
        look: dict[str, Any] = {"is_bold": True, "colour": OURS} if is_ours(report, label) else {}
        chart.text((left - 8, y + 16), label, anchor="end", **look)
        chart.box((left, y), end - left, 23, colour=look.get("colour", INK), opacity=1 if label == first else 0.75)
        chart.text((end + 7, y + 16), rate, **look)
        chart.text((end + 16 + width_of(rate), y + 16), said)
    return chart.svg


def latency(report: Report) -> str:
    """Draw how long one text takes by its length: in seconds, and beside ours."""
    names = _single_lengths(report)
    absolute = _series(report, names, lambda cell: cell["p50_s"])
    relative = _series(report, names, lambda cell: cell.get("times_first", {}).get("median"))
    if len(names) < 2 or not relative:
        return ""
    chart = Chart(WIDTH, 420, "Time for one text by its length", f"medians, {_of_all(report)}")
    right = WIDTH - room_for_labels(relative)
    middle, x = (right - 8) / 2, (min(names), max(names))
    panel = Panel(chart, (56, middle), (84, 374), x, _limits(absolute))
    panel.frame("time", list(names), panel.y.ticks((1,)), _tick)
    panel.lines(report, absolute)
    low, high = _limits(relative)
    panel = Panel(chart, (middle + 50, right), (84, 374), x, (min(low, 0.8), max(high, 1.25)))
    ticks = panel.y.ticks((1, 1.5, 2, 3, 5, 7))
    panel.frame(f"times as long as {first_of_ours(report)}", list(names), ticks, "{:g}x".format)
    panel.lines(report, relative)
    panel.labels(report, relative)
    chart.text(((56 + right) / 2, 412), "tokens in the text", anchor="middle")
    return chart.svg


def batches(report: Report) -> str:
    """Draw tokens per second by the number of texts at once: a panel for each length."""
    shapes = {name: found for name, found in report["scenarios"].items() if found["group"] == "shapes"}
    by_length = {}
    for n_tokens in sorted({shape["lengths"][0] for shape in shapes.values()}):
        names = {shape["n_texts"]: name for name, shape in shapes.items() if shape["lengths"][0] == n_tokens}
        if series := _series(report, names, lambda cell: cell["tokens_per_s"]):
            by_length[n_tokens] = series
    if not by_length:
        return ""
    chart = Chart(WIDTH, 400, "Tokens per second by batch and length", _of_all(report))
    y = _limits({f"{n}, {label}": line for n, series in by_length.items() for label, line in series.items()})
    last = by_length[max(by_length)]
    right = WIDTH - room_for_labels(last)
    width = (right - 48 + 24) / len(by_length)
    for i, (n_tokens, series) in enumerate(by_length.items()):
        left, counts = 48 + i * width, sorted({x for line in series.values() for x in line})
        few, many = (counts[0] / 1.3, counts[-1] * 1.3) if len(counts) > 1 else (counts[0] / 2, counts[0] * 2)
        panel = Panel(chart, (left, left + width - 24), (84, 354), (few, many), y)
        panel.frame(f"texts of {n_tokens} tokens", counts, panel.y.ticks(), "{:,.0f}".format if i == 0 else None)
        panel.lines(report, series)
        if series is last:
            panel.labels(report, series)
    chart.text(((48 + right) / 2, 392), "texts at once", anchor="middle")
    return chart.svg


def breakdown(report: Report) -> str:
    """Draw which operators an encoder's time goes to, a bar for each scenario."""
    spent = {label: operators(report, label) for label in report["encoders"]}
    rows = {f"{label}, {name}": parts for label, found in spent.items() for name, parts in found.items()}
    if not rows:
        return ""
    colours = _colours_of_parts(list(rows.values()))
    rows = {words: _merge(parts, colours) for words, parts in rows.items()}
    legend = list(_legend(list(colours)))
    top, left = TOP + 22 * (1 + legend[-1][1]) + 4, max(map(width_of, rows)) + 8
    chart = Chart(WIDTH, top + ROW * len(rows), "Where the time goes", _of_all(report))
    for part, line, x in legend:
        chart.box((x, TOP + 22 * line), 12, 12, colour=colours[part])
        chart.text((x + 17, TOP + 11 + 22 * line), part)
    for row, (words, parts) in enumerate(rows.items()):
        y, x, total = top + ROW * row, left, sum(parts.values())
        chart.text((left - 8, y + 16), words, anchor="end")
        for part in (part for part in colours if parts.get(part)):
            width = (WIDTH - left - width_of(" 9,999 ms")) * parts[part] / total
            chart.box((x, y), max(width - 1, 0.5), 23, colour=colours[part])  # a gap between two
            if width > 32:
                share = f"{parts[part] / total:.0%}"
                chart.text((x + width / 2, y + 16), share, anchor="middle", colour="#ffffff", size=LABEL)
            x += width
        chart.text((x + 7, y + 16), seconds(total))
    return chart.svg


def _single_lengths(report: Report) -> dict[float, str]:
    """Return the scenarios of one text at a time with all heads, by the text's length."""
    names: dict[float, str] = {}
    for name, scenario in report["scenarios"].items():
        is_alone = scenario["n_clients"] == 1 and (scenario["is_single"] or scenario["n_texts"] == 1)
        if is_alone and scenario["outputs"] == all_heads(report) and len(set(scenario["lengths"])) == 1:
            names.setdefault(scenario["lengths"][0], name)
    return dict(sorted(names.items()))


def _series(report: Report, names: dict[float, str], value: Callable[[Cell], float | None]) -> Series:
    """Return a value of each encoder by x, where it was measured."""
    found: Series = {}
    for x, name in names.items():
        for label, cell in measured(report, name).items():
            if y := value(cell):
                found.setdefault(label, {})[x] = y
    return found


def _limits(series: Series) -> Point:
    """Return what all values lie in, with some room."""
    values = [y for line in series.values() for y in line.values()]
    return min(values) / 1.15, max(values) * 1.15


def _tick(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{1e3 * value:g} ms"


def _of_all(report: Report) -> str:
    return f"{heads(all_heads(report))}; {machine(report)}"


def _colours_of_parts(rows: Sequence[dict[str, float]]) -> dict[str, str]:
    """Return a colour for each of the largest parts of the time, the largest first; grey for "other", the last."""
    shares: dict[str, float] = {}
    for parts in rows:
        for part, spent in parts.items():
            shares[part] = shares.get(part, 0.0) + spent / sum(parts.values())
    order = sorted(shares.keys() - {"other"}, key=lambda part: (-shares[part], part))
    return dict(zip(order, (OURS, *PALETTE), strict=False)) | {"other": INK}


def _merge(parts: dict[str, float], colours: dict[str, str]) -> dict[str, float]:
    """Add what has no colour of its own to "other"."""
    kept = {part: spent for part, spent in parts.items() if part in colours and part != "other"}
    return kept | {"other": sum(parts.values()) - sum(kept.values())}


def _legend(parts: Sequence[str]) -> Iterator[tuple[str, int, float]]:
    """Yield each part with the line and the place of its entry."""
    line, x = 0, 0.0
    for part in parts:
        width = 34 + width_of(part)
        if x + width > WIDTH:
            line, x = line + 1, 0.0
        yield part, line, x
        x += width


PLOTS: dict[str, Callable[[Report], str]] = {
    "throughput": partial(throughput, scenario="mix"),
    "throughput_dense": partial(throughput, scenario="mix dense"),
    "latency": latency,
    "batches": batches,
    "breakdown": breakdown,
}
"""Each plot by its name: a function that returns the SVG, or "" where the report lacks what is drawn."""
