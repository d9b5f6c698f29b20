"""Results of micro-batches, put into arrays in the caller's order."""

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from bgem3.runtime.heads import Arrays, output_shapes
from bgem3.runtime.manifest import ModelSpec, Output
from bgem3.runtime.packing import PackedBatch
from bgem3.runtime.tokenizer import TokenizedTexts
from bgem3.scoring import Embeddings, MultiVectors


class ResultArrays:
    """Arrays for the outputs of all texts, filled one micro-batch at a time, from any thread.

    Texts come in chunks, so that the first can be encoded while the next are tokenized. The arrays have room for
    exactly the first chunk; further chunks at least double them.

    Parameters
    ----------
    on_texts : called with the number of texts of each micro-batch that was added
    """

    def __init__(
        self, spec: ModelSpec, outputs: tuple[Output, ...], on_texts: Callable[[int], object] | None = None
    ) -> None:
        self._spec, self._outputs, self._on_texts = spec, outputs, on_texts
        self._lock = threading.Lock()  # taken while arrays are written or enlarged
        self._chunks: list[TokenizedTexts] = []
        self._offsets = np.zeros(1, np.int64)  # (N + 1,) of all texts
        self._arrays: Arrays = {}
        self._n_rows: dict[Output, int] = {}

    def extend(self, texts: TokenizedTexts) -> int:
        """Make room for a chunk of texts; return the position of its first text."""
        with self._lock:
            n_texts_before = len(self._offsets) - 1
            self._chunks.append(texts)
            self._offsets = np.concatenate([self._offsets, self._offsets[-1] + texts.offsets[1:]])
            shapes = output_shapes(self._spec, len(self._offsets) - 1, int(self._offsets[-1]))
            for name in self._outputs:
                self._arrays[name] = _with_room(self._arrays.get(name), shapes[name])
            self._n_rows = {name: shape[0] for name, shape in shapes.items()}
        return n_texts_before

    def add(self, batch: PackedBatch, arrays: Arrays) -> None:
        """Copy a micro-batch's outputs to the rows of its texts."""
        with self._lock:
            if "dense" in arrays:
                self._arrays["dense"][batch.text_index] = arrays["dense"]
            for i, text in enumerate(batch.text_index):
                source, target = slice(*batch.cu_seqlens[i : i + 2]), slice(*self._offsets[text : text + 2])
                if "sparse" in arrays:
                    self._arrays["sparse"][target] = arrays["sparse"][source]
                if "multivector" in arrays:
                    vectors = arrays["multivector"][_without_cls(source, i)]
                    self._arrays["multivector"][_without_cls(target, text)] = vectors
            if self._on_texts:
                self._on_texts(len(batch.text_index))

    def embeddings(self) -> Embeddings:
        """Return the embeddings, once every micro-batch has been added."""
        texts = TokenizedTexts.concatenate(self._chunks)
        arrays = {name: array[: self._n_rows[name]] for name, array in self._arrays.items()}
        sparse = first_seen = vectors = None
        if "sparse" in arrays:
            sparse, first_seen = lexical_matrix(texts, arrays["sparse"], self._spec)
        if "multivector" in arrays:
            vectors = MultiVectors(arrays["multivector"], self._offsets - np.arange(len(self._offsets)))
        return Embeddings(
            n_tokens=texts.lengths.astype(np.int32),
            truncated=texts.truncated,
            dense=arrays.get("dense"),
            sparse=sparse,
            first_seen=first_seen,
            multivector=vectors,
        )


def _with_room(array: NDArray[np.float32] | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an array of at least ``shape[0]`` rows that begins with the rows of the given one."""
    if array is None:
        return np.empty(shape, np.float32)
    if len(array) >= shape[0]:
        return array
    larger = np.empty((max(shape[0], 2 * len(array)), *shape[1:]), np.float32)  # takes memory only where written
    larger[: len(array)] = array
    return larger


def _without_cls(tokens: slice, n_texts_before: int) -> slice:
    """Turn the range of a text's tokens into that of its multi-vector rows: each text has no row for CLS."""
    return slice(tokens.start - n_texts_before, tokens.stop - n_texts_before - 1)


def lexical_matrix(
    texts: TokenizedTexts, token_weights: NDArray[np.float32], spec: ModelSpec
) -> tuple[csr_array, NDArray[np.int64]]:
    """Gather token weights, a float32 array (T,), into one row per text: the largest positive weight of each token id.

    CLS, PAD, EOS and UNK are left out wherever they occur; other special tokens are not.

    Returns
    -------
    matrix : float32 csr_array (N, V) with sorted indices
    first_seen : int64 array (nnz,), the matrix's entries in the order in which the texts first give them a weight
    """
    dropped = [spec.cls_id, spec.pad_id, spec.eos_id, spec.unk_id]
    kept = np.flatnonzero((token_weights > 0) & ~np.isin(texts.token_ids, dropped))
    text = np.repeat(np.arange(len(texts.lengths)), texts.lengths)[kept]
    key = text * spec.vocab_size + texts.token_ids[kept]  # one number per (text, token id)
    order = np.argsort(key, kind="stable")
    is_first = np.diff(key[order], prepend=-1) != 0
    starts = np.flatnonzero(is_first)
    weights = np.maximum.reduceat(token_weights[kept][order], starts) if len(starts) else np.empty(0, np.float32)
    entries = order[starts]  # the first occurrence of each entry
    indptr = np.searchsorted(text[entries], np.arange(len(texts.lengths) + 1))
    matrix = csr_array((weights, texts.token_ids[kept][entries], indptr), shape=(len(texts.lengths), spec.vocab_size))
    return matrix, np.argsort(entries, kind="stable")
