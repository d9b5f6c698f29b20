"""Ids of texts: plain Python numbers and strings, or one array of them."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

INT64 = range(-(2**63), 2**63)
EITHER = "ids must be whole numbers or strings"
DIFFERENT = "ids must be different whole numbers, or different strings"


def plain_ids(ids: Iterable[Any] | None, n_texts: int, rule: str = EITHER) -> Sequence[int | str]:
    """Return ids as ints and strs, which can be written as JSON; None stands for the numbers from 0 on.

    Values may come from Python, NumPy, pandas or Arrow. A UUID becomes a string.

    Raises
    ------
    ValueError
        If ids are not one per text in a fixed order, or an id is neither a whole number nor a string.
    """
    if ids is None:
        return range(n_texts)
    if isinstance(ids, (str, bytes, bytearray, Mapping, set, frozenset)) or getattr(ids, "ndim", 1) != 1:
        raise ValueError(f"ids must be a list of one id per text, found {type(ids).__name__} {ids!r:.80}")
    try:
        found = list(islice(ids, n_texts + 1))  # an iterable such as itertools.count() has no end
    except TypeError as error:
        raise ValueError(f"ids must be a list of one id per text, found {type(ids).__name__} {ids!r:.80}") from error
    if len(found) != n_texts:
        number = len(found) if len(found) < n_texts else f"more than {n_texts}"
        raise ValueError(f"ids must be one per text, found {number} for {n_texts} texts")
    return [_plain(value, position, rule) for position, value in enumerate(found)]


def one_kind(ids: Sequence[int | str], rule: str = EITHER) -> Sequence[int] | Sequence[str]:
    """Return ids, or raise ValueError with the position unless all are strings or all are int64 numbers."""
    if isinstance(ids, range):
        return ids
    for position, value in enumerate(ids):
        if isinstance(value, str) != isinstance(ids[0], str):
            raise ValueError(
                f"{rule}, all of one kind, found {ids[0]!r:.80} at position 0 and {value!r:.80} at position {position}"
            )
    check_range(ids, INT64)
    return ids  # type: ignore[return-value]


def check_range(ids: Sequence[int | str], numbers: range) -> None:
    """Raise ValueError with the position if an id is a number out of range."""
    for position, value in enumerate(ids):
        if not isinstance(value, str) and value not in numbers:
            raise ValueError(
                f"ids must be from {numbers.start} to {numbers.stop - 1}, found {value} at position {position}; "
                "pass them as strings"
            )


def id_array(ids: Iterable[Any] | None, n_texts: int, first: int) -> NDArray[Any]:
    """Return ids as an int64 or str array (N,), or raise ValueError if they are not distinct and of one kind.

    None stands for the numbers from ``first`` on.
    """
    if ids is None:
        return np.arange(first, first + n_texts)
    plain = one_kind(plain_ids(ids, n_texts, DIFFERENT), DIFFERENT)
    array = np.array(plain, np.int64 if not plain or isinstance(plain[0], int) else np.str_)
    positions: dict[object, int] = {}
    for position, (value, stored) in enumerate(zip(plain, array.tolist(), strict=True)):
        if value != stored:
            raise ValueError(f"ids must not end with a NUL character, found {value!r:.80} at position {position}")
        if value in positions:
            raise ValueError(f"{DIFFERENT}, found {value!r:.80} at positions {positions[value]} and {position}")
        positions[value] = position
    return array


def has_repeats(ids: NDArray[Any]) -> bool:
    """Return whether an int64 or str array (N,) has a value twice."""
    if (ids[1:] > ids[:-1]).all():  # such as the numbers that stand for None
        return False
    if ids.dtype.kind == "U":
        return len(set(ids.tolist())) < len(ids)  # faster than sorting strings
    ordered = np.sort(ids)
    return bool((ordered[1:] == ordered[:-1]).any())


def _plain(value: Any, position: int, rule: str) -> int | str:
    """Return an id as an int or a str, or raise ValueError with its position."""
    if hasattr(value, "as_py"):  # an Arrow scalar
        value = value.as_py()
    if isinstance(value, str):
        return str.__str__(value)  # turns NumPy's str_ into str
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ValueError(f"{rule}, found {type(value).__name__} {value!r:.80} at position {position}")
