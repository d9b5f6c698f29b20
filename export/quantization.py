"""What the int8 graph computes with: groups of projections, int8 weights, and uint8 rows.

Weights have one scale per output channel and no zero point; activations get one scale per token at run time, and in our
own operators a scale and a zero point for each block of a token's channels. A group is the projections that share an
input.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.artifact import ModelSpec

Array = NDArray[np.float32]

LARGEST = 127  # of a weight's magnitude; -128 is not used
ZERO_POINT = 128
GELU_ZERO_POINT = 64  # of GELU's outputs, which lie above 0 rather than below
SMALLEST_SCALE = 1e-12  # for a row of zeros
INPUTS_PER_BLOCK = 128  # of a row, that our own operators give a scale and a zero point (runtime/kernels/kernels.h)
PARTS = {
    "qkv": ("query", "key", "value"),
    "attention_output": ("attention_output",),
    "intermediate": ("intermediate",),
    "output": ("output",),
}
"""The projections of each group."""


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """A weight (K, N) as int8, and the scale (N,) of each of its columns."""

    values: NDArray[np.int8]
    scales: Array


def groups(spec: ModelSpec) -> Iterator[str]:
    """Name the groups of projections, layer by layer."""
    for layer in range(spec.n_layers):
        for group in PARTS:
            yield f"layer.{layer}.{group}"


def parts(group: str) -> list[str]:
    """Name the projections of a group."""
    prefix, _, kind = group.rpartition(".")
    return [f"{prefix}.{part}" for part in PARTS[kind]]


def zero_point(group: str) -> int:
    """Return the uint8 that stands for 0 where a group's rows are quantized whole."""
    return GELU_ZERO_POINT if group.endswith(".output") else ZERO_POINT


def dequantized_rows(rows: Array, group: str) -> Array:
    """Round rows (T, K) to the levels that uint8 gives them: ``round(x / scale) + z``, 0 to 255, z the zero point.

    A row's scale is the least that no value saturates at: ``max(largest / (255 - z), -least / z)``.
    """
    zero = zero_point(group)
    ranges = (rows.max(axis=1, keepdims=True) / (255 - zero), rows.min(axis=1, keepdims=True) / -zero)
    scales = np.maximum(np.maximum(*ranges), np.float32(SMALLEST_SCALE))
    levels = np.clip(np.rint(rows / scales) + zero, 0, 255) - zero
    return np.asarray(levels * scales, np.float32)


def column_scales(weight: Array) -> Array:
    """Return the scale (N,) of each column of a weight (K, N): its largest magnitude becomes 127."""
    largest = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny * LARGEST)
    return np.asarray(largest / LARGEST, np.float32)


def quantize_weight(weight: Array) -> QuantizedWeight:
    """Round a weight (K, N) to int8, each value to the nearest."""
    scales = column_scales(weight)
    values = np.clip(np.rint(weight / scales), -LARGEST, LARGEST).astype(np.int8)
    return QuantizedWeight(values=values, scales=scales)
