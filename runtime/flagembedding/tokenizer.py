"""The drop-in's tokenizer: what callers use of transformers' tokenizers, without transformers."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bgem3.runtime.manifest import ModelSpec
from bgem3.runtime.texts import check_texts

# what decoding replaces, in this order, with BGE-M3's setting clean_up_tokenization_spaces
CLEANED_SPACES = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")),
    *((" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
TokenIds = int | np.integer | Sequence[int] | NDArray[np.integer]


class Encoding(dict[str, Any]):
    """``input_ids`` and ``attention_mask``, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class FlagTokenizer:
    """A tokenizer that gives what `transformers.AutoTokenizer` gives for BAAI/bge-m3. Any thread may call it."""

    is_fast = True
    padding_side = truncation_side = "right"

    def __init__(self, tokenizer: Tokenizer, spec: ModelSpec) -> None:
        self._tokenizer = tokenizer
        self.model_max_length = spec.max_length
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=False)
        self.cls_token_id = self.bos_token_id = spec.cls_id
        self.eos_token_id = self.sep_token_id = spec.eos_id
        self.pad_token_id, self.unk_token_id = spec.pad_id, spec.unk_id
        self.mask_token_id: int | None = tokenizer.token_to_id("<mask>")
        names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
        ids = {f"{name}_token": getattr(self, f"{name}_token_id") for name in names}
        self.special_tokens_map: dict[str, str] = {
            name: tokenizer.id_to_token(token_id) for name, token_id in ids.items() if token_id is not None
        }
        for name in ids:
            setattr(self, name, self.special_tokens_map.get(name))
        self.all_special_tokens = list(dict.fromkeys(self.special_tokens_map.values()))
        self.all_special_ids = [tokenizer.token_to_id(token) for token in self.all_special_tokens]

    def __len__(self) -> int:
        """Return the number of token ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"this tokenizer has no {name!r}, only what needs no transformers; for more, take "
            "transformers.AutoTokenizer.from_pretrained of the checkpoint"
        )

    def __call__(
        self,
        text: str | Iterable[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> Encoding:
        """Tokenize a text or N texts.

        Parameters
        ----------
        padding : bool or str
            True or "longest" pads all texts to the longest one.
        truncation : bool, str or None
            Cut texts to ``max_length`` tokens, special tokens included. None cuts if ``max_length`` is given.
        return_tensors : str or None
            None gives lists, "np" int64 arrays (N, longest).

        Raises
        ------
        TypeError, ValueError
            If a text is not valid, or an argument has another value.
        """
        if return_tensors not in (None, "np"):
            raise ValueError(
                f"return_tensors must be None or 'np', found {return_tensors!r}; take 'np' and convert the arrays"
            )
        if padding not in (False, True, "longest", "do_not_pad"):
            raise ValueError(f"padding must be True, False or 'longest', found {padding!r}")
        texts = check_texts([text] if isinstance(text, str) else text)
        rows = [self._ids(one, add_special_tokens, truncation, max_length) for one in texts]
        longest = max(map(len, rows), default=0) if padding in (True, "longest") else 0
        masks = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        rows = [row + [self.pad_token_id] * (longest - len(row)) for row in rows]
        if return_tensors == "np":
            return Encoding(input_ids=np.array(rows, np.int64), attention_mask=np.array(masks, np.int64))
        if isinstance(text, str):
            return Encoding(input_ids=rows[0], attention_mask=masks[0])
        return Encoding(input_ids=rows, attention_mask=masks)

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        truncation: bool | str | None = None,
        max_length: int | None = None,
    ) -> list[int]:
        """Return one text's token ids. The arguments are those of a call."""
        return self._ids(check_texts([text])[0], add_special_tokens, truncation, max_length)

    def tokenize(self, text: str, *, add_special_tokens: bool = False) -> list[str]:
        """Return one text's tokens."""
        encoding = self._tokenizer.encode(check_texts([text])[0], add_special_tokens=add_special_tokens)
        return list(encoding.tokens)

    def decode(
        self, token_ids: TokenIds, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = True
    ) -> str:
        """Return the text of token ids; cleaning up drops the spaces before punctuation."""
        ids = np.atleast_1d(np.asarray(token_ids)).tolist()
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        for found, replacement in CLEANED_SPACES if clean_up_tokenization_spaces else ():
            text = text.replace(found, replacement)
        return text

    def batch_decode(
        self,
        sequences: Iterable[TokenIds],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = True,
    ) -> list[str]:
        """Return the text of each list of token ids, as `decode` does."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

    def convert_ids_to_tokens(self, ids: TokenIds, skip_special_tokens: bool = False) -> str | list[str | None] | None:
        """Return the token of an id, or the tokens of several; None stands for an unknown id."""
        if isinstance(ids, (int, np.integer)):
            token: str | None = self._tokenizer.id_to_token(int(ids))
            return token
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [self._tokenizer.id_to_token(int(token_id)) for token_id in ids if token_id not in skipped]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int]:
        """Return the id of a token, or the ids of several; an unknown one has ``unk_token_id``."""
        listed = [tokens] if isinstance(tokens, str) else tokens
        found = [self._tokenizer.token_to_id(token) for token in listed]
        ids = [self.unk_token_id if token_id is None else int(token_id) for token_id in found]
        return ids[0] if isinstance(tokens, str) else ids

    def get_vocab(self) -> dict[str, int]:
        """Return every token's id, added tokens included."""
        return dict(self._tokenizer.get_vocab())

    def _ids(
        self, text: str, add_special_tokens: bool, truncation: bool | str | None, max_length: int | None
    ) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        is_cut = max_length is not None if truncation is None else truncation not in (False, "do_not_truncate")
        limit = self.model_max_length if max_length is None else max_length
        if not is_cut or len(ids) <= limit:
            return ids
        return [*ids[: limit - 1], self.eos_token_id] if add_special_tokens else ids[:limit]
