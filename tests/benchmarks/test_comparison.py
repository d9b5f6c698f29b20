"""Encoders beside each other: which are measured, on what, and what is said where one cannot be."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import comparison, environments, run
from benchmarks.comparison import agreement, choose_encoders
from benchmarks.environments import READY, EncoderError, find_python, run_worker
from benchmarks.peers import PEERS
from benchmarks.workload import NAMES, make_scenario
from bgem3.export.reference import SENTENCES
from bgem3.runtime import BGEM3Model
from bgem3.runtime.bench import ExactTexts

SECONDS = {"bgem3": 1.0, "openvino": 2.0, "flagembedding": 4.0}


class Processes:
    """Answers in place of encoders' processes; ``jobs`` are all that was asked of them."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, dict[str, Any]]] = []
        self.dense = {"bgem3": [1.0, 0.0], "flagembedding": [1.0, 0.0]}
        self.broken = "nothing"

    def __call__(self, peer: Any, _python: str, job: dict[str, Any], *_: Any) -> Iterator[dict[str, Any]]:
        self.jobs.append((peer.name, job))
        memory = {"since_start_s": 3.0, "rss_bytes": 1000, "peak_rss_bytes": 2000}
        if "prepare" in job:
            yield {"disk_bytes": 10, "versions": {}}
            return
        yield {"load_s": 0.25} | memory
        if "check" in job:
            np.savez(job["check"]["path"], dense=[self.dense[peer.name]])
            yield {"tried_seconds": {"1": 2.0, "4": 1.0, "8": 2.0}}
        for scenario in job.get("scenarios", ()):
            if scenario["title"].startswith(self.broken):
                raise EncoderError("MemoryError (exit status 1)")
            yield {"seconds": [SECONDS[peer.name]] * 2, "wall_s": 1.0} | memory


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    found = Processes()
    monkeypatch.setattr(comparison, "run_worker", found)
    monkeypatch.setattr(comparison, "import_seconds", lambda *_: 0.5)
    monkeypatch.setattr(comparison, "find_python", lambda *_: sys.executable)
    monkeypatch.setattr(comparison, "REST", 0.0)
    return found


