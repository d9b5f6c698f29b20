"""The weights file that all graphs of one precision share (ONNX external data)."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import DTypeLike, NDArray

from bgem3.export.checkpoint import BGEM3Torch

ALIGNMENT = 64  # bytes; lets ONNX Runtime map the tensors and use aligned vector loads
GRAPH_NAMES = {
    "backbone.embeddings.word_embeddings.weight": "embeddings.word",
    "backbone.embeddings.position_embeddings.weight": "embeddings.position",
    "backbone.embeddings.token_type_embeddings.weight": "embeddings.type",
    "backbone.embeddings.LayerNorm": "embeddings.norm",
    "backbone.encoder.": "",
    "attention.self.": "",
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
    "output.LayerNorm": "output_norm",
    "sparse_linear": "sparse",
    "colbert_linear": "multivector",
}
"""Replacements that turn the checkpoint's names into the graphs' names, applied in this order."""


Weights = dict[str, onnx.TensorProto]
"""The initializers that refer to written tensors, by name."""


def write_weights(path: Path, tensors: Iterable[tuple[str, NDArray[Any], DTypeLike]]) -> Weights:
    """Write named tensors into one file, each cast to its dtype; graphs beside the file refer to it by its name.

    Raises
    ------
    OverflowError
        If a value is too large for the dtype.
    """
    weights: Weights = {}
    with path.open("wb") as file:
        for name, values, dtype in tensors:
            stored = _cast(name, values, dtype)
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            weights[name] = onnx.TensorProto(
                name=name,
                data_type=onnx.helper.np_dtype_to_tensor_dtype(stored.dtype),
                dims=stored.shape,
                data_location=onnx.TensorProto.EXTERNAL,
            )
            for key, value in (("location", path.name), ("offset", file.tell()), ("length", stored.nbytes)):
                weights[name].external_data.add(key=key, value=str(value))
            file.write(stored.data)
    return weights


def _cast(name: str, values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # the next line checks it, and names the tensor
        stored = np.ascontiguousarray(values, dtype=dtype)
    if not np.isfinite(stored).all():
        raise OverflowError(
            f"weight {name!r} reaches {np.abs(values).max():.4g}, beyond the largest {stored.dtype} number "
            f"({np.finfo(np.float16).max}); export with precisions=('fp32',)"
        )
    return stored


def graph_name(name: str) -> str:
    """Return the graphs' name of a parameter or layer of `BGEM3Torch`."""
    for found, replacement in GRAPH_NAMES.items():
        name = name.replace(found, replacement)
    return name


def linear_layers(model: BGEM3Torch) -> dict[str, torch.nn.Linear]:
    """Return the model's linear layers by the graphs' names, such as ``layer.0.query``."""
    return {graph_name(name): module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def encoder_tensors(model: BGEM3Torch) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each tensor that the graphs use with the graphs' name; linear weights are (in, out)."""
    for key, tensor in model.state_dict().items():
        name, values = graph_name(key), tensor.numpy()
        if name == "embeddings.type":
            values = values[0]  # XLM-R has one type
        is_linear = name.endswith(".weight") and values.ndim == 2
        yield name, values.T if is_linear else values
