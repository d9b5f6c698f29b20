"""A checkpoint's tensors, read from its files without running any code in them."""

import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file

from bgem3.runtime.adapters import ADAPTER_TENSOR, MERGE
from bgem3.runtime.checkpoint_files import weight_files
from bgem3.runtime.hub import CheckpointError

Tensors = dict[str, torch.Tensor]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # trainers' keys of the state dict in a larger dict
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Names in models converted from TensorFlow, and the present ones."""


def read_weights(folder: Path) -> Tensors:
    """Read all tensors of the backbone's files, in their stored dtypes.

    Raises
    ------
    CheckpointError
        If a file cannot be read, or holds tensors of an adapter.
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
    """Raise CheckpointError if a tensor belongs to an adapter, or to a layer that an adapter wraps."""
    found = next(filter(ADAPTER_TENSOR.search, sorted(tensors)), None)
    if found is not None:
        raise CheckpointError(f"{source} holds a LoRA adapter among its weights (tensor {found}); {MERGE}")


def read_tensors(path: Path, what: str) -> Tensors:
    """Read a safetensors file, or a state dict that torch.save wrote, alone or as an entry of a dict.

    Error messages call the content ``what``.

    Raises
    ------
    CheckpointError
        If the file is damaged, or holds something other than a dict of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" not in str(error):
            raise _unreadable(what, "UnpicklingError: torch.save did not write it whole") from error
        raise CheckpointError(
            f"cannot read {what}: it holds Python objects, which are never loaded, since they may run code; load it "
            "where it was written, and save the model's state_dict() alone"
        ) from error
    except Exception as error:  # torch raises exceptions of nearly every kind for a damaged file
        raise _unreadable(what, f"{type(error).__name__}: {error}") from error
    if isinstance(state, dict):
        state = next((state[name] for name in WRAPPERS if isinstance(state.get(name), dict)), state)
    if not isinstance(state, dict):
        raise _unreadable(what, f"found a {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"cannot read {what}: {name!r} is a {type(value).__name__}, expected a state dict of tensors by name; "
                "save the model's state_dict() alone"
            )
    return state


def as_float32(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return a copy of a tensor in float32.

    Raises
    ------
    CheckpointError
        If the tensor does not store floating-point numbers of at least 16 bits.
    """
    if tensor.dtype not in FLOATS:
        raise CheckpointError(
            f"tensor {name} is stored as {tensor.dtype}, expected floating-point numbers of at least 16 bits; export "
            "the checkpoint from before it was quantized"
        )
    return tensor.to(torch.float32, copy=True)


def _unreadable(what: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"cannot read {what} ({reason}): it is damaged, or holds something other than tensors; get the checkpoint again"
    )
