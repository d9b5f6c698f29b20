"""The export of a checkpoint to an artifact folder, whole or not at all."""

import codecs
import errno
import gc
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.export.cpu_graph import build_cpu_graph
from bgem3.export.cuda_graph import build_cuda_graph
from bgem3.export.graph import save_graph
from bgem3.export.int8 import GRAPHS as INT8_GRAPHS
from bgem3.export.int8 import write_int8
from bgem3.export.native_graph import build_native_graph
from bgem3.export.portable import export_portable
from bgem3.export.reference import parity_texts, reference_outputs
from bgem3.export.weights import encoder_tensors, write_weights
from bgem3.runtime.artifact import MANIFEST, TOKENIZER_FILE, WEIGHTS_FILE, check_artifact, is_artifact, sha256_of
from bgem3.runtime.manifest import CUSTOM_GRAPH, FORMAT_VERSION, OUTPUTS, PORTABLE_GRAPH, PRECISIONS, GraphEntry, Output
from bgem3.runtime.ort import import_onnxruntime
from bgem3.runtime.parity import ParityError, check_graphs
from bgem3.scoring.atomic_files import recover, whole_folder

DTYPES: dict[str, type[np.float16] | type[np.float32]] = {"fp16": np.float16, "fp32": np.float32}
LIBRARIES = ("bgem3", "numpy", "onnx", "optimum-onnx", "tokenizers", "torch", "transformers")

logger = logging.getLogger(__name__)


def export_model(
    source: str | Path,
    target: str | Path,
    precisions: Sequence[str] = ("fp16",),
    *,
    calibration: Sequence[str] | None = None,
    portable: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
    cache_dir: str | Path | None = None,
    outputs: Sequence[Output] = OUTPUTS,
    heads_from: str | Path | None = None,
) -> dict[str, Any]:
    """Export a BGE-M3 checkpoint to an artifact folder and verify it.

    The export writes a hidden folder beside ``target``, compares its graphs with the checkpoint in PyTorch, and renames
    it to ``target`` in one step. If anything stops it, ``target`` stays as it was. The next export to the same target
    removes what a killed one left.

    Parameters
    ----------
    source : str or Path
        Hub id ("BAAI/bge-m3") or checkpoint folder.
    target : str or Path
        Artifact folder to make.
    precisions : sequence of str
        Stored precisions, any of "fp16", "fp32" and "int8".
    calibration : sequence of str or None
        Texts like those to encode, from which int8 takes its ranges; None for the built-in ones.
    portable : bool
        Write portable/model.onnx, too: fp32, standard ONNX operators, padded inputs.
    overwrite : bool
        Replace ``target`` if it is an artifact folder.
    show_progress : bool
        Show progress bars on standard error.
    cache_dir : str, Path or None
        The hub's download cache; None for its default.
    outputs : sequence of str
        "dense" and any of "sparse" and "multivector". The checkpoint needs no heads for other outputs.
    heads_from : str, Path or None
        Hub id or checkpoint folder whose sparse and multi-vector heads replace the checkpoint's own. Only the heads'
        files are downloaded.

    Returns
    -------
    dict
        The manifest. ``["parity"]`` holds the verification's report of each graph.

    Raises
    ------
    CheckpointError
        If the checkpoint is incomplete or damaged.
    FileExistsError
        If ``target`` exists and may not be replaced.
    ValueError
        If a precision or an output is unknown, or ``heads_from`` is given and no output needs it.
    OverflowError
        If a weight does not fit the stored precision.
    ParityError
        If a graph is further from the checkpoint than its precision allows, or if "int8" is the only precision and
        fails its quality gate. With other precisions, int8 is left out, and ``["int8"]["refused"]`` says why.
    OSError
        If the disk is full or not writable.
    """
    precisions = _check_precisions(precisions, portable)
    outputs = _check_outputs(outputs, heads_from)
    target = Path(target)
    recover(target.absolute())  # a killed export may have renamed the target
    _check_target(target, overwrite)
    checkpoint = load_checkpoint(source, cache_dir, outputs=outputs, heads_from=heads_from)
    with _new_folder(target, overwrite) as folder:
        tokenizer = (checkpoint.folder / TOKENIZER_FILE).read_bytes().removeprefix(codecs.BOM_UTF8)
        (folder / TOKENIZER_FILE).write_bytes(tokenizer)
        graphs: list[GraphEntry] = []
        int8_report: dict[str, Any] | None = None
        for precision in precisions:
            if precision == "int8":
                try:
                    int8_report = write_int8(checkpoint, folder, calibration, show_progress=show_progress)
                    graphs += INT8_GRAPHS
                except ParityError as error:
                    if len(precisions) == 1:
                        raise
                    int8_report = {"refused": str(error)}  # the other precisions are exported all the same
                    logger.warning("no int8 graph is written: %s", error)
            else:
                graphs += _write_precision(checkpoint, folder, precision, show_progress)
        if portable:
            export_portable(checkpoint.model, folder / Path(PORTABLE_GRAPH).parent)
            graphs.append(GraphEntry(precision="fp32", device="cpu", operators="standard", file=PORTABLE_GRAPH))
        reference = reference_outputs(checkpoint, parity_texts(checkpoint), show_progress=show_progress)
        reference.save(folder)
        manifest = _manifest(checkpoint, folder, graphs) | ({"int8": int8_report} if int8_report else {})
        del checkpoint  # frees its float32 weights before the sessions allocate their own
        gc.collect()  # tracing the portable graph leaves reference cycles
        manifest["parity"] = check_graphs(check_artifact(folder, manifest), reference, show_progress=show_progress)
        for file, report in manifest["parity"].items():
            if report["missed"]:
                raise ParityError(f"{file} is too far from the checkpoint: {'; '.join(report['missed'])}")
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")  # last: without it, nothing loads the folder
    return manifest


