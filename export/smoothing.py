"""Smoothing: a shift and a factor for each input channel of a group, fitted to the error of int8.

SmoothQuant (Xiao et al., 2023, arXiv:2211.10438) divides activations by factors and multiplies weights by them. Its
formula for the factors is the start here; then they are fitted. As in Outlier Suppression+ (Wei et al., 2023,
arXiv:2304.09145), shifts center the channels around 0. The model's function stays the same:

- ``qkv``, ``intermediate``: the bias of the LayerNorm before takes the shifts, and the biases of the projections and of
  the layer added to the LayerNorm's output take them back; one multiplication applies the factors
- ``attention_output``: the value projection takes the factors, since the context is linear in the values; no shifts
- ``output``: one multiplication after GELU, which is not linear, applies the factors; no shifts
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad

from bgem3.export.quantization import INPUTS_PER_BLOCK, Array, groups, parts, zero_point
from bgem3.runtime.manifest import ModelSpec

N_STEPS = 60  # steps of the fit; they bound its time
STEP_SIZE = 0.06  # first step of a factor's logarithm; the last is 0
WEIGHT_SHARE = 0.2  # share of the weights' rounding error that `bgem3.export.gptq` leaves
WHOLE_ROW_SHARE = 0.08  # share of the graph with one scale for a row; the rest is of the graph with blocks
SMALLEST = 1e-6  # keeps factors finite for channels of zeros, or channels that zeros multiply
WITHOUT_SHIFTS = (".attention_output", ".output")  # ends of the groups' names


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """A group's input x (T, K) becomes ``(x - shifts) / factors``, both float32 (K,), before it is rounded."""

    shifts: Array
    factors: Array

    def apply(self, rows: Array) -> Array:
        """Return smoothed rows (T, K)."""
        return np.asarray((rows - self.shifts) / self.factors, np.float32)


def fit_smoothing(group: str, rows: Array, weight: Array, sensitivity: Array) -> Smoothing:
    """Fit a group's shifts and factors to the expected error of ``rows @ weight`` in int8.

    Uniform rounding has, up to a constant factor, the squared error ``0.92 Σ_b mean(h_tb²) E_b +
    0.08 mean(h_t²) Σ_b E_b + 0.2 Σ_n f_n M_n² Σ_j v_j``. After smoothing, ``h_tb`` is half the range of row t in block
    b, ``h_t`` half the range of the whole row, ``E_b = Σ_jn f_n w_jn²`` over the block's channels, ``M_n`` the largest
    magnitude of the weight's column n, and ``v_j`` the variance of channel j. The first two terms are the rows' errors
    in the two int8 graphs; the third is the part of the weights' errors that is left.

    Parameters
    ----------
    rows : float32 array (R, K)
        A sample of the group's input.
    weight : float32 array (K, N)
        The weights of the group's projections, side by side.
    sensitivity : float32 array (N,)
        How much an error in each output channel matters, ``f_n``.
    """
    n_inputs, zero, is_shifted = len(weight), zero_point(group), not group.endswith(WITHOUT_SHIFTS)
    missing = (0, -n_inputs % INPUTS_PER_BLOCK)  # channels of zeros that complete the last block
    x = pad(torch.from_numpy(rows), missing)
    w = pad(torch.from_numpy(np.abs(weight.T) * sensitivity[:, None] ** 0.5), missing)  # (N, K)
    energy, variance = w.square().sum(0), x.var(0, correction=0)
    middle = (x.amax(0) + x.amin(0)) / 2 * is_shifted
    width = (x - middle).abs().amax(0).clamp(min=SMALLEST)
    log_factors = (width / w.amax(0).clamp(min=SMALLEST)).log() / 2  # SmoothQuant's with alpha 0.5
    log_factors -= log_factors.mean()
    moves = torch.zeros_like(middle)
    variables = [log_factors, moves] if is_shifted else [log_factors]
    optimizer = torch.optim.Adam([variable.requires_grad_() for variable in variables], lr=STEP_SIZE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, N_STEPS)
    starts, row_index = torch.arange(0, x.shape[1], INPUTS_PER_BLOCK), torch.arange(len(x))[:, None]
    for _ in range(N_STEPS):
        shifts, factors = middle + moves * width, log_factors.exp()
        with torch.no_grad():  # the gradient of a maximum needs only its place
            blocks = ((x - shifts) / factors).view(len(x), -1, INPUTS_PER_BLOCK)
            ends = torch.stack([blocks.argmax(2), blocks.argmin(2)]) + starts  # (2, R, blocks)
            heaviest = (w * factors).argmax(1)  # (N,)
        largest, least = (x[row_index, ends] - shifts[ends]) / factors[ends]  # (R, blocks)
        largest, least = largest.clamp(min=0), least.clamp(max=0)
        whole = torch.maximum(largest.amax(1) / (255 - zero), least.amin(1) / -zero) * 255  # (R,)
        columns = w.gather(1, heaviest[:, None])[:, 0] * factors[heaviest]
        energies = (factors.square() * energy).view(-1, INPUTS_PER_BLOCK).sum(1)
        block_error = ((largest - least).square().mean(0) * energies).sum() / 4
        row_error = whole.square().mean() * energies.sum() / 4
        weight_error = columns.square().sum() * (variance / factors.square()).sum()
        optimizer.zero_grad()
        torch.log(torch.lerp(block_error, row_error, WHOLE_ROW_SHARE) + WEIGHT_SHARE * weight_error).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        shifts, factors = middle + moves * width, log_factors.exp()
    return Smoothing(shifts=shifts.numpy()[:n_inputs], factors=factors.numpy()[:n_inputs])


