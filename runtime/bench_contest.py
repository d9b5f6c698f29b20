"""Encoders beside each other, in a process each, taking turns, after a look at whether they compute the same."""

import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.bench_environments import PythonFinder
from bgem3.runtime.bench_peers import PEERS, Peer
from bgem3.runtime.bench_report import TIME_LIMIT, BenchReport, is_missing, not_run
from bgem3.runtime.bench_scenarios import LONG, MIX, QUERY, Scenario
from bgem3.runtime.bench_workload import Effort

OURS = "bgem3"
MIN_COSINE = 0.99  # of dense vectors; what computes in floats and is below computes something else, and is not timed
QUANTIZED = ("int8", "q8_0")
REST = 0.2  # seconds before each request, in which what ran before stops spinning
N_TUNED_TEXTS = 12
STAT = Path("/proc/stat")
HOW_TO_GET = {
    "checkpoint": "the artifact's checkpoint: --checkpoint",
    "portable": "a portable graph, exported with --portable",
    "artifact": "an artifact",
}
LOAD_TOKENS = 1000  # what starting a process costs, in tokens, to estimate the time that is left
BOOT = """
import runpy, sys, types
for name, path in (("bgem3", []), ("bgem3.runtime", [sys.argv[1]])):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = path
runpy.run_module("bgem3.runtime.bench_worker", run_name="__main__")
"""
"""Runs the worker where bgem3 is not installed, without what bgem3.runtime imports."""


class ContestantError(Exception):
    """An encoder cannot run; the message says why."""


class BrokenCell(Exception):  # noqa: N818
    """An encoder's process ended in the middle of a scenario."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result: a kind of encoder, its precision, and its batch size where that is not its best."""

    kind: str
    precision: str
    batch_size: int | None = None

    @property
    def peer(self) -> Peer:
        """What is known of this kind."""
        return PEERS[self.kind]

    @property
    def process(self) -> tuple[str, str]:
        """What tells the processes apart."""
        return self.kind, self.precision

    @property
    def label(self) -> str:
        """The name that is shown."""
        size = f", batch {self.batch_size}" if self.batch_size else ""
        return f"{self.peer.label} {self.precision}{size}"


def rows_of(names: Sequence[str], precisions: Sequence[str], device: str) -> list[Row]:
    """Return what is to be measured: bgem3 in each precision, int8 first, then the peers named.

    Parameters
    ----------
    names : "all", kinds ("openvino") or kinds with a precision ("openvino-int8")
    precisions : of the artifact
    device : peers that do not run on it are left out of "all"

    Raises
    ------
    ValueError
        If a name is not known.
    """
    kind_of_device = device.partition(":")[0]
    is_cuda = kind_of_device == "cuda"  # on CPU, fp16 is float32 in FlagEmbedding and slower than that in PyTorch
    peers = {f"{kind}-{held}": Row(kind=kind, precision=held) for kind, p in PEERS.items() for held in p.precisions}
    peers = {name: row for name, row in peers.items() if row.kind != OURS and (is_cuda or row.precision != "fp16")}
    rows = [Row(kind=OURS, precision=held) for held in sorted(precisions, key=lambda held: held != "int8")]
    for name in names:
        found = [
            row
            for known, row in peers.items()
            if (name == "all" and kind_of_device in row.peer.devices) or name in (row.kind, known)
        ]
        if not found:
            raise ValueError(f"there is no peer {name!r}; there are {', '.join(['all', *PEERS, *peers])}")
        for row in found:
            default = row.peer.default_batch_size
            rows += [row] + ([Row(kind=row.kind, precision=row.precision, batch_size=default)] if default else [])
    return list(dict.fromkeys(rows))


class Worker:
    """An encoder's process."""

    def __init__(self, kind: str, python: str, log: Path, n_threads: int) -> None:
        variables = dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(n_threads))
        variables |= {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
        # A second thread of NumPy's would spin beside those of ONNX Runtime, and slow bge-m3-lite down.
        variables |= {"OPENBLAS_NUM_THREADS": "1"}
        program = (
            ["-m", "bgem3.runtime.bench_worker"]
            if not PEERS[kind].environment
            else ["-I", "-c", BOOT, str(Path(__file__).parent)]
        )
        self._log = log
        self.started = time.perf_counter()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, *program, kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                env=os.environ | variables,
            )

    def ask(self, **request: Any) -> Any:
        """Send a request and wait for its answer; ContestantError if the process ends instead."""
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        status, said = self._process.wait(), self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = [line.strip() for line in said if line.strip()][-1:]
        raise ContestantError(f"{' '.join(last)} (exit status {status})"[-300:])

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


