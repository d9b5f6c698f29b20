"""Encoders beside each other: who is measured, on what, how often, and what is said of who cannot be."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.runtime import bench_contest
from bgem3.runtime.bench import run_bench
from bgem3.runtime.bench_contest import Progress, Row, agreement, rows_of
from bgem3.runtime.bench_environments import READY, PythonFinder
from bgem3.runtime.bench_peers import PEERS
from bgem3.runtime.bench_workload import Effort

Answer = dict[str, Any]


class FakeWorker:
    """Answers as an encoder's process does; ``asked`` are all requests to all of them."""

    asked: list[tuple[str, dict[str, Any]]]
    seconds: dict[str, float]
    dense: dict[str, list[float]]
    broken: str
    started = 0.0

    def __init__(self, kind: str, *_: object) -> None:
        self.kind, self.precision = kind, ""

    def ask(self, **request: Any) -> Answer:
        FakeWorker.asked.append((self.kind, request))
        if "load" in request:
            self.precision = request["load"]["precision"]
            self.workloads = request["workloads"]
            return {"import_s": 0.5, "load_s": 0.25, "first_s": 0.125, "loaded_rss_bytes": 1000, "versions": {}}
        if "tune" in request:
            return {"variant": "fast", "batch_size": 4, "tried_seconds": {}}
        if "save" in request:
            np.savez(request["path"], dense=[FakeWorker.dense.get(self.kind, [1.0, 0.0])])
            return {}
        if "prepare" in request:
            return {}
        if request["run"] == FakeWorker.broken:
            raise bench_contest.ContestantError("MemoryError (exit status 1)")
        return {"seconds": [FakeWorker.seconds[self.kind]] * 2, "wall_s": 1.0, "peak_rss_bytes": 2000}

    def close(self) -> None:
        pass


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    """Fake processes in place of encoders': bgem3's takes a second a call, OpenVINO's two."""
    FakeWorker.asked, FakeWorker.dense, FakeWorker.broken = [], {}, ""
    FakeWorker.seconds = {"bgem3": 1.0, "openvino": 2.0, "flagembedding": 4.0}
    monkeypatch.setattr(bench_contest, "Worker", FakeWorker)
    monkeypatch.setattr(bench_contest, "REST", 0.0)
    return FakeWorker


def contest(artifact: Path, **options: Any) -> dict[str, Any]:
    """Measure scenarios with fake processes."""
    settings: dict[str, Any] = {"device": "cpu", "n_threads": 1, "parts": ("matrix_rate", "scenarios"), "quick": True}
    return run_bench(artifact, **settings | options)


def test_rows_are_ours_int8_first_and_then_the_peers_named() -> None:
    rows = rows_of(["openvino-int8", "flagembedding"], ["fp16", "int8"], "cpu")
    assert [row.label for row in rows[:3]] == ["bgem3 int8", "bgem3 fp16", "OpenVINO int8"]
    batch = PEERS["flagembedding"].default_batch_size
    assert Row(kind="flagembedding", precision="fp32", batch_size=batch) in rows
    everyone = rows_of(["all"], ["fp32"], "cpu")
    assert {row.kind for row in everyone} == {kind for kind, peer in PEERS.items() if "cpu" in peer.devices}
    assert all("cuda" in row.peer.devices for row in rows_of(["all"], ["fp32"], "cuda:0"))
    assert len(set(everyone)) == len(everyone) == len({row.label for row in everyone})
    with pytest.raises(ValueError, match=r"there is no peer 'tei'; there are all, .*openvino-int8"):
        rows_of(["tei"], ["fp32"], "cpu")


def test_times_become_quantiles_rates_and_a_ratio_to_the_first_row(
    random_artifact: Path, workers: type[FakeWorker]
) -> None:
    report = contest(random_artifact, peers=["openvino-fp32"], precision="fp32", checkpoint=None)
    assert "a portable graph" in report["encoders"]["OpenVINO fp32"]["not_run"]
    ours = report["encoders"]["bgem3 fp32"]
    mix, cell = report["scenarios"]["mix"], ours["scenarios"]["mix"]
    assert (cell["p50_s"], cell["n_calls"], cell["spread"]) == (1.0, 2, 0.0)
    assert cell["tokens_per_s"] == mix["n_tokens"]
    assert cell["flop_per_s"] == mix["flop"]
    assert cell["share_of_matrix_rate"] == mix["flop"] / report["matrix_rate"]["fp32"]["flop_per_s"]
    query = report["scenarios"]["query 16"]
    assert ours["scenarios"]["query 16"]["tokens_per_s"] == query["n_tokens"] / query["n_texts"] == 16
    assert ours["scenarios"]["clients 4"]["tokens_per_s"] == 16 * 2 / 1.0  # two calls in a second of the clock
    assert (ours["load_s"], ours["loaded_rss_bytes"], ours["peak_rss_bytes"]) == ([0.25], 1000, 2000)


