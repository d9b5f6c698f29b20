"""Samples of each group's input on calibration texts, and the error that int8 makes with them."""

from contextlib import ExitStack

import numpy as np
import torch
from tqdm import tqdm

from bgem3.export.checkpoint import Checkpoint
from bgem3.export.gptq import round_weight
from bgem3.export.quantization import Array, QuantizedWeight, dequantized_rows, groups, parts
from bgem3.export.reference import evenly_spaced, last_states
from bgem3.export.weights import linear_layers

ROWS_PER_TEXT = 32  # rows sampled from each text's input; they bound the samples' memory


def sample_inputs(checkpoint: Checkpoint, texts: list[str], *, show_progress: bool = False) -> dict[str, Array]:
    """Run texts one by one, and return evenly spaced rows (R, K) of their inputs for each group."""
    samples: dict[str, list[Array]] = {group: [] for group in groups(checkpoint.spec)}
    layers = linear_layers(checkpoint.model)
    with ExitStack() as hooks:
        for group in samples:

            def sample(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], group: str = group) -> None:
                rows = inputs[0].flatten(0, -2).numpy()
                samples[group].append(rows[evenly_spaced(len(rows), ROWS_PER_TEXT)])

            hooks.enter_context(layers[parts(group)[0]].register_forward_pre_hook(sample))
        for text in tqdm(texts, desc="calibrating", unit="text", disable=not show_progress):
            last_states(checkpoint, text)
    return {group: np.concatenate(rows) for group, rows in samples.items()}


def round_group(group: str, rows: Array, tensors: dict[str, Array]) -> dict[str, QuantizedWeight]:
    """Round a group's smoothed weights by GPTQ, for a sample (R, K) of its smoothed input; return them by name."""
    names = [f"{part}.weight" for part in parts(group)]
    rounded = round_weight(np.hstack([tensors[name] for name in names]), rows)
    ends = np.cumsum([tensors[name].shape[1] for name in names])[:-1]
    weights = zip(names, np.split(rounded.values, ends, axis=1), np.split(rounded.scales, ends), strict=True)
    return {name: QuantizedWeight(values=values, scales=scales) for name, values, scales in weights}


def quantization_error(
    group: str,
    rows: Array,
    tensors: dict[str, Array],
    rounded: dict[str, QuantizedWeight],
    sensitivities: dict[str, Array],
) -> float:
    """Estimate how far int8 in this group alone moves the embeddings.

    The estimate is the root of ``Σ_n f_n mean((Q(X)Q(W) - XW)_n²)``, with the sensitivity ``f_n`` of each output
    channel n (`bgem3.export.sensitivity`) and the smoothed rows X (R, K).
    """
    found = dequantized_rows(rows, group)
    variance = 0.0
    for part in parts(group):
        weight = rounded[f"{part}.weight"]
        error = found @ (weight.values * weight.scales) - rows @ tensors[f"{part}.weight"]
        variance += float((sensitivities[part] * np.square(error).mean(axis=0)).sum())
    return float(variance**0.5)
