"""The two trained heads of a checkpoint, linear layers on the last states."""

from pathlib import Path

import torch

from bgem3.export.stored_tensors import Tensors, as_float32, check_merged, read_tensors
from bgem3.runtime.hub import CheckpointError


def load_head(path: Path, n_inputs: int, weights: Tensors, n_outputs: int | None = None) -> torch.nn.Linear:
    """Load a head from its file, or, where there is none, from the layer of its name among the backbone's tensors.

    Names before ``weight`` and ``bias``, as ``linear.weight`` has one, are ignored where there is one layer only.

    Parameters
    ----------
    path : the head's file
    n_inputs, n_outputs : the widths that it must have; None for any number of outputs
    weights : the backbone's tensors by name

    Raises
    ------
    CheckpointError
        If it cannot be read, is of another form than one linear layer with a bias, or has other widths.
    """
    if path.is_file():
        state = read_tensors(path, f"{path} as the weight and bias of a linear layer")
    else:
        state = _of_head(weights, path.stem)
    check_merged(state, str(path))
    weight, bias = _linear(path, state)
    n_outputs = n_outputs or max(bias.numel(), 1)
    if weight.shape != (n_outputs, n_inputs) or bias.shape != (n_outputs,):
        raise CheckpointError(
            f"{path} has weight {tuple(weight.shape)} and bias {tuple(bias.shape)}, "
            f"expected {(n_outputs, n_inputs)} and {(n_outputs,)}; this head and config.json are not of one checkpoint"
        )
    head = torch.nn.Linear(n_inputs, n_outputs)
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


def _of_head(weights: Tensors, name: str) -> Tensors:
    """Return the tensors of the layer of this name."""
    return {key: tensor for key, tensor in weights.items() if f".{key}".rpartition(".")[0].endswith(f".{name}")}


def _linear(path: Path, state: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight and bias of a state dict that holds one linear layer, whatever its name."""
    layers = {f".{name}".rpartition(".")[0] for name in state}
    prefix = "" if "weight" in state else min(layers, default="").removeprefix(".") + "."
    names = [f"{prefix}weight", f"{prefix}bias"]
    if (prefix and len(layers) != 1) or not set(names) <= state.keys():
        raise CheckpointError(
            f"cannot read {path} as the weight and bias of a linear layer: found {', '.join(sorted(state)) or 'none'}, "
            "expected weight and bias; save the layer's state_dict() there, or get the checkpoint again"
        )
    weight, bias = (as_float32(state[name], f"{name} of {path}") for name in names)
    return weight, bias
