"""The backbone of a checkpoint: its settings, and its tensors under whatever prefix they are stored."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from bgem3.export.stored_tensors import Tensors, as_float32
from bgem3.runtime.hub import CheckpointError

EXPECTED_SETTINGS = {
    "model_type": "xlm-roberta",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "quantization_config": None,
}
OFF: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": (None,),
    "is_decoder": (None,),
    "quantization_config": ({},),
}
"""Other values that mean the same."""
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
LARGEST_SIZE = 1 << 24  # far beyond any encoder; larger ones, of a damaged file, would overflow or hang
MOST_LAYERS = 1000
ANCHORS = (
    "embeddings.word_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "encoder.layer.0.attention.self.query.weight",
)
"""Tensors of every backbone, by which the prefix of its names is found."""


def load_config(path: Path) -> XLMRobertaConfig:
    """Read the settings that decide what is computed; all others, such as ``attn_implementation``, have no effect.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or the settings are not those of an encoder like BGE-M3.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        found = vars(XLMRobertaConfig()) | {"model_type": None} | values
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path} as a model's settings ({error}); get the checkpoint again") from None
    for name, expected in EXPECTED_SETTINGS.items():
        if found.get(name, expected) not in (expected, *OFF.get(name, ())):
            raise CheckpointError(
                f"{path}: {name} is {found[name]!r}, expected {expected!r}; "
                "only XLM-RoBERTa encoders, as BGE-M3 is one, can be exported"
            )
    for name in SIZES:
        most = MOST_LAYERS if name == "num_hidden_layers" else LARGEST_SIZE
        if type(found[name]) is not int or not 1 <= found[name] <= most:
            raise CheckpointError(
                f"{path}: {name} is {found[name]!r}, expected a whole number of at least 1, and at most {most}; get "
                "the checkpoint again"
            )
    _check_numbers(path, found)
    names = (*SIZES, "hidden_act", "pad_token_id")
    return XLMRobertaConfig(
        **{name: found[name] for name in names} | {"layer_norm_eps": float(found["layer_norm_eps"])}
    )


def load_backbone(folder: Path, tensors: Tensors, config: XLMRobertaConfig) -> XLMRobertaModel:
    """Make the backbone in float32 of a checkpoint's tensors.

    Raises
    ------
    CheckpointError
        If a tensor is missing, or of another shape than the settings ask for, or of a layer that they do not have.
    """
    with torch.device("meta"):  # no memory, and no random weights that the checkpoint's would replace
        model = XLMRobertaModel(config, add_pooling_layer=False)
    expected = model.state_dict()
    prefix = _find_prefix(folder, tensors, expected)
    for name, tensor in expected.items():
        if tensors[prefix + name].shape != tensor.shape:
            raise CheckpointError(
                f"{folder}: tensor {prefix + name} has another shape than {tuple(tensor.shape)}, as config.json "
                f"asks for: {tuple(tensors[prefix + name].shape)}; the weights and config.json are not of one "
                "checkpoint"
            )
    unused_layers = [name for name in tensors if name.startswith(f"{prefix}encoder.layer.")]
    unused_layers = [name for name in unused_layers if name.removeprefix(prefix) not in expected]
    if unused_layers:
        raise CheckpointError(
            f"{folder}: {len(unused_layers)} tensors are of layers that config.json does not have, such as "
            f"{min(unused_layers)}; the weights and config.json are not of one checkpoint"
        )
    own = {name: as_float32(tensors[prefix + name], prefix + name) for name in expected}
    model.load_state_dict(own, assign=True)
    positions = torch.arange(config.max_position_embeddings)[None]  # two buffers that checkpoints do not store
    model.embeddings.register_buffer("position_ids", positions, persistent=False)
    model.embeddings.register_buffer("token_type_ids", torch.zeros_like(positions), persistent=False)
    return model


def _check_numbers(path: Path, found: dict[str, Any]) -> None:
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
    """Return what stands before each of the backbone's names, such as "model."; "" if they stand alone."""
    prefixes = {
        name.removesuffix(anchor) for name in tensors for anchor in ANCHORS if f".{name}".endswith(f".{anchor}")
    }
    n_found = {prefix: sum(prefix + name in tensors for name in expected) for prefix in sorted(prefixes)}
    complete = [prefix for prefix, n in n_found.items() if n == len(expected)]
    if "" in complete or len(complete) == 1:
        return "" if "" in complete else complete[0]
    if complete:
        raise CheckpointError(
            f"{folder}: the weights hold {len(complete)} models, under the prefixes {', '.join(complete)}; "
            "store one alone"
        )
    if not n_found:
        raise CheckpointError(
            f"{folder}: the weights hold no backbone; found the tensors {', '.join(sorted(tensors)[:3]) or 'none'}, "
            f"expected names such as {ANCHORS[0]}, behind one common prefix or none"
        )
    prefix = max(n_found, key=lambda prefix: n_found[prefix])
    missing = [prefix + name for name in expected if prefix + name not in tensors]
    raise CheckpointError(
        f"{folder}: {len(missing)} tensors are missing, such as {min(missing)}; get the checkpoint again, weights and "
        "config.json together"
    )
