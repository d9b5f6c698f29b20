"""Lines of text from a file or standard input, in UTF-8 in any locale, with or without a byte order mark."""

import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bgem3.runtime.texts import check_text

BYTE_ORDER_MARK = "\ufeff"
# Byte order marks of other encodings, in the form that surrogateescape gives to bytes that are not UTF-8, longest first
OTHER_MARKS = (
    ("\udcff\udcfe\0\0", "UTF-32"),
    ("\0\0\udcfe\udcff", "UTF-32"),
    ("\udcff\udcfe", "UTF-16"),
    ("\udcfe\udcff", "UTF-16"),
)
ERRORS = "surrogateescape"  # keeps a byte that is not UTF-8, so that read_texts can name it


@contextmanager
def open_lines(path: Path | None) -> Iterator[TextIO]:
    """Open a file, or standard input for None, for `read_texts`."""
    if path is not None:
        with path.open(encoding="utf-8", errors=ERRORS) as file:
            yield file
    elif sys.stdin is None:
        raise ValueError("standard input is closed; name a file to read")
    elif not hasattr(sys.stdin, "buffer"):  # a text stream that a program put there
        yield sys.stdin
    else:
        file = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors=ERRORS)
        try:
            yield file
        finally:
            file.detach()  # standard input stays open


def read_texts(lines: Iterable[str], name: str, text_field: str | None = None) -> Iterator[str]:
    """Yield one text per line: the line without its line break, or one field of the JSON object in it.

    ``lines`` come from `open_lines`, and messages call their file ``name``.

    Raises
    ------
    TypeError, ValueError
        If a line is not UTF-8 or no JSON object with the field, or its text is not valid. The message names the line.
    """
    for number, line in enumerate(lines, start=1):
        if number == 1:
            for mark, encoding in OTHER_MARKS:
                if line.startswith(mark):
                    raise ValueError(f"{name} is {encoding}; save it as UTF-8, as `iconv -f {encoding} -t UTF-8` does")
            line = line.removeprefix(BYTE_ORDER_MARK)
            if not line:  # the file holds the mark alone
                return
        try:
            line.encode()
        except UnicodeEncodeError as error:
            byte = ord(line[error.start]) & 0xFF
            raise ValueError(
                f"{name}, line {number} is not UTF-8: byte 0x{byte:02x} after {error.start} characters; save it as "
                "UTF-8, as `iconv -f ENCODING -t UTF-8` does"
            ) from None
        yield line.rstrip("\r\n") if text_field is None else _field(line, name, number, text_field)


def _field(line: str, name: str, number: int, text_field: str) -> str:
    """Return one field of a line's JSON object."""
    try:
        text: object = json.loads(line.removeprefix(BYTE_ORDER_MARK))[text_field]  # files joined have marks inside
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{name}, line {number} is not a JSON object with the field {text_field!r} ({error!r:.200}); name the "
            "field with --text-field, or leave it out if every line is a text"
        ) from None
    check_text(text, f"{name}: the text of line", number)
    return str(text)
