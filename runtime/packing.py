"""Which texts run together, and the arrays a graph takes for them.

A micro-batch holds its texts' tokens one after another. Linear layers then do no work on padding, and the
padded layout that attention needs is described by index arrays.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.tokenizer import TokenizedTexts

MAX_MASKED_SCORES = 1 << 22  # attention scores per head of a padded micro-batch: 16 MiB each


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One micro-batch of B texts and T tokens, in the order of ``text_index``.

    Attributes
    ----------
    text_index : (B,) int64 array, each text's place in the caller's order
    cu_seqlens : (B + 1,) int64 array; text i is tokens ``cu_seqlens[i]:cu_seqlens[i + 1]``
    token_ids, position_ids : (T,) int64 arrays
    padded_index : (B, S) int32 array, the token in each slot (0 where there is none)
    packed_index : (T,) int32 array, each token's slot
    key_mask : (B, S) int32 array, 1 where a slot holds a token
    """

    text_index: NDArray[np.int64]
    cu_seqlens: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    padded_index: NDArray[np.int32]
    packed_index: NDArray[np.int32]
    key_mask: NDArray[np.int32]


def plan_batches(lengths: NDArray[np.int64], token_budget: int) -> Iterator[NDArray[np.int64]]:
    """Cut texts into micro-batches of similar lengths, the longest first.

    Parameters
    ----------
    lengths : (N,) tokens per text
    token_budget : most tokens in a micro-batch; a longer text runs alone

    Yields
    ------
    (B,) int64 arrays of text indices; together they hold every text once
    """
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    n_tokens_before = np.concatenate([[0], np.cumsum(lengths)])
    ascending = -lengths  # what searchsorted needs
    start = 0
    while start < len(order):
        longest = lengths[start]
        fitting = np.searchsorted(n_tokens_before, n_tokens_before[start] + token_budget, side="right") - 1 - start
        of_one_length = np.searchsorted(ascending, -longest, side="right") - start  # these need no mask
        n_texts = max(1, min(int(fitting), max(int(of_one_length), int(MAX_MASKED_SCORES // longest**2))))
        yield order[start : start + n_texts]
        start += n_texts


def pack(texts: TokenizedTexts, text_index: NDArray[np.int64], pad_id: int) -> PackedBatch:
    """Lay out the chosen texts as one micro-batch."""
    lengths = texts.lengths[text_index]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    token_ids = np.concatenate([texts.token_ids[texts.offsets[i] : texts.offsets[i + 1]] for i in text_index])
    n_texts, n_slots = len(lengths), int(lengths.max())
    slot = np.arange(n_slots)
    is_token = slot < lengths[:, None]  # (B, S)
    padded_index = np.where(is_token, cu_seqlens[:-1, None] + slot, 0)
    return PackedBatch(
        text_index=text_index,
        cu_seqlens=cu_seqlens,
        token_ids=token_ids,
        position_ids=position_ids(token_ids, cu_seqlens, pad_id),
        padded_index=padded_index.astype(np.int32),
        packed_index=np.flatnonzero(is_token.reshape(n_texts * n_slots)).astype(np.int32),
        key_mask=is_token.astype(np.int32),
    )


def position_ids(token_ids: NDArray[np.int64], cu_seqlens: NDArray[np.int64], pad_id: int) -> NDArray[np.int64]:
    """Number tokens as XLM-R does: ``cumsum(ids != pad) * (ids != pad) + pad`` within each text.

    A literal ``<pad>`` in a text gets position ``pad_id`` and does not advance the count.
    """
    is_counted = token_ids != pad_id
    counted = np.cumsum(is_counted)
    before = np.repeat((counted - is_counted)[cu_seqlens[:-1]], np.diff(cu_seqlens))
    return np.asarray((counted - before) * is_counted + pad_id)
