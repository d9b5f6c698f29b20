"""The commands as a user types them, in any locale, and on streams that are closed or end early."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from bgem3.runtime import BGEM3Model, Embeddings, cli
from bgem3.runtime.cli import main
from tests.paths import ROOT

LINES = ["What is BM25?", "", "面包 为什么 会 发 起来？", "a\0b", "after\u2028a\x85separator", "\U0001f956"]
# the standard streams are in another encoding, and arguments in a third
OTHER_LOCALE = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
COMMAND = [sys.executable, "-m", "bgem3.runtime.cli"]
CPU_FP32 = ("--device", "cpu", "--precision", "fp32")


def run(*arguments: object, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `bgem3` as a process of its own, in UTF-8."""
    command = [*COMMAND, *map(str, arguments)]
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "input": stdin} | options
    return subprocess.run(command, encoding="utf-8", check=False, **settings)


def set_stdin(monkeypatch: pytest.MonkeyPatch, content: str) -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO(content.encode()), encoding="latin-1")
    monkeypatch.setattr(sys, "stdin", stream)
    return stream


# What each command does


def test_encode_and_score_read_and_write_utf_8_in_any_locale(
    random_artifact: Path, random_model: BGEM3Model, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = os.environ | OTHER_LOCALE
    text = "".join(f"{line}\n" for line in LINES)
    done = run("encode", random_artifact, *CPU_FP32, "--max-length", "9", stdin=text, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = random_model.encode(LINES, max_length=9)
    assert len(rows) == len(LINES)
    for i, row in enumerate(rows):
        assert (row["n_tokens"], row["truncated"]) == (expected.n_tokens[i], expected.truncated[i])
        np.testing.assert_allclose(row["dense"], expected.dense[i], atol=1e-5)
        np.testing.assert_allclose(row["multivector"], expected.multivector[i], atol=1e-5)
        assert row["sparse"] == pytest.approx({k: float(v) for k, v in expected.lexical_weights[i].items()}, abs=1e-5)

    texts = ["-q", "été", "-p", "面包", "-p", "[red] :bee:", "--weights", "1", "2", "3"]
    done = run("score", random_artifact, *CPU_FP32, *texts, "--json", env=environment)
    scores = random_model.score(["été"], ["面包", "[red] :bee:"], weights=(1, 2, 3))
    for j, row in enumerate(json.loads(done.stdout)):
        assert (row["query"], row["passage"]) == ("été", texts[2 * j + 3])
        for name in ("dense", "sparse", "multivector", "hybrid"):
            assert row[name] == pytest.approx(float(getattr(scores, name)[0, j]), abs=1e-5)
    assert main(["score", str(random_artifact), *CPU_FP32, *texts]) == 0
    table = capsys.readouterr().out
    assert all(shown in table for shown in ("été", "面包", "[red] :bee:", f"{scores.dense[0, 0]:.4f}"))


def test_encode_reads_a_field_of_json_lines_and_writes_only_the_outputs_asked_for(
    random_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": i, "body": line}) + "\n" for i, line in enumerate(LINES)))
    assert main(["encode", str(random_artifact), str(path)]) == 2
    assert "name the field that is the text with --text-field" in capsys.readouterr().err
    assert main(["encode", str(random_artifact), str(path), "--text-field", "body", "--outputs", "dense"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(row) for row in rows] == [{"n_tokens", "truncated", "dense"}] * len(LINES)


def test_encode_writes_files_in_chunks_of_bounded_size(
    random_artifact: Path, random_model: BGEM3Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    n_texts: list[int] = []
    encode = BGEM3Model.encode

    def counting(self: BGEM3Model, texts: list[str], *options: Any) -> Embeddings:
        n_texts.append(len(texts))
        return encode(self, texts, *options)

    expected = random_model.encode(LINES)
    monkeypatch.setattr(cli, "CHARACTERS_PER_CHUNK", 20)
    monkeypatch.setattr(BGEM3Model, "encode", counting)
    (tmp_path / "lines.txt").write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    for name in ("out.parquet", "out.npz", "out.jsonl"):
        n_texts.clear()
        command = ["encode", str(random_artifact), str(tmp_path / "lines.txt"), *CPU_FP32]
        assert main([*command, "-o", str(tmp_path / name)]) == 0
        assert n_texts == [3, 2, 1]
    found = Embeddings.load(tmp_path / "out.npz")
    np.testing.assert_allclose(found.dense, expected.dense, atol=1e-5)
    np.testing.assert_allclose(found.multivector.packed, expected.multivector.packed, atol=1e-5)
    assert found.sparse.indices.tolist() == expected.sparse.indices.tolist()
    rows = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["n_tokens"] for row in rows] == expected.n_tokens.tolist()
    np.testing.assert_allclose([row["dense"] for row in rows], expected.dense.tolist(), atol=1e-5)
    assert [[k for k, _ in row["sparse"]] for row in rows] == [list(weights) for weights in expected.lexical_weights]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(LINES)


def test_verify_passes_a_whole_artifact_without_torch_and_reports_each_graph(
    demo_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; from bgem3.runtime.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "verify", str(demo_artifact), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    shown, _, end = done.stdout.rpartition("}\n")
    assert end == "0 False\n", done.stderr
    reports = json.loads(shown + "}")
    graphs = {f"{precision}/{graph}.onnx" for precision in ("fp16", "fp32") for graph in ("cuda", "cpu", "native")}
    assert set(reports) == {*graphs, "portable/model.onnx"}
    assert all(report["missed"] == [] for report in reports.values())
    assert "no CUDA provider" in reports["fp16/cuda.onnx"]["not_run"]
    assert main(["verify", str(demo_artifact), "--precision", "fp16"]) == 0
    table = capsys.readouterr().out
    assert "not run: " in table
    assert "passed" in table


def test_verify_fails_when_outputs_differ_from_the_published_values(
    demo_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(demo_artifact), "--precision", "fp32", "--published", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)["fp32/cpu.onnx"]
    assert len(report["missed"]) == len(report["published"]) == 5
    assert "published values" in report["missed"][0]


def test_info_shows_what_the_artifact_holds(demo_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(demo_artifact), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["max_length"] == 512
    assert main(["info", str(demo_artifact)]) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("fp16/weights.bin", "max_length", "against the checkpoint"))


def test_export_exports_and_its_script_is_the_same_door(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(demo_checkpoint), str(tmp_path / "a"), "--precision", "fp32", "--json"]) == 0
    shown = capsys.readouterr()
    assert {graph["precision"] for graph in json.loads(shown.out)["graphs"]} == {"fp32"}
    assert shown.err == ""
    monkeypatch.setattr(sys, "argv", ["export_model.py", str(demo_checkpoint), str(tmp_path / "a")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts/export_model.py"), run_name="__main__")
    assert ended.value.code == 2
    assert "--overwrite" in capsys.readouterr().err


# What is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("info nowhere", "no artifact folder at nowhere"),
        ("encode ARTIFACT nowhere.txt", "nowhere.txt"),
        ("encode ARTIFACT -o out.csv", ".jsonl, .npz, .parquet"),
        ("encode ARTIFACT --text-field text", "line 1 is not a JSON object with the field 'text'"),
        ("encode ARTIFACT --max-length 1", "max_length must be from 2"),
        ("encode ARTIFACT --device cuda", "use device='cpu'"),
        ("encode ARTIFACT --threads 0", "n_threads must be"),
        ("score ARTIFACT -q a -p b --weights 0 0 0", "must not sum to 0"),
        ("score ARTIFACT -q a -p \udce9", "argument -p/--passage: byte 0xe9 at position 0 is not UTF-8"),
        ("verify ARTIFACT --precision int4", "invalid choice"),
        ("nonsense", "invalid choice"),
        ("", "required"),
    ],
)
def test_bad_input_ends_with_one_line_that_says_what_to_do(
    random_artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    words: str,
) -> None:
    set_stdin(monkeypatch, "not json\n")
    try:
        status: object = main([str(random_artifact) if word == "ARTIFACT" else word for word in arguments.split()])
    except SystemExit as ended:
        status = ended.code
    shown = capsys.readouterr()
    assert (status, shown.out) == (2, "")
    assert words in shown.err.splitlines()[-1]


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("export", "encode", "score", "verify", "bench", "info"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f" {command} [-h]" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".jsonl", ".npz", ".parquet"])
def test_a_bad_byte_is_named_and_leaves_the_output_file_as_it_was(
    random_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    monkeypatch.setattr(cli, "TEXTS_PER_CHUNK", 2)  # some texts are encoded before the bad one is read
    path, output = tmp_path / "input.txt", tmp_path / f"out{suffix}"
    path.write_bytes(b"a\nb\nc\nd\ncaf\xe9\n")
    command = ["encode", str(random_artifact), str(path), "--outputs", "dense", "--device", "cpu"]
    for before in (None, b"what was there"):
        if before:
            output.write_bytes(before)
        assert main([*command, "-o", str(output)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith(f"bgem3: {path}, line 5 is not UTF-8: byte 0xe9 after 3 characters; ")
        assert {file.name: file.read_bytes() for file in tmp_path.glob("out*")} == (
            {output.name: before} if before else {}
        )
    assert main(command) == 2
    assert capsys.readouterr().out.count("n_tokens") == 4


def test_the_input_is_never_replaced_by_the_output(
    random_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_bytes(b'{"text": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "hard.jsonl").hardlink_to(source)
    for name in ("texts.jsonl", "link.jsonl", "hard.jsonl"):
        command = ["encode", str(random_artifact), str(source), "--text-field", "text", "-o", str(tmp_path / name)]
        assert main(command) == 2
        assert "is the input, too, and would be replaced; name another --output" in capsys.readouterr().err
        assert source.read_bytes() == b'{"text": "a"}\n'


def test_names_of_files_that_are_not_utf_8_are_shown_as_escapes(
    random_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        link = tmp_path / os.fsdecode(b"caf\xe9")
        link.symlink_to(random_artifact)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert main(["info", str(link)]) == 0
    assert "caf\\udce9" in capsys.readouterr().out
    assert main(["score", str(link), "-q", "a", "-p", "b", "--device", "cpu"]) == 2
    assert "not UTF-8, which ONNX Runtime cannot open; rename it" in capsys.readouterr().err


# Streams that are closed, or end early


def test_closed_streams_are_an_error_that_says_what_to_name(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["encode", str(random_artifact), "--device", "cpu"]
    monkeypatch.setattr(sys, "stdin", None)
    assert main(command) == 2
    assert "standard input is closed; name a file" in capsys.readouterr().err
    stream = set_stdin(monkeypatch, "a\n")
    monkeypatch.setattr(sys, "stdout", None)
    assert main(command) == 2
    assert "standard output is closed; name a file with --output" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "out.npz")]) == 0
    assert not stream.buffer.closed
    assert main(["info", str(random_artifact)]) == 0
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["verify", str(random_artifact), "--precision", "fp32"]) == 0
    with BGEM3Model.load(random_artifact, "cpu", "fp32") as model:
        assert len(model.encode(["a"], show_progress=True)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_output_that_nobody_reads_is_no_error_and_keeps_the_exit_status(random_artifact: Path) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": ""}  # output is written out at the end, where it may fail
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        done = run("info", random_artifact, stdout=output, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert run("info", "no such folder", stderr=output, env=environment).returncode == 2
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as output:
            done = run("info", random_artifact, "--json", stdout=output, env=environment)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("bgem3: ")
    pipe = f"yes honey | head -2000 | {' '.join(COMMAND)} encode {random_artifact} | head -1"
    read = subprocess.run(["bash", "-o", "pipefail", "-c", pipe], capture_output=True, text=True, check=False)
    assert (read.stdout.count("\n"), "Traceback" in read.stderr, "BrokenPipe" in read.stderr) == (1, False, False)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_ends_with_130_and_no_traceback(random_artifact: Path) -> None:
    program = (
        "import signal, sys; from bgem3.runtime.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job lacks\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "encode", str(random_artifact), "--outputs", "dense"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        process.stdin.write(b"honey\n" * 5000)  # more than a chunk, so it encodes, writes, and waits for more
        process.stdin.flush()
        process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        threading.Thread(target=process.stdout.read, daemon=True).start()
        shown = process.stderr.read()
        watchdog.cancel()
    assert (process.returncode, shown) == (130, b"bgem3: interrupted\n")
