"""Read reports of `python -m benchmarks run`, and turn seconds into medians, rates and ratios."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
FIRST = "cpu"  # the report that the README quotes, and that the page begins with


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What an encoder took in a scenario, over all calls of all turns.

    Attributes
    ----------
    p50 : seconds of a call, the median
    tokens_per_s : by the median call, or by the clock on the wall where several clients call
    turns : the median of each turn, in seconds
    """

    p50: float
    tokens_per_s: float
    turns: list[float]


def read_reports(folder: Path = RESULTS) -> dict[str, Report]:
    """Return the comparisons of encoders in a folder by their files' names, the one that the README quotes first."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    names = sorted((name for name in found if "encoders" in found[name]), key=lambda name: name != FIRST)
    return {name: found[name] for name in names}


def first_encoder(report: Report) -> str:
    """Return the encoder that the others are compared with: bgem3 in int8, where it was measured."""
    return str(next(label for label, found in report["encoders"].items() if found["kind"] == "bgem3"))


def timings(report: Report, scenario: str) -> dict[str, Timing]:
    """Return what each encoder took in a scenario, where it ran; nothing of encoders that failed later."""
    described, found = report["scenarios"].get(scenario, {}), {}
    for label, encoder in report["encoders"].items():
        cell = encoder["scenarios"].get(scenario, {})
        if "seconds" not in cell or "not_run" in encoder:
            continue
        calls = [seconds for turn in cell["seconds"] for seconds in turn]
        p50 = statistics.median(calls)
        n_tokens = described["n_tokens"] / (described["n_texts"] if described["is_single"] else 1)
        per_call = sum(cell["wall_s"]) / len(calls) if described["n_clients"] > 1 else p50
        found[label] = Timing(
            p50=p50,
            tokens_per_s=n_tokens / per_call,
            turns=[statistics.median(turn) for turn in cell["seconds"]],
        )
    return found


def ratios(report: Report, scenario: str) -> dict[str, list[float]]:
    """Return how many times as long as the first encoder every other took, turn by turn."""
    found = timings(report, scenario)
    first = found.pop(first_encoder(report), None)
    pairs = {label: zip(timing.turns, first.turns, strict=False) for label, timing in found.items() if first}
    return {label: [theirs / ours for theirs, ours in turns] for label, turns in pairs.items()}


def fastest(report: Report, scenarios: Iterable[str]) -> list[str]:
    """List the encoders that ran any of these scenarios: the first one, then by their rates in the last of them."""
    found = [timings(report, name) for name in scenarios]
    rates = {label: timing.tokens_per_s for label, timing in (found[-1].items() if found else ())}
    ran = [label for label in report["encoders"] if any(label in each for each in found)]
    return sorted(ran, key=lambda label: (label != first_encoder(report), -rates.get(label, 0.0)))


def machine(report: Report) -> str:
    """Name the processor and the number of threads."""
    environment = report["environment"]
    return f"{environment['processor']}, {environment['n_threads']} threads"


def failures(report: Report) -> list[str]:
    """Say which encoders did not run, or not everywhere, and why."""
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
