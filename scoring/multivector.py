"""Multi-vector score: late interaction (MaxSim) between the token vectors of two texts."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

TOKENS_PER_BLOCK = 2048  # vectors a side in one GEMM: large enough for BLAS, 16 MiB of similarities


class MultiVectors(Sequence[NDArray[np.float32]]):
    """The token vectors of many texts in one packed array; item i is a (vectors_i, D) view.

    Parameters
    ----------
    packed : (M, D) float array, the texts' vectors one after another
    offsets : (N + 1,) int64 array; text i owns rows ``offsets[i]:offsets[i + 1]``
    """

    def __init__(self, packed: NDArray[np.float32], offsets: NDArray[np.int64]) -> None:
        self.packed = packed
        self.offsets = offsets

    @classmethod
    def pack(cls, texts: Sequence[NDArray[np.floating]]) -> "MultiVectors":
        """Pack one (vectors_i, D) array per text; packed input is returned as it is."""
        if isinstance(texts, cls):
            return texts
        arrays = [np.asarray(a, dtype=np.float32) for a in texts]
        widths = {a.shape[1] if a.ndim == 2 else None for a in arrays}
        if len(widths) > 1 or None in widths:
            raise ValueError(
                "multi-vectors must be one (vectors, dims) array per text, all of one width, found shapes "
                f"{sorted({a.shape for a in arrays})[:5]}"
            )
        offsets = np.cumsum([0] + [len(a) for a in arrays], dtype=np.int64)
        return cls(
            arrays[0] if len(arrays) == 1 else np.concatenate(arrays or [np.empty((0, 0), np.float32)]),
            offsets,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.float32]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # negative indices and IndexError as for a list
        return self.packed[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"MultiVectors({len(self)} texts, {self.packed.shape[0]} vectors of {self.packed.shape[1]} dims)"


def multivector_scores(
    queries: Sequence[NDArray[np.floating]], passages: Sequence[NDArray[np.floating]]
) -> NDArray[np.float32]:
    """Score every query with every passage: ``(1/N) Σ_i max_j E_q[i] · E_p[j]``, N the query's vectors.

    Source: arXiv 2402.03216, section 3.2. Each passage's maximum runs over its own vectors only: no
    padding takes part.

    Parameters
    ----------
    queries : Q arrays (vectors_i, D), rows of unit length, or :class:`MultiVectors`
    passages : P arrays (vectors_j, D), likewise

    Returns
    -------
    (Q, P) float32 array

    Raises
    ------
    ValueError
        If the widths differ or a text has no vectors (an encoded text always has at least one, EOS).

    Examples
    --------
    >>> import numpy as np
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> multivector_scores([query], [query, np.array([[0.5, 0.0]])]).tolist()
    [[1.0, 0.25]]
    """
    query_vectors, passage_vectors = _check(queries, passages)
    scores = np.empty((len(query_vectors), len(passage_vectors)), np.float32)
    if not scores.size:
        return scores
    for q_first, q_last in _blocks(query_vectors.offsets):
        q_starts = query_vectors.offsets[q_first : q_last + 1]
        block = query_vectors.packed[q_starts[0] : q_starts[-1]].astype(np.float32, copy=False)
        n_query_vectors = np.diff(q_starts)[:, None]
        for p_first, p_last in _blocks(passage_vectors.offsets):
            p_starts = passage_vectors.offsets[p_first : p_last + 1]
            passage_block = passage_vectors.packed[p_starts[0] : p_starts[-1]].astype(np.float32, copy=False)
            similarities = block @ passage_block.T  # (query vectors, passage vectors)
            best = np.maximum.reduceat(similarities, p_starts[:-1] - p_starts[0], axis=1)  # (query vectors, passages)
            sums = np.add.reduceat(best, q_starts[:-1] - q_starts[0], axis=0)
            scores[q_first:q_last, p_first:p_last] = sums / n_query_vectors
    return scores


def multivector_pair_scores(
    queries: Sequence[NDArray[np.floating]], passages: Sequence[NDArray[np.floating]]
) -> NDArray[np.float32]:
    """Score query i with passage i only; same formula as :func:`multivector_scores`.

    Parameters
    ----------
    queries, passages : N arrays (vectors, D), rows of unit length, or :class:`MultiVectors`

    Returns
    -------
    (N,) float32 array

    Raises
    ------
    ValueError
        If the counts or widths differ or a text has no vectors.

    Examples
    --------
    >>> import numpy as np
    >>> multivector_pair_scores([np.array([[1.0, 0.0]])], [np.array([[0.5, 0.5], [-1.0, 0.0]])]).tolist()
    [0.5]
    """
    if len(queries) != len(passages):
        raise ValueError(f"pairs need as many queries as passages, found {len(queries)} and {len(passages)}")
    scores = np.empty(len(queries), np.float32)
    for i, (query, passage) in enumerate(zip(queries, passages, strict=True)):
        query_vectors, passage_vectors = (np.asarray(a, dtype=np.float32) for a in (query, passage))
        shapes = query_vectors.shape, passage_vectors.shape
        if any(len(shape) != 2 or 0 in shape for shape in shapes) or shapes[0][1] != shapes[1][1]:
            raise ValueError(
                f"pair {i} must be two (vectors, dims) arrays of one width with at least one vector each, found "
                f"shapes {shapes[0]} and {shapes[1]}; were both sides encoded by the same model?"
            )
        scores[i] = (query_vectors @ passage_vectors.T).max(axis=1).mean()
    return scores


def _check(
    queries: Sequence[NDArray[np.floating]], passages: Sequence[NDArray[np.floating]]
) -> tuple[MultiVectors, MultiVectors]:
    packed = MultiVectors.pack(queries), MultiVectors.pack(passages)
    for name, side in zip(("query", "passage"), packed, strict=True):
        empty = np.flatnonzero(np.diff(side.offsets) == 0)
        if len(empty):
            raise ValueError(f"{name} {empty[0]} has no vectors; MaxSim needs at least one per text")
    widths = [side.packed.shape[1] for side in packed if len(side)]
    if len(set(widths)) > 1:
        raise ValueError(
            f"multi-vectors must have one width, found {widths[0]} and {widths[1]}; "
            "were both sides encoded by the same model?"
        )
    return packed


def _blocks(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut texts into runs of at most TOKENS_PER_BLOCK vectors (or one text), as (first, last + 1)."""
    first, n_texts = 0, len(offsets) - 1
    while first < n_texts:
        last = int(np.searchsorted(offsets, offsets[first] + TOKENS_PER_BLOCK, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last
