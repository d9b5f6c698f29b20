"""Damaged, incomplete and hostile checkpoints, which are refused with what is wrong."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bgem3.export.checkpoint import load_checkpoint
from bgem3.runtime import CheckpointError
from bgem3.runtime.artifact import MANIFEST
from bgem3.runtime.checkpoint_files import checkpoint_hash, find_checkpoint
from tests.export.checkpoints import (
    HEADS,
    QUERY,
    Edit,
    as_bin,
    head,
    in_parts,
    move,
    prefixed,
    remove,
    settings,
    steps,
    store,
    tokenizer,
    unname,
    weights,
    without,
    write,
)

SPARSE, COLBERT = HEADS
BIAS = "encoder.layer.1.output.dense.bias"
AGAIN = "get the checkpoint again"
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "BAAI/bge-m3"}
LORA = {f"base_model.model.{QUERY.removesuffix('weight')}lora_A.weight": torch.ones(2, 2)}
LAYER = QUERY.removesuffix(".weight")
INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 2271064456\n"


def swap(values: dict[str, Any]) -> None:
    single = values["post_processor"]["single"]
    single[0], single[-1] = single[-1], single[0]


def without_unknown(values: dict[str, Any]) -> None:
    values["model"]["unk_id"] = None
    unname(values, "<unk>")


def assert_refused(folder: Path, edit: Edit, words: str) -> None:
    """Check that an edited checkpoint raises CheckpointError itself, with a message that matches."""
    edit(folder)
    with pytest.raises(CheckpointError, match=f"(?s){words}") as caught:
        load_checkpoint(folder)
    assert caught.type is CheckpointError


def torch_file(name: str, state: object) -> Edit:
    return lambda folder: torch.save(state, folder / name)


def link(name: str, target: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return edit


ADAPTERS = {
    "settings": write("adapter_config.json", ADAPTER),
    "in_a_folder_of_adapters": write("adapters/english/adapter_config.json", ADAPTER),
    "without_a_models_settings": steps(write("adapter_config.json", ADAPTER), remove("config.json")),
    "dead_link": link("adapter_config.json", "/no/such/file"),
    "under_another_name": lambda folder: store(folder, LORA, "deep/er/lora_weights.safetensors"),
    "torch_file_under_another_name": torch_file("lora.pt", LORA),
    "of_adapter_hub": weights(lambda t: t | {"encoder.layer.0.output.adapters.a.down.weight": torch.ones(2, 2)}),
    "in_a_head": torch_file(HEADS[0], {"base_layer.weight": torch.ones(1, 96), "lora_A.weight": torch.ones(1)}),
    "among_the_weights": steps(
        weights(
            lambda t: t | {f"{LAYER}.base_layer.weight": t.pop(QUERY), f"{LAYER}.lora_B.a.weight": torch.ones(2, 2)}
        ),
        prefixed("base_model.model."),
    ),
}


SETTINGS = {
    "bert": (settings(model_type="bert"), "model_type is 'bert', expected 'xlm-roberta'; only XLM-RoBERTa encoders"),
    "relu": (settings(hidden_act="relu"), "hidden_act is 'relu', expected 'gelu'"),
    "decoder": (settings(is_decoder=True), "is_decoder is True, expected False"),
    "relative": (settings(position_embedding_type="relative_key"), "'relative_key', expected 'absolute'"),
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
OWN_CODE = settings("tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["code.Own", None]})
TOKENIZERS = {
    "swapped": (tokenizer(swap), "does not put CLS before and EOS after a text.*'</s>', '<s>'"),
    "no_post_processor": (tokenizer(lambda v: v.update(post_processor=None)), r"put CLS before.*becomes \[\]"),
    "no_unknown": (tokenizer(without_unknown), "has no token for unknown"),
    "text": (write("tokenizer.json", "garbage"), "cannot read the tokenizer in.*get the checkpoint again"),
    "own_code": (OWN_CODE, "cannot read the tokenizer in.*custom code.*never run.*get the checkpoint again"),
}
TENSORS = {
    "weights_cut": (lambda folder: os.truncate(folder / "model.safetensors", 999), f"cannot read the weights.*{AGAIN}"),
    "nan": (weights(lambda t: t | {BIAS: t[BIAS] * torch.nan}), f"backbone.{BIAS} holds NaN or infinity; {AGAIN}"),
    "missing_under_a_prefix": (
        steps(prefixed("model."), without(f"model.{QUERY}")),
        f"1 tensors are missing, such as model.{QUERY}",
    ),
    "shape": (weights(lambda t: t | {BIAS: torch.ones(5)}), rf"{BIAS} has the shape \(5,\), but config.*\(96,\)"),
    "two_models": (prefixed("student.", "teacher."), r"hold 2 models.*student\., teacher\.; store only one"),
    "another_model": (
        lambda folder: store(folder, {"linear.weight": torch.ones(2), "linear.bias": torch.ones(2)}),
        r"hold no backbone; found the tensors linear\.bias, linear\.weight, expected names such as embeddings",
    ),
    "int8": (
        weights(lambda t: t | {QUERY: t[QUERY].to(torch.int8)}),
        f"tensor {QUERY} is stored as torch.int8, expected floating-point.*before it was quantized",
    ),
    "head_width": (
        head(SPARSE, lambda t: {"weight": torch.ones(2, 96), "bias": torch.ones(2)}),
        r"weight \(2, 96\) and bias \(2,\), expected \(1, 96\) and \(1,\).*not of one checkpoint",
    ),
    "head_of_two_layers": (
        head(SPARSE, lambda t: {f"{layer}.{name}": t[name] for layer in "ab" for name in t}),
        r"sparse_linear\.pt.*found a\.bias, a\.weight, b\.bias, b\.weight, expected weight and bias",
    ),
    "head_with_a_number": (head(SPARSE, lambda t: t | {"epoch": 3}), "'epoch' is a int, expected a state dict"),
    "head_module": (
        head(SPARSE, lambda t: torch.nn.Linear(96, 1)),
        "holds Python objects, which are never loaded.*state_dict(?!.*weights_only)",
    ),
    "head_cut": (lambda folder: os.truncate(folder / SPARSE, 500), f"cannot read .*sparse_linear.pt as.*{AGAIN}"),
    "head_pickle_of_no_text": (write(COLBERT, b"\x80\x02X\x03\0\0\0\xff\xff\xff."), f"UnicodeDecodeError.*{AGAIN}"),
}


def instead_of_weights(name: str, words: str) -> tuple[Edit, str]:
    return move("model.safetensors", name), f"has no model.safetensors, but {name}; .*{words}"


def part_edited(edit: Edit) -> Edit:
    return steps(in_parts, edit)


HEADLESS = "a checkpoint without its trained heads gives random.*heads_from='BAAI/bge-m3'.*--outputs dense"
FILES = {
    "no_sparse_head": (remove(HEADS[0]), f"has no sparse_linear.pt; {HEADLESS}"),
    "no_heads": (remove(*HEADS), f"has no sparse_linear.pt and no colbert_linear.pt; {HEADLESS}"),
    "no_tokenizer": (remove("tokenizer.json"), "has no tokenizer.json.*whole BGE-M3"),
    "no_weights": (remove("model.safetensors"), "has no model.safetensors.*whole BGE-M3"),
    **{
        f"pointer_{name}": (write(name, POINTER), f"{name} is a git-lfs pointer.*run `git lfs pull` in(?!.*again)")
        for name in ("config.json", "tokenizer.json", "model.safetensors", *HEADS)
    },
    "annex": (write("model.safetensors", "/annex/objects/MD5E-s9--1\n"), "git-annex pointer.*git annex get"),
    "dvc": (move("model.safetensors", "model.safetensors.dvc"), "dvc; run `dvc pull`"),
    "another_adapter": (write("adapter_config.json", {"peft_type": "IA3"}), r"holds an adapter \(IA3\).*merge it fi"),
    "artifact": (steps(write(MANIFEST, {"format_version": 1}), remove("model.safetensors")), "is an exported artifact"),
    **{
        f"dead_link_{name}": (link(name, ".git/annex/objects/abc"), f"no {name}: .*is a link to .git/annex.*is not")
        for name in ("config.json", "tokenizer.json", "model.safetensors", HEADS[0])
    },
    "part_missing": (part_edited(remove("model-00002-of-00002.safetensors")), "has no model-00002.*the weights' index"),
    "index_text": (part_edited(write(INDEX, "garbage")), r"cannot read .*index\.json as the list"),
    "index_without_map": (part_edited(write(INDEX, {})), r"cannot read .*index\.json as the list"),
    "index_out": (part_edited(write(INDEX, {"weight_map": {"a": "../x.bin"}})), "names files out of its folder"),
    "index_missing": (part_edited(remove(INDEX)), "no model.safetensors, but model-00001-of-00002.safetensors, "),
    "fp16_variant": instead_of_weights("model.fp16.safetensors", "rename model.fp16.safetensors to model.safetensors"),
    "bin_variant": instead_of_weights("pytorch_model.fp16.bin", "rename .*bin to pytorch_model.bin"),
    "gguf": instead_of_weights("bge-m3-q8.gguf", "only model.safetensors and pytorch_model.bin.*save_pretrained"),
    "head_of_another_form": (
        move(HEADS[0], "sparse_linear.safetensors"),
        r"no sparse_linear\.pt, but sparse_linear\.safetensors; store(?!.*heads_from)",
    ),
    "sentencepiece": (
        move("tokenizer.json", "sentencepiece.bpe.model"),
        r"no tokenizer\.json, but sentencepiece.*AutoTokenizer\.from_pretrained",
    ),
}


@pytest.mark.parametrize(
    ("edit", "words"),
    [pytest.param(*case, id=name) for cases in (SETTINGS, TOKENIZERS, TENSORS, FILES) for name, case in cases.items()],
)
def test_a_damaged_checkpoint_is_refused_with_what_is_wrong(checkpoint_copy: Path, edit: Edit, words: str) -> None:
    assert_refused(checkpoint_copy, edit, words)


@pytest.mark.parametrize("edit", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_is_refused_in_every_arrangement(checkpoint_copy: Path, edit: Edit) -> None:
    assert_refused(checkpoint_copy, edit, "holds a LoRA adapter.*merge it first.*merge_and_unload")


def test_a_damaged_file_beside_the_weights_is_no_adapter(checkpoint_copy: Path) -> None:
    path = checkpoint_copy / "optimizer.pt"
    torch.save({"state": torch.ones(2)}, path)
    content = path.read_bytes()
    for place in range(0, len(content), 13):
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        assert find_checkpoint(checkpoint_copy) == checkpoint_copy


def test_an_adapter_changes_the_hash_by_which_exports_are_kept(checkpoint_copy: Path) -> None:
    before = checkpoint_hash(checkpoint_copy)
    write("adapters/english/adapter_config.json", ADAPTER)(checkpoint_copy)
    assert checkpoint_hash(checkpoint_copy) != before


class Bomb:
    """An attacker's object: unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("is_old_format", [False, True])
