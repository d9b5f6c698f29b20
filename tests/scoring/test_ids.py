"""Ids of texts: whatever iterable holds them, they are plain numbers or strings, or refused with their position."""

import itertools
import json
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas  # type: ignore[import-untyped]
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgem3.scoring import HybridSearcher
from tests.scoring.corpus import make_embeddings

TEXTS = make_embeddings(0, 2)
UUIDS = [str(uuid.UUID(int=1)), str(uuid.UUID(int=2))]


NUMBERS: dict[str, Callable[[], Any]] = {
    "generator": lambda: (i for i in (3, 4)),
    "memoryview": lambda: memoryview(bytes([3, 4])),
    "pandas": lambda: pandas.Series([3, 4], index=["x", "y"], dtype="Int64"),
    "pyarrow": lambda: pyarrow.chunked_array([[3], [4]]),
    "torch": lambda: torch.tensor([3, 4]),
    "numpy": lambda: np.array([3, 4], ">i4"),
    "numpy objects": lambda: np.array([3, 4], "O"),
}
STRINGS: dict[str, Callable[[], Any]] = {
    "numpy": lambda: np.array(UUIDS),
    "UUIDs": lambda: [uuid.UUID(text) for text in UUIDS],
    "pandas": lambda: pandas.Series(UUIDS, dtype="category"),
    "pyarrow": lambda: pyarrow.array(UUIDS),
}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        *(pytest.param(ids, [3, 4], id=f"numbers-{name}") for name, ids in NUMBERS.items()),
        *(pytest.param(ids, UUIDS, id=f"strings-{name}") for name, ids in STRINGS.items()),
    ],
)
def test_ids_of_any_iterable_become_plain_numbers_or_strings(ids: Callable[[], Any], expected: list[Any]) -> None:
    for make in (TEXTS.to_qdrant, TEXTS.to_milvus, TEXTS.to_vespa):
        rows = json.loads(json.dumps(make(ids())))
        assert [row["id"] for row in rows] == ([str(i) for i in expected] if make == TEXTS.to_vespa else expected)
    assert {type(point["id"]) for point in TEXTS.to_qdrant(ids())} == {type(expected[0])}, "none is a subclass"
    searcher = HybridSearcher.build(make_embeddings(1, 0))
    searcher.append(TEXTS, ids())
    assert searcher.ids.tolist() == expected
    assert searcher.ids.dtype.kind == ("i" if expected == [3, 4] else "U")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "bool": (lambda: [0, True], "found bool True at position 1"),
    "NaN": (lambda: pandas.Series([1, None]), "found float .* at position 0"),
    "null": (lambda: pyarrow.array([1, None]), "found NoneType None at position 1"),
    "rank 2": (lambda: np.array([[1], [2]]), "a list of one id per text, found ndarray"),
    "str": (lambda: "ab", "found str 'ab'"),
    "set": (lambda: {1, 2}, "found set"),
    "number": (lambda: 5, "found int 5"),
    "too few": (lambda: [1], "one per text, found 1 for 2 texts"),
    "without end": (itertools.count, "one per text, found more than 2 for 2 texts"),
}


@pytest.mark.parametrize(("ids", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_list_of_ids_is_refused_with_the_position(ids: Callable[[], Any], message: str) -> None:
    searcher = HybridSearcher.build(make_embeddings(1, 3))
    for call in (TEXTS.to_qdrant, TEXTS.to_milvus, TEXTS.to_vespa, lambda ids: searcher.append(TEXTS, ids)):
        with pytest.raises(ValueError, match=message):
            call(ids())
    assert len(searcher) == 3


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, "a"], "all of one kind, found 1 at position 0 and 'a' at position 1"),
        ([0, -(2**63) - 1], "found -9223372036854775809 at position 1; pass them as strings"),
    ],
)
def test_ids_that_one_array_cannot_hold_are_refused_by_search_and_milvus(ids: Any, message: str) -> None:
    for call in (TEXTS.to_milvus, lambda ids: HybridSearcher.build(TEXTS, ids)):
        with pytest.raises(ValueError, match=message):
            call(ids)


def test_qdrant_takes_numbers_beside_uuids_up_to_the_largest_and_none_below_0() -> None:
    ids: list[int | str] = [2**64 - 1, UUIDS[0]]
    assert [point["id"] for point in TEXTS.to_qdrant(ids)] == ids
    for wrong in (-1, 2**64):
        with pytest.raises(ValueError, match=f"from 0 to 18446744073709551615, found {wrong} at position 1"):
            TEXTS.to_qdrant([0, wrong])


@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_a_searcher_keeps_ids_as_they_are_or_refuses_them(ids: list[int | str]) -> None:
    try:
        searcher = HybridSearcher.build(make_embeddings(0, 3), ids)  # type: ignore[arg-type]
    except ValueError:
        is_mixed, ends_in_nul = len({type(i) for i in ids}) > 1, any(str(i).endswith("\0") for i in ids)
        assert len(set(ids)) < 3 or is_mixed or ends_in_nul
    else:
        assert searcher.ids.tolist() == ids
