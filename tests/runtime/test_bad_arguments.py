"""Arguments of load, encode and score out of range."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bgem3.runtime import ArtifactError, BGEM3FlagModel, BGEM3Model
from bgem3.scoring import (
    Embeddings,
    hybrid_scores,
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
