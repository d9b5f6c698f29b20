"""Where each channel's range goes before rounding: a shift and a factor per input channel of a group.

SmoothQuant (Xiao et al., 2023, arXiv:2211.10438) divides activations by factors and multiplies weights by them, taking
the factors from a formula; here they start from it and are then fitted to what rounding costs. As in Outlier
Suppression+ (Wei et al., 2023, arXiv:2304.09145), channels are shifted to lie around 0. Where it goes, exactly:

- ``qkv``, ``intermediate``: the shift into the bias of the LayerNorm before, and back out of it in the biases of the
  projections and of what is added to the LayerNorm's output; the factors into one multiplication
- ``attention_output``: the factors into the value projection, since the context is linear in the values; no shift
- ``output``: the factors into one multiplication after GELU, which is not linear; no shift
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad
from tqdm import tqdm

from bgem3.export.quantization import INPUTS_PER_BLOCK, Array, groups, parts, zero_point
from bgem3.runtime.artifact import ModelSpec

N_STEPS = 60
STEP_SIZE = 0.06  # of a logarithm of a factor, falling to 0
WEIGHT_SHARE = 0.2  # of the weights' rounding error, most of which `bgem3.export.gptq` takes away
WHOLE_ROW_SHARE = 0.08  # of rows, for the graph that quantizes them whole, beside the one that does so in blocks
SMALLEST = 1e-6  # keeps channels that are always or multiplied by 0 finite
FACTORS_ALONE = (".attention_output", ".output")  # groups without shifts


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """A group's input x (T, K) becomes ``(x - shifts) / factors``, both (K,), before it is rounded."""

    shifts: Array
    factors: Array


def fit_smoothing(rows: Array, weight: Array, sensitivity: Array, *, zero_point: int, is_shifted: bool) -> Smoothing:
    """Fit shifts and factors to the expected error of ``rows @ weight`` in int8.

    With ``h_tb`` half the range of row t in block b of 128 channels, ``h_t`` half the range that the row takes as a
    whole, ``M_n`` the largest magnitude of the weight's column n, ``f_n`` its sensitivity and ``v_j`` the variance of
    channel j, all after smoothing, uniform rounding costs, up to one common constant,
    ``0.92 Σ_b mean(h_tb²) E_b + 0.08 mean(h_t²) Σ_b E_b + 0.2 Σ_n f_n M_n² Σ_j v_j`` with ``E_b = Σ_jn f_n w_jn²``
    over the block's channels: rows' errors in either graph, and what is left of weights' errors.

    Parameters
    ----------
    rows : float32 (R, K), a sample of the input
    weight : float32 (K, N)
    sensitivity : float32 (N,), how much an error in each output channel matters
    zero_point : that of a whole row
    is_shifted : whether there may be shifts; else they are 0
    """
    n_inputs = len(weight)
    missing = (0, -n_inputs % INPUTS_PER_BLOCK)  # of the last block: channels of zeros
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
    starts, of_row = torch.arange(0, x.shape[1], INPUTS_PER_BLOCK), torch.arange(len(x))[:, None]
    for _ in range(N_STEPS):
        shifts, factors = middle + moves * width, log_factors.exp()
        with torch.no_grad():  # the gradient of a maximum needs only its place
            blocks = ((x - shifts) / factors).view(len(x), -1, INPUTS_PER_BLOCK)
            ends = torch.stack([blocks.argmax(2), blocks.argmin(2)]) + starts  # (2, R, blocks)
            of_column = (w * factors).argmax(1)  # (N,)
        largest, least = (x[of_row, ends] - shifts[ends]) / factors[ends]  # (R, blocks)
        largest, least = largest.clamp(min=0), least.clamp(max=0)
        whole = torch.maximum(largest.amax(1) / (255 - zero_point), least.amin(1) / -zero_point) * 255  # (R,)
        columns = w.gather(1, of_column[:, None])[:, 0] * factors[of_column]
        energies = (factors.square() * energy).view(-1, INPUTS_PER_BLOCK).sum(1)
        of_blocks = ((largest - least).square().mean(0) * energies).sum() / 4
        of_rows = whole.square().mean() * energies.sum() / 4
        of_weights = columns.square().sum() * (variance / factors.square()).sum()
        optimizer.zero_grad()
        torch.log(torch.lerp(of_blocks, of_rows, WHOLE_ROW_SHARE) + WEIGHT_SHARE * of_weights).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        shifts, factors = middle + moves * width, log_factors.exp()
    return Smoothing(shifts=shifts.numpy()[:n_inputs], factors=factors.numpy()[:n_inputs])


def fit_smoothings(
    samples: dict[str, Array],
    tensors: dict[str, Array],
    sensitivities: dict[str, Array],
    *,
    show_progress: bool = False,
) -> dict[str, Smoothing]:
    """Fit the smoothing of every group; arguments by group, tensor and projection."""
    smoothings = {}
    for group, rows in tqdm(samples.items(), desc="smoothing", unit="group", disable=not show_progress):
        weight = np.hstack([tensors[f"{part}.weight"] for part in parts(group)])
        sensitivity = np.hstack([sensitivities[part] for part in parts(group)])
        is_shifted = not group.endswith(FACTORS_ALONE)
        smoothings[group] = fit_smoothing(
            rows, weight, sensitivity, zero_point=zero_point(group), is_shifted=is_shifted
        )
    return smoothings


def smooth(tensors: dict[str, Array], smoothings: dict[str, Smoothing], spec: ModelSpec) -> None:
    """Fold shifts, factors, and the key's and value's biases into a model's tensors, in place.

    The model computes the same afterwards, up to rounding, if the inputs of all groups but ``attention_output`` are
    multiplied by ``GROUP.smoothing`` (K,), which is added to the tensors. The key's bias is dropped: it adds the
    same to all of a query's scores, which softmax ignores.

    Parameters
    ----------
    tensors : the encoder's tensors by the graphs' names, linear weights as (in, out)
    """
    for group, smoothing in smoothings.items():
        if not group.endswith(FACTORS_ALONE):
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
    """Take shifts (K,) from the LayerNorm output that a group reads, and give them back wherever it goes."""
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
