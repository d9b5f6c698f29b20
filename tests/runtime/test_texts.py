"""What may be passed as texts and as pairs: any ordered iterable of str; and what is refused, with how to pass it."""

import array
import collections
import contextlib
import enum
import io
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgem3.runtime import BGEM3FlagModel, BGEM3Model
from bgem3.runtime.model import split_pairs
from bgem3.runtime.tokenizer import check_texts

TEXTS = ["one text", "", "面包 为什么 会 发 起来？", "a\0b \U0001f956"]


class Language(str, enum.Enum):
    """Members are texts of a type of their own."""

    ENGLISH = "English"
    CHINESE = "中文"


class Loud(str):
    """A str that shows itself as another."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


def frame(texts: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"id": range(len(texts)), "text": texts})


COLUMNS: dict[str, Callable[[list[str]], Any]] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda texts: (text for text in texts),
    "map": lambda texts: map(str, texts),
    "deque": collections.deque,
    "user_list": collections.UserList,
    "dict_keys": lambda texts: dict.fromkeys(texts).keys(),
    "dict_values": lambda texts: dict(enumerate(texts)).values(),
    "dict_as_keys_of_chain": lambda texts: iter(dict.fromkeys(texts)),
    "array_of_str": lambda texts: np.array(texts),
    "array_of_objects": lambda texts: np.array(texts, object),
    "array_not_contiguous": lambda texts: np.array([texts, texts]).T[:, 0],
    "masked_array_without_mask": lambda texts: np.ma.masked_array(texts, mask=False),
    "series": pd.Series,
    "series_of_objects": lambda texts: pd.Series(texts, dtype=object),
    "series_of_str": lambda texts: pd.Series(texts, dtype="string"),
    "series_of_categories": lambda texts: pd.Series(texts, dtype="category"),
    "series_with_an_index": lambda texts: pd.Series(texts, index=range(7, 7 + len(texts))),
    "series_named_columns": lambda texts: pd.DataFrame({"columns": texts})["columns"],
    "index": pd.Index,
    "column": lambda texts: frame(texts)["text"],
    "column_as_array": lambda texts: frame(texts)["text"].to_numpy(),
    "arrow_array": pyarrow.array,
    "arrow_large_string": lambda texts: pyarrow.array(texts, pyarrow.large_string()),
    "arrow_dictionary": lambda texts: pyarrow.array(texts).dictionary_encode(),
    "arrow_chunks": lambda texts: pyarrow.chunked_array([texts[:2], texts[2:]]),
    "arrow_column": lambda texts: pyarrow.table({"text": texts})["text"],
    "datasets_column": lambda texts: datasets.Dataset.from_dict({"text": texts})["text"],
}


def polars_series(texts: list[str]) -> Any:
    return pytest.importorskip("polars").Series(texts)


@pytest.mark.parametrize("form", [*COLUMNS.values(), polars_series], ids=[*COLUMNS, "polars_series"])
def test_every_ordered_iterable_of_one_dimension_is_a_list_of_texts(form: Callable[[list[str]], Any]) -> None:
    for kind in ("text", "query", "passage"):
        found = check_texts(form(TEXTS), kind)
        assert found == TEXTS
        assert {type(text) for text in found} == {str}


@pytest.mark.parametrize("name", ["array_of_str", "series", "index", "arrow_chunks", "dict_values"])
def test_columns_are_encoded_and_scored_as_the_list_is(random_model: BGEM3Model, name: str) -> None:
    form = COLUMNS[name]
    np.testing.assert_array_equal(
        random_model.encode(form(TEXTS), ("dense",)).dense, random_model.encode(TEXTS, ("dense",)).dense
    )
    np.testing.assert_array_equal(
        random_model.score(form(TEXTS), form(TEXTS)).hybrid, random_model.score(TEXTS, TEXTS).hybrid
    )


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (np.str_("numpy"), "numpy"),
        (Language.ENGLISH, "English"),
        (Language.CHINESE, "中文"),
        (Loud("quiet"), "quiet"),
        (np.array(["padded\0"])[0], "padded"),
    ],
    ids=repr,
)
def test_a_text_of_a_type_derived_from_str_is_its_characters(text: str, plain: str, random_artifact: Path) -> None:
    assert check_texts([text, "b"]) == [plain, "b"]
    assert {type(found) for found in check_texts([text, "b"])} == {str}
    assert split_pairs([(text, "b")]) == ([plain], ["b"])
    model = BGEM3FlagModel(random_artifact, devices="cpu", query_instruction_for_retrieval="find ")
    for encode in (model.encode, model.encode_queries):
        np.testing.assert_array_equal(encode([text])["dense_vecs"], encode([plain])["dense_vecs"])
        np.testing.assert_array_equal(encode(text)["dense_vecs"], encode(plain)["dense_vecs"])


def open_file(tmp_path: Path, mode: str) -> Any:
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\n", encoding="utf-8")
    return path.open(mode, encoding=None if "b" in mode else "utf-8")


NO_LISTS: list[Any] = [
    pytest.param(lambda _: frame(TEXTS), r"found DataFrame, a table; pass table\['text'\]", id="data_frame"),
    pytest.param(lambda _: pd.DataFrame({"text": []}), "found DataFrame, a table", id="empty_data_frame"),
    pytest.param(lambda _: pd.DataFrame(), "found DataFrame, a table", id="data_frame_without_columns"),
    pytest.param(lambda _: frame(TEXTS)[["text"]], "found DataFrame, a table", id="data_frame_of_one_column"),
    pytest.param(lambda _: pyarrow.table({"text": TEXTS}), "found Table, a table", id="arrow_table"),
    pytest.param(
        lambda _: pyarrow.table({"text": TEXTS}).to_batches()[0], "found RecordBatch, a table", id="arrow_batch"
    ),
    pytest.param(lambda _: datasets.Dataset.from_dict({"text": TEXTS}), "found Dataset, a table", id="dataset"),
    pytest.param(lambda _: pytest.importorskip("polars").DataFrame({"text": TEXTS}), "a table", id="polars_frame"),
    pytest.param(lambda _: pytest.importorskip("polars").LazyFrame({"text": TEXTS}), "a table", id="polars_lazy"),
    pytest.param(lambda _: np.array("text"), r"found ndarray of shape \(\); pass one of 1 dimension", id="array_0d"),
    pytest.param(lambda _: np.array([["a", "b"]]), r"found ndarray of shape \(1, 2\)", id="array_2d"),
    pytest.param(lambda _: np.zeros((0, 3), "U1"), r"found ndarray of shape \(0, 3\)", id="array_2d_empty"),
    pytest.param(lambda _: {"text": TEXTS}, r"found dict; pass a list .* d\['text'\]", id="dict"),
    pytest.param(lambda _: collections.OrderedDict(a="b"), "found OrderedDict; pass a list", id="ordered_dict"),
    pytest.param(lambda _: collections.UserDict(a="b"), "found UserDict; pass a list", id="user_dict"),
    pytest.param(lambda _: types.MappingProxyType({"a": "b"}), "found mappingproxy; pass a list", id="proxy"),
    pytest.param(lambda _: collections.Counter(["a"]), "found Counter; pass a list", id="counter"),
    pytest.param(lambda _: {"a", "b"}, "found set, which has no order for the results", id="set"),
    pytest.param(lambda _: frozenset("ab"), "found frozenset, which has no order", id="frozenset"),
    pytest.param(lambda _: b"text", "found bytes; decode it", id="bytes"),
    pytest.param(lambda _: bytearray(b"text"), "found bytearray; decode it", id="bytearray"),
    pytest.param(lambda _: memoryview(b"text"), "found memoryview; decode it", id="memoryview"),
    pytest.param(lambda path: open_file(path, "r"), r"a file, .*splitlines\(\)", id="text_file"),
    pytest.param(lambda path: open_file(path, "rb"), r"a file, .*splitlines\(\)", id="binary_file"),
    pytest.param(lambda _: io.StringIO("one\ntwo\n"), r"found StringIO, a file", id="string_io"),
    pytest.param(lambda path: path / "texts.txt", r"read_text\(encoding='utf-8'\)\.splitlines\(\)", id="path"),
    pytest.param(lambda _: None, "found NoneType$", id="None"),
    pytest.param(lambda _: 5, "found int$", id="int"),
    pytest.param(lambda _: 1.5, "found float$", id="float"),
    pytest.param(lambda _: str, "found type$", id="class"),
    pytest.param(lambda _: check_texts, "found function$", id="function"),
]


@pytest.mark.parametrize(("make", "words"), NO_LISTS)
def test_what_is_no_list_is_refused_with_how_to_pass_it(
    tmp_path: Path, random_model: BGEM3Model, make: Callable[[Path], Any], words: str
) -> None:
    value = make(tmp_path)
    with contextlib.closing(value) if isinstance(value, io.IOBase) else contextlib.nullcontext():
        for call, plural in (
            (lambda: random_model.encode(value), "texts"),
            (lambda: random_model.score(["a"], value), "passages"),
            (lambda: random_model.score(value, ["a"]), "queries"),
        ):
            with pytest.raises(TypeError, match=f"{plural} must be a list of str, .*{words}"):
                call()


NO_TEXTS: list[Any] = [
    pytest.param(["a", None], "text 1 must be a str, found NoneType, a missing value; fill it with ''", id="None"),
    pytest.param(pd.Series(["a", None]), "text 1 must be a str, .* a missing value", id="series_with_None"),
    pytest.param(pd.Series(["a", pd.NA], dtype="string"), "found NAType, a missing value", id="series_with_NA"),
    pytest.param(np.array(["a", np.nan], object), "found float, a missing value", id="nan"),
    pytest.param([pd.NaT], "found NaTType, a missing value", id="NaT"),
    pytest.param(np.ma.masked_array(["a", "b"], mask=[False, True]), "text 1 .* a missing value", id="masked"),
    pytest.param(pyarrow.array(["a", None]), "text 1 must be a str, found NoneType, a missing value", id="arrow_null"),
    pytest.param(["a", b"b"], "text 1 must be a str, found bytes; decode it first", id="bytes"),
    pytest.param([bytearray(b"b")], "found bytearray; decode it first", id="bytearray"),
    pytest.param(np.array([b"a"]), "found bytes_; decode it first", id="array_of_bytes"),
    pytest.param(pyarrow.array([b"a"]), "found bytes; decode it first", id="arrow_binary"),
    pytest.param(list(pyarrow.array(["a"])), "found StringScalar; convert it with as_py", id="arrow_scalars"),
    pytest.param([["a", "b"]], "text 0 must be a str, found list; pass a flat list", id="nested_list"),
    pytest.param([("a", "b")], "found tuple; pass a flat list", id="nested_tuple"),
    pytest.param(pd.MultiIndex.from_tuples([("a", "b")]), "found tuple; pass a flat list", id="multi_index"),
    pytest.param(frame(["a"]).itertuples(), "text 0 must be a str, found Pandas; pass a flat list", id="itertuples"),
    pytest.param([{"text": "a"}], "found dict; pass the field that holds the text", id="records"),
    pytest.param(pyarrow.array([{"text": "a"}]), "found dict; pass the field", id="arrow_structs"),
    pytest.param(np.array([1, 2]), "text 0 must be a str, found int64$", id="array_of_int"),
    pytest.param(array.array("i", [1]), "text 0 must be a str, found int$", id="array_array"),
    pytest.param(range(3), "text 0 must be a str, found int$", id="range"),
    pytest.param([1.5], "text 0 must be a str, found float$", id="float"),
    pytest.param([np.array(["a"])], "text 0 must be a str, found ndarray$", id="list_of_arrays"),
    pytest.param([np.array("a")], "text 0 must be a str, found ndarray$", id="list_of_0d_arrays"),
    pytest.param([pd.Series(["a"])], "text 0 must be a str, found Series$", id="list_of_series"),
    pytest.param([Path("a")], "text 0 must be a str, found PosixPath|WindowsPath", id="paths"),
    pytest.param([collections.UserString("a")], "text 0 must be a str, found UserString$", id="user_string"),
]


@pytest.mark.parametrize(("texts", "words"), NO_TEXTS)
def test_an_item_that_is_no_text_is_named_with_what_to_do(random_model: BGEM3Model, texts: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        random_model.encode(texts)


def test_an_error_inside_a_generator_comes_out_as_it_is(random_model: BGEM3Model) -> None:
    def texts() -> Iterator[str]:
        yield "a"
        raise LookupError("no more rows")

    with pytest.raises(LookupError, match="no more rows"):
        random_model.encode(texts())


# --- pairs


PAIRS = [("one", "uno"), ("two", "due")]


@pytest.mark.parametrize(
    "form",
    [
        list,
        iter,
        np.array,
        lambda pairs: np.array(pairs, object),
        lambda pairs: [np.array(pair) for pair in pairs],
        lambda pairs: [list(pair) for pair in pairs],
        lambda pairs: dict(pairs).items(),
        lambda pairs: zip(*zip(*pairs, strict=True), strict=True),
        lambda pairs: pd.DataFrame(pairs).itertuples(index=False),
        lambda pairs: pd.DataFrame(pairs).to_numpy(),
        lambda pairs: pd.Series(pairs),
        lambda pairs: pyarrow.array([list(pair) for pair in pairs]),
        lambda pairs: [collections.namedtuple("Pair", "query passage")(*pair) for pair in pairs],
    ],
    ids=range(13),
)
def test_pairs_may_be_rows_of_any_ordered_iterable(form: Callable[[list[tuple[str, str]]], Any]) -> None:
    queries, passages = split_pairs(form(PAIRS))
    assert (queries, passages) == (["one", "two"], ["uno", "due"])
    assert {type(text) for text in queries + passages} == {str}


@pytest.mark.parametrize(
    ("pairs", "kind", "words"),
    [
        (pd.DataFrame(PAIRS, columns=["ab", "cd"]), TypeError, r"a table; pass zip\(table\['query'\], table\['pass"),
        (pyarrow.table({"q": ["a"], "p": ["b"]}), TypeError, "found Table, a table; pass zip"),
        (set(PAIRS), TypeError, "found set, which has no order"),
        (dict(PAIRS), TypeError, "found dict; pass a list"),
        (b"ab", TypeError, "found bytes"),
        ("ab", TypeError, "found one str"),
        (None, TypeError, "found NoneType"),
        (np.array("ab"), TypeError, r"ndarray of shape \(\); pass one of 2 dimensions"),
        (np.array([[["a", "b"]]]), TypeError, r"ndarray of shape \(1, 1, 2\); pass one of 2 dimensions"),
        (np.array(["ab", "cd"]), ValueError, "pair 0 must be .* found .*'ab'"),
        (np.array([["a", "b", "c"]]), ValueError, r"pair 0 must be .* found \['a', 'b', 'c'\]"),
        ([*PAIRS, np.array("ab")], ValueError, "pair 2 must be .* found 'ab'"),
        ([b"ab"], ValueError, "pair 0 must be .* found b'ab'"),
        ([bytearray(b"ab")], ValueError, "pair 0 must be .* found bytearray"),
        ([{"query": "a", "passage": "b"}], ValueError, "pair 0 must be .* found {'query'"),
        (frame(["a", "b"]).iterrows(), TypeError, "query 0 must be a str, found int"),
        ([("a", None)], TypeError, "passage 0 must be a str, found NoneType, a missing value"),
        ([(["a"], "b")], TypeError, "query 0 must be a str, found list; pass a flat list"),
    ],
    ids=range(18),
)
def test_what_is_no_list_of_pairs_is_refused(
    random_model: BGEM3Model, pairs: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        random_model.score_pairs(pairs)


# --- any value at all


ITEMS = st.one_of(
    st.text(),
    st.none(),
    st.integers(),
    st.floats(),
    st.binary(),
    st.lists(st.text(), max_size=2),
    st.just(pd.NA),
    st.just(np.array(["a", "b"])),
    st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
)


@settings(max_examples=50)
@given(st.lists(ITEMS, max_size=4))
def test_a_list_of_anything_is_returned_or_refused_by_the_number_of_its_first_fault(items: list[Any]) -> None:
    is_text = [isinstance(item, str) for item in items]
    if all(is_text):
        assert check_texts(items) == items
        return
    with pytest.raises(TypeError, match=f"^text {is_text.index(False)} must be a str, found "):
        check_texts(items)


@given(st.lists(st.characters() | st.sampled_from(["\ud800", "\udcff"]), max_size=8))
def test_lone_surrogates_are_found_wherever_they_are(characters: list[str]) -> None:
    text = "".join(characters)
    if any("\ud800" <= character <= "\udfff" for character in text):
        with pytest.raises(ValueError, match=r"^text 1 holds a lone surrogate"):
            check_texts(["a", text])
    else:
        assert check_texts(["a", text]) == ["a", text]
