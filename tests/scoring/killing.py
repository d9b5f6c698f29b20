"""Saves that are stopped: killed or interrupted at one step after another, killed at random, or out of disk space.

Runs in a process of its own, which forks one for each save:
``python -m tests.scoring.killing JOB FOLDER WAY N``. What is saved is a version, a number, so that reading tells
which one there is. Prints how many saves were stopped.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bgem3.scoring import Embeddings, HybridSearcher, file_system
from bgem3.scoring.atomic_files import recover, remove, whole_folder
from bgem3.scoring.storage import INDEX, LOCK
from tests.paths import ROOT
from tests.scoring.corpus import make_embeddings

STEPS = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "fcntl.flock", "ctypes.dlsym"}
N_FILES, N_BYTES = 3, 20_000  # of a folder that stands for an artifact


def stop_saves(job: str, folder: Path, way: str, n: int) -> int:
    """Run a job in a process of its own; return how many of its saves were stopped."""
    command = [sys.executable, "-m", "tests.scoring.killing", job, str(folder), way, str(n)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def content(version: int) -> Embeddings:
    """Return the embeddings that stand for a version."""
    return make_embeddings(version, 3 + version % 5, n_dims=64)


def save_embeddings(path: Path, version: int) -> None:
    texts = content(version)
    texts.n_tokens[:] = version
    texts.save(path)


def read_embeddings(path: Path) -> int:
    found = Embeddings.load(path)
    version = int(found.n_tokens[0])
    expected = content(version)
    assert (found.n_tokens == version).all()
    np.testing.assert_array_equal(found.dense, expected.dense)
    np.testing.assert_array_equal(found.sparse.toarray(), expected.sparse.toarray())
    np.testing.assert_array_equal(found.multivector.packed, expected.multivector.packed)
    return version


def save_index(path: Path, version: int) -> None:
    texts = content(version)
    HybridSearcher.build(texts, [1000 * version + i for i in range(len(texts))]).save(path)


def read_index(path: Path) -> int:
    found = HybridSearcher.open(path)
    version = int(found.ids[0]) // 1000
    expected = content(version)
    assert found.ids.tolist() == [1000 * version + i for i in range(len(expected))]
    np.testing.assert_array_equal(found._corpus.segments[0].dense, expected.dense)
    np.testing.assert_array_equal(found._corpus.segments[0].multivector.packed, expected.multivector.packed)
    return version


def append_index(path: Path, version: int) -> None:
    """Append passages, one for each version that the index lacks; an index of many parts is built anew first."""
    n_passages = len(HybridSearcher.open(path)) if (path / INDEX).exists() else 1
    if not (path / INDEX).exists() or len(list(path.glob("part-*"))) > 3:
        HybridSearcher.build(Embeddings.concatenate([make_embeddings(i, 1) for i in range(n_passages)])).save(path)
    searcher = HybridSearcher.open(path)
    while len(searcher) <= version:
        searcher.append(make_embeddings(len(searcher), 1))
    searcher.save(path)


def read_appended(path: Path) -> int:
    found = HybridSearcher.open(path)
    expected = Embeddings.concatenate([make_embeddings(i, 1) for i in range(len(found))])
    np.testing.assert_array_equal(np.concatenate([segment.dense for segment in found._corpus.segments]), expected.dense)
    return len(found) - 1


def save_folder(path: Path, version: int) -> None:
    """Write a folder as an overwriting export does."""
    with whole_folder(path, lambda place: (place / "manifest.json").is_file()) as folder:
        (folder / "fp16").mkdir()
        for i in range(N_FILES):
            (folder / "fp16" / f"{i}.bin").write_bytes(version.to_bytes(4, "little") * N_BYTES)
        (folder / "manifest.json").write_text(str(version))


def read_folder(path: Path) -> int:
    version = int((path / "manifest.json").read_text())
    for i in range(N_FILES):
        assert (path / "fp16" / f"{i}.bin").read_bytes() == version.to_bytes(4, "little") * N_BYTES
    assert len(list(path.rglob("*"))) == N_FILES + 2
    return version


def save_folder_in_two_steps(path: Path, version: int) -> None:
    """Write a folder where the system cannot exchange two."""
    file_system._renameat2 = lambda *_: False
    save_folder(path, version)


def read_restored(path: Path) -> int:
    recover(path)
    return read_folder(path)


JOBS: dict[str, tuple[str, Callable[[Path, int], None], Callable[[Path], int]]] = {
    "npz": ("saved.npz", save_embeddings, read_embeddings),
    "parts": ("saved", save_embeddings, read_embeddings),
    "index": ("index", save_index, read_index),
    "append": ("index", append_index, read_appended),
    "exchange": ("artifact", save_folder, read_folder),
    "two_steps": ("artifact", save_folder_in_two_steps, read_restored),
}


def assert_nothing_is_left(path: Path) -> None:
    """Raise AssertionError if there is a file beside or in what was saved that does not belong to it."""
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    if (path / INDEX).exists():
        hidden = {found.name for found in path.iterdir() if not found.name.startswith("part-")}
        assert hidden == {INDEX, LOCK}, hidden
        parts = [found.name for found in path.glob("part-*")]
        text = (path / INDEX).read_text()
        assert all(name in text for name in parts), f"{parts} in {text}"
        assert text.count("part-") == len(parts)


def in_child(run: Callable[[], None]) -> int:
    """Fork a process for a function; return its process id."""
    child = os.fork()
    if child:
        return child
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
        _, status = os.waitpid(in_child(stopped), 0)
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


def kill_at_random(job: str, path: Path, n: int) -> int:
    _, save, read = JOBS[job]
    version = 1

    def endless() -> None:
        for later in range(version + 1, version + 1000):
            save(path, later)

    save(path, version)
    for _ in range(n):
        child = in_child(endless)
        time.sleep(random.uniform(0.002, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        found = read(path)
        assert found >= version
        version = found + 1
        save(path, version)
        assert read(path) == version
        assert_nothing_is_left(path)
    return n


def fill_disk(job: str, path: Path, n: int) -> int:
    """Let saves fail by a limit on the size of files, which grows; what they wrote must be gone at once."""
    _, save, read = JOBS[job]
    n_failed = 0
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in np.geomspace(10, 3_000, n):
        for is_first in (True, False):

            def limited(limit: int = int(limit)) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                save(path, 2)

            if not is_first:
                save(path, 1)
            _, status = os.waitpid(in_child(limited), 0)
            assert os.WIFEXITED(status)
            assert os.WEXITSTATUS(status) in (0, 2)
            if os.WEXITSTATUS(status):
                n_failed += 1
                assert is_first or read(path) == 1
                assert not is_first or not path.exists(), list(path.iterdir())
            if path.exists():
                assert_nothing_is_left(path)
                remove(path)
            assert not list(path.parent.iterdir())
    return n_failed


def main() -> None:
    job, place, way, n = sys.argv[1:]
    path = Path(place, JOBS[job][0])
    os.fsync = lambda fd: None  # what is killed is not the system
    if way in ("killed", "interrupted"):
        stop = kill if way == "killed" else interrupt
        starts = (False,) if job == "append" else (True, False)  # appending begins with a save of its own
        print(min(stop_at_steps(job, path, stop, int(n), is_first) for is_first in starts))
    elif way == "full":
        print(fill_disk(job, path, int(n)))
    else:
        print(kill_at_random(job, path, int(n)))


if __name__ == "__main__":
    main()
