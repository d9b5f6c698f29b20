"""Damaged, incomplete and hostile checkpoints, which are refused with what is wrong."""

import os
import pickle
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bgem3.export import export_model
from bgem3.export.checkpoint import load_checkpoint
from bgem3.runtime import CheckpointError
from bgem3.runtime.artifact import MANIFEST
from bgem3.runtime.checkpoint_files import checkpoint_hash, find_checkpoint
from tests.export.checkpoints import (
    HEADS,
    QUERY,
    TOKENIZER,
    Edit,
    as_bin,
    edited,
    head,
    in_parts,
    move,
    prefixed,
    remove,
    settings,
    steps,
    store,
    unname,
    weights,
    write,
)

SPARSE = HEADS[0]
BIAS = "encoder.layer.1.output.dense.bias"
AGAIN = "get the checkpoint again"
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "BAAI/bge-m3"}
LORA = {f"base_model.model.{QUERY.removesuffix('weight')}lora_A.weight": torch.ones(2, 2)}
INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 2271064456\n"


def dead_link(name: str) -> Edit:
    """Return a function that turns a file into a link to where git-annex keeps it."""
    return steps(remove(name), lambda folder: (folder / name).symlink_to(".git/annex/a"))


ADAPTERS = {
    "settings": write("adapter_config.json", ADAPTER),
    "without_a_models_settings": steps(write("adapter_config.json", ADAPTER), remove("config.json")),
    "under_another_name": lambda folder: store(folder, LORA, "deep/er/lora_weights.safetensors"),
    "torch_file_under_another_name": lambda folder: torch.save(LORA, folder / "lora.pt"),
    "in_a_head": head(SPARSE, lambda t: {f"base_layer.{name}": t[name] for name in t}),
    "among_the_weights": weights(lambda t: t | LORA),
}
SETTINGS = {
    "bert": (settings(model_type="bert"), "model_type is 'bert', expected 'xlm-roberta'; only XLM-RoBERTa encoders"),
    "relative": (settings(position_embedding_type="relative_key"), "'relative_key', expected 'absolute'"),
    "seven_heads": (settings(num_attention_heads=7), "not a multiple of the number of attention heads"),
    "few_tokens": (settings(vocab_size=10), "has 1691 tokens, more than config.json's vocab_size 10"),
    "few_positions": (settings(max_position_embeddings=64), r"position_embeddings.*\(130, 96\).*asks for \(64, 96\)"),
    "layer_missing": (settings(num_hidden_layers=4), r"16 tensors are missing, such as encoder\.layer\.3"),
    "layer_unused": (settings(num_hidden_layers=2), r"16 tensors belong to layers.*such as encoder\.layer\.2"),
    "other_pad_id": (settings(pad_token_id=0), "pad id is 1, config.json's is 0; .* must agree"),
    "text": (write("config.json", "garbage"), "cannot read .*config.json.*get the checkpoint again"),
}
TOKENIZERS = {
    "swapped": (
        edited(TOKENIZER, lambda v: v["post_processor"]["single"].reverse()),
        "does not put CLS before and EOS after a text.*'</s>', '<s>'",
    ),
    "no_unknown": (
        steps(unname("<unk>"), edited(TOKENIZER, lambda v: v["model"].update(unk_id=None))),
        "has no token for unknown words",
    ),
    "text": (write("tokenizer.json", "garbage"), "cannot read the tokenizer in.*get the checkpoint again"),
}
TENSORS = {
    "weights_cut": (lambda folder: os.truncate(folder / "model.safetensors", 999), f"cannot read the weights.*{AGAIN}"),
    "nan": (weights(lambda t: t | {BIAS: t[BIAS] * torch.nan}), f"backbone.{BIAS} holds NaN or infinity; {AGAIN}"),
    "missing": (
        steps(prefixed("model."), weights(lambda t: {name: t[name] for name in t if name != f"model.{QUERY}"})),
        f"1 tensors are missing, such as model.{QUERY}",
    ),
    "shape": (weights(lambda t: t | {BIAS: torch.ones(5)}), rf"{BIAS} has the shape \(5,\), but config.*\(96,\)"),
    "two_models": (prefixed("student.", "teacher."), r"hold 2 models.*student\., teacher\.; store only one"),
    "another_model": (
        weights(lambda t: {"a": t[BIAS]}),
        "no backbone; found the tensors a, expected names such as",
    ),
    "int8": (weights(lambda t: t | {QUERY: t[QUERY].to(torch.int8)}), "as torch.int8, expected floating-point.*before"),
    "head_width": (head(SPARSE, lambda t: t | {"bias": torch.ones(2)}), r"bias \(2,\), expected \(1, 96\) and \(1,\)"),
    "head_without_bias": (head(SPARSE, lambda t: {"weight": t["weight"]}), "found weight, expected weight and bias"),
    "head_with_a_number": (head(SPARSE, lambda t: t | {"epoch": 3}), "'epoch' is a int, expected a state dict"),
    "head_module": (head(SPARSE, lambda t: torch.nn.Linear(96, 1)), "Python objects, which are never.*state_dict"),
    "head_cut": (lambda folder: os.truncate(folder / SPARSE, 500), f"cannot read .*sparse_linear.pt as.*{AGAIN}"),
}
HEADLESS = "a checkpoint without its trained heads gives random.*heads_from='BAAI/bge-m3'.*--outputs dense"
FILES = {
    "no_heads": (remove(*HEADS), f"has no sparse_linear.pt and no colbert_linear.pt; {HEADLESS}"),
    "no_tokenizer": (remove("tokenizer.json"), "has no tokenizer.json.*whole BGE-M3"),
    "lfs_pointer": (write("model.safetensors", POINTER), "model.* is a git-lfs pointer.*run `git lfs pull` in"),
    "lfs_pointer_of_a_head": (write(SPARSE, POINTER), "sparse_linear.pt is a git-lfs pointer"),
    "annex": (write("model.safetensors", "/annex/objects/MD5E-s9--1\n"), "git-annex pointer.*git annex get"),
    "another_adapter": (write("adapter_config.json", {"peft_type": "IA3"}), r"holds an adapter \(IA3\).*merge it fi"),
    "artifact": (steps(write(MANIFEST, {"format_version": 1}), remove("model.safetensors")), "is an exported artifact"),
    "dead_link": (dead_link("tokenizer.json"), "no tokenizer.json: .*is a link to .git/annex.*is not"),
    "dead_link_of_a_head": (dead_link(SPARSE), "no sparse_linear.pt: .*is a link to .git/annex.*is not"),
    "part_missing": (steps(in_parts, remove("model-00002-of-00002.safetensors")), "has no model-00002.*weights' index"),
    "index_without_map": (steps(in_parts, write(INDEX, {})), r"cannot read .*index\.json as the list"),
    "index_out": (steps(in_parts, write(INDEX, {"weight_map": {"a": "../x.bin"}})), "names files out of its folder"),
    "index_missing": (steps(in_parts, remove(INDEX)), "no model.safetensors, but model-00001-of-00002.safetensors, "),
    "fp16_variant": (
        move("model.safetensors", "model.fp16.safetensors"),
        "rename model.fp16.safetensors to model.safe",
    ),
    "gguf": (move("model.safetensors", "q8.gguf"), "but q8.gguf; .*only model.safetensors and pytorch_model.bin"),
    "head_of_another_form": (move(SPARSE, "sparse_linear.bin"), r"no sparse_linear\.pt, but sparse_linear\.bin; store"),
    "sentencepiece": (move("tokenizer.json", "sentencepiece.bpe.model"), r"but sentencepiece.*AutoTokenizer\.from_pre"),
}


