"""Encode texts in padded batches, for peers that run the model and do not tokenize."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer import Encode, Encoded, Settings

Feeds = dict[str, NDArray[np.int64]]
"""``input_ids`` and ``attention_mask`` of a batch, each int64 (B, S)."""

Forward = Callable[[Sequence[Feeds], tuple[str, ...]], Iterable[Sequence[NDArray[Any]]]]
"""Takes batches and head names; yields a batch's dense (B, D), sparse (B, S) and multivector (B, S, M) arrays."""


def padded_encoder(settings: Settings, forward: Forward) -> Encode:
    """Return an encoder that tokenizes, pads, and calls ``forward`` on the batches of each call."""
    tokenizer = open_tokenizer(settings)

    def encode(texts: list[str], outputs: tuple[str, ...], batch_size: int) -> Encoded:
        token_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        batches = list(padded_batches(token_ids, batch_size, settings["pad_id"]))
        found: dict[int, list[NDArray[Any]]] = {}
        results = forward([feeds for _, feeds in batches], outputs)
        for (batch, _), arrays in zip(batches, results, strict=True):
            for row, text in enumerate(batch):
                n_tokens = len(token_ids[text])
                real = {"dense": slice(None), "sparse": slice(n_tokens), "multivector": slice(1, n_tokens)}
                found[text] = [array[row][real[head]].copy() for head, array in zip(outputs, arrays, strict=True)]
        columns = zip(*(found[text] for text in range(len(texts))), strict=True)
        heads = dict(zip(outputs, columns, strict=True))
        weights = partial(lexical, token_ids, heads.get("sparse"), settings["special_ids"])
        return Encoded(
            dense=np.stack(heads["dense"]) if "dense" in heads else None,
            lexical=weights if "sparse" in heads else None,
            multivector=heads.get("multivector"),
        )

    return encode


def open_tokenizer(settings: Settings) -> Any:
    """Open the artifact's tokenizer.json so that it cuts texts at the model's maximum and pads nothing."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(settings["artifact"], "tokenizer.json")))
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings["max_length"])
    return tokenizer


def padded_batches(token_ids: list[list[int]], batch_size: int, pad_id: int) -> Iterator[tuple[list[int], Feeds]]:
    """Yield the texts' indices and the feeds of each batch, the longest texts first."""
    order = sorted(range(len(token_ids)), key=lambda text: -len(token_ids[text]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        input_ids = np.full((len(batch), len(token_ids[batch[0]])), pad_id, np.int64)
        mask = np.zeros_like(input_ids)
        for row, text in enumerate(batch):
            input_ids[row, : len(token_ids[text])] = token_ids[text]
            mask[row, : len(token_ids[text])] = 1
        yield batch, {"input_ids": input_ids, "attention_mask": mask}


def lexical(token_ids: list[list[int]], sparse: Any, special_ids: list[int]) -> list[dict[int, float]]:
    """Return each text's highest positive weight of each token id, from one weight a token, without special ids."""
    texts: list[dict[int, float]] = []
    for ids, weights in zip(token_ids, sparse, strict=True):
        ascending = sorted(zip(ids, weights.tolist(), strict=True), key=lambda pair: pair[1])
        texts.append({token: weight for token, weight in ascending if weight > 0 and token not in special_ids})
    return texts
