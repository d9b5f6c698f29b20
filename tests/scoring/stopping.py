"""Saves that are stopped: killed or interrupted at one step after another, or out of disk space.

Runs in a process of its own, which forks one for each save: ``python -m tests.scoring.stopping FOLDER WAY N JOB...``.
What is saved is a version, a number, so that reading tells which one there is. Prints how many saves were stopped.
"""

import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bgem3.scoring import file_system
from bgem3.scoring.file_system import remove
from tests.paths import ROOT
from tests.scoring.versions import (
    append_index,
    assert_nothing_is_left,
    read_appended,
    read_embeddings,
    read_folder,
    save_embeddings,
    save_folder,
)

STEPS = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "fcntl.flock", "ctypes.dlsym"}


def run_module(name: str, *arguments: object) -> str:
    """Run a module of these tests in a process of its own; return what it prints."""
    command = [sys.executable, "-m", f"tests.scoring.{name}", *map(str, arguments)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


JOBS: dict[str, tuple[str, Callable[[Path, int], None], Callable[[Path], int]]] = {
    "npz": ("saved.npz", save_embeddings, read_embeddings),
    "parts": ("saved", save_embeddings, read_embeddings),
    "append": ("appended", append_index, read_appended),
    "exchange": ("artifact", save_folder, read_folder),
    "two_steps": ("artifact", save_folder, read_folder),
}


def in_child(run: Callable[[], None]) -> int:
    """Fork a process for a function, and return its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        run()
        status = 0
    except (OSError, KeyboardInterrupt):
        status = 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def stop_at(number: int, stop: Callable[[], None]) -> None:
    """Call ``stop`` before a step of what follows, counted from 0. A step is a call that opens, renames or removes."""
    n_left = number

    def count(event: str, _: Any) -> None:
        nonlocal n_left
        if event in STEPS:
            n_left -= 1
            if n_left == -1:
                stop()

    sys.addaudithook(count)


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed processes do not go on")


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def stop_at_steps(job: str, path: Path, stop: Callable[[], None], stride: int, is_first: bool) -> int:
    """Stop the first save of all, or a later one, at every ``stride``-th of its steps, and save again after each."""
    _, save, read = JOBS[job]
    version, number, status = 1, 0, -1

    def stopped() -> None:
        stop_at(number, stop)
        save(path, version + 1)

    save(path, version)
    while status:
        if is_first:
            remove(path)
        status = in_child(stopped)
        try:
            found = read(path)
        except FileNotFoundError:
            assert is_first
            found = version
        assert found in ((version, version + 1) if status else (version + 1,)), f"{found} for {version} after {number}"
        version, number = found + 1, number + stride
        save(path, version)
        assert read(path) == version
        assert_nothing_is_left(path)
    return number // stride - 1


def fill_disk(job: str, path: Path, n: int) -> int:
    """Let saves fail by a limit on the size of files, which grows; what they wrote must be gone at once."""
    _, save, read = JOBS[job]
    n_failed = 0
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in np.geomspace(10, 3_000, n).astype(int).tolist():
        for is_first in (True, False):

            def limited(limit: int = limit) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                save(path, 2)

            if not is_first:
                save(path, 1)
            status = os.waitstatus_to_exitcode(in_child(limited))
            assert status in (0, 2)
            if status:
                n_failed += 1
                assert is_first or read(path) == 1
                assert not is_first or not path.exists(), list(path.iterdir())
            if path.exists():
                assert_nothing_is_left(path)
                remove(path)
            assert not list(path.parent.iterdir())
    return n_failed


def main(folder: str, way: str, n: str, *jobs: str) -> None:
    os.fsync = lambda fd: None  # what is killed is not the system
    for job in jobs:
        path = Path(folder, job, JOBS[job][0])
        path.parent.mkdir()
        if job == "two_steps":  # a system that cannot exchange two folders
            file_system._renameat2 = lambda *_: False
        if way in ("killed", "interrupted"):
            starts = (False,) if job == "append" else (True, False)  # appending begins with a save of its own
            stop = kill if way == "killed" else interrupt
            print(min(stop_at_steps(job, path, stop, int(n), is_first) for is_first in starts))
        else:
            print(fill_disk(job, path, int(n)))


if __name__ == "__main__":
    main(*sys.argv[1:])
