"""Processes that save to one folder at once; run in a process of its own, by name and with a folder and a number."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from bgem3.scoring import HybridSearcher
from tests.scoring.corpus import make_embeddings
from tests.scoring.versions import assert_nothing_is_left, build_index, read_appended, read_embeddings, save_embeddings

REFUSED = 3
Run = Callable[[Callable[[], None]], None]  # calls what it is given when it is ready, which returns when all are


def at_once(*runs: Run) -> list[int]:
    """Fork a process for each function, start them at once, and return their exit statuses."""
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


def saver(path: Path, version: int) -> Run:
    def run(meet: Callable[[], None]) -> None:
        meet()
        save_embeddings(path, version)

    return run


def appender(path: Path, n_passages: int) -> Run:
    def run(meet: Callable[[], None]) -> None:
        searcher = HybridSearcher.open(path)
        for _ in range(n_passages):
            searcher.append(make_embeddings(len(searcher), 1))
        meet()
        searcher.save(path)

    return run


def save_in_pairs(folder: Path, n: int) -> None:
    """Let pairs save to a folder that is new for every other pair: one of the two saves is there, whole."""
    for i in range(n):
        path = folder / f"{i // 2}" / "index"
        path.parent.mkdir(exist_ok=True, parents=True)
        assert at_once(saver(path, 2 * i + 1), saver(path, 2 * i + 2)) == [0, 0]
        assert read_embeddings(path) in (2 * i + 1, 2 * i + 2)
        assert_nothing_is_left(path)


def append_in_pairs(folder: Path, n: int) -> None:
    """Let pairs open, append and save: one of the two is refused, and loses nothing when it opens anew."""
    path = folder / "index"
    for i in range(n):
        if i % 5 == 0:
            build_index(path, len(HybridSearcher.open(path)) if i else 1)
        before = read_appended(path)
        statuses = at_once(appender(path, 1), appender(path, 2))
        assert sorted(statuses) == [0, REFUSED], statuses
        assert read_appended(path) == before + 1 + statuses.index(0)
        assert at_once(appender(path, 1 + statuses.index(REFUSED))) == [0]
        assert read_appended(path) == before + 3
        assert_nothing_is_left(path)


def open_during_saves(folder: Path, n: int) -> None:
    """Open an index again and again while two processes save to it without a pause: each time it is whole."""
    path, stop = folder / "index", folder.parent / "stop"
    save_embeddings(path, 1)

    def saving(first: int) -> Run:
        def run(meet: Callable[[], None]) -> None:
            meet()
            version = first
            while not stop.exists():
                version += 2
                save_embeddings(path, version)

        return run

    def reading(meet: Callable[[], None]) -> None:
        meet()
        versions: list[int] = []
        try:
            while len(versions) < n or len(set(versions)) < 5:
                versions.append(read_embeddings(path))
        finally:
            stop.touch()

    assert at_once(saving(1), saving(2), reading) == [0, 0, 0]
    read_embeddings(path)
    assert_nothing_is_left(path)


if __name__ == "__main__":
    os.fsync = lambda fd: None  # saves that wait for the disk meet more seldom
    for name, race, factor in (("a", save_in_pairs, 1), ("b", append_in_pairs, 1), ("c", open_during_saves, 10)):
        race(Path(sys.argv[1], name), factor * int(sys.argv[2]))
