"""The command line: `bgem3 export | encode | score | verify | bench | info`."""

import argparse
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from tqdm import tqdm

from bgem3.runtime.artifact import PRECISIONS, read_artifact
from bgem3.runtime.bench import bench_table
from bgem3.runtime.bench import run_bench as measure
from bgem3.runtime.device import check_device
from bgem3.runtime.heads import OUTPUTS
from bgem3.runtime.model import BGEM3Model, check_whole_number
from bgem3.runtime.parity import check_graphs
from bgem3.runtime.published_values import HUB_ID
from bgem3.runtime.reference import Reference
from bgem3.runtime.text_lines import open_lines, read_texts
from bgem3.runtime.tokenizer import cut_texts
from bgem3.runtime.writers import check_suffix, write_file, write_jsonl
from bgem3.scoring.atomic_files import whole_file
from bgem3.scoring.hybrid import DEFAULT_WEIGHTS

TEXTS_PER_CHUNK = 4096  # encoded at once: enough to group by length
CHARACTERS_PER_CHUNK = 500_000  # multi-vectors take about 1 KB a character
JSON_LINES = (".jsonl", ".ndjson")
SCORES = ("dense", "sparse", "multivector", "hybrid")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    try:
        _write_utf8()
        try:
            parsed = _parser().parse_args(arguments)
            status: int = parsed.command(parsed)
        finally:  # --help ends with SystemExit
            _flush_output()
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        return 0
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130  # as a shell reports SIGINT
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, OverflowError) as error:
        _complain(str(error))
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
        show_progress=_has_progress(arguments),
        cache_dir=arguments.cache_dir,
        outputs=arguments.outputs,
        heads_from=arguments.heads_from,
    )
    _show(arguments, manifest, _info_table(manifest, arguments.target))
    refused = manifest.get("int8", {}).get("refused")
    if refused:
        _complain(f"no int8 graph is written: {refused}")
    return int(bool(refused))


def run_encode(arguments: argparse.Namespace) -> int:
    """Encode the lines of a file or of standard input."""
    if arguments.output:
        check_suffix(arguments.output)
    if arguments.input and arguments.input.suffix in JSON_LINES and arguments.text_field is None:
        raise ValueError(f"{arguments.input} holds JSON lines; name the field that is the text with --text-field")
    if sys.stdout is None and not arguments.output:
        raise ValueError("standard output is closed; name a file with --output")
    files = [path for path in (arguments.input, arguments.output) if path and path.exists()]
    if len(files) == 2 and files[0].samefile(files[1]):
        raise ValueError(f"{arguments.output} is the input, too, and would be replaced; name another --output")
    name = str(arguments.input or "standard input")
    with BGEM3Model.load(**_load_options(arguments)) as model, open_lines(arguments.input) as file:
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


def run_score(arguments: argparse.Namespace) -> int:
    """Score queries with passages."""
    with BGEM3Model.load(**_load_options(arguments)) as model:
        scores = model.score(arguments.query, arguments.passage, arguments.weights, arguments.max_length)
    rows = [
        {"query": query, "passage": passage} | {name: float(getattr(scores, name)[i, j]) for name in SCORES}
        for i, query in enumerate(arguments.query)
        for j, passage in enumerate(arguments.passage)
    ]
    table = Table("query", "passage", *SCORES)
    for row in rows:
        table.add_row(row["query"], row["passage"], *(f"{row[name]:.4f}" for name in SCORES))
    _show(arguments, rows, table)
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Check an artifact's files and compare its outputs with the checkpoint's own."""
    artifact = read_artifact(arguments.artifact, check_hashes=True)
    reference = Reference.load(artifact.folder)
    is_published = arguments.published or (artifact.manifest["source"]["id"] == HUB_ID and artifact.outputs == OUTPUTS)

    reports = check_graphs(
        artifact,
        reference,
        precision=arguments.precision,
        n_threads=arguments.threads,
        has_published_values=is_published,
        show_progress=_has_progress(arguments),
    )
    if not reports:
        raise ValueError(f"{artifact.folder} has no {arguments.precision} graph; `bgem3 info` lists what it has")
    _show(arguments, reports, _parity_table(reports))
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
        show_progress=_has_progress(arguments),
    )
    if arguments.output:
        with whole_file(arguments.output) as file:
            file.write((json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    _show(arguments, report, bench_table(report))
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """Show what an artifact folder holds."""
    manifest = read_artifact(arguments.artifact).manifest
    _show(arguments, manifest, _info_table(manifest, arguments.artifact))
    return 0


def _write_utf8() -> None:
    """Let output be UTF-8 whatever the locale; what has no UTF-8, as a byte of a file's name, is shown as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _flush_output() -> None:
    """Write out what is buffered, or drop it and raise OSError, so that Python does not try again when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)
        raise


def _discard(stream: TextIO) -> None:
    """Let a stream that cannot be written to lose what is buffered, and whatever follows."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(message: str) -> None:
    """Write a message to standard error, if there is one that somebody reads."""
    if sys.stderr is not None:
        try:
            print(f"bgem3: {message}", file=sys.stderr, flush=True)
        except BrokenPipeError:
            _discard(sys.stderr)


def _has_progress(arguments: argparse.Namespace) -> bool:
    return not arguments.json and sys.stderr is not None


