"""`bgem3 bench`: what it measures and reports, and what it refuses before any work."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bgem3.export.reference import SENTENCES
from bgem3.runtime import BGEM3Model, bench, cli, machine
from bgem3.runtime.bench import ExactTexts, operator_seconds, run_bench
from bgem3.runtime.tokenizer import TextTokenizer


@pytest.mark.parametrize("n_tokens", [2, 3, 33, 128])
def test_exact_texts_have_exactly_that_many_tokens(random_model: BGEM3Model, n_tokens: int) -> None:
    exact = ExactTexts(random_model.tokenizer, random_model.spec, SENTENCES)
    texts = exact(n_tokens, 5)
    assert random_model.tokenizer(texts, 512).lengths.tolist() == [n_tokens] * 5
    assert exact(n_tokens, 5) == texts


def test_exact_texts_are_exact_with_bge_m3s_own_tokenizer(bge_m3_tokenizer: Path, random_model: BGEM3Model) -> None:
    spec = replace(random_model.spec, max_length=8192, vocab_size=250002)
    tokenizer = TextTokenizer(bge_m3_tokenizer, spec)
    exact = ExactTexts(tokenizer, spec, SENTENCES)
    lengths = [8, 16, 512, 8192]
    assert tokenizer([exact(n)[0] for n in lengths], 8192).lengths.tolist() == lengths


def test_a_report_has_speed_memory_and_shares_and_is_shown_or_written(
    random_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", str(random_artifact), "--device", "cpu", "--precision", "fp32", "--threads", "1", "--quick"]
    assert cli.main([*command, "--json", "--output", str(tmp_path / "report.json")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    assert (report["precision"], report["n_threads"], report["device"]) == ("fp32", 1, "cpu")
    assert list(report["workloads"]) == ["1 x 16 tokens", "1 x 128 tokens", "8 x 128 tokens"]
    assert report["workloads"]["8 x 128 tokens"]["n_tokens"] == 1024
    figures = [report["load_s"], report["first_call_s"], *report["memory_mib"]["peak"].values()]
    figures += [figure for found in report["workloads"].values() for figure in found.values()]
    assert all(0 < figure < math.inf for figure in figures)
    for shares in report["time_shares"].values():
        assert {"tokenizing", "the rest"} < shares.keys()
        assert 0.99 < sum(shares.values()) < 3  # tokenizing is timed in another call
    assert cli.main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())  # lines break where the folder's name is long
    assert all(word in shown for word in ("fp32 weights", "8 x 128 tokens", "peak", "tokenizing"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "threads must be a whole number of at least 1"),
        (["--device", "gpu"], "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', found 'gpu'"),
        (["--output", "/nowhere/report.json"], "/nowhere is no folder"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(
    options: list[str], message: str, random_artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(cli, "measure", lambda *_, **__: pytest.fail("work began"))
    assert cli.main(["bench", str(random_artifact), *options]) == 2
    assert message in capsys.readouterr().err


def test_operators_times_are_of_the_last_call_and_not_of_control_flow(tmp_path: Path) -> None:
    def event(name: str, microseconds: int, category: str = "Node") -> dict[str, Any]:
        return {"cat": category, "name": "n_kernel_time", "dur": microseconds, "args": {"op_name": name}}

    first, last = [event("Gemm", 900), event("If", 90)], [event("Gemm", 300), event("If", 40)]
    (tmp_path / "profile.json").write_text(json.dumps([event("run", 5, "Session"), *first, *last]))
    assert operator_seconds(tmp_path / "profile.json", n_calls=2) == {"Gemm": 300 / 1e6}


def test_on_cuda_the_device_is_described_and_tokenizing_is_the_share_that_is_known(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model on the CPU stands in for one on CUDA."""
    load = BGEM3Model.load

    def load_as_cuda(folder: Path, _: str, *arguments: Any) -> BGEM3Model:
        model = load(folder, "cpu", *arguments)
        model.device = "cuda:1"
        return model

    properties = SimpleNamespace(name=b"H100", totalGlobalMem=80 << 30)
    cudart = SimpleNamespace(
        cudaGetDeviceProperties=lambda number: (0, properties), cudaDriverGetVersion=lambda: (0, 13000)
    )
    monkeypatch.setattr(BGEM3Model, "load", load_as_cuda)
    monkeypatch.setattr(machine, "import_cudart", lambda: cudart)
    monkeypatch.setattr(machine, "device_memory", lambda number: (number << 30, 80 << 30))
    monkeypatch.setitem(bench.EFFORTS, "cuda", bench.EFFORTS["cpu"])
    report = run_bench(random_artifact, device="cuda:1", quick=True)
    assert report["gpu"] == {"name": "H100", "memory_mib": 80 << 10, "driver_cuda": 13000}
    assert report["memory_mib"]["peak"]["device"] == 79 << 10
    assert [set(shares) for shares in report["time_shares"].values()] == [{"tokenizing"}] * 2
    assert "H100" in str(bench.bench_table(report).renderables[0])
