"""What the int8 graph computes with: groups of projections, int8 weights, and uint8 rows.

Weights have one scale per output channel and no zero point; activations get one scale per token at run time. A group is
the projections that share an input.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.artifact import ModelSpec

Array = NDArray[np.float32]

LARGEST = 127  # of a weight's magnitude; -128 is not used
GELU_MINIMUM = -0.17  # just below the least value of x * Phi(x)
GELU_ZERO_POINT = 64  # of 255 levels, those kept for the negative values of GELU; fewer coarsen rows of small values
SMALLEST_SCALE = 1e-12  # for a row of zeros
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


@dataclass(frozen=True, kw_only=True)
class RowQuantization:
    """How a group's input becomes uint8: ``round(x / scale) + zero_point``, saturated.

    The scale of a row is ``max(m / n_levels, least_scale)``, m being its largest magnitude, or, for GELU's output, its
    largest value.
    """

    zero_point: int
    n_levels: int
    least_scale: float
    is_of_gelu: bool


SYMMETRIC = RowQuantization(zero_point=128, n_levels=127, least_scale=SMALLEST_SCALE, is_of_gelu=False)
SKEWED = RowQuantization(
    zero_point=GELU_ZERO_POINT,
    n_levels=255 - GELU_ZERO_POINT,
    least_scale=-GELU_MINIMUM / GELU_ZERO_POINT,
    is_of_gelu=True,
)


def row_quantization(group: str) -> RowQuantization:
    """Return how a group's input is quantized."""
    return SKEWED if group.endswith(".output") else SYMMETRIC


def dequantized_rows(rows: Array, group: str) -> Array:
    """Round a group's input (T, K) to the levels that uint8 gives it."""
    how = row_quantization(group)
    largest = (rows if how.is_of_gelu else np.abs(rows)).max(axis=1, keepdims=True)
    scales = np.maximum(largest / np.float32(how.n_levels), np.float32(how.least_scale))
    levels = np.clip(np.rint(rows / scales) + how.zero_point, 0, 255) - how.zero_point
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