def test_peers_are_compared_tuned_and_timed_in_turns(
    random_artifact: Path, random_checkpoint: Path, workers: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Effort, "quick", lambda self: self)
    names = ["flagembedding-fp32"]
    options = {"precision": "fp32", "checkpoint": random_checkpoint, "scenarios": ["query 16", "mix", "8x16"]}
    report = contest(random_artifact, peers=names, **options)
    assert report["settings"]["n_turns"] == 3
    theirs = report["encoders"]["FlagEmbedding fp32"]["scenarios"]
    assert set(theirs) == {"query 16", "mix", "8x16"}
    assert theirs["mix"]["times_first"] == {"median": 4.0, "lowest": 4.0, "highest": 4.0}
    assert [len(turn) for turn in theirs["mix"]["seconds"]] == [2, 2, 2]
    assert [theirs[name]["batch_size"] for name in ("query 16", "8x16", "mix")] == [1, 8, 4]
    size = PEERS["flagembedding"].default_batch_size
    default = report["encoders"][f"FlagEmbedding fp32, batch {size}"]
    assert set(default["scenarios"]) == {"mix"}  # a batch size of its own means something there alone
    assert default["scenarios"]["mix"]["batch_size"] == size
    order = [kind for kind, request in workers.asked if "load" in request]
    assert order == ["bgem3", "flagembedding", "flagembedding", "bgem3", "bgem3", "flagembedding"]
    assert sum("tune" in request for _, request in workers.asked) == 4
    assert len(report["encoders"]["bgem3 fp32"]["cold_start_s"]) == 3