def compare(artifact: Path, checkpoint: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Run the comparison's command in fp32 on one thread, and return its report."""
    places = ["--artifact", str(artifact), "--checkpoint", str(checkpoint), "--work", str(folder)]
    output = folder / "report.json"
    run.main([*places, "--output", str(output), "--threads", "1", "--precisions", "fp32", *options])  # the last wins
    report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return report


def test_encoders_are_bgem3_in_its_precisions_and_then_the_peers_named() -> None:
    chosen = choose_encoders(["openvino-int8", "torch", "openvino"], ["int8", "fp32"])
    labels = ["bgem3 int8", "bgem3 fp32", "OpenVINO int8", "PyTorch eager fp32", "PyTorch eager bf16", "OpenVINO fp32"]
    assert [encoder.label for encoder in chosen] == [*labels, "OpenVINO bf16"]
    everyone = choose_encoders(["all"], ["int8"])
    assert {encoder.peer.name for encoder in everyone} == set(PEERS)
    assert [encoder.label for encoder in everyone if encoder.peer.name == "bgem3"] == ["bgem3 int8"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peers", "tei"], r"no encoder 'tei'; there are all, .*openvino-int8"),
        (["--scenarios", "speed"], r"no scenario \['speed'\]; there are query 8, "),
        (["--checkpoint", "nowhere"], "--checkpoint must be a folder, found nowhere"),
        (["--artifact", ".", "--precisions", "int8"], "has no manifest.json|no manifest"),
        (["--threads", "0"], "must be positive"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_made(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run.main(options)
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_encoders_are_checked_and_then_timed_in_turns(
    random_artifact: Path, random_checkpoint: Path, processes: Processes, tmp_path: Path
) -> None:
    options = ["--peers", "flagembedding", "--scenarios", "query 16", "mix", "8x16", "rerank 20"]
    report = compare(random_artifact, random_checkpoint, tmp_path, *options)
    ours, theirs = (report["encoders"][f"{name} fp32"] for name in ("bgem3", "FlagEmbedding"))
    assert [len(theirs["scenarios"][name]["seconds"]) for name in ("query 16", "mix", "rerank 20")] == [3, 3, 1]
    assert [theirs["scenarios"][name]["batch_size"] for name in ("query 16", "8x16", "mix")] == [1, 8, 4]
    starts = [name for name, job in processes.jobs if "scenarios" in job]
    assert starts == ["bgem3", "flagembedding", "flagembedding", "bgem3", "bgem3", "flagembedding"]
    figures = {"import_s": [0.5] * 3, "load_s": [0.25] * 3, "cold_start_s": [3.0] * 3, "disk_bytes": 10}
    figures |= {"loaded_rss_bytes": 1000, "peak_rss_bytes": 2000}
    assert figures == {name: ours[name] for name in figures}
    assert set(report["scenarios"]) == {"query 16", "mix", "8x16", "rerank 20"}
    assert len(report["cpus_used_by_others"]) == 3


def test_what_computes_something_else_lacks_a_graph_or_breaks_is_left_out_with_the_reason(
    random_artifact: Path, random_checkpoint: Path, processes: Processes, tmp_path: Path
) -> None:
    processes.dense["flagembedding"] = [0.0, 1.0]
    processes.broken = "one query of 16"
    options = ["--peers", "flagembedding", "openvino-fp32", "--scenarios", "query 8", "query 16", "mix"]
    encoders = compare(random_artifact, random_checkpoint, tmp_path, *options)["encoders"]
    assert {label: found.get("not_run") for label, found in encoders.items()} == {
        "bgem3 fp32": None,
        "FlagEmbedding fp32": "its dense vectors are not the first encoder's (cosine 0.0000)",
        "OpenVINO fp32": "it needs the portable",
    }
    assert encoders["FlagEmbedding fp32"]["scenarios"] == {}
    cells = encoders["bgem3 fp32"]["scenarios"]
    assert cells["query 16"] == {"not_run": "MemoryError (exit status 1)"}
    assert [len(cells[name]["seconds"]) for name in ("query 8", "mix")] == [3, 2], "the next turn goes on"


@pytest.mark.parametrize("name", [name for name in NAMES if "2048" not in name and "8192" not in name])
def test_a_scenario_has_the_texts_that_its_name_says(name: str, random_model: BGEM3Model) -> None:
    exact = ExactTexts(random_model.tokenizer, random_model.spec, SENTENCES)
    made = make_scenario(name, exact, random_model.tokenizer, 512, 3)
    assert made["n_texts"] == len(made["texts"])
    assert made["outputs"] == (("dense",) if "dense" in name else ("dense", "sparse", "multivector"))
    if made["group"] in ("query", "shapes"):
        assert made["n_tokens"] / made["n_texts"] == int(name.removesuffix(" dense").replace("x", " ").split()[-1])
    with pytest.raises(ValueError, match=r"needs texts of .* this model takes at most 4"):
        make_scenario(name, exact, random_model.tokenizer, 4, 3)


def test_agreement_looks_at_all_heads() -> None:
    expected = {"dense": np.eye(2), "multivector": np.eye(2), "sparse": np.array([[0.5, 0.0], [0.0, 1.0]])}
    same = {"dense_min_cosine": 1.0, "multivector_min_cosine": 1.0, "sparse_max_difference": 0.0, "sparse_max": 1.0}
    other = expected | {"multivector": np.eye(2)[::-1], "sparse": np.array([[0.5, 0.0], [0.25, 1.0]])}
    assert agreement(other, expected) == same | {"multivector_min_cosine": 0.0, "sparse_max_difference": 0.25}
    assert agreement({"dense": np.eye(2) * np.nan}, expected) == {"dense_min_cosine": -1.0}


def test_an_environment_is_made_once_and_a_failure_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = PEERS["openvino"]
    assert find_python(PEERS["bgem3"], tmp_path) == find_python(peer, None) == sys.executable
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EncoderError, match=r"/bin/false -m venv .* failed"):
        find_python(peer, tmp_path)
    (tmp_path / peer.environment).mkdir()
    (tmp_path / peer.environment / READY).touch()
    assert Path(find_python(peer, tmp_path)) == tmp_path / peer.environment / "bin/python"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise ValueError('why')", r"ValueError: why \(exit status 1\)"),
        ("import time; time.sleep(60)", "no answer within 2 s"),
    ],
)
def test_a_process_that_dies_or_hangs_says_so(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "START", program)
    monkeypatch.setattr(environments, "TIMEOUT", 1.5)
    with pytest.raises(EncoderError, match=reason):
        next(run_worker(PEERS["bgem3"], sys.executable, {"settings": {"threads": 1}}, tmp_path / "log"))


def test_real_processes_are_timed(random_artifact: Path, random_checkpoint: Path, tmp_path: Path) -> None:
    options = ["--quick", "--peers", "--scenarios", "query 16", "mix", "clients 4"]
    (found,) = compare(random_artifact, random_checkpoint, tmp_path, *options)["encoders"].values()
    assert set(found["scenarios"]) == {"query 16", "mix", "clients 4"}, json.dumps(found)
    assert found["import_s"][0] > 0.01, "a fresh interpreter has imported nothing before"
    assert found["cold_start_s"][0] > found["load_s"][0]
    assert found["peak_rss_bytes"] >= found["loaded_rss_bytes"] > 10_000_000
