"""The tensors of a checkpoint: the names, forms and files that are read, and damaged ones that are refused."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.runtime import CheckpointError
from bgem3.runtime.checkpoint_files import checkpoint_hash
from tests.export.checkpoints import (
    HEADS,
    QUERY,
    Edit,
    as_bin,
    assert_refused,
    assert_same,
    head,
    in_parts,
    prefixed,
    settings,
    steps,
    store,
    stored,
    weights,
    without,
    write,
)

SPARSE, COLBERT = HEADS
BIAS = "encoder.layer.1.output.dense.bias"
AGAIN = "get the checkpoint again"


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


READ = {
    **{prefix: prefixed(prefix) for prefix in ("model.", "encoder.model.", "0.auto_model.c.")},
    "no_prefix_goes_first": weights(lambda t: t | {f"ema.{name}": torch.zeros_like(t[name]) for name in t}),
    "names_of_tensorflow": weights(
        lambda t: {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t[n] for n in t}
    ),
    "in_parts": in_parts,
    "bin": as_bin(),
    "variant_beside": lambda folder: store(folder, {"garbage": torch.ones(1)}, "model.fp16.safetensors"),
    "wrapped_by_a_trainer": steps(
        as_bin(lambda t: {"epoch": 3, "model_state_dict": t}), head(SPARSE, lambda t: {"state_dict": t})
    ),
    "wrapped_by_another_trainer": steps(
        as_bin(lambda t: {"model": t}), head(SPARSE, lambda t: {"module": t, "optimizer": {}})
    ),
    "heads_under_prefixes": steps(
        head(SPARSE, lambda t: {f"0.linear.{name}": t[name] for name in t}),
        head(COLBERT, lambda t: {f"colbert_linear.{name}": t[name] for name in t}),
    ),
    "heads_among_weights": heads_among_weights(""),
    "heads_among_prefixed_weights": heads_among_weights("module."),
    "heads_among_weights_in_bin": steps(heads_among_weights("model."), as_bin()),
}

REFUSED = {
    "weights_cut": (lambda folder: os.truncate(folder / "model.safetensors", 999), f"cannot read the weights.*{AGAIN}"),
    "weights_empty": (write("model.safetensors", ""), f"cannot read the weights in.*{AGAIN}"),
    "nan": (
        weights(lambda t: t | {BIAS: torch.full((96,), torch.nan)}),
        f"tensor backbone.{BIAS} holds NaN or infinity; {AGAIN}",
    ),
    "missing": (without(BIAS), f"1 tensors are missing, such as {BIAS}; {AGAIN}"),
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
    "no_tensors": (lambda folder: store(folder, {}), "hold no backbone; found the tensors none"),
    "int8": (
        weights(lambda t: t | {QUERY: t[QUERY].to(torch.int8)}),
        f"tensor {QUERY} is stored as torch.int8, expected floating-point.*before it was quantized",
    ),
    "head_width": (
        head(SPARSE, lambda t: {"weight": torch.ones(2, 96), "bias": torch.ones(2)}),
        r"weight \(2, 96\) and bias \(2,\), expected \(1, 96\) and \(1,\).*not of one checkpoint",
    ),
    "head_infinity": (
        head(COLBERT, lambda t: t | {"bias": torch.full((96,), torch.inf)}),
        f"tensor colbert_linear.bias holds NaN or infinity; {AGAIN}",
    ),
    "head_of_two_layers": (
        head(SPARSE, lambda t: {f"{layer}.{name}": t[name] for layer in "ab" for name in t}),
        r"sparse_linear\.pt.*found a\.bias, a\.weight, b\.bias, b\.weight, expected weight and bias",
    ),
    "head_list": (head(SPARSE, lambda t: [1, 2]), f"cannot read .*sparse_linear.pt as .*list.*{AGAIN}"),
    "head_with_a_number": (head(SPARSE, lambda t: t | {"epoch": 3}), "'epoch' is a int, expected a state dict"),
    "head_module": (
        head(SPARSE, lambda t: torch.nn.Linear(96, 1)),
        "holds Python objects, which are never loaded.*state_dict(?!.*weights_only)",
    ),
    "head_empty": (write(SPARSE, ""), f"cannot read .*sparse_linear.pt as the weight and bias.*{AGAIN}"),
    "head_cut": (lambda folder: os.truncate(folder / SPARSE, 500), f"cannot read .*sparse_linear.pt as.*{AGAIN}"),
    "head_pickle_of_no_text": (write(COLBERT, b"\x80\x02X\x03\0\0\0\xff\xff\xff."), f"UnicodeDecodeError.*{AGAIN}"),
}


@pytest.mark.parametrize("edit", READ.values(), ids=READ)
def test_weights_and_heads_are_read_in_every_form(
    checkpoint_copy: Path, loaded_checkpoint: Checkpoint, edit: Edit
) -> None:
    edit(checkpoint_copy)
    found = load_checkpoint(checkpoint_copy)
    assert_same(found, loaded_checkpoint)
    assert set(found.source["files"]) == {path.name for path in checkpoint_copy.iterdir()} - {
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model.fp16.safetensors",
    }
    assert len(checkpoint_hash(checkpoint_copy)) == 64


@pytest.mark.parametrize(("edit", "words"), REFUSED.values(), ids=REFUSED)
def test_damaged_tensors_are_refused_with_what_was_found(checkpoint_copy: Path, edit: Edit, words: str) -> None:
    assert_refused(checkpoint_copy, edit, words)


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


def test_code_in_a_checkpoint_is_never_run(
    checkpoint_copy: Path, loaded_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    write("trojan.py", f"import os\nos.mkdir({str(marker)!r})\nclass Trojan: pass\n")(checkpoint_copy)
    classes = {"AutoConfig": "trojan.Trojan", "AutoModel": "trojan.Trojan", "AutoTokenizer": ["trojan.Trojan"] * 2}
    for name in ("config.json", "tokenizer_config.json"):
        settings(name, auto_map=classes)(checkpoint_copy)
    assert_same(load_checkpoint(checkpoint_copy), loaded_checkpoint)
    assert not marker.exists()
