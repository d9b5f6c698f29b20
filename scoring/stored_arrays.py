"""StoredArrays: the arrays of a file, each checked for dtype, shape, order and range before it is used.

SciPy and the scores rely on these checks: SciPy would follow an index out of range to any address in memory. Arrays as
long as the corpus are not read here. Instead, a search refuses NaN scores and postings that name no passage.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
OFFSETS = ("int32", "int64")
DAMAGED = "the file is damaged: save or copy it again"
# token ids; 67 times BGE-M3's vocabulary, while an array with a number per token id stays small
LARGEST_VOCABULARY = 1 << 24


class StoredArrays:
    """The arrays of one file or folder; messages name it and give the advice."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], where: object, advice: str = DAMAGED) -> None:
        self._arrays = arrays
        self._where = where
        self._advice = advice

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def has_output(self, name: str) -> bool:
        """Return whether there is any array of an output; an output with some arrays missing is then refused."""
        return any(found == name or found.startswith(f"{name}_") for found in self._arrays)

    def error(self, what: str) -> ValueError:
        """Return a ValueError that says where the arrays are, what is wrong and what to do."""
        return ValueError(f"{self._where}: {what}; {self._advice}")

    def take(self, name: str, dtypes: Sequence[str], shape: Sequence[int | None]) -> NDArray[Any]:
        """Return an array.

        Parameters
        ----------
        name : str
            Its name.
        dtypes : sequence of str
            The dtypes that it may have, in native byte order; "str" stands for strings of any length.
        shape : sequence of int or None
            The lengths of its dimensions; None allows any length.

        Raises
        ------
        ValueError
            If it is missing, or has another dtype, rank or length.
        """
        if name not in self._arrays:
            raise ValueError(f"{self._where} has no array {name!r}, found {sorted(self._arrays)}; {self._advice}")
        array = self._arrays[name]
        dtype = "str" if array.dtype.kind == "U" else array.dtype.name
        if dtype not in dtypes or not array.dtype.isnative:
            raise self.error(f"array {name!r} must be {' or '.join(dtypes)}, found {array.dtype}")
        is_fitting = len(array.shape) == len(shape) and all(
            expected in (None, found) for found, expected in zip(array.shape, shape, strict=True)
        )
        if not is_fitting:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            raise self.error(f"array {name!r} must have the shape ({wanted}), found {array.shape}")
        return array

    def number(self, name: str, dtypes: Sequence[str], low: float, high: float) -> int | float:
        """Return the only value of an array, or raise ValueError unless it is from ``low`` to ``high``."""
        value: int | float = self.take(name, dtypes, (1,))[0].item()
        if not low <= value <= high:
            raise self.error(f"array {name!r} must hold a number from {low} to {high}, found {value}")
        return value

    def offsets(self, name: str, n_rows: int | None, n_entries: int) -> NDArray[np.int64]:
        """Return the offsets of rows, or raise ValueError unless they ascend from 0 to ``n_entries``."""
        offsets = self.take(name, OFFSETS, (None if n_rows is None else n_rows + 1,))
        if wrong := wrong_offsets(offsets, n_entries):
            raise self.error(f"array {name!r} {wrong}")
        return offsets.astype(np.int64, copy=False)

    def ascending(self, name: str, dtypes: Sequence[str], end: int) -> NDArray[Any]:
        """Return whole numbers, or raise ValueError unless they strictly ascend within 0 to ``end - 1``."""
        numbers = self.take(name, dtypes, (None,))
        if len(numbers) and (numbers[0] < 0 or numbers[-1] >= end or (numbers[1:] <= numbers[:-1]).any()):
            raise self.error(f"array {name!r} must ascend within 0 to {end - 1}, found {_head(numbers)}")
        return numbers

    def lexical_weights(self, n_texts: int) -> csr_array:
        """Return the matrix (n_texts, V) stored in ``sparse_data``, ``_indices``, ``_indptr`` and ``_shape``.

        Raise ValueError as :meth:`take`, and if an index is out of range or a text has a token id twice.
        """
        data = self.take("sparse_data", FLOATS, (None,))
        indices = self.take("sparse_indices", OFFSETS, data.shape)
        n_rows, n_columns = self.take("sparse_shape", OFFSETS, (2,)).tolist()
        if n_rows != n_texts or not 0 <= n_columns <= LARGEST_VOCABULARY:
            raise self.error(
                f"array 'sparse_shape' must be {n_texts} texts and at most {LARGEST_VOCABULARY} token ids, found "
                f"{(n_rows, n_columns)}"
            )
        self.offsets("sparse_indptr", n_rows, len(data))
        if len(indices) and not (indices.min() >= 0 and indices.max() < n_columns):
            raise self.error(f"array 'sparse_indices' must hold token ids from 0 to {n_columns - 1}, found others")
        weights = csr_array((data, indices, self._arrays["sparse_indptr"]), shape=(n_rows, n_columns))
        if _repeats_a_column(weights):
            raise self.error("array 'sparse_indices' must hold each token id of a text once, found one twice")
        return weights

    def order_within_rows(self, name: str, offsets: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return a permutation of all entries' positions, or raise ValueError if one leaves its row or is repeated."""
        order = self.take(name, OFFSETS, (int(offsets[-1]),))
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        if len(order) and (order.min() < 0 or order.max() >= len(order)):
            raise self.error(f"array {name!r} must hold positions from 0 to {len(order) - 1}, found others")
        is_found = np.zeros(len(order), bool)
        is_found[order] = True
        if not is_found.all() or (rows[order] != rows).any():
            raise self.error(f"array {name!r} must hold each position of a text once, text by text")
        return order.astype(np.int64, copy=False)


def wrong_offsets(offsets: NDArray[np.integer], n_entries: int, *, has_gaps: bool = False) -> str | None:
    """Return what is wrong with the offsets of rows, or None if they ascend from 0 to ``n_entries``.

    With ``has_gaps``, entries before the first row and after the last row may belong to no row.

    Examples
    --------
    >>> import numpy as np
    >>> wrong_offsets(np.array([0, 3, 2]), 2)
    'must ascend from 0 to 2, found [0, 3, 2]'
    """
    if offsets.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets):
        first, last = int(offsets[0]), int(offsets[-1])
        is_in_range = first >= 0 and last <= n_entries if has_gaps else (first, last) == (0, n_entries)
        if is_in_range and (offsets[1:] >= offsets[:-1]).all():
            return None
    return f"must ascend from 0 to {n_entries}, found {_head(offsets)}"


def _repeats_a_column(matrix: csr_array) -> bool:
    """Return whether a row has two entries in one column."""
    if matrix.has_canonical_format:
        return False
    columns = csr_array((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
    columns.sum_duplicates()
    return bool(columns.nnz < matrix.nnz)


def _head(array: NDArray[Any]) -> str:
    """Return the first values of an array, for a message."""
    return f"{array.ravel()[:8].tolist()}"[:-1] + (", ...]" if array.size > 8 else "]")
