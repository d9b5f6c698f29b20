"""Speed on CPU beside OpenVINO, bge-m3-lite and FlagEmbedding: same weights, texts, threads and heads, in one run.

usage: python scripts/bench_cpu_peers.py --environments FOLDER [--make-environments] [--work FOLDER]
           [--passages FILE] [--checkpoint FOLDER] [--precisions fp32 ...] [--contestants bgem3 openvino-int8 ...]

OpenVINO (with NNCF, which quantises the portable graph) and bge-m3-lite (which fuses and quantises it) run in Python
environments of their own: FOLDER/openvino and FOLDER/lite, made with pip if asked for, or named one by one.
FlagEmbedding runs in this one. Without a checkpoint, one of BGE-M3's full size is made with seeded random weights, on
which speed does not depend. What is made lies in --work; a folder that is kept makes a rerun fast. Full size takes
14 GB of disk, 20 GB of memory and more than an hour; --layers 24 --hidden 256 is for a first look. Linux alone.

Each contestant is a process (peer_worker.py) that tokenizes, encodes and returns all three heads as arrays. Its batch
size and settings are chosen for each shape by trying; outputs are compared before anything is timed; repeats are
interleaved, one contestant at a time; medians are reported. What other processes used of the CPUs meanwhile is
reported too: where it is more than a tenth of one, measure again.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from peer_worker import MAX_LENGTH, seconds_of
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from bgem3.runtime.artifact import PRECISIONS, is_artifact, read_artifact
from bgem3.runtime.bench_hardware import processor_name
from bgem3.runtime.bench_workload import ExactTexts, encoder_flop, read_texts
from bgem3.runtime.parity import Reference
from bgem3.runtime.portable import PORTABLE
from bgem3.runtime.tokenizer import TextTokenizer

SHAPES = ((1, 16), (8, 16), (1, 128), (8, 128), (4, 512))  # texts and tokens of each
MIX, PEAK_SHAPE = "mix", "8x128"
N_CALIBRATION = 40  # texts
LONGEST_SENTENCE = 200  # characters; the reference's longer texts are sentences in a row
PRODUCT = (1024, 1024, 4096)  # rows, inner size and columns of the matrix products
N_PRODUCTS = 10  # timed in each turn
MIN_COSINE = 0.99  # of dense vectors; what says it computes in floats and is below computes something else
REST = 0.2  # seconds before each request, in which the threads of the contestant before it stop spinning
WORKER = Path(__file__).with_name("peer_worker.py")
LABELS = {"bgem3": "bgem3", "openvino": "OpenVINO", "lite": "bge-m3-lite", "flagembedding": "FlagEmbedding"}
PEERS = ("openvino-fp32", "openvino-int8", "lite-fp32", "lite-int8", "flagembedding")
PACKAGES = {"openvino": ("openvino", "nncf", "onnx"), "lite": ("bge-m3-lite[quant]==0.6.2",)}
NEEDS = {"flagembedding": ("checkpoint",), "lite": ("checkpoint", "portable"), "openvino": ("portable",)}
HOW_TO_GET = {
    "checkpoint": "it needs the artifact's checkpoint: --checkpoint",
    "portable": "it needs a portable graph: name the artifact's checkpoint, or export with portable=True",
    "python": "it needs a Python environment: name it, or use --environments with --make-environments",
}


class ContestantError(Exception):
    """A contestant cannot run; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result: a kind of encoder, its precision, and its batch size where that is not its best."""

    kind: str
    precision: str
    batch_size: int | None = None

    @property
    def worker(self) -> tuple[str, str]:
        """Return what tells the processes apart."""
        return self.kind, self.precision

    @property
    def label(self) -> str:
        """Return the name that is shown."""
        size = f", batch size {self.batch_size}" if self.batch_size else ""
        return f"{LABELS[self.kind]} {self.precision}{size}"


class Worker:
    """A contestant's process; ``cpu_s`` is what its answers took."""

    def __init__(self, kind: str, python: str, log: Path, n_threads: int) -> None:
        variables = dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(n_threads))
        variables |= {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
        # A second thread of NumPy's would spin beside those of ONNX Runtime, and slow bge-m3-lite down.
        variables |= {"OPENBLAS_NUM_THREADS": "1"}
        self.cpu_s = 0.0
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, WORKER, kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                env=os.environ | variables,
            )

    def ask(self, **request: Any) -> Any:
        """Send a request and wait for its answer; ContestantError if the process ends instead."""
        assert self._process.stdout
        time.sleep(REST)
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        if answer := self._process.stdout.readline():
            found = json.loads(answer)
            self.cpu_s += found.pop("cpu_s")
            return found
        status, said = self._process.wait(), self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = [line.strip() for line in said if line.strip()][-1:]
        raise ContestantError(f"it ended with status {status}: {' '.join(last)}"[:300])

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


