"""comparison_table: what changed between two reports of `bgem3 bench`, to be read."""

import statistics
from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from bgem3.runtime.bench_change import PEAK_MEMORY, Change
from bgem3.runtime.bench_compare import Comparison


def comparison_table(comparison: Comparison) -> Table:
    """Return a comparison as a table: our encoders' changes, the control in short, and below them what was found."""
    table = Table(title=_headline(comparison), caption="\n".join(_notes(comparison)) or None, caption_justify="left")
    is_adjusted = any(change.machine != 1.0 for change in comparison.changes)
    names = ["encoder", "measured", "old", "new", "tokens/s", "takes", "machine aside", "noise", ""]
    for name in names if is_adjusted else [name for name in names if name != "machine aside"]:
        table.add_column(name, justify="left" if name in ("encoder", "measured") else "right")
    for changes in _by_encoder(comparison.ours):
        for change in changes:
            table.add_row(*_row(change, is_adjusted))
        table.add_section()
    for changes in _by_encoder(comparison.control):
        timed = [change for change in changes if change.measure != PEAK_MEMORY]
        blanks = [""] * (3 + is_adjusted)
        ratios = _span([change.own_ratio for change in timed])
        table.add_row(escape(timed[0].encoder), f"all {len(timed)} (control)", *blanks, ratios, style="dim")
        for change in (change for change in timed if change.verdict):
            table.add_row(*_row(change, is_adjusted), style="dim")
    return table


def _by_encoder(changes: Sequence[Change]) -> Iterator[list[Change]]:
    """Yield the changes of each encoder whose time was measured."""
    for encoder in dict.fromkeys(change.encoder for change in changes if change.measure != PEAK_MEMORY):
        yield [change for change in changes if change.encoder == encoder]


def _row(change: Change, is_adjusted: bool) -> list[str]:
    """Return a change as the cells of a table."""
    rates = change.old_tokens_per_s, change.new_tokens_per_s
    rate = "" if None in rates else " → ".join(f"{value:,.0f}" for value in rates if value is not None)
    colour = {"worse": "red", "better": "green", "": ""}[change.verdict]
    cells = [escape(change.encoder), change.measure, *(_amount(change, value) for value in (change.old, change.new))]
    cells += [rate, f"{change.ratio:.2f}x", *([f"{change.own_ratio:.2f}x"] if is_adjusted else [])]
    return [*cells, f"±{change.noise:.0%}", f"[{colour}]{change.verdict}[/]" if colour else ""]


def _amount(change: Change, value: float) -> str:
    if change.measure == PEAK_MEMORY:
        return f"{value / 1e9:.2f} GB"
    if value >= 100:
        return f"{value:,.0f} s"
    number, unit = (1e3 * value, "ms") if value < 1 else (value, "s")
    return f"{number:#.3g}".rstrip(".") + f" {unit}"


def _headline(comparison: Comparison) -> str:
    counts = f"{len(comparison.regressions)} worse, {len(comparison.improvements)} better"
    ratios = [change.own_ratio for change in comparison.control if change.measure != PEAK_MEMORY]
    control = f"; the control took {_span(ratios)} as long" if ratios else ""
    return f"bgem3: {counts} of {len(comparison.ours)}{control}"


def _span(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def _notes(comparison: Comparison) -> Iterator[str]:
    """Yield what stands below the table."""
    yield from (f"[yellow]warning:[/] {escape(warning)}" for warning in comparison.warnings)
    yield from (f"[red]lost:[/] {escape(gap)}" for gap in comparison.lost)
    yield from map(escape, comparison.unmatched)
