"""Bad texts, arguments, artifacts and checkpoints: every message says what was found, expected, and to be done."""

import json
import os
import pickle
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_array

from bgem3.export import export_model
from bgem3.runtime import ArtifactError, BGEM3FlagModel, BGEM3Model, CheckpointError
from bgem3.runtime.artifact import MANIFEST, read_artifact, sha256_of
from bgem3.runtime.cli import main
from bgem3.scoring import (
    Embeddings,
    dense_pair_scores,
    dense_scores,
    hybrid_scores,
    multivector_pair_scores,
    multivector_scores,
    sparse_pair_scores,
    sparse_scores,
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


# Arguments of encode and score

OUTPUTS = r"outputs must be one or more of \('dense', 'sparse', 'multivector'\)"
RANGE = f"max_length must be from 2 .* to {MAX_LENGTH} tokens"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        pytest.param({"max_length": 0}, ValueError, [RANGE, "found 0"], id="max_length_0"),
        pytest.param({"max_length": 1}, ValueError, [RANGE, "found 1"], id="max_length_1"),
        pytest.param({"max_length": -1}, ValueError, [RANGE, "found -1"], id="max_length_negative"),
        pytest.param({"max_length": MAX_LENGTH + 1}, ValueError, [RANGE, "found 129"], id="max_length_beyond"),
        pytest.param({"max_length": 8193}, ValueError, [RANGE, "found 8193"], id="max_length_far_beyond"),
        pytest.param(
            {"max_length": True}, TypeError, ["max_length must be a whole number", "True"], id="max_length_bool"
        ),
        pytest.param(
            {"max_length": 3.5}, TypeError, ["max_length must be a whole number", "3.5"], id="max_length_float"
        ),
        pytest.param(
            {"max_length": "10"}, TypeError, ["max_length must be a whole number", "'10'"], id="max_length_str"
        ),
        pytest.param({"outputs": ["dens"]}, ValueError, [OUTPUTS, r"found \['dens'\]"], id="outputs_unknown"),
        pytest.param({"outputs": "colbert"}, ValueError, [OUTPUTS, "found 'colbert'"], id="outputs_unknown_str"),
        pytest.param({"outputs": []}, ValueError, [OUTPUTS, r"found \[\]"], id="outputs_empty"),
        pytest.param({"outputs": None}, ValueError, [OUTPUTS, "found None"], id="outputs_None"),
        pytest.param({"outputs": [["dense"]]}, ValueError, [OUTPUTS, r"found \[\['dense'\]\]"], id="outputs_nested"),
        pytest.param({"outputs": 3}, ValueError, [OUTPUTS, "found 3"], id="outputs_int"),
    ],
)
def test_encode_refuses_arguments_out_of_range(
    random_model: BGEM3Model, arguments: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    assert_raises(lambda: random_model.encode(["text"], **arguments), kind, *words)
    assert_raises(lambda: random_model.encode([], **arguments), kind, *words)


def test_max_length_2_leaves_cls_and_eos(random_model: BGEM3Model) -> None:
    found = random_model.encode(["", "text", "a longer text"], max_length=2)
    assert found.n_tokens.tolist() == [2, 2, 2]
    assert found.truncated.tolist() == [False, True, True]
    np.testing.assert_array_equal(found.dense[1], found.dense[0])
    numpy_integer: Any = np.int64(2)
    assert random_model.encode(["text"], max_length=numpy_integer).n_tokens.tolist() == [2]


NO_NUMBERS = r"weights must be three numbers \(dense, sparse, multi-vector\)"


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        pytest.param(None, [NO_NUMBERS, "found None"], id="None"),
        pytest.param(5, [NO_NUMBERS, "found 5"], id="one_number"),
        pytest.param((1, 2), [NO_NUMBERS, r"found \(1, 2\)"], id="two"),
        pytest.param((1, 2, 3, 4), [NO_NUMBERS, r"found \(1, 2, 3, 4\)"], id="four"),
        pytest.param((), [NO_NUMBERS, r"found \(\)"], id="none_at_all"),
        pytest.param("123", [NO_NUMBERS, "found '123'"], id="str"),
        pytest.param(("a", 1, 1), [NO_NUMBERS, r"found \('a', 1, 1\)"], id="str_inside"),
        pytest.param((None, 1, 1), [NO_NUMBERS, r"found \(None, 1, 1\)"], id="None_inside"),
        pytest.param(([1], 1, 1), [NO_NUMBERS, r"found \(\[1\], 1, 1\)"], id="list_inside"),
        pytest.param((0, 0, 0), ["must not sum to 0", r"found \(0, 0, 0\)"], id="all_zero"),
        pytest.param((1, 0, -1), ["must not sum to 0", r"found \(1, 0, -1\)"], id="sum_zero"),
        pytest.param((0.1, 0.2, -0.3), ["must not sum to 0", "found"], id="sum_zero_but_for_rounding"),
        pytest.param((1e-300,) * 3, ["must not sum to 0", "found"], id="zero_in_float32"),
        pytest.param((float("nan"), 1, 1), ["must be finite", r"found \(nan, 1, 1\)"], id="nan"),
        pytest.param((1, float("inf"), 1), ["must be finite", r"found \(1, inf, 1\)"], id="infinity"),
        pytest.param((1, 1, 1e300), ["must be finite and at most", r"found \(1, 1, 1e\+300\)"], id="beyond_float32"),
    ],
)
def test_weights_that_give_no_score_are_refused_by_every_hybrid_score(
    random_model: BGEM3Model, flag_model: BGEM3FlagModel, weights: Any, words: list[str]
) -> None:
    one = np.ones(1, np.float32)
    ways: list[Callable[[], object]] = [
        lambda: random_model.score(["a"], ["b"], weights),
        lambda: random_model.score_pairs([("a", "b")], weights),
        lambda: hybrid_scores(one, one, one, weights),
    ]
    if weights is not None:  # there it stands for equal weights
        ways.append(lambda: flag_model.compute_score([("a", "b")], weights_for_different_modes=weights))
    for call in ways:
        assert_raises(call, ValueError, *words)


