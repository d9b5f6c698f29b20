"""The command line: `bgem3 export | encode | score | verify | bench | info`."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table
from tqdm import tqdm

from bgem3.runtime.arguments import check_whole_number
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.bench import bench_table
from bgem3.runtime.bench import run_bench as measure
from bgem3.runtime.console import complain, flush_output, has_progress, info_table, parity_table, show, write_utf8
from bgem3.runtime.device import check_device
from bgem3.runtime.manifest import OUTPUTS, PRECISIONS
from bgem3.runtime.model import BGEM3Model
from bgem3.runtime.parity import check_graphs
from bgem3.runtime.published_values import HUB_ID
from bgem3.runtime.reference import Reference
from bgem3.runtime.text_lines import open_lines, read_texts
from bgem3.runtime.texts import cut_texts
from bgem3.runtime.writers import check_suffix, write_file, write_jsonl
from bgem3.scoring.atomic_files import whole_file
from bgem3.scoring.hybrid import DEFAULT_WEIGHTS

TEXTS_PER_CHUNK = 4096  # texts encoded at once; enough to put texts of one length together
CHARACTERS_PER_CHUNK = 500_000  # characters encoded at once; multi-vectors take about 1 KB for each
SCORES = ("dense", "sparse", "multivector", "hybrid")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    try:
        write_utf8()
        try:
            parsed = _parser().parse_args(arguments)
            status: int = parsed.command(parsed)
        finally:  # --help ends with SystemExit
            flush_output()
    except BrokenPipeError:  # whoever read the output has ended, as `head` does
        return 0
    except KeyboardInterrupt:
        complain("interrupted")
        return 130  # as a shell reports SIGINT
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, OverflowError) as error:
        complain(str(error))
        return 2
    return status


def run_export(arguments: argparse.Namespace) -> int:
    """Export a checkpoint to an artifact folder."""
    try:
        export = importlib.import_module("bgem3.export")
    except ImportError as error:
        raise ImportError(f"exporting needs two extras ({error}): `pip install 'bgem3[cpu,export]'`") from error
    manifest = export.export_model(
        arguments.source,
        arguments.target,
        arguments.precision,
        portable=arguments.portable,
        overwrite=arguments.overwrite,
        show_progress=has_progress(arguments),
        cache_dir=arguments.cache_dir,
        outputs=arguments.outputs,
        heads_from=arguments.heads_from,
    )
    show(arguments, manifest, info_table(manifest, arguments.target))
    refused = manifest.get("int8", {}).get("refused")
    if refused:
        complain(f"no int8 graph is written: {refused}")
    return int(bool(refused))


def run_encode(arguments: argparse.Namespace) -> int:
    """Encode the lines of a file or of standard input."""
    _check_files(arguments)
    name = str(arguments.input or "standard input")
    with _load(arguments) as model, open_lines(arguments.input) as file:
        lines = tqdm(file, unit="text") if sys.stderr and sys.stderr.isatty() else file
        texts = read_texts(lines, name, arguments.text_field)
        chunks = (
            model.encode(chunk, arguments.outputs, arguments.max_length)
            for chunk in cut_texts(texts, CHARACTERS_PER_CHUNK, TEXTS_PER_CHUNK)
        )
        if arguments.output:
            write_file(chunks, arguments.output)
        else:
            write_jsonl(chunks, sys.stdout)
    return 0


def _check_files(arguments: argparse.Namespace) -> None:
    """Raise ValueError if `bgem3 encode` cannot read or write what its arguments name."""
    source, output = arguments.input, arguments.output
    if output:
        check_suffix(output)
    if source and source.suffix in (".jsonl", ".ndjson") and arguments.text_field is None:
        raise ValueError(f"{source} holds JSON lines; name the field that is the text with --text-field")
    if sys.stdout is None and not output:
        raise ValueError("standard output is closed; name a file with --output")
    if source and output and source.exists() and output.exists() and source.samefile(output):
        raise ValueError(f"{output} is the input, too, and would be replaced; name another --output")


def run_score(arguments: argparse.Namespace) -> int:
    """Score queries with passages."""
    with _load(arguments) as model:
        scores = model.score(arguments.query, arguments.passage, arguments.weights, arguments.max_length)
    rows = [
        {"query": query, "passage": passage} | {name: float(getattr(scores, name)[i, j]) for name in SCORES}
        for i, query in enumerate(arguments.query)
        for j, passage in enumerate(arguments.passage)
    ]
    table = Table("query", "passage", *SCORES)
    for row in rows:
        table.add_row(row["query"], row["passage"], *(f"{row[name]:.4f}" for name in SCORES))
    show(arguments, rows, table)
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Check an artifact's files, and compare its outputs with those of its checkpoint."""
    artifact = read_artifact(arguments.artifact, check_hashes=True)
    reference = Reference.load(artifact.folder)
    is_published = arguments.published or (artifact.manifest["source"]["id"] == HUB_ID and artifact.outputs == OUTPUTS)
    reports = check_graphs(
        artifact,
        reference,
        precision=arguments.precision,
        n_threads=arguments.threads,
        has_published_values=is_published,
        show_progress=has_progress(arguments),
    )
    if not reports:
        raise ValueError(f"{artifact.folder} has no {arguments.precision} graph; `bgem3 info` lists what it has")
    show(arguments, reports, parity_table(reports))
    return int(any(report["missed"] for report in reports.values()))


