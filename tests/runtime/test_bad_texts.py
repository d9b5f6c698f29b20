"""Texts and pairs that cannot be encoded, and odd ones that can."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.runtime import BGEM3FlagModel, BGEM3Model
from bgem3.scoring import (
    Embeddings,
)

MAX_LENGTH = 128  # of the random checkpoint
SECONDS = 60.0  # a bound on what must not take minutes, far above the 2 s it takes


@pytest.fixture(scope="module")
def flag_model(random_artifact: Path) -> Iterator[BGEM3FlagModel]:
    """The drop-in class over the random artifact, with instructions."""
    model = BGEM3FlagModel(
        random_artifact,
        use_fp16=False,
        devices="cpu",
        query_instruction_for_retrieval="query: ",
        passage_instruction_for_retrieval="passage: ",
        query_max_length=64,
        passage_max_length=64,
        return_sparse=True,
        return_colbert_vecs=True,
    )
    yield model
    model.close()


def assert_raises(call: Callable[[], object], kind: type[Exception], *words: str) -> None:
    """Check the very type of what a call raises, and that the message holds the words (regexes) in this order."""
    with pytest.raises(kind, match="(?s)" + ".*".join(words)) as caught:
        call()
    assert caught.type is kind


BAD_TEXTS = [
    pytest.param(None, TypeError, ["{many} must be a list of str", "found NoneType"], id="None"),
    pytest.param(b"text", TypeError, ["{many} must be a list of str", "found bytes"], id="bytes"),
    pytest.param(5, TypeError, ["{many} must be a list of str", "found int"], id="int"),
    pytest.param(2.5, TypeError, ["{many} must be a list of str", "found float"], id="float"),
    pytest.param({"a": "b"}, TypeError, ["{many} must be a list of str", "found dict"], id="dict"),
    pytest.param(["a", None], TypeError, ["{one} 1 must be a str", "found NoneType"], id="None_inside"),
    pytest.param(["a", "b", b"c"], TypeError, ["{one} 2 must be a str", "found bytes", "decode"], id="bytes_inside"),
    pytest.param([7], TypeError, ["{one} 0 must be a str", "found int"], id="int_inside"),
    pytest.param([float("nan")], TypeError, ["{one} 0 must be a str", "found float"], id="nan_inside"),
    pytest.param([["a", "b"]], TypeError, ["{one} 0 must be a str", "found list"], id="nested_list"),
    pytest.param([{"text": "a"}], TypeError, ["{one} 0 must be a str", "found dict"], id="dict_inside"),
    pytest.param(np.array([1, 2]), TypeError, ["{one} 0 must be a str", "found int64"], id="array_of_int"),
    pytest.param(np.array([["a"]]), TypeError, ["{many} must be a list", "ndarray of shape"], id="array_of_arrays"),
    pytest.param(
        ["a", "ab\ud800c"],
        ValueError,
        ["{one} 1 holds a lone surrogate", r"'\\ud800'", "at character 2", "encode"],
        id="lone_surrogate",
    ),
]


@pytest.mark.parametrize(("texts", "kind", "words"), BAD_TEXTS)
def test_what_is_no_list_of_texts_is_refused_by_every_way_of_encoding(
    random_model: BGEM3Model, flag_model: BGEM3FlagModel, texts: Any, kind: type[Exception], words: list[str]
) -> None:
    ways: list[tuple[Callable[[], object], str, str]] = [
        (lambda: random_model.encode(texts), "texts", "text"),
        (lambda: random_model.score(texts, ["a"]), "queries", "query"),
        (lambda: random_model.score(["a"], texts), "passages", "passage"),
        (lambda: flag_model.encode(texts), "texts", "text"),
        (lambda: flag_model.encode_queries(texts), "texts", "text"),
        (lambda: flag_model.encode_corpus(texts), "texts", "text"),
    ]
    for call, many, one in ways:
        assert_raises(call, kind, *(word.format(many=many, one=one) for word in words))


def test_a_bare_str_is_refused_with_the_way_to_pass_it(random_model: BGEM3Model) -> None:
    assert_raises(lambda: random_model.encode("text"), TypeError, "list of str", "found one str", r"\[text\]")
    assert_raises(lambda: random_model.score("a", ["b"]), TypeError, "queries .* found one str", r"\[query\]")
    assert_raises(lambda: random_model.score(["a"], "b"), TypeError, "passages .* found one str", r"\[passage\]")


def test_the_drop_in_class_takes_a_bare_str_as_flagembedding_does(flag_model: BGEM3FlagModel) -> None:
    alone, listed = flag_model.encode("a text"), flag_model.encode(["a text"])
    np.testing.assert_array_equal(alone["dense_vecs"], listed["dense_vecs"][0])
    assert alone["lexical_weights"] == listed["lexical_weights"][0]


NO_PAIR = "must be \\(query, passage\\), two texts"


@pytest.mark.parametrize(
    ("pairs", "kind", "words"),
    [
        pytest.param(None, TypeError, [r"list of \(query, passage\)", "found NoneType"], id="None"),
        pytest.param(5, TypeError, [r"list of \(query, passage\)", "found int"], id="int"),
        pytest.param({"a": "b"}, TypeError, [r"list of \(query, passage\)", "found dict"], id="dict"),
        pytest.param([("a", "b"), ("a",)], ValueError, ["pair 1", NO_PAIR, r"found \('a',\)"], id="one_text"),
        pytest.param([("a", "b", "c")], ValueError, ["pair 0", NO_PAIR, r"found \('a', 'b', 'c'\)"], id="three_texts"),
        pytest.param([None], ValueError, ["pair 0", NO_PAIR, "found None"], id="None_inside"),
        pytest.param([{"a", "b"}], ValueError, ["pair 0", NO_PAIR, "found {"], id="set_inside"),
        pytest.param([("a", "b"), "ab"], ValueError, ["pair 1", NO_PAIR, "found 'ab'"], id="str_of_two_inside"),
        pytest.param([("a", "b"), (None, "b")], TypeError, ["query 1 must be a str", "NoneType"], id="None_as_query"),
        pytest.param(
            [("a", "b"), ("a", b"c")], TypeError, ["passage 1 must be", "bytes", "decode"], id="bytes_passage"
        ),
        pytest.param([("a", "b"), ("a", "\udcff")], ValueError, ["passage 1 holds a lone surr"], id="lone_surrogate"),
    ],
)
def test_what_is_no_list_of_pairs_is_refused_with_the_pairs_number(
    random_model: BGEM3Model, flag_model: BGEM3FlagModel, pairs: Any, kind: type[Exception], words: list[str]
) -> None:
    assert_raises(lambda: random_model.score_pairs(pairs), kind, *words)
    assert_raises(lambda: flag_model.compute_score(pairs), kind, *words)


def test_a_nul_character_is_text_like_any_other(random_model: BGEM3Model) -> None:
    found = random_model.encode(["before\0after", "\0"])
    assert found.n_tokens[0] > 2
    assert not found.truncated.any()
    assert_finite(found)


def test_five_million_characters_are_encoded_in_seconds_as_their_first_tokens(random_model: BGEM3Model) -> None:
    words = "one long text "  # cut between words the tokens of what is left stay the same
    text = words * (5_000_000 // len(words) + 1)
    start = time.perf_counter()
    found = random_model.encode([text])
    assert time.perf_counter() - start < SECONDS
    assert found.n_tokens.tolist() == [MAX_LENGTH]
    assert found.truncated.tolist() == [True]
    assert_finite(found)
    assert_same(found, random_model.encode([words * 300]))


def test_one_word_of_five_million_characters_is_encoded_in_seconds(random_model: BGEM3Model) -> None:
    start = time.perf_counter()
    found = random_model.encode(["x" * 5_000_000])
    assert time.perf_counter() - start < SECONDS
    assert found.n_tokens.tolist() == [MAX_LENGTH]
    assert found.truncated.tolist() == [True]
    assert_finite(found)


def test_no_texts_give_empty_outputs_of_the_right_shapes(random_model: BGEM3Model) -> None:
    found, spec = random_model.encode([]), random_model.spec
    assert len(found) == 0
    assert found.n_tokens.shape == found.truncated.shape == (0,)
    assert found.dense.shape == (0, spec.hidden_size)
    assert found.sparse.shape == (0, spec.vocab_size)
    assert found.sparse.nnz == 0
    assert found.lexical_weights == []
    assert len(found.multivector) == 0
    assert found.multivector.packed.shape == (0, spec.multivector_size)
    assert {found.dense.dtype, found.sparse.dtype, found.multivector.packed.dtype} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("queries", "passages", "shape"),
    [([], ["a", "b"], (0, 2)), (["a", "b", "c"], [], (3, 0)), ([], [], (0, 0))],
    ids=["no_queries", "no_passages", "neither"],
)
def test_scores_of_no_texts_are_empty_float32_matrices(
    random_model: BGEM3Model, queries: list[str], passages: list[str], shape: tuple[int, int]
) -> None:
    for name, scores in vars(random_model.score(queries, passages)).items():
        assert (name, scores.shape, scores.dtype) == (name, shape, np.float32)


def test_scores_of_no_pairs_are_empty_float32_arrays(random_model: BGEM3Model, flag_model: BGEM3FlagModel) -> None:
    for name, scores in vars(random_model.score_pairs([])).items():
        assert (name, scores.shape, scores.dtype) == (name, (0,), np.float32)
    assert flag_model.compute_score([]) == []


def test_no_texts_give_the_drop_in_class_empty_results(flag_model: BGEM3FlagModel) -> None:
    found = flag_model.encode([])
    assert found["dense_vecs"].shape == (0, flag_model.model.spec.hidden_size)
    assert found["lexical_weights"] == []
    assert found["colbert_vecs"] == []


def test_an_empty_text_has_cls_and_eos_one_vector_and_no_weights(random_model: BGEM3Model) -> None:
    found = random_model.encode([""])
    assert found.n_tokens.tolist() == [2]
    assert found.truncated.tolist() == [False]
    assert found.multivector[0].shape == (1, random_model.spec.multivector_size)
    assert found.lexical_weights == [{}]
    assert_finite(found)


def test_blank_texts_are_encoded_and_scored(random_model: BGEM3Model) -> None:
    texts = ["", " ", "\n", "\t \r\n", "\u3000", "\u200b"]
    assert_finite(random_model.encode(texts))
    scores = random_model.score(texts, [*texts, "text"])
    assert scores.hybrid.shape == (6, 7)
    for values in vars(scores).values():
        assert np.isfinite(values).all()


@pytest.mark.parametrize(
    "form",
    [tuple, iter, np.array, lambda texts: (text for text in texts), lambda texts: dict.fromkeys(texts).keys()],
    ids=["tuple", "iterator", "array", "generator", "dict_keys"],
)
def test_any_iterable_of_texts_is_encoded_as_the_list_is(
    random_model: BGEM3Model, flag_model: BGEM3FlagModel, form: Callable[[list[str]], Any]
) -> None:
    texts = ["one text", "", "another, longer text"]
    assert_same(random_model.encode(form(texts)), random_model.encode(texts))
    np.testing.assert_array_equal(flag_model.encode(form(texts))["dense_vecs"], flag_model.encode(texts)["dense_vecs"])
    np.testing.assert_array_equal(
        random_model.score(form(texts), form(texts)).hybrid, random_model.score(texts, texts).hybrid
    )


def test_generators_and_lists_of_pairs_are_scored_as_tuples_are(random_model: BGEM3Model) -> None:
    pairs = [("a query", "a passage"), ("", "text")]
    lists: Any = (list(pair) for pair in pairs)
    np.testing.assert_array_equal(random_model.score_pairs(lists).hybrid, random_model.score_pairs(pairs).hybrid)


def assert_finite(found: Embeddings) -> None:
    assert np.isfinite(found.dense).all()
    assert np.isfinite(found.sparse.data).all()
    assert np.isfinite(found.multivector.packed).all()


def assert_same(found: Embeddings, expected: Embeddings) -> None:
    np.testing.assert_array_equal(found.n_tokens, expected.n_tokens)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    np.testing.assert_array_equal(found.dense, expected.dense)
    np.testing.assert_array_equal(found.multivector.packed, expected.multivector.packed)
    assert found.lexical_weights == expected.lexical_weights
