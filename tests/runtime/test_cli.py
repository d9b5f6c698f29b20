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
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from bgem3.runtime import BGEM3Model, Embeddings, cli
from tests.paths import ROOT

LINES = ["What is BM25?", "", "面包 为什么 会 发 起来？", "a\0b", "after\u2028a\x85separator", "\U0001f956"]
# the standard streams are in another encoding, and arguments in a third
OTHER_LOCALE = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
COMMAND = [sys.executable, "-m", "bgem3.runtime.cli"]
CPU_FP32 = ("--device", "cpu", "--precision", "fp32")
Main = Callable[..., SimpleNamespace]


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Main:
    """The function that runs a command in this process, and returns its status and what it wrote."""

    def run(*arguments: object) -> SimpleNamespace:
        try:
            status: object = cli.main([*map(str, arguments)])
        except SystemExit as ended:
            status = ended.code
        shown = capsys.readouterr()
        return SimpleNamespace(status=status, out=shown.out, err=shown.err)

    return run


def run_process(*arguments: object, stdin: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
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
    random_artifact: Path, random_model: BGEM3Model, main: Main
) -> None:
    environment = os.environ | OTHER_LOCALE
    text = "".join(f"{line}\n" for line in LINES)
    done = run_process("encode", random_artifact, *CPU_FP32, "--max-length", "9", stdin=text, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = random_model.encode(LINES, max_length=9)
    assert len(rows) == len(LINES)
    for i, row in enumerate(rows):
        assert (row["n_tokens"], row["truncated"]) == (expected.n_tokens[i], expected.truncated[i])
        np.testing.assert_allclose(row["dense"], expected.dense[i], atol=1e-5)
        np.testing.assert_allclose(row["multivector"], expected.multivector[i], atol=1e-5)
        assert row["sparse"] == pytest.approx({k: float(v) for k, v in expected.lexical_weights[i].items()}, abs=1e-5)

    texts = ("-q", "été", "-p", "面包", "-p", "[red] :bee:", "--weights", "1", "2", "3")
    done = run_process("score", random_artifact, *CPU_FP32, *texts, "--json", env=environment)
    scores = random_model.score(["été"], ["面包", "[red] :bee:"], weights=(1, 2, 3))
    for j, row in enumerate(json.loads(done.stdout)):
        assert (row["query"], row["passage"]) == ("été", texts[2 * j + 3])
        for name in ("dense", "sparse", "multivector", "hybrid"):
            assert row[name] == pytest.approx(float(getattr(scores, name)[0, j]), abs=1e-5)
    table = main("score", random_artifact, *CPU_FP32, *texts).out
    assert all(shown in table for shown in ("été", "面包", "[red] :bee:", f"{scores.dense[0, 0]:.4f}"))


def test_encode_reads_a_field_of_json_lines_and_writes_only_the_outputs_asked_for(
    random_artifact: Path, tmp_path: Path, main: Main
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": i, "body": line}) + "\n" for i, line in enumerate(LINES)))
    assert "name the field that is the text with --text-field" in main("encode", random_artifact, path).err
    shown = main("encode", random_artifact, path, "--text-field", "body", "--outputs", "dense").out
    assert [set(json.loads(row)) for row in shown.splitlines()] == [{"n_tokens", "truncated", "dense"}] * len(LINES)


def test_encode_writes_files_in_chunks_of_bounded_size(
    random_artifact: Path, random_model: BGEM3Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, main: Main
) -> None:
    expected = random_model.encode(LINES)
    monkeypatch.setattr(cli, "CHARACTERS_PER_CHUNK", 20)
    encode, n_texts = BGEM3Model.encode, []

    def counting(self: BGEM3Model, texts: list[str], *options: Any) -> Embeddings:
        n_texts.append(len(texts))
        return encode(self, texts, *options)

    monkeypatch.setattr(BGEM3Model, "encode", counting)
    (tmp_path / "lines.txt").write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    for name in ("out.parquet", "out.npz", "out.jsonl"):
        done = main("encode", random_artifact, tmp_path / "lines.txt", *CPU_FP32, "-o", tmp_path / name)
        assert done.status == 0
    assert n_texts == [3, 2, 1] * 3
    found = Embeddings.load(tmp_path / "out.npz")
    np.testing.assert_allclose(found.dense, expected.dense, atol=1e-5)
    np.testing.assert_allclose(found.multivector.packed, expected.multivector.packed, atol=1e-5)
    assert found.sparse.indices.tolist() == expected.sparse.indices.tolist()
    rows = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["n_tokens"] for row in rows] == expected.n_tokens.tolist()
    np.testing.assert_allclose([row["dense"] for row in rows], expected.dense.tolist(), atol=1e-5)
    assert [[k for k, _ in row["sparse"]] for row in rows] == [list(weights) for weights in expected.lexical_weights]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == len(LINES)


def test_verify_reports_each_graph_and_fails_on_other_values_than_the_published(
    demo_artifact: Path, main: Main
) -> None:
    done = main("verify", demo_artifact, "--json")
    reports = json.loads(done.out)
    graphs = {f"{precision}/{graph}.onnx" for precision in ("fp16", "fp32") for graph in ("cuda", "cpu", "native")}
    assert (done.status, set(reports)) == (0, {*graphs, "portable/model.onnx"})
    assert all(report["missed"] == [] for report in reports.values())
    assert "no CUDA provider" in reports["fp16/cuda.onnx"]["not_run"]
    done = main("verify", demo_artifact, "--precision", "fp32", "--published")
    assert done.status == 1
    assert all(words in done.out for words in ("not run: ", "published values", "dense"))


def test_info_shows_what_the_artifact_holds(demo_artifact: Path, main: Main) -> None:
    assert json.loads(main("info", demo_artifact, "--json").out)["model"]["max_length"] == 512
    shown = main("info", demo_artifact).out
    assert all(words in shown for words in ("fp16/weights.bin", "max_length", "against the checkpoint"))


def test_export_exports_and_its_script_is_the_same_door(
    demo_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = main("export", demo_checkpoint, tmp_path / "a", "--precision", "fp32", "--json")
    assert {graph["precision"] for graph in json.loads(done.out)["graphs"]} == {"fp32"}
    assert (done.status, done.err) == (0, "")
    monkeypatch.setattr(sys, "argv", ["export_model.py", str(demo_checkpoint), str(tmp_path / "a")])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "scripts/export_model.py"), run_name="__main__")
    assert "--overwrite" in capsys.readouterr().err


