"""Compare encoders: each runs in a process of its own, in interleaved turns."""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environments import EncoderError, find_python, import_seconds, run_worker
from benchmarks.peer import Peer, Settings
from benchmarks.peers import PEERS
from benchmarks.workload import MIX, Scenario
from bgem3.scoring.atomic_files import whole_file

MIN_COSINE = 0.99  # of dense vectors with float32's; a float encoder below it computes something else
QUANTIZED = ("int8", "q8_0")
REST = 0.2  # seconds before a process starts, in which the threads of the one before stop spinning
N_CALLS, CALL_SECONDS = 20, 1.0  # in a scenario and turn: at most so many calls begin within so many seconds, or one
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


def choose_encoders(names: Sequence[str], precisions: Sequence[str]) -> list[Encoder]:
    """Return bgem3 in its precisions, then the peers named: "all", "openvino" or "openvino-int8"."""
    known = {
        f"{peer.name}-{each}": Encoder(peer=peer, precision=each) for peer in PEERS.values() for each in peer.precisions
    }
    chosen = []
    for name in (*(f"bgem3-{precision}" for precision in precisions), *names):
        found = [each for full_name, each in known.items() if name in ("all", full_name, each.peer.name)]
        if not found:
            raise ValueError(f"there is no encoder {name!r}; there are all, {', '.join([*PEERS, *known])}")
        chosen += [each for each in found if name != "all" or each.peer.name != "bgem3"]
    return list(dict.fromkeys(chosen))


