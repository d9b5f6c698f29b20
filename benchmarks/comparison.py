"""Comparison: encoders beside each other, each in a process of its own, in interleaved turns."""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environments import EncoderError, EncoderProcess, find_python, inspect
from benchmarks.peer import Peer, Settings
from benchmarks.peers import PEERS
from benchmarks.workload import MIX, QUERY, Effort, Scenario
from bgem3.runtime.machine import resident_bytes
from bgem3.scoring.atomic_files import whole_file

MIN_COSINE = 0.99  # of dense vectors with float32's; a float encoder below it computes something else
QUANTIZED = ("int8", "q8_0")
REST = 0.2  # seconds before a process starts, in which the threads of the one before stop spinning
N_TUNED_TEXTS = 12  # of the mix; enough for a batch size to show, and few enough to try all
STAT = Path("/proc/stat")


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A peer in one precision: a row of the tables."""

    peer: Peer
    precision: str

    @property
    def label(self) -> str:
        """The name that is shown."""
        return f"{self.peer.label} {self.precision}"


def choose_encoders(names: Sequence[str], precisions: Sequence[str], device: str) -> list[Encoder]:
    """Return bgem3 in its precisions, the first in the order given, then the peers named.

    Parameters
    ----------
    names : "all", peers ("openvino") or peers with a precision ("openvino-int8")
    precisions : bgem3's
    device : "all" leaves out the peers that do not run on it, and fp16 on CPU

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    kind = device.partition(":")[0]
    others = [Encoder(peer=peer, precision=precision) for peer in PEERS.values() for precision in peer.precisions]
    others = [encoder for encoder in others if encoder.peer.name != "bgem3"]
    chosen = [Encoder(peer=PEERS["bgem3"], precision=precision) for precision in precisions]
    for name in names:
        found = [each for each in others if name in (each.peer.name, f"{each.peer.name}-{each.precision}")]
        if name == "all":
            found = [each for each in others if kind in each.peer.devices and (kind, each.precision) != ("cpu", "fp16")]
        if not found:
            raise ValueError(f"there is no peer {name!r}; there are all, {', '.join(list(PEERS)[1:])}")
        chosen += found
    return list(dict.fromkeys(chosen))


