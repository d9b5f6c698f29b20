"""The int8 graphs for CPU: calibrate, quantize, measure, and keep them only if they pass the quality gate."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bgem3.export.calibration import quantization_error, round_group, sample_inputs
from bgem3.export.calibration_texts import calibration_texts, held_out_pairs
from bgem3.export.checkpoint import Checkpoint
from bgem3.export.cpu_graph import build_cpu_graph, build_probe
from bgem3.export.graph import save_graph
from bgem3.export.native_graph import build_native_graph
from bgem3.export.quality_gate import BOUNDS, compare_quality, quality_reference
from bgem3.export.quantization import Array, QuantizedWeight, groups, parts, quantize_weight
from bgem3.export.sensitivity import output_sensitivities
from bgem3.export.smoothing import fit_smoothing, smooth
from bgem3.export.weights import encoder_tensors, write_weights
from bgem3.runtime.artifact import WEIGHTS_FILE, Artifact
from bgem3.runtime.device import open_encoder
from bgem3.runtime.manifest import CUSTOM_GRAPH, PROBE_GRAPH, GraphEntry
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.parity import ParityError, missed_bounds
from bgem3.scoring import Embeddings

FILE = "int8/cpu.onnx"
GRAPHS = (
    GraphEntry(precision="int8", device="cpu", operators="onnxruntime", file=FILE, probe=f"int8/{PROBE_GRAPH}"),
    GraphEntry(precision="int8", device="cpu", operators="bgem3", file=f"int8/{CUSTOM_GRAPH}"),
)
SHARES_KEPT = (0.0, 0.05, 0.15, 0.35)  # shares of groups in float32, one for each attempt to pass the gate

logger = logging.getLogger(__name__)


def write_int8(
    checkpoint: Checkpoint, folder: Path, calibration: Sequence[str] | None = None, *, show_progress: bool = False
) -> dict[str, Any]:
    """Write the int8 graphs and their weights into an artifact folder that has its tokenizer already.

    The groups of projections with the largest errors stay in float32, as few as the quality gate allows.

    Returns
    -------
    dict
        ``quality`` on held-out texts with its ``bounds``, the groups ``kept_float32``, ``error_by_group`` and
        ``n_calibration_texts``.

    Raises
    ------
    ParityError
        If the graph fails the gate with a third of the groups in float32; the folder is then as it was.
    """
    texts = list(calibration) if calibration is not None else calibration_texts()
    tensors = {name: np.asarray(values) for name, values in encoder_tensors(checkpoint.model)}
    rounded, errors = _quantize(checkpoint, texts, tensors, show_progress)
    by_error = sorted(groups(checkpoint.spec), key=lambda group: -errors[group])
    held_out, expected = quality_reference(checkpoint, held_out_pairs(), show_progress=show_progress)
    (folder / FILE).parent.mkdir()
    for share in SHARES_KEPT:
        kept = by_error[: round(share * len(by_error))]
        _write(checkpoint, folder, tensors, rounded, kept)
        quality = compare_quality(_encode(checkpoint, folder, held_out), expected, len(held_out) // 2)
        bounds = {name: bound for name, bound in BOUNDS.items() if name in quality}
        missed = missed_bounds(quality, bounds)
        if not missed:
            return {
                "quality": quality | {"bounds": bounds},
                "kept_float32": kept,
                "error_by_group": errors,
                "n_calibration_texts": len(texts),
            }
        logger.info("int8 with %d of %d groups in float32: %s", len(kept), len(by_error), "; ".join(missed))
    shutil.rmtree((folder / FILE).parent)
    raise ParityError(
        f"int8 loses too much of this checkpoint, even with {len(kept)} of {len(by_error)} groups of projections in "
        f"float32: {'; '.join(missed)}; export other precisions, or calibrate with texts like those you encode"
    )


def _quantize(
    checkpoint: Checkpoint, texts: list[str], tensors: dict[str, Array], show_progress: bool
) -> tuple[dict[str, QuantizedWeight], dict[str, float]]:
    """Smooth tensors in place, and return the rounded weights by name and the error of each group."""
    samples = sample_inputs(checkpoint, texts, show_progress=show_progress)
    sensitivities = output_sensitivities(checkpoint, texts, show_progress=show_progress)
    smoothings = {}
    for group, rows in tqdm(samples.items(), desc="smoothing", unit="group", disable=not show_progress):
        weight = np.hstack([tensors[f"{part}.weight"] for part in parts(group)])
        sensitivity = np.hstack([sensitivities[part] for part in parts(group)])
        smoothings[group] = fit_smoothing(group, rows, weight, sensitivity)
    smooth(tensors, smoothings, checkpoint.spec)
    rounded: dict[str, QuantizedWeight] = {}
    errors = {}
    for group in tqdm(list(groups(checkpoint.spec)), desc="rounding", unit="group", disable=not show_progress):
        rows = smoothings[group].apply(samples.pop(group))
        rounded |= round_group(group, rows, tensors)
        errors[group] = quantization_error(group, rows, tensors, rounded, sensitivities)
    return rounded, errors


def _encode(checkpoint: Checkpoint, folder: Path, texts: list[str]) -> Embeddings:
    manifest = {"outputs": checkpoint.model.outputs}
    artifact = Artifact(folder=folder, spec=checkpoint.spec, graphs=GRAPHS, manifest=manifest)
    # ONNX Runtime's operators round more coarsely than ours, so a pass holds for both graphs.
    with BGEM3Model(artifact, open_encoder(artifact, device="cpu", precision="int8", kernels="none")) as model:
        return model.encode(texts)


def _write(
    checkpoint: Checkpoint,
    folder: Path,
    tensors: dict[str, Array],
    rounded: dict[str, QuantizedWeight],
    kept: list[str],
) -> None:
    """Write weights and graphs, with the groups ``kept`` in float32."""
    quantized = {f"{part}.weight" for group in groups(checkpoint.spec) if group not in kept for part in parts(group)}

    def stored() -> Iterator[tuple[str, NDArray[Any], type[np.generic]]]:
        for name, values in tensors.items():
            if name in quantized:
                yield name, rounded[name].values, np.int8
                yield f"{name}.scale", rounded[name].scales, np.float32
            elif name == "embeddings.word":
                table = quantize_weight(values.T)  # one scale for each token
                yield name, table.values.T, np.int8
                yield f"{name}.scale", table.scales[:, None], np.float32
            else:
                yield name, values, np.float16 if name == "embeddings.position" else np.float32

    path = folder / FILE
    weights = write_weights(path.with_name(WEIGHTS_FILE), stored())
    save_graph(build_cpu_graph(checkpoint.spec, weights), path)
    save_graph(build_native_graph(checkpoint.spec, weights), path.with_name(CUSTOM_GRAPH))
    save_graph(build_probe(), path.with_name(PROBE_GRAPH))
