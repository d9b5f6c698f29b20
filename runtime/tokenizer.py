"""Texts to token ids, with the checkpoint's own tokenizer.json."""

import codecs
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bgem3.runtime.artifact import ArtifactError, ModelSpec

UNKNOWN = "\u0378"  # no character, and none will be for long
TEXTS_PER_CHUNK = 1024  # bounds the tokenizer's bookkeeping, which is far larger than the ids


@dataclass(frozen=True, kw_only=True)
class TokenizedTexts:
    """Token ids of N texts, packed: text i owns ``token_ids[offsets[i]:offsets[i + 1]]``.

    Attributes
    ----------
    token_ids : (T,) int64 array, CLS and EOS included
    offsets : (N + 1,) int64 array
    truncated : (N,) bool array, True where the text was longer than the limit
    """

    token_ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @classmethod
    def concatenate(cls, parts: Sequence["TokenizedTexts"]) -> "TokenizedTexts":
        """Join lists of texts."""
        lengths = [part.lengths for part in parts]
        return cls(
            token_ids=np.concatenate([np.empty(0, np.int64), *(part.token_ids for part in parts)]),
            offsets=np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths])),
            truncated=np.concatenate([np.empty(0, np.bool_), *(part.truncated for part in parts)]),
        )


class TextTokenizer:
    """Wraps tokenizer.json; safe to call from many threads, since a call changes no settings."""

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        try:
            self._tokenizer = load_tokenizer(path)
            check_tokenizer(self._tokenizer, spec)
        except ValueError as error:
            raise ArtifactError(f"{path} {error}; export the checkpoint again") from None
        self._spec = spec

    def __call__(self, texts: list[str], max_length: int) -> TokenizedTexts:
        """Tokenize checked texts; one longer than ``max_length`` tokens loses its end and keeps EOS."""
        ids: list[NDArray[np.int64]] = []
        truncated = np.zeros(len(texts), np.bool_)
        for start in range(0, len(texts), TEXTS_PER_CHUNK):
            for encoding in self._tokenizer.encode_batch_fast(texts[start : start + TEXTS_PER_CHUNK]):
                text_ids = np.array(encoding.ids[: max_length + 1], np.int64)
                if len(text_ids) > max_length:
                    truncated[len(ids)] = True
                    text_ids = text_ids[:max_length]
                    text_ids[-1] = self._spec.eos_id
                ids.append(text_ids)
        offsets = np.cumsum([0] + [len(text_ids) for text_ids in ids], dtype=np.int64)
        token_ids = np.concatenate(ids) if ids else np.empty(0, np.int64)
        return TokenizedTexts(token_ids=token_ids, offsets=offsets, truncated=truncated)

    def token(self, token_id: int) -> str:
        """Return a token id's text as decoding gives it (the word-start mark is dropped)."""
        token: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return token

    @property
    def backend(self) -> Tokenizer:
        """Return the tokenizers library's object; its settings must stay as they are."""
        return self._tokenizer

    def check_max_length(self, max_length: int) -> None:
        """Raise TypeError or ValueError if a limit is no number of tokens within the model's range."""
        if isinstance(max_length, bool) or not isinstance(max_length, (int, np.integer)):
            raise TypeError(f"max_length must be a whole number of tokens, found {max_length!r}")
        if not 2 <= max_length <= self._spec.max_length:
            raise ValueError(
                f"max_length must be from 2 (CLS and EOS alone) to {self._spec.max_length} tokens, the most this "
                f"model takes, found {max_length}"
            )


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, with or without a byte order mark. Stored padding and truncation are not applied.

    Raises
    ------
    ValueError
        If the file is not a tokenizer; the message goes on after the file's path.
    """
    if not path.is_file():
        raise ValueError("is not a regular file")
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
        raise ValueError(f"is not a tokenizer file ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, spec: ModelSpec) -> None:
    """Raise ValueError if a tokenizer's ids are not the model's; the message goes on after the file's path."""
    try:
        around, unknown = tokenizer.encode("").ids, tokenizer.encode(UNKNOWN).ids
    except BaseException as error:  # bare Exception, or a Rust panic, which is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(f"cannot encode a text ({error})") from None
    if around != [spec.cls_id, spec.eos_id]:
        raise ValueError(
            f"puts the tokens {around} around a text, the manifest says CLS {spec.cls_id} and EOS {spec.eos_id}"
        )
    if _n_ids(tokenizer) > spec.vocab_size:
        raise ValueError(f"has token ids up to {_n_ids(tokenizer) - 1}, the model embeds {spec.vocab_size} tokens")
    named_pad, named_unk = tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("<unk>")
    if named_pad not in (None, spec.pad_id):
        raise ValueError(f"has <pad> as token {named_pad}, the manifest says {spec.pad_id}")
    if named_unk not in (None, spec.unk_id) and spec.unk_id not in unknown:
        raise ValueError(f"has <unk> as token {named_unk}, the manifest says {spec.unk_id}")


