"""A checkpoint's tensors as its files store them, read without running any code in them."""

import pickle
from pathlib import Path

import torch
from safetensors import safe_open

from bgem3.runtime.adapters import ADAPTER_TENSOR, MERGE
from bgem3.runtime.checkpoint_files import weight_files
from bgem3.runtime.hub import CheckpointError

Tensors = dict[str, torch.Tensor]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Names under which trainers store a state dict beside other things."""
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of models from TensorFlow


def read_weights(folder: Path) -> Tensors:
    """Read the backbone's files: all their tensors by name, in the dtypes that they are stored in.

    Raises
    ------
    CheckpointError
        If a file cannot be read, or holds the tensors of an adapter.
    """
    tensors: Tensors = {}
    for path in weight_files(folder):
        for name, tensor in read_tensors(path, f"the weights in {path}").items():
            for old, new in OLD_NAMES.items():
                name = name.replace(old, new)
            tensors[name] = tensor
    check_merged(tensors, str(folder))
    return tensors


def check_merged(tensors: Tensors, source: str) -> None:
    """Raise CheckpointError if tensors are an adapter's, or a layer's that an adapter wraps."""
    of_adapter = next(filter(ADAPTER_TENSOR.search, sorted(tensors)), None)
    if of_adapter is not None:
        raise CheckpointError(f"{source} holds a LoRA adapter among its weights (tensor {of_adapter}); {MERGE}")


def read_tensors(path: Path, what: str) -> Tensors:
    """Read a safetensors file, or one that torch.save wrote; ``what`` names its content in the message.

    A state dict may be an entry of a dict, as trainers store it.

    Raises
    ------
    CheckpointError
        If it is damaged, or holds something other than a dict of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" not in str(error):
            raise CheckpointError(_unreadable(what, "UnpicklingError: torch.save did not write it whole")) from error
        raise CheckpointError(
            f"cannot read {what}: it holds Python objects, which are never loaded, since they may run code; load it "
            "where it was written, and save the model's state_dict() alone"
        ) from error
    except Exception as error:  # for a damaged file, torch raises nearly every kind there is
        raise CheckpointError(_unreadable(what, f"{type(error).__name__}: {error}")) from error
    if isinstance(state, dict):
        state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), dict)), state)
    if not isinstance(state, dict):
        raise CheckpointError(_unreadable(what, f"found a {type(state).__name__}"))
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"cannot read {what}: {name!r} is a {type(value).__name__}, expected a state dict of tensors by name; "
                "save the model's state_dict() alone"
            )
    return state


def as_float32(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return a tensor in float32, in memory of its own.

    Raises
    ------
    CheckpointError
        If it is of another kind than floating-point numbers of at least 16 bits.
    """
    if tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"tensor {name} is stored as {tensor.dtype}, expected floating-point numbers of at least 16 bits; give the "
            "checkpoint as it was before it was quantized"
        )
    return tensor.to(torch.float32, copy=True)


def _unreadable(what: str, reason: str) -> str:
    return (
        f"cannot read {what} ({reason}): it is damaged, or holds something other than tensors; get the checkpoint again"
    )
