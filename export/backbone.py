"""The backbone of a checkpoint: its settings, and its tensors under any prefix."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from bgem3.export.stored_tensors import Tensors, as_float32
from bgem3.runtime.hub import CheckpointError

ACCEPTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("xlm-roberta",),
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "quantization_config": (None, {}),
}
"""Settings that change what an encoder computes, with the values that compute what BGE-M3 does."""
WIDTHS = ("hidden_size", "num_attention_heads", "intermediate_size")
TABLE_SIZES = ("vocab_size", "max_position_embeddings", "type_vocab_size")
LARGEST_SIZES = dict.fromkeys((*WIDTHS, *TABLE_SIZES), 1 << 24) | {"num_hidden_layers": 1000}
"""Bounds that no encoder comes near; a damaged file's larger size would overflow or hang."""
ANCHORS = (
    "embeddings.word_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "encoder.layer.0.attention.self.query.weight",
)
"""Tensors that every backbone has; they show the prefix of its names."""


def load_config(path: Path) -> XLMRobertaConfig:
    """Read the settings that decide what is computed, and ignore all others.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or the settings do not describe an encoder like BGE-M3.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        found = vars(XLMRobertaConfig()) | {"model_type": None} | values
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path} as a model's settings ({error}); get the checkpoint again") from None
    for name, accepted in ACCEPTED.items():
        if found.get(name, accepted[0]) not in accepted:
            raise CheckpointError(
                f"{path}: {name} is {found[name]!r}, expected {accepted[0]!r}; "
                "only XLM-RoBERTa encoders like BGE-M3 can be exported"
            )
    _check_numbers(path, found)
    names = (*LARGEST_SIZES, "hidden_act", "pad_token_id")
    return XLMRobertaConfig(
        **{name: found[name] for name in names} | {"layer_norm_eps": float(found["layer_norm_eps"])}
    )


def load_backbone(folder: Path, tensors: Tensors, config: XLMRobertaConfig) -> XLMRobertaModel:
    """Build the backbone in float32 from the checkpoint's tensors.

    Raises
    ------
    CheckpointError
        If a tensor is missing, has another shape than the settings give, or belongs to a layer that they lack.
    """
    with torch.device("meta"):  # allocates no memory for weights that the checkpoint's will replace
        model = XLMRobertaModel(config, add_pooling_layer=False)
    expected = model.state_dict()
    prefix = _find_prefix(folder, tensors, expected)
    for name, tensor in expected.items():
        if tensors[prefix + name].shape != tensor.shape:
            raise CheckpointError(
                f"{folder}: tensor {prefix + name} has the shape {tuple(tensors[prefix + name].shape)}, but "
                f"config.json asks for {tuple(tensor.shape)}; use the weights and config.json of one checkpoint"
            )
    layer_names = [name for name in tensors if name.startswith(f"{prefix}encoder.layer.")]
    unused = [name for name in layer_names if name.removeprefix(prefix) not in expected]
    if unused:
        raise CheckpointError(
            f"{folder}: {len(unused)} tensors belong to layers that config.json does not have, such as "
            f"{min(unused)}; use the weights and config.json of one checkpoint"
        )
    own = {name: as_float32(tensors[prefix + name], prefix + name) for name in expected}
    model.load_state_dict(own, assign=True)
    positions = torch.arange(config.max_position_embeddings)[None]  # two buffers that no checkpoint stores
    model.embeddings.register_buffer("position_ids", positions, persistent=False)
    model.embeddings.register_buffer("token_type_ids", torch.zeros_like(positions), persistent=False)
    return model


def _check_numbers(path: Path, found: dict[str, Any]) -> None:
    """Raise CheckpointError if a size is out of range or the sizes do not fit together."""
    for name, largest in LARGEST_SIZES.items():
        if type(found[name]) is not int or not 1 <= found[name] <= largest:
            raise CheckpointError(
                f"{path}: {name} is {found[name]!r}, expected a whole number from 1 to {largest}; "
                "get the checkpoint again"
            )
    if found["hidden_size"] % found["num_attention_heads"]:
        raise CheckpointError(
            f"{path}: hidden_size {found['hidden_size']} is not a multiple of the number of attention heads, "
            f"{found['num_attention_heads']}; get the checkpoint again"
        )
    epsilon = found["layer_norm_eps"]
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 < epsilon < 1:
        raise CheckpointError(
            f"{path}: layer_norm_eps is {epsilon!r}, expected a number between 0 and 1; get the checkpoint again"
        )


def _find_prefix(folder: Path, tensors: Tensors, expected: Tensors) -> str:
    """Return the prefix of the backbone's names, such as "model.", or "" if they have none."""
    prefixes = {
        name.removesuffix(anchor) for name in tensors for anchor in ANCHORS if f".{name}".endswith(f".{anchor}")
    }
    n_found = {prefix: sum(prefix + name in tensors for name in expected) for prefix in sorted(prefixes)}
    complete = [prefix for prefix, n in n_found.items() if n == len(expected)]
    if "" in complete or len(complete) == 1:
        return complete[0]  # "" sorts first
    if complete:
        raise CheckpointError(
            f"{folder}: the weights hold {len(complete)} models, under the prefixes {', '.join(complete)}; "
            "store only one of them"
        )
    if not n_found:
        raise CheckpointError(
            f"{folder}: the weights hold no backbone; found the tensors {', '.join(sorted(tensors)[:3]) or 'none'}, "
            f"expected names such as {ANCHORS[0]}, under one common prefix or none"
        )
    prefix = max(n_found, key=lambda prefix: n_found[prefix])
    missing = [prefix + name for name in expected if prefix + name not in tensors]
    raise CheckpointError(
        f"{folder}: {len(missing)} tensors are missing, such as {min(missing)}; get the checkpoint again, weights and "
        "config.json together"
    )
