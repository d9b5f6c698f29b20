"""The drop-in's tokenizer beside transformers' one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.flagembedding.tokenizer import FlagTokenizer
from bgem3.runtime.manifest import ModelSpec
from tests.runtime.flagembedding.comparison import MAX_LENGTH, TEXTS, assert_same


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


def test_texts_become_tokens_and_tokens_texts_as_in_transformers(tokenizers: tuple[FlagTokenizer, Any]) -> None:
    found, expected = tokenizers
    for text in TEXTS:
        ids = expected.encode(text)
        assert found.encode(text) == ids
        assert found.encode(text, add_special_tokens=False) == expected.encode(text, add_special_tokens=False)
        assert found.tokenize(text) == expected.tokenize(text)
        assert found.convert_ids_to_tokens(ids, True) == expected.convert_ids_to_tokens(ids, True)
        tokens = expected.convert_ids_to_tokens(ids)
        assert found.convert_ids_to_tokens(ids) == tokens
        assert found.convert_tokens_to_ids(tokens) == expected.convert_tokens_to_ids(tokens) == ids
        for settings in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": False}):
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
        {"padding": "longest", "return_tensors": "np"},
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
        assert dict(found(TEXTS[8], **settings)) == dict(expected(TEXTS[8], **settings))
        assert found(TEXTS[8], **settings).input_ids == expected(TEXTS[8], **settings).input_ids


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
    tokenizers: tuple[FlagTokenizer, Any], call: Callable[[FlagTokenizer], object], words: str
) -> None:
    with pytest.raises((AttributeError, TypeError, ValueError), match=words):
        call(tokenizers[0])
