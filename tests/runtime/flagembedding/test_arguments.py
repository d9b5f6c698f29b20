"""Arguments of the drop-in: devices, precisions and keywords, accepted as in FlagEmbedding or refused."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import FlagEmbedding
import numpy as np
import pytest
import torch

from bgem3.runtime import BGEM3FlagModel, BGEM3Model, FlagAutoModel
from tests.runtime.flagembedding.comparison import (
    ALL_OUTPUTS,
    EMBEDDINGS_TOLERANCE,
    MAX_LENGTH,
    SETTINGS,
    TEXTS,
    assert_same,
)

MODEL = "bgem3.runtime.flagembedding.model"


# --- attributes


def test_the_inner_models_sizes_are_flagembeddings(ours: BGEM3FlagModel, reference: Any) -> None:
    found, expected = ours.model.model.config, reference.model.model.config
    assert {"hidden_size", "vocab_size", "num_hidden_layers", "max_position_embeddings"} <= set(vars(found))
    assert vars(found) == {name: getattr(expected, name) for name in vars(found)}
    for head in ("colbert_linear", "sparse_linear"):
        for name in ("in_features", "out_features"):
            assert getattr(getattr(ours.model, head), name) == getattr(getattr(reference.model, head), name)
    assert ours.model.vocab_size == reference.model.vocab_size
    assert len(ours.tokenizer) == len(reference.tokenizer)


def test_the_constructors_arguments_are_attributes_as_in_flagembedding(ours: BGEM3FlagModel, reference: Any) -> None:
    names = [
        *("normalize_embeddings", "use_fp16", "use_bf16", "pooling_method", "batch_size", "query_max_length"),
        *("passage_max_length", "return_dense", "return_sparse", "return_colbert_vecs", "truncate_dim"),
        *("query_instruction_for_retrieval", "query_instruction_format", "convert_to_numpy", "target_devices"),
    ]
    for name in names:
        assert (name, getattr(ours, name)) == (name, getattr(reference, name))


# --- devices and precisions


def test_a_device_named_several_times_is_one_model(random_artifact: Path, ours: BGEM3FlagModel) -> None:
    model = BGEM3FlagModel(random_artifact, **SETTINGS | {"devices": ["cpu"] * 4})
    assert model.target_devices == ["cpu"] * 4
    assert_same(model.encode(TEXTS, **ALL_OUTPUTS), ours.encode(TEXTS, **ALL_OUTPUTS), 1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "cuda:1"}, "found device='cuda:1'.*use devices='cuda:1'"),
        ({"device": torch.device("cpu"), "devices": "cpu"}, "use devices='cpu'"),
        ({"devices": ["cpu", 0]}, r"one device, found \['cpu', 0\]; to use several, make one model on each"),
        ({"devices": []}, r"devices must be one device .* found \[\]"),
        ({"devices": True}, "devices must be one device .* found True"),
        ({"devices": "mps"}, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', found 'mps'"),
        ({"devices": np.int64(9)}, "device 'cuda:9' was asked for, but"),
        ({"precision": "int8", "devices": "cuda"}, "precision='int8' runs on CPU alone, found devices='cuda'"),
        ({"precision": "fp16", "use_fp16": False}, "precision='fp16' contradicts use_fp16=False"),
        ({"precision": "int4"}, r"precision must be one of \('fp16', 'fp32', 'int8'\).* found 'int4'"),
        ({"n_threads": 0}, "n_threads must be a whole number of at least 1 or None, found 0"),
        ({"normalize_embeddings": False}, "normalize_embeddings=False would change the results .* use True"),
        ({"use_bf16": True}, "use_bf16=True would change .* use False"),
        ({"pooling_method": "mean"}, "pooling_method='mean' would change .* use 'cls'"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_met_are_refused_before_anything_is_exported(
    random_checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    for open_model in (BGEM3FlagModel, FlagAutoModel.from_finetuned):
        with pytest.raises((ValueError, RuntimeError), match=words):
            open_model(random_checkpoint, cache_dir=tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"colbert_dim": 7}, "colbert_dim must be -1 or the head's 96, found 7"),
        ({"truncate_dim": "9"}, "truncate_dim must be from 1 to 96 or None, found '9'"),
        ({"batchsize": 8}, "unexpected keyword argument 'batchsize'"),
    ],
    ids=str,
)
def test_sizes_that_the_model_lacks_are_refused(random_artifact: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        BGEM3FlagModel(random_artifact, devices="cpu", **arguments)


@pytest.mark.parametrize(
    ("arguments", "precision"),
    [({}, "fp16"), ({"use_fp16": False}, "fp32"), ({"precision": "int8", "use_fp16": False}, "int8")],
    ids=str,
)
def test_precision_goes_before_use_fp16(
    int8_artifact: Path, random_artifact: Path, arguments: dict[str, Any], precision: str
) -> None:
    artifact = int8_artifact if precision == "int8" else random_artifact
    expected = BGEM3Model.load(artifact, device="cpu", precision=precision, n_threads=1).encode(TEXTS[:3], ("dense",))
    for open_model in (BGEM3FlagModel, FlagAutoModel.from_finetuned):
        model = open_model(artifact, devices="cpu", n_threads=1, **arguments)
        assert model.model.precision == precision
        np.testing.assert_array_equal(model.encode(TEXTS[:3])["dense_vecs"], expected.dense)


def test_n_threads_reaches_the_session(random_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Mock(wraps=BGEM3Model.load)
    monkeypatch.setattr(BGEM3Model, "load", load)
    BGEM3FlagModel(random_artifact, devices="cpu", n_threads=3)
    assert load.call_args.kwargs["n_threads"] == 3


# --- keywords of the encode methods


def test_tokenizer_keywords_that_change_nothing_are_taken_as_in_flagembedding(
    ours: BGEM3FlagModel, reference: Any
) -> None:
    keywords: dict[str, Any] = {"convert_to_numpy": False, "verbose": True, "pad_to_multiple_of": 8}
    keywords |= {"return_attention_mask": True, "padding_side": "right"}
    for method in ("encode", "encode_queries", "encode_corpus", "encode_single_device"):
        found, expected = (
            getattr(model, method)(TEXTS[:5], max_length=MAX_LENGTH, **ALL_OUTPUTS, **keywords)
            for model in (ours, reference)
        )
        assert_same(found, expected, EMBEDDINGS_TOLERANCE)
    assert ours.compute_score(("a", "b"), **keywords) == ours.compute_score(("a", "b"))


@pytest.mark.parametrize(
    ("keywords", "kind", "words"),
    [
        ({"padding_side": "left"}, ValueError, "padding_side='left' would change the results"),
        ({"return_attention_mask": False}, ValueError, "return_attention_mask=False would change the results"),
        ({"device": "cpu"}, TypeError, "unexpected keyword argument 'device'; give devices to the constructor"),
        ({"show_progress_bar": True}, TypeError, "unexpected keyword argument 'show_progress_bar'"),
    ],
    ids=str,
)
def test_keywords_that_would_change_results_or_are_unknown_are_refused(
    ours: BGEM3FlagModel, keywords: dict[str, Any], kind: type[Exception], words: str
) -> None:
    texts: Any = ["one text", "another"]
    for method in (ours.encode, ours.encode_queries, ours.encode_corpus, ours.compute_score):
        with pytest.raises(kind, match=words):
            method(texts, **keywords)


def test_an_instruction_may_be_given_to_encode_as_in_flagembedding(ours: BGEM3FlagModel, reference: Any) -> None:
    for texts in (TEXTS[:4], "one text"):
        found, expected = (
            model.encode(texts, instruction="find ", instruction_format="{}\\n{}", **ALL_OUTPUTS)
            for model in (ours, reference)
        )
        assert_same(found, expected, EMBEDDINGS_TOLERANCE)
    assert np.abs(found["dense_vecs"] - ours.encode("one text")["dense_vecs"]).max() > 1e-3


def test_encode_single_device_has_flagembeddings_defaults(random_artifact: Path, reference: Any) -> None:
    model = BGEM3FlagModel(random_artifact, **SETTINGS | {"passage_max_length": 9, "return_sparse": True})
    model.stop_self_pool()  # which leaves the model usable
    found = model.encode_single_device(TEXTS, device="cpu")
    assert_same(found, reference.encode_single_device(TEXTS, max_length=MAX_LENGTH), EMBEDDINGS_TOLERANCE)
    with pytest.raises(ValueError, match="this model is on cpu, found device='cuda:0'"):
        model.encode_single_device(TEXTS, device="cuda:0")


@pytest.mark.parametrize("texts", [{"a"}, ["a", None], ["\udcff"]], ids=range(3))
def test_texts_and_pairs_are_checked(ours: BGEM3FlagModel, texts: Any) -> None:
    pairs: Any = type(texts)(("a", text) for text in texts)
    for method, values in (
        (ours.encode, texts),
        (ours.encode_queries, texts),
        (ours.encode_corpus, texts),
        (ours.compute_score, pairs),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^(texts?|pairs?|passage) "):
            method(values)


def test_every_output_off_says_to_set_one(ours: BGEM3FlagModel) -> None:
    with pytest.raises(ValueError, match="return_colbert_vecs are all False; set one to True"):
        ours.encode("text", **dict.fromkeys(ALL_OUTPUTS, False))


# --- FlagAutoModel


def test_the_automatic_class_gives_what_flagembeddings_gives(
    random_checkpoint: Path, random_artifact: Path, tmp_path: Path
) -> None:
    named = shutil.copytree(random_checkpoint, tmp_path / "bge-m3")  # FlagEmbedding goes by the name
    settings = SETTINGS | {"model_class": FlagEmbedding.EmbedderModelClass.ENCODER_ONLY_M3, "truncate_dim": 32}
    settings |= {"query_instruction_for_retrieval": "find ", "query_instruction_format": "{}: {}"}
    reference = FlagEmbedding.FlagAutoModel.from_finetuned(str(named), **settings)
    ours = FlagAutoModel.from_finetuned(random_artifact, **settings)
    assert type(ours) is BGEM3FlagModel
    found, expected = (model.encode_queries(TEXTS, **ALL_OUTPUTS) for model in (ours, reference))
    assert_same(found, expected, EMBEDDINGS_TOLERANCE)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("BAAI/bge-large-en-v1.5", {}, "opens BGE-M3 alone here, and 'BAAI/bge-large-en-v1.5' is neither named"),
        ("BAAI/bge-m3-unsupervised", {}, "for a fine-tune of BGE-M3 add model_class='encoder-only-m3'"),
        (
            "BAAI/bge-m3",
            {"model_class": FlagEmbedding.EmbedderModelClass.ENCODER_ONLY_BASE},
            "found 'encoder-only-base'",
        ),
    ],
)
def test_the_automatic_class_refuses_other_models_before_any_download(
    name: str, arguments: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODEL}.find_or_export", None)
    with pytest.raises(ValueError, match=words):
        FlagAutoModel.from_finetuned(name, **arguments)
    with pytest.raises(OSError, match="from_finetuned"):
        FlagAutoModel()


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "someone/fine-tune"])
def test_the_automatic_class_takes_hub_ids_by_their_name_or_class(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(f"{MODEL}.find_or_export", lambda *_: random_artifact)
    model_class = "encoder-only-m3" if "fine" in name else None
    assert FlagAutoModel.from_finetuned(name, model_class, devices="cpu").query_instruction_format == "{}{}"
