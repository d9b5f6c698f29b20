"""The Python environments of the encoders beside ours, each apart from the others and from this one."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bgem3.runtime.bench_peers import Peer

READY = ".ready"  # written last, so that an environment whose making was stopped is made again


class PythonFinder:
    """Finds the Python of an encoder's environment, and makes the environment where it is missing.

    Parameters
    ----------
    folder : where environments are made; None to take this Python for every encoder
    named : Pythons to take instead, by the environment's name
    say : told before something takes long
    """

    def __init__(self, folder: Path | None, named: Mapping[str, Path], say: Callable[[str], None]) -> None:
        self._folder, self._named, self._say = folder, named, say

    def __call__(self, peer: Peer) -> str:
        """Return the path of a Python.

        Raises
        ------
        RuntimeError
            If pip cannot install what the environment needs; the message is its last line.
        """
        if not peer.environment or (self._folder is None and peer.environment not in self._named):
            return sys.executable
        if peer.environment in self._named:
            return str(self._named[peer.environment])
        assert self._folder
        environment = self._folder.absolute() / peer.environment
        python = environment / "bin" / "python"
        if not (environment / READY).exists():
            self._say(f"making the Python environment {environment}: {' '.join(peer.packages)}")
            _run([sys.executable, "-m", "venv", environment])
            _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages])
            (environment / READY).touch()
        return str(python)


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(f"its Python environment cannot be made: {' '.join(said[-1:])}"[:300])
