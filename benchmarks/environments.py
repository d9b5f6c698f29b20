"""The encoders' Python environments, and their processes."""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peer import Peer

ROOT = Path(__file__).parent.parent
READY = ".ready"  # written last, so that an unfinished environment is made again
START = "import sys; sys.path.insert(0, sys.argv[1]); from benchmarks.worker import main; main(sys.argv[2])"
INSPECT = """
import importlib, json, re, sys, time
from importlib.metadata import PackageNotFoundError, version
modules, packages = sys.argv[1].split(), sys.argv[2].split()
start = time.perf_counter()
for module in modules:
    importlib.import_module(module)
found = {"import_s": time.perf_counter() - start, "versions": {"python": sys.version.split()[0]}}
for package in packages:
    name = re.split(r"[\\[=<>~]", package)[0]
    try:
        found["versions"][name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class EncoderError(Exception):
    """An encoder cannot run; the message says why."""


def find_python(peer: Peer, folder: Path | None, say: Callable[[str], None]) -> str:
    """Return a peer's Python; make its environment if it is missing, with uv where there is one.

    Parameters
    ----------
    folder : where environments are made; None to take this Python for every peer
    say : is told before something takes long

    Raises
    ------
    EncoderError
        If the packages cannot be installed; the message is the installer's last line.
    """
    if folder is None or not peer.environment:
        return sys.executable
    environment = folder.absolute() / peer.environment
    python = str(environment / "bin" / "python")
    if not (environment / READY).exists():
        say(f"making the Python environment {environment}: {' '.join(peer.packages)}")
        if uv := shutil.which("uv"):
            commands = [[uv, "venv", "--allow-existing", "--python", sys.executable, str(environment)]]
            commands.append([uv, "pip", "install", "--python", python, *peer.packages])
        else:
            commands = [[sys.executable, "-m", "venv", str(environment)]]
            commands.append([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages])
        for command in commands:
            _run(command, "its Python environment cannot be made")
        (environment / READY).touch()
    return python


def inspect(peer: Peer, python: str, timeout: float) -> dict[str, Any]:
    """Import a peer's modules in a fresh interpreter; return the seconds as ``import_s``, and ``versions``."""
    command = [python, "-I", "-c", INSPECT, " ".join(peer.modules), " ".join(peer.packages)]
    found: dict[str, Any] = json.loads(_run(command, "it cannot be imported", timeout).splitlines()[-1])
    return found


def _run(command: list[str], failure: str, timeout: float | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise EncoderError(f"{failure}: no end within {timeout:.0f} s") from None
    if done.returncode:
        raise EncoderError(f"{failure}: {last_line(done.stdout + done.stderr)}")
    return done.stdout


def last_line(text: str) -> str:
    """Return the last line with anything on it, cut to what fits a table's footnote."""
    return [line.strip() for line in text.splitlines() if line.strip()][-1:][0][:300] if text.strip() else ""


class EncoderProcess:
    """A running `benchmarks.worker`.

    Parameters
    ----------
    python : the Python that runs it
    log : file for what it writes to standard error
    n_threads : threads of the numerical libraries
    timeout : seconds that an answer may take
    """

    def __init__(self, peer: Peer, python: str, log: Path, n_threads: int, timeout: float) -> None:
        variables = dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(n_threads))
        variables |= {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
        # NumPy's second thread would spin beside ONNX Runtime's, and slow bge-m3-lite down.
        variables |= {"OPENBLAS_NUM_THREADS": "1"}
        self._log, self._timeout = log, timeout
        self.started = time.perf_counter()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [python, "-I", "-c", START, str(ROOT), peer.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | variables,
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def ask(self, **request: Any) -> Any:
        """Send a request and return its answer.

        Raises
        ------
        EncoderError
            If the process ends instead, or does not answer in time; it is then killed.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        if not select.select([self._process.stdout], [], [], self._timeout)[0]:
            self._process.kill()
            raise EncoderError(f"no answer within {self._timeout:.0f} s")
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        status = self._process.wait()
        said = last_line(self._log.read_text(encoding="utf-8", errors="replace"))
        raise EncoderError(f"{said} (exit status {status})".strip())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        try:
            self._process.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
