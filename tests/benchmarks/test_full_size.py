"""A model of BGE-M3's size: minutes and gigabytes, so only `make test-full` runs it."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.artifact import make_checkpoint
from bgem3.export import export_model
from bgem3.runtime import BGEM3Model
from bgem3.runtime.machine import resident_bytes

GB = 1e9

pytestmark = pytest.mark.full


def run_apart(step: Callable[..., Any], *arguments: object) -> tuple[Any, int]:
    """Run a step in a new process; return its result and its peak memory in bytes."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(step, *arguments).result(), pool.submit(resident_bytes).result()


def export(checkpoint: Path, artifact: Path) -> dict[str, Any]:
    return export_model(checkpoint, artifact, ("fp16", "fp32"), portable=True)


def encode_longest(artifact: Path, precision: str) -> int:
    """Return the number of tokens of the longest text that the model takes."""
    with BGEM3Model.load(artifact, "cpu", precision) as model:
        found = model.encode(["honey " * 8192])
    assert np.isfinite(found.multivector.packed).all()
    return int(found.n_tokens[0])


def test_a_full_size_model_exports_with_parity_and_encodes_8192_tokens_within_its_memory(tmp_path: Path) -> None:
    checkpoint, artifact = make_checkpoint(tmp_path), tmp_path / "artifact"
    checkpoint_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    manifest, peak = run_apart(export, checkpoint, artifact)
    assert peak <= 2.5 * checkpoint_bytes
    assert len(manifest["parity"]) == 5
    assert manifest["parity"]["fp32/cpu.onnx"]["n_tokens"] > 8192
    assert manifest["parity"]["fp32/cpu.onnx"]["multivector_max_difference"] < 1e-5
    assert sum(path.stat().st_size for path in (artifact / "fp16").iterdir()) < 1.15 * GB
    for precision in ("fp16", "fp32"):
        n_tokens, peak = run_apart(encode_longest, artifact, precision)
        assert n_tokens == 8192
        assert peak < 6 * GB
