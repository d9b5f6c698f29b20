"""Comparison: encoders beside each other, each in a process of its own, in interleaved turns."""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environments import EncoderError, find_python, import_seconds, run_worker
from benchmarks.peer import Peer, Settings
from benchmarks.peers import PEERS
from benchmarks.workload import MIX, QUERY, Scenario
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
    """Return bgem3 in its precisions, then the peers named.

    Parameters
    ----------
    names : "all", peers ("openvino") or peers with a precision ("openvino-int8")
    precisions : bgem3's

    Raises
    ------
    ValueError
        If a name or a precision is unknown.
    """
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


class Comparison:
    """Compares, tunes and times encoders, and writes the report after every step.

    Parameters
    ----------
    report : what is known before; ``encoders`` and ``cpus_used_by_others`` are added
    path : JSON file for the report
    scenarios : by name, `QUERY` and `MIX` among them; those that the report has are timed
    settings : what every encoder is told
    work : folder for what the encoders prepare
    environments : folder of their Python environments; None for this Python
    timeout : seconds that one answer of an encoder may take
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
        n_turns: int,
        timeout: float,
    ) -> None:
        self._report, self._path, self._encoders, self._scenarios = report, path, encoders, scenarios
        self._settings, self._work, self._environments = settings, work, environments
        self._n_turns, self._timeout, self._start = n_turns, timeout, time.perf_counter()
        self._found: dict[str, dict[str, Any]] = {
            each.label: {"kind": each.peer.name, "label": each.peer.label, "precision": each.precision, "scenarios": {}}
            for each in encoders
        }
        report |= {"encoders": self._found, "cpus_used_by_others": []}

    def run(self) -> None:
        """Check every encoder, float32 first, and then take all turns, every second one in reverse order."""
        for encoder in sorted(self._encoders, key=lambda encoder: encoder.precision != "fp32"):
            self._attempt("preparing", self._check, encoder)
        for turn in range(self._n_turns):
            used_by_others = others_clock()
            for encoder in self._encoders[:: 1 if turn % 2 == 0 else -1]:
                self._attempt(f"turn {turn + 1} of {self._n_turns}:", self._take_turn, encoder, turn)
            self._report["cpus_used_by_others"].append(used_by_others())
            self._write()

    def _attempt(self, what: str, step: Callable[..., None], encoder: Encoder, *arguments: int) -> None:
        """Take a step with an encoder that can run, or note why it cannot."""
        if "not_run" in self._found[encoder.label]:
            return
        self._say(f"{what} {encoder.label}")
        try:
            step(encoder, *arguments)
        except EncoderError as error:
            self._say(str(error))
            self._found[encoder.label]["not_run"] = str(error)
        self._write()

    def _write(self) -> None:
        with whole_file(self._path) as file:
            file.write((json.dumps(self._report, indent=1, ensure_ascii=False) + "\n").encode())

    def _say(self, what: str) -> None:
        print(f"{time.perf_counter() - self._start:6.0f} s  {what}", file=sys.stderr, flush=True)

    def _answers(self, encoder: Encoder, **job: Any) -> Iterator[dict[str, Any]]:
        """Run a job in an encoder's process, and yield its answers."""
        files, log = self._work / encoder.peer.name, self._work / f"{encoder.peer.name}-{encoder.precision}.log"
        files.mkdir(parents=True, exist_ok=True)
        job["settings"] = self._settings | {"precision": encoder.precision, "files": str(files)}
        python = find_python(encoder.peer, self._environments)
        time.sleep(REST)
        return run_worker(encoder.peer, python, job, log, self._timeout)

    def _check(self, encoder: Encoder) -> None:
        """Prepare what an encoder loads, compare its outputs with the first one's, and choose its settings."""
        found = self._found[encoder.label]
        if missing := [need for need in encoder.peer.needs if self._settings[need] is None]:
            raise EncoderError(f"it needs the {' and the '.join(missing)}")
        with closing(self._answers(encoder, prepare=True)) as answers:
            prepared = next(answers)
        found |= {name: prepared[name] for name in ("versions", "disk_bytes")}
        outputs, expected = self._work / "outputs.npz", self._work / "expected.npz"
        few = self._scenarios[MIX] | {"texts": self._scenarios[MIX]["texts"][::2]}
        one = self._scenarios[QUERY] | {"texts": self._scenarios[QUERY]["texts"][:1]}
        check = {"compare": few, "path": str(outputs), "tune": {QUERY: one, MIX: few}}
        with closing(self._answers(encoder, variant="", check=check)) as answers:
            next(answers)
            found["tuned"] = next(answers)["tuned"]
        if not any("agreement" in other for other in self._found.values()):
            shutil.copyfile(outputs, expected)
        with np.load(outputs) as ours, np.load(expected) as theirs:
            found["agreement"] = agreement(ours, theirs)
        if encoder.precision not in QUANTIZED and (cosine := found["agreement"]["dense_min_cosine"]) < MIN_COSINE:
            raise EncoderError(f"its dense vectors are not the first encoder's (cosine {cosine:.4f})")

    def _take_turn(self, encoder: Encoder, turn: int) -> None:
        """Measure an encoder's start, and time it on every scenario of a turn."""
        found = self._found[encoder.label]
        import_s = import_seconds(encoder.peer, find_python(encoder.peer, self._environments))
        jobs = {name: self._job(found, name) for name in self._report["scenarios"] if self._is_due(encoder, name, turn)}
        variant = found["tuned"][QUERY]["variant"]
        with closing(self._answers(encoder, variant=variant, scenarios=list(jobs.values()))) as answers:
            opened = next(answers)
            starts = opened | {"import_s": import_s, "cold_start_s": opened["since_start_s"]}
            for name in ("import_s", "load_s", "first_s", "cold_start_s"):
                found.setdefault(name, []).append(starts[name])
            found["loaded_rss_bytes"] = opened["rss_bytes"]
            for name, job in jobs.items():
                try:
                    answer = next(answers)
                except EncoderError as error:  # the process is gone: later scenarios wait for the next turn
                    self._say(f"{name}: {error}")
                    found["scenarios"][name] = {"not_run": str(error)}
                    return
                new = {"variant": job["variant"], "batch_size": job["batch_size"], "seconds": [], "wall_s": []}
                cell = found["scenarios"].setdefault(name, new)
                cell["seconds"].append(answer["seconds"])
                cell["wall_s"].append(answer["wall_s"])
                if job["group"] != "long":
                    found["peak_rss_bytes"] = max(found.get("peak_rss_bytes", 0), answer["peak_rss_bytes"])

    def _is_due(self, encoder: Encoder, name: str, turn: int) -> bool:
        """Return whether an encoder runs a scenario in a turn: it has the heads, and has not failed in it."""
        scenario, cell = self._scenarios[name], self._found[encoder.label]["scenarios"].get(name, {})
        has_heads = set(scenario["outputs"]) <= set(encoder.peer.outputs)
        return has_heads and turn < scenario["n_turns"] and "not_run" not in cell

    def _job(self, found: dict[str, Any], name: str) -> dict[str, Any]:
        """Return a scenario with its settings: texts of one length are one batch, others take the chosen size."""
        scenario = self._scenarios[name]
        tuned = found["tuned"][scenario["tuned_as"]]
        size = 1 if scenario["is_single"] else len(scenario["texts"])
        return scenario | {
            "variant": tuned["variant"],
            "batch_size": tuned["batch_size"] if scenario["tuned_as"] == MIX else size,
            "n_calls": max(N_CALLS, 2 * scenario["n_clients"]),
            "most_seconds": CALL_SECONDS,
        }


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
