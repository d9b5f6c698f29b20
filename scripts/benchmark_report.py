"""What the tables and the plots read from a report of `bgem3 bench`, and how they write numbers."""

from collections.abc import Sequence
from typing import Any

Report = dict[str, Any]
Cell = dict[str, Any]  # what an encoder took in a scenario


def is_ours(report: Report, label: str) -> bool:
    """Tell whether an encoder is bgem3."""
    return bool(report["encoders"][label]["kind"] == "bgem3")


def first_of_ours(report: Report) -> str:
    """Return the encoder that the others are compared with."""
    first: str = next(label for label in report["encoders"] if is_ours(report, label))
    return first


def measured(report: Report, scenario: str) -> dict[str, Cell]:
    """Return what each encoder took in a scenario, where it ran; nothing of encoders that broke later."""
    encoders = {label: encoder for label, encoder in report["encoders"].items() if "not_run" not in encoder}
    cells = {label: encoder["scenarios"].get(scenario, {"not_run": ""}) for label, encoder in encoders.items()}
    return {label: cell for label, cell in cells.items() if "not_run" not in cell}


def operators(report: Report, label: str) -> dict[str, dict[str, float]]:
    """Return the seconds of an encoder's operators by scenario, where they were measured."""
    found = report.get("breakdown", {}).get(label, {})
    return {} if "not_run" in found else {name: spent for name, spent in found.items() if "not_run" not in spent}


def fastest(report: Report, scenario: str) -> list[str]:
    """List the encoders: our first one, then those that ran a scenario, the fastest first, then the others."""
    cells, first = measured(report, scenario), first_of_ours(report)
    rates = {label: cell["tokens_per_s"] for label, cell in cells.items()}
    return sorted(report["encoders"], key=lambda label: (label != first, -rates.get(label, 0.0)))


def reasons(report: Report, scenarios: Sequence[str]) -> list[str]:
    """Say which encoders did not run in some or all of these scenarios, and why."""
    said = []
    for label, encoder in report["encoders"].items():
        if "not_run" in encoder:
            said.append(f"{label} did not run: {encoder['not_run']}")
            continue
        by_reason: dict[str, list[str]] = {}
        for name in scenarios:
            cell = encoder["scenarios"].get(name, {"not_run": _absence(report, label, name)})
            if "not_run" in cell:
                by_reason.setdefault(cell["not_run"], []).append(name)
        for reason, names in by_reason.items():
            which = "is not here" if len(names) == len(scenarios) else f"did not run {', '.join(names)}"
            said.append(f"{label} {which}: {reason}")
    return said


def _absence(report: Report, label: str, scenario: str) -> str:
    """Say why a report has nothing of an encoder in a scenario."""
    ran = [name for name in report["scenarios"] if label in measured(report, name)]
    given = {output for name in ran for output in report["scenarios"][name]["outputs"]}
    lacking = [output for output in report["scenarios"][scenario]["outputs"] if output not in given]
    return f"it gives no {', no '.join(lacking)}" if given and lacking else "not measured"


def all_heads(report: Report) -> list[str]:
    """Return the outputs of the scenarios with the most."""
    return max((scenario["outputs"] for scenario in report["scenarios"].values()), key=len)


def heads(outputs: Sequence[str]) -> str:
    """Name outputs in a word or two."""
    return f"{outputs[0]} alone" if len(outputs) == 1 else "all heads"


def machine(report: Report) -> str:
    """Name the processor and the number of threads."""
    environment = report["environment"]
    return f"{environment['processor']}, {environment['n_threads']} threads"


def seconds(value: float) -> str:
    """Return a time with its unit, in three digits.

    >>> seconds(0.064), seconds(5.5), seconds(1234.5)
    ('64.0 ms', '5.50 s', '1,234 s')
    """
    number, unit = (1e3 * value, "ms") if value < 0.9995 else (value, "s")
    return f"{digits(number)} {unit}"


def times(value: float) -> str:
    """Return how many times, in two digits.

    >>> times(1.04), times(0.853), times(23.6)
    ('1.0x', '0.85x', '24x')
    """
    return f"{digits(value, 2)}x"


def digits(value: float, n_digits: int = 3) -> str:
    """Return a number in so many digits, or as a whole number with all of its digits.

    >>> digits(0.98765), digits(1.2), digits(12345.6)
    ('0.988', '1.20', '12,346')
    """
    if value >= 10 ** (n_digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{n_digits}g}".rstrip(".")
