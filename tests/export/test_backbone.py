"""The settings of a checkpoint's config.json: which decide what is computed, and which have no effect."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.runtime import CheckpointError
from tests.export.checkpoints import Edit, assert_refused, assert_same, settings, write

HARMLESS = {
    "attention": settings(_attn_implementation="nonsense", attn_implementation=3, _attn_implementation_internal=None),
    "dtype": settings(torch_dtype="bfloat16", dtype=16),
    "version": settings(architectures=["Unknown"], transformers_version="99"),
    "auto_map": settings(auto_map={"AutoModel": "code.Model"}),
    "unknown": settings(adapters={"a": 1}, rope_parameters=None, pruned_heads={"0": [1]}),
    "null": settings(is_decoder=None, position_embedding_type=None, quantization_config=None),
    "labels": settings(quantization_config={}, id2label={"x": 1}, num_labels="two"),
    "byte_order_mark": lambda folder: write("config.json", codecs.BOM_UTF8 + (folder / "config.json").read_bytes())(
        folder
    ),
}

REFUSED = {
    "bert": (settings(model_type="bert"), "model_type is 'bert', expected 'xlm-roberta'; only XLM-RoBERTa encoders"),
    "relu": (settings(hidden_act="relu"), "hidden_act is 'relu', expected 'gelu'"),
    "decoder": (settings(is_decoder=True), "is_decoder is True, expected False"),
    "relative": (settings(position_embedding_type="relative_key"), "'relative_key', expected 'absolute'"),
    "text_size": (settings(hidden_size="96"), "hidden_size is '96', expected a whole number from 1"),
    "seven_heads": (settings(num_attention_heads=7), "not a multiple of the number of attention heads"),
    "few_tokens": (settings(vocab_size=10), "has 1691 tokens, the model embeds 10"),
    "few_positions": (settings(max_position_embeddings=64), r"position_embeddings.*\(130, 96\).*asks for \(64, 96\)"),
    "layer_missing": (settings(num_hidden_layers=4), r"16 tensors are missing, such as encoder\.layer\.3"),
    "layer_unused": (settings(num_hidden_layers=2), r"16 tensors are of layers.*such as encoder\.layer\.2"),
    "other_pad_id": (settings(pad_token_id=0), "pad id is 1, config.json's is 0; .* must agree"),
    "no_pad_id": (settings(pad_token_id=None), "pad id is 1, config.json's is None"),
    "text": (write("config.json", "garbage"), "cannot read .*config.json.*get the checkpoint again"),
    "nested": (write("config.json", "[" * 100_000), "cannot read .*config.json"),
}


@pytest.mark.parametrize("edit", HARMLESS.values(), ids=HARMLESS)
def test_settings_that_decide_nothing_have_no_effect(
    checkpoint_copy: Path, loaded_checkpoint: Checkpoint, edit: Edit
) -> None:
    edit(checkpoint_copy)
    assert_same(load_checkpoint(checkpoint_copy), loaded_checkpoint)


@pytest.mark.parametrize(("edit", "words"), REFUSED.values(), ids=REFUSED)
def test_settings_of_another_model_are_refused_by_name(checkpoint_copy: Path, edit: Edit, words: str) -> None:
    assert_refused(checkpoint_copy, edit, words)


@pytest.mark.parametrize("replacement", [None, [], {}, -1, 10**30, "x", True, 0.5], ids=repr)
def test_any_damaged_setting_is_refused_or_has_no_effect(
    checkpoint_copy: Path, loaded_checkpoint: Checkpoint, replacement: Any
) -> None:
    original = json.loads((checkpoint_copy / "config.json").read_text(encoding="utf-8"))
    for name in original.keys() - {"layer_norm_eps", "num_attention_heads"}:  # any number may be right
        write("config.json", original | {name: replacement})(checkpoint_copy)
        try:
            found = load_checkpoint(checkpoint_copy)
        except CheckpointError:
            continue
        assert found.spec == loaded_checkpoint.spec, name
