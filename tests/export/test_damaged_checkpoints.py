"""Checkpoints with files that are missing, damaged or hostile."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bgem3.export import export_model
from bgem3.runtime import BGEM3Model, CheckpointError
from bgem3.runtime.artifact import read_artifact
from bgem3.scoring import (
    Embeddings,
)


def assert_raises(call: Callable[[], object], kind: type[Exception], *words: str) -> None:
    """Check the very type of what a call raises, and that the message holds the words (regexes) in this order."""
    with pytest.raises(kind, match="(?s)" + ".*".join(words)) as caught:
        call()
    assert caught.type is kind


# Damaged checkpoints


def truncated(name: str) -> Callable[[Path], object]:
    """Return a function that cuts the second half off a file of a folder."""
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


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
