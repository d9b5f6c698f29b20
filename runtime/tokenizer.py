"""Token ids of texts, from the checkpoint's own tokenizer.json."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bgem3.runtime.artifact import ArtifactError
from bgem3.runtime.manifest import ModelSpec

UNKNOWN = "\u0378"  # unassigned in Unicode, so no vocabulary has it
TEXTS_PER_CHUNK = 1024  # texts tokenized at once; the tokenizer's own results take far more memory than the ids


@dataclass(frozen=True, kw_only=True)
class TokenizedTexts:
    """Token ids of N texts, packed: text i owns ``token_ids[offsets[i]:offsets[i + 1]]``.

    Attributes
    ----------
    token_ids : int64 array (T,)
        CLS and EOS of each text included.
    offsets : int64 array (N + 1,)
    truncated : bool array (N,)
        True where a text was longer than the limit.
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
    """The tokenizer of a model. It may be called from many threads at once, because a call changes no settings."""

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        try:
            self._tokenizer = load_tokenizer(path)
            check_tokenizer(self._tokenizer, spec)
        except ValueError as error:
            raise ArtifactError(f"{path} {error}; export the checkpoint again") from None
        self._spec = spec

    def __call__(self, texts: list[str], max_length: int) -> TokenizedTexts:
        """Tokenize checked texts. A text of more than ``max_length`` tokens loses its end and keeps EOS."""
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
        """Return the text of a token id, as decoding gives it: without the mark of a word's start."""
        token: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return token

    @property
    def backend(self) -> Tokenizer:
        """Return the object of the tokenizers library. Callers must not change its settings."""
        return self._tokenizer

    def check_max_length(self, max_length: int) -> None:
        """Raise TypeError or ValueError if ``max_length`` is not a number of tokens that the model takes."""
        if isinstance(max_length, bool) or not isinstance(max_length, (int, np.integer)):
            raise TypeError(f"max_length must be a whole number of tokens, found {max_length!r}")
        if not 2 <= max_length <= self._spec.max_length:
            raise ValueError(
                f"max_length must be from 2 (CLS and EOS alone) to {self._spec.max_length} tokens, the most this "
                f"model takes, found {max_length}"
            )


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, with or without a byte order mark, and switch off the padding and truncation stored in it.

    The message of a ValueError continues a sentence that begins with the file's path.
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
    """Raise ValueError, with a message that continues after the file's path, if a tokenizer is not the model's."""
    try:
        around, unknown = tokenizer.encode("").ids, tokenizer.encode(UNKNOWN).ids
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, or Rust's panic, which is no Exception
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
    """Return the largest token id plus 1. A Unigram model has no gaps, and listing its tokens would be slow."""
    if type(tokenizer.model).__name__ == "Unigram":
        n_ids = tokenizer.get_vocab_size(with_added_tokens=False)
    else:
        n_ids = 1 + max(tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)
    return int(max(n_ids, 1 + max(tokenizer.get_added_tokens_decoder(), default=-1)))