@pytest.mark.parametrize("name", [SPARSE, "pytorch_model.bin"])
def test_a_malicious_pickle_is_refused_and_never_run(
    checkpoint_copy: Path, tmp_path: Path, name: str, is_old_format: bool
) -> None:
    bomb = Bomb(tmp_path / "marker")
    as_bin()(checkpoint_copy)
    torch.save({"weight": bomb}, checkpoint_copy / name, _use_new_zipfile_serialization=not is_old_format)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="cannot read"):
            load_checkpoint(checkpoint_copy)
        (checkpoint_copy / name).write_bytes(pickle.dumps(bomb))
    assert not bomb.marker.exists()
    pickle.loads(pickle.dumps(bomb))
    assert bomb.marker.is_dir(), "the bomb is not a real one"


@pytest.mark.parametrize(
    ("path_of", "words"),
    [
        (lambda folder: folder.parent, r"has no config\.json.*but {folder} has one; is that the checkpoint"),
        (lambda folder: folder / "config.json", "config.json is a file; give the checkpoint's folder, {folder}"),
    ],
    ids=["above", "file"],
)
def test_a_path_beside_the_checkpoint_names_its_folder(
    checkpoint_copy: Path, path_of: Callable[[Path], Path], words: str
) -> None:
    write("1_Pooling/config.json", {})(checkpoint_copy.parent)  # sentence-transformers': no model
    with pytest.raises(CheckpointError, match=words.format(folder=checkpoint_copy)):
        load_checkpoint(path_of(checkpoint_copy))