CASES = [pytest.param(*case, id=id) for cases in (SETTINGS, TOKENIZERS, TENSORS, FILES) for id, case in cases.items()]
CASES += [pytest.param(edit, "a LoRA adapter.*merge_and_unload", id=f"adapter_{id}") for id, edit in ADAPTERS.items()]


@pytest.mark.parametrize(("edit", "words"), CASES)
def test_a_damaged_checkpoint_is_refused_with_what_is_wrong(checkpoint_copy: Path, edit: Edit, words: str) -> None:
    edit(checkpoint_copy)
    with pytest.raises(CheckpointError, match=f"(?s){words}") as caught:
        load_checkpoint(checkpoint_copy)
    assert caught.type is CheckpointError


def test_a_damaged_file_beside_the_weights_is_no_adapter(checkpoint_copy: Path) -> None:
    path = checkpoint_copy / "optimizer.pt"
    torch.save({"state": torch.ones(2)}, path)
    content = path.read_bytes()
    for place in range(0, len(content), 29):
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


@pytest.mark.parametrize(("name", "is_old_format"), [(SPARSE, False), ("pytorch_model.bin", True)])
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


def test_a_checkpoints_own_code_is_never_run(checkpoint_copy: Path, tmp_path: Path) -> None:
    code, marker = checkpoint_copy / "code.py", tmp_path / "marker"
    code.write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Own: pass\n", encoding="utf-8")
    settings(auto_map={"AutoConfig": "code.Own", "AutoModel": "code.Own"})(checkpoint_copy)
    own_tokenizer = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    settings("tokenizer_config.json", **own_tokenizer)(checkpoint_copy)
    words = "cannot read the tokenizer in.*custom code.*never run.*get the checkpoint again"
    with pytest.raises(CheckpointError, match=words):
        export_model(checkpoint_copy, tmp_path / "artifact")
    assert not marker.exists()
    runpy.run_path(str(code))
    assert marker.is_dir(), "the code does nothing"


def test_a_path_beside_the_checkpoint_names_its_folder(checkpoint_copy: Path) -> None:
    write("1_Pooling/config.json", {})(checkpoint_copy.parent)  # sentence-transformers': no model
    with pytest.raises(CheckpointError, match=rf"has no config\.json.*but {checkpoint_copy} has one; is that the"):
        load_checkpoint(checkpoint_copy.parent)
    with pytest.raises(CheckpointError, match=f"is a file; give the checkpoint's folder, {checkpoint_copy}"):
        load_checkpoint(checkpoint_copy / "config.json")
