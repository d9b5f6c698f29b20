"""The command line reads and writes UTF-8 whatever the locale, and names what is not UTF-8 by file and line."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgem3.runtime import BGEM3Model
from bgem3.runtime.cli import main
from bgem3.runtime.text_lines import open_lines, read_texts

LINES = [
    "plain",
    "",
    "été",
    "面包 为什么 会 发 起来？",
    "\U0001f956 \u00a0",
    "a\0b",
    "after\u2028a\x85separator\x0c",
    "last",
]
BOM = b"\xef\xbb\xbf"
BUFFERED = {"PYTHONUNBUFFERED": ""}  # output is written out at the end, where it may fail
# Standard input and output are in another encoding, and arguments, too, where the locale is plain ASCII.
LOCALES = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def as_bytes(lines: list[str], text_field: str | None) -> bytes:
    """Return lines as a file holds them."""
    rows = lines if text_field is None else [json.dumps({text_field: line}, ensure_ascii=False) for line in lines]
    return "".join(f"{row}\n" for row in rows).encode()


def run(*arguments: object, environment: dict[str, str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `bgem3` as a process of its own, with bytes in and out."""
    command = [sys.executable, "-m", "bgem3.runtime.cli", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, env=os.environ | environment)


def set_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes, encoding: str = "latin-1") -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO(content), encoding=encoding)
    monkeypatch.setattr(sys, "stdin", stream)
    return stream


def texts_of(content: bytes, source: str, text_field: str | None, tmp_path: Path, monkeypatch: Any) -> list[str]:
    """Return the texts that the command line reads from a file or from standard input."""
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    set_stdin(monkeypatch, content)
    with open_lines(path if source == "file" else None) as lines:
        return list(read_texts(lines, source, text_field))


@pytest.fixture(params=["file", "standard input"])
def source(request: pytest.FixtureRequest) -> str:
    """Where texts are read from."""
    name: str = request.param
    return name


@pytest.fixture(params=[None, "text"], ids=["lines", "json"])
def text_field(request: pytest.FixtureRequest) -> str | None:
    """Whether lines are texts or JSON objects."""
    field: str | None = request.param
    return field


# --- what is read