class Comparison:
    """Compares, tunes and times encoders, and writes the report after every step.

    Parameters
    ----------
    report : what is known before; ``encoders`` and ``cpus_used_by_others`` are added
    path : JSON file for the report
    scenarios : by name; the first two that are timed are `QUERY` and `MIX`
    settings : what every encoder is told
    work : folder for what the encoders prepare
    environments : folder of their Python environments; None for this Python
    timeout : seconds that one call of an encoder may take
    """

    def __init__(
        self,
        report: dict[str, Any],
        path: Path,
        *,
        encoders: Sequence[Encoder],
        scenarios: dict[str, Scenario],
        settings: Settings,
        work: Path,
        environments: Path | None,
        effort: Effort,
        timeout: float,
    ) -> None:
        self._report, self._path, self._encoders, self._scenarios = report, path, encoders, scenarios
        self._settings, self._work, self._environments = settings, work, environments
        self._effort, self._timeout, self._start = effort, timeout, time.perf_counter()
        self._found: dict[str, dict[str, Any]] = {
            each.label: {"kind": each.peer.name, "label": each.peer.label, "precision": each.precision, "scenarios": {}}
            for each in encoders
        }
        report |= {"encoders": self._found, "cpus_used_by_others": []}

    def run(self) -> None:
        """Check every encoder, float32 first, and then take all turns, every second one in reverse order."""
        for encoder in sorted(self._encoders, key=lambda encoder: encoder.precision != "fp32"):
            self._say(f"preparing {encoder.label}")
            self._attempt(self._check, encoder)
        for turn in range(self._effort.n_turns):
            used_by_others = others_clock()
            for encoder in self._encoders[:: 1 if turn % 2 == 0 else -1]:
                if "not_run" not in self._found[encoder.label]:
                    self._say(f"turn {turn + 1} of {self._effort.n_turns}: {encoder.label}")
                    self._attempt(self._take_turn, encoder, turn)
            self._report["cpus_used_by_others"].append(used_by_others())
            self._write()

    def _say(self, what: str) -> None:
        print(f"{time.perf_counter() - self._start:6.0f} s  {what}", file=sys.stderr, flush=True)

    def _attempt(self, step: Callable[..., None], encoder: Encoder, *arguments: Any) -> None:
        """Take a step with an encoder, or note why it cannot run."""
        try:
            step(encoder, *arguments)
        except EncoderError as error:
            self._say(f"{encoder.label}: {error}")
            self._found[encoder.label]["not_run"] = str(error)
        self._write()

    def _write(self) -> None:
        with whole_file(self._path) as file:
            file.write((json.dumps(self._report, indent=1, ensure_ascii=False) + "\n").encode())

    def _open(self, encoder: Encoder, names: Sequence[str], variant: str = "") -> tuple[EncoderProcess, dict[str, Any]]:
        """Start an encoder; return its process and the seconds from its start to the first embedding."""
        process = self._process(encoder)
        opened = process.ask(open=self._settings_of(encoder), variant=variant)
        opened["cold_start_s"] = time.perf_counter() - process.started
        opened["loaded_rss_bytes"] = resident_bytes("VmRSS", process.pid)
        told = ("texts", "outputs", "is_single", "n_clients")
        process.ask(workloads={name: {key: self._scenarios[name][key] for key in told} for name in names})
        return process, opened

    def _process(self, encoder: Encoder) -> EncoderProcess:
        time.sleep(REST)
        python = find_python(encoder.peer, self._environments, self._say)
        log = self._work / f"{encoder.peer.name}-{encoder.precision}.log"
        return EncoderProcess(encoder.peer, python, log, self._settings["threads"], self._timeout)

    def _settings_of(self, encoder: Encoder) -> Settings:
        files = self._work / encoder.peer.name
        files.mkdir(exist_ok=True)
        return self._settings | {"precision": encoder.precision, "files": str(files)}

    def _check(self, encoder: Encoder) -> None:
        """Prepare what an encoder loads, compare its outputs with the first one's, and choose its settings."""
        found, settings = self._found[encoder.label], self._settings_of(encoder)
        missing = [need for need in encoder.peer.needs if settings[need] is None]
        if missing:
            raise EncoderError(f"it needs {' and '.join(missing)}, which this run has not")
        with closing(self._process(encoder)) as process:
            process.ask(prepare=settings)
        process, _ = self._open(encoder, [QUERY, MIX])
        with closing(process):
            outputs = self._work / "outputs.npz"
            process.ask(save=MIX, path=str(outputs))
            expected = self._work / "expected.npz"
            if all("agreement" not in other for other in self._found.values()):
                shutil.copyfile(outputs, expected)
            with np.load(outputs) as ours, np.load(expected) as theirs:
                found["agreement"] = agreement(dict(ours), dict(theirs))
            if encoder.precision not in QUANTIZED and (cosine := found["agreement"]["dense_min_cosine"]) < MIN_COSINE:
                raise EncoderError(f"its dense vectors are not the first encoder's (cosine {cosine:.4f})")
            found["tuned"] = {name: process.ask(tune=name, n_texts=n) for name, n in ((QUERY, 1), (MIX, N_TUNED_TEXTS))}
        found["disk_bytes"] = sum(path.stat().st_size for path in encoder.peer.files(settings))

    def _take_turn(self, encoder: Encoder, turn: int) -> None:
        """Measure an encoder's start, and time it on every scenario of a turn."""
        found, timed = self._found[encoder.label], self._names(encoder, turn)
        python = find_python(encoder.peer, self._environments, self._say)
        imported = inspect(encoder.peer, python, self._timeout)
        process, opened = self._open(encoder, timed, found["tuned"][QUERY]["variant"])
        found["versions"], found["loaded_rss_bytes"] = imported["versions"], opened["loaded_rss_bytes"]
        for name, source in (("import_s", imported), ("load_s", opened), ("first_s", opened), ("cold_start_s", opened)):
            found.setdefault(name, []).append(source[name])
        for name in timed:
            try:
                self._time(process, found, name)
            except EncoderError as error:
                self._say(f"{encoder.label}, {name}: {error}")
                found["scenarios"][name] = {"not_run": str(error)}
                process.close()
                process, _ = self._open(encoder, timed)
        process.close()

    def _names(self, encoder: Encoder, turn: int) -> list[str]:
        """Return the scenarios of a turn that an encoder has the heads for and has not failed in.

        Scenarios of one variant follow each other. Long texts come last, so that peak memory is known without them.
        """
        names = []
        for name, scenario in self._scenarios.items():
            is_due = turn == 0 or (turn + 1) * tokens_per_call(scenario) <= self._effort.most_tokens
            has_heads = set(scenario["outputs"]) <= set(encoder.peer.outputs)
            if is_due and has_heads and "not_run" not in self._found[encoder.label]["scenarios"].get(name, {}):
                names.append(name)
        groups = {name: self._scenarios[name]["group"] for name in names}
        return sorted(names, key=lambda name: (groups[name] == "long", tuned_as(groups[name]) == MIX))

    def _time(self, process: EncoderProcess, found: dict[str, Any], name: str) -> None:
        """Time one scenario, with the settings chosen before."""
        scenario = self._scenarios[name]
        tuned = found["tuned"][tuned_as(scenario["group"])]
        size = 1 if scenario["is_single"] else len(scenario["texts"])
        choice = {
            "variant": tuned["variant"],
            "batch_size": tuned["batch_size"] if tuned_as(scenario["group"]) == MIX else size,
        }
        n_calls = max(self._effort.n_calls, 2 * scenario["n_clients"])
        answer = process.ask(run=name, n_calls=n_calls, seconds=self._effort.seconds, **choice)
        cell = found["scenarios"].setdefault(name, choice | {"seconds": [], "wall_s": []})
        cell["seconds"].append(answer["seconds"])
        cell["wall_s"].append(answer["wall_s"])
        if scenario["group"] != "long":
            found["peak_rss_bytes"] = max(found.get("peak_rss_bytes", 0), resident_bytes("VmHWM", process.pid))


