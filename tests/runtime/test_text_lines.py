"""Lines of text: UTF-8 with or without a byte order mark; other bytes are named by file, line and place."""

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgem3.runtime.text_lines import ERRORS, open_lines, read_texts

LINES = ["plain", "", "été", "面包 会 发 起来？", "\U0001f956 \u00a0", "a\0b", "after\u2028a\x85separator\x0c", "last"]
BOM = b"\xef\xbb\xbf"


def as_bytes(lines: list[str], text_field: str | None) -> bytes:
    """Return lines as a file holds them."""
    rows = lines if text_field is None else [json.dumps({text_field: line}, ensure_ascii=False) for line in lines]
    return "".join(f"{row}\n" for row in rows).encode()


def texts_of(content: bytes, text_field: str | None = None) -> list[str]:
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors=ERRORS)
    return list(read_texts(lines, "input", text_field))


def test_a_file_and_standard_input_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input.txt").write_bytes(as_bytes(LINES, None))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(as_bytes(LINES, None)), encoding="latin-1"))
    for path in (tmp_path / "input.txt", None):
        with open_lines(path) as lines:
            assert list(read_texts(lines, "input")) == LINES


@pytest.mark.parametrize("text_field", [None, "text"])
def test_lines_are_read_with_or_without_a_byte_order_mark(text_field: str | None) -> None:
    content = as_bytes(LINES, text_field)
    for start in (b"", BOM):
        for written in (content, content[:-1], content.replace(b"\n", b"\r\n")):
            assert texts_of(start + written, text_field) == LINES
        assert texts_of(start, text_field) == []


def test_a_byte_order_mark_before_a_later_line_is_dropped_from_json_and_kept_in_text() -> None:
    joined = BOM + as_bytes(["a"], "text") + BOM + as_bytes(["b"], "text")  # two files written on Windows
    assert texts_of(joined, "text") == ["a", "b"]
    assert texts_of(b"a\n" + BOM + b"b\n") == ["a", "\ufeffb"]


@pytest.mark.parametrize(
    ("lines", "number", "words"),
    [
        ([b"a", b"b", b"caf\xe9", b"c"], 3, "byte 0xe9 after 3 characters"),
        (["面包".encode() + b"\xed\xa0\x80"], 1, "byte 0xed after 2 characters"),  # a surrogate in UTF-8
        ([b"x" * 300_000 + b"\xe9"], 1, "byte 0xe9 after 300000 characters"),
    ],
    ids=range(3),
)
def test_a_byte_that_is_not_utf_8_is_named_with_its_file_and_line(lines: list[bytes], number: int, words: str) -> None:
    for start in (b"", BOM):
        for end in (b"\n", b"\r\n"):
            with pytest.raises(ValueError, match=f"^input, line {number} is not UTF-8: {words}.*iconv"):
                texts_of(start + end.join(lines) + end)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_utf_16_and_utf_32_are_told_by_their_byte_order_marks(encoding: str) -> None:
    mark, name = "\ufeff" if encoding.endswith("e") else "", encoding[:6].upper()
    content = (mark + as_bytes(["été", "a"], "text").decode()).encode(encoding)
    for text_field in (None, "text"):
        with pytest.raises(ValueError, match=f"^input is {name}; save it as UTF-8, as `iconv -f {name} "):
            texts_of(content, text_field)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"not json", "is not a JSON object with the field 'text'"),
        (b'{"body": "a"}', "is not a JSON object with the field 'text' .KeyError"),
        (b"[" * 100_000, "is not a JSON object"),
        (b'{"text": null}', "must be a str, found NoneType"),
        (b'{"text": "\\ud800"}', "holds a lone surrogate"),
        (b'{"text": "caf\xe9"}', "is not UTF-8: byte 0xe9 after 13 characters"),
    ],
    ids=range(6),
)
def test_a_line_without_the_text_is_named_with_its_file_and_number(line: bytes, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^input[,:].* line 2.*{words}"):
        texts_of(b'{"text": "a"}\n' + line + b"\n", "text")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=8) | st.text(max_size=4).map(str.encode), max_size=6))
def test_any_bytes_are_lines_of_utf_8_or_refused_with_the_number_of_the_first_that_is_not(rows: list[bytes]) -> None:
    def is_utf_8(line: bytes) -> bool:
        return line.decode(errors="replace").encode() == line

    rows = [row.replace(b"\r", b"").replace(b"\n", b"") for row in rows]
    content = b"".join(row + b"\n" for row in rows).removeprefix(BOM)
    is_good = [is_utf_8(row) for row in content.split(b"\n")[:-1]]
    if all(is_good):
        assert texts_of(content) == content.decode().split("\n")[:-1]
        return
    with pytest.raises(ValueError, match=f"^input, line {is_good.index(False) + 1} is not UTF-8|^input is UTF-(16|32)"):
        texts_of(content)
