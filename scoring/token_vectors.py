"""MultiVectors: the token vectors of many texts in one array, stored as float32, float16 or int8."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args, overload

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.float32 import ROWS_PER_STEP, as_float32
from bgem3.scoring.stored_arrays import FLOATS, StoredArrays, wrong_offsets

Storage: TypeAlias = Literal["float32", "float16", "int8"]
"""The dtype in which multi-vectors are stored; scores are computed in float32 from each."""

STORAGES: tuple[Storage, ...] = get_args(Storage)


class MultiVectors(Sequence[NDArray[np.float32]]):
    """The token vectors of N texts in one packed array; item i is text i's float32 array (M_i, D).

    Items are views if the storage is float32, and dequantized or converted copies otherwise.

    Parameters
    ----------
    packed : float32, float16 or int8 array (M, D)
        The vectors of all texts, text after text.
    offsets : int64 array (N + 1,)
        Text i has the rows ``offsets[i]:offsets[i + 1]``.
    scales : float32 array (M,)
        Factors that dequantize int8 rows; None for floats.
    """

    def __init__(
        self,
        packed: NDArray[np.floating] | NDArray[np.int8],
        offsets: NDArray[np.int64],
        scales: NDArray[np.float32] | None = None,
    ) -> None:
        self.packed = packed
        self.offsets = offsets
        self.scales = scales

    @classmethod
    def pack(cls, texts: Sequence[NDArray[np.floating]]) -> "MultiVectors":
        """Pack one array (M_i, D) per text, or raise ValueError if the widths differ; MultiVectors stay as they are.

        The storage is float16 if every array is float16, else float32.
        """
        if isinstance(texts, cls):
            return texts
        given: list[NDArray[np.floating]] = [np.asarray(a) for a in texts]
        dtype = np.float16 if given and all(a.dtype == np.float16 for a in given) else np.float32
        arrays: list[NDArray[np.floating]] = [a.astype(dtype, copy=False) for a in given]
        widths = {a.shape[1] if a.ndim == 2 else None for a in arrays}
        if len(widths) > 1 or None in widths:
            raise ValueError(
                "multi-vectors must be one (vectors, dims) array per text, all of one width, found shapes "
                f"{sorted({a.shape for a in arrays})[:5]}"
            )
        offsets = np.cumsum([0] + [len(a) for a in arrays], dtype=np.int64)
        return cls(arrays[0] if len(arrays) == 1 else np.concatenate(arrays or [np.empty((0, 0), np.float32)]), offsets)

    @classmethod
    def concatenate(cls, parts: Sequence["MultiVectors"]) -> "MultiVectors":
        """Return the texts of all parts, one after another, or raise ValueError if widths or storage differ."""
        kinds = {(part.storage, part.packed.shape[1]) for part in parts if len(part)}
        if len(kinds) > 1 or not parts:
            raise ValueError(f"multi-vectors must have one storage and width, found {sorted(kinds)}")
        filled = [part.without_gaps() for part in parts if len(part)]
        parts = filled or parts[:1]  # parts of no texts may have any width
        starts = np.cumsum([0] + [len(part.packed) for part in parts])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        scales = [part.scales for part in parts if part.scales is not None]
        return cls(
            np.concatenate([part.packed for part in parts]),
            np.concatenate([np.zeros(1, np.int64), *offsets]),
            np.concatenate(scales) if scales else None,
        )

    @property
    def storage(self) -> Storage:
        """The name of the dtype: "float32", "float16" or "int8"."""
        return self.packed.dtype.name  # type: ignore[return-value]

    def rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the packed rows ``first:last`` as float32: a view if they are stored so, else a new array."""
        return as_float32(self.packed[first:last], None if self.scales is None else self.scales[first:last])

    def take(self, index: NDArray[np.int64]) -> "MultiVectors":
        """Return the texts at the positions ``index``, in that order and storage; a run of neighbors is a view."""
        rows: slice | NDArray[np.int64]
        rows, offsets = ranges(self.offsets[index], np.diff(self.offsets)[index])
        if len(index) and (np.diff(index) == 1).all():
            rows = slice(int(self.offsets[index[0]]), int(self.offsets[index[-1] + 1]))
        return MultiVectors(self.packed[rows], offsets, None if self.scales is None else self.scales[rows])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that :meth:`from_arrays` reads, by their names in files."""
        arrays: dict[str, NDArray[Any]] = {"multivector": self.packed, "multivector_offsets": self.offsets}
        return arrays if self.scales is None else arrays | {"multivector_scales": self.scales}

    @classmethod
    def from_arrays(cls, stored: StoredArrays, n_texts: int) -> "MultiVectors":
        """Return the multi-vectors of stored arrays, or raise ValueError if an array is missing or does not fit."""
        packed = stored.take("multivector", (*FLOATS, "int8"), (None, None))
        offsets = stored.offsets("multivector_offsets", n_texts, len(packed))
        is_int8 = packed.dtype == np.int8
        scales = stored.take("multivector_scales", ("float32",), (len(packed),)) if is_int8 else None
        return cls(packed, offsets, scales)

    def check(self) -> None:
        """Raise ValueError if the offsets or scales do not fit the packed vectors."""
        packed, offsets, scales = self.packed, self.offsets, self.scales
        if packed.ndim != 2:
            raise ValueError(f"packed multi-vectors must be (vectors, dims), found the shape {packed.shape}")
        if wrong := wrong_offsets(offsets, len(packed), has_gaps=True):
            raise ValueError(f"offsets of multi-vectors {wrong}")
        if scales is None if packed.dtype == np.int8 else scales is not None:
            raise ValueError(f"int8 multi-vectors need scales and others none, found {packed.dtype} and {scales!r:.80}")
        if scales is not None and scales.shape != packed.shape[:1]:
            raise ValueError(f"scales must be one number per vector, found {scales.shape} for {len(packed)} vectors")

    def without_gaps(self) -> "MultiVectors":
        """Return the same texts without packed rows that belong to no text; itself if there are none."""
        is_whole = self.offsets[0] == 0 and self.offsets[-1] == len(self.packed)
        return self if is_whole else self.take(np.arange(len(self)))

    def stored_as(self, storage: Storage) -> tuple["MultiVectors", float]:
        """Return a copy in another storage, and its error: the largest distance ``‖v - stored v‖`` over the vectors.

        By the Cauchy-Schwarz inequality, no MaxSim score of unit query vectors changes by more than this distance.
        Each int8 row is scaled so that its largest absolute value becomes 127. An unknown storage raises ValueError.
        """
        if storage not in STORAGES:
            raise ValueError(f"storage must be one of {STORAGES}, found {storage!r}")
        stored = np.empty(self.packed.shape, storage)
        scales = np.empty(len(stored), np.float32) if storage == "int8" else None
        result, largest = MultiVectors(stored, self.offsets, scales), 0.0
        for first in range(0, len(stored), ROWS_PER_STEP):
            step = slice(first, first + ROWS_PER_STEP)
            vectors = self.rows(first, min(first + ROWS_PER_STEP, len(stored)))
            if scales is None:
                stored[step] = vectors
            else:
                scales[step] = np.maximum(np.abs(vectors).max(axis=1, initial=0), np.finfo(np.float32).tiny) / 127
                stored[step] = np.rint(vectors / scales[step, None])
            errors = np.linalg.norm(vectors - result.rows(first, first + len(vectors)), axis=1)
            largest = max(largest, float(errors.max()))
        return result, largest

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
        return self.rows(int(self.offsets[i]), int(self.offsets[i + 1]))

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        n_vectors, n_dims = self.packed.shape
        return f"MultiVectors({len(self)} texts, {n_vectors} {self.storage} vectors of {n_dims} dims)"


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions in all ranges ``starts[i] : starts[i] + lengths[i]``, range after range, and their offsets.

    Examples
    --------
    >>> import numpy as np
    >>> [a.tolist() for a in ranges(np.array([7, 2]), np.array([2, 3]))]
    [[7, 8, 2, 3, 4], [0, 2, 5]]
    """
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets
