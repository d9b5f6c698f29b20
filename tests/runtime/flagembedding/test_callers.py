"""What callers of FlagEmbedding use beside encoding: tokenizer, sizes, devices, settings; examples; milvus-model."""

import functools
import importlib
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import FlagEmbedding
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bgem3.runtime import BGEM3FlagModel, BGEM3Model, FlagAutoModel
from bgem3.runtime.artifact import ModelSpec, read_artifact
from bgem3.runtime.flagembedding.tokenizer import FlagTokenizer
from tests.runtime.flagembedding.comparison import TOLERANCES, assert_same

MAX_LENGTH = 128  # tokens, of the random checkpoint
SETTINGS: dict[str, Any] = {"use_fp16": False, "query_max_length": MAX_LENGTH, "passage_max_length": MAX_LENGTH}
ALL_OUTPUTS = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
TEXTS = [
    *("the sea", "", " ", "Water boils at 100 °C , doesn't it ?", "面包 为什么 会 发 起来？", "<mask> is a token"),
    *(
        "I 'm sure they 've seen what we 're doing !",
        "a 'quoted' word . And more",
        "سلام دنیا",
        "👍🏽 1️⃣",
        "one </s> two",
    ),
    *("\ufeffmark", "tab\tand\nnewline\r\n", "x" * 200, "nul\0inside", "e\u0301 é", "words " * 50),
]


@pytest.fixture(scope="module")
def reference(random_checkpoint: Path) -> Any:
    """FlagEmbedding's own class over the random checkpoint."""
    return FlagEmbedding.BGEM3FlagModel(str(random_checkpoint), devices="cpu", **SETTINGS)


@pytest.fixture(scope="module")
def ours(random_artifact: Path) -> BGEM3FlagModel:
    """The drop-in class over the same checkpoint's artifact."""
    return BGEM3FlagModel(random_artifact, devices="cpu", **SETTINGS)


# --- the tokenizer


@pytest.fixture(scope="module", params=["demo", "bge_m3"])
def tokenizers(request: pytest.FixtureRequest, random_artifact: Path) -> tuple[FlagTokenizer, Any]:
    """Our tokenizer and transformers' one, of one tokenizer.json, with BGE-M3's settings."""
    if request.param == "demo":
        path = request.getfixturevalue("demo_checkpoint") / "tokenizer.json"
    else:
        path = request.getfixturevalue("bge_m3_tokenizer")
    special_tokens = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>"}
    theirs = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(path),
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=True,
        **{f"{name}_token": token for name, token in (special_tokens | {"mask": "<mask>"}).items()},
    )
    ids = {f"{name}_id": getattr(theirs, f"{name}_token_id") for name in ("cls", "pad", "eos", "unk")}
    spec = ModelSpec(**(vars(read_artifact(random_artifact).spec) | ids))
    return FlagTokenizer(Tokenizer.from_file(str(path)), spec), theirs


def test_the_tokenizer_has_transformers_sizes_and_special_tokens(tokenizers: tuple[FlagTokenizer, Any]) -> None:
    found, expected = tokenizers
    assert len(found) == len(expected)
    assert found.get_vocab() == expected.get_vocab()
    names = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
    for name in (*names, *(f"{name}_id" for name in names), "vocab_size", "model_max_length", "padding_side"):
        assert (name, getattr(found, name)) == (name, getattr(expected, name))
    for name in ("special_tokens_map", "all_special_tokens", "all_special_ids"):
        assert (name, getattr(found, name)) == (name, getattr(expected, name))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_become_tokens_and_tokens_texts_as_in_transformers(
    tokenizers: tuple[FlagTokenizer, Any], text: str
) -> None:
    found, expected = tokenizers
    ids = expected.encode(text)
    assert found.encode(text) == ids
    assert found.encode(text, add_special_tokens=False) == expected.encode(text, add_special_tokens=False)
    assert found.tokenize(text) == expected.tokenize(text)
    assert found.convert_ids_to_tokens(ids) == expected.convert_ids_to_tokens(ids)
    assert found.convert_ids_to_tokens(ids, True) == expected.convert_ids_to_tokens(ids, True)
    tokens = expected.convert_ids_to_tokens(ids)
    assert found.convert_tokens_to_ids(tokens) == expected.convert_tokens_to_ids(tokens) == ids
    for settings in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": False}):
        assert found.decode(ids, **settings) == expected.decode(ids, **settings)
        assert found.decode(np.array(ids), **settings) == expected.decode(ids, **settings)
        assert found.batch_decode([ids, ids[:2]], **settings) == expected.batch_decode([ids, ids[:2]], **settings)


def test_single_tokens_and_ids_convert_as_in_transformers(tokenizers: tuple[FlagTokenizer, Any]) -> None:
    found, expected = tokenizers
    for token_id in (0, 5, np.int64(7), expected.mask_token_id, len(expected)):
        assert found.convert_ids_to_tokens(token_id) == expected.convert_ids_to_tokens(int(token_id))
    for token in ("<s>", "▁", "no such token", "<mask>"):
        assert found.convert_tokens_to_ids(token) == expected.convert_tokens_to_ids(token)
    for token_id in (0, 5, expected.mask_token_id):
        assert found.decode(token_id) == expected.decode(token_id)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_special_tokens": False},
        {"padding": True},
        {"padding": "longest", "return_tensors": "np"},
        {"truncation": True},
        {"truncation": True, "max_length": 7},
        {"truncation": True, "max_length": 7, "add_special_tokens": False},
        {"truncation": False, "verbose": False},
        {"truncation": True, "max_length": 9, "padding": True, "return_tensors": "np"},
    ],
    ids=str,
)
def test_calls_give_transformers_ids_and_masks(tokenizers: tuple[FlagTokenizer, Any], settings: dict[str, Any]) -> None:
    found, expected = tokenizers
    ours, theirs = found(TEXTS, **settings), expected(TEXTS, **settings)
    for key in ("input_ids", "attention_mask"):
        assert_same(ours[key], theirs[key], 0)
        np.testing.assert_array_equal(getattr(ours, key), ours[key]) if "return_tensors" in settings else None
    if "return_tensors" not in settings:
        assert dict(found(TEXTS[3], **settings)) == dict(expected(TEXTS[3], **settings))
        assert found(TEXTS[3], **settings).input_ids == expected(TEXTS[3], **settings).input_ids


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda tokenizer: tokenizer("a", return_tensors="pt"), "return_tensors must be None or 'np', found 'pt'"),
        (lambda tokenizer: tokenizer(["a"], padding="max_length"), "padding must be True, False or 'longest'"),
        (lambda tokenizer: tokenizer.pad({}), "no 'pad', only what needs no transformers; .*AutoTokenizer"),
        (lambda tokenizer: tokenizer([None]), "text 0 must be a str, found NoneType"),
        (lambda tokenizer: tokenizer("a").token_type_ids, "token_type_ids"),
    ],
)
def test_what_the_tokenizer_lacks_is_an_error_that_says_so(
    ours: BGEM3FlagModel, call: Callable[[FlagTokenizer], object], words: str
) -> None:
    with pytest.raises((AttributeError, TypeError, ValueError), match=words):
        call(ours.tokenizer)


def test_the_tokenizers_names_of_lexical_weights_are_convert_id_to_tokens(ours: BGEM3FlagModel, reference: Any) -> None:
    weights = ours.encode(TEXTS, return_sparse=True)["lexical_weights"]
    for model in (ours, reference):
        named = [{model.tokenizer.decode([int(i)]): weight for i, weight in row.items()} for row in weights]
        assert named == reference.convert_id_to_token(weights)


# --- sizes and attributes


def test_the_inner_models_sizes_are_flagembeddings(ours: BGEM3FlagModel, reference: Any) -> None:
    found, expected = ours.model.model.config, reference.model.model.config
    for name, value in vars(found).items():
        assert (name, value) == (name, getattr(expected, name))
    assert {"hidden_size", "vocab_size", "num_hidden_layers", "max_position_embeddings"} <= set(vars(found))
    for head in ("colbert_linear", "sparse_linear"):
        for name in ("in_features", "out_features"):
            assert getattr(getattr(ours.model, head), name) == getattr(getattr(reference.model, head), name)
    assert ours.model.vocab_size == reference.model.vocab_size
    assert len(ours.tokenizer) == len(reference.tokenizer)
    assert isinstance(ours.model, BGEM3Model)


def test_the_constructors_arguments_are_attributes_as_in_flagembedding(ours: BGEM3FlagModel, reference: Any) -> None:
    names = [
        *("normalize_embeddings", "use_fp16", "use_bf16", "pooling_method", "batch_size", "query_max_length"),
        *("passage_max_length", "return_dense", "return_sparse", "return_colbert_vecs", "truncate_dim"),
        *("query_instruction_for_retrieval", "query_instruction_format", "convert_to_numpy", "target_devices"),
    ]
    for name in names:
        assert (name, getattr(ours, name)) == (name, getattr(reference, name))


def test_stop_self_pool_leaves_the_model_usable_as_in_flagembedding(ours: BGEM3FlagModel, reference: Any) -> None:
    for model in (ours, reference):
        model.stop_self_pool()
        model.stop_self_pool()
    assert_same(ours.encode("the sea"), reference.encode("the sea"), TOLERANCES["fp32"]["embeddings"])


# --- devices


@pytest.mark.parametrize("devices", ["cpu", ["cpu"], ("cpu",), ["cpu", "cpu"], ["cpu"] * 4], ids=str)
def test_a_device_named_once_or_several_times_is_one_model(
    random_artifact: Path, ours: BGEM3FlagModel, devices: Any
) -> None:
    model = BGEM3FlagModel(random_artifact, devices=devices, **SETTINGS)
    assert model.target_devices == (["cpu"] if devices == "cpu" else list(devices))
    assert_same(model.encode(TEXTS, **ALL_OUTPUTS), ours.encode(TEXTS, **ALL_OUTPUTS), 1e-6)


