"""Panel: axes of a plot with a line for each encoder."""

from collections.abc import Callable, Sequence

from benchmark_report import Report, all_heads, first_of_ours, is_ours, measured
from svg_chart import OURS, PALETTE, Chart, LogScale, Point, apart, width_of

Series = dict[str, dict[float, float]]  # by encoder: y by x

LABEL = 12  # font size of labels at ticks and at the ends of lines
KEY = 34  # pixels between a panel and the labels of its lines
DASHES = {"int8": "", "fp16": "7 3", "bf16": "7 3 2.5 3", "fp32": "2.5 2.5"}


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
            colour, dash = style_of(report, label)
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
            colour, dash = style_of(report, label)
            self.chart.line([(self.x(x) + 6, y), (start, place)], colour=colour, opacity=0.7)
            self.chart.line([(start, place), (start + 20, place)], colour=colour, dash=dash, width=2)
            at, is_bold = (self._across[1] + KEY, place + 4), is_ours(report, label)
            self.chart.text(at, label, colour=colour, size=LABEL, is_bold=is_bold)


def style_of(report: Report, label: str) -> tuple[str, str]:
    """Return an encoder's colour, which is its kind's, and dashes, which are its precision's."""
    encoder = report["encoders"][label]
    compared = [name for name, scenario in report["scenarios"].items() if scenario["outputs"] == all_heads(report)]
    ran = {name for scenario in compared for name in measured(report, scenario)}
    kinds = list(dict.fromkeys(found["kind"] for name, found in report["encoders"].items() if name in ran))
    kinds = [kind for kind in kinds if kind != "bgem3"]
    colour = OURS if is_ours(report, label) else PALETTE[kinds.index(encoder["kind"]) % len(PALETTE)]
    return colour, DASHES.get(encoder["precision"], "")


def room_for_labels(series: Series) -> float:
    """Return how much a panel's labels take to its right."""
    return KEY + max(width_of(label, size=LABEL) for label in series)
