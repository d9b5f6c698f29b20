"""Chart: an SVG drawing that reads well on white and on dark pages, and is the same bytes wherever it is made.

Its background is transparent, its colours stand out from both, its text is text in the reader's own font.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

INK = "#757c85"  # grey: contrast 4 to 1 with white and with GitHub's dark #0d1117
OURS = "#d55e00"
PALETTE = ("#1f7fc0", "#008f68", "#b8609a", "#9a7b00", "#7f6bd6", "#1b8a9a", "#a0653a")
"""Of equal lightness, so that each stands out from both backgrounds; lines differ by dashes and labels, too."""
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
SIZE = 13
LETTER = 0.56  # mean width of a letter, in font sizes: on the wide side
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LogScale:
    """Places values on an axis by their logarithm: from ``low`` at ``start`` to ``high`` at ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where a value is."""
        return self.start + (self.end - self.start) * math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self, steps: Sequence[float] = (1, 2, 5)) -> list[float]:
        """List the round values within: of each power of ten, these multiples."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [step * 10.0**power for power in powers for step in steps]
        return [value for value in values if self.low <= value * 1.0001 and value <= self.high * 1.0001]


class Chart:
    """Collects shapes; ``svg`` is the drawing. Lengths are in pixels, from the top left."""

    def __init__(self, width: float, height: float, title: str, subtitle: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_n(width)}" height="{_n(height)}" '
            f'viewBox="0 0 {_n(width)} {_n(height)}" role="img" font-family="{FONT}" font-size="{SIZE}" fill="{INK}">'
        )
        self._shapes = [f"<title>{escape(title)}</title>"]
        self.text((0, 18), title, size=16, is_bold=True)
        self.text((0, 38), subtitle)

    def text(
        self,
        at: Point,
        words: str,
        *,
        anchor: str = "start",
        colour: str = INK,
        size: float = SIZE,
        is_bold: bool = False,
    ) -> None:
        """Write words whose start, middle or end of the baseline is at a point."""
        x, y = map(_n, at)
        style = f' text-anchor="{anchor}"' if anchor != "start" else ""
        style += f' fill="{colour}"' if colour != INK else ""
        style += f' font-size="{_n(size)}"' if size != SIZE else ""
        style += ' font-weight="600"' if is_bold else ""
        self._shapes.append(f'<text x="{x}" y="{y}"{style}>{escape(words, quote=False)}</text>')

    def line(
        self, points: Sequence[Point], *, colour: str = INK, width: float = 1, dash: str = "", opacity: float = 1
    ) -> None:
        """Draw a line through points."""
        places = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        style = f' stroke-dasharray="{dash}"' if dash else ""
        style += f' opacity="{_n(opacity)}"' if opacity != 1 else ""
        shape = f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{_n(width)}"{style}/>'
        self._shapes.append(shape)

    def dot(self, at: Point, *, colour: str, radius: float) -> None:
        """Draw a filled circle."""
        self._shapes.append(f'<circle cx="{_n(at[0])}" cy="{_n(at[1])}" r="{_n(radius)}" fill="{colour}"/>')

    def box(self, at: Point, width: float, height: float, *, colour: str, opacity: float = 1) -> None:
        """Draw a filled rectangle from its top left."""
        style = f' opacity="{_n(opacity)}"' if opacity != 1 else ""
        size = f'width="{_n(width)}" height="{_n(height)}"'
        self._shapes.append(f'<rect x="{_n(at[0])}" y="{_n(at[1])}" {size} fill="{colour}"{style}/>')

    @property
    def svg(self) -> str:
        return "\n".join([self._head, *self._shapes, "</svg>", ""])


def width_of(words: str, *, size: float = SIZE) -> float:
    """Return about how wide words are; the reader's font is not known."""
    return LETTER * size * len(words)


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places on a line apart, each as little as it takes, so that neighbours are ``gap`` apart, within limits.

    >>> apart([10, 0, 1, 2], 2, -5, 20)
    [10.0, -1.0, 1.0, 3.0]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[tuple[float, int]] = []  # middle and size of what touches
    for i in order:
        middle, size = float(places[i]), 1
        while groups and groups[-1][0] + gap * (groups[-1][1] + size) / 2 > middle:
            before, count = groups.pop()
            middle, size = (before * count + middle * size) / (count + size), count + size
        groups.append((middle, size))
    moved = [middle + gap * (k - (size - 1) / 2) for middle, size in groups for k in range(size)]
    last = len(moved) - 1
    within = [min(max(place, low + gap * k), high - gap * (last - k)) for k, place in enumerate(moved)]
    found = dict(zip(order, within, strict=True))
    return [found[i] for i in range(len(places))]


def _n(value: float) -> str:
    """Return a number as short as it can be."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
