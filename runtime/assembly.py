"""Puts the micro-batches' results back into the caller's order."""

import threading

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.runtime.artifact import ModelSpec
from bgem3.runtime.packing import PackedBatch
from bgem3.runtime.session import Arrays, Output
from bgem3.runtime.tokenizer import TokenizedTexts
from bgem3.scoring import Embeddings, MultiVectors


class Assembly:
    """Final arrays of the texts given so far, filled micro-batch by micro-batch; may be used from many threads.

    Texts come in lists, so that the first can be encoded while the next are tokenized. The arrays of the first list
    are enlarged for the next in place, by moving pages instead of content where the system can.
    """

    def __init__(self, spec: ModelSpec, outputs: tuple[Output, ...]) -> None:
        self._spec = spec
        self._outputs = outputs
        self._lock = threading.Lock()  # held while arrays are written or enlarged
        self._texts = [TokenizedTexts.concatenate([])]
        self._offsets = np.zeros(1, np.int64)  # (N + 1,) of all texts
        self._arrays: Arrays = {}

    def extend(self, texts: TokenizedTexts) -> int:
        """Make room for more texts; return the place of the first of them."""
        with self._lock:
            n_texts_before = len(self._offsets) - 1
            self._texts.append(texts)
            self._offsets = np.concatenate([self._offsets, self._offsets[-1] + texts.offsets[1:]])
            n_texts, n_tokens = len(self._offsets) - 1, int(self._offsets[-1])
            shapes: dict[Output, tuple[int, ...]] = {
                "dense": (n_texts, self._spec.hidden_size),
                "sparse": (n_tokens,),
                "multivector": (n_tokens - n_texts, self._spec.multivector_size),
            }
            for name in self._outputs:
                if name in self._arrays:
                    self._arrays[name].resize(shapes[name], refcheck=False)  # no view outlives the lock
                else:
                    self._arrays[name] = np.empty(shapes[name], np.float32)
        return n_texts_before

    def add(self, batch: PackedBatch, arrays: Arrays) -> None:
        """Copy a micro-batch's outputs, as `CpuSession.run` returns them, to their places."""
        with self._lock:
            if "dense" in arrays:
                self._arrays["dense"][batch.text_index] = arrays["dense"]
            for i, text in enumerate(batch.text_index):
                source = slice(*batch.cu_seqlens[i : i + 2])
                place = slice(*self._offsets[text : text + 2])
                if "sparse" in arrays:
                    self._arrays["sparse"][place] = arrays["sparse"][source]
                if "multivector" in arrays:
                    vectors = arrays["multivector"][_without_cls(source, i)]
                    self._arrays["multivector"][_without_cls(place, text)] = vectors

    def embeddings(self) -> Embeddings:
        """Return the embeddings, once every micro-batch has been added."""
        texts = TokenizedTexts.concatenate(self._texts)
        sparse = first_seen = vectors = None
        if "sparse" in self._arrays:
            sparse, first_seen = lexical_matrix(texts, self._arrays["sparse"], self._spec)
        if "multivector" in self._arrays:
            vectors = MultiVectors(self._arrays["multivector"], self._offsets - np.arange(len(self._offsets)))
        return Embeddings(
            n_tokens=texts.lengths.astype(np.int32),
            truncated=texts.truncated,
            dense=self._arrays.get("dense"),
            sparse=sparse,
            first_seen=first_seen,
            multivector=vectors,
        )


def _without_cls(tokens: slice, n_texts_before: int) -> slice:
    """Turn a text's tokens into its multi-vectors, of which each text has one fewer."""
    return slice(tokens.start - n_texts_before, tokens.stop - n_texts_before - 1)


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