def _check_precisions(precisions: Sequence[str], portable: bool) -> tuple[str, ...]:
    wanted = (precisions,) if isinstance(precisions, str) else tuple(dict.fromkeys(precisions))
    unknown = [precision for precision in wanted if precision not in PRECISIONS]
    if unknown or not (wanted or portable):
        raise ValueError(f"precisions must be one or more of {PRECISIONS}, found {precisions!r}")
    return wanted


def _check_outputs(outputs: Sequence[Output], heads_from: str | Path | None) -> tuple[Output, ...]:
    wanted = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    if set(wanted) - set(OUTPUTS) or "dense" not in wanted:
        raise ValueError(f"outputs must be 'dense' and any other of {OUTPUTS}, found {outputs!r}")
    if heads_from is not None and set(wanted) == {"dense"}:
        raise ValueError(f"outputs={outputs!r} needs no heads, but heads_from={str(heads_from)!r} is given; drop one")
    return tuple(name for name in OUTPUTS if name in wanted)


def _check_target(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists; choose another folder, or overwrite it (overwrite=True, --overwrite)")
    if not is_artifact(target):
        raise FileExistsError(f"{target} is not an artifact folder, so it is not overwritten; choose another folder")


@contextmanager
def _new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder that becomes the target when the block ends; explain errors of writing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_folder(target, lambda path: overwrite and is_artifact(path)) as folder:
            yield folder
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        free = shutil.disk_usage(target.parent).free / 1e9
        reason = f"{error.strerror or error} ({free:.1f} GB free)"
        raise OSError(error.errno or errno.EIO, f"writing {target} failed: {reason}; nothing was kept") from error


def _write_precision(checkpoint: Checkpoint, folder: Path, precision: str, show_progress: bool) -> list[GraphEntry]:
    (folder / precision).mkdir()
    tensors = [(name, values, DTYPES[precision]) for name, values in encoder_tensors(checkpoint.model)]
    shown = tqdm(tensors, desc=f"{precision} weights", unit="tensor", disable=not show_progress)
    weights = write_weights(folder / precision / WEIGHTS_FILE, shown)
    graphs = []
    for name, build, device, operators in (
        ("cuda.onnx", build_cuda_graph, "cuda", "onnxruntime"),
        ("cpu.onnx", build_cpu_graph, "cpu", "onnxruntime"),
        (CUSTOM_GRAPH, build_native_graph, "cpu", "bgem3"),
    ):
        file = f"{precision}/{name}"
        save_graph(build(checkpoint.spec, weights), folder / file)
        graphs.append(GraphEntry(precision=precision, device=device, operators=operators, file=file))
    return graphs


def _manifest(checkpoint: Checkpoint, folder: Path, graphs: list[GraphEntry]) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    outputs = checkpoint.model.outputs
    return {
        "format_version": FORMAT_VERSION,
        "model": vars(checkpoint.spec),
        **({} if outputs == OUTPUTS else {"outputs": list(outputs)}),
        "source": checkpoint.source,
        "graphs": [graph.to_json() for graph in graphs],
        "files": {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
            for path in paths
        },
        "parity": {},
        "versions": {name: version(name) for name in LIBRARIES} | {"onnxruntime": import_onnxruntime().__version__},
    }