class Contest:
    """The contestants that run, and what is found out about each row.

    Attributes
    ----------
    found : by row; ``not_run`` says why a row's contestant does not run
    """

    def __init__(self, rows: list[Row], settings: dict[str, Any], texts: dict[str, list[str]], folder: Path) -> None:
        self.found: dict[Row, dict[str, Any]] = {row: {"precision": row.precision, "seconds": {}} for row in rows}
        self._settings, self._texts, self._folder = settings, texts, folder
        self._workers: dict[tuple[str, str], Worker] = {}

    def prepare(self) -> None:
        """Make what the peers load, while the memory is free."""
        for row in self._running():
            with self._watch(row):
                for need in (*NEEDS.get(row.kind, ()), f"{row.kind}_python"):
                    if self._settings.get(need, "") is None:
                        raise ContestantError(HOW_TO_GET.get(need, HOW_TO_GET["python"]))
                if row.kind in PACKAGES:
                    tqdm.write(f"{row.label}: making what it loads", file=sys.stderr)
                    with contextlib.closing(self._start(row)) as worker:
                        self.found[row] |= worker.ask(prepare=self._settings | {"precision": row.precision})

    def start(self) -> None:
        """Load and tune each contestant, one after another."""
        for row in self._running():
            if row.worker in self._workers:  # a row with another batch size
                continue
            with self._watch(row):
                tqdm.write(f"{row.label}: loading and tuning", file=sys.stderr)
                worker = self._workers[row.worker] = self._start(row)
                self.found[row] |= worker.ask(load=self._settings | {"precision": row.precision}, texts=self._texts)
                self.found[row] |= worker.ask(tune=list(self._texts))
                self.found[row]["disk_bytes"] = disk_bytes(row, self._settings)
            for other in self._running():
                if other.worker == row.worker and other != row:
                    self.found[other] |= self.found[row] | {"tuned": {}, "seconds": {}}

    def compare(self) -> None:
        """Compare the outputs on the mix with those of the first that computes in fp32; drop one that is too far."""
        expected = None
        for row in sorted(self._running(), key=lambda row: row.precision != "fp32"):
            path = self._folder / "outputs.npz"
            with self._watch(row):
                self._workers[row.worker].ask(save=MIX, path=str(path))
                with np.load(path) as arrays:
                    outputs = dict(arrays)
                expected = expected or outputs
                self.found[row]["agreement"] = agreement(outputs, expected)
                cosine = self.found[row]["agreement"]["dense_min_cosine"]
                if row.precision != "int8" and cosine < MIN_COSINE:
                    raise ContestantError(f"its dense vectors are not the first one's (cosine {cosine:.4f})")

    def run(self, n_tokens: dict[str, int], is_backwards: bool) -> None:
        """Time every row on each shape; short ones several times, after an untimed call."""
        for shape, count in n_tokens.items():
            request = {"run": shape, "calls": max(1, min(10, 512 // count)), "warm_up": count <= 1024}
            for row in self._running()[:: -1 if is_backwards else 1]:
                with self._watch(row):
                    answer = self._workers[row.worker].ask(**request, batch_size=row.batch_size)
                    self.found[row]["seconds"].setdefault(shape, []).extend(answer["seconds"])
                    self.found[row]["peak_rss_bytes"] = answer["peak_rss_bytes"]

    def others(self) -> Iterator[float]:
        """Yield the CPUs that processes that are not ours have used on average since the yield before."""
        start, busy = 0.0, 0.0
        while True:
            before = start, busy
            start, busy = time.perf_counter(), busy_seconds() - time.process_time()
            busy -= sum(worker.cpu_s for worker in self._workers.values())
            yield (busy - before[1]) / (start - before[0])

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()

    def _running(self) -> list[Row]:
        return [row for row, found in self.found.items() if "not_run" not in found]

    @contextlib.contextmanager
    def _watch(self, row: Row) -> Iterator[None]:
        """Note why a contestant cannot run."""
        try:
            yield
        except ContestantError as error:
            tqdm.write(f"{row.label}: {error}", file=sys.stderr)
            self.found[row]["not_run"] = str(error)

    def _start(self, row: Row) -> Worker:
        python = self._settings.get(f"{row.kind}_python", sys.executable)
        return Worker(row.kind, python, self._folder / f"{row.kind}-{row.precision}.log", self._settings["threads"])


def main() -> None:
    """Measure, write JSON and print a table."""
    arguments = _parser().parse_args()
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = f"{arguments.layers}x{arguments.hidden}"
        folder = work / (arguments.checkpoint or arguments.artifact or Path(made)).resolve().name
        report = measure(arguments, make(arguments, folder), folder)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    Console().print(table_of(report))


def make(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make what is missing, files and environments; return what the contestants are told, None for what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=make_files, args=(arguments, folder))
    process.start()  # its memory goes when it ends
    process.join()
    if process.exitcode:
        raise SystemExit("making the artifact failed; the error is above")
    artifact = arguments.artifact or folder / "artifact"
    checkpoint = arguments.checkpoint or (None if arguments.artifact else folder / "checkpoint")
    portable = [place / PORTABLE for place in (artifact, folder) if (place / PORTABLE).is_file()]
    paths = {"artifact": artifact, "checkpoint": checkpoint, "portable": portable[0] if portable else None}
    paths |= {kind: folder / kind for kind in PACKAGES}
    named = {"openvino": arguments.openvino_python, "lite": arguments.lite_python}
    paths |= {f"{kind}_python": find_python(kind, named[kind], arguments) for kind in PACKAGES}
    return {name: str(path.absolute()) if path else None for name, path in paths.items()}


def make_files(arguments: argparse.Namespace, folder: Path) -> None:
    """Make the checkpoint, the artifact and the portable graph, as far as they are missing."""
    from bgem3.export import export_model
    from bgem3.export.checkpoint import load_checkpoint
    from bgem3.export.portable import export_portable
    from bgem3.export.random_checkpoint import make_full_size

    checkpoint, artifact = arguments.checkpoint, arguments.artifact or folder / "artifact"
    if not (checkpoint or arguments.artifact):
        checkpoint = folder / "checkpoint"
        if not (checkpoint / "tokenizer_config.json").is_file():  # written last
            make_full_size(folder, arguments.tokenizer, layers=arguments.layers, hidden=arguments.hidden)
    if not arguments.artifact:
        held = {precision for precision, _ in read_artifact(artifact).graphs} if is_artifact(artifact) else set()
        if not held.issuperset(arguments.precisions) or not (artifact / PORTABLE).is_file():
            options = {"portable": True, "overwrite": True, "show_progress": True}
            export_model(checkpoint, artifact, arguments.precisions, **options)
    elif checkpoint and not any((place / PORTABLE).is_file() for place in (artifact, folder)):
        export_portable(load_checkpoint(checkpoint).model, (folder / PORTABLE).parent)


def find_python(kind: str, named: Path | None, arguments: argparse.Namespace) -> Path | None:
    """Return the Python of a peer's environment, made if asked for; None if there is none."""
    python = named or (arguments.environments or Path()) / kind / "bin" / "python"
    if arguments.make_environments and arguments.environments and not python.exists():
        subprocess.run([sys.executable, "-m", "venv", arguments.environments / kind], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[kind], "tokenizers", "numpy"], check=False)
    return python if python.exists() else None


def busy_seconds() -> float:
    """Return the CPU seconds that all processes together have used since Linux started."""
    user, nice, system, _idle, _wait, *others = Path("/proc/stat").read_text(encoding="utf-8").split(maxsplit=9)[1:9]
    return sum(map(int, (user, nice, system, *others))) / os.sysconf("SC_CLK_TCK")


def measure(arguments: argparse.Namespace, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Start the contestants, compare their outputs, time them in turns, and return the report."""
    artifact = read_artifact(settings["artifact"])
    spec, tokenizer = artifact.spec, TextTokenizer(artifact.folder / "tokenizer.json", artifact.spec)
    known = Reference.load(artifact.folder).texts
    sentences = [text for text in known if 1 < len(text) <= LONGEST_SENTENCE]
    exact = ExactTexts(tokenizer, spec, known)
    texts = {f"{n_texts}x{n_tokens}": exact(n_tokens, n_texts) for n_texts, n_tokens in SHAPES}
    texts[MIX] = read_texts(arguments.passages, arguments.n_passages, arguments.n_questions, sentences)
    texts = {shape: of_shape for shape, of_shape in texts.items() if shape in arguments.shapes}
    lengths = {shape: tokenizer(of_shape, MAX_LENGTH).lengths for shape, of_shape in texts.items()}
    settings |= {
        "threads": arguments.threads,
        "hidden_size": spec.hidden_size,
        "n_heads": spec.n_heads,
        "pad_id": spec.pad_id,
        "special_ids": [spec.cls_id, spec.pad_id, spec.eos_id, spec.unk_id],
        "calibration": read_texts(arguments.passages, N_CALIBRATION // 2, N_CALIBRATION // 2, sentences),
    }
    with contextlib.closing(Contest(rows_of(arguments), settings, texts, folder)) as contest:
        contest.prepare()
        others = contest.others()
        next(others)
        contest.start()
        contest.compare()
        used = {"tuning": next(others), "turns": []}
        products = {precision: product(precision, arguments.threads) for precision in ("fp32", "int8")}
        times: dict[str, list[float]] = {precision: [] for precision in products}
        n_tokens = {shape: int(held.sum()) for shape, held in lengths.items()}
        for turn in tqdm(range(arguments.repeats), desc="repeats"):
            for precision, run in products.items():
                times[precision] += [seconds_of(run) for _ in range(N_PRODUCTS)]
            contest.run(n_tokens, is_backwards=turn % 2 == 1)
            used["turns"].append(next(others))
    rates = {precision: 2 * np.prod(PRODUCT) / statistics.median(held) for precision, held in times.items()}
    return {
        "processor": processor_name(),
        "threads": arguments.threads,
        "model": vars(spec),
        "passages": arguments.passages.name if arguments.passages else "built-in",
        "shapes": {
            shape: {"n_texts": len(held), "n_tokens": int(held.sum()), "flop": encoder_flop(held, spec)}
            for shape, held in lengths.items()
        },
        "cpus_used_by_others": used,
        "gemm_flop_per_s": rates,
        "gemm_seconds": times,
        "contestants": {row.label: summary(found, lengths, spec, rates) for row, found in contest.found.items()},
    }


def rows_of(arguments: argparse.Namespace) -> list[Row]:
    """Return what is to be measured, ours first."""
    rows = []
    for name in arguments.contestants:
        kind, _, precision = name.partition("-")
        precisions = arguments.precisions if kind == "bgem3" else [precision or "fp32"]
        rows += [Row(kind=kind, precision=held) for held in precisions]
        if kind == "flagembedding":
            rows.append(Row(kind=kind, precision="fp32", batch_size=256))  # its default
    return sorted(rows, key=lambda row: row.kind != "bgem3")


def disk_bytes(row: Row, settings: dict[str, Any]) -> int:
    """Return the size of the files that a contestant loads."""
    portable = Path(settings["portable"] or "").parent
    folder, patterns = {
        "bgem3": (f"{settings['artifact']}/{row.precision}", ["*"]),
        "flagembedding": (settings["checkpoint"], ["*"]),
        "lite": (settings["lite"], ["model_int8*"] if row.precision == "int8" else ["model_fused*", "model.onnx_data"]),
        "openvino": (settings["openvino"] if row.precision == "int8" else portable, ["*"]),
    }[row.kind]
    return sum(path.stat().st_size for pattern in patterns for path in Path(folder).glob(pattern))


def agreement(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Return the lowest cosines of dense vectors and of multi-vectors, and how far lexical weights are apart."""
    pairs = [(found[head], expected[head]) for head in ("dense", "vectors")]
    dense, vectors = (float(np.einsum("nd,nd->n", *pair).min()) for pair in pairs)  # they have unit length
    ours, theirs = (
        {tuple(e): w for e, w in zip(o["entries"].tolist(), o["weights"], strict=True)} for o in (found, expected)
    )
    apart = [abs(ours.get(entry, 0.0) - theirs.get(entry, 0.0)) for entry in ours.keys() | theirs.keys()]
    return {
        "dense_min_cosine": dense,
        "multivector_min_cosine": vectors,
        "sparse_max_difference": float(max(apart, default=0.0)),
        "sparse_max": float(max(theirs.values(), default=0.0)),
    }


def product(precision: str, n_threads: int) -> Callable[[], None]:
    """Return what multiplies random matrices in ONNX Runtime: fp32, or u8 x s8 with a scale per column for int8."""
    m, k, n = PRODUCT
    rng = np.random.default_rng(0)
    if precision == "fp32":
        operator, rows = "MatMul", rng.standard_normal((m, k), np.float32)
        constants: dict[str, Any] = {"weight": rng.standard_normal((k, n), np.float32)}
    else:
        operator, rows = "MatMulIntegerToFloat", rng.integers(0, 256, (m, k), np.uint8)
        weight, scales = rng.integers(-127, 128, (k, n), np.int8), rng.random(n, np.float32)
        constants = {"weight": weight, "scale": np.float32(0.01), "scales": scales, "zero": np.uint8(128)}
    helper = onnx.helper
    kinds = {"x": helper.np_dtype_to_tensor_dtype(rows.dtype), "y": onnx.TensorProto.FLOAT}
    ends = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    domain = "" if precision == "fp32" else "com.microsoft"
    node = helper.make_node(operator, ["x", *constants], ["y"], domain=domain)
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", rows)
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_shape_and_type([m, n], np.float32))
    session.run_with_iobinding(binding)
    return lambda: session.run_with_iobinding(binding)


def summary(found: dict[str, Any], lengths: dict[str, Any], spec: Any, rates: dict[str, float]) -> dict[str, Any]:
    """Add tokens per second by shape and the share of the machine's GEMM rate to what was found of a contestant."""
    medians = {shape: statistics.median(times) for shape, times in found["seconds"].items()}
    found["tokens_per_second"] = {shape: int(lengths[shape].sum()) / seconds for shape, seconds in medians.items()}
    rate = rates.get({"fp16": "fp32"}.get(found["precision"], found["precision"]))  # fp16 weights, fp32 products
    if PEAK_SHAPE in medians and rate:
        found["share_of_gemm_rate"] = encoder_flop(lengths[PEAK_SHAPE], spec) / medians[PEAK_SHAPE] / rate
    return found


def table_of(report: dict[str, Any]) -> Table:
    """Return the report as a table; what could not run stands below it with the reason."""
    gflops = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in report["gemm_flop_per_s"].items())
    others = max(report["cpus_used_by_others"]["turns"])
    title = f"tokens/s, {report['threads']} threads; GEMM GFLOP/s: {gflops}; others used up to {others:.1f} CPUs"
    reasons = [f"{label}: {row['not_run']}" for label, row in report["contestants"].items() if "not_run" in row]
    table = Table("encoder", title=title, caption="\n".join(reasons), caption_justify="left")
    last = (f"of GEMM at {PEAK_SHAPE}", "cosine", "disk GB", "load + first s", "loaded GB", "peak GB")
    for name in (*report["shapes"], *last):
        table.add_column(name, justify="right")
    for label, row in report["contestants"].items():
        if "not_run" in row:
            continue
        cells = [f"{row['tokens_per_second'][shape]:,.0f}" for shape in report["shapes"]]
        cells += [
            f"{row['share_of_gemm_rate']:.0%}" if "share_of_gemm_rate" in row else "",
            f"{row['agreement']['dense_min_cosine']:.4f}",
        ]
        cells += [f"{row['disk_bytes'] / 1e9:.2f}", f"{row['load_s'] + row['first_embedding_s']:.2f}"]
        cells += [f"{row[name] / 1e9:.2f}" for name in ("loaded_peak_rss_bytes", "peak_rss_bytes")]
        table.add_row(label, *cells)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Speed on CPU beside OpenVINO, bge-m3-lite and FlagEmbedding.")
    parser.add_argument("--checkpoint", type=Path, help="default: random weights, made in the work folder")
    parser.add_argument("--artifact", type=Path, help="the checkpoint's artifact; default: exported to the work folder")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json for the random checkpoint")
    parser.add_argument("--layers", type=int, default=24, help="of the random checkpoint; bge-m3-lite takes 24 alone")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument(
        "--precisions", nargs="+", default=sorted(PRECISIONS, key=lambda name: name != "fp32"), help="ours to measure"
    )
    parser.add_argument(
        "--contestants", nargs="+", default=("bgem3", *PEERS), choices=("bgem3", *PEERS, "openvino-bf16")
    )
    shapes = [*(f"{n_texts}x{n_tokens}" for n_texts, n_tokens in SHAPES), MIX]
    parser.add_argument("--shapes", nargs="+", default=shapes, choices=shapes, help="the mix is compared: keep it")
    parser.add_argument("--environments", type=Path, help="folder of the peers' Python environments")
    parser.add_argument("--make-environments", action="store_true", help="make those that are missing, with pip")
    for kind in PACKAGES:
        parser.add_argument(f"--{kind}-python", type=Path, help="Python of one environment")
    parser.add_argument("--work", type=Path, help="folder for what is made; default: a temporary one")
    parser.add_argument("--passages", type=Path, help="JSON file of passages with questions")
    parser.add_argument("--n-passages", type=int, default=12)
    parser.add_argument("--n-questions", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/cpu_peers.json"))
    return parser


if __name__ == "__main__":
    main()
