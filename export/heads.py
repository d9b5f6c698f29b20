"""The two trained heads of a checkpoint: linear layers on the last hidden states."""

from pathlib import Path

import torch

from bgem3.export.stored_tensors import Tensors, as_float32, check_merged, read_tensors
from bgem3.runtime.hub import CheckpointError


def load_head(path: Path, n_inputs: int, weights: Tensors, n_outputs: int | None = None) -> torch.nn.Linear:
    """Load a head from its file, or from the backbone's tensors if there is no such file.

    The layer's name among the backbone's tensors, ``weights``, is the file's stem. In the file, one layer's names may
    have any prefix, such as ``linear.``. ``n_outputs`` None accepts any output width.

    Raises
    ------
    CheckpointError
        If the head cannot be read, is not one linear layer with a bias, or has other widths.
    """
    if path.is_file():
        state = read_tensors(path, f"{path} as the weight and bias of a linear layer")
    else:
        state = {name: tensor for name, tensor in weights.items() if f".{_layer(name)}".endswith(f".{path.stem}")}
    check_merged(state, str(path))
    weight, bias = _weight_and_bias(path, state)
    n_outputs = n_outputs or max(bias.numel(), 1)
    if weight.shape != (n_outputs, n_inputs) or bias.shape != (n_outputs,):
        raise CheckpointError(
            f"{path} has weight {tuple(weight.shape)} and bias {tuple(bias.shape)}, "
            f"expected {(n_outputs, n_inputs)} and {(n_outputs,)}; use the head and config.json of one checkpoint"
        )
    head = torch.nn.Linear(n_inputs, n_outputs)
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


def _layer(name: str) -> str:
    """Return the layer in a tensor's name: "a.b" for "a.b.weight", "" for "weight"."""
    return name.rpartition(".")[0]


def _weight_and_bias(path: Path, state: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    layers = {_layer(name) for name in state}
    prefix = "" if "weight" in state or not layers else f"{min(layers)}."
    names = [f"{prefix}weight", f"{prefix}bias"]
    if (prefix and len(layers) != 1) or not set(names) <= state.keys():
        raise CheckpointError(
            f"cannot read {path} as the weight and bias of a linear layer: found {', '.join(sorted(state)) or 'none'}, "
            "expected weight and bias; save the layer's state_dict() there, or get the checkpoint again"
        )
    weight, bias = (as_float32(state[name], f"{name} of {path}") for name in names)
    return weight, bias
