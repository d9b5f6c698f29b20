"""The plots of a report of `bgem3 bench`: throughput, latency by length, throughput by batch, time by operator."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmark_report import Cell, Report, all_heads, first_of_ours, heads, is_ours, machine, measured, seconds, times
from svg_chart import INK, OURS, PALETTE, Chart, LogScale, Point, apart, width_of

Series = dict[str, dict[float, float]]  # by encoder: y by x

WIDTH, TOP, ROW, LABEL = 840, 54, 30, 12  # pixels; the last is the font size of labels at the ends of lines
KEY = 34  # pixels between a panel and those labels
DASHES = {"int8": "", "fp16": "7 3", "bf16": "7 3 2.5 3", "fp32": "2.5 2.5"}


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
    right = WIDTH - _room_for_labels(relative)
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
    right = WIDTH - _room_for_labels(last)
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
    found = report.get("breakdown", {})
    rows = {f"{label}, {name}": parts for label, by_name in found.items() for name, parts in by_name.items()}
    rows = {words: parts for words, parts in rows.items() if "not_run" not in parts and sum(parts.values())}
    if not rows:
        return ""
    colours = _colours_of_parts(list(rows.values()))
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
            chart.box((x, y), max(width - 1, 0.5), 23, colour=colours[part])
            if width > 32:
                share = f"{parts[part] / total:.0%}"
                chart.text((x + width / 2, y + 16), share, anchor="middle", colour="#ffffff", size=LABEL)
            x += width
        chart.text((x + 7, y + 16), seconds(total))
    return chart.svg


class Panel:
    """A pair of logarithmic axes in a chart, from left to right and from top to bottom."""

    def __init__(self, chart: Chart, across: Point, down: Point, x: Point, y: Point) -> None:
        self.chart = chart
        self.x = LogScale(low=x[0], high=x[1], start=across[0] + 6, end=across[1] - 6)
        self.y = LogScale(low=y[0], high=y[1], start=down[1], end=down[0])
        self._across, self._down = across, down

    def frame(
        self, title: str, x_ticks: Sequence[float], y_ticks: Sequence[float], show: Callable[[float], str] | None
    ) -> None:
        """Draw the title and the axes' ticks."""
        (left, right), (top, bottom) = self._across, self._down
        self.chart.text((left, top - 12), title)
        for value in y_ticks:
            self.chart.line([(left, self.y(value)), (right, self.y(value))], opacity=0.3)
            if show:
                self.chart.text((left - 6, self.y(value) + 4), show(value), anchor="end", size=LABEL)
        for value in x_ticks:
            self.chart.line([(self.x(value), bottom), (self.x(value), bottom + 4)])
            self.chart.text((self.x(value), bottom + 18), f"{value:g}", anchor="middle", size=LABEL)
        self.chart.line([(left, bottom), (right, bottom)])

    def lines(self, report: Report, series: Series) -> None:
        """Draw a line for each encoder; our first last, above the others."""
        first = first_of_ours(report)
        for label in sorted(series, key=lambda label: (label == first, is_ours(report, label))):
            colour, dash = _style(report, label)
            points = [(self.x(x), self.y(y)) for x, y in sorted(series[label].items())]
            width = 3 if label == first else 1.6
            self.chart.line(points, colour=colour, width=width, dash=dash)
            for point in points:
                self.chart.dot(point, colour=colour, radius=width + 0.6)

    def labels(self, report: Report, series: Series) -> None:
        """Write each encoder's name to the right, as near to its line's end as the others allow."""
        ends = {label: max(line.items()) for label, line in series.items()}
        wanted, start = [self.y(y) for _, y in ends.values()], self._across[1] + 8
        places = apart(wanted, 17, self._down[0], self._down[1])
        for (label, (x, _)), y, place in zip(ends.items(), wanted, places, strict=True):
            colour, dash = _style(report, label)
            self.chart.line([(self.x(x) + 6, y), (start, place)], colour=colour, opacity=0.7)
            self.chart.line([(start, place), (start + 20, place)], colour=colour, dash=dash, width=2)
            at, is_bold = (self._across[1] + KEY, place + 4), is_ours(report, label)
            self.chart.text(at, label, colour=colour, size=LABEL, is_bold=is_bold)


def _style(report: Report, label: str) -> tuple[str, str]:
    """Return an encoder's colour, which is its kind's, and dashes, which are its precision's."""
    encoder = report["encoders"][label]
    compared = [name for name, scenario in report["scenarios"].items() if scenario["outputs"] == all_heads(report)]
    ran = {name for scenario in compared for name in measured(report, scenario)}
    kinds = list(dict.fromkeys(found["kind"] for name, found in report["encoders"].items() if name in ran))
    kinds = [kind for kind in kinds if kind != "bgem3"]
    colour = OURS if is_ours(report, label) else PALETTE[kinds.index(encoder["kind"]) % len(PALETTE)]
    return colour, DASHES.get(encoder["precision"], "")


def _room_for_labels(series: Series) -> float:
    return KEY + max(width_of(label, size=LABEL) for label in series)


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
    """Return a colour for each part of the time, the largest first; grey for "other", the last."""
    shares: dict[str, float] = {}
    for parts in rows:
        for part, spent in parts.items():
            shares[part] = shares.get(part, 0.0) + spent / sum(parts.values())
    order = sorted(shares, key=lambda part: (part == "other", -shares[part]))
    colours = (OURS, *PALETTE)
    return {part: INK if part == "other" else colours[i % len(colours)] for i, part in enumerate(order)}


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
