"""Threads search, append and save one corpus at the same time: nothing is seen by halves, and nothing is lost."""

import copy
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bgem3.scoring import HybridSearcher, SearchResults
from bgem3.scoring.corpus import BYS
from tests.scoring.corpus import make_embeddings

QUERIES = make_embeddings(99, 4)
PARTS = [make_embeddings(seed, 5) for seed in range(12)]
FIRST_IDS = [[f"part {part} text {text}" for text in range(5)] for part in range(len(PARTS))]


@pytest.fixture(autouse=True)
def threads_that_alternate_often() -> Iterator[None]:
    """Let Python switch threads every 10 µs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def grown() -> Iterator[HybridSearcher]:
    """Yield the corpus after each part."""
    searcher = HybridSearcher.build(PARTS[0], FIRST_IDS[0])
    yield searcher
    for part, ids in zip(PARTS[1:], FIRST_IDS[1:], strict=True):
        searcher.append(part, ids)
        yield searcher


def bits(found: SearchResults) -> bytes:
    scores = found.scores
    arrays = (found.index, scores.dense, scores.sparse, scores.multivector, scores.hybrid)
    return repr(found.ids.tolist()).encode() + b"".join(array.tobytes() for array in arrays)


def in_threads(*calls: Callable[[], None]) -> None:
    """Run calls at the same time, each in a thread; raise what one raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result(120)


def search_while_appending(n_repeats: int, save: Callable[[HybridSearcher], None] | None = None) -> None:
    """Compare every search with those of the corpora that there are before and after each append."""
    expected = {by: [bits(searcher.search(QUERIES, 3, by=by)) for searcher in grown()] for by in BYS}
    for _ in range(n_repeats):
        searcher = HybridSearcher.build(PARTS[0], FIRST_IDS[0])
        is_done = threading.Event()

        def append(searcher: HybridSearcher = searcher, is_done: threading.Event = is_done) -> None:
            try:
                for part, ids in zip(PARTS[1:], FIRST_IDS[1:], strict=True):
                    searcher.append(part, ids)
                    if save:
                        save(searcher)
            finally:
                is_done.set()

        def search(searcher: HybridSearcher = searcher, is_done: threading.Event = is_done) -> None:
            seen, is_last = 0, False
            while not is_last:
                is_last = is_done.is_set()
                n_passages, ids = len(searcher), searcher.ids
                assert len(ids) >= n_passages
                assert len(ids) % 5 == 0
                for by in BYS:
                    seen = expected[by].index(bits(searcher.search(QUERIES, 3, by=by)), seen)  # never an older one
            assert seen == len(PARTS) - 1

        in_threads(append, search, search)


def test_a_search_sees_the_corpus_before_or_after_an_append() -> None:
    search_while_appending(3)


def test_a_search_sees_the_corpus_whole_while_it_is_saved(tmp_path: Path) -> None:
    search_while_appending(1, lambda searcher: searcher.save(tmp_path / "index"))
    assert len(HybridSearcher.open(tmp_path / "index")) == 5 * len(PARTS)


@pytest.mark.stress
def test_a_search_sees_the_corpus_before_or_after_an_append_hundreds_of_times(tmp_path: Path) -> None:
    search_while_appending(300)
    search_while_appending(30, lambda searcher: searcher.save(tmp_path / "index"))


def append_at_once(n_threads: int) -> None:
    searcher = HybridSearcher.build(PARTS[0])
    start = threading.Barrier(n_threads)

    def append() -> None:
        start.wait(60)
        for part in PARTS:
            searcher.append(part)

    in_threads(*[append] * n_threads)
    assert searcher.ids.tolist() == list(range(5 * (1 + n_threads * len(PARTS)))), "each took the next numbers"


def take_at_once(n_threads: int) -> None:
    searcher = HybridSearcher.build(PARTS[0])
    start, refused = threading.Barrier(n_threads), []

    def append() -> None:
        start.wait(60)
        try:
            searcher.append(PARTS[1], [7, 8, 9, 10, 11])
        except ValueError as error:
            refused.append(str(error))

    in_threads(*[append] * n_threads)
    assert searcher.ids.tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    assert refused == ["ids must be new, but [7, 8, 9, 10, 11] are in the corpus"] * (n_threads - 1)


def test_appends_at_once_lose_nothing_and_take_no_id_twice() -> None:
    append_at_once(4)
    for _ in range(10):
        take_at_once(4)


@pytest.mark.stress
def test_appends_at_once_lose_nothing_and_take_no_id_twice_hundreds_of_times() -> None:
    for _ in range(200):
        append_at_once(4)
        take_at_once(4)


def test_passages_that_are_appended_during_a_save_are_not_lost(tmp_path: Path) -> None:
    searcher = HybridSearcher.build(PARTS[0])
    is_done = threading.Event()

    def append() -> None:
        for part in PARTS[1:]:
            searcher.append(part)
        is_done.set()

    def save() -> None:
        while not is_done.is_set():
            searcher.save(tmp_path / "index")

    in_threads(append, save)
    assert searcher.ids.tolist() == list(range(5 * len(PARTS)))
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
    is_held, is_forked = threading.Event(), threading.Event()

    def hold() -> None:
        with searcher._lock:
            is_held.set()
            is_forked.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(60)
    child = os.fork()
    if not child:
        searcher.append(PARTS[1])
        os._exit(int(len(searcher) != 10))
    is_forked.set()
    thread.join()
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise AssertionError("the child hangs")
    assert status == 0


def test_no_passages_are_appended_without_a_trace(tmp_path: Path) -> None:
    searcher = HybridSearcher.build(PARTS[0], FIRST_IDS[0])
    before = bits(searcher.search(QUERIES, 5))
    searcher.append(make_embeddings(0, 0, 7))
    searcher.append(make_embeddings(0, 0), [])
    assert bits(searcher.search(QUERIES, 5)) == before
    searcher.save(tmp_path / "index")
    assert bits(HybridSearcher.open(tmp_path / "index").search(QUERIES, 5)) == before


def test_outputs_of_different_texts_are_not_added() -> None:
    searcher, part = HybridSearcher.build(PARTS[0]), PARTS[1][:]
    part._dense = np.concatenate([part.dense, part.dense])
    with pytest.raises(ValueError, match="outputs must be of the same texts, found 5 token counts, 10 dense vectors"):
        searcher.append(part)