class Contest:
    """Runs every encoder on every scenario, turn after turn, and keeps the results in a report's ``encoders``.

    An encoder's process starts anew in each turn: so its start is measured, there is memory for one at a time, and no
    other encoder's threads are about.

    Parameters
    ----------
    report : where results are kept as they come
    rows : bgem3's first; times are compared with the first row's
    scenarios : by name, the quickest first, so that how long the others take can be estimated
    names : of the scenarios to time
    settings : what encoders are told, besides what each adds to it
    work : folder for what encoders load and is made here
    pythons : finds the Python of each environment
    effort : how often
    cell_limit : seconds; a scenario of which one call will take an encoder longer is not run

    Where the report has results already, of a benchmark that was stopped, turns are added to them.
    """

    def __init__(
        self,
        report: BenchReport,
        rows: Sequence[Row],
        scenarios: dict[str, Scenario],
        names: Sequence[str],
        settings: dict[str, Any],
        work: Path,
        pythons: PythonFinder,
        effort: Effort,
        cell_limit: float,
    ) -> None:
        self._report, self._scenarios, self._settings = report, scenarios, settings
        # Those of one choice of settings follow each other: changing it means to open the encoder anew. Long texts come
        # last, so that their memory is not what the others' peak is read from.
        self._names = sorted(names, key=lambda name: (scenarios[name].group == LONG, scenarios[name].tuned_as == MIX))
        self._work, self._pythons, self._effort, self._cell_limit = work, pythons, effort, cell_limit
        self._first = rows[0].label
        self._groups = [[row for row in rows if row.process == process] for process in {row.process: 0 for row in rows}]
        self._expected = work / "expected.npz"
        before = without_late(report.data.get("encoders", {}))
        if not before:
            self._expected.unlink(missing_ok=True)
        self._found: dict[str, dict[str, Any]] = before | {
            row.label: {"kind": row.kind, "label": row.peer.label, "precision": row.precision, "scenarios": {}}
            for row in rows
            if row.label not in before
        }
        described = {name: scenarios[name].described() for name in names}
        report.keep(report.data.get("scenarios", {}) | described, "scenarios")
        report.keep(self._found, "encoders")

    def run(self) -> None:
        """Take all turns, those that begin in time."""
        left = {turn: self._left_in(turn) for turn in range(self._effort.n_turns)}
        progress = Progress({turn: (len(groups), self._n_tokens(turn)) for turn, groups in left.items()})
        for turn, groups in left.items():
            if not groups:
                continue
            others = others_cpus()
            groups = groups[:: 1 if turn % 2 == 0 else -1]
            if turn == 0:  # float32 first: the others' outputs are compared with those
                groups.sort(key=lambda rows: rows[0].precision != "fp32")
            for rows in groups:
                self._report.say(f"turn {turn + 1} of {self._effort.n_turns}: {rows[0].label}{progress.left()}")
                self._take_turn(rows, turn)
                progress.step(turn)
                self._summarise()
                self._report.keep(self._found, "encoders")
            if others:
                self._report.keep([*self._report.data.get("cpus_used_by_others", []), others()], "cpus_used_by_others")

    def _left_in(self, turn: int) -> list[list[Row]]:
        """Return the encoders that have not taken a turn, in a benchmark that was stopped, or ever."""
        return [rows for rows in self._groups if len(self._found[rows[0].label].get("cold_start_s", ())) <= turn]

    def _take_turn(self, rows: Sequence[Row], turn: int) -> None:
        """Start an encoder and run it on every scenario of this turn."""
        found = self._found[rows[0].label]
        if "not_run" in found:
            return
        if not self._report.seconds_left:
            for row in rows:
                self._found[row.label] |= {} if self._found[row.label]["scenarios"] else not_run(TIME_LIMIT)
            return
        try:
            settings = self._settings_of(rows[0])
            is_new = "tuned" not in found
            if is_new and rows[0].peer.prepare:
                with contextlib.closing(self._start(rows[0])) as worker:
                    worker.ask(prepare=settings)
            with contextlib.closing(self._start(rows[0])) as worker:
                self._load(worker, rows, settings)
                if is_new:
                    self._compare(worker, rows[0])
                    self._tune(worker, rows)
                for name in self._names:
                    if self._effort.turns(self._scenarios[name].tokens_per_call) > turn:
                        for row in rows:
                            self._time(worker, row, name)
        except BrokenCell as error:
            self._report.say(f"{rows[0].label}: {error}")
        except (ContestantError, RuntimeError) as error:
            self._report.say(f"{rows[0].label}: {error}")
            for row in rows:
                self._found[row.label] |= not_run(str(error))

    def _settings_of(self, row: Row) -> dict[str, Any]:
        missing = [need for need in row.peer.needs if self._settings.get(need) is None]
        if missing:
            raise ContestantError(f"it needs {HOW_TO_GET[missing[0]]}")
        return self._settings | {"precision": row.precision, "files": str(self._work / row.kind)}

    def _start(self, row: Row) -> "Worker":
        python = self._pythons(row.peer)
        time.sleep(REST)
        log = self._work / f"{row.kind}-{row.precision}.log"
        return Worker(row.kind, python, log, self._settings["threads"])

    def _load(self, worker: Worker, rows: Sequence[Row], settings: dict[str, Any]) -> None:
        workloads = {name: scenario.workload() for name, scenario in self._scenarios.items()}
        answer = worker.ask(load=settings, workloads=workloads)
        answer["cold_start_s"] = time.perf_counter() - worker.started
        for row in rows:
            found = self._found[row.label]
            for name in ("cold_start_s", "import_s", "load_s", "first_s"):
                found.setdefault(name, []).append(answer[name])
            found["versions"], found["loaded_rss_bytes"] = answer["versions"], answer["loaded_rss_bytes"]
            found["disk_bytes"] = sum(path.stat().st_size for path in row.peer.files(settings))

    def _compare(self, worker: Worker, row: Row) -> None:
        """Compare the outputs on the mix with those of the first encoder; ContestantError if they are too far."""
        path = self._work / "outputs.npz"
        worker.ask(save=MIX, path=str(path), batch_size=row.peer.batch_sizes[:2][-1])
        if not self._expected.is_file():
            shutil.copyfile(path, self._expected)
        with np.load(path) as outputs, np.load(self._expected) as expected:
            found = agreement(dict(outputs), dict(expected))
        self._found[row.label]["agreement"] = found
        if row.precision not in QUANTIZED and found["dense_min_cosine"] < MIN_COSINE:
            raise ContestantError(f"its dense vectors are not the first one's (cosine {found['dense_min_cosine']:.4f})")

    def _tune(self, worker: Worker, rows: Sequence[Row]) -> None:
        n_texts = {QUERY: 1, MIX: N_TUNED_TEXTS}
        tuned = {name: worker.ask(tune=name, n_texts=n) for name, n in n_texts.items()}
        for row in rows:
            self._found[row.label]["tuned"] = tuned

    def _time(self, worker: Worker, row: Row, name: str) -> None:
        """Time a row on a scenario, unless it lacks a head or takes too long."""
        scenario, cells = self._scenarios[name], self._found[row.label]["scenarios"]
        is_of_batches = scenario.batch_size is None
        if not set(scenario.outputs) <= set(row.peer.outputs) or (row.batch_size and not is_of_batches):
            return
        if is_missing(cells.get(name)):
            return
        rates = [cell["flop_per_s"] for cell in cells.values() if "flop_per_s" in cell]
        expected = scenario.flop_per_call / max(rates) if rates else 0.0
        if expected > self._cell_limit:
            cells[name] = not_run(f"one call would take about {expected:.0f} s, the limit is {self._cell_limit:.0f} s")
            return
        if not self._report.seconds_left:
            cells.setdefault(name, not_run(TIME_LIMIT))
            return
        tuned = self._found[row.label]["tuned"][scenario.tuned_as]
        choice = {
            "variant": tuned["variant"],
            "batch_size": scenario.batch_size or row.batch_size or tuned["batch_size"],
        }
        n_calls = max(self._effort.n_calls, 2 * scenario.n_clients)
        try:
            answer = worker.ask(run=name, n_calls=n_calls, seconds=self._effort.cell_seconds, **choice)
        except ContestantError as error:
            cells[name] = not_run(str(error)) | {"broke": True}
            raise BrokenCell(f"{name}: {error}") from None
        cell = cells.setdefault(name, choice | {"seconds": [], "wall_s": []})
        cell["seconds"].append(answer["seconds"])
        cell["wall_s"].append(answer["wall_s"])
        summarise(cell, scenario, self._report.data.get("matrix_rate", {}), row.precision)
        cell["peak_rss_bytes"] = max(cell.get("peak_rss_bytes", 0), answer["peak_rss_bytes"])
        described = self._report.data["scenarios"]  # also of what a resumed report has and this run does not
        peaks = [cells[other].get("peak_rss_bytes", 0) for other in cells if described[other]["group"] != LONG]
        self._found[row.label]["peak_rss_bytes"] = max(peaks, default=cell["peak_rss_bytes"])

    def _summarise(self) -> None:
        """Compare every cell's times with the first row's, turn by turn."""
        firsts = self._found[self._first]["scenarios"]
        for found in self._found.values():
            for name, cell in found["scenarios"].items():
                if "seconds" in cell and "seconds" in firsts.get(name, {}):
                    pairs = zip(cell["seconds"], firsts[name]["seconds"], strict=False)
                    ratios = [statistics.median(times) / statistics.median(ours) for times, ours in pairs]
                    cell["times_first"] = {
                        "median": statistics.median(ratios),
                        "lowest": min(ratios),
                        "highest": max(ratios),
                    }

    def _n_tokens(self, turn: int) -> float:
        """Return about how much an encoder has to do in a turn."""
        scenarios = [self._scenarios[name] for name in self._names]
        return LOAD_TOKENS + sum(s.tokens_per_call for s in scenarios if self._effort.turns(s.tokens_per_call) > turn)


