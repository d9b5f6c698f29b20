"""Comparison: what changed between two reports of `bgem3 bench`, judged by the noise of both and by the machine."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bgem3.runtime.bench_change import COLD_START, PEAK_MEMORY, Change, Rate, uncertainty
from bgem3.runtime.bench_report import is_missing, not_run

Report = Mapping[str, Any]

THRESHOLD = 0.05  # relative; a smaller change is none
BUSY = 0.1  # CPUs used by other processes, above which a report says little
WORK = ("outputs", "n_texts", "n_tokens", "n_clients", "is_single")  # of scenarios, to be the same
SETTINGS = ("model", "weights", "passages", "source", "quick")
MACHINE = ("device", "processor", "n_threads", "platform")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two reports side by side.

    Attributes
    ----------
    changes : of each encoder and scenario that both reports measured
    rates : of matrix products, by precision
    warnings : what makes the reports hard to compare: other machines, settings, versions, a busy machine
    lost : what bgem3 ran in the old report and could not run in the new one, with the reason
    unmatched : what else only one of them measured
    """

    changes: list[Change]
    rates: dict[str, Rate]
    warnings: list[str]
    lost: list[str]
    unmatched: list[str]

    @property
    def ours(self) -> list[Change]:
        return [change for change in self.changes if change.is_ours]

    @property
    def control(self) -> list[Change]:
        """Return the changes of other encoders: what of ours they share is not our doing."""
        return [change for change in self.changes if not change.is_ours]

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.ours if change.verdict == "worse"]

    @property
    def improvements(self) -> list[Change]:
        return [change for change in self.ours if change.verdict == "better"]

    def described(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        judged = [
            asdict(change) | {"ratio": change.ratio, "own_ratio": change.own_ratio, "verdict": change.verdict}
            for change in self.changes
        ]
        return asdict(self) | {"changes": judged}


def compare_reports(old: Report, new: Report, *, threshold: float = THRESHOLD) -> Comparison:
    """Compare what each encoder took in each scenario, its cold start and its peak memory.

    A change counts where it is larger than the threshold and than the noise, which is two standard errors of the ratio
    of both medians. The machine's own change, as its matrix products tell it, is taken out of scenarios first.

    Raises
    ------
    ValueError
        If one of them is not a report with encoders and scenarios.
    """
    for which, report in (("old", old), ("new", new)):
        if missing := [part for part in ("environment", "encoders", "scenarios") if part not in report]:
            raise ValueError(
                f"the {which} file is no report of `bgem3 bench` that can be compared: it has no {', '.join(missing)}"
            )
    rates = dict(_rates(old.get("matrix_rate", {}), new.get("matrix_rate", {})))
    names = [name for name in _shared(old["scenarios"], new["scenarios"]) if not _other_work(old, new, name)]
    changes: list[Change] = []
    lost: list[str] = []
    unmatched = [*_only_in_one(old, new)]
    for label in _shared(old["encoders"], new["encoders"]):
        before, after = old["encoders"][label], new["encoders"][label]
        for which, gap in _gaps(label, before, after, names):
            (lost if which == "new" and is_ours(before) else unmatched).append(gap)
        if not is_missing(before) and not is_missing(after):
            shared = {"encoder": label, "is_ours": is_ours(before), "threshold": threshold}
            rate = rates.get(before["precision"], rates.get("fp32"))  # fp16 weights, float32 products
            changes += _scenario_changes(before["scenarios"], after["scenarios"], names, rate, shared)
            changes += _footprint_changes(before, after, shared)
    warnings = [*_warnings(old, new, rates)]
    return Comparison(changes=changes, rates=rates, warnings=warnings, lost=lost, unmatched=unmatched)


def is_ours(encoder: Mapping[str, Any]) -> bool:
    """Tell whether an encoder of a report is bgem3."""
    return bool(encoder["kind"] == "bgem3")


def _scenario_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str], rate: Rate | None, shared: dict[str, Any]
) -> Iterator[Change]:
    """Yield an encoder's changes in the scenarios that both reports measured."""
    machine = rate.slowdown if rate else 1.0
    of_machine = [rate.uncertainty] if rate and machine != 1.0 else []
    for name in names:
        before, after = (cells.get(name, not_run("")) for cells in (old, new))
        if is_missing(before) or is_missing(after):
            continue
        errors = [uncertainty(cell["seconds"]) for cell in (before, after)]
        yield Change(
            measure=name,
            old=before["p50_s"],
            new=after["p50_s"],
            old_tokens_per_s=before["tokens_per_s"],
            new_tokens_per_s=after["tokens_per_s"],
            noise=2 * math.hypot(*errors, *of_machine),
            machine=machine,
            **shared,
        )


