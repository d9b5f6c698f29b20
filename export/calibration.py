"""What calibration texts show of a checkpoint: samples of each group's input, and what quantizing it would cost."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from tqdm import tqdm

from bgem3.export.checkpoint import Checkpoint
from bgem3.export.gptq import round_weight
from bgem3.export.quantization import Array, QuantizedWeight, dequantized_rows, groups, parts
from bgem3.export.reference import last_states
from bgem3.export.smoothing import Smoothing

ROWS_PER_TEXT = 32  # kept of each text's input, evenly spaced
MODULES = {
    "query": "attention.self.query",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
"""The module of a layer that takes a group's input."""


def sample_inputs(checkpoint: Checkpoint, texts: list[str], *, show_progress: bool = False) -> dict[str, Array]:
    """Run texts one by one and return, by group, a sample (R, K) of the rows of its input: a few of each text."""
    samples: dict[str, list[Array]] = {}

    def observe(group: str, rows: Array) -> None:
        kept = np.unique(np.linspace(0, len(rows) - 1, ROWS_PER_TEXT).astype(np.int64))
        samples.setdefault(group, []).append(rows[kept])

    _run(checkpoint, texts, observe, "calibrating", show_progress)
    return {group: np.concatenate(rows) for group, rows in samples.items()}


def smoothed_rows(rows: Array, smoothing: Smoothing) -> Array:
    """Return what a group's input (R, K) has become."""
    return np.asarray((rows - smoothing.shifts) / smoothing.factors, np.float32)


def round_group(group: str, rows: Array, tensors: dict[str, Array]) -> dict[str, QuantizedWeight]:
    """Round the weights of a group, by name, for the rows (R, K) that they are multiplied by."""
    names = [f"{part}.weight" for part in parts(group)]
    rounded = round_weight(np.hstack([tensors[name] for name in names]), rows)
    ends = np.cumsum([tensors[name].shape[1] for name in names])[:-1]
    halves = zip(names, np.split(rounded.values, ends, axis=1), np.split(rounded.scales, ends), strict=True)
    return {name: QuantizedWeight(values=values, scales=scales) for name, values, scales in halves}


def quantization_error(
    group: str,
    rows: Array,
    tensors: dict[str, Array],
    rounded: dict[str, QuantizedWeight],
    sensitivities: dict[str, Array],
) -> float:
    """Estimate how far int8 in one group takes the embeddings, everything else being float32.

    Returns
    -------
    The root of ``Σ_n f_n mean((Q(X)Q(W) - XW)_n²)``, with the sensitivity ``f_n`` of each output channel n
    (`bgem3.export.sensitivity`), of rows (R, K) as the group's weights are multiplied by them.
    """
    found = dequantized_rows(rows, group)
    variance = 0.0
    for part in parts(group):
        weight = rounded[f"{part}.weight"]
        error = found @ (weight.values * weight.scales) - rows @ tensors[f"{part}.weight"]
        variance += float((sensitivities[part] * np.square(error).mean(axis=0)).sum())
    return float(variance**0.5)


def _run(
    checkpoint: Checkpoint, texts: Iterable[str], observe: Callable[[str, Array], None], what: str, show_progress: bool
) -> None:
    """Run texts one by one, and show each group's input (T, K) to ``observe``."""
    with _hooks(checkpoint, observe):
        for text in tqdm(texts, desc=what, unit="text", disable=not show_progress):
            last_states(checkpoint, text)


@contextmanager
def _hooks(checkpoint: Checkpoint, observe: Callable[[str, Array], None]) -> Iterator[None]:
    handles = []
    for group in groups(checkpoint.spec):
        prefix, _, kind = parts(group)[0].rpartition(".")
        module = checkpoint.model.backbone.encoder.get_submodule(f"{prefix}.{MODULES[kind]}")

        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], group: str = group) -> None:
            observe(group, inputs[0].flatten(0, -2).numpy())

        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
