"""The encoders' Python environments, and the processes that run in them."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.peer import Peer
from bgem3.runtime.machine import resident_bytes

ROOT = Path(__file__).parent.parent
READY = ".ready"  # written last, so that an unfinished environment is made again
TIMEOUT = 600.0  # seconds that one answer may take: a scenario, or a conversion of the model
EXIT_SECONDS = 10.0  # that a process may take to end after its last answer, before it is killed
START = "import sys; sys.path.insert(0, sys.argv[1]); from benchmarks import worker; worker.main()"
IMPORT = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


class EncoderError(Exception):
    """An encoder cannot run; the message says why."""


def find_python(peer: Peer, folder: Path | None) -> str:
    """Return a peer's Python; without a folder, this one. Make its environment in the folder if it is missing."""
    if folder is None or not peer.environment:
        return sys.executable
    environment = folder.absolute() / peer.environment
    python = str(environment / "bin" / "python")
    if not (environment / READY).exists():
        _run([sys.executable, "-m", "venv", str(environment)])
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages])
        (environment / READY).touch()
    return python


def import_seconds(peer: Peer, python: str) -> float:
    """Return how long a fresh interpreter takes to import a peer's modules."""
    return float(_run([python, "-I", "-c", IMPORT.format(", ".join(peer.modules))]).splitlines()[-1])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EncoderError(f"{' '.join(command[:4])} ... failed: {last_line(done.stdout + done.stderr)}")
    return done.stdout


def last_line(text: str) -> str:
    """Return the last line that is not blank, in at most 300 characters."""
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "")


def run_worker(peer: Peer, python: str, job: dict[str, Any], log: Path) -> Generator[dict[str, Any]]:
    """Run `benchmarks.worker` on a job; its standard error goes to a log file.

    Yields
    ------
    Each answer, with ``since_start_s``, when it came, and the process's memory: ``rss_bytes`` and ``peak_rss_bytes``.

    Raises
    ------
    EncoderError
        If the process fails, or one answer takes longer than ``TIMEOUT``.
    """
    names = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    variables = dict.fromkeys(names, str(job["settings"]["threads"]))
    variables |= {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    variables["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's second thread would spin beside ONNX Runtime's
    start = time.perf_counter()
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [python, "-I", "-c", START, str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,  # select sees what a buffer would hide
            env=os.environ | variables,
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job | {"peer": peer.name}).encode() + b"\n")
            while True:
                if not select.select([process.stdout], [], [], TIMEOUT)[0]:
                    raise EncoderError(f"no answer within {TIMEOUT:.0f} s")
                if not (line := process.stdout.readline()):
                    break
                memory = {"rss_bytes": resident_bytes("VmRSS", process.pid)}
                memory["peak_rss_bytes"] = resident_bytes("VmHWM", process.pid)
                yield json.loads(line) | {"since_start_s": time.perf_counter() - start} | memory
            with suppress(subprocess.TimeoutExpired):
                process.wait(EXIT_SECONDS)
        finally:
            process.kill()
    said = last_line(log.read_text(encoding="utf-8", errors="replace"))
    raise EncoderError(f"{said} (exit status {process.returncode})".strip())
