"""Micro-batches: the choice of texts that run together, and the arrays that a graph takes for them.

A micro-batch holds the tokens of its texts one after another, so linear layers do no work on padding. What attention
needs to know of the texts' limits differs by device.

Shape letters: B texts of T tokens together, S tokens of the longest text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.tokenizer import TokenizedTexts


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One micro-batch.

    Attributes
    ----------
    text_index : int64 array (B,), each text's position in the caller's order
    cu_seqlens : int64 array (B + 1,); text i is tokens ``cu_seqlens[i]:cu_seqlens[i + 1]``
    token_ids, position_ids : int64 arrays (T,)
    """

    text_index: NDArray[np.int64]
    cu_seqlens: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]

    def texts(self, start: int, stop: int) -> "PackedBatch":
        """Return a micro-batch of this one's texts ``start:stop``."""
        tokens = slice(self.cu_seqlens[start], self.cu_seqlens[stop])
        return PackedBatch(
            text_index=self.text_index[start:stop],
            cu_seqlens=self.cu_seqlens[start : stop + 1] - self.cu_seqlens[start],
            token_ids=self.token_ids[tokens],
            position_ids=self.position_ids[tokens],
        )


def plan_batches(
    lengths: NDArray[np.int64], token_budget: int, most_padded: Callable[[int], int]
) -> Iterator[NDArray[np.int64]]:
    """Cut texts into micro-batches of similar lengths, the longest first.

    Parameters
    ----------
    lengths : int64 array (N,), tokens per text
    token_budget : most tokens in a micro-batch; a longer text runs alone
    most_padded : returns the most texts in a micro-batch of texts of different lengths, given the longest one's

    Yields
    ------
    int64 arrays (B,) of positions in ``lengths``
    """
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    n_tokens_before = np.concatenate([[0], np.cumsum(lengths)])
    ascending = -lengths  # as searchsorted needs it
    start = 0
    while start < len(order):
        longest = int(lengths[start])
        fitting = np.searchsorted(n_tokens_before, n_tokens_before[start] + token_budget, side="right") - 1 - start
        of_one_length = np.searchsorted(ascending, -longest, side="right") - start
        n_texts = max(1, min(int(fitting), max(int(of_one_length), most_padded(longest))))
        yield order[start : start + n_texts]
        start += n_texts


def pack(texts: TokenizedTexts, text_index: NDArray[np.int64], pad_id: int, first: int = 0) -> PackedBatch:
    """Pack texts into one micro-batch.

    Parameters
    ----------
    text_index : int64 array (B,), positions in ``texts``
    first : position of the first of ``texts`` in the caller's order
    """
    cu_seqlens = np.concatenate([[0], np.cumsum(texts.lengths[text_index])])
    token_ids = np.concatenate([texts.token_ids[texts.offsets[i] : texts.offsets[i + 1]] for i in text_index])
    return PackedBatch(
        text_index=first + text_index,
        cu_seqlens=cu_seqlens,
        token_ids=token_ids,
        position_ids=position_ids(token_ids, cu_seqlens, pad_id),
    )


def join(batches: Sequence[PackedBatch]) -> PackedBatch:
    """Join micro-batches into one."""
    ends = np.cumsum([batch.cu_seqlens[-1] for batch in batches])
    limits = [batch.cu_seqlens[1:] + end - batch.cu_seqlens[-1] for batch, end in zip(batches, ends, strict=True)]
    return PackedBatch(
        text_index=np.concatenate([batch.text_index for batch in batches]),
        cu_seqlens=np.concatenate([[0], *limits]),
        token_ids=np.concatenate([batch.token_ids for batch in batches]),
        position_ids=np.concatenate([batch.position_ids for batch in batches]),
    )


def padded_ids(batch: PackedBatch, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the token ids in the padded layout (B, S), and which of its slots hold a token."""
    is_token = _slots(batch.cu_seqlens)
    ids = np.full(is_token.shape, pad_id, np.int64)
    ids[is_token] = batch.token_ids
    return ids, is_token


def cpu_layout(cu_seqlens: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
    """Return the inputs of the CPU graph that lead to the padded layout and back.

    Returns
    -------
    padded_index : int32 array (B, S), the token in each slot, 0 where there is none
    packed_index : int32 array (T,), each token's slot
    key_mask : int32 array (B, S), 1 where a slot holds a token
    """
    is_token = _slots(cu_seqlens)
    tokens = cu_seqlens[:-1, None] + np.arange(is_token.shape[1])
    return {
        "padded_index": np.where(is_token, tokens, 0).astype(np.int32),
        "packed_index": np.flatnonzero(is_token).astype(np.int32),
        "key_mask": is_token.astype(np.int32),
    }


def cuda_layout(cu_seqlens: NDArray[np.int64], n_slots: int | None = None) -> dict[str, NDArray[np.int32]]:
    """Return the inputs of the CUDA graph's attention.

    Parameters
    ----------
    n_slots : S, None for the tokens of the longest text

    Returns
    -------
    cu_seqlens : int32 array (B + 1,)
    token_offset : int32 array (B, S), the slots of the padded layout that hold tokens, followed by those of padding
    """
    is_token = _slots(cu_seqlens, n_slots)
    slots = np.concatenate([np.flatnonzero(is_token), np.flatnonzero(~is_token)])
    return {
        "cu_seqlens": cu_seqlens.astype(np.int32),
        "token_offset": slots.reshape(is_token.shape).astype(np.int32),
    }


def _slots(cu_seqlens: NDArray[np.int64], n_slots: int | None = None) -> NDArray[np.bool_]:
    """Tell which slots of the padded layout (B, S) hold a token."""
    lengths = np.diff(cu_seqlens)
    is_token: NDArray[np.bool_] = np.arange(n_slots or lengths.max()) < lengths[:, None]
    return is_token


def position_ids(token_ids: NDArray[np.int64], cu_seqlens: NDArray[np.int64], pad_id: int) -> NDArray[np.int64]:
    """Number tokens as XLM-R does: ``cumsum(ids != pad) * (ids != pad) + pad`` within each text.

    A literal ``<pad>`` in a text gets position ``pad_id`` and does not advance the count.
    """
    is_counted = token_ids != pad_id
    counted = np.cumsum(is_counted)
    before = np.repeat((counted - is_counted)[cu_seqlens[:-1]], np.diff(cu_seqlens))
    return np.asarray((counted - before) * is_counted + pad_id)
