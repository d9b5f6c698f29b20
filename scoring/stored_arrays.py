"""Arrays read from a file. Each is checked when it is taken: its dtype, rank, lengths, order and range.

SciPy and the scores trust these properties: an index out of range would write outside of an array. Values are not read
where that would read a whole corpus: a search refuses scores that are NaN, and postings that name no passage.
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
LARGEST_VOCABULARY = 1 << 24  # a hundred times that of BGE-M3; an array of one number a token id is still small


class StoredArrays:
    """The arrays of one file or folder.

    Parameters
    ----------
    arrays : by the names that the file gives them
    where : the file or folder, for messages
    advice : what a wrong array means, and what to do
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], where: object, advice: str = DAMAGED) -> None:
        self._arrays = arrays
        self._where = where
        self._advice = advice

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def has_output(self, name: str) -> bool:
        """Return whether any array of an output is there, so that a part of one is never taken for none."""
        return any(found == name or found.startswith(f"{name}_") for found in self._arrays)

    def error(self, what: str) -> ValueError:
        """Return the error that says what is wrong, where, and what to do."""
        return ValueError(f"{self._where}: {what}; {self._advice}")

    def take(self, name: str, dtypes: Sequence[str], shape: Sequence[int | None]) -> NDArray[Any]:
        """Return an array.

        Parameters
        ----------
        name : its name
        dtypes : names of the dtypes it may have, in this machine's byte order; "str" for strings of any length
        shape : its lengths, None for any

        Raises
        ------
        ValueError
            If it is missing, or its dtype, rank or a length is another.
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
        """Return the only value of an array, from ``low`` to ``high``.

        Raises
        ------
        ValueError
            As :meth:`take`, and if the number is out of range.
        """
        value: int | float = self.take(name, dtypes, (1,))[0].item()
        if not low <= value <= high:
            raise self.error(f"array {name!r} must hold a number from {low} to {high}, found {value}")
        return value

    def offsets(self, name: str, n_rows: int | None, n_entries: int) -> NDArray[np.int64]:
        """Return offsets of rows that share ``n_entries``: they ascend from 0 to that number.

        Raises
        ------
        ValueError
            As :meth:`take`, and if they do not.
        """
        offsets = self.take(name, OFFSETS, (None if n_rows is None else n_rows + 1,))
        if wrong := wrong_offsets(offsets, n_entries):
            raise self.error(f"array {name!r} {wrong}")
        return offsets.astype(np.int64, copy=False)

    def ascending(self, name: str, dtypes: Sequence[str], end: int) -> NDArray[Any]:
        """Return different whole numbers from 0 to below ``end``, in ascending order.

        Raises
        ------
        ValueError
            As :meth:`take`, and if they are not.
        """
        numbers = self.take(name, dtypes, (None,))
        if len(numbers) and (numbers[0] < 0 or numbers[-1] >= end or (numbers[1:] <= numbers[:-1]).any()):
            raise self.error(f"array {name!r} must ascend within 0 to {end - 1}, found {_head(numbers)}")
        return numbers

    def lexical_weights(self, n_texts: int) -> csr_array:
        """Return the (n_texts, V) matrix of arrays ``sparse_data``, ``_indices``, ``_indptr`` and ``_shape``.

        Raises
        ------
        ValueError
            As :meth:`take`, and if an index is out of range, a text has one twice or the offsets do not ascend.
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
        """Return positions of entries: each row's own, in any order, row by row.

        Raises
        ------
        ValueError
            As :meth:`take`, and if a position is another row's, repeated or out of range.
        """
        order = self.take(name, OFFSETS, (int(offsets[-1]),))
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        if len(order) and (order.min() < 0 or order.max() >= len(order)):
            raise self.error(f"array {name!r} must hold positions from 0 to {len(order) - 1}, found others")
        is_found = np.zeros(len(order), bool)
        is_found[order] = True
        if not is_found.all() or (rows[order] != rows).any():
            raise self.error(f"array {name!r} must hold each text's own positions, each once")
        return order.astype(np.int64, copy=False)


def wrong_offsets(offsets: NDArray[np.integer], n_entries: int, *, has_gaps: bool = False) -> str | None:
    """Return what is wrong with offsets of rows that share ``n_entries``, None if they ascend from 0 to that number.

    Parameters
    ----------
    offsets : (N + 1,) integer array
    n_entries : how many entries there are
    has_gaps : whether entries before the first row and after the last one may be no row's

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
    if matrix.has_canonical_format:
        return False
    columns = csr_array((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
    columns.sum_duplicates()
    return bool(columns.nnz < matrix.nnz)


def _head(array: NDArray[Any]) -> str:
    """Return an array's first values, for a message."""
    return f"{array.ravel()[:8].tolist()}"[:-1] + (", ...]" if array.size > 8 else "]")