@dataclass(kw_only=True)
class Comparison:
    """Compare the outputs of encoders, and time them; `report` is written to `path` after every step.

    Attributes
    ----------
    report : the description of the machine and the scenarios; ``encoders`` and ``cpus_used_by_others`` are added
    scenarios : by name, with `MIX`; only scenarios that the report describes are timed
    settings : what every encoder is told
    work : folder for what the encoders prepare
    environments : folder of their Python environments; None for this Python
    """

    report: dict[str, Any]
    path: Path
    encoders: Sequence[Encoder]
    scenarios: dict[str, Scenario]
    settings: Settings
    work: Path
    environments: Path | None
    n_turns: int

    def run(self) -> None:
        """Check every encoder, float32 first, and then take all turns, every second one in reverse order."""
        self.report |= {"encoders": {}, "cpus_used_by_others": []}
        for encoder in self.encoders:
            names = {"kind": encoder.peer.name, "label": encoder.peer.label, "precision": encoder.precision}
            self.report["encoders"][encoder.label] = names | {"scenarios": {}}
        for encoder in sorted(self.encoders, key=lambda encoder: encoder.precision != "fp32"):
            self._attempt("preparing", self._check, encoder)
        for turn in range(self.n_turns):
            start, busy = time.perf_counter(), others_seconds()
            for encoder in self.encoders[:: 1 if turn % 2 == 0 else -1]:
                self._attempt(f"turn {turn + 1} of {self.n_turns}:", self._take_turn, encoder, turn)
            used = (others_seconds() - busy) / (time.perf_counter() - start)
            self.report["cpus_used_by_others"].append(used)
            self._write()

    def _attempt(self, what: str, step: Callable[..., None], encoder: Encoder, *arguments: int) -> None:
        """Take a step with an encoder that can run, or note why it cannot."""
        found = self.report["encoders"][encoder.label]
        if "not_run" in found:
            return
        _say(f"{what} {encoder.label}")
        try:
            step(encoder, found, *arguments)
        except EncoderError as error:
            _say(str(error))
            found["not_run"] = str(error)
        self._write()

    def _write(self) -> None:
        with whole_file(self.path) as file:
            file.write((json.dumps(self.report, indent=1, ensure_ascii=False) + "\n").encode())

    def _answers(self, encoder: Encoder, **job: Any) -> Generator[dict[str, Any]]:
        """Run a job in an encoder's process, and yield its answers."""
        files, log = self.work / encoder.peer.environment, self.work / f"{encoder.peer.name}-{encoder.precision}.log"
        files.mkdir(parents=True, exist_ok=True)
        job["settings"] = self.settings | {"precision": encoder.precision, "files": str(files)}
        python = find_python(encoder.peer, self.environments)
        time.sleep(REST)
        return run_worker(encoder.peer, python, job, log)

    def _check(self, encoder: Encoder, found: dict[str, Any]) -> None:
        """Prepare what an encoder loads, compare its outputs with the first one's, and choose its batch size."""
        if missing := [need for need in encoder.peer.needs if self.settings[need] is None]:
            raise EncoderError(f"it needs the {' and the '.join(missing)}")
        with closing(self._answers(encoder, prepare=True)) as answers:
            prepared = next(answers)
        found |= {name: prepared[name] for name in ("versions", "disk_bytes")}
        outputs, expected, mix = self.work / "outputs.npz", self.work / "expected.npz", self.scenarios[MIX]
        few = mix | {"texts": mix["texts"][::2], "batch_size": encoder.peer.batch_sizes[:2][-1], "path": str(outputs)}
        with closing(self._answers(encoder, check=few)) as answers:
            next(answers)
            found["tried_seconds"] = next(answers)["tried_seconds"]
        if not any("agreement" in other for other in self.report["encoders"].values()):
            shutil.copyfile(outputs, expected)
        with np.load(outputs) as arrays, np.load(expected) as arrays_of_first:
            found["agreement"] = agreement(arrays, arrays_of_first)
        cosine = found["agreement"]["dense_min_cosine"]
        if encoder.precision not in QUANTIZED and cosine < MIN_COSINE:
            raise EncoderError(f"its dense vectors are not the first encoder's (cosine {cosine:.4f})")

    def _take_turn(self, encoder: Encoder, found: dict[str, Any], turn: int) -> None:
        """Measure an encoder's start, and time it on every scenario of a turn that it has the heads for."""
        starts = {"import_s": import_seconds(encoder.peer, find_python(encoder.peer, self.environments))}
        size = int(min(found["tried_seconds"], key=found["tried_seconds"].__getitem__))
        jobs = {}
        for name in self.report["scenarios"]:
            scenario, cell = self.scenarios[name], found["scenarios"].get(name, {})
            has_heads = set(scenario["outputs"]) <= set(encoder.peer.outputs)
            if has_heads and turn < scenario["n_turns"] and "not_run" not in cell:
                effort = {"n_calls": max(N_CALLS, 2 * scenario["n_clients"]), "most_seconds": CALL_SECONDS}
                jobs[name] = scenario | effort | {"batch_size": scenario["batch_size"] or size}
        with closing(self._answers(encoder, scenarios=list(jobs.values()))) as answers:
            opened = next(answers)
            starts |= {"load_s": opened["load_s"], "cold_start_s": opened["since_start_s"]}
            for name, seconds in starts.items():
                found.setdefault(name, []).append(seconds)
            found["loaded_rss_bytes"] = opened["rss_bytes"]
            for name, job in jobs.items():
                try:
                    answer = next(answers)
                except EncoderError as error:  # the process is gone: later scenarios wait for the next turn
                    _say(f"{name}: {error}")
                    found["scenarios"][name] = {"not_run": str(error)}
                    return
                new = {"batch_size": job["batch_size"], "seconds": [], "wall_s": []}
                cell = found["scenarios"].setdefault(name, new)
                cell["seconds"].append(answer["seconds"])
                cell["wall_s"].append(answer["wall_s"])
                if job["group"] != "long":
                    found["peak_rss_bytes"] = max(found.get("peak_rss_bytes", 0), answer["peak_rss_bytes"])


def _say(what: str) -> None:
    print(time.strftime("%H:%M:%S"), what, file=sys.stderr, flush=True)


def agreement(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return the lowest cosines of dense vectors and multi-vectors, and the largest difference of lexical weights.

    Parameters
    ----------
    found, expected : ``dense`` (N, D); where the encoder has them, ``multivector`` (V, M) and ``sparse`` (N, V)
    """
    report = {}
    for name in ("dense", "multivector"):
        if name in found and name in expected:
            cosines = np.einsum("nd,nd->n", found[name], expected[name], dtype=np.float64)
            report[f"{name}_min_cosine"] = float(np.nan_to_num(cosines, nan=-1.0).min())
    if "sparse" in found and "sparse" in expected:
        report["sparse_max_difference"] = float(np.abs(found["sparse"] - expected["sparse"]).max())
        report["sparse_max"] = float(expected["sparse"].max())
    return report


def others_seconds() -> float:
    """Return the CPU seconds used since Linux started, without this process's and its ended children's; 0 elsewhere."""
    if not STAT.is_file():
        return 0.0
    user, nice, system, _idle, _wait, *others = STAT.read_text(encoding="utf-8").split(maxsplit=9)[1:9]
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = time.process_time() + children.ru_utime + children.ru_stime
    return sum(map(int, (user, nice, system, *others))) / os.sysconf("SC_CLK_TCK") - ours
