"""Texts as callers pass them: any ordered iterable of str, checked once and cut into chunks."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

NO_LISTS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((bytes, bytearray, memoryview), "; decode it and pass a list"),
    (Mapping, "; pass a list of what it holds, such as list(d.values()) or d['text']"),
    ((set, frozenset), ", which has no order for the results; pass a list"),
    (os.PathLike, "; pass the file's lines, path.read_text(encoding='utf-8').splitlines()"),
)
"""Types that are no list of texts, and what to pass instead."""
NO_TEXTS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((bytes, bytearray, memoryview), "; decode it first"),
    ((list, tuple), "; pass a flat list of texts"),
    (Mapping, "; pass the field that holds the text"),
)
"""Types that are no text, and what to pass instead."""
MISSING_VALUES = ("NoneType", "NAType", "NaTType", "MaskedConstant")  # types of None and of pandas' and NumPy's own


def check_texts(texts: Iterable[str], kind: str = "text") -> list[str]:
    """Return texts as a list of plain str.

    Any iterable of one dimension will do: list, generator, NumPy array, column of pandas, Polars or Arrow. Messages
    call one of the texts ``kind``: "text", "query" or "passage".

    Raises
    ------
    TypeError, ValueError
        If ``texts`` is no such iterable, an item is no str, or a text is not valid Unicode.
    """
    plural = "queries" if kind == "query" else f"{kind}s"
    if isinstance(texts, str):
        raise TypeError(f"{plural} must be a list of str, found one str; pass [{kind}]")
    checked = list(rows_of(texts, plural, "str"))
    for i, text in enumerate(checked):
        check_text(text, kind, i)
        if type(text) is not str:
            checked[i] = str.__str__(text)  # the characters, whatever a derived type shows
    return checked


def check_text(text: object, kind: str, number: int) -> None:
    """Raise TypeError or ValueError, naming the text by its kind and number, if it is not valid Unicode text."""
    if not isinstance(text, str):
        raise TypeError(f"{kind} {number} must be a str, found {type(text).__name__}{_how_to_mend(text)}")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{kind} {number} holds a lone surrogate ({text[error.start]!r}) at character {error.start}, which is not "
            "valid Unicode; clean it with text.encode('utf-8', 'replace').decode()"
        ) from None


def rows_of(
    values: Iterable[Any], plural: str, row: str, n_dims: tuple[int, ...] = (1,), column: str = "table['text']"
) -> Iterable[Any]:
    """Return the iterable over a list's items, or raise TypeError for a value that is no list of them.

    Messages call the list ``plural`` and an item ``row``, and advise to pass ``column`` of a table. An array may have
    ``n_dims`` dimensions.
    """
    if isinstance(values, (list, tuple)):
        return values
    advice = _how_to_pass(values, n_dims, column)
    if advice is not None:
        raise TypeError(f"{plural} must be a list of {row}, found {type(values).__name__}{advice}")
    if hasattr(values, "to_pylist"):  # an Arrow array's items are not Python's
        return cast("list[Any]", values.to_pylist())
    return values


def cut_texts(texts: Iterable[str], n_characters: int, n_texts: int | None = None) -> Iterator[list[str]]:
    """Cut texts into chunks that end with the text that reaches ``n_characters``, or with the ``n_texts``-th.

    No texts at all give one empty chunk, so that outputs keep their shape.
    """
    chunk: list[str] = []
    n_chunks = n_read = 0
    for text in texts:
        chunk.append(text)
        n_read += len(text)
        if len(chunk) == n_texts or n_read >= n_characters:
            yield chunk
            chunk, n_chunks, n_read = [], n_chunks + 1, 0
    if chunk or not n_chunks:
        yield chunk


def _how_to_pass(values: object, n_dims: tuple[int, ...], column: str) -> str | None:
    """Say how to pass the items of an object that is no list of items; None if it may be iterated over."""
    for kinds, advice in NO_LISTS:
        if isinstance(values, kinds):
            return advice
    if hasattr(values, "readline"):
        return ", a file, whose lines end with line breaks; pass file.read().splitlines()"
    if any(hasattr(type(values), name) for name in ("columns", "column_names")):  # pandas, Polars, Arrow, datasets
        return f", a table; pass {column}"
    shape = getattr(values, "shape", None)
    if isinstance(shape, tuple) and len(shape) not in n_dims:
        return f" of shape {shape}; pass one of {n_dims[-1]} dimension{'s' if n_dims[-1] > 1 else ''}"
    return None if isinstance(values, Iterable) else ""


def _how_to_mend(text: object) -> str:
    """Say what to pass instead of an item that is no str."""
    if type(text).__name__ in MISSING_VALUES or (isinstance(text, float) and text != text):
        return ", a missing value; fill it with '' or leave it out"
    if hasattr(text, "as_py"):
        return "; convert it with as_py()"
    return next((advice for kinds, advice in NO_TEXTS if isinstance(text, kinds)), "")