def _footprint_changes(old: Mapping[str, Any], new: Mapping[str, Any], shared: dict[str, Any]) -> Iterator[Change]:
    """Yield an encoder's changes in cold start and in memory."""
    starts = [encoder.get("cold_start_s") or [] for encoder in (old, new)]
    if all(starts):
        noise = 2 * math.hypot(*(uncertainty([[seconds] for seconds in times]) for times in starts))
        before, after = map(statistics.median, starts)
        yield Change(measure=COLD_START, old=before, new=after, noise=noise, **shared)
    if old.get("peak_rss_bytes") and new.get("peak_rss_bytes"):
        sizes = {"old": old["peak_rss_bytes"], "new": new["peak_rss_bytes"]}
        yield Change(measure=PEAK_MEMORY, noise=0.0, **sizes, **shared)


def _shared(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [name for name in new if name in old]


def _other_work(old: Report, new: Report, name: str) -> str:
    """Say how one scenario differs in two reports; "" where it is the same."""
    before, after = old["scenarios"][name], new["scenarios"][name]
    differing = [field for field in WORK if before.get(field) != after.get(field)]
    return ", ".join(f"{field} {before.get(field)} and {after.get(field)}" for field in differing)


def _only_in_one(old: Report, new: Report) -> Iterator[str]:
    """Say which encoders and scenarios have no counterpart."""
    for part in ("encoders", "scenarios"):
        for which, report, other in (("old", old, new), ("new", new, old)):
            if names := [name for name in report[part] if name not in other[part]]:
                yield f"{part} in the {which} report alone: {', '.join(names)}"
    for name in _shared(old["scenarios"], new["scenarios"]):
        if difference := _other_work(old, new, name):
            yield f"{name} is not the same work in both: {difference}"


def _gaps(
    label: str, old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield what of an encoder ran in one report alone: which report lacks it, and that with the reason, in words."""
    pairs = [(label, old, new)]
    if not is_missing(old) and not is_missing(new):
        nothing = not_run("no such measurement")
        cells = ((encoder["scenarios"].get(name, nothing) for encoder in (old, new)) for name in names)
        pairs = [(f"{label}, {name}", *pair) for name, pair in zip(names, cells, strict=True)]
    for name, before, after in pairs:
        if is_missing(before) != is_missing(after):
            which, reason = ("old", before) if is_missing(before) else ("new", after)
            yield which, f"{name}: not run in the {which} report: {reason['not_run']}"


def _rates(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Rate]]:
    """Yield the rate of matrix products by precision, where both reports have it."""
    for precision in _shared(old, new):
        cells = old[precision], new[precision]
        if not any(is_missing(cell) for cell in cells):
            before, after = (cell["flop_per_s"] for cell in cells)
            error = math.hypot(*(uncertainty([cell.get("seconds", ())]) for cell in cells))
            yield precision, Rate(old=before, new=after, uncertainty=error)


def _warnings(old: Report, new: Report, rates: Mapping[str, Rate]) -> Iterator[str]:
    """Say what makes two reports hard to compare."""
    for part, names, what in (("environment", MACHINE, "machines"), ("settings", SETTINGS, "settings")):
        before, after = old.get(part, {}), new.get(part, {})
        for name in names:
            is_made = name == "source" and before.get("weights") == after.get("weights") == "random"
            if before.get(name) != after.get(name) and not is_made:
                yield f"the {what} differ: {name} {before.get(name)} and {after.get(name)}"
    for precision, rate in rates.items():
        if rate.slowdown != 1.0:
            yield (
                f"matrix products in {precision} run at {rate.new / rate.old:.2f} of the old rate "
                f"({rate.old / 1e9:,.0f} and {rate.new / 1e9:,.0f} GFLOP/s): taken out of the scenarios' ratios"
            )
    for label in _shared(old["encoders"], new["encoders"]):
        before, after = (report["encoders"][label].get("versions", {}) for report in (old, new))
        for name in _shared(before, after):
            if before[name] != after[name]:
                yield f"{label}: {name} {before[name]} and {after[name]}"
    for which, report in (("old", old), ("new", new)):
        others = max(report.get("cpus_used_by_others", ()), default=0.0)
        if others > BUSY:
            yield f"other processes used up to {others:.1f} CPUs while the {which} report was made"
