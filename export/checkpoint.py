"""A BGE-M3 checkpoint, from the hub or a folder, loaded and checked."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel
from transformers.utils import logging

from bgem3.runtime.artifact import ModelSpec, sha256_of
from bgem3.runtime.source import CheckpointError, checkpoint_files, find_checkpoint

EXPECTED_SETTINGS = {
    "model_type": "xlm-roberta",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "quantization_config": None,
}
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)


class BGEM3Torch(torch.nn.Module):
    """The checkpoint as PyTorch modules in float32: the source of the weights and of the reference outputs."""

    def __init__(
        self, backbone: XLMRobertaModel, sparse_linear: torch.nn.Linear, colbert_linear: torch.nn.Linear
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sparse_linear = sparse_linear
        self.colbert_linear = colbert_linear


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes
    ----------
    folder : where its files are
    model : the float32 modules, in evaluation mode
    tokenizer : the transformers tokenizer over the checkpoint's tokenizer.json
    spec : dimensions and special ids
    source : what it was loaded from: id, revision, and the SHA-256 of each file used
    """

    folder: Path
    model: BGEM3Torch
    tokenizer: Any
    spec: ModelSpec
    source: dict[str, Any]


def load_checkpoint(source: str | Path, cache_dir: str | Path | None = None) -> Checkpoint:
    """Load a checkpoint in float32 and check it whole.

    Parameters
    ----------
    source : a hub id such as "BAAI/bge-m3", or a folder with config.json, tokenizer.json, the backbone
        (safetensors, or .bin read with ``weights_only=True``), sparse_linear.pt and colbert_linear.pt
    cache_dir : the hub's download cache, None for its default

    Raises
    ------
    CheckpointError
        If a file is missing or unreadable, a tensor is missing, of the wrong shape or not finite, or the
        model is not an XLM-RoBERTa encoder with BGE-M3's settings.
    """
    folder = find_checkpoint(source, cache_dir)
    config = _load_config(folder / "config.json")
    with _quiet_transformers():
        tokenizer = _load_tokenizer(folder)
        special_ids = _special_ids(folder, tokenizer, config)
        backbone = _load_backbone(folder, config)
    sparse_linear = _load_head(folder / "sparse_linear.pt", config.hidden_size, n_outputs=1)
    colbert_linear = _load_head(folder / "colbert_linear.pt", config.hidden_size)
    model = BGEM3Torch(backbone, sparse_linear, colbert_linear).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{folder}: tensor {name} holds NaN or infinity; get the checkpoint again")
    spec = ModelSpec(
        hidden_size=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        multivector_size=colbert_linear.out_features,
        max_length=config.max_position_embeddings - config.pad_token_id - 1,
        layer_norm_eps=config.layer_norm_eps,
        **special_ids,
    )
    return Checkpoint(folder=folder, model=model, tokenizer=tokenizer, spec=spec, source=_source(source, folder))


def _load_config(path: Path) -> XLMRobertaConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        config = XLMRobertaConfig.from_dict(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read {path} as a model's settings ({error}); get the checkpoint again") from None
    found = vars(config) | {"model_type": values.get("model_type")}
    for name, expected in EXPECTED_SETTINGS.items():
        if found.get(name, expected) != expected:
            raise CheckpointError(
                f"{path}: {name} is {found[name]!r}, expected {expected!r}; "
                "only XLM-RoBERTa encoders, as BGE-M3 is one, can be exported"
            )
    for name in SIZES:
        if type(found[name]) is not int or found[name] < 1:
            raise CheckpointError(
                f"{path}: {name} is {found[name]!r}, expected a whole number of at least 1; get the checkpoint again"
            )
    return config


def _load_tokenizer(folder: Path) -> Any:
    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
        raise CheckpointError(f"cannot read the tokenizer in {folder} ({error}); get the checkpoint again") from error


def _load_backbone(folder: Path, config: XLMRobertaConfig) -> XLMRobertaModel:
    try:
        model, report = XLMRobertaModel.from_pretrained(
            folder,
            config=config,
            add_pooling_layer=False,
            dtype=torch.float32,
            weights_only=True,
            ignore_mismatched_sizes=True,  # reported below, with the name and shape
            output_loading_info=True,
        )
    except (OSError, SafetensorError, pickle.UnpicklingError, ValueError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"cannot read the weights in {folder} ({error}); get the checkpoint again") from error
    if report["mismatched_keys"]:
        name = min(report["mismatched_keys"])
        raise CheckpointError(
            f"{folder}: tensor {name} has another shape than {tuple(model.get_parameter(name).shape)}, as config.json "
            "asks for; the weights and config.json are not of one checkpoint"
        )
    if report["missing_keys"]:
        raise CheckpointError(
            f"{folder}: {len(report['missing_keys'])} tensors are missing, such as {min(report['missing_keys'])}; "
            "get the checkpoint again"
        )
    unused_layers = [name for name in report["unexpected_keys"] if "encoder.layer." in name]
    if unused_layers:
        raise CheckpointError(
            f"{folder}: {len(unused_layers)} tensors are of layers that config.json does not have, such as "
            f"{min(unused_layers)}; the weights and config.json are not of one checkpoint"
        )
    backbone: XLMRobertaModel = model
    return backbone


def _load_head(path: Path, n_inputs: int, n_outputs: int | None = None) -> torch.nn.Linear:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        weight, bias = state["weight"].float(), state["bias"].float()
    except Exception as error:  # for a damaged file, torch raises nearly every kind there is
        raise CheckpointError(
            f"cannot read {path} as the weight and bias of a linear layer ({type(error).__name__}): it is damaged, or "
            "holds something other than tensors; get the checkpoint again"
        ) from error
    n_outputs = n_outputs or max(bias.numel(), 1)
    if weight.shape != (n_outputs, n_inputs) or bias.shape != (n_outputs,):
        raise CheckpointError(
            f"{path} has weight {tuple(weight.shape)} and bias {tuple(bias.shape)}, "
            f"expected {(n_outputs, n_inputs)} and {(n_outputs,)}; this head and config.json are not of one checkpoint"
        )
    head = torch.nn.Linear(n_inputs, n_outputs)
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence advice that does not apply: on the unused pooler, on text lengths, on other models' tokenizers."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _special_ids(folder: Path, tokenizer: Any, config: Any) -> dict[str, int]:
    ids = {
        f"{role}_id": getattr(tokenizer, f"{name}_token_id")
        for role, name in (("cls", "cls"), ("pad", "pad"), ("eos", "eos"), ("unk", "unk"))
    }
    if None in ids.values():
        raise CheckpointError(f"{folder}: the tokenizer lacks a special token (found {ids}); get the checkpoint again")
    if ids["pad_id"] != config.pad_token_id:
        raise CheckpointError(
            f"{folder}: the tokenizer's pad id is {ids['pad_id']}, config.json's is {config.pad_token_id}; "
            "positions depend on it, so the two must agree"
        )
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if raw.encode("").ids != [ids["cls_id"], ids["eos_id"]]:
        raise CheckpointError(f"{folder / 'tokenizer.json'} does not put CLS before and EOS after a text")
    if raw.get_vocab_size() > config.vocab_size:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has {raw.get_vocab_size()} tokens, the model embeds {config.vocab_size}"
        )
    return ids


def _source(source: str | Path, folder: Path) -> dict[str, Any]:
    is_hub_id = not Path(source).is_dir()
    return {
        "id": str(source) if is_hub_id else folder.resolve().name,
        "revision": folder.name if is_hub_id else None,  # a hub snapshot's folder is named after its commit
        "files": {path.name: sha256_of(path) for path in checkpoint_files(folder)},
    }
