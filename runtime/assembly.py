"""Puts the micro-batches' results back into the caller's order."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.runtime.artifact import ModelSpec
from bgem3.runtime.packing import PackedBatch
from bgem3.runtime.session import Output
from bgem3.runtime.tokenizer import TokenizedTexts
from bgem3.scoring import Embeddings, MultiVectors


class Assembly:
    """Final arrays of N texts, allocated once and filled micro-batch by micro-batch."""

    def __init__(self, texts: TokenizedTexts, spec: ModelSpec, outputs: tuple[Output, ...]) -> None:
        self._texts = texts
        self._spec = spec
        n_texts, n_tokens = len(texts.lengths), len(texts.token_ids)
        empty = np.empty
        self._dense = empty((n_texts, spec.hidden_size), np.float32) if "dense" in outputs else None
        self._token_weights = empty(n_tokens, np.float32) if "sparse" in outputs else None
        self._vectors: MultiVectors | None = None
        if "multivector" in outputs:
            vectors = empty((n_tokens - n_texts, spec.multivector_size), np.float32)
            self._vectors = MultiVectors(vectors, texts.offsets - np.arange(n_texts + 1))  # no CLS vectors

    def add(self, batch: PackedBatch, arrays: dict[Output, NDArray[np.float32]]) -> None:
        """Copy one micro-batch's outputs, as `EncoderSession.run` returns them, to their places."""
        if self._dense is not None:
            self._dense[batch.text_index] = arrays["dense"]
        for i, text in enumerate(batch.text_index):
            start, end = batch.cu_seqlens[i : i + 2]
            if self._token_weights is not None:
                self._token_weights[self._texts.offsets[text] : self._texts.offsets[text + 1]] = arrays["sparse"][
                    start:end
                ]
            if self._vectors is not None:
                self._vectors[text][:] = arrays["multivector"][start - i : end - i - 1]

    def embeddings(self) -> Embeddings:
        """Return the embeddings, once every micro-batch has been added."""
        sparse = first_seen = None
        if self._token_weights is not None:
            sparse, first_seen = lexical_matrix(self._texts, self._token_weights, self._spec)
        return Embeddings(
            n_tokens=self._texts.lengths.astype(np.int32),
            truncated=self._texts.truncated,
            dense=self._dense,
            sparse=sparse,
            first_seen=first_seen,
            multivector=self._vectors,
        )


def lexical_matrix(
    texts: TokenizedTexts, token_weights: NDArray[np.float32], spec: ModelSpec
) -> tuple[csr_array, NDArray[np.int64]]:
    """Gather token weights into one row per text: the largest positive weight of each token id.

    CLS, PAD, EOS and UNK are left out wherever they occur; other special tokens are not.

    Parameters
    ----------
    texts : N texts of T tokens
    token_weights : (T,) float32 array, at least 0

    Returns
    -------
    The (N, V) float32 matrix with sorted indices, and the (nnz,) order of its entries in which each text
    first gives a token a positive weight.
    """
    dropped = [spec.cls_id, spec.pad_id, spec.eos_id, spec.unk_id]
    kept = np.flatnonzero((token_weights > 0) & ~np.isin(texts.token_ids, dropped))
    text = np.repeat(np.arange(len(texts.lengths)), texts.lengths)[kept]
    key = text * spec.vocab_size + texts.token_ids[kept]  # one number per (text, token id)
    order = np.argsort(key, kind="stable")
    is_first = np.diff(key[order], prepend=-1) != 0
    starts = np.flatnonzero(is_first)
    weights = np.maximum.reduceat(token_weights[kept][order], starts) if len(starts) else np.empty(0, np.float32)
    entries = order[starts]  # where each entry is first seen
    indptr = np.searchsorted(text[entries], np.arange(len(texts.lengths) + 1))
    matrix = csr_array((weights, texts.token_ids[kept][entries], indptr), shape=(len(texts.lengths), spec.vocab_size))
    return matrix, np.argsort(entries, kind="stable")