def _n_ids(tokenizer: Tokenizer) -> int:
    """Return the largest token id plus 1; Unigram counts its tokens through, and listing them would take long."""
    if type(tokenizer.model).__name__ == "Unigram":
        n_ids = tokenizer.get_vocab_size(with_added_tokens=False)
    else:
        n_ids = 1 + max(tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)
    return int(max(n_ids, 1 + max(tokenizer.get_added_tokens_decoder(), default=-1)))


def cut_texts(texts: Iterable[str], n_characters: int, n_texts: int | None = None) -> Iterator[list[str]]:
    """Cut texts into lists that end with the text that reaches ``n_characters``, or with the ``n_texts``-th.

    No texts at all give one empty list, so that outputs keep their shape.
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


def check_texts(texts: Iterable[str], kind: str = "text") -> list[str]:
    """Return the texts as a list of plain str, or raise saying what is not a text and why.

    Any iterable of one dimension is taken: list, generator, NumPy array, column of pandas, Polars or Arrow.

    Parameters
    ----------
    kind : names one of the texts in a message

    Raises
    ------
    TypeError
        If it is no iterable of str, or one whose items are not what a caller means, as a table's column names.
    ValueError
        If a text is not valid Unicode.
    """
    plural = "queries" if kind == "query" else f"{kind}s"
    if isinstance(texts, str):
        raise TypeError(f"{plural} must be a list of str, found one str; pass [{kind}]")
    checked = list(rows_of(texts, plural, "str"))
    for i, text in enumerate(checked):
        if type(text) is not str:
            checked[i] = text = _plain_str(text, kind, i)
        if not text.isascii():
            check_text(text, kind, i)
    return checked


def rows_of(
    values: Iterable[Any], plural: str, row: str, n_dims: tuple[int, ...] = (1,), column: str = "table['text']"
) -> Iterable[Any]:
    """Return what to iterate over to get a list's items, or raise TypeError for what is no list of them.

    Parameters
    ----------
    plural, row : name the items, and the type of one, in a message
    n_dims : numbers of dimensions that an array may have
    column : shows in a message how to pass what a table holds
    """
    if isinstance(values, (list, tuple)):
        return values
    shape = getattr(values, "shape", None)
    advice = None if isinstance(values, Iterable) else ""
    if isinstance(values, (bytes, bytearray, memoryview)):
        advice = "; decode it and pass a list"
    elif isinstance(values, Mapping):
        advice = "; pass a list of what it holds, such as list(d.values()) or d['text']"
    elif isinstance(values, (set, frozenset)):
        advice = ", which has no order for the results; pass a list"
    elif isinstance(values, os.PathLike):
        advice = "; pass the file's lines, path.read_text(encoding='utf-8').splitlines()"
    elif hasattr(values, "readline"):
        advice = ", a file, whose lines end with line breaks; pass file.read().splitlines()"
    elif any(hasattr(type(values), name) for name in ("columns", "column_names")):  # pandas, Polars, Arrow, datasets
        advice = f", a table; pass {column}"
    elif isinstance(shape, tuple) and len(shape) not in n_dims:
        advice = f" of shape {shape}; pass one of {n_dims[-1]} dimension{'s' if n_dims[-1] > 1 else ''}"
    if advice is not None:
        raise TypeError(f"{plural} must be a list of {row}, found {type(values).__name__}{advice}")
    if hasattr(values, "to_pylist"):  # an Arrow array's items are not Python's
        return cast("list[Any]", values.to_pylist())
    return values


def _plain_str(text: object, kind: str, number: int) -> str:
    """Return a str of a derived type as a plain one; raise TypeError for anything else."""
    check_text(text, kind, number)
    return str.__str__(cast(str, text))


def check_text(text: object, kind: str, number: int) -> None:
    """Raise TypeError or ValueError, naming the text by its kind and number, if it is not valid Unicode text."""
    if not isinstance(text, str):
        hint = _how_to_mend(text)
        raise TypeError(f"{kind} {number} must be a str, found {type(text).__name__}{hint}")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{kind} {number} holds a lone surrogate ({text[error.start]!r}) at character {error.start}, which is not "
            "valid Unicode; clean it with text.encode('utf-8', 'replace').decode()"
        ) from None


def _how_to_mend(text: object) -> str:
    """Say what to do with an item that is not a str."""
    if isinstance(text, (bytes, bytearray, memoryview)):
        return "; decode it first"
    is_nan = isinstance(text, float) and text != text
    if text is None or is_nan or type(text).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return ", a missing value; fill it with '' or leave it out"
    if hasattr(text, "as_py"):
        return "; convert it with as_py()"
    if isinstance(text, (list, tuple)):
        return "; pass a flat list of texts"
    if isinstance(text, Mapping):
        return "; pass the field that holds the text"
    return ""
