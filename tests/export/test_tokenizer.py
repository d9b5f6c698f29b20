"""The tokenizer of a checkpoint: its special tokens, and files and settings that have no effect."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.export.reference import parity_texts
from tests.export.checkpoints import Edit, assert_refused, remove, settings, tokenizer, write

CONFIG = "tokenizer_config.json"


def swap(values: dict[str, Any]) -> None:
    single = values["post_processor"]["single"]
    single[0], single[-1] = single[-1], single[0]


def without_unknown(values: dict[str, Any]) -> None:
    values["model"]["unk_id"] = None
    unname(values, "<unk>")


def unname(values: dict[str, Any], token: str) -> None:
    """Give a special token another text."""
    values["added_tokens"] = [added for added in values["added_tokens"] if added["content"] != token]
    values["model"]["vocab"] = [["?" if name == token else name, score] for name, score in values["model"]["vocab"]]


def padded(direction: str, strategy: Any) -> Edit:
    """Return a function that stores padding and truncation in tokenizer.json."""
    padding = {"strategy": strategy, "direction": direction, "pad_to_multiple_of": 8, "pad_id": 1, "pad_type_id": 0}
    truncation = {"direction": direction, "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    return tokenizer(lambda v: v.update(padding=padding | {"pad_token": "<pad>"}, truncation=truncation))


HARMLESS = {
    "list_of_extra_tokens": settings(CONFIG, extra_special_tokens=["<q>"]),
    "class_of_v5": settings(CONFIG, tokenizer_class="TokenizersBackend"),
    "no_class": settings(CONFIG, tokenizer_class=None),
    "wrong_types": settings(CONFIG, tokenizer_class=[1], extra_special_tokens=3, added_tokens_decoder={"x": 1}),
    "wrong_roles": settings(CONFIG, cls_token="<pad>", unk_token={"a": 1}, model_max_length=1e30),
    "list_of_code": settings(CONFIG, auto_map=["a"], tokenizer_class="A"),
    "other_code": settings(CONFIG, auto_map={"AutoTokenizer": ["x.Y", None]}),
    "no_file": remove(CONFIG),
    "list": write(CONFIG, "[1, 2]"),
    "deeply_nested": write(CONFIG, "[" * 100_000),
    "binary": write(CONFIG, b"\xff\xfe\x00"),
    "damaged_maps": write("special_tokens_map.json", '{"cls_token": 7}'),
    "right_padding": padded("Right", "BatchLongest"),
    "left_padding": padded("Left", {"Fixed": 64}),
    "no_pad_token": tokenizer(lambda v: unname(v, "<pad>")),
    "byte_order_mark": lambda folder: write(
        "tokenizer.json", codecs.BOM_UTF8 + (folder / "tokenizer.json").read_bytes()
    )(folder),
}

OWN_CODE = settings(CONFIG, tokenizer_class="Trojan", auto_map={"AutoTokenizer": ["trojan.Trojan"] * 2})
REFUSED = {
    "swapped": (tokenizer(swap), "does not put CLS before and EOS after a text.*'</s>', '<s>'"),
    "no_post_processor": (tokenizer(lambda v: v.update(post_processor=None)), r"put CLS before.*becomes \[\]"),
    "no_unknown": (tokenizer(without_unknown), "has no token for unknown"),
    "no_model": (tokenizer(lambda v: v.update(model={})), "cannot read the tokenizer in"),
    "text": (write("tokenizer.json", "garbage"), "cannot read the tokenizer in.*get the checkpoint again"),
    "binary": (write("tokenizer.json", b"\xff\xfe"), "cannot read the tokenizer in.*get the checkpoint again"),
    "own_code": (OWN_CODE, "cannot read the tokenizer in.*custom code.*never run.*get the checkpoint again"),
}


@pytest.mark.parametrize("edit", HARMLESS.values(), ids=HARMLESS)
def test_files_that_decide_nothing_have_no_effect(
    checkpoint_copy: Path, loaded_checkpoint: Checkpoint, edit: Edit
) -> None:
    edit(checkpoint_copy)
    found = load_checkpoint(checkpoint_copy)
    assert found.spec == loaded_checkpoint.spec
    texts = [text for text in parity_texts(loaded_checkpoint) if "<pad>" not in text]
    assert [found.token_ids(text) for text in texts] == [loaded_checkpoint.token_ids(text) for text in texts]


@pytest.mark.parametrize(("edit", "words"), REFUSED.values(), ids=REFUSED)
def test_a_tokenizer_of_another_form_is_refused(checkpoint_copy: Path, edit: Edit, words: str) -> None:
    assert_refused(checkpoint_copy, edit, words)


@pytest.mark.parametrize("max_length", [None, 2, 3, 17, 128])
def test_token_ids_are_those_of_transformers(loaded_checkpoint: Checkpoint, max_length: int | None) -> None:
    file = str(loaded_checkpoint.folder / "tokenizer.json")
    theirs: Any = PreTrainedTokenizerFast(tokenizer_file=file)  # type: ignore[no-untyped-call]
    for text in parity_texts(loaded_checkpoint):
        expected = theirs(text, truncation=max_length is not None, max_length=max_length)["input_ids"]
        assert loaded_checkpoint.token_ids(text, max_length) == expected


def test_a_tokenizer_that_stores_its_unknown_token_as_text_gives_that_tokens_id(checkpoint_copy: Path) -> None:
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "[UNK]": 3, "a": 4}
    values = json.loads(Tokenizer(BPE(words, [], unk_token="[UNK]")).to_str())
    tokenizer(lambda v: v.update(values | {"post_processor": v["post_processor"]}))(checkpoint_copy)
    assert load_checkpoint(checkpoint_copy).spec.unk_id == 3
