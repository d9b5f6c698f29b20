"""Threads search, append and save one corpus at once: each search sees a whole corpus, and nothing is lost."""

import copy
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bgem3.scoring import HybridSearcher, SearchResults
from bgem3.scoring.corpus import BYS
from tests.scoring.corpus import make_embeddings

QUERIES = make_embeddings(99, 4)
PARTS = [make_embeddings(seed, 5) for seed in range(8)]


@pytest.fixture(autouse=True)
def threads_that_alternate_often() -> Iterator[None]:
    """Let Python switch threads every 10 µs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def bits(found: SearchResults) -> bytes:
    scores = found.scores
    arrays = (found.ids, found.index, scores.dense, scores.sparse, scores.multivector, scores.hybrid)
    return b"".join(array.tobytes() for array in arrays)


def in_threads(*calls: Callable[[], None]) -> None:
    """Run calls at the same time, each in a thread; raise what one raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result(120)


@pytest.mark.parametrize("n_repeats", [1, pytest.param(30, marks=pytest.mark.stress)])
def test_a_search_sees_the_corpus_before_or_after_an_append(n_repeats: int) -> None:
    """Compare every search with those of the corpora that there are before and after each append."""
    grown = HybridSearcher.build(PARTS[0])
    expected = {by: [bits(grown.search(QUERIES, 3, by=by))] for by in BYS}
    for part in PARTS[1:]:
        grown.append(part)
        for by in BYS:
            expected[by].append(bits(grown.search(QUERIES, 3, by=by)))
    for _ in range(n_repeats):
        searcher, is_done = HybridSearcher.build(PARTS[0]), threading.Event()

        def append(searcher: HybridSearcher = searcher, is_done: threading.Event = is_done) -> None:
            try:
                for part in PARTS[1:]:
                    searcher.append(part)
            finally:
                is_done.set()

        def search(searcher: HybridSearcher = searcher, is_done: threading.Event = is_done) -> None:
            seen, is_last = 0, False
            while not is_last:
                is_last = is_done.is_set()
                for by in BYS:
                    seen = expected[by].index(bits(searcher.search(QUERIES, 3, by=by)), seen)  # never an older one
            assert seen == len(PARTS) - 1

        in_threads(append, search, search)


def test_appends_and_saves_at_once_lose_nothing_and_take_no_id_twice(tmp_path: Path) -> None:
    searcher, start = HybridSearcher.build(PARTS[0]), threading.Barrier(4)
    refused, ids = [], [777, 778, 779, 780, 781]

    def append() -> None:
        for part in PARTS:
            searcher.append(part)
        start.wait(60)
        try:
            searcher.append(PARTS[1], ids)
        except ValueError as error:
            refused.append(str(error))

    def save() -> None:
        for _ in range(5):
            searcher.save(tmp_path / "index")

    in_threads(*[append] * 4, save, save)
    assert searcher.ids.tolist() == [*range(5 * (1 + 4 * len(PARTS))), *ids], "each took the next numbers"
    assert refused == [f"ids must be new, but {ids} are in the corpus"] * 3
    searcher.save(tmp_path / "index")
    opened = HybridSearcher.open(tmp_path / "index")
    assert bits(opened.search(QUERIES, 5)) == bits(searcher.search(QUERIES, 5))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copied_or_pickled_searcher_is_one_of_its_own(duplicate: Callable[[HybridSearcher], HybridSearcher]) -> None:
    searcher = HybridSearcher.build(PARTS[0])
    other = duplicate(searcher)
    assert bits(other.search(QUERIES, 5)) == bits(searcher.search(QUERIES, 5))
    other.append(PARTS[1])
    assert (len(searcher), len(other)) == (5, 10)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # that a process with threads is forked is the point
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_is_forked_during_an_append_can_append() -> None:
    searcher = HybridSearcher.build(PARTS[0])
    is_locked, is_forked = threading.Event(), threading.Event()

    def append_slowly() -> None:
        with searcher._lock:
            is_locked.set()
            is_forked.wait(60)

    thread = threading.Thread(target=append_slowly)
    thread.start()
    is_locked.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(60)
        searcher.append(PARTS[1])
        os._exit(int(len(searcher) != 10))
    is_forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0, "the child hangs or failed"
