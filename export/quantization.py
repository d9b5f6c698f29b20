"""The int8 arithmetic: groups of projections, int8 weights and uint8 rows.

A group is the projections that share an input. A weight has one scale for each output channel and no zero point. Rows
are quantized at run time: in ONNX Runtime's operators with one scale for each token, in our own operators with a scale
and a zero point for each block of a token's channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.manifest import ModelSpec

Array = NDArray[np.float32]

LARGEST = 127  # magnitude of an int8 weight; leaving out -128 keeps the range symmetric
ZERO_POINT = 128  # the middle of uint8
GELU_ZERO_POINT = 64  # GELU's outputs lie mostly above 0
SMALLEST_SCALE = 1e-12  # keeps the scale of a row of zeros above 0
INPUTS_PER_BLOCK = 128  # inputs of a row that share a scale in our own operators (runtime/kernels/kernels.h)
PARTS = {
    "qkv": ("query", "key", "value"),
    "attention_output": ("attention_output",),
    "intermediate": ("intermediate",),
    "output": ("output",),
}
"""The projections of each group."""


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """An int8 weight (K, N) and the float32 scale (N,) of each of its columns."""

    values: NDArray[np.int8]
    scales: Array


def groups(spec: ModelSpec) -> Iterator[str]:
    """Yield the names of all groups, layer by layer."""
    for layer in range(spec.n_layers):
        for group in PARTS:
            yield f"layer.{layer}.{group}"


def parts(group: str) -> list[str]:
    """Return the names of a group's projections."""
    prefix, _, kind = group.rpartition(".")
    return [f"{prefix}.{part}" for part in PARTS[kind]]


def zero_point(group: str) -> int:
    """Return the uint8 that stands for 0 where a row of this group has one scale."""
    return GELU_ZERO_POINT if group.endswith(".output") else ZERO_POINT


def dequantized_rows(rows: Array, group: str) -> Array:
    """Quantize float32 rows (T, K) to uint8 and dequantize them.

    A level is ``clip(round(x / scale) + z, 0, 255)`` with the group's zero point z. A row's scale is the smallest with
    which no value saturates: ``max(largest / (255 - z), -least / z)``.
    """
    zero = zero_point(group)
    ranges = (rows.max(axis=1, keepdims=True) / (255 - zero), rows.min(axis=1, keepdims=True) / -zero)
    scales = np.maximum(np.maximum(*ranges), np.float32(SMALLEST_SCALE))
    levels = np.clip(np.rint(rows / scales) + zero, 0, 255) - zero
    return np.asarray(levels * scales, np.float32)


def column_scales(weight: Array) -> Array:
    """Return the scale (N,) that takes the largest magnitude of each column of a weight (K, N) to 127."""
    largest = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny * LARGEST)
    return np.asarray(largest / LARGEST, np.float32)


def quantize_weight(weight: Array) -> QuantizedWeight:
    """Round each value of a weight (K, N) to the nearest int8."""
    scales = column_scales(weight)
    values = np.clip(np.rint(weight / scales), -LARGEST, LARGEST).astype(np.int8)
    return QuantizedWeight(values=values, scales=scales)
