"""A small report of `bgem3 bench`, made by hand: what is made of reports is tested on it."""

import statistics
from typing import Any

ALL, DENSE = ["dense", "sparse", "multivector"], ["dense"]
SCENARIOS: dict[str, tuple[str, list[int], list[str], int]] = {
    "query 8": ("query", [8], ALL, 1),
    "query 16": ("query", [16], ALL, 1),
    "query 16 dense": ("query", [16], DENSE, 1),
    "clients 4": ("clients", [16] * 4, ALL, 4),
    "1x128": ("shapes", [128], ALL, 1),
    "8x16": ("shapes", [16] * 8, ALL, 1),
    "8x128": ("shapes", [128] * 8, ALL, 1),
    "rerank 20": ("rerank", [60] * 20, ALL, 1),
    "mix": ("bulk", [20, 100, 380], ALL, 1),
    "mix dense": ("bulk", [20, 100, 380], DENSE, 1),
    "long 2048": ("long", [2048], ALL, 1),
}
"""Group, lengths, outputs and clients of each scenario."""

TOKENS_PER_S: dict[tuple[str, str], dict[str, float]] = {
    ("bgem3", "int8"): dict(zip(SCENARIOS, (160, 250, 260, 300, 400, 390, 450, 420, 430, 440, 350), strict=True)),
    ("bgem3", "fp32"): dict(zip(SCENARIOS, (110, 160, 165, 170, 230, 240, 260, 250, 253, 255, 200), strict=True)),
    ("OpenVINO", "int8"): dict(zip(SCENARIOS, (150, 320, 330, 200, 240, 230, 260, 215, 215, 220, 180), strict=True)),
    ("TEI", "fp32"): {"query 16 dense": 140, "mix dense": 200},
}
ABSENT = {("TEI", "fp32"): "gives dense vectors alone", ("OpenVINO", "int8"): "time limit"}
WHOLLY_ABSENT = ("bge-m3-lite", "fp16", "it needs a GPU")


def sample_report() -> dict[str, Any]:
    """Return a report of two encoders of ours, two peers, and one that could not run."""
    encoders = {f"{label} {precision}": _encoder(label, precision) for label, precision in TOKENS_PER_S}
    encoders["OpenVINO int8"]["scenarios"]["long 2048"] = {"not_run": "time limit"}
    label, precision, reason = WHOLLY_ABSENT
    encoders[f"{label} {precision}"] = {"kind": "lite", "label": label, "precision": precision, "not_run": reason}
    groups = {"products": 0.7, "attention": 0.2, "LayerNorm": 0.06, "other": 0.04}
    return {
        "environment": {
            "device": "cpu",
            "processor": "A Processor",
            "n_threads": 2,
            "versions": {"bgem3": "0.1.0", "onnxruntime": "1.27.0"},
        },
        "settings": {
            "model": {"n_layers": 24, "hidden_size": 1024},
            "source": "random",
            "passages": "en.json",
            "weights": "random",
            "n_turns": 3,
            "quick": False,
        },
        "matrix_rate": {
            "fp32": {"flop_per_s": 180e9, "seconds": [0.048, 0.0481, 0.0479]},
            "int8": {"flop_per_s": 340e9, "seconds": [0.025, 0.0251, 0.0249]},
        },
        "cpus_used_by_others": [0.01, 0.02, 0.01],
        "scenarios": {name: _scenario(name, *fields) for name, fields in SCENARIOS.items()},
        "encoders": encoders,
        "breakdown": {"bgem3 int8": {"query 16": {k: 0.06 * v for k, v in groups.items()}, "mix": groups}},
        "failed": [],
        "seconds": 100.0,
    }


def set_seconds(report: dict[str, Any], encoder: str, scenario: str, turns: list[list[float]]) -> None:
    """Make a report say that an encoder took these seconds for a scenario's calls."""
    calls = [seconds for turn in turns for seconds in turn]
    cell = report["encoders"][encoder]["scenarios"][scenario]
    n_tokens = report["scenarios"][scenario]["n_tokens"]
    cell["seconds"] = turns
    cell |= {"p50_s": statistics.median(calls), "p95_s": max(calls), "n_calls": len(calls)}
    cell["tokens_per_s"] = n_tokens / cell["p50_s"]


def _scenario(name: str, group: str, lengths: list[int], outputs: list[str], n_clients: int) -> dict[str, Any]:
    return {
        "title": f"the scenario {name}",
        "group": group,
        "outputs": outputs,
        "n_texts": len(lengths),
        "n_tokens": sum(lengths),
        "lengths": lengths,
        "flop": 600_000_000 * sum(lengths),
        "n_clients": n_clients,
        "is_single": len(lengths) == 1,
    }


def _encoder(label: str, precision: str) -> dict[str, Any]:
    rates = TOKENS_PER_S[label, precision]
    reason = ABSENT.get((label, precision), "")
    return {
        "kind": label.lower(),
        "label": label,
        "precision": precision,
        "versions": {label.lower(): "1.2.3"},
        "disk_bytes": 570_000_000,
        "cold_start_s": [1.5, 1.6, 1.55] if label == "bgem3" else [6.1, 6.0, 6.2],
        "import_s": [0.3, 0.3, 0.3],
        "load_s": [1.0, 1.0, 1.0],
        "loaded_rss_bytes": 700_000_000,
        "peak_rss_bytes": 820_000_000 if label == "bgem3" else 4_900_000_000,
        "agreement": {"dense_min_cosine": 0.9991},
        "scenarios": {
            name: _cell(name, rates[name], precision) if name in rates else {"not_run": reason} for name in SCENARIOS
        },
    }


def _cell(name: str, tokens_per_s: float, precision: str) -> dict[str, Any]:
    """Return what three turns of two calls give, all within 1 % of one another."""
    lengths = SCENARIOS[name][1]
    seconds = sum(lengths) / tokens_per_s
    share = 600_000_000 * tokens_per_s / (340e9 if precision == "int8" else 180e9)
    times = TOKENS_PER_S["bgem3", "int8"][name] / tokens_per_s
    return {
        "seconds": [[0.995 * seconds, seconds], [seconds, 1.005 * seconds], [seconds, seconds]],
        "n_calls": 6,
        "p50_s": seconds,
        "p95_s": 1.005 * seconds,
        "spread": 0.001,
        "tokens_per_s": tokens_per_s,
        "flop_per_s": 600_000_000 * tokens_per_s,
        "share_of_matrix_rate": share,
        "times_first": {"median": times, "lowest": 0.99 * times, "highest": 1.01 * times},
        "batch_size": 8,
        "variant": "default",
    }
