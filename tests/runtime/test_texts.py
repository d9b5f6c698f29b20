"""Texts and pairs: any ordered iterable is taken, anything else is refused with how to pass it; odd texts."""

import collections
import enum
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgem3.runtime import BGEM3Model
from bgem3.runtime.arguments import split_pairs
from bgem3.runtime.texts import check_texts

TEXTS = ["one text", "", "面包 为什么 会 发 起来？", "a\0b \U0001f956"]
MAX_LENGTH = 128  # tokens, of the random checkpoint
SECONDS = 30.0  # a bound on what must not take minutes, far above the second it takes


# Lists of texts


class Loud(str):
    """A str that shows itself as another."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


Member = enum.Enum("Member", {"CHINESE": "中文"}, type=str)
FORMS: dict[str, Callable[[list[str]], Any]] = {
    "tuple": tuple,
    "generator": lambda texts: (text for text in texts),
    "dict_keys": lambda texts: dict.fromkeys(texts).keys(),
    "array_of_str": np.array,
    "masked_array_without_mask": lambda texts: np.ma.masked_array(texts, mask=False),
    "series_of_str": lambda texts: pd.Series(texts, dtype="string"),
    "series_of_categories": lambda texts: pd.Series(texts, dtype="category"),
    "series_with_an_index": lambda texts: pd.Series(texts, index=range(7, 7 + len(texts))),
    "arrow_array": pyarrow.array,
    "arrow_chunks": lambda texts: pyarrow.chunked_array([texts[:2], texts[2:]]),
    "datasets_column": lambda texts: datasets.Dataset.from_dict({"text": texts})["text"],
    "polars_series": lambda texts: pytest.importorskip("polars").Series(texts),
    "derived_types": lambda texts: [Loud(texts[0]), np.str_(texts[1]), *texts[2:]],
}


@pytest.mark.parametrize("name", FORMS)
def test_every_ordered_iterable_of_one_dimension_is_a_list_of_texts(name: str) -> None:
    found = check_texts(FORMS[name](TEXTS))
    assert found == TEXTS
    assert {type(text) for text in found} == {str}


NO_LISTS: list[tuple[Callable[[], Any], str]] = [
    (lambda: pd.DataFrame({"text": TEXTS}), r"found DataFrame, a table; pass table\['text'\]"),
    (pd.DataFrame, "found DataFrame, a table"),
    (lambda: pyarrow.table({"text": TEXTS}), "found Table, a table"),
    (lambda: datasets.Dataset.from_dict({"text": TEXTS}), "found Dataset, a table"),
    (lambda: pytest.importorskip("polars").LazyFrame({"text": TEXTS}), "a table"),
    (lambda: np.zeros((0, 3), "U1"), r"found ndarray of shape \(0, 3\)"),
    (lambda: {"text": TEXTS}, r"found dict; pass a list .* d\['text'\]"),
    (lambda: {"a", "b"}, "found set, which has no order for the results"),
    (lambda: b"text", "found bytes; decode it"),
    (lambda: io.StringIO("one\ntwo\n"), r"found StringIO, a file, .*splitlines\(\)"),
    (lambda: Path("texts.txt"), r"read_text\(encoding='utf-8'\)\.splitlines\(\)"),
    (lambda: None, "found NoneType$"),
    (lambda: 5, "found int$"),
]


@pytest.mark.parametrize(("make", "words"), NO_LISTS, ids=range(len(NO_LISTS)))
def test_what_is_no_list_is_refused_with_how_to_pass_it(
    random_model: BGEM3Model, make: Callable[[], Any], words: str
) -> None:
    value = make()
    for call, plural in (
        (lambda: random_model.encode(value), "texts"),
        (lambda: random_model.score(["a"], value), "passages"),
        (lambda: random_model.score(value, ["a"]), "queries"),
    ):
        with pytest.raises(TypeError, match=f"^{plural} must be a list of str, .*{words}"):
            call()


def test_one_str_is_refused_with_how_to_pass_it(random_model: BGEM3Model) -> None:
    for call, words in (
        (lambda: random_model.encode("text"), r"texts .* found one str; pass \[text\]"),
        (lambda: random_model.score("a", ["b"]), r"queries .* found one str; pass \[query\]"),
        (lambda: random_model.score(["a"], "b"), r"passages .* found one str; pass \[passage\]"),
    ):
        with pytest.raises(TypeError, match=words):
            call()


NO_TEXTS: list[tuple[Any, str]] = [
    (["a", None], "text 1 must be a str, found NoneType, a missing value; fill it with ''"),
    (pd.Series(["a", pd.NA], dtype="string"), "text 1 .* found NAType, a missing value"),
    (np.ma.masked_array(["a", "b"], mask=[False, True]), "text 1 .* a missing value"),
    (np.array([b"a"]), "found bytes_; decode it first"),
    (list(pyarrow.array(["a"])), "found StringScalar; convert it with as_py"),
    ([["a", "b"]], "text 0 must be a str, found list; pass a flat list"),
    ([{"text": "a"}], "found dict; pass the field that holds the text"),
    (range(3), "text 0 must be a str, found int$"),
    ([collections.UserString("a")], "text 0 must be a str, found UserString$"),
]


@pytest.mark.parametrize(("texts", "words"), NO_TEXTS, ids=range(len(NO_TEXTS)))
def test_an_item_that_is_no_text_is_named_with_what_to_do(texts: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        check_texts(texts)


ITEMS = st.text(st.characters(codec=None)) | st.none() | st.floats() | st.binary() | st.lists(st.text(), max_size=2)


@settings(max_examples=50)
@given(st.lists(ITEMS, max_size=4))
def test_a_list_of_anything_is_returned_or_refused_by_the_number_of_its_first_fault(items: list[Any]) -> None:
    def fault(item: object) -> str:
        if not isinstance(item, str):
            return "must be a str, found "
        return "holds a lone surrogate" if any("\ud800" <= c <= "\udfff" for c in item) else ""

    faults = [(i, fault(item)) for i, item in enumerate(items) if fault(item)]
    if not faults:
        assert check_texts(items) == items
        return
    with pytest.raises((TypeError, ValueError), match=f"^text {faults[0][0]} {faults[0][1]}"):
        check_texts(items)


# Pairs

PAIRS = [("one", "uno"), ("two", "due")]


@pytest.mark.parametrize(
    "form",
    [
        iter,
        lambda pairs: [list(pair) for pair in pairs],
        lambda pairs: pd.DataFrame(pairs).itertuples(index=False),
        lambda pairs: pyarrow.array([list(pair) for pair in pairs]),
        lambda pairs: [(Loud(query), passage) for query, passage in pairs],
    ],
    ids=range(5),
)
def test_pairs_may_be_rows_of_any_ordered_iterable(form: Callable[[list[tuple[str, str]]], Any]) -> None:
    queries, passages = split_pairs(form(PAIRS))
    assert (queries, passages) == (["one", "two"], ["uno", "due"])
    assert {type(text) for text in queries + passages} == {str}


NO_PAIRS: list[tuple[Any, type[Exception], str]] = [
    (pd.DataFrame(PAIRS), TypeError, r"a table; pass zip\(table\['query'\], table\['pass"),
    (dict(PAIRS), TypeError, r"must be a list of \(query, passage\), found dict; pass a list"),
    (np.array([[["a", "b"]]]), TypeError, r"ndarray of shape \(1, 1, 2\); pass one of 2 dimensions"),
    (np.array(["ab", "cd"]), ValueError, "pair 0 must be .* found .*'ab'"),
    ([*PAIRS, ("a",)], ValueError, r"pair 2 must be \(query, passage\), two texts, found \('a',\)"),
    ([{"query": "a", "passage": "b"}], ValueError, "pair 0 must be .* found {'query'"),
    ([*PAIRS, ("a", None)], TypeError, "passage 2 must be a str, found NoneType, a missing value"),
    ([("a", "\udcff")], ValueError, "passage 0 holds a lone surrogate"),
]


@pytest.mark.parametrize(("pairs", "kind", "words"), NO_PAIRS, ids=range(len(NO_PAIRS)))
def test_what_is_no_list_of_pairs_is_refused(
    random_model: BGEM3Model, pairs: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        random_model.score_pairs(pairs)


# Odd texts


@pytest.mark.parametrize("text", ["one long text " * 70_000, "x" * 1_000_000], ids=["words", "one_word"])
def test_a_million_characters_are_encoded_in_seconds_as_their_first_tokens(random_model: BGEM3Model, text: str) -> None:
    start = time.perf_counter()
    found = random_model.encode([text])
    assert time.perf_counter() - start < SECONDS
    assert (found.n_tokens.tolist(), found.truncated.tolist()) == ([MAX_LENGTH], [True])
    if " " in text:  # cut between words, the tokens of the rest stay the same
        np.testing.assert_array_equal(found.dense, random_model.encode([text[:4200]]).dense)


def test_no_texts_give_empty_outputs_and_scores_of_the_right_shapes(random_model: BGEM3Model) -> None:
    found, spec = random_model.encode([]), random_model.spec
    assert found.n_tokens.shape == found.truncated.shape == (0,)
    assert found.dense.shape == (0, spec.hidden_size)
    assert (found.sparse.shape, found.lexical_weights) == ((0, spec.vocab_size), [])
    assert found.multivector.packed.shape == (0, spec.multivector_size)
    assert {found.dense.dtype, found.sparse.dtype, found.multivector.packed.dtype} == {np.dtype(np.float32)}
    for queries, passages in (([], ["a", "b"]), (["a", "b", "c"], []), ([], [])):
        for scores in vars(random_model.score(queries, passages)).values():
            assert (scores.shape, scores.dtype) == ((len(queries), len(passages)), np.float32)
    for scores in vars(random_model.score_pairs([])).values():
        assert (scores.shape, scores.dtype) == ((0,), np.float32)


def test_blank_texts_and_nul_characters_are_encoded_and_scored(random_model: BGEM3Model) -> None:
    texts = ["", " ", "\n", "\t \r\n", "\u3000", "\u200b", "before\0after"]
    found = random_model.encode(texts)
    assert (found.n_tokens[0], found.truncated[0], found.lexical_weights[0]) == (2, False, {})  # CLS and EOS
    assert found.n_tokens[-1] > 2
    for values in vars(random_model.score(texts, [*texts, "text"])).values():
        assert values.shape == (7, 8)
        assert np.isfinite(values).all()
