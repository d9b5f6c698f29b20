"""What calibration texts show of a checkpoint: each channel's range, and what quantizing each group would cost."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from bgem3.export.checkpoint import Checkpoint
from bgem3.export.quantization import Array, dequantized_rows, groups, parts, quantize_weight
from bgem3.export.reference import last_states

ROWS_PER_TEXT = 4  # kept of each text's input, evenly spaced
MODULES = {
    "query": "attention.self.query",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
"""The module of a layer that takes a group's input."""


@dataclass(kw_only=True)
class GroupInput:
    """What was seen of a group's input: the largest magnitude (K,) of each channel, and a sample of its rows (R, K)."""

    largest: Array
    sample: Array


def observe_inputs(checkpoint: Checkpoint, texts: list[str], *, show_progress: bool = False) -> dict[str, GroupInput]:
    """Run texts one by one and return, by group, what its input was like; memory grows by a few rows a text."""
    seen: dict[str, GroupInput] = {}

    def observe(group: str, rows: Array) -> None:
        largest = np.abs(rows).max(axis=0)
        sample = rows[np.unique(np.linspace(0, len(rows) - 1, ROWS_PER_TEXT).astype(np.int64))]
        if group in seen:
            largest = np.maximum(seen[group].largest, largest)
            sample = np.concatenate([seen[group].sample, sample])
        seen[group] = GroupInput(largest=largest, sample=sample)

    _run(checkpoint, texts, observe, "calibrating", show_progress)
    return seen


def quantization_errors(
    inputs: dict[str, GroupInput], tensors: dict[str, Array], factors: dict[str, Array]
) -> dict[str, float]:
    """Measure how far int8 takes each group's products from float32's, everything before it being float32.

    Parameters
    ----------
    tensors, factors : as `bgem3.export.quantization.smooth` leaves and returns them

    Returns
    -------
    By group: the norm of the error over the norm of the product, ``‖Q(X)Q(W) - XW‖ / ‖XW‖``, of the sampled rows.
    """
    errors = {}
    for group, seen in inputs.items():
        rows = seen.sample / factors[group] if group in factors else seen.sample
        weight = np.hstack([tensors[f"{part}.weight"] for part in parts(group)])
        quantized = quantize_weight(weight)
        expected = rows @ weight
        found = dequantized_rows(rows, group) @ (quantized.values * quantized.scales)
        errors[group] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return errors


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
