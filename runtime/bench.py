"""run_bench: everything that is measured of an artifact on one device, in one report."""

import importlib.util
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bgem3.runtime import cuda_runtime as cuda
from bgem3.runtime.artifact import OUTPUTS, is_artifact, read_artifact
from bgem3.runtime.bench_contest import rows_of
from bgem3.runtime.bench_environments import PythonFinder
from bgem3.runtime.bench_hardware import environment
from bgem3.runtime.bench_parts import MEASURES, Bench
from bgem3.runtime.bench_report import PARTS, BenchReport
from bgem3.runtime.bench_workload import EFFORTS
from bgem3.runtime.checkpoint_files import find_checkpoint
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.device import check_device, device_number, require_cuda
from bgem3.runtime.manifest import PORTABLE_GRAPH as PORTABLE
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.reference import Reference


def run_bench(
    artifact: str | Path,
    *,
    work: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precision: str | None = None,
    n_threads: int | None = None,
    has_random_weights: bool = False,
    passages: Path | None = None,
    parts: Sequence[str] = (),
    scenarios: Sequence[str] = (),
    peers: Sequence[str] = (),
    environments: Path | None = None,
    pythons: Mapping[str, Path] | None = None,
    quick: bool = False,
    time_limit: float = 3600.0,
    cell_limit: float = 100.0,
    output: Path | None = None,
    resume: bool = False,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Measure an artifact on one device, beside other encoders of the same weights.

    Parameters
    ----------
    artifact : artifact folder
    work : folder for what the others load, which is made there once; None for a temporary one
    checkpoint : hub id or folder that the artifact was exported from, for the encoders that need it
    device, n_threads : as for :meth:`BGEM3Model.load`
    precision : of bgem3; None for each that the artifact has for the device
    has_random_weights : for the report: speed is the same, int8's and fp16's accuracy and rankings mean nothing
    passages : JSON in SQuAD's flat form, for a mix of real lengths; None for a mix of the artifact's built-in texts
    parts : some of PARTS, none for all
    scenarios : names of some, none for all
    peers : who else: "all", kinds or kinds with a precision, as in `bgem3.runtime.bench_contest.rows_of`
    environments : folder of the peers' Python environments, made where they are missing; None to take this Python
    pythons : Pythons to take instead, by the environment's name
    quick : measure less, for a first look
    time_limit : seconds; what has not begun by then is not run
    cell_limit : seconds; an encoder of which one call will take longer is not timed on the scenario
    output : JSON file, written after each measurement
    resume : go on with the report in ``output``, of a benchmark that was stopped: the parts that it has are kept, and
        turns are added to its encoders
    show_progress : say on standard error what is being measured, and how long the rest will take

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
    report = BenchReport(output, time_limit, show_progress, resume)
    n_threads = n_threads or available_cpus()
    report.say("loading")
    with BGEM3Model.load(artifact, device, precision, n_threads) as model:
        if model.outputs != OUTPUTS:
            raise ValueError(f"{artifact} gives {model.outputs} alone; a benchmark needs an export with all outputs")
        spec, tokenizer, device, held = model.spec, model.tokenizer, model.device, model.precision
    opened = read_artifact(artifact)
    kind = device.partition(":")[0]
    precisions = list(
        dict.fromkeys(g.precision for g in opened.graphs if g.device == kind and precision in (None, g.precision))
    )
    rows = rows_of(peers, precisions, device)
    with ExitStack() as stack:
        work = Path(work or stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        needs_portable = any("portable" in row.peer.needs for row in rows)
        bench = Bench(
            report=report,
            spec=spec,
            tokenizer=tokenizer,
            load={"folder": opened.folder, "device": device, "precision": held, "n_threads": n_threads},
            precisions=precisions,
            reference=Reference.load(opened.folder),
            portable=_find_portable(opened.folder, checkpoint, work) if needs_portable else None,
            checkpoint=checkpoint,
            passages=passages,
            rows=rows,
            scenario_names=scenarios,
            work=work,
            pythons=PythonFinder(environments, pythons or {}, report.say),
            cell_limit=cell_limit,
            effort=EFFORTS[kind].quick() if quick else EFFORTS[kind],
        )
        if report.data and report.data["settings"]["model"] != vars(spec):
            raise ValueError(f"the report in {output} is of another model; measure without resume")
        settings = {
            "source": opened.manifest["source"]["id"],
            "weights": "random" if has_random_weights else "the checkpoint's",
            "model": vars(spec),
            "passages": passages.name if passages else "built-in",
            "quick": quick,
            "command": " ".join(["bgem3 bench", *(["--peers", *peers] if peers else []), *["--quick"] * quick]),
            "n_turns": bench.effort.n_turns,
            "time_limit_s": time_limit,
            "cell_limit_s": cell_limit,
        }
        if not report.data:
            report.keep(environment(device, n_threads), "environment")
            report.keep(settings, "settings")
        for name in PARTS:
            is_wanted = not parts or name in parts
            if is_wanted and (name == "scenarios" or name not in report.data):
                MEASURES[name](bench)
    return report.data


def make_artifact(
    folder: Path,
    *,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precisions: Sequence[str] = (),
    tokenizer: Path | None = None,
    layers: int = 24,
    hidden: int = 1024,
    portable: bool = False,
    show_progress: bool = False,
) -> tuple[Path, str | Path]:
    """Export a checkpoint to measure into ``folder``, unless it is there; return the artifact's and the checkpoint's.

    Parameters
    ----------
    checkpoint : hub id or folder; None makes one of BGE-M3's size with random weights, on which speed does not depend
    device, precisions : what is to be measured; none for fp16, and for CUDA fp32 too
    tokenizer : tokenizer.json of the checkpoint with random weights; None for the demo checkpoint's
    layers, hidden : its size
    portable : export the portable graph, too, which some encoders load

    Raises
    ------
    ImportError
        If the export extra is not installed.
    RuntimeError
        If exporting failed; the error is on standard error.
    """
    check_device(device)
    if device.startswith("cuda"):
        require_cuda(device)  # before minutes of exporting
    is_cuda = device != "cpu" and not cuda.why_unavailable(device_number(device))
    precisions = precisions or (("fp16", "fp32") if is_cuda else ("fp16",))
    try:
        importlib.import_module("bgem3.export")
    except ImportError as error:
        raise ImportError(
            f"making an artifact to measure needs the export extra ({error}): `pip install 'bgem3[export]'`, or name "
            "an artifact folder"
        ) from error
    arguments = (folder, checkpoint, tuple(precisions), tokenizer, layers, hidden, portable, show_progress)
    _run_apart(_make_artifact, *arguments)
    return folder / "artifact", checkpoint or folder / "checkpoint"


def _make_artifact(
    folder: Path,
    checkpoint: str | Path | None,
    precisions: tuple[str, ...],
    tokenizer: Path | None,
    layers: int,
    hidden: int,
    portable: bool,
    show_progress: bool,
) -> None:
    export = importlib.import_module("bgem3.export")
    artifact = folder / "artifact"
    held = {graph.precision for graph in read_artifact(artifact).graphs} if is_artifact(artifact) else set()
    if held.issuperset(precisions) and (not portable or (artifact / PORTABLE).is_file()):
        return
    if checkpoint is None:
        checkpoint = folder / "checkpoint"
        if not (checkpoint / "tokenizer_config.json").is_file():  # written last
            maker = importlib.import_module("scripts.make_random_checkpoint")
            maker.make_full_size(folder, tokenizer, layers=layers, hidden=hidden)
        # Random weights have no quality to lose; layers that the gate keeps in float32 would hide int8's speed.
        importlib.import_module("bgem3.export.quality_gate").BOUNDS.clear()
    export.export_model(
        checkpoint,
        artifact,
        precisions,
        portable=portable,
        overwrite=is_artifact(artifact),
        show_progress=show_progress,
    )


def _find_portable(artifact: Path, checkpoint: str | Path | None, work: Path) -> Path | None:
    """Return the portable graph, written into the work folder if it is nowhere; None if it cannot be made."""
    for place in (artifact, work):
        if (place / PORTABLE).is_file():
            return place / PORTABLE
    if checkpoint is None or not importlib.util.find_spec("optimum"):
        return None
    _run_apart(_export_portable, checkpoint, (work / PORTABLE).parent)
    return work / PORTABLE


def _export_portable(checkpoint: str | Path, folder: Path) -> None:
    model = importlib.import_module("bgem3.export.checkpoint").load_checkpoint(checkpoint).model
    importlib.import_module("bgem3.export.portable").export_portable(model, folder)


def _run_apart(make: Any, *arguments: object) -> None:
    """Call a function in a process of its own, whose memory goes when it ends."""
    process = multiprocessing.get_context("spawn").Process(target=make, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("making what is measured failed; the error is above")
