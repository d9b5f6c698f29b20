"""Saves that are killed or interrupted at one step after another; they run in a process of their own, which forks.

What is saved is a version, a number, so that reading tells which one there is.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bgem3.scoring import file_system
from bgem3.scoring.file_system import remove
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
Job = tuple[str, Callable[[Path, int], None], Callable[[Path], int], int]
JOBS: dict[str, Job] = {  # the name of what is saved, how to save and read it, and the stride of a quick test
    "npz": ("saved.npz", save_embeddings, read_embeddings, 3),
    "parts": ("saved", save_embeddings, read_embeddings, 29),
    "append": ("appended", append_index, read_appended, 29),
    "exchange": ("artifact", save_folder, read_folder, 7),
    "two_steps": ("artifact", save_folder, read_folder, 7),  # on a system that cannot exchange two folders
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
    except KeyboardInterrupt:
        status = 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def stop_at(number: int, is_kill: bool) -> None:
    """Stop what follows before a step, counted from 0. A step is a call that opens, renames or removes."""
    n_left = number

    def count(event: str, _: Any) -> None:
        nonlocal n_left
        if event in STEPS:
            n_left -= 1
            if n_left == -1 and is_kill:
                os.kill(os.getpid(), signal.SIGKILL)
            if n_left == -1:
                raise KeyboardInterrupt

    sys.addaudithook(count)


def stop_at_steps(job: str, path: Path, is_kill: bool, stride: int, is_first: bool) -> int:
    """Stop the first save of all, or a later one, at every ``stride``-th of its steps, and save again after each."""
    _, save, read, _ = JOBS[job]
    version, number, status = 1, 0, -1

    def stopped() -> None:
        stop_at(number, is_kill)
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


def stop_saves(folder: Path, is_kill: bool, is_thorough: bool) -> None:
    os.fsync = lambda fd: None  # what is killed is not the system
    for job, (name, _, _, stride) in JOBS.items():
        if job == "two_steps":
            file_system._renameat2 = lambda *_: False
        (folder / job).mkdir()
        for is_first in (True, False) if job != "append" else (False,):  # appending begins with a save of its own
            n_stopped = stop_at_steps(job, folder / job / name, is_kill, 1 if is_thorough else stride, is_first)
            assert n_stopped >= 2, job
