"""What the int8 graph computes with: int8 weights, smoothing factors, and the biases folded out of its way.

Weights have one scale per output channel and no zero point; activations get one scale per token at run time. Before
that, SmoothQuant (Xiao et al., 2023, arXiv:2211.10438) moves the range of outlier channels from activations to weights:
``s_j = max|X_j|^a / max|W_j|^(1 - a)`` per input channel j, activations divided and weights multiplied by it.

A group is the projections that share an input. Where its factors go:

- ``attention_output``: into the value projection, exactly, since the context is linear in the values
- ``qkv``, ``intermediate``: one multiplication of the LayerNorm output, which also feeds the residual as it is
- ``output``: nowhere, GELU is not linear; its range is skewed instead, which a zero point of 64 fits
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.artifact import ModelSpec

Array = NDArray[np.float32]

ALPHA = 0.5  # of SmoothQuant: half of an outlier's range goes to the weights
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


def quantize_weight(weight: Array) -> QuantizedWeight:
    """Round a weight (K, N) to int8, each column by its largest magnitude."""
    scales = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny) / LARGEST
    values = np.clip(np.rint(weight / scales), -LARGEST, LARGEST).astype(np.int8)
    return QuantizedWeight(values=values, scales=scales.astype(np.float32))


def smooth(tensors: dict[str, Array], largest_inputs: dict[str, Array], spec: ModelSpec) -> dict[str, Array]:
    """Fold SmoothQuant's factors and the key's and value's biases into a model's tensors, in place.

    The model computes the same afterwards, up to rounding, if the inputs of the groups ``qkv`` and ``intermediate``
    are multiplied by ``GROUP.smoothing`` (K,), which is added to the tensors. The key's bias is dropped: it adds the
    same to all of a query's scores, which softmax ignores.

    Parameters
    ----------
    tensors : the encoder's tensors by the graphs' names, linear weights as (in, out)
    largest_inputs : by group, the largest magnitude (K,) of each channel of its input

    Returns
    -------
    The factors (K,) by which each group's input is divided now, wherever that happens.
    """
    all_factors = {}
    for group in groups(spec):
        kind = group.rpartition(".")[2]
        weights = [f"{part}.weight" for part in parts(group)]
        if kind == "output":
            continue
        factors = all_factors[group] = _factors(largest_inputs[group], [tensors[name] for name in weights])
        for name in weights:
            tensors[name] = tensors[name] * factors[:, None]
        if kind == "attention_output":
            value = group.replace(kind, "value")
            tensors[f"{value}.weight"] = tensors[f"{value}.weight"] / factors
            tensors[f"{value}.bias"] = tensors[f"{value}.bias"] / factors
            tensors[f"{group}.bias"] = tensors[f"{group}.bias"] + tensors[f"{value}.bias"] @ tensors[weights[0]]
            del tensors[f"{value}.bias"], tensors[group.replace(kind, "key") + ".bias"]
        else:
            tensors[f"{group}.smoothing"] = (1 / factors).astype(np.float32)
    return all_factors


def _factors(largest_input: Array, weights: list[Array]) -> Array:
    """Return SmoothQuant's factors (K,), 1 for a channel that is always or multiplied by 0."""
    largest_weight = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    is_used = (largest_input > 0) & (largest_weight > 0)
    factors = np.ones_like(largest_input)
    np.divide(largest_input**ALPHA, largest_weight ** (1 - ALPHA), out=factors, where=is_used)
    return factors.astype(np.float32)