def test_weights_may_be_any_three_numbers(random_model: BGEM3Model) -> None:
    expected = random_model.score(["a"], ["b"], (1, 2, 1)).hybrid
    forms: list[Any] = [[1, 2, 1], np.array([1, 2, 1]), np.array([1, 2, 1], np.float32), (0.5, 1.0, 0.5)]
    for weights in forms:
        found = random_model.score(["a"], ["b"], weights).hybrid
        np.testing.assert_allclose(found.tolist(), expected.tolist(), rtol=1e-6)


@pytest.mark.parametrize("name", ["dense", "sparse", "multivector", "lexical_weights"])
def test_reading_an_output_that_was_not_asked_for_says_how_to_ask(random_model: BGEM3Model, name: str) -> None:
    output = "sparse" if name == "lexical_weights" else name
    found = random_model.encode(["text"], outputs=("dense",) if output != "dense" else ("sparse",))
    words = f"no '{output}'", "not asked for", rf"outputs=\('{output}', ...\)"
    assert_raises(lambda: getattr(found, name), AttributeError, *words)


def test_a_closed_model_says_to_load_it_again(random_artifact: Path) -> None:
    with BGEM3Model.load(random_artifact, device="cpu") as model:
        model.encode(["text"])
    flag = BGEM3FlagModel(random_artifact, devices="cpu")
    flag.close()
    flag.close()
    ways: list[Callable[[], object]] = [
        lambda: model.encode(["text"]),
        lambda: model.encode([]),
        lambda: model.score(["a"], ["b"]),
        lambda: model.score_pairs([("a", "b")]),
        lambda: flag.encode("text"),
        lambda: flag.compute_score(("a", "b")),
    ]
    for call in ways:
        assert_raises(call, RuntimeError, "model is closed", "load it again")


# Arguments of load

