"""What calibration texts show of a checkpoint: each channel's range, and what quantizing each group would cost."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from tqdm import tqdm

from bgem3.export.checkpoint import Checkpoint
from bgem3.export.quantization import Array, dequantized_rows, groups, parts, quantize_weight
from bgem3.export.reference import last_states

MODULES = {
    "query": "attention.self.query",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
"""The module of a layer that takes a group's input."""


def largest_inputs(checkpoint: Checkpoint, texts: list[str], *, show_progress: bool = False) -> dict[str, Array]:
    """Return the largest magnitude (K,) of each channel of each group's input, over all tokens of the texts."""
    largest: dict[str, Array] = {}

    def observe(group: str, rows: Array) -> None:
        seen = np.abs(rows).max(axis=0)
        largest[group] = np.maximum(largest[group], seen) if group in largest else seen

    _run(checkpoint, texts, observe, "calibrating", show_progress)
    return largest


def quantization_errors(
    checkpoint: Checkpoint,
    tensors: dict[str, Array],
    factors: dict[str, Array],
    texts: list[str],
    *,
    show_progress: bool = False,
) -> dict[str, float]:
    """Measure how far int8 takes each group's products from float32's, everything before it being float32.

    Parameters
    ----------
    tensors, factors : as `bgem3.export.quantization.smooth` leaves and returns them

    Returns
    -------
    By group: the norm of the error over the norm of the product, ``‖Q(X)Q(W) - XW‖ / ‖XW‖``.
    """
    weights = {}
    for group in groups(checkpoint.spec):
        weights[group] = np.hstack([tensors[f"{part}.weight"] for part in parts(group)])
    sums = {group: np.zeros(2) for group in weights}

    def observe(group: str, rows: Array) -> None:
        rows = rows / factors[group] if group in factors else rows
        quantized = quantize_weight(weights[group])
        found = dequantized_rows(rows, group) @ (quantized.values * quantized.scales)
        expected = rows @ weights[group]
        sums[group] += np.square(found - expected).sum(), np.square(expected).sum()

    _run(checkpoint, texts, observe, "sensitivity", show_progress)
    return {group: float(np.sqrt(error / norm)) for group, (error, norm) in sums.items()}


def _run(
    checkpoint: Checkpoint, texts: Iterable[str], observe: Callable[[str, Array], None], what: str, show_progress: bool
) -> None:
    """Run texts one by one, and show each group's input (T, K) to ``observe``."""
    with _hooks(checkpoint, observe):
        for text in tqdm(texts, desc=what, unit="text", disable=not show_progress):
            token_ids = checkpoint.tokenizer(text, truncation=True, max_length=checkpoint.spec.max_length)["input_ids"]
            last_states(checkpoint.model, token_ids)


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
