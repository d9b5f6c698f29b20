"""Compare bgem3 with other encoders on this machine: `python -m benchmarks run --help`.

Without an artifact, one is exported from the checkpoint, or from random weights: of BGE-M3's size, or with --quick of a
small model. Each rival runs in a Python environment of its own, but with --quick in this one. The work folder keeps
what is made for the next run. The first full run takes half an hour, 30 GB of disk and 20 GB of memory to prepare, and
an hour or two to measure on two cores.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.artifact import make_artifact
from benchmarks.comparison import Comparison, Encoder, choose_encoders
from benchmarks.peer import Settings, cpu_flags
from benchmarks.workload import MIX, NAMES, QUICK, make_scenario
from bgem3.runtime.artifact import Artifact, is_artifact, read_artifact
from bgem3.runtime.bench import ExactTexts
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.machine import describe_machine
from bgem3.runtime.manifest import OUTPUTS
from bgem3.runtime.reference import Reference
from bgem3.runtime.tokenizer import TextTokenizer

N_TURNS = 3
QUICK_PEERS = ("torch-sdpa-fp32", "flagembedding-fp32")  # rivals that the repository's environment has
CALIBRATION_TEXTS, LONGEST = 40, 200  # texts for encoders that quantize, and their characters; longer ones take hours


def main(arguments: Sequence[str]) -> int:
    """Check the arguments, make what is missing, compare, and say what was measured."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        encoders = check(options)
        report = compare(options, read_artifact(find_artifact(options)), encoders)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    print("\n".join([tables.overview(report), "", tables.conditions(report), *tables.failures(report)]))
    described = (f"{name} ({found['title']})" for name, found in report["scenarios"].items())
    print(f"Measured: {'; '.join(described)}. {options.output} has every figure.")
    return int(any("not_run" in found for found in report["encoders"].values() if found["kind"] == "bgem3"))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks run", description="Compare encoders on this CPU.")
    add = parser.add_argument
    add("--artifact", type=Path, help="artifact folder; default: one is exported")
    add("--checkpoint", type=Path, help="the folder that it is exported from; default: random weights")
    add("--peers", nargs="*", help="all, or names such as openvino or openvino-int8; default: all, two with --quick")
    add("--precisions", nargs="+", default=["int8", "fp32"], help="bgem3's; default: int8 fp32")
    add("--scenarios", nargs="+", help="names of some, such as 'query 16' mix 8x128; default: all, six with --quick")
    add("--threads", type=int, default=available_cpus(), help="default: the CPUs that this process may use")
    add("--work", type=Path, help="folder for what is made; default: benchmarks/scratch/full or quick")
    add("--output", type=Path, help="JSON file; default: benchmarks/results/cpu.json, with --quick in the work folder")
    add("--quick", action="store_true", help="a small model, two rivals and one turn: two minutes")
    return parser


def check(options: argparse.Namespace) -> list[Encoder]:
    """Fill in the defaults, and return the encoders; raise ValueError before anything is made if an option is wrong."""
    options.scenarios = options.scenarios or (QUICK if options.quick else NAMES)
    if unknown := set(options.scenarios) - set(NAMES):
        raise ValueError(f"there is no scenario {sorted(unknown)}; there are {', '.join(NAMES)}")
    if options.peers is None:
        options.peers = QUICK_PEERS if options.quick else ("all",)
    for name in ("artifact", "checkpoint"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            raise ValueError(f"--{name} must be a folder, found {folder}")
    if options.artifact and (missing := set(options.precisions) - precisions_of(options.artifact)):
        raise ValueError(f"{options.artifact} has no {', '.join(sorted(missing))}; name others with --precisions")
    if options.threads < 1:
        raise ValueError(f"--threads must be positive, found {options.threads}")
    options.work = options.work or Path("benchmarks/scratch", "quick" if options.quick else "full")
    options.output = options.output or Path(options.work if options.quick else "benchmarks/results", "cpu.json")
    return choose_encoders(options.peers, options.precisions)


def precisions_of(artifact: Path) -> set[str]:
    """Return the precisions in which an artifact runs on a CPU."""
    return {graph.precision for graph in read_artifact(artifact).graphs if graph.device == "cpu"}


def find_artifact(options: argparse.Namespace) -> Path:
    """Return the artifact's folder, and note its checkpoint; export what is not there."""
    options.weights = "the checkpoint's" if options.checkpoint or options.artifact else "random"
    options.work.mkdir(parents=True, exist_ok=True)
    artifact = options.artifact or options.work / "artifact"
    if not is_artifact(artifact) or set(options.precisions) - precisions_of(artifact):
        precisions, small = tuple(options.precisions), options.quick
        artifact, options.checkpoint = make_artifact(
            options.work, options.checkpoint, precisions, small=small, portable=True
        )
    elif options.weights == "random":
        options.checkpoint = options.work / "checkpoint"
    return Path(artifact)


def compare(options: argparse.Namespace, artifact: Artifact, encoders: Sequence[Encoder]) -> dict[str, Any]:
    """Compare the encoders on an artifact's texts; return the report."""
    if artifact.outputs != OUTPUTS:
        raise ValueError(f"{artifact.folder} gives {artifact.outputs} alone; the comparison needs all three outputs")
    spec, n_turns = artifact.spec, 1 if options.quick else N_TURNS
    tokenizer = TextTokenizer(artifact.folder / "tokenizer.json", spec)
    known = Reference.load(artifact.folder).texts
    exact = ExactTexts(tokenizer, spec, known)
    names = [name for name in NAMES if name in (MIX, *options.scenarios)]
    scenarios = {name: make_scenario(name, exact, tokenizer, spec.max_length, n_turns) for name in names}
    paths = {"artifact": artifact.folder, "checkpoint": options.checkpoint, "portable": artifact.folder / "portable"}
    settings: Settings = {
        name: str(path.absolute()) if path and path.is_dir() else None for name, path in paths.items()
    }
    settings |= {"device": "cpu", "threads": options.threads, **vars(spec)}
    settings["calibration"] = [text for text in known if 1 < len(text) <= LONGEST][:CALIBRATION_TEXTS]
    settings["special_ids"] = [spec.cls_id, spec.pad_id, spec.eos_id, spec.unk_id]
    vector_sets = sorted(flag for flag in cpu_flags() if flag.startswith(("avx", "amx")))
    machine = {"n_threads": options.threads, "instruction_sets": vector_sets}
    comparison = Comparison(
        report={
            "environment": describe_machine("cpu") | machine,
            "settings": {"model": vars(spec), "weights": options.weights, "n_turns": n_turns},
            "scenarios": {
                name: {key: value for key, value in scenarios[name].items() if key != "texts"}
                for name in names
                if name in options.scenarios
            },
        },
        path=options.output,
        encoders=encoders,
        scenarios=scenarios,
        settings=settings,
        work=options.work.absolute(),
        environments=None if options.quick else options.work / "environments",
        n_turns=n_turns,
    )
    comparison.run()
    return comparison.report