def test_lines_are_read_as_utf_8_with_or_without_a_byte_order_mark(
    source: str, text_field: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = as_bytes(LINES, text_field)
    for start in (b"", BOM):
        assert texts_of(start + content, source, text_field, tmp_path, monkeypatch) == LINES
        assert texts_of(start + content[:-1], source, text_field, tmp_path, monkeypatch) == LINES
        windows = start + content.replace(b"\n", b"\r\n")
        assert texts_of(windows, source, text_field, tmp_path, monkeypatch) == LINES
    for nothing in (b"", BOM):
        assert texts_of(nothing, source, text_field, tmp_path, monkeypatch) == []


def test_a_byte_order_mark_before_a_later_line_is_dropped_from_json_and_kept_in_text(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = BOM + as_bytes(["a"], "text") + BOM + as_bytes(["b"], "text")  # two files written on Windows
    assert texts_of(joined, source, "text", tmp_path, monkeypatch) == ["a", "b"]
    assert texts_of(b"a\n" + BOM + b"b\n", source, None, tmp_path, monkeypatch) == ["a", "\ufeffb"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp437", "ascii", "utf-16", "utf-8"])
def test_the_encoding_of_the_standard_streams_does_not_matter(
    random_artifact: Path,
    random_model: BGEM3Model,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
) -> None:
    set_stdin(monkeypatch, as_bytes(LINES, None), encoding)
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["encode", str(random_artifact), "--outputs", "dense", "--precision", "fp32", "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in output.buffer.getvalue().decode().splitlines()]
    expected = random_model.encode(LINES, ("dense",))
    np.testing.assert_allclose([row["dense"] for row in rows], expected.dense, atol=1e-5)
    assert [row["n_tokens"] for row in rows] == expected.n_tokens.tolist()


@pytest.mark.parametrize("locale", LOCALES)
def test_in_any_locale_texts_and_arguments_are_utf_8(
    random_artifact: Path, random_model: BGEM3Model, tmp_path: Path, locale: str
) -> None:
    options = ("--precision", "fp32", "--device", "cpu")
    done = run(
        "encode",
        random_artifact,
        "--outputs",
        "dense",
        *options,
        stdin=as_bytes(LINES, None),
        environment=LOCALES[locale],
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["dense"] for line in done.stdout.decode().splitlines()]
    np.testing.assert_allclose(found, random_model.encode(LINES, ("dense",)).dense, atol=1e-5)

    done = run("score", random_artifact, *options, "-q", "été", "-p", "面包", "--json", environment=LOCALES[locale])
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.decode())
    assert (row["query"], row["passage"]) == ("été", "面包")
    expected = random_model.score(["été"], ["面包"]).hybrid[0, 0]
    assert row["hybrid"] == pytest.approx(float(expected), abs=1e-5)


def test_tables_are_utf_8_in_any_locale(random_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for encoding in ("utf-8", "latin-1", "ascii"):
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["score", str(random_artifact), "-q", "été", "-p", "面包", "--device", "cpu"]) == 0
        shown.append(output.buffer.getvalue())
    assert shown[0] == shown[1] == shown[2]
    assert "面包" in shown[0].decode()


# --- what is refused


@pytest.mark.parametrize(
    ("lines", "number", "words"),
    [
        ([b"a", b"b", b"caf\xe9", b"c"], 3, "byte 0xe9 after 3 characters"),
        ([b"\xff"], 1, "byte 0xff after 0 characters"),
        ([b"caf\xc3"], 1, "byte 0xc3 after 3 characters"),
        (["面包".encode() + b"\xed\xa0\x80"], 1, "byte 0xed after 2 characters"),  # a surrogate in UTF-8
        ([b"a", b"\xc0\x80"], 2, "byte 0xc0 after 0 characters"),  # NUL in two bytes
        ([b"a", b"\xf5\x80\x80\x80"], 2, "byte 0xf5"),  # beyond Unicode
        ([b"\x1f\x8b\x08\x00"], 1, "byte 0x8b after 1 characters"),  # gzip
        ([b"x"] * 5000 + [b"\x80"], 5001, "byte 0x80 after 0 characters"),
        ([b"x" * 300_000 + b"\xe9"], 1, "byte 0xe9 after 300000 characters"),
    ],
    ids=range(9),
)
def test_a_byte_that_is_not_utf_8_is_named_with_its_file_and_line(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[bytes], number: int, words: str
) -> None:
    for start in (b"", BOM):
        for end in (b"\n", b"\r\n"):
            with pytest.raises(ValueError, match=f"^{source}, line {number} is not UTF-8: {words}.*iconv"):
                texts_of(start + end.join(lines) + end, source, None, tmp_path, monkeypatch)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_utf_16_and_utf_32_are_told_by_their_byte_order_marks(
    source: str, text_field: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    mark = "\ufeff" if encoding.endswith("e") else ""
    name = encoding[:6].upper()
    content = (mark + as_bytes(["été", "a"], text_field).decode()).encode(encoding)
    with pytest.raises(ValueError, match=f"^{source} is {name}; save it as UTF-8, as `iconv -f {name} "):
        texts_of(content, source, text_field, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"not json", "line 2 is not a JSON object with the field 'text'"),
        (b"", "line 2 is not a JSON object"),
        (b"[1]", "line 2 is not a JSON object"),
        (b'{"body": "a"}', "line 2 is not a JSON object with the field 'text' .KeyError"),
        (b'"text"', "line 2 is not a JSON object"),
        (b"null", "line 2 is not a JSON object"),
        (b"[" * 100_000, "line 2 is not a JSON object .* RecursionError|line 2 is not a JSON object"),
        (b'{"text": ' + b"9" * 5000 + b"}", "line 2"),
        (b'{"text": null}', "the text of line 2 must be a str, found NoneType"),
        (b'{"text": ["a"]}', "the text of line 2 must be a str, found list"),
        (b'{"text": "\\ud800"}', "the text of line 2 holds a lone surrogate"),
        (b'{"text": "caf\xe9"}', "line 2 is not UTF-8: byte 0xe9 after 13 characters"),
    ],
    ids=range(12),
)
def test_a_line_without_the_text_is_named_with_its_file_and_number(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, words: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{source}[,:].*{words}"):
        texts_of(b'{"text": "a"}\n' + line + b"\n", source, "text", tmp_path, monkeypatch)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=8), st.text(max_size=4).map(str.encode)), max_size=6))
def test_any_bytes_are_lines_of_utf_8_or_refused_with_the_number_of_the_first_that_is_not(rows: list[bytes]) -> None:
    def is_utf_8(line: bytes) -> bool:
        try:
            line.decode()
        except UnicodeDecodeError:
            return False
        return True

    rows = [row.replace(b"\r", b"").replace(b"\n", b"") for row in rows]
    content = b"".join(row + b"\n" for row in rows).removeprefix(BOM)
    is_good = [is_utf_8(row) for row in content.split(b"\n")[:-1]]
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="surrogateescape")
    if all(is_good):
        assert list(read_texts(lines, "file")) == content.decode().split("\n")[:-1]
        return
    number = is_good.index(False) + 1
    with pytest.raises(ValueError, match=f"^file, line {number} is not UTF-8|^file is UTF-(16|32)"):
        list(read_texts(lines, "file"))


