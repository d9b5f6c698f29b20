"""Processes that save to one folder at once. They are forked, so the functions run in a process of their own."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

from bgem3.scoring import HybridSearcher
from tests.scoring.corpus import make_embeddings
from tests.scoring.versions import assert_nothing_is_left, build_index, read_appended, read_embeddings, save_embeddings

FORK = multiprocessing.get_context("fork")
REFUSED = 3
Run = Callable[[Callable[[], object]], None]  # prepares, calls what it is given, and goes on when all have done so


def at_once(*runs: Run) -> list[int | None]:
    """Fork a process for each function, let them go on at once, and return their exit statuses."""
    barrier = FORK.Barrier(len(runs))
    processes = [FORK.Process(target=run, args=(barrier.wait,)) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def saver(path: Path, version: int) -> Run:
    def run(meet: Callable[[], object]) -> None:
        meet()
        save_embeddings(path, version)

    return run


def appender(path: Path, n_passages: int) -> Run:
    def run(meet: Callable[[], object]) -> None:
        searcher = HybridSearcher.open(path)
        for _ in range(n_passages):
            searcher.append(make_embeddings(len(searcher), 1))
        meet()
        try:
            searcher.save(path)
        except RuntimeError as error:
            raise SystemExit(REFUSED if "another save has replaced it" in str(error) else 1) from error

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
    """Let pairs open, append and save: one of the two is refused, and nothing of the other is lost."""
    path = folder / "index"
    for _ in range(n):
        build_index(path, 1)
        statuses = at_once(appender(path, 1), appender(path, 2))
        assert sorted(map(str, statuses)) == ["0", str(REFUSED)]
        assert read_appended(path) == 1 + statuses.index(0)
        assert_nothing_is_left(path)


def race(folder: Path, n: int) -> None:
    os.fsync = lambda fd: None  # saves that wait for the disk meet more seldom
    for name, run in (("pairs", save_in_pairs), ("appends", append_in_pairs)):
        (folder / name).mkdir()
        run(folder / name, n)