def run_bench(arguments: argparse.Namespace) -> int:
    """Measure an artifact on this machine: latency, throughput, memory, and where the time goes."""
    check_device(arguments.device)
    check_whole_number("threads", arguments.threads)
    if arguments.output and not arguments.output.parent.is_dir():
        raise ValueError(f"{arguments.output.parent} is no folder; make it, or name another --output")
    report = measure(
        arguments.artifact,
        device=arguments.device,
        precision=arguments.precision,
        n_threads=arguments.threads,
        quick=arguments.quick,
        show_progress=has_progress(arguments),
    )
    if arguments.output:
        with whole_file(arguments.output) as file:
            file.write((json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    show(arguments, report, bench_table(report))
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """Show an artifact's source, dimensions, files and parity."""
    manifest = read_artifact(arguments.artifact).manifest
    show(arguments, manifest, info_table(manifest, arguments.artifact))
    return 0


def _load(arguments: argparse.Namespace) -> BGEM3Model:
    return BGEM3Model.load(arguments.artifact, arguments.device, arguments.precision, arguments.threads)


def _text(argument: str) -> str:
    """Return an argument's text, reading bytes that the locale's encoding lacks as UTF-8."""
    try:
        return os.fsencode(argument).decode() if any("\udc80" <= c <= "\udcff" for c in argument) else argument
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"byte 0x{error.object[error.start]:02x} at position {error.start} is not UTF-8"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bgem3", description="Encode and score texts with BGE-M3, from ONNX graphs.")
    parser.add_argument("--version", action="version", version=f"bgem3 {version('bgem3')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.set_defaults(command=run)
        if name != "export":
            added.add_argument("artifact", type=Path, help="artifact folder")
        if name != "encode":
            added.add_argument("--json", action="store_true", help="print JSON, and no progress bars")
        return added

    export = command("export", run_export)
    export.add_argument("source", help="hub id (BAAI/bge-m3) or checkpoint folder")
    export.add_argument("target", type=Path, help="artifact folder to make")
    export.add_argument("--precision", nargs="+", default=PRECISIONS[:1], choices=PRECISIONS, help="default: fp16")
    export.add_argument("--portable", action="store_true", help="add a graph of standard operators, for other runtimes")
    export.add_argument("--overwrite", action="store_true", help="replace the target if it is an artifact folder")
    export.add_argument("--cache-dir", type=Path, help="folder for downloads; default: the hub's cache")
    export.add_argument("--outputs", nargs="+", default=OUTPUTS, choices=OUTPUTS, help="default: all three")
    export.add_argument("--heads-from", help="checkpoint folder or hub id to take the trained heads from")

    encode = command("encode", run_encode)
    encode.add_argument("input", type=Path, nargs="?", help="file with a text per line; default: standard input")
    encode.add_argument("--text-field", type=_text, help="read JSON lines, and encode this field of each")
    encode.add_argument("-o", "--output", type=Path, help=".jsonl, .npz or .parquet file; default: standard output")
    encode.add_argument("--outputs", nargs="+", default="all", choices=OUTPUTS, help="default: all of the artifact's")

    score = command("score", run_score)
    for flags, what in ((("-q", "--query"), "query"), (("-p", "--passage"), "passage")):
        score.add_argument(*flags, type=_text, action="append", required=True, help=f"a {what}; may be repeated")
    score.add_argument(
        "--weights",
        type=float,
        nargs=3,
        default=DEFAULT_WEIGHTS,
        metavar=("DENSE", "SPARSE", "MULTIVECTOR"),
        help=f"weights of the hybrid score; default: {' '.join(map(str, DEFAULT_WEIGHTS))}",
    )

    verify = command("verify", run_verify)
    verify.add_argument("--precision", choices=PRECISIONS, help="precision to check; default: every graph")
    verify.add_argument("--published", action="store_true", help="check published values; always for BAAI/bge-m3")

    bench = command("bench", run_bench)
    bench.add_argument("--quick", action="store_true", help="measure less, in seconds for a small model")
    bench.add_argument("-o", "--output", type=Path, help="JSON file for the report; default: none")

    command("info", run_info)
    for added in (encode, score, bench):
        added.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default: auto")
        added.add_argument("--precision", choices=PRECISIONS, help="precision to load; default: the artifact's first")
    for added in (encode, score, verify, bench):
        added.add_argument("--threads", type=int, help="compute threads; default: one per CPU that the process may use")
    for added in (encode, score):
        added.add_argument("--max-length", type=int, help="tokens per text at most; default: the model's maximum")
    return parser


if __name__ == "__main__":
    sys.exit(main())
