"""Processes that save to one place at once.

Runs in a process of its own: ``python -m tests.scoring.racing RACE FOLDER N``.

Prints a JSON object of counts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bgem3.scoring import Embeddings, HybridSearcher
from tests.scoring.corpus import make_embeddings
from tests.scoring.killing import ROOT, assert_nothing_is_left, read_appended, read_index, save_index

REFUSED = 3


def race(name: str, folder: Path, n: int) -> dict[str, int]:
    """Run a race in a process of its own, and return what it counted."""
    command = [sys.executable, "-m", "tests.scoring.racing", name, str(folder), str(n)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


def at_once(*runs: Callable[[Callable[[], None]], None]) -> list[int]:
    """Fork a process for each function, give it one to call when it is ready, and return their exit statuses."""
    ready, is_ready = os.pipe()
    wait, start = os.pipe()

    def meet() -> None:
        os.write(is_ready, b".")
        os.read(wait, 1)

    children = []
    for run in runs:
        child = os.fork()
        if not child:
            status = 1
            try:
                run(meet)
                status = 0
            except RuntimeError as error:
                status = REFUSED if "another save has replaced it" in str(error) else 1
            finally:
                os._exit(status)
        children.append(child)
    for _ in runs:
        os.read(ready, 1)
    os.write(start, b"." * len(runs))
    for end in (ready, is_ready, wait, start):
        os.close(end)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def saver(path: Path, version: int) -> Callable[[Callable[[], None]], None]:
    def run(meet: Callable[[], None]) -> None:
        meet()
        save_index(path, version)

    return run


def appender(path: Path, place: int) -> Callable[[Callable[[], None]], None]:
    def run(meet: Callable[[], None]) -> None:
        searcher = HybridSearcher.open(path)
        searcher.append(make_embeddings(len(searcher), 1))
        if place:
            searcher.append(make_embeddings(len(searcher), 1))
        meet()
        searcher.save(path)

    return run


def save_in_pairs(folder: Path, n: int) -> dict[str, int]:
    """Let pairs save to a folder that is new for every other pair."""
    n_loaded = 0
    for i in range(n):
        path = folder / f"{i // 2}" / "index"
        path.parent.mkdir(exist_ok=True)
        assert at_once(saver(path, 2 * i + 1), saver(path, 2 * i + 2)) == [0, 0]
        n_loaded += read_index(path) in (2 * i + 1, 2 * i + 2)
        assert_nothing_is_left(path)
    return {"pairs": n, "loaded": n_loaded}


def append_in_pairs(folder: Path, n: int) -> dict[str, int]:
    """Let pairs open, append and save; who is refused opens anew and repeats it."""
    n_refused = 0
    path = folder / "index"
    for i in range(n):
        if i % 5 == 0:
            n_passages = len(HybridSearcher.open(path)) if i else 1
            HybridSearcher.build(Embeddings.concatenate([make_embeddings(j, 1) for j in range(n_passages)])).save(path)
        before = read_appended(path)
        statuses = at_once(appender(path, 0), appender(path, 1))
        added = [1, 2]
        assert sorted(statuses) == [0, REFUSED], statuses
        assert read_appended(path) == before + added[statuses.index(0)]
        refused = statuses.index(REFUSED)
        assert at_once(appender(path, refused)) == [0]
        assert read_appended(path) == before + 3
        assert_nothing_is_left(path)
        n_refused += 1
    return {"pairs": n, "refused": n_refused, "lost": 0}


def open_during_saves(folder: Path, n: int) -> dict[str, int]:
    """Open an index again and again while two processes save to it without a pause."""
    path = folder / "index"
    save_index(path, 1)

    def saving(first: int) -> Callable[[Callable[[], None]], None]:
        def run(meet: Callable[[], None]) -> None:
            meet()
            version = first
            while not (folder / "stop").exists():
                version += 2
                save_index(path, version)

        return run

    def reading(meet: Callable[[], None]) -> None:
        meet()
        try:
            versions = {read_index(path) for _ in range(n)}
        finally:
            (folder / "stop").touch()
        assert len(versions) > 5, "nothing was saved meanwhile"

    assert at_once(saving(1), saving(2), reading) == [0, 0, 0]
    (folder / "stop").unlink()
    read_index(path)
    assert_nothing_is_left(path)
    return {"opened": n}


RACES = {"savers": save_in_pairs, "appenders": append_in_pairs, "readers": open_during_saves}


if __name__ == "__main__":
    os.fsync = lambda fd: None  # saves that wait for the disk meet more seldom
    print(json.dumps(RACES[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))))