def smooth(tensors: dict[str, Array], smoothings: dict[str, Smoothing], spec: ModelSpec) -> None:
    """Fold shifts, factors, and the biases of keys and values into a model's tensors, in place.

    The model computes the same afterwards, up to float rounding, if it multiplies the input of each group but
    ``attention_output`` by the new tensor ``GROUP.smoothing`` (K,). The biases of keys go: each adds one number to all
    scores of a query, which softmax ignores.
    """
    for group, smoothing in smoothings.items():
        if not group.endswith(WITHOUT_SHIFTS):
            _shift(tensors, group, smoothing.shifts)
        if not group.endswith(".attention_output"):
            tensors[f"{group}.smoothing"] = np.asarray(1 / smoothing.factors, np.float32)
        for part in parts(group):
            tensors[f"{part}.weight"] = tensors[f"{part}.weight"] * smoothing.factors[:, None]
    for group in groups(spec):
        if group.endswith(".attention_output"):
            value, key = (group.replace("attention_output", part) for part in ("value", "key"))
            for name in (f"{value}.weight", f"{value}.bias"):
                tensors[name] = tensors[name] / smoothings[group].factors
            tensors[f"{group}.bias"] = tensors[f"{group}.bias"] + tensors[f"{value}.bias"] @ tensors[f"{group}.weight"]
            del tensors[f"{value}.bias"], tensors[f"{key}.bias"]


def _shift(tensors: dict[str, Array], group: str, shifts: Array) -> None:
    """Subtract shifts (K,) from the LayerNorm output that a group reads, and add them back where it goes."""
    layer, _, kind = group.rpartition(".")
    if kind == "qkv":
        number = int(layer.removeprefix("layer."))
        norm, added = (f"layer.{number - 1}.output_norm" if number else "embeddings.norm"), f"{layer}.attention_output"
    else:
        norm, added = f"{layer}.attention_norm", f"{layer}.output"
    for part in parts(group):
        tensors[f"{part}.bias"] = tensors[f"{part}.bias"] + shifts @ tensors[f"{part}.weight"]
    tensors[f"{norm}.bias"] = tensors[f"{norm}.bias"] - shifts
    tensors[f"{added}.bias"] = tensors[f"{added}.bias"] + shifts
