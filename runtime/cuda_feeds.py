"""The inputs of a CUDA graph."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.heads import head_rows
from bgem3.runtime.manifest import Output
from bgem3.runtime.packing import PackedBatch, cuda_layout


def packed_feeds(batch: PackedBatch, outputs: tuple[Output, ...]) -> dict[str, NDArray[Any]]:
    """Return the inputs for a micro-batch; a graph without a head does not take the rows for it."""
    return {
        "token_ids": batch.token_ids,
        "position_ids": batch.position_ids,
        **cuda_layout(batch.cu_seqlens),
        **_device_rows(batch.cu_seqlens, outputs),
    }


def fixed_length_feeds(
    batch: PackedBatch, outputs: tuple[Output, ...], length: int, pad_id: int
) -> dict[str, NDArray[Any]]:
    """Return the inputs for one text, followed by a second text of padding up to ``length`` tokens.

    The shapes depend on ``length`` and ``outputs`` alone. Texts do not attend to each other, so the first one's values
    stay the same.
    """
    n_tokens = len(batch.token_ids)
    padding = np.full(length - n_tokens, pad_id)
    return {
        "token_ids": np.concatenate([batch.token_ids, padding]),
        "position_ids": np.concatenate([batch.position_ids, padding]),
        **cuda_layout(np.array([0, n_tokens, length]), n_slots=length),
        **_device_rows(np.array([0, length]), outputs),
    }


def _device_rows(cu_seqlens: NDArray[np.int64], outputs: tuple[Output, ...]) -> dict[str, NDArray[np.int64]]:
    """List the tokens that each head reads, and one for a head that is off, so that no kernel gets an empty tensor."""
    rows = head_rows(cu_seqlens, outputs)
    return {name: tokens if len(tokens) else np.zeros(1, np.int64) for name, tokens in rows.items()}
