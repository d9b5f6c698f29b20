"""The files of a checkpoint: adapters, pointers and other files in place of the expected ones."""

from collections.abc import Callable
from pathlib import Path

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
    assert_refused,
    in_parts,
    move,
    prefixed,
    remove,
    steps,
    store,
    weights,
    write,
)

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "BAAI/bge-m3"}
LORA = {f"base_model.model.{QUERY.removesuffix('weight')}lora_A.weight": torch.ones(2, 2)}
LAYER = QUERY.removesuffix(".weight")
INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 2271064456\n"


def torch_file(name: str, state: object) -> Edit:
    return lambda folder: torch.save(state, folder / name)


def link(name: str, target: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return edit


ADAPTERS = {
    "settings": write("adapter_config.json", ADAPTER),
    "damaged_settings": write("adapter_config.json", "garbage"),
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


@pytest.mark.parametrize("edit", ADAPTERS.values(), ids=ADAPTERS)
def test_an_adapter_is_refused_in_every_arrangement(checkpoint_copy: Path, edit: Edit) -> None:
    assert_refused(checkpoint_copy, edit, "holds a LoRA adapter.*merge it first.*merge_and_unload")


def test_an_adapter_of_another_kind_is_named(checkpoint_copy: Path) -> None:
    assert_refused(checkpoint_copy, write("adapter_config.json", {"peft_type": "IA3"}), r"holds an adapter \(IA3\)")


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


def instead_of_weights(name: str, words: str) -> tuple[Edit, str]:
    return move("model.safetensors", name), f"has no model.safetensors, but {name}; .*{words}"


def part_edited(edit: Edit) -> Edit:
    return steps(in_parts, edit)


HEADLESS = "a checkpoint without its trained heads gives random.*heads_from='BAAI/bge-m3'.*--outputs dense"
REFUSED = {
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
    "artifact": (move("model.safetensors", MANIFEST), "has no model.safetensors"),
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


@pytest.mark.parametrize(("edit", "words"), REFUSED.values(), ids=REFUSED)
def test_missing_files_are_named_with_advice(checkpoint_copy: Path, edit: Edit, words: str) -> None:
    assert_refused(checkpoint_copy, edit, words)


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