DEVICE = "device must be 'auto', 'cpu', 'cuda' or 'cuda:N'"
NUMBER = "must be a whole number of at least 1 or None"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        pytest.param({"device": "gpu"}, ValueError, [DEVICE, "found 'gpu'"], id="device_gpu"),
        pytest.param({"device": "mps"}, ValueError, [DEVICE, "found 'mps'"], id="device_mps"),
        pytest.param({"device": "cuda:x"}, ValueError, [DEVICE, "found 'cuda:x'"], id="device_cuda_x"),
        pytest.param({"device": "cuda:-1"}, ValueError, [DEVICE, "found 'cuda:-1'"], id="device_cuda_negative"),
        pytest.param({"device": "CPU"}, ValueError, [DEVICE, "found 'CPU'"], id="device_upper_case"),
        pytest.param({"device": ""}, ValueError, [DEVICE, "found ''"], id="device_empty"),
        pytest.param({"device": None}, ValueError, [DEVICE, "found None"], id="device_None"),
        pytest.param({"device": 0}, ValueError, [DEVICE, "found 0"], id="device_int"),
        pytest.param(
            {"precision": "int4"},
            ArtifactError,
            ["no graph for int4 on cpu", "has: fp16 on cpu, fp16 on cuda, fp32 on cpu", "load one of these, or export"],
            id="precision_unknown",
        ),
        pytest.param({"precision": 16}, ArtifactError, ["no graph for 16 on cpu", "it has: fp16"], id="precision_int"),
        pytest.param({"n_threads": 0}, ValueError, ["n_threads", NUMBER, "found 0"], id="n_threads_0"),
        pytest.param({"n_threads": -1}, ValueError, ["n_threads", NUMBER, "found -1"], id="n_threads_negative"),
        pytest.param({"n_threads": "2"}, ValueError, ["n_threads", NUMBER, "found '2'"], id="n_threads_str"),
        pytest.param({"n_threads": True}, ValueError, ["n_threads", NUMBER, "found True"], id="n_threads_bool"),
        pytest.param({"n_threads": 1.5}, ValueError, ["n_threads", NUMBER, "found 1.5"], id="n_threads_float"),
        pytest.param({"token_budget": 0}, ValueError, ["token_budget", NUMBER, "found 0"], id="token_budget_0"),
        pytest.param({"token_budget": "9"}, ValueError, ["token_budget", NUMBER, "found '9'"], id="token_budget_str"),
    ],
)
def test_load_refuses_arguments_that_cannot_be_met(
    random_artifact: Path, arguments: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    assert_raises(lambda: BGEM3Model.load(random_artifact, **({"device": "cpu"} | arguments)), kind, *words)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_without_its_provider_says_what_there_is_and_what_to_use(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    words = f"'{device}' was asked for", "no CUDA provider", "CPUExecutionProvider", "pip install", "device='cpu'"
    assert_raises(lambda: BGEM3Model.load(random_artifact, device=device), RuntimeError, *words)
    assert_raises(lambda: BGEM3FlagModel(random_artifact, devices=device), RuntimeError, *words)


def test_without_onnxruntime_the_message_says_what_to_install(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    words = "onnxruntime cannot be imported", r"pip install 'bgem3\[cpu\]'"
    assert_raises(lambda: BGEM3Model.load(random_artifact, device="cpu"), ImportError, *words)


# The drop-in class


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        pytest.param(
            {"normalize_embeddings": False}, ValueError, ["normalize_embeddings=False", "not supported", "True"]
        ),
        pytest.param({"use_bf16": True}, ValueError, ["use_bf16=True", "not supported", "use False"]),
        pytest.param({"pooling_method": "mean"}, ValueError, ["pooling_method='mean'", "not supported", "'cls'"]),
        pytest.param({"colbert_dim": 7}, ValueError, ["colbert_dim must be -1 or the head's 96", "found 7"]),
        pytest.param({"colbert_dim": "96"}, ValueError, ["colbert_dim must be -1 or the head's 96", "found '96'"]),
        pytest.param({"truncate_dim": 0}, ValueError, ["truncate_dim must be from 1 to 96", "found 0"]),
        pytest.param({"truncate_dim": 97}, ValueError, ["truncate_dim must be from 1 to 96", "found 97"]),
        pytest.param({"truncate_dim": -1}, ValueError, ["truncate_dim must be from 1 to 96", "found -1"]),
        pytest.param({"truncate_dim": "9"}, ValueError, ["truncate_dim must be from 1 to 96", "found '9'"]),
        pytest.param({"devices": ["cpu", 0]}, ValueError, ["one device", r"\['cpu', 0\]", "one model on each"]),
        pytest.param({"devices": []}, ValueError, ["devices must be one device", r"found \[\]"]),
        pytest.param({"devices": 1.5}, ValueError, ["devices must be one device", "found 1.5"]),
        pytest.param({"devices": "gpu"}, ValueError, [DEVICE, "found 'gpu'"]),
        pytest.param({"batchsize": 8}, TypeError, ["unexpected keyword argument 'batchsize'"]),
    ],
    ids=[
        "normalize",
        "bf16",
        "pooling",
        "colbert_dim",
        "colbert_dim_str",
        "truncate_dim_0",
        "truncate_dim_beyond",
        "truncate_dim_negative",
        "truncate_dim_str",
        "devices_two",
        "devices_none",
        "devices_float",
        "devices_gpu",
        "unknown",
    ],
)
def test_the_drop_in_class_refuses_what_would_change_results(
    random_artifact: Path, arguments: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    given: dict[str, Any] = {"use_fp16": False, "devices": "cpu"} | arguments
    assert_raises(lambda: BGEM3FlagModel(random_artifact, **given), kind, *words)


def test_the_drop_in_class_with_every_output_off_says_to_set_one(flag_model: BGEM3FlagModel) -> None:
    off = {"return_dense": False, "return_sparse": False, "return_colbert_vecs": False}
    words = "return_dense, return_sparse and return_colbert_vecs are all False", "set one to True"
    assert_raises(lambda: flag_model.encode(["text"], **off), ValueError, *words)


def test_an_artifact_without_the_wanted_precision_says_what_it_has(random_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(random_artifact, folder)
    edit_manifest(folder, lambda manifest: manifest["graphs"].pop())
    words = re.escape(str(folder)), "no graph for fp32 on cpu", "it has: fp16 on cpu, fp16 on cuda, fp32 on cuda"
    assert_raises(lambda: BGEM3FlagModel(folder, use_fp16=False, devices="cpu"), ArtifactError, *words)
    assert_raises(lambda: BGEM3Model.load(folder, "cpu", "fp32"), ArtifactError, *words)


NOT_FOUND = [
    pytest.param("no_such_folder", ["no_such_folder is neither a folder nor a hub id", "owner/name"], id="bare_name"),
    pytest.param("./no/such/folder", ["no/such/folder is neither", "check the path"], id="relative_path"),
    pytest.param("/no/such/folder", ["/no/such/folder is neither", "BAAI/bge-m3"], id="absolute_path"),
]


@pytest.mark.parametrize(("source", "words"), NOT_FOUND)
def test_a_source_that_is_neither_folder_nor_hub_id_is_refused(source: str, words: list[str], tmp_path: Path) -> None:
    assert_raises(lambda: BGEM3FlagModel(source, cache_dir=tmp_path), CheckpointError, *words)
    assert_raises(lambda: export_model(source, tmp_path / "artifact"), CheckpointError, *words)
    assert not (tmp_path / "artifact").exists()


def test_a_hub_id_that_cannot_be_downloaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    words = "cannot download nobody/nothing", "check the id and the network", "local folder"
    assert_raises(lambda: BGEM3FlagModel("nobody/nothing", cache_dir=tmp_path), CheckpointError, *words)


def test_a_checkpoint_without_the_export_extra_says_what_to_run(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bgem3.runtime.export_cache.importlib.util.find_spec", lambda name: None if name == "torch" else name
    )
    words = (
        f"{re.escape(str(random_checkpoint))} is a checkpoint",
        "needs torch",
        r"`pip install 'bgem3\[cpu,export\]'`",
        f"`bgem3 export {re.escape(str(random_checkpoint))} FOLDER --precision fp32`",
    )
    assert_raises(lambda: BGEM3FlagModel(random_checkpoint, use_fp16=False, cache_dir=tmp_path), ImportError, *words)


# Scores of arrays that do not belong together


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


SAME_MODEL = "encoded by the same model"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(lambda: dense_scores(ones(2, 3), ones(2, 4)), ["one width", r"\(2, 3\) and \(2, 4\)", SAME_MODEL]),
        pytest.param(
            lambda: dense_scores(ones(3), ones(2, 3)), [r"\(texts, dims\)", r"found shapes \(3,\) and \(2, 3\)"]
        ),
        pytest.param(lambda: dense_pair_scores(ones(2, 3), ones(2, 4)), ["one width", r"\(2, 3\) and \(2, 4\)"]),
        pytest.param(lambda: dense_pair_scores(ones(2, 3), ones(1, 3)), ["as many queries as", "found 2 and 1"]),
        pytest.param(
            lambda: sparse_scores(csr_array(ones(2, 3)), csr_array(ones(2, 4))),
            ["share one vocabulary", "found 3 and 4 columns", SAME_MODEL],
        ),
        pytest.param(
            lambda: sparse_pair_scores(csr_array(ones(2, 3)), csr_array(ones(2, 4))), ["one vocab", "found 3 and 4"]
        ),
        pytest.param(
            lambda: sparse_pair_scores(csr_array(ones(2, 3)), csr_array(ones(3, 3))),
            ["as many queries as passages", "found 2 and 3"],
        ),
        pytest.param(
            lambda: sparse_scores([{"5": 0.5}], [{"5": 0.5}]), ["csr_array", "Embeddings.sparse", "found list"]
        ),
        pytest.param(lambda: sparse_scores(csr_array(ones(2, 3)), None), ["must be a .* csr_array", "found NoneType"]),
        pytest.param(lambda: sparse_scores(ones(3), ones(3)), [r"\(texts, vocabulary\) csr_array", r"ndarray\(3,\)"]),
        pytest.param(
            lambda: multivector_scores([ones(2, 3)], [ones(2, 4)]), ["one width", "found 3 and 4", SAME_MODEL]
        ),
        pytest.param(
            lambda: multivector_scores([ones(2, 3), ones(1, 4)], []), ["one width", r"\[\(1, 4\), \(2, 3\)\]"]
        ),
        pytest.param(
            lambda: multivector_scores(ones(2, 3), ones(2, 3)), ["array per text", r"found shapes \[\(3,\)\]"]
        ),
        pytest.param(
            lambda: multivector_pair_scores([ones(2, 3)] * 2, [ones(2, 3), ones(2, 4)]),
            ["pair 1 must be", "one width", r"\(2, 3\) and \(2, 4\)", SAME_MODEL],
        ),
        pytest.param(
            lambda: multivector_pair_scores([ones(3)], [ones(1, 3)]), ["pair 0 must be", r"\(3,\) and \(1, 3\)"]
        ),
        pytest.param(lambda: multivector_pair_scores([ones(2, 3)], []), ["as many queries as", "found 1 and 0"]),
        pytest.param(lambda: hybrid_scores(ones(2), ones(2), ones(3)), ["one shape", r"found \(2,\), \(2,\), \(3,\)"]),
    ],
    ids=[
        "dense_widths",
        "dense_1d",
        "dense_pair_widths",
        "dense_pair_counts",
        "vocabularies",
        "pair_vocabularies",
        "sparse_pair_counts",
        "lexical_weights",
        "sparse_None",
        "sparse_1d",
        "multivector_widths",
        "mixed_widths",
        "one_text_alone",
        "pair_widths",
        "pair_1d",
        "multivector_pair_counts",
        "hybrid_shapes",
    ],
)
def test_scoring_refuses_embeddings_that_do_not_belong_together(call: Callable[[], object], words: list[str]) -> None:
    assert_raises(call, ValueError, *words)


# Damaged artifacts


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def fix_manifest(folder: Path) -> None:
    """Give the manifest the sizes and hashes of the files as they are now."""

    def edit(manifest: dict[str, Any]) -> None:
        for name, entry in manifest["files"].items():
            entry |= {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}

    edit_manifest(folder, edit)


def manifest_of(content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())


def manifest_with(**values: object) -> Callable[[Path], object]:
    return lambda folder: edit_manifest(folder, lambda manifest: manifest.update(values))


def manifest_without(*keys: str) -> Callable[[Path], object]:
    def edit(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return lambda folder: edit_manifest(folder, edit)


def model_with(**values: object) -> Callable[[Path], object]:
    return lambda folder: edit_manifest(folder, lambda manifest: manifest["model"].update(values))


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def truncated(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def swapped(folder: Path) -> None:
    """Exchange the graphs of the two precisions."""
    (folder / "fp16/cpu.onnx").rename(folder / "graph")
    (folder / "fp32/cpu.onnx").rename(folder / "fp16/cpu.onnx")
    (folder / "graph").rename(folder / "fp32/cpu.onnx")


def naming(name: str, path: str | None = None) -> Callable[[Path], object]:
    """Make the manifest name a file that is really there, with its right size and hash."""

    def damage(folder: Path) -> None:
        outside = folder / (path or name)
        if not outside.exists():
            outside.write_bytes(b"not yours")
        entry = {"size": outside.stat().st_size, "sha256": sha256_of(outside)}
        edit_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))

    return damage


CPU_GRAPHS = ["fp32/cpu.onnx", "fp32/native.onnx"]


def replaced(names: list[str], content: bytes) -> Callable[[Path], object]:
    """Replace files and fix the manifest, so that only the reader of a file can notice."""

    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(content)
        fix_manifest(folder)

    return damage


def weights_at(location: str) -> Callable[[Path], object]:
    """Make the graph point to weights in another place, where they really are."""

    def damage(folder: Path) -> None:
        shutil.copy(folder / "fp32/weights.bin", folder.parent / "outside.bin")
        for graph in CPU_GRAPHS:
            model = onnx.load(folder / graph, load_external_data=False)
            for tensor in model.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = location.format(parent=folder.parent)
            (folder / graph).write_bytes(model.SerializeToString())
        fix_manifest(folder)

    return damage


AGAIN = "export (it|the checkpoint) again"
ENTRY = [MANIFEST, "lacks an entry or has a wrong one"]
OUT = "a path out of the folder; do not use this artifact"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(shutil.rmtree, ["no artifact folder at", "bgem3 export", "check the path"], id="folder_missing"),
        pytest.param(
            file_in_its_place,
            ["no artifact folder at", "bgem3 export"],
            id="a_file_in_its_place",
        ),
        pytest.param(
            without(MANIFEST), ["not an artifact folder", "no manifest.json", "bgem3 export"], id="no_manifest"
        ),
        pytest.param(manifest_of("{"), [MANIFEST, "not valid JSON", AGAIN], id="manifest_cut"),
        pytest.param(manifest_of(""), [MANIFEST, "not valid JSON", AGAIN], id="manifest_empty"),
        pytest.param(manifest_of(b"\xff\xfe\x00"), [MANIFEST, "not valid JSON", AGAIN], id="manifest_binary"),
        pytest.param(manifest_of("[" * 100_000), [MANIFEST, "not valid JSON", AGAIN], id="manifest_nested"),
        pytest.param(manifest_of("[]"), [MANIFEST, "holds a list, not an object", AGAIN], id="manifest_list"),
        pytest.param(manifest_of("null"), [MANIFEST, "holds a NoneType", AGAIN], id="manifest_null"),
        pytest.param(manifest_of("{}"), [MANIFEST, "format version None", "reads 1", AGAIN], id="manifest_no_version"),
        pytest.param(
            manifest_with(format_version=2),
            ["format version 2", "this bgem3 reads 1", AGAIN, "install the version that wrote it"],
            id="another_format_version",
        ),
        pytest.param(manifest_without("model"), [*ENTRY, "model", AGAIN], id="no_model"),
        pytest.param(manifest_without("graphs"), [*ENTRY, "graphs", AGAIN], id="no_graphs"),
        pytest.param(manifest_without("files"), [*ENTRY, "files", AGAIN], id="no_files"),
        pytest.param(manifest_without("source"), [*ENTRY, "source", AGAIN], id="no_source"),
        pytest.param(manifest_without("versions"), [*ENTRY, "versions", AGAIN], id="no_versions"),
        pytest.param(manifest_without("model", "pad_id"), [*ENTRY, "pad_id", AGAIN], id="no_pad_id"),
        pytest.param(manifest_without("files", "tokenizer.json", "size"), [*ENTRY, "size", AGAIN], id="no_size"),
        pytest.param(
            manifest_without("files", "fp32/cpu.onnx"), [r"not list \['fp32/cpu.onnx'\]"], id="graph_unlisted"
        ),
        pytest.param(manifest_without("files", "tokenizer.json"), ["not list .*tokenizer"], id="tokenizer_unlisted"),
        pytest.param(manifest_with(graphs=5), [*ENTRY, AGAIN], id="graphs_no_list"),
        pytest.param(
            manifest_with(graphs=[{"precision": "fp32", "device": "cpu", "file": [1]}]), ENTRY, id="graph_list"
        ),
        pytest.param(manifest_with(files=[]), [*ENTRY, AGAIN], id="files_no_object"),
        pytest.param(model_with(heads=4), [*ENTRY, "heads", AGAIN], id="unknown_dimension"),
        pytest.param(model_with(hidden_size="96"), [*ENTRY, "hidden_size is '96'", AGAIN], id="dimension_str"),
        pytest.param(model_with(max_length=None), [*ENTRY, "max_length is None", AGAIN], id="dimension_null"),
        pytest.param(without("fp32/cpu.onnx"), ["fp32/cpu.onnx is missing", "copy", AGAIN], id="graph_missing"),
        pytest.param(without("fp32/weights.bin"), ["fp32/weights.bin is missing", "copy", AGAIN], id="weights_missing"),
        pytest.param(without("tokenizer.json"), ["tokenizer.json is missing", "copy", AGAIN], id="tokenizer_missing"),
        pytest.param(without("reference.npz"), ["reference.npz is missing", "copy", AGAIN], id="reference_missing"),
        pytest.param(
            truncated("fp32/weights.bin"), [r"weights.bin has \d+ bytes, the manifest says"], id="weights_cut"
        ),
        pytest.param(truncated("fp16/weights.bin"), [r"weights.bin has \d+ bytes, the manifest says"], id="others_cut"),
        pytest.param(truncated("fp32/cpu.onnx"), [r"cpu.onnx has \d+ bytes, the manifest says", AGAIN], id="graph_cut"),
        pytest.param(truncated("tokenizer.json"), [r"tokenizer.json has \d+ bytes, the mani"], id="tokenizer_cut"),
        pytest.param(swapped, [r"cpu.onnx has \d+ bytes, the manifest says \d+", "copy", AGAIN], id="graphs_swapped"),
        pytest.param(naming("../outside.bin"), [r"names '\.\./outside.bin'", OUT], id="path_to_parent"),
        pytest.param(naming("fp32/../../outside.bin"), ["outside.bin'", OUT], id="path_through_parent"),
        pytest.param(naming("/etc/passwd"), ["names '/etc/passwd'", OUT], id="path_absolute"),
        pytest.param(naming("a\\..\\b"), [r"names 'a\\\\\.\.\\\\b'", OUT], id="path_with_backslashes"),
        pytest.param(
            replaced(CPU_GRAPHS, b"garbage" * 99),
            [r"cannot open .*fp32/(cpu|native).onnx", "[Pp]rotobuf", "bgem3 verify", AGAIN],
            id="graph_garbage",
        ),
        pytest.param(replaced(CPU_GRAPHS, b""), ["cannot open .*fp32", "bgem3 verify"], id="graph_empty"),
        pytest.param(replaced(["fp32/weights.bin"], b"short"), ["cannot open .*fp32", AGAIN], id="weights_short"),
        pytest.param(weights_at("../../outside.bin"), ["cannot open .*fp32", "escapes"], id="graph_to_parent"),
        pytest.param(weights_at("{parent}/outside.bin"), ["cannot open", "[Aa]bsolute path"], id="graph_to_absolute"),
        pytest.param(
            replaced(["tokenizer.json"], b"garbage"), ["tokenizer.json is not a tokenizer file", AGAIN], id="tokenizer"
        ),
        pytest.param(
            replaced(["tokenizer.json"], b"{}"), ["tokenizer.json is not a tokenizer file", AGAIN], id="tokenizer_empty"
        ),
        pytest.param(
            replaced(["tokenizer.json"], b"\xff\xfe"),
            ["tokenizer.json is not a tokenizer", AGAIN],
            id="tokenizer_binary",
        ),
    ],
)
def test_a_damaged_artifact_is_refused_with_the_file_and_what_to_do(
    random_artifact: Path, tmp_path: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(random_artifact, folder)
    damage(folder)
    assert_raises(lambda: BGEM3Model.load(folder, "cpu", "fp32"), ArtifactError, *words)


def test_a_manifest_that_names_a_path_out_of_the_folder_is_refused_before_the_file_is_read(
    random_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(random_artifact, folder)
    naming("../outside.bin")(folder)
    hashed: list[Path] = []

    def spy(path: Path) -> str:
        hashed.append(path.resolve())
        return sha256_of(path)

    monkeypatch.setattr("bgem3.runtime.artifact.sha256_of", spy)
    assert_raises(lambda: read_artifact(folder, check_hashes=True), ArtifactError, OUT)
    assert tmp_path / "outside.bin" not in hashed
    assert folder / "tokenizer.json" in hashed


def test_an_altered_byte_is_found_by_hashes_alone(
    random_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(random_artifact, folder)
    assert main(["verify", str(folder), "--json"]) == 0
    with (folder / "fp32/weights.bin").open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))  # the lowest bit of a weight
    BGEM3Model.load(folder, "cpu", "fp32").close()
    words = r"weights\.bin has another SHA-256 than the manifest says", "copy the artifact folder again"
    assert_raises(lambda: BGEM3Model.load(folder, "cpu", "fp32", check_hashes=True), ArtifactError, *words)
    capsys.readouterr()
    assert main(["verify", str(folder), "--json"]) == 2
    assert "SHA-256" in capsys.readouterr().err


# Damaged checkpoints


def config_with(**values: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")

    return damage


def tensors_with(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def head_of(name: str, state: object) -> Callable[[Path], object]:
    return lambda folder: torch.save(state, folder / name)


def file_of(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def as_bin(folder: Path, extra: object = None) -> None:
    """Store the backbone as torch.save does."""
    tensors: dict[str, object] = dict(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save(tensors if extra is None else tensors | {"extra": extra}, folder / "pytorch_model.bin")


def removed(*names: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


BIAS = "encoder.layer.1.output.dense.bias"
HEADLESS = "a checkpoint without its trained heads gives random"
GET = "get the checkpoint again"
CONFIG_EXPECTED = "only XLM-RoBERTa encoders"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(removed("sparse_linear.pt"), ["has no sparse_linear.pt", HEADLESS, "BAAI/bge-m3"], id="no_sparse"),
        pytest.param(removed("colbert_linear.pt"), ["has no colbert_linear.pt", HEADLESS, "BAAI/bge"], id="no_colbert"),
        pytest.param(
            removed("sparse_linear.pt", "colbert_linear.pt"),
            ["has no sparse_linear.pt and no colbert_linear.pt", HEADLESS],
            id="no_heads",
        ),
        pytest.param(removed("config.json"), ["has no config.json", "whole BGE-M3 checkpoint"], id="no_config"),
        pytest.param(removed("tokenizer.json"), ["has no tokenizer.json", "whole BGE-M3"], id="no_tokenizer"),
        pytest.param(removed("model.safetensors"), ["has no model.safetensors", "whole BGE-M3"], id="no_weights"),
        pytest.param(
            head_of("sparse_linear.pt", {"weight": torch.ones(2, 96), "bias": torch.ones(2)}),
            [
                r"sparse_linear.pt has weight \(2, 96\) and bias \(2,\), expected \(1, 96\) and \(1,\)",
                "not of one checkpoint",
            ],
            id="sparse_shape",
        ),
        pytest.param(
            head_of("colbert_linear.pt", {"weight": torch.ones(96, 95), "bias": torch.ones(96)}),
            [
                r"colbert_linear.pt has weight \(96, 95\) and bias \(96,\), expected \(96, 96\) and \(96,\)",
                "not of one checkpoint",
            ],
            id="colbert_shape",
        ),
        pytest.param(
            head_of("colbert_linear.pt", {"weight": torch.tensor(1.0), "bias": torch.tensor(1.0)}),
            [r"colbert_linear.pt has weight \(\) and bias \(\), expected"],
            id="colbert_scalars",
        ),
        pytest.param(
            head_of("sparse_linear.pt", {"weight": torch.full((1, 96), torch.nan), "bias": torch.ones(1)}),
            ["tensor sparse_linear.weight holds NaN or infinity", GET],
            id="sparse_nan",
        ),
        pytest.param(
            head_of("colbert_linear.pt", {"weight": torch.ones(96, 96), "bias": torch.full((96,), torch.inf)}),
            ["tensor colbert_linear.bias holds NaN or infinity", GET],
            id="colbert_infinity",
        ),
        pytest.param(
            head_of("sparse_linear.pt", {"weight": torch.ones(1, 96)}),
            ["sparse_linear.pt as", GET],
            id="head_without_bias",
        ),
        pytest.param(head_of("sparse_linear.pt", [1, 2]), ["cannot read .*sparse_linear.pt as", GET], id="head_list"),
        pytest.param(head_of("sparse_linear.pt", torch.tensor(1.0)), ["sparse_linear.pt as", GET], id="head_tensor"),
        pytest.param(file_of("sparse_linear.pt", b""), ["cannot read .*sparse_linear.pt as", GET], id="head_empty"),
        pytest.param(
            file_of("sparse_linear.pt", b"garbage"), ["cannot read .*sparse_linear.pt as", GET], id="head_text"
        ),
        pytest.param(
            file_of("colbert_linear.pt", b"\x80\x02X\x03\x00\x00\x00\xff\xff\xff."),
            ["cannot read .*colbert_linear.pt as the weight and bias", "UnicodeDecodeError", GET],
            id="head_pickle_of_no_text",
        ),
        pytest.param(truncated("sparse_linear.pt"), ["cannot read .*sparse_linear.pt as", GET], id="head_cut"),
        pytest.param(truncated("model.safetensors"), ["cannot read the weights in", GET], id="weights_cut"),
        pytest.param(file_of("model.safetensors", b""), ["cannot read the weights in", GET], id="weights_empty"),
        pytest.param(
            file_of("model.safetensors", b"garbage" * 9), ["cannot read the weights in", GET], id="weights_text"
        ),
        pytest.param(
            tensors_with(lambda tensors: tensors[BIAS].fill_(torch.nan)),
            [f"tensor backbone.{BIAS} holds NaN or infinity", GET],
            id="backbone_nan",
        ),
        pytest.param(
            tensors_with(lambda tensors: tensors.pop(BIAS)),
            ["1 tensors are missing, such as", BIAS, GET],
            id="backbone_without_bias",
        ),
        pytest.param(
            tensors_with(lambda tensors: tensors.update({BIAS: torch.ones(5)})),
            [f"tensor {BIAS} has another shape than \\(96,\\)", "config.json asks for", "not of one checkpoint"],
            id="backbone_shape",
        ),
        pytest.param(
            config_with(model_type="bert"), ["model_type is 'bert', expected 'xlm-ro", CONFIG_EXPECTED], id="bert"
        ),
        pytest.param(
            config_with(model_type=None), ["model_type is None, expected", CONFIG_EXPECTED], id="no_model_type"
        ),
        pytest.param(
            config_with(hidden_act="relu"), ["hidden_act is 'relu', expected 'gelu'", CONFIG_EXPECTED], id="relu"
        ),
        pytest.param(
            config_with(is_decoder=True), ["is_decoder is True, expected False", CONFIG_EXPECTED], id="decoder"
        ),
        pytest.param(config_with(position_embedding_type="relative_key"), ["'relative_key', expected"], id="positions"),
        pytest.param(
            config_with(hidden_size="96"), ["hidden_size is '96', expected a whole number"], id="hidden_size_str"
        ),
        pytest.param(
            config_with(num_attention_heads=0), ["num_attention_heads is 0, expected"], id="no_attention_heads"
        ),
        pytest.param(
            config_with(num_attention_heads=7), ["not a multiple of the number of attention heads"], id="7_heads"
        ),
        pytest.param(config_with(vocab_size=10), ["has 1691 tokens, the model embeds 10"], id="10_tokens"),
        pytest.param(config_with(max_position_embeddings=64), [r"position_embeddings.* \(64, 96\)"], id="positions_64"),
        pytest.param(
            config_with(num_hidden_layers=4), ["16 tensors are missing", "encoder.layer.3"], id="layer_missing"
        ),
        pytest.param(
            config_with(num_hidden_layers=2), ["16 tensors are of layers", "encoder.layer.2"], id="layer_unused"
        ),
        pytest.param(
            config_with(pad_token_id=0),
            ["tokenizer's pad id is 1, config.json's is 0", "must agree"],
            id="pad_id_mismatch",
        ),
        pytest.param(config_with(pad_token_id=None), ["pad id is 1, config.json's is None"], id="no_pad_id"),
        pytest.param(file_of("config.json", b"garbage"), ["cannot read .*config.json", GET], id="config_text"),
        pytest.param(file_of("config.json", b"[]"), ["cannot read .*config.json", GET], id="config_list"),
        pytest.param(file_of("tokenizer.json", b"garbage"), ["cannot read the tokenizer in", GET], id="tokenizer_text"),
        pytest.param(file_of("tokenizer.json", b"{}"), ["cannot read the tokenizer in", GET], id="tokenizer_empty"),
        pytest.param(
            file_of("tokenizer.json", b"\xff\xfe"), ["cannot read the tokenizer in", GET], id="tokenizer_binary"
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_what_is_wrong_and_nothing_is_written(
    random_checkpoint: Path, tmp_path: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    checkpoint, parent = tmp_path / "checkpoint", tmp_path / "out"
    shutil.copytree(random_checkpoint, checkpoint)
    parent.mkdir()
    damage(checkpoint)
    assert_raises(lambda: export_model(checkpoint, parent / "artifact", "fp32"), CheckpointError, *words)
    assert list(parent.iterdir()) == []


class Bomb:
    """What an attacker pickles: unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        pytest.param(
            lambda folder, bomb: (folder / "sparse_linear.pt").write_bytes(pickle.dumps(bomb)),
            ["sparse_linear.pt", "something other than tensors", GET],
            id="raw_pickle_as_head",
        ),
        pytest.param(
            lambda folder, bomb: torch.save({"weight": bomb, "bias": bomb}, folder / "colbert_linear.pt"),
            ["colbert_linear.pt", "something other than tensors", GET],
            id="inside_a_head",
        ),
        pytest.param(
            lambda folder, bomb: torch.save(
                {"weight": bomb, "bias": bomb}, folder / "colbert_linear.pt", _use_new_zipfile_serialization=False
            ),
            ["colbert_linear.pt", "something other than tensors", GET],
            id="inside_a_head_of_the_old_format",
        ),
        pytest.param(as_bin, ["cannot read the weights in", GET], id="inside_the_backbone"),
    ],
)
def test_a_malicious_pickle_is_refused_and_never_run(
    random_checkpoint: Path, tmp_path: Path, plant: Callable[[Path, Bomb], object], words: list[str]
) -> None:
    checkpoint, parent, marker = tmp_path / "checkpoint", tmp_path / "out", tmp_path / "marker"
    shutil.copytree(random_checkpoint, checkpoint)
    parent.mkdir()
    plant(checkpoint, Bomb(marker))
    assert_raises(lambda: export_model(checkpoint, parent / "artifact", "fp32"), CheckpointError, *words)
    assert not marker.exists()
    assert list(parent.iterdir()) == []
    pickle.loads(pickle.dumps(Bomb(marker)))  # the bomb is a real one
    assert marker.is_dir()


@pytest.mark.parametrize("tokenizer_class", ["XLMRobertaTokenizer", "Trojan"])
def test_code_in_a_checkpoint_is_never_run(random_checkpoint: Path, tmp_path: Path, tokenizer_class: str) -> None:
    checkpoint, marker = tmp_path / "checkpoint", tmp_path / "marker"
    shutil.copytree(random_checkpoint, checkpoint)
    trojan = f"import os\nos.mkdir({str(marker)!r})\nclass Trojan: pass\n"
    (checkpoint / "trojan.py").write_text(trojan, encoding="utf-8")
    classes = {"AutoConfig": "trojan.Trojan", "AutoModel": "trojan.Trojan", "AutoTokenizer": ["trojan.Trojan"] * 2}
    for name, settings in (("config.json", {}), ("tokenizer_config.json", {"tokenizer_class": tokenizer_class})):
        given = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        (checkpoint / name).write_text(json.dumps(given | settings | {"auto_map": classes}), encoding="utf-8")
    if tokenizer_class == "Trojan":  # no class of transformers, so only that code could make it
        words = "cannot read the tokenizer in", "custom code", GET
        assert_raises(lambda: export_model(checkpoint, tmp_path / "artifact", "fp32"), CheckpointError, *words)
    else:
        export_model(checkpoint, tmp_path / "artifact", "fp32")
    assert not marker.exists()


def test_a_backbone_stored_as_bin_gives_the_same_artifact(
    random_checkpoint: Path, random_artifact: Path, tmp_path: Path
) -> None:
    shutil.copytree(random_checkpoint, tmp_path / "checkpoint")
    as_bin(tmp_path / "checkpoint")
    found = export_model(tmp_path / "checkpoint", tmp_path / "artifact", "fp32")
    expected = read_artifact(random_artifact).manifest
    for name in ("fp32/weights.bin", "fp32/cpu.onnx", "tokenizer.json"):
        assert found["files"][name] == expected["files"][name]
    parity, expected_parity = (manifest["parity"]["fp32/cpu.onnx"] for manifest in (found, expected))
    assert parity["missed"] == []
    figures = {name: value for name, value in expected_parity.items() if isinstance(value, float)}
    assert {name: parity[name] for name in figures} == pytest.approx(figures, abs=1e-6)
    assert "pytorch_model.bin" in found["source"]["files"]


def test_a_weight_too_large_for_fp16_is_named_and_fp32_still_works(random_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint, parent = tmp_path / "checkpoint", tmp_path / "out"
    shutil.copytree(random_checkpoint, checkpoint)
    parent.mkdir()
    tensors_with(lambda tensors: tensors["embeddings.word_embeddings.weight"][-2, 0].fill_(1e6))(checkpoint)
    words = "weight 'embeddings.word' reaches 1e\\+06", "float16", r"precisions=\('fp32',\)"
    assert_raises(lambda: export_model(checkpoint, parent / "artifact", ("fp32", "fp16")), OverflowError, *words)
    assert list(parent.iterdir()) == []
    export_model(checkpoint, parent / "artifact", "fp32")
    with BGEM3Model.load(parent / "artifact", "cpu") as model:
        assert_finite(model.encode(["text"]))


PRECISIONS = r"precisions must be one or more of \('fp16', 'fp32', 'int8'\)"


@pytest.mark.parametrize(
    ("precisions", "words"),
    [
        pytest.param(("int4",), [PRECISIONS, r"found \('int4',\)"], id="unknown"),
        pytest.param(("fp16", "bf16"), [PRECISIONS, r"found \('fp16', 'bf16'\)"], id="one_unknown"),
        pytest.param("fp64", [PRECISIONS, "found 'fp64'"], id="str"),
        pytest.param((), [PRECISIONS, r"found \(\)"], id="none"),
    ],
)
def test_export_refuses_unknown_precisions(
    random_checkpoint: Path, tmp_path: Path, precisions: Sequence[str], words: list[str]
) -> None:
    assert_raises(lambda: export_model(random_checkpoint, tmp_path / "artifact", precisions), ValueError, *words)
    assert list(tmp_path.iterdir()) == []


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