class Progress:
    """Estimates the time that is left, from what was done so far.

    Parameters
    ----------
    work : by turn, how many encoders take it, and how much each has to do in it
    """

    def __init__(self, work: Mapping[int, tuple[int, float]]) -> None:
        self._start, self._done = time.perf_counter(), 0.0
        self._work = {turn: tokens for turn, (_, tokens) in work.items()}
        self._all = sum(n_encoders * tokens for n_encoders, tokens in work.values())

    def step(self, turn: int) -> None:
        """Count an encoder's turn as done."""
        self._done += self._work[turn]

    def left(self) -> str:
        """Say how long the rest will take."""
        if not self._done:
            return ""
        seconds = (time.perf_counter() - self._start) * (self._all / self._done - 1)
        return f", about {seconds / 60:.0f} minutes left"


def without_late(encoders: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return results without what the time limit left out, so that it is run now."""
    late = not_run(TIME_LIMIT)
    kept = {label: found for label, found in encoders.items() if found.get("not_run") != TIME_LIMIT}
    for found in kept.values():
        found["scenarios"] = {name: cell for name, cell in found["scenarios"].items() if cell != late}
    return kept


def summarise(cell: dict[str, Any], scenario: Scenario, matrix_rate: dict[str, Any], precision: str) -> None:
    """Add to a cell what its seconds mean: quantiles, rates, and the share of the machine's matrix products."""
    times = [seconds for turn in cell["seconds"] for seconds in turn]
    lower, p50, upper, p95 = np.percentile(times, [25, 50, 75, 95]).tolist()
    seconds_per_call = sum(cell["wall_s"]) / len(times) if scenario.n_clients > 1 else p50
    cell |= {
        "n_calls": len(times),
        "p50_s": p50,
        "p95_s": p95,
        "spread": (upper - lower) / p50,
        "tokens_per_s": scenario.tokens_per_call / seconds_per_call,
        "flop_per_s": scenario.flop_per_call / seconds_per_call,
    }
    rate = matrix_rate.get("int8" if precision in QUANTIZED else precision, matrix_rate.get("fp32", {}))
    if "flop_per_s" in rate:
        cell["share_of_matrix_rate"] = cell["flop_per_s"] / rate["flop_per_s"]


def agreement(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Return the lowest cosines of dense vectors and of multi-vectors, and how far lexical weights are apart.

    Parameters
    ----------
    found, expected : dense (N, D) of unit length; where there are multi-vectors ``vectors`` (V, M); where there are
        lexical weights ``weights`` (L,) and ``entries`` (L, 2), their texts and token ids
    """
    report = {}
    for name, key in (("dense", "dense"), ("multivector", "vectors")):
        if key in found and key in expected:
            cosines = np.einsum("nd,nd->n", found[key], expected[key], dtype=np.float64)
            report[f"{name}_min_cosine"] = float(np.nan_to_num(cosines, nan=-1.0).min())
    if "weights" in found and "weights" in expected:
        ours, theirs = (
            dict(zip(map(tuple, o["entries"].tolist()), o["weights"].tolist(), strict=True)) for o in (found, expected)
        )
        apart = [abs(ours.get(entry, 0.0) - theirs.get(entry, 0.0)) for entry in ours.keys() | theirs.keys()]
        report["sparse_max_difference"] = max(apart, default=0.0)
        report["sparse_max"] = max(theirs.values(), default=0.0)
    return report


def others_cpus() -> Callable[[], float] | None:
    """Return what tells how many CPUs processes not of this benchmark have used since now; None where not on Linux."""
    if not STAT.is_file():
        return None
    start, busy = time.perf_counter(), others_seconds()
    return lambda: (others_seconds() - busy) / (time.perf_counter() - start)


def others_seconds() -> float:
    """Return the CPU seconds used since Linux started, without this process's and its ended children's."""
    user, nice, system, _idle, _wait, *others = STAT.read_text(encoding="utf-8").split(maxsplit=9)[1:9]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = time.process_time() + used.ru_utime + used.ru_stime
    return sum(map(int, (user, nice, system, *others))) / os.sysconf("SC_CLK_TCK") - ours