def test_devices_left_open_name_the_device_that_was_taken(random_artifact: Path) -> None:
    model = BGEM3FlagModel(random_artifact, **SETTINGS)
    assert model.target_devices == [model.model.device]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "cpu"}, "found device='cpu'.*use devices='cpu'"),
        ({"device": "cuda:1"}, "use devices='cuda:1'"),
        ({"device": 0}, "found device=0.*use devices='0'"),
        ({"device": torch.device("cpu"), "devices": "cpu"}, "use devices='cpu'"),
        ({"devices": ["cpu", "cuda:0"]}, r"one device, found \['cpu', 'cuda:0'\]; to use several, make one model"),
        ({"devices": [0, 1]}, r"one device, found \[0, 1\]; to use several"),
        ({"devices": ["cuda", "cuda:1"]}, "to use several"),
        ({"devices": []}, r"devices must be one device .* found \[\]"),
        ({"devices": [None]}, r"devices must be one device .* found \[None\]"),
        ({"devices": True}, "devices must be one device .* found True"),
        ({"devices": {"cpu"}}, "devices must be one device .* found {'cpu'}"),
        ({"devices": [["cpu"]]}, r"devices must be one device .* found \[\['cpu'\]\]"),
        ({"devices": "mps"}, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', found 'mps'"),
        ({"devices": ["npu:0", "npu:1"]}, "device must be .* found 'npu:0'"),
        ({"devices": -1}, "device must be .* found 'cuda:-1'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("open_model", [BGEM3FlagModel, FlagAutoModel.from_finetuned])
def test_devices_that_cannot_be_met_are_refused_before_anything_is_exported(
    random_checkpoint: Path,
    tmp_path: Path,
    open_model: Callable[..., BGEM3FlagModel],
    arguments: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(ValueError, match=words):
        open_model(random_checkpoint, cache_dir=tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_threads": 0}, "n_threads must be a whole number of at least 1 or None, found 0"),
        ({"n_threads": "2"}, "n_threads must be a whole number of at least 1 or None, found '2'"),
        ({"precision": "int8", "devices": "cuda"}, "precision='int8' runs on CPU alone, found devices='cuda'"),
        ({"devices": "cuda:9"}, "device 'cuda:9' was asked for, but"),
        ({"devices": [9]}, "device 'cuda:9' was asked for, but"),
    ],
    ids=str,
)
def test_what_no_export_could_help_is_refused_before_it(
    random_checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=words):
        BGEM3FlagModel(random_checkpoint, cache_dir=tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("devices", [["cuda", "cuda:0"], [0, 0], ["cuda:0", 0], np.int64(0)], ids=str)
def test_one_cuda_device_may_be_written_in_several_ways(random_artifact: Path, devices: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device, and the message is of one without")
    with pytest.raises(RuntimeError, match=r"device .cuda(:0)?. was asked for, but"):
        BGEM3FlagModel(random_artifact, devices=devices)


# --- precision and threads


@pytest.mark.parametrize(
    ("arguments", "precision"),
    [
        ({}, "fp16"),
        ({"use_fp16": True}, "fp16"),
        ({"use_fp16": False}, "fp32"),
        ({"precision": "int8"}, "int8"),
        ({"precision": "int8", "use_fp16": True}, "int8"),
        ({"precision": "int8", "use_fp16": False}, "int8"),
        ({"precision": "fp32"}, "fp32"),
        ({"precision": "fp32", "use_fp16": False}, "fp32"),
        ({"precision": "fp16"}, "fp16"),
        ({"precision": None, "use_fp16": False}, "fp32"),
    ],
    ids=str,
)
@pytest.mark.parametrize("open_model", [BGEM3FlagModel, FlagAutoModel.from_finetuned])
def test_precision_goes_before_use_fp16(
    int8_artifact: Path,
    random_artifact: Path,
    open_model: Callable[..., BGEM3FlagModel],
    arguments: dict[str, Any],
    precision: str,
) -> None:
    artifact = int8_artifact if precision == "int8" else random_artifact
    model = open_model(artifact, devices="cpu", n_threads=1, **arguments)
    assert model.model.precision == precision
    expected = BGEM3Model.load(artifact, device="cpu", precision=precision, n_threads=1).encode(TEXTS[:3], ("dense",))
    np.testing.assert_array_equal(model.encode(TEXTS[:3])["dense_vecs"], expected.dense)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"precision": "fp16", "use_fp16": False}, "precision='fp16' contradicts use_fp16=False"),
        ({"precision": "int4"}, r"precision must be one of \('fp16', 'fp32', 'int8'\).* found 'int4'"),
        ({"precision": 8}, "precision must be one of .* found 8"),
        ({"precision": ""}, "precision must be one of .* found ''"),
    ],
    ids=str,
)
def test_precisions_that_cannot_be_met_are_refused(
    random_checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        BGEM3FlagModel(random_checkpoint, cache_dir=tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_threads", [1, 3, None])
def test_n_threads_reaches_the_session(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, n_threads: int | None
) -> None:
    found: list[Any] = []
    load = BGEM3Model.load.__func__  # type: ignore[attr-defined]

    def recording(cls: type[BGEM3Model], *arguments: Any, **settings: Any) -> Any:
        found.append(settings["n_threads"])
        return load(cls, *arguments, **settings)

    monkeypatch.setattr(BGEM3Model, "load", classmethod(recording))
    BGEM3FlagModel(random_artifact, devices="cpu", n_threads=n_threads)
    assert found == [n_threads]
    with pytest.raises(ValueError, match="n_threads must be a whole number"):
        BGEM3FlagModel(random_artifact, devices="cpu", n_threads=0)


# --- keywords of the encode methods


@pytest.mark.parametrize(
    "keywords",
    [
        {"convert_to_numpy": True},
        {"convert_to_numpy": False},
        {"convert_to_numpy": None},
        {"pad_to_multiple_of": 8},
        {"verbose": False},
        {"return_attention_mask": True},
        {"padding_side": "right"},
        {"convert_to_numpy": True, "verbose": True},
    ],
    ids=str,
)
def test_tokenizer_keywords_that_change_nothing_are_taken_as_in_flagembedding(
    ours: BGEM3FlagModel, reference: Any, keywords: dict[str, Any]
) -> None:
    for method in ("encode", "encode_queries", "encode_corpus", "encode_single_device"):
        found, expected = (
            getattr(model, method)(TEXTS[:5], max_length=MAX_LENGTH, **ALL_OUTPUTS, **keywords)
            for model in (ours, reference)
        )
        assert_same(found, expected, TOLERANCES["fp32"]["embeddings"])
    assert ours.compute_score(("a", "b"), **keywords) == ours.compute_score(("a", "b"))


@pytest.mark.parametrize(
    ("keywords", "kind", "words"),
    [
        ({"padding_side": "left"}, ValueError, "padding_side='left' would change the results"),
        ({"return_attention_mask": False}, ValueError, "return_attention_mask=False would change the results"),
        ({"device": "cpu"}, TypeError, "unexpected keyword argument 'device'; give devices to the constructor"),
        ({"show_progress_bar": True}, TypeError, "unexpected keyword argument 'show_progress_bar'"),
        ({"normalize_embeddings": True}, TypeError, "unexpected keyword argument 'normalize_embeddings'"),
        ({"add_special_tokens": False}, TypeError, "unexpected keyword argument 'add_special_tokens'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["encode", "encode_queries", "encode_corpus", "compute_score"])
def test_keywords_that_would_change_results_or_are_unknown_are_refused(
    ours: BGEM3FlagModel, method: str, keywords: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        getattr(ours, method)(["one text", "another"], **keywords)


def test_an_instruction_may_be_given_to_encode_as_in_flagembedding(ours: BGEM3FlagModel, reference: Any) -> None:
    for texts in (TEXTS[:4], "one text"):
        found, expected = (
            model.encode(texts, instruction="find ", instruction_format="{}\\n{}", **ALL_OUTPUTS)
            for model in (ours, reference)
        )
        assert_same(found, expected, TOLERANCES["fp32"]["embeddings"])
    assert np.abs(found["dense_vecs"] - ours.encode("one text")["dense_vecs"]).max() > 1e-3


def test_encode_single_device_has_flagembeddings_defaults(random_artifact: Path, reference: Any) -> None:
    model = BGEM3FlagModel(
        random_artifact, devices="cpu", **(SETTINGS | {"passage_max_length": 9, "return_sparse": True})
    )
    found = model.encode_single_device(TEXTS, device="cpu")
    assert_same(found, reference.encode_single_device(TEXTS, max_length=MAX_LENGTH), TOLERANCES["fp32"]["embeddings"])
    with pytest.raises(ValueError, match="this model is on cpu, found device='cuda:0'"):
        model.encode_single_device(TEXTS, device="cuda:0")


# --- FlagAutoModel


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"model_class": FlagEmbedding.EmbedderModelClass.ENCODER_ONLY_M3, "trust_remote_code": False},
        {"query_instruction_for_retrieval": "find ", "query_instruction_format": "{}: {}", "truncate_dim": 32},
    ],
    ids=str,
)
def test_the_automatic_class_gives_what_flagembeddings_gives(
    random_checkpoint: Path, random_artifact: Path, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    named = shutil.copytree(random_checkpoint, tmp_path / "bge-m3")  # FlagEmbedding goes by the name
    settings = SETTINGS | {"devices": "cpu"} | arguments
    reference = FlagEmbedding.FlagAutoModel.from_finetuned(str(named), **settings)
    ours = FlagAutoModel.from_finetuned(random_artifact, **settings)
    assert type(ours) is BGEM3FlagModel
    found, expected = (model.encode_queries(TEXTS[:6], **ALL_OUTPUTS) for model in (ours, reference))
    assert_same(found, expected, TOLERANCES["fp32"]["embeddings"])


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("BAAI/bge-large-en-v1.5", {}, "opens BGE-M3 alone here, and 'BAAI/bge-large-en-v1.5' is neither named"),
        ("BAAI/bge-m3-unsupervised", {}, "for a fine-tune of BGE-M3 add model_class='encoder-only-m3'"),
        ("Qwen/Qwen3-Embedding-0.6B", {}, "for any other model use FlagEmbedding"),
        ("BAAI/bge-m3", {"model_class": "decoder-only-icl"}, "must be 'encoder-only-m3'.* found 'decoder-only-icl'"),
        (
            "BAAI/bge-m3",
            {"model_class": FlagEmbedding.EmbedderModelClass.ENCODER_ONLY_BASE},
            "found 'encoder-only-base'",
        ),
        ("BAAI/bge-m3", {"pooling_method": "mean"}, "pooling_method='mean' would change the results"),
    ],
)
def test_the_automatic_class_refuses_other_models_before_any_download(
    name: str, arguments: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bgem3.runtime.flagembedding.model.find_or_export", None)
    with pytest.raises(ValueError, match=words):
        FlagAutoModel.from_finetuned(name, **arguments)
    with pytest.raises(OSError, match="from_finetuned"):
        FlagAutoModel()


@pytest.mark.parametrize(
    "arguments",
    [{"model_class": "encoder-only-m3"}, {"pooling_method": "cls", "query_instruction_format": "{}{}"}],
    ids=str,
)
def test_the_automatic_class_takes_flagembeddings_values(random_artifact: Path, arguments: dict[str, Any]) -> None:
    assert FlagAutoModel.from_finetuned(random_artifact, devices="cpu", **arguments).query_instruction_format == "{}{}"


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "someone/bge-m3", "bge-m3"])
def test_the_automatic_class_takes_hub_ids_named_as_bge_m3(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("bgem3.runtime.flagembedding.model.find_or_export", lambda *_: random_artifact)
    assert FlagAutoModel.from_finetuned(name, devices="cpu").model_name_or_path == name


# --- FlagEmbedding's examples of M3, call by call

QUERIES = ["Why does bread rise?", "How do tides come about?"] * 20
PASSAGES = ["Yeast gives off gas, which lifts the dough of bread.", "The pull of the moon causes the tides."] * 20


def embed_and_score(model: Any) -> dict[str, Any]:
    """Do what the examples of one and several devices do: dense and lexical scores of all with all."""
    queries, passages = (
        method(texts, return_dense=True, return_sparse=True, return_colbert_vecs=False)
        for method, texts in ((model.encode_queries, QUERIES), (model.encode_corpus, PASSAGES))
    )
    dense = queries["dense_vecs"] @ passages["dense_vecs"].T
    sparse = model.compute_lexical_matching_score(queries["lexical_weights"], passages["lexical_weights"])
    return {"dense": dense[:2, :2], "sparse": sparse[:2, :2]}


def score_pairs(model: Any) -> dict[str, Any]:
    """Do what the examples of compute_score do: weighted scores of pairs, then of the reversed queries."""
    scores = [
        model.compute_score(list(zip(queries, PASSAGES, strict=True)), weights_for_different_modes=[1.0, 0.3, 1.0])
        for queries in (QUERIES, QUERIES[::-1])
    ]
    return {str(i): {key: values[:2] for key, values in found.items()} for i, found in enumerate(scores)}


def mix_scores(model: Any) -> dict[str, Any]:
    """Do what the example of an ensemble does: padded multi-vectors scored in torch, and a weighted sum."""
    queries, passages = (
        method(texts[:20], **ALL_OUTPUTS)
        for method, texts in ((model.encode_queries, QUERIES), (model.encode_corpus, PASSAGES))
    )
    dense = torch.tensor(queries["dense_vecs"]) @ torch.tensor(passages["dense_vecs"]).T
    sparse = model.compute_lexical_matching_score(queries["lexical_weights"], passages["lexical_weights"])
    padded = [
        torch.nn.utils.rnn.pad_sequence([torch.tensor(vectors) for vectors in side["colbert_vecs"]], batch_first=True)
        for side in (queries, passages)
    ]
    colbert = torch.einsum("qrd,pcd->qprc", *padded).max(dim=3)[0].sum(dim=2)
    mixed = 0.45 * dense + 0.45 * torch.tensor(sparse, dtype=torch.float) + 0.1 * colbert
    return {"sparse": sparse[:2, :2], "colbert": colbert[:2, :2].numpy(), "mixed": mixed[:2, :2].numpy()}


def open_by_class(module: Any, checkpoint: str, **settings: Any) -> Any:
    return module.BGEM3FlagModel(checkpoint, normalize_embeddings=True, use_fp16=True, pooling_method="cls", **settings)


def open_by_name(module: Any, checkpoint: str, **settings: Any) -> Any:
    return module.FlagAutoModel.from_finetuned(checkpoint, **settings)


@pytest.fixture(scope="module")
def named_checkpoint(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo checkpoint in a folder whose name FlagAutoModel knows."""
    return str(shutil.copytree(demo_checkpoint, tmp_path_factory.mktemp("named") / "bge-m3"))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache that holds the export of the first example for the others."""
    return str(tmp_path_factory.mktemp("cache"))


EXAMPLES = {
    "m3_single_device": (open_by_class, embed_and_score),
    "m3_multi_devices": (open_by_class, embed_and_score),
    "m3_single_device_compute_score": (open_by_class, score_pairs),
    "m3_multi_devices_compute_score": (open_by_class, score_pairs),
    "m3_single_device_ensemble": (open_by_class, mix_scores),
    "auto_m3_single_device": (open_by_name, embed_and_score),
    "auto_m3_multi_devices": (open_by_name, embed_and_score),
}


@pytest.fixture(scope="module")
def example_results(named_checkpoint: str) -> Callable[..., dict[str, Any]]:
    """The function that runs an example with FlagEmbedding, once for one and for several devices.

    FlagEmbedding starts a process for each of several devices, and gives what one device gives.
    """

    @functools.cache
    def run(open_model: Callable[..., Any], steps: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return steps(open_model(importlib.import_module("FlagEmbedding"), named_checkpoint, devices="cpu"))

    return run


@pytest.mark.parametrize("name", EXAMPLES)
def test_flagembeddings_examples_run_with_only_the_import_changed(
    name: str, named_checkpoint: str, cache_dir: str, example_results: Callable[..., dict[str, Any]]
) -> None:
    open_model, steps = EXAMPLES[name]
    settings: dict[str, Any] = {"devices": ["cpu", "cpu"] if "multi" in name else "cpu", "cache_dir": cache_dir}
    found = steps(open_model(importlib.import_module("bgem3.runtime"), named_checkpoint, **settings))
    tolerance = TOLERANCES["fp16"]["scores"] * (20 if steps is mix_scores else 1)  # which sums over a query's tokens
    assert_same(found, example_results(open_model, steps), tolerance)


# --- milvus-model


def milvus_module(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """Return milvus-model's module with its import of FlagEmbedding changed to ours, or skip without it."""
    package = name.partition(".hybrid")[0]
    try:
        is_there = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        pytest.skip(f"{package} is not installed")
    for needed in ("datasets", "peft"):
        if not importlib.util.find_spec(needed):
            pytest.skip(f"{package} would install {needed} by itself")
    monkeypatch.setattr(FlagEmbedding, "BGEM3FlagModel", BGEM3FlagModel)  # some versions import it when called
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "BGEM3FlagModel", BGEM3FlagModel, raising=False)
    return module


@pytest.mark.parametrize("name", ["milvus_model.hybrid.bge_m3", "pymilvus.model.hybrid.bge_m3"])
@pytest.mark.parametrize("settings", [{}, {"devices": ["cpu", "cpu"]}, {"precision": "fp32", "n_threads": 1}], ids=str)
def test_milvus_models_embedding_function_runs_over_the_drop_in(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    module = milvus_module(monkeypatch, name)
    function = module.BGEM3EmbeddingFunction(
        model_name=str(random_artifact),
        **({"device": "cpu", "use_fp16": False, "return_colbert_vecs": True} | settings),
    )
    assert type(function.model) is BGEM3FlagModel
    model = BGEM3Model.load(random_artifact, device="cpu", precision="fp32")
    spec = model.spec
    assert function.dim == {
        "dense": spec.hidden_size,
        "colbert_vecs": spec.multivector_size,
        "sparse": spec.vocab_size,
    }
    expected = model.encode(TEXTS)
    for encode in (function, function.encode_queries, function.encode_documents):
        found = encode(TEXTS)
        np.testing.assert_allclose(found["dense"], expected.dense, atol=1e-6)
        np.testing.assert_allclose(found["sparse"].toarray(), expected.sparse.toarray(), atol=1e-6)
        assert found["sparse"].shape == (len(TEXTS), spec.vocab_size)
        for one_found, one_expected in zip(found["colbert_vecs"], expected.multivector, strict=True):
            np.testing.assert_allclose(one_found, one_expected, atol=1e-6)