def _show(arguments: argparse.Namespace, data: object, table: RenderableType) -> None:
    if sys.stdout is None:
        return
    if arguments.json:
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        console = Console(markup=False, emoji=False, highlight=False)
        with console.capture() as capture:  # rich ends the process itself where nobody reads its output
            console.print(table)
        print(capture.get(), end="")


def _info_table(manifest: dict[str, Any], folder: Path) -> Table:
    table = Table("item", "value", title=str(folder), show_header=False)
    table.add_row("source", " ".join(filter(None, (manifest["source"]["id"], manifest["source"]["revision"]))))
    for name, value in manifest["model"].items():
        table.add_row(name, str(value))
    if "outputs" in manifest:
        table.add_row("outputs", " ".join(manifest["outputs"]))
    for name, entry in manifest["files"].items():
        table.add_row(name, f"{entry['size'] / 1e6:,.1f} MB")
    for graph, report in manifest["parity"].items():
        table.add_row(f"{graph} against the checkpoint", _figures(report))
    table.add_row("made with", ", ".join(f"{name} {number}" for name, number in manifest["versions"].items()))
    return table


def _parity_table(reports: dict[str, dict[str, Any]]) -> Table:
    table = Table("graph", "against the reference", "result")
    for graph, report in reports.items():
        table.add_row(graph, _figures(report), "; ".join(report["missed"]) or ("" if "not_run" in report else "passed"))
    return table


def _figures(report: dict[str, Any]) -> str:
    if "not_run" in report:
        return f"not run: {report['not_run']}"
    shown = {name: value for name, value in report.items() if isinstance(value, float)} | report.get("published", {})
    return "\n".join(
        f"{name} {value:.9g}" if "cosine" in name else f"{name} {value:.2g}" for name, value in shown.items()
    )


def _load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "folder": arguments.artifact,
        "device": arguments.device,
        "precision": arguments.precision,
        "n_threads": arguments.threads,
    }


def _text(argument: str) -> str:
    """Return an argument's text; bytes that the locale's encoding lacks are read as UTF-8."""
    try:
        return os.fsencode(argument).decode() if any("\udc80" <= c <= "\udcff" for c in argument) else argument
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"byte 0x{error.object[error.start]:02x} at position {error.start} is not UTF-8"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bgem3", description="BGE-M3: three heads, four scores, from ONNX graphs.")
    parser.add_argument("--version", action="version", version=f"bgem3 {version('bgem3')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.set_defaults(command=run)
        return added

    export = command("export", run_export)
    export.add_argument("source", help="hub id (BAAI/bge-m3) or checkpoint folder")
    export.add_argument("target", type=Path, help="artifact folder to make")
    export.add_argument("--precision", nargs="+", default=PRECISIONS[:1], choices=PRECISIONS, help="default: fp16")
    export.add_argument(
        "--portable", action="store_true", help="also a graph of standard operators, for other runtimes"
    )
    export.add_argument("--overwrite", action="store_true", help="replace the target if it is an artifact folder")
    export.add_argument("--cache-dir", type=Path, help="the hub's download cache")
    export.add_argument(
        "--outputs", nargs="+", default=OUTPUTS, choices=OUTPUTS, help="what the artifact gives; default: all three"
    )
    export.add_argument("--heads-from", help="checkpoint or hub id to take the sparse and multi-vector heads from")

    encode = command("encode", run_encode)
    _add_model_options(encode)
    encode.add_argument("input", type=Path, nargs="?", help="a text per line; default: standard input")
    encode.add_argument("--text-field", type=_text, help="read JSON lines and take this field of each")
    encode.add_argument(
        "-o", "--output", type=Path, help=".jsonl, .npz or .parquet; default: JSON lines to standard output"
    )
    encode.add_argument(
        "--outputs", nargs="+", default="all", choices=OUTPUTS, help="default: all that the artifact has"
    )

    score = command("score", run_score)
    _add_model_options(score)
    score.add_argument("-q", "--query", type=_text, action="append", required=True, help="may be given more than once")
    score.add_argument(
        "-p", "--passage", type=_text, action="append", required=True, help="may be given more than once"
    )
    score.add_argument(
        "--weights",
        type=float,
        nargs=3,
        default=DEFAULT_WEIGHTS,
        metavar=("DENSE", "SPARSE", "MULTIVECTOR"),
        help="of the hybrid score; default: 0.4 0.2 0.4",
    )

    verify = command("verify", run_verify)
    verify.add_argument("artifact", type=Path)
    verify.add_argument("--precision", choices=PRECISIONS, help="default: every graph there is")
    verify.add_argument("--threads", type=int, help="default: every CPU the process may use")
    verify.add_argument("--published", action="store_true", help="check BGE-M3's published values too (default for it)")

    bench = command("bench", run_bench)
    bench.add_argument("artifact", type=Path, help="artifact folder")
    _add_device_options(bench)
    bench.add_argument("--quick", action="store_true", help="measure less, in seconds for a small model")
    bench.add_argument("-o", "--output", type=Path, help="JSON file for the report; default: none")

    info = command("info", run_info)
    info.add_argument("artifact", type=Path)

    for added in (export, score, verify, info, bench):
        added.add_argument("--json", action="store_true", help="machine-readable output, no progress bars")
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="artifact folder")
    _add_device_options(parser)
    parser.add_argument("--max-length", type=int, help="tokens kept per text; default: the model's maximum")


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default: auto")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the artifact's first")
    parser.add_argument("--threads", type=int, help="default: every CPU the process may use")


if __name__ == "__main__":
    sys.exit(main())
