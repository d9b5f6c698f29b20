"""The rounding of weights and rows to int8, and the smoothing before it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.export.gptq import round_weight
from bgem3.export.quantization import dequantized_rows, groups, parts, quantize_weight
from bgem3.export.reference import SENTENCES
from bgem3.export.sensitivity import output_sensitivities
from bgem3.export.smoothing import fit_smoothing

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def checkpoint(demo_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(demo_checkpoint)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(seed=st.integers(0, 2**32), log_scale=st.floats(-6, 6), zero_row=st.integers(0, 8))
def test_weights_and_rows_are_rounded_by_at_most_half_a_step(seed: int, log_scale: float, zero_row: int) -> None:
    values = normal(seed, 9, 64) * np.logspace(-3, 3, 9, dtype=np.float32)[:, None] * np.float32(10**log_scale)
    values[zero_row] = 0
    weight = quantize_weight(values.T)
    assert (np.abs(weight.values * weight.scales - values.T) <= weight.scales * 0.5001).all()
    assert np.delete(np.abs(weight.values).max(axis=0), zero_row).tolist() == [127] * 8
    for group, zero in (("layer.0.qkv", 128), ("layer.0.output", 64)):
        steps = np.maximum(values.max(axis=1) / (255 - zero), values.min(axis=1) / -zero)[:, None]
        errors = np.abs(dequantized_rows(values, group) - values)
        assert (errors <= 0.501 * steps).all(), "no value may saturate"


def test_gptq_beats_rounding_to_the_nearest_on_rows_it_has_not_seen() -> None:
    rows = normal(0, 600, 12) @ normal(1, 12, 96) + np.float32(0.3) * normal(2, 600, 96)
    weight = normal(3, 96, 40)
    by_products, nearest = round_weight(weight, rows[:300]), quantize_weight(weight)
    np.testing.assert_array_equal(by_products.scales, nearest.scales)
    assert np.abs(by_products.values.astype(int)).max() <= 127
    errors = [np.linalg.norm(rows[300:] @ (each.values * each.scales - weight)) for each in (by_products, nearest)]
    assert errors[0] < 0.6 * errors[1]


def test_gptq_takes_inputs_that_are_always_zero() -> None:
    weight = normal(0, 8, 4)
    rounded = round_weight(weight, np.zeros((5, 8), np.float32))
    assert np.abs(rounded.values * rounded.scales - weight).max() <= rounded.scales.max() * 0.51


def test_fitted_smoothing_beats_smoothquant_where_channels_are_off_center_and_some_outputs_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    rows = normal(1, 256, 64) + rng.choice([-8, 0, 8], 64).astype(np.float32)
    weight = normal(2, 64, 48)
    weight[:, 24:] *= rng.choice([1, 20], (64, 1)).astype(np.float32)
    sensitivity = np.where(np.arange(48) < 24, 1, 1e-4).astype(np.float32)

    def error(shifts: Array, factors: Array) -> float:
        smoothed = ((rows - shifts) / factors).astype(np.float32)
        noise = (dequantized_rows(smoothed, "layer.0.qkv") - smoothed) @ (weight * factors[:, None])
        return float((np.square(noise) * sensitivity).mean())

    fitted, unshifted = (
        fit_smoothing(f"layer.0.{kind}", rows, weight, sensitivity) for kind in ("qkv", "attention_output")
    )
    smoothquant = np.sqrt(np.abs(rows).max(axis=0) / np.abs(weight).max(axis=1))
    assert not unshifted.shifts.any()
    unshifted_error = error(unshifted.shifts, unshifted.factors)
    assert 2 * error(fitted.shifts, fitted.factors) < unshifted_error < error(np.zeros_like(smoothquant), smoothquant)


def test_sensitivities_are_of_every_projection_and_highest_where_the_sparse_head_reads(checkpoint: Checkpoint) -> None:
    sensitivities = output_sensitivities(checkpoint, [SENTENCES[3]])
    assert set(sensitivities) == {part for group in groups(checkpoint.spec) for part in parts(group)}
    assert all(np.isfinite(values).all() and (values >= 0).all() for values in sensitivities.values())
    last = checkpoint.spec.n_layers - 1
    assert sensitivities[f"layer.{last}.output"].argmax() == 0  # the demo's rarity, which its sparse head reads
    # The demo's queries are constant, so an error in them does little.
    assert sensitivities[f"layer.{last}.query"].max() < 0.1 * sensitivities[f"layer.{last}.value"].max()
