"""`bgem3 bench`: what it measures, what it says of what it cannot measure, and what it leaves behind."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.export.reference import SENTENCES
from bgem3.runtime import BGEM3Model, bench_parts, cli
from bgem3.runtime import bench_hardware as hardware
from bgem3.runtime import bench_probe as probe
from bgem3.runtime import cuda_session as cuda
from bgem3.runtime.bench import make_artifact, run_bench
from bgem3.runtime.bench_report import PARTS, BenchReport, failures
from bgem3.runtime.bench_workload import ExactTexts, encoder_flop, random_lengths, read_texts
from bgem3.runtime.tokenizer import TextTokenizer

NEVER = math.inf  # a deadline
LINE = "Operator=PackedMultiHeadAttention Node={node} DataType=fp16 SdpaKernel={kernel}"
PRINTED = f"""\x1b[36mAttentionKernelOptions: FLASH_ATTENTION=1 EFFICIENT_ATTENTION=1 MATH=1\x1b[0m
\x1b[36m{LINE.format(node="/warm/up", kernel="MATH")}\x1b[0m
{probe.MARK} 16
\x1b[36m{LINE.format(node="/0/attention", kernel="FLASH_ATTENTION")}\x1b[0m
\x1b[36m{LINE.format(node="/1/attention", kernel="FLASH_ATTENTION")}\x1b[0m
{probe.MARK} 128
\x1b[36mOperator=MultiHeadAttention DataType=fp32 SdpaKernel=EFFICIENT_ATTENTION\x1b[0m
{probe.MARK} 512
"""


def numbers(value: Any) -> Iterator[float]:
    """Yield every number of a report that is not a cosine, a difference or a growth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not any(word in name for word in ("cosine", "difference", "growth", "_id", "seconds", "settings")):
                yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


@pytest.mark.parametrize("n_tokens", [2, 3, 8, 33, 128])
def test_exact_texts_have_exactly_that_many_tokens(random_model: BGEM3Model, n_tokens: int) -> None:
    exact = ExactTexts(random_model.tokenizer, random_model.spec, SENTENCES)
    texts = exact(n_tokens, 5)
    found = random_model.encode(texts, outputs=("dense",))
    assert found.n_tokens.tolist() == [n_tokens] * 5
    assert not found.truncated.any()
    assert exact(n_tokens, 5) == texts
    assert len(set(exact(128, 5))) == 5


@pytest.mark.parametrize("n_tokens", [8, 16, 512, 8192])
def test_exact_texts_are_exact_with_bge_m3s_own_tokenizer(
    bge_m3_tokenizer: Path, random_model: BGEM3Model, n_tokens: int
) -> None:
    spec = replace(random_model.spec, max_length=8192, vocab_size=250002)
    tokenizer = TextTokenizer(bge_m3_tokenizer, spec)
    tokens = tokenizer(ExactTexts(tokenizer, spec, SENTENCES)(n_tokens, 2), 8192)
    assert tokens.lengths.tolist() == [n_tokens] * 2
    assert not tokens.truncated.any()


def test_exact_texts_longer_than_the_model_takes_are_refused(random_model: BGEM3Model) -> None:
    exact = ExactTexts(random_model.tokenizer, random_model.spec, SENTENCES)
    with pytest.raises(ValueError, match="takes texts of 2 to 128 tokens, found 129"):
        exact(129, 1)


def test_flop_equal_a_count_by_hand(random_model: BGEM3Model) -> None:
    spec = replace(random_model.spec, n_layers=2, hidden_size=2, intermediate_size=3, multivector_size=5)
    projections, feed_forward = 4 * (2 * 2), 2 * (2 * 3)  # multiply-adds per token and layer
    attention = (2 + 2) * 2 + (3 + 3) * 3  # two products per pair of tokens, of width 2: texts of 2 and of 3 tokens
    layers = 2 * (2 * (projections + feed_forward) * 5 + 2 * 2 * attention)
    heads = 2 * 2 * 5 + 2 * (2 * 5) * 3  # sparse on 5 tokens, multi-vector on those that are not CLS
    assert encoder_flop(np.array([2, 3]), spec) == layers + heads


def test_passages_and_questions_are_spread_over_the_file_and_never_repeated(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    entries = [{"context": f"p{i}", "questions": [f"q{i}a", f"q{i}b"]} for i in range(3)]
    path.write_text(json.dumps(entries))
    assert read_texts(path, 2, 3, SENTENCES) == ["p0", "p2", "q0a", "q1a", "q2b"]
    assert len(read_texts(path, 9, 9, SENTENCES)) == 3 + 6
    assert read_texts(None, 2, 1, SENTENCES) == read_texts(None, 2, 1, SENTENCES)
    path.write_text('{"data": []}')
    with pytest.raises(ValueError, match=r"not JSON of the form .*context"):
        read_texts(path, 1, 1, SENTENCES)


def test_random_shapes_are_the_same_each_time_and_within_their_bounds() -> None:
    shapes = random_lengths(50, 100)
    assert shapes == random_lengths(50, 100)
    assert {1, 16} <= {len(lengths) for lengths in shapes} <= set(range(1, 17))
    assert min(min(lengths) for lengths in shapes) == 4
    assert 90 <= max(max(lengths) for lengths in shapes) <= 100


def test_attention_kernels_are_read_from_what_onnxruntime_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe.parse_kernels(PRINTED)
    assert list(found) == [16, 128]  # what the session's warm-up printed is left out
    assert found[16]["n_nodes"] == {"PackedMultiHeadAttention fp16 FLASH_ATTENTION": 2}
    assert found[16]["line"] == LINE.format(node="/0/attention", kernel="FLASH_ATTENTION")
    assert found[128]["n_nodes"] == {"MultiHeadAttention fp32 EFFICIENT_ATTENTION": 1}
    monkeypatch.setattr(probe, "_run", lambda *_: (PRINTED, "time limit"))
    assert probe.attention_kernels({}, [16, 512], 1.0) == {"16": found[16], "512": {"not_run": "time limit"}}


def test_bench_on_cpu_measures_every_part_and_says_what_it_cannot(random_artifact: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "cpu.json"
    options = ["--quick", "--device", "cpu", "--threads", "1", "--output", str(output), "--json"]
    command = [sys.executable, "-m", "bgem3.runtime.cli", "bench", str(random_artifact), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(output.read_text())
    assert json.loads(done.stdout) == report
    assert set(report) == {*PARTS, "encoders", "environment", "settings", "failed", "seconds", "cpus_used_by_others"}
    assert all(math.isfinite(number) and number > 0 for number in numbers(report))
    assert report["failed"] == []
    assert report["parity"]["fp32"]["dense_max_difference"] < 1e-4
    assert report["parity"]["fp16"]["longest_text_tokens"] == 128
    assert set(report["encoders"]) == {"bgem3 fp16", "bgem3 fp32"}
    assert report["scenarios"]["mix"]["n_tokens"] == sum(report["scenarios"]["mix"]["lengths"])
    assert "CUDA only" in report["attention_kernels"]["not_run"]
    assert "one text of 128 tokens" in report["memory"]["fp32"]["stages"]
    for operators in report["breakdown"]["bgem3 fp32"].values():
        # ONNX Runtime's own attention, which CPUs with AMX take, counts under the `If` around it, too
        assert max(operators, key=operators.__getitem__) in ("Gemm", "FusedGemm", "PackedAttention", "If")
    for name in ("fp32", "int8"):
        assert report["matrix_rate"][name]["flop_per_s"] == max(
            rate for rate in report["matrix_rate"][name]["products"].values() if isinstance(rate, float)
        )


def test_bench_takes_the_cuda_parts_where_the_model_runs_on_cuda(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a model on CPU in the place of one on CUDA: what the parts ask for, and how it is reported."""
    load = BGEM3Model.load

    def load_as_cuda(folder: Path, device: str = "auto", *arguments: Any, **options: Any) -> BGEM3Model:
        model = load(folder, "cpu", *arguments, **options)
        model.device = "cuda:0"
        return model

    def answer(request: dict[str, Any], *_: Any) -> tuple[str, str]:
        capfd.readouterr()
        probe.main(json.loads(json.dumps(request, default=str)))
        return capfd.readouterr().out, ""

    monkeypatch.setattr(BGEM3Model, "load", load_as_cuda)
    monkeypatch.setattr(probe, "_run", answer)
    monkeypatch.setattr(probe, "device_memory_mib", lambda device: 1000)
    parts = [part for part in PARTS if part != "scenarios"]  # these start processes, which know no such device
    report = run_bench(random_artifact, device="cuda", n_threads=1, quick=True, parts=parts)
    assert report["failed"] == []
    assert set(report["parity"]) == {"fp16", "fp32"}
    products = report["matrix_rate"]["fp16"]["products"]
    assert all("no CUDAExecutionProvider" in products[name]["not_run"] for name in products if "onnx" in name)
    assert all("sees no CUDA device" in products[name]["not_run"] for name in products if "torch" in name)
    assert set(report["attention_kernels"]) == {"16", "128"}
    assert "printed no line" in report["attention_kernels"]["16"]["not_run"]
    stages = report["memory"]["fp16"]["stages"]
    assert list(stages)[:4] == ["before loading", "after loading", "16384 packed tokens", "one text of 128 tokens"]
    assert len(stages) == 4 + probe.N_POINTS
    assert report["memory"]["fp16"]["growth_mib"]["device_mib"] == 0
    assert "on CPU only" in report["breakdown"]["not_run"]


def test_what_does_not_begin_in_time_is_not_run(random_artifact: Path, tmp_path: Path) -> None:
    report = run_bench(random_artifact, device="cpu", n_threads=1, time_limit=0.0, output=tmp_path / "report.json")
    assert report["failed"] == []
    for part in ("matrix_rate", "parity", "memory", "breakdown", "encoders"):
        text = json.dumps(report[part])
        assert text.count('"not_run": "time limit"') == text.count("not_run") > 0
        assert not list(numbers(report[part]))
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_a_process_of_its_own_that_takes_too_long_leaves_what_it_measured(random_artifact: Path) -> None:
    load = {"folder": random_artifact, "device": "cpu", "n_threads": 1}
    report = probe.memory_use(load, 128, 128, 0, timeout=0.01)
    assert report["stages"] == {}
    assert report["not_run"].startswith("time limit")


def test_a_process_of_its_own_that_fails_says_why(tmp_path: Path) -> None:
    report = probe.memory_use({"folder": tmp_path / "nowhere", "device": "cpu"}, 128, 128, 0, timeout=60)
    assert "no artifact folder at" in report["not_run"]
    assert list(report["stages"]) == ["before loading"]


def test_a_benchmark_that_is_killed_keeps_what_it_measured(tmp_path: Path) -> None:
    report = BenchReport(tmp_path / "report.json", time_limit=60)

    def killed() -> None:
        raise KeyboardInterrupt

    report.step(lambda: {"rate": 1.0}, "matrix_rate", "torch")
    with pytest.raises(KeyboardInterrupt):
        report.step(killed, "parity", "fp16")
    assert json.loads((tmp_path / "report.json").read_text())["matrix_rate"] == {"torch": {"rate": 1.0}}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_missed_parity_other_outputs_and_our_own_encoder_not_running_fail_the_benchmark() -> None:
    assert failures({"parity": {"fp16": {"missed": ["dense is off"]}}}) == ["parity, fp16: dense is off"]
    assert failures({"parity": {"fp16": {"not_run": "RuntimeError: x"}}}) == ["parity, fp16: RuntimeError: x"]
    encoders = {
        "bgem3 fp32": {"kind": "bgem3", "not_run": "it ended"},
        "OpenVINO fp32": {"kind": "openvino", "not_run": "its dense vectors are not", "agreement": {}},
        "FlagEmbedding fp32": {"kind": "flagembedding", "not_run": "it needs a checkpoint"},
        "bgem3 int8": {"kind": "bgem3", "not_run": "time limit"},
    }
    assert [line.partition(":")[0] for line in failures({"encoders": encoders})] == ["bgem3 fp32", "OpenVINO fp32"]
    assert failures({"parity": {"fp16": {"not_run": "time limit"}}}) == []


def test_a_failed_check_is_the_exit_status(random_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_parts, "check_parity", lambda *_: {"missed": ["dense is off"]})
    arguments = ["bench", str(random_artifact), "--parts", "parity", "--device", "cpu", "--precision", "fp32"]
    assert cli.main(arguments) == 1


def test_without_an_artifact_one_is_made_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--layers", "1", "--hidden", "64", "--device", "cpu", "--threads", "1", "--quick", "--parts", "parity"]
    assert cli.main(["bench", *arguments]) == 0
    printed = capsys.readouterr()
    assert "random weights" in printed.out
    assert "parity, fp16: passed" in printed.out
    assert "parity, fp16" in printed.err


def test_a_device_that_is_not_there_is_found_out_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no CUDA provider .*use device='cpu'"):
        make_artifact(tmp_path, device="cuda:0")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_part_or_checkpoint_is_refused(random_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parts must be some of .*found"):
        run_bench(random_artifact, device="cpu", parts=("speed",))
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        run_bench(random_artifact, device="cpu", checkpoint=tmp_path / "nowhere")


def test_a_gpu_is_described_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="nvidia-smi is not on the PATH"):
        hardware.query_gpu("cuda:0", "name")
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!{sys.executable}\nimport sys\nprint('Device', sys.argv[-1] + ', 570.1')\n")
    script.chmod(0o755)
    assert hardware.query_gpu("cuda:1", "name", "driver_version") == {
        "name": "Device --id=1",
        "driver_version": "570.1",
    }
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert hardware.query_gpu("cuda:1", "name", "driver_version")["name"] == "Device --id=5"
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no devices')\n")
    with pytest.raises(RuntimeError, match="nvidia-smi failed: no devices"):
        hardware.query_gpu("cuda", "name")


def test_importing_the_benchmark_loads_neither_torch_nor_onnx() -> None:
    code = "import sys, bgem3.runtime.bench; print({'torch', 'onnx', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_part_has_its_measurement_and_the_help_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(bench_parts.MEASURES) == PARTS
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert all(part in shown for part in PARTS)
    assert "--output" in shown


@pytest.mark.gpu
def test_bench_on_cuda_runs_every_part(random_artifact: Path, random_checkpoint: Path) -> None:
    reason = cuda.why_unavailable()
    if reason:
        pytest.skip(reason)
    peers = ("torch-packed", "torch-sdpa-fp16", "flagembedding-fp16")
    report = run_bench(random_artifact, checkpoint=random_checkpoint, device="cuda", quick=True, peers=peers)
    assert report["failed"] == []
    assert all("not_run" not in found for found in report["attention_kernels"].values())
    assert report["memory"]["fp16"]["stages"]["after loading"]["device_mib"] > 0
    for found in report["encoders"].values():
        assert found["scenarios"]["query 16"]["p50_s"] > 0
    assert set(report["encoders"]["bgem3 fp16"]["tuned"]["query 16"]["tried_seconds"]) == {"1", "CUDA graphs 1"}
