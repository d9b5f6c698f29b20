"""run_bench: everything that is measured of an artifact on one device, in one report."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bgem3.runtime import cuda
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.bench_hardware import environment
from bgem3.runtime.bench_parts import MEASURES, Bench
from bgem3.runtime.bench_report import PARTS, BenchReport
from bgem3.runtime.bench_workload import EFFORTS
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.device import check_device, device_number, require_cuda
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.parity import Reference
from bgem3.runtime.source import find_checkpoint


def run_bench(
    artifact: str | Path,
    *,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    n_threads: int | None = None,
    passages: Path | None = None,
    parts: Sequence[str] = (),
    quick: bool = False,
    time_limit: float = 540.0,
    output: Path | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Measure an artifact on one device, beside PyTorch and FlagEmbedding where the checkpoint and they are.

    Parameters
    ----------
    artifact : artifact folder
    checkpoint : hub id or folder that it was exported from, for the encoders beside ours
    device, precision, n_threads : as for :meth:`BGEM3Model.load`
    passages : JSON in SQuAD's flat form, for a mix of real lengths; None for a mix of the artifact's built-in texts
    parts : some of PARTS, none for all
    quick : measure less, for a first look
    time_limit : seconds; what has not begun by then is not run
    output : JSON file, written after each measurement
    show_progress : say on standard error what is being measured

    Returns
    -------
    The report, a dict by part; ``failed`` lists the checks that failed, in words. In place of what could not be
    measured stands ``{"not_run": reason}``.

    Raises
    ------
    ArtifactError, CheckpointError, ValueError, RuntimeError, ImportError
        If the artifact cannot be loaded on the device, or an argument is not one of the values above.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"parts must be some of {PARTS}, found {sorted(unknown)}")
    if checkpoint is not None:
        checkpoint = find_checkpoint(checkpoint)
    report = BenchReport(output, time_limit, show_progress)
    n_threads = n_threads or available_cpus()
    report.say("loading")
    with BGEM3Model.load(artifact, device, precision, n_threads) as model:
        opened = read_artifact(artifact)
        kind = model.device.partition(":")[0]
        bench = Bench(
            report=report,
            model=model,
            load={
                "folder": opened.folder,
                "device": model.device,
                "precision": model.precision,
                "n_threads": n_threads,
            },
            precisions=[held for held, for_device in opened.graphs if for_device == kind and precision in (None, held)],
            reference=Reference.load(opened.folder),
            checkpoint=checkpoint,
            passages=passages,
            effort=EFFORTS[kind].quick() if quick else EFFORTS[kind],
        )
        report.keep(environment(model.device, n_threads), "environment")
        settings = {
            "source": opened.manifest["source"]["id"],
            "model": vars(model.spec),
            "precision": model.precision,
            "passages": passages.name if passages else "built-in",
            "quick": quick,
            "time_limit_s": time_limit,
        }
        report.keep(settings, "settings")
        for name in PARTS:
            if not parts or name in parts:
                MEASURES[name](bench)
    return report.data


def make_artifact(
    folder: Path,
    *,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    tokenizer: Path | None = None,
    layers: int = 24,
    hidden: int = 1024,
    show_progress: bool = False,
) -> tuple[Path, str | Path]:
    """Export a checkpoint to measure, into ``folder``; return the artifact's folder and the checkpoint's.

    Parameters
    ----------
    checkpoint : hub id or folder; None makes one of BGE-M3's size with random weights, on which speed does not depend
    device, precision : what is to be measured: None exports fp16, and for CUDA fp32 too
    tokenizer : tokenizer.json of the checkpoint with random weights; None for the demo checkpoint's
    layers, hidden : its size

    Raises
    ------
    ImportError
        If the export extra is not installed.
    """
    check_device(device)
    if device.startswith("cuda"):
        require_cuda(device)  # before minutes of exporting
    is_cuda = device != "cpu" and not cuda.why_unavailable(device_number(device))
    try:
        export = importlib.import_module("bgem3.export")
        maker = importlib.import_module("bgem3.export.random_checkpoint")
    except ImportError as error:
        raise ImportError(
            f"making an artifact to measure needs the export extra ({error}): `pip install 'bgem3[export]'`, or name "
            "an artifact folder"
        ) from error
    source = checkpoint or maker.make_full_size(folder, tokenizer, layers=layers, hidden=hidden)
    precisions = (precision,) if precision else ("fp16", "fp32") if is_cuda else ("fp16",)
    export.export_model(source, folder / "artifact", precisions, show_progress=show_progress)
    return folder / "artifact", source