@pytest.mark.parametrize("suffix", [".jsonl", ".npz", ".parquet"])
def test_a_bad_byte_leaves_no_file_and_no_half_line(
    random_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    monkeypatch.setattr("bgem3.runtime.cli.TEXTS_PER_CHUNK", 2)  # some texts are encoded before the bad one is read
    path = tmp_path / "input.txt"
    path.write_bytes(b"a\nb\nc\nd\ncaf\xe9\n")
    command = ["encode", str(random_artifact), str(path), "--outputs", "dense", "--device", "cpu"]
    assert main([*command, "-o", str(tmp_path / f"out{suffix}")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        f"bgem3: {path}, line 5 is not UTF-8: byte 0xe9 after 3 characters; save it as UTF-8, as "
        "`iconv -f ENCODING -t UTF-8` does\n"
    )
    assert list(tmp_path.iterdir()) == [path]
    assert main(command) == 2
    assert [set(json.loads(line)) for line in capsys.readouterr().out.splitlines()] == [
        {"n_tokens", "truncated", "dense"}
    ] * 4


@pytest.mark.parametrize("option", ["-q", "-p"])
def test_an_argument_that_is_not_utf_8_is_refused_with_its_byte(
    random_artifact: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    other = "-p" if option == "-q" else "-q"
    with pytest.raises(SystemExit) as ended:
        main(["score", str(random_artifact), other, "a", option, os.fsdecode(b"caf\xe9")])
    assert ended.value.code == 2
    assert f"argument {option}/--" in (shown := capsys.readouterr().err)
    assert "byte 0xe9 at position 3 is not UTF-8" in shown


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
    assert main(["encode", str(random_artifact), str(tmp_path / os.fsdecode(b"no\xe9")), "--device", "cpu"]) == 2
    assert "no\\udce9" in capsys.readouterr().err
    assert main(["score", str(link), "-q", "a", "-p", "b", "--device", "cpu"]) == 2
    assert "not UTF-8, which ONNX Runtime cannot open; rename it" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["texts.jsonl", "../folder/texts.jsonl", "link.jsonl", "hard.jsonl"])
def test_the_input_is_never_replaced_by_the_output(
    random_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    source = folder / "texts.jsonl"
    source.write_bytes(b'{"text": "a"}\n')
    (folder / "link.jsonl").symlink_to(source)
    (folder / "hard.jsonl").hardlink_to(source)
    command = ["encode", str(random_artifact), str(source), "--text-field", "text", "-o", str(folder / output)]
    assert main(command) == 2
    assert "is the input, too, and would be replaced; name another --output" in capsys.readouterr().err
    assert source.read_bytes() == b'{"text": "a"}\n'


# --- streams that are not there, or end early


def test_closed_streams_are_an_error_that_says_what_to_name(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["encode", str(random_artifact), "--device", "cpu"]
    monkeypatch.setattr(sys, "stdin", None)
    assert main(command) == 2
    assert "standard input is closed; name a file" in capsys.readouterr().err
    set_stdin(monkeypatch, b"a\n")
    monkeypatch.setattr(sys, "stdout", None)
    assert main(command) == 2
    assert "standard output is closed; name a file with --output" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "out.npz")]) == 0
    assert main(["info", str(random_artifact)]) == 0


def test_progress_is_left_out_where_standard_error_is_closed(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["verify", str(random_artifact), "--precision", "fp32"]) == 0
    with BGEM3Model.load(random_artifact, "cpu", "fp32") as model:
        assert len(model.encode(["a"], show_progress=True)) == 1


def test_standard_input_is_left_open(random_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = set_stdin(monkeypatch, b"a\n")
    assert main(["encode", str(random_artifact), "--outputs", "dense", "--device", "cpu"]) == 0
    assert not stream.buffer.closed


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["info", "ARTIFACT", "--json"], ["info", "ARTIFACT"]], ids=["help", "json", "table"]
)
def test_output_that_nobody_reads_is_no_error(random_artifact: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bgem3.runtime.cli", *arguments]
    command = [str(random_artifact) if argument == "ARTIFACT" else argument for argument in command]
    with os.fdopen(writer, "wb") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, check=False, env=os.environ | BUFFERED)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_an_error_that_nobody_reads_keeps_its_exit_status() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bgem3.runtime.cli", "info", "no such folder"]
    with os.fdopen(writer, "wb") as errors:
        done = subprocess.run(command, stderr=errors, check=False, env=os.environ | BUFFERED)
    assert done.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line(random_artifact: Path) -> None:
    command = [sys.executable, "-m", "bgem3.runtime.cli", "info", str(random_artifact), "--json"]
    with Path("/dev/full").open("wb") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, check=False, env=os.environ | BUFFERED)
    assert done.returncode == 2
    assert done.stderr.startswith(b"bgem3: ")
    assert done.stderr.count(b"\n") == 1


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
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        process.stdin.write(b"honey\n" * 5000)  # more than a chunk, so it encodes, writes, and waits for more
        process.stdin.flush()
        process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        threading.Thread(target=process.stdout.read, daemon=True).start()
        shown = process.stderr.read() if process.stderr else b""
        watchdog.cancel()
    assert process.returncode == 130
    assert shown == b"bgem3: interrupted\n"