def test_every_command_has_help(main: Main) -> None:
    for command in ("export", "encode", "score", "verify", "bench", "info"):
        assert f" {command} [-h]" in main(command, "--help").out


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
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, main: Main, arguments: str, words: str
) -> None:
    set_stdin(monkeypatch, "not json\n")
    done = main(*(random_artifact if word == "ARTIFACT" else word for word in arguments.split()))
    assert (done.status, done.out) == (2, "")
    assert words in done.err.splitlines()[-1]


@pytest.mark.parametrize("suffix", [".jsonl", ".npz", ".parquet"])
def test_a_bad_byte_is_named_and_leaves_the_output_file_as_it_was(
    random_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: Main, suffix: str
) -> None:
    monkeypatch.setattr(cli, "TEXTS_PER_CHUNK", 2)  # some texts are encoded before the bad one is read
    path, output = tmp_path / "input.txt", tmp_path / f"out{suffix}"
    path.write_bytes(b"a\nb\nc\nd\ncaf\xe9\n")
    command = ("encode", random_artifact, path, "--outputs", "dense", "--device", "cpu")
    done = main(*command, "-o", output)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"bgem3: {path}, line 5 is not UTF-8: byte 0xe9 after 3 characters; ")
    assert list(tmp_path.iterdir()) == [path]
    output.write_bytes(b"what was there")
    assert main(*command, "-o", output).status == 2
    assert (len(list(tmp_path.iterdir())), output.read_bytes()) == (2, b"what was there")
    assert main(*command).out.count("n_tokens") == 4


def test_the_input_is_never_replaced_by_the_output(random_artifact: Path, tmp_path: Path, main: Main) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_bytes(b'{"text": "a"}\n')
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "hard.jsonl").hardlink_to(source)
    for name in ("texts.jsonl", "link.jsonl", "hard.jsonl"):
        done = main("encode", random_artifact, source, "--text-field", "text", "-o", tmp_path / name)
        assert "is the input, too, and would be replaced; name another --output" in done.err
        assert source.read_bytes() == b'{"text": "a"}\n'


def test_names_of_files_that_are_not_utf_8_are_shown_as_escapes(
    random_artifact: Path, tmp_path: Path, main: Main
) -> None:
    try:
        link = tmp_path / os.fsdecode(b"caf\xe9")
        link.symlink_to(random_artifact)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert "caf\\udce9" in main("info", link).out
    done = main("score", link, "-q", "a", "-p", "b", "--device", "cpu")
    assert "not UTF-8, which ONNX Runtime cannot open; rename it" in done.err


# Streams that are closed, or end early


def test_closed_streams_are_an_error_that_says_what_to_name(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, main: Main
) -> None:
    command = ("encode", random_artifact, "--device", "cpu")
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed; name a file" in main(*command).err
    stream = set_stdin(monkeypatch, "a\n")
    monkeypatch.setattr(sys, "stdout", None)
    assert "standard output is closed; name a file with --output" in main(*command).err
    assert main(*command, "-o", tmp_path / "out.npz").status == 0
    assert not stream.buffer.closed
    assert main("info", random_artifact).status == 0
    monkeypatch.setattr(sys, "stderr", None)
    assert main("verify", random_artifact, "--precision", "fp32").status == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_output_that_nobody_reads_is_no_error_and_keeps_the_exit_status(random_artifact: Path) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": ""}  # output is written out at the end, where it may fail
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        done = run_process("info", random_artifact, stdout=output, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert run_process("info", "no such folder", stderr=output, env=environment).returncode == 2
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as output:
            done = run_process("info", random_artifact, "--json", stdout=output, env=environment)
        assert (done.returncode, done.stderr.count("\n"), done.stderr[:7]) == (2, 1, "bgem3: ")


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
