"""The forms of checkpoints that are read, and the settings and files that have no effect."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.export.reference import parity_texts
from bgem3.runtime import CheckpointError
from bgem3.runtime.checkpoint_files import checkpoint_hash
from tests.export.checkpoints import (
    HEADS,
    TOKENIZER,
    Edit,
    as_bin,
    assert_same,
    edited,
    head,
    in_parts,
    prefixed,
    remove,
    settings,
    steps,
    store,
    stored,
    unname,
    weights,
    write,
)

SPARSE, COLBERT = HEADS
CONFIG = "tokenizer_config.json"


def with_byte_order_mark(name: str) -> Edit:
    return lambda folder: write(name, codecs.BOM_UTF8 + (folder / name).read_bytes())(folder)


def store_padding(folder: Path) -> None:
    """Store left padding and truncation in tokenizer.json."""
    values = Tokenizer.from_file(str(folder / "tokenizer.json"))
    values.enable_padding(direction="left", length=64, pad_id=1, pad_token="<pad>")
    values.enable_truncation(4, direction="left")
    values.save(str(folder / "tokenizer.json"))


def heads_among_weights(prefix: str) -> Edit:
    """Return a function that stores the heads' tensors with the backbone's."""

    def edit(folder: Path) -> None:
        tensors = {f"model.{name}": values for name, values in stored(folder).items()}
        for name in HEADS:
            state = torch.load(folder / name)
            tensors |= {f"{prefix}{Path(name).stem}.{key}": values for key, values in state.items()}
            (folder / name).unlink()
        store(folder, tensors)

    return edit


SETTINGS = {
    "attention": settings(_attn_implementation="nonsense", attn_implementation=3, _attn_implementation_internal=None),
    "dtype": settings(torch_dtype="bfloat16", dtype=16, architectures=["Unknown"], transformers_version="99"),
    "unknown": settings(
        adapters={"a": 1}, rope_parameters=None, pruned_heads={"0": [1]}, auto_map={"AutoModel": "a.B"}
    ),
    "null": settings(is_decoder=None, position_embedding_type=None, quantization_config=None),
    "labels": settings(quantization_config={}, id2label={"x": 1}, num_labels="two"),
    "byte_order_mark": with_byte_order_mark("config.json"),
}
TOKENIZER_FILES = {
    "wrong_types": settings(CONFIG, tokenizer_class=[1], extra_special_tokens=3, unk_token={"a": 1}),
    "other_code": settings(CONFIG, auto_map={"AutoTokenizer": ["x.Y", None]}),
    "no_file": remove(CONFIG),
    "deeply_nested": write(CONFIG, "[" * 100_000),
    "binary": write(CONFIG, b"\xff\xfe\x00"),
    "padding_and_truncation": store_padding,
    "no_pad_token": unname("<pad>"),
    "byte_order_mark": with_byte_order_mark("tokenizer.json"),
}
TENSORS = {
    "prefix": prefixed("0.auto_model.c."),
    "no_prefix_goes_first": weights(lambda t: t | {f"ema.{name}": torch.zeros_like(t[name]) for name in t}),
    "names_of_tensorflow": weights(
        lambda t: {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t[n] for n in t}
    ),
    "in_parts": in_parts,
    "bin": as_bin(),
    "variant_beside": lambda folder: store(folder, {"garbage": torch.ones(1)}, "model.fp16.safetensors"),
    "bin_wrapped_by_a_trainer": as_bin(lambda t: {"epoch": 3, "model_state_dict": t}),
    "head_wrapped_by_a_trainer": head(SPARSE, lambda t: {"module": t, "optimizer": {}}),
    "head_under_a_prefix": head(COLBERT, lambda t: {f"0.linear.{name}": t[name] for name in t}),
    "heads_among_weights": heads_among_weights(""),
    "heads_among_prefixed_weights_in_bin": steps(heads_among_weights("module."), as_bin()),
}


@pytest.mark.parametrize("replacement", [None, [], -1, 10**30, "x", True, 0.5], ids=repr)
def test_any_damaged_setting_is_refused_or_has_no_effect(
    checkpoint_copy: Path, loaded_checkpoint: Checkpoint, replacement: Any
) -> None:
    original = json.loads((checkpoint_copy / "config.json").read_text(encoding="utf-8"))
    for name in original:
        write("config.json", original | {name: replacement})(checkpoint_copy)
        try:
            found = load_checkpoint(checkpoint_copy)
        except CheckpointError:
            continue
        if name not in ("layer_norm_eps", "num_attention_heads"):  # any number may be right
            assert found.spec == loaded_checkpoint.spec, name


@pytest.mark.parametrize("edit", TOKENIZER_FILES.values(), ids=TOKENIZER_FILES)
def test_tokenizer_files_that_decide_nothing_have_no_effect(
    checkpoint_copy: Path, loaded_checkpoint: Checkpoint, edit: Edit
) -> None:
    edit(checkpoint_copy)
    found = load_checkpoint(checkpoint_copy)
    assert found.spec == loaded_checkpoint.spec
    texts = [text for text in parity_texts(loaded_checkpoint) if "<pad>" not in text]
    assert [found.token_ids(text) for text in texts] == [loaded_checkpoint.token_ids(text) for text in texts]


@pytest.mark.parametrize("edit", (SETTINGS | TENSORS).values(), ids=SETTINGS | TENSORS)
def test_a_checkpoint_is_read_in_every_form(checkpoint_copy: Path, loaded_checkpoint: Checkpoint, edit: Edit) -> None:
    edit(checkpoint_copy)
    found = load_checkpoint(checkpoint_copy)
    assert_same(found, loaded_checkpoint)
    ignored = {CONFIG, "model.safetensors.index.json", "model.fp16.safetensors"}
    assert set(found.source["files"]) == {path.name for path in checkpoint_copy.iterdir()} - ignored
    assert len(checkpoint_hash(checkpoint_copy)) == 64


def test_a_tokenizer_that_stores_its_unknown_token_as_text_gives_that_tokens_id(checkpoint_copy: Path) -> None:
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "[UNK]": 3, "a": 4}
    values = json.loads(Tokenizer(BPE(words, [], unk_token="[UNK]")).to_str())
    edited(TOKENIZER, lambda v: v.update(values | {"post_processor": v["post_processor"]}))(checkpoint_copy)
    assert load_checkpoint(checkpoint_copy).spec.unk_id == 3