def test_a_benchmark_that_was_stopped_goes_on(
    random_artifact: Path, workers: type[FakeWorker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"precision": "fp32", "output": tmp_path / "report.json", "work": tmp_path / "work"}
    first = contest(random_artifact, scenarios=["query 16", "mix"], **options)
    late = first["encoders"]["bgem3 fp32"]["scenarios"]
    late["mix"] = {"not_run": "time limit"}
    options["output"].write_text(json.dumps(first), encoding="utf-8")
    monkeypatch.setattr(Effort, "quick", lambda self: self)
    report = contest(random_artifact, scenarios=["mix"], resume=True, cell_limit=1e9, **options)
    cells = report["encoders"]["bgem3 fp32"]["scenarios"]
    assert [len(cells[name]["seconds"]) for name in ("query 16", "mix")] == [1, 2]
    assert set(report["scenarios"]) == {"query 16", "mix"}
    assert report["matrix_rate"] == first["matrix_rate"]
    assert sum("tune" in request for _, request in workers.asked) == 2, "what was chosen stays"
    report["settings"]["model"]["n_layers"] += 1
    options["output"].write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(ValueError, match="is of another model"):
        contest(random_artifact, resume=True, **options)


def test_an_encoder_that_joins_later_takes_the_turns_that_the_others_have_taken(
    random_artifact: Path,
    random_checkpoint: Path,
    workers: type[FakeWorker],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"precision": "fp32", "output": tmp_path / "report.json", "work": tmp_path / "work"}
    options |= {"scenarios": ["query 16", "mix"], "checkpoint": random_checkpoint, "cell_limit": 1e9}
    monkeypatch.setattr(Effort, "quick", lambda self: replace(self, n_turns=2))
    contest(random_artifact, **options)
    report = contest(random_artifact, peers=["flagembedding-fp32"], resume=True, **options)
    for found in report["encoders"].values():
        assert len(found["cold_start_s"]) == 2
        assert len(found["scenarios"]["mix"]["seconds"]) == 2
    assert [kind for kind, request in workers.asked if "load" in request] == ["bgem3"] * 2 + ["flagembedding"] * 2


def test_what_computes_something_else_is_not_timed_and_fails(
    random_artifact: Path, random_checkpoint: Path, workers: type[FakeWorker]
) -> None:
    workers.dense["flagembedding"] = [0.0, 1.0]
    report = contest(random_artifact, peers=["flagembedding-fp32"], checkpoint=random_checkpoint, precision="fp32")
    found = report["encoders"]["FlagEmbedding fp32"]
    assert "its dense vectors are not the first one's (cosine 0.0000)" in found["not_run"]
    assert found["scenarios"] == {}
    assert report["failed"] == [f"FlagEmbedding fp32: {found['not_run']}"]


def test_what_ends_keeps_what_it_measured_and_the_reason(
    random_artifact: Path, workers: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Effort, "quick", lambda self: self)
    workers.broken = "query 16"
    names = ["query 8", "query 16", "mix"]
    report = contest(random_artifact, precision="fp32", scenarios=names, cell_limit=1e9)
    cells = report["encoders"]["bgem3 fp32"]["scenarios"]
    assert cells["query 16"]["not_run"] == "MemoryError (exit status 1)"
    assert report["failed"] == ["bgem3 fp32, query 16: MemoryError (exit status 1)"]
    assert len(cells["query 8"]["seconds"]) == 3
    assert len(cells["mix"]["seconds"]) == 2, "the turns after that in which it broke leave the scenario out"


def test_a_call_that_would_take_too_long_is_not_made(random_artifact: Path, workers: type[FakeWorker]) -> None:
    def late(cell_limit: float) -> dict[str, str]:
        cells = contest(random_artifact, precision="fp32", cell_limit=cell_limit)["encoders"]["bgem3 fp32"]["scenarios"]
        assert next(iter(cells)).startswith("query 16"), "the quickest comes first, so that the others can be estimated"
        assert "p50_s" in cells["query 16"]
        return {name: cell["not_run"] for name, cell in cells.items() if "not_run" in cell}

    assert late(1e9) == {}
    (reason,) = {reason for name, reason in late(5.0).items() if name == "mix"}
    assert "one call would take about" in reason  # a second for a query: several for the mix
    assert "the limit is 5 s" in reason


def test_an_unknown_scenario_is_refused(random_artifact: Path, workers: type[FakeWorker]) -> None:
    with pytest.raises(ValueError, match=r"there is no scenario \['speed'\]; there are \['query 16', "):
        contest(random_artifact, scenarios=["speed"])


def test_agreement_looks_at_all_heads() -> None:
    expected = {
        "dense": np.eye(2, dtype=np.float32),
        "vectors": np.eye(2, dtype=np.float32),
        "weights": np.array([0.5, 1.0], np.float32),
        "entries": np.array([[0, 7], [1, 8]]),
    }
    assert agreement(expected, expected) == {
        "dense_min_cosine": 1.0,
        "multivector_min_cosine": 1.0,
        "sparse_max_difference": 0.0,
        "sparse_max": 1.0,
    }
    found = agreement(
        expected | {"vectors": expected["vectors"][::-1], "entries": np.array([[0, 7], [1, 9]])}, expected
    )
    assert (found["multivector_min_cosine"], found["sparse_max_difference"]) == (0.0, 1.0)
    assert agreement({"dense": expected["dense"] * np.nan}, expected) == {"dense_min_cosine": -1.0}


def test_the_time_that_is_left_follows_from_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = Progress({0: (2, 30.0), 1: (2, 10.0)})
    assert progress.left() == ""
    now[0] = 400.0
    progress.step(0)
    assert progress.left() == ", about 8 minutes left"  # 300 s for 30 of 80


def test_an_environment_is_made_once_and_a_failure_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    peer = PEERS["openvino"]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    find = PythonFinder(tmp_path, {}, said.append)
    with pytest.raises(RuntimeError, match=r"its Python environment cannot be made: .*No matching distribution"):
        find(peer)
    assert len(said) == 1
    (tmp_path / peer.environment / READY).touch()
    assert Path(find(peer)) == tmp_path / peer.environment / "bin/python"
    assert len(said) == 1
    assert PythonFinder(tmp_path, {peer.environment: Path("/a/python")}, said.append)(peer) == "/a/python"


def test_a_real_process_is_timed_beside_ours_and_agrees(random_artifact: Path, random_checkpoint: Path) -> None:
    """`bgem3 bench --quick --peers torch-sdpa-fp32`, small: what CI runs of the benchmark; it asserts no time."""
    options = {"parts": ("scenarios",), "precision": "fp32", "checkpoint": random_checkpoint}
    report = contest(random_artifact, peers=["torch-sdpa-fp32"], **options)
    assert report["failed"] == []
    assert len(report["encoders"]) == 2
    for found in report["encoders"].values():
        assert "not_run" not in found, json.dumps(found)
        assert found["agreement"]["dense_min_cosine"] > 0.99999
        assert found["agreement"]["multivector_min_cosine"] > 0.9999
        assert found["agreement"]["sparse_max_difference"] < 1e-4 * max(1.0, found["agreement"]["sparse_max"])
        assert set(found["scenarios"]) == set(report["scenarios"])


def test_a_process_that_dies_says_its_last_words(tmp_path: Path) -> None:
    worker = bench_contest.Worker("bgem3", sys.executable, tmp_path / "log", 1)
    with pytest.raises(bench_contest.ContestantError, match=r"ArtifactError: .* \(exit status 1\)"):
        worker.ask(load={"artifact": str(tmp_path), "device": "cpu", "precision": "fp32", "threads": 1}, workloads={})
    worker.close()