def tuned_as(group: str) -> str:
    """Return the scenario whose chosen settings a group of scenarios takes."""
    return MIX if group in ("bulk", "rerank") else QUERY


def tokens_per_call(scenario: Scenario) -> float:
    """Return the tokens of one call, on average."""
    return float(np.mean(scenario["lengths"]) if scenario["is_single"] else sum(scenario["lengths"]))


def agreement(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Return the lowest cosines of dense vectors and multi-vectors, and the largest difference of lexical weights.

    Parameters
    ----------
    found, expected : ``dense`` (N, D); where there are multi-vectors, ``vectors`` (V, M); where there are lexical
        weights, ``weights`` (L,) and ``entries`` (L, 2), their texts and token ids
    """
    report = {}
    for name, key in (("dense", "dense"), ("multivector", "vectors")):
        if key in found and key in expected:
            cosines = np.einsum("nd,nd->n", found[key], expected[key], dtype=np.float64)
            report[f"{name}_min_cosine"] = float(np.nan_to_num(cosines, nan=-1.0).min())
    if "weights" in found and "weights" in expected:
        ours, theirs = (
            dict(zip(map(tuple, each["entries"].tolist()), each["weights"].tolist(), strict=True))
            for each in (found, expected)
        )
        apart = [abs(ours.get(entry, 0.0) - theirs.get(entry, 0.0)) for entry in ours.keys() | theirs.keys()]
        report["sparse_max_difference"] = max(apart, default=0.0)
        report["sparse_max"] = max(theirs.values(), default=0.0)
    return report


def others_clock() -> Callable[[], float | None]:
    """Return a function that tells how many CPUs other processes have used since now; None where Linux is not."""
    start, busy = time.perf_counter(), others_seconds()
    return lambda: (others_seconds() - busy) / (time.perf_counter() - start) if STAT.is_file() else None


def others_seconds() -> float:
    """Return the CPU seconds used since Linux started, without this process's and its ended children's."""
    if not STAT.is_file():
        return 0.0
    user, nice, system, _idle, _wait, *others = STAT.read_text(encoding="utf-8").split(maxsplit=9)[1:9]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = time.process_time() + children.ru_utime + children.ru_stime
    return sum(map(int, (user, nice, system, *others))) / os.sysconf("SC_CLK_TCK") - ours
