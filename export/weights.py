"""The weights file that all graphs of one precision share (ONNX external data)."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray

from bgem3.export.checkpoint import BGEM3Torch

ALIGNMENT = 64  # bytes; lets ONNX Runtime map the tensors and use aligned vector loads

# From state dict names to the graphs' names; longer names before their parts.
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


class WeightsFile:
    """Writes tensors one after another into one file and remembers where each one lies.

    Use as a context manager around the writing; :meth:`initializer` works afterwards too.

    Parameters
    ----------
    path : the file to write; graphs beside it refer to it by its name
    dtype : float16 or float32, the stored precision of tensors written without one of their own
    """

    def __init__(self, path: Path, dtype: type[np.float16] | type[np.float32]) -> None:
        self.dtype = np.dtype(dtype)
        self._path = path
        self._file = path.open("wb")
        self._tensors: dict[str, onnx.TensorProto] = {}

    def write(self, name: str, values: NDArray[Any], dtype: DTypeLike | None = None) -> None:
        """Append one tensor, cast to ``dtype`` or else the file's stored precision.

        Raises
        ------
        OverflowError
            If a value is too large for the stored precision.
        """
        with np.errstate(over="ignore"):  # checked on the next line, with the tensor's name
            stored = np.ascontiguousarray(values, dtype=dtype or self.dtype)
        if not np.isfinite(stored).all():
            raise OverflowError(
                f"weight {name!r} reaches {np.abs(values).max():.4g}, beyond the largest {stored.dtype} number "
                f"({np.finfo(np.float16).max}); export with precisions=('fp32',)"
            )
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
        tensor = onnx.TensorProto(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(stored.dtype),
            dims=stored.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", self._path.name),
            ("offset", self._file.tell()),
            ("length", stored.nbytes),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self._file.write(stored.data)
        self._tensors[name] = tensor

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def initializer(self, name: str) -> onnx.TensorProto:
        """Return the initializer that refers to a written tensor."""
        return self._tensors[name]

    def __enter__(self) -> "WeightsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def encoder_tensors(model: BGEM3Torch) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors that the graphs use, by the graphs' names; linear weights as (in, out)."""
    for key, tensor in model.state_dict().items():
        name = key
        for found, replacement in GRAPH_NAMES.items():
            name = name.replace(found, replacement)
        values = tensor.numpy()
        if name == "embeddings.type":
            values = values[0]  # XLM-R has one type
        is_linear = name.endswith(".weight") and values.ndim == 2
        yield name, values.T if is_linear else values
