"""HybridSearcher: retrieve candidates from a corpus by dense and sparse score, and rerank them by hybrid score."""

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.array_files import Arrays
from bgem3.scoring.corpus import BYS, By, Corpus
from bgem3.scoring.embeddings import Embeddings
from bgem3.scoring.hybrid import DEFAULT_WEIGHTS, Scores, Weights, check_weights, hybrid_scores
from bgem3.scoring.ids import id_array
from bgem3.scoring.index_file import check_number
from bgem3.scoring.ranking import top_k
from bgem3.scoring.segment import Segment
from bgem3.scoring.storage import load_parts, locked_folder, save_parts
from bgem3.scoring.stored_arrays import StoredArrays
from bgem3.scoring.token_vectors import Storage

KIND = "hybrid searcher"


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """The K best passages of each of Q queries, best first.

    Attributes
    ----------
    ids : int64 or str array (Q, K)
        The passages' ids.
    index : int64 array (Q, K)
        The passages' positions in the corpus.
    scores : Scores of arrays (Q, K)
    """

    ids: NDArray[Any]
    index: NDArray[np.int64]
    scores: Scores


class HybridSearcher:
    """A corpus that is searched by dense and sparse score and reranked by the hybrid of all three scores.

    Both retrievals are exact. Threads may search, append and save at the same time: a search sees the corpus as it was
    when the search began. Make a searcher with :meth:`build`, or open a saved one with :meth:`open`. The arrays of an
    opened searcher are memory-mapped and read where a search needs them, so a corpus may be larger than memory.
    """

    def __init__(self, corpus: Corpus, folder: Path | None = None, names: Sequence[str] = ()) -> None:
        self._corpus = corpus  # replaced by append and save, never changed, so that a running search is not disturbed
        self._saved = {folder: list(names)} if folder else {}  # the parts' names in each folder saved to
        self._links: dict[Path, Path] = {}  # from each path given by the user to the folder that it led to
        self._locks: dict[int, threading.Lock] = {}

    @classmethod
    def build(
        cls, passages: Embeddings, ids: Iterable[int] | Iterable[str] | None = None, storage: Storage = "float32"
    ) -> "HybridSearcher":
        """Return a searcher of passages.

        Parameters
        ----------
        passages : Embeddings
            P texts with all three outputs.
        ids : iterable of P distinct ints or strs
            The passages' names in results; None for 0 to P - 1.
        storage : Storage
            The dtype of the multi-vectors, which take by far the most memory: "float32", "float16" (half the size) or
            "int8" (a quarter). ``storage_error`` bounds how much the scores change.

        Raises
        ------
        AttributeError
            If the passages lack an output.
        ValueError
            If the ids do not fit, or the storage is unknown.
        """
        return cls(Corpus((Segment.build(passages, id_array(ids, len(passages), 0), storage),)))

    def append(self, passages: Embeddings, ids: Iterable[int] | Iterable[str] | None = None) -> None:
        """Add passages and their ids after the present ones, in the same storage.

        None as ids stands for the next numbers. A saved folder does not change until :meth:`save`, which then writes
        the new passages only.

        Raises
        ------
        AttributeError, ValueError
            As :meth:`build`, and ValueError if an id is in the corpus or the widths differ from the corpus's.
        """
        given = None if ids is None else id_array(ids, len(passages), 0)
        with self._lock:
            corpus = self._corpus
            corpus.check_widths(passages)
            if not len(passages):
                return
            checked = id_array(None, len(passages), len(corpus)) if given is None else given
            corpus.check_new(checked)
            self._corpus = Corpus((*corpus.segments, Segment.build(passages, checked, self.storage)))

    def search(
        self,
        queries: Embeddings,
        k: int = 10,
        weights: Weights = DEFAULT_WEIGHTS,
        *,
        candidates: int = 100,
        by: By = "both",
    ) -> SearchResults:
        """Retrieve candidates for each query, rerank them by hybrid score, and return the k best.

        Parameters
        ----------
        queries : Embeddings
            Q texts with all three outputs.
        k : int
            How many passages to return for each query; all of them if the corpus has fewer.
        weights : Weights
            Weights of the dense, sparse and multi-vector score in the hybrid score.
        candidates : int
            How many passages each retrieving score contributes. If fewer passages share a token with the query, the
            sparse score retrieves passages with score 0, in the order of the corpus.
        by : By
            The scores that retrieve candidates: "dense", "sparse" or "both".

        Returns
        -------
        SearchResults
            Ordered by hybrid score, then by position in the corpus.

        Raises
        ------
        AttributeError
            If the queries lack an output.
        ValueError
            If an argument is out of range, or a width differs from the corpus's.
        """
        weights = check_weights(weights)
        for name, value, least in (("k", k, 1), ("candidates", candidates, k)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, found {value!r}")
        if by not in BYS:
            raise ValueError(f"by must be one of {BYS}, found {by!r}")
        corpus = self._corpus
        corpus.check_widths(queries)
        shape = len(queries), min(k, len(corpus))
        index = np.empty(shape, np.int64)
        dense, sparse, multivector, hybrid = columns = [np.empty(shape, np.float32) for _ in range(4)]
        for i, chosen, scores in corpus.candidates(queries, candidates, by):
            combined = hybrid_scores(*scores, weights)
            best = top_k(combined[None], k)[0]
            index[i] = chosen[best]
            for column, values in zip(columns, (*scores, combined), strict=True):
                column[i] = values[best]
        found = Scores(dense=dense, sparse=sparse, multivector=multivector, hybrid=hybrid)
        return SearchResults(ids=corpus.ids[index], index=index, scores=found)

    def save(self, folder: str | Path) -> None:
        """Save to a folder that :meth:`open` reads; passages that are in the folder already are not written again.

        The folder changes in one step: a save that is stopped leaves the index that was there. After the save, this
        searcher's arrays are memory-mapped from the folder. Processes that save to one folder wait for each other. An
        index that this searcher opened or saved is not replaced if another save has changed it since.

        Raises
        ------
        ValueError
            If the folder holds something else.
        RuntimeError
            If another save has replaced the index, or ``folder`` is a link that led to another folder then.
        OSError
            If the disk is full or not writable; new files are then removed.
        """
        path = Path(os.path.abspath(folder))
        with locked_folder(path, KIND) as place:
            corpus = self._corpus
            known = self._saved.get(place) or self._saved.get(self._links.get(path, place))
            is_there = known is not None and all((place / name).is_dir() for name in known)
            present = known if known and is_there else []
            parts: list[Arrays | str] = [*present, *(segment.arrays() for segment in corpus.segments[len(present) :])]
            save_parts(place, KIND, parts, {"n_passages": len(corpus)}, known)
            saved = HybridSearcher.open(place)
            with self._lock:
                self._saved = self._saved | saved._saved
                self._links = self._links | {path: place}
                appended = self._corpus.segments[len(corpus.segments) :]  # during the save, by other threads
                self._corpus = Corpus(saved._corpus.segments + appended)

    @classmethod
    def open(cls, folder: str | Path) -> "HybridSearcher":
        """Open a saved searcher, memory-mapped; its search results are bitwise equal to the saved searcher's.

        Raises
        ------
        FileNotFoundError
            If the folder has no saved searcher.
        ValueError
            If the folder holds something else, or a file is damaged.
        """
        path, place = Path(os.path.abspath(folder)), Path(os.path.realpath(folder))
        parts, index = load_parts(place, KIND)
        corpus = Corpus(tuple(Segment.from_arrays(StoredArrays(part, place / name)) for name, part in parts.items()))
        corpus.check(place)
        check_number(index, "n_passages", len(corpus), place)
        searcher = cls(corpus, place, list(parts))
        searcher._links[path] = place
        return searcher

    @property
    def ids(self) -> NDArray[Any]:
        """The passages' ids, an int64 or str array (P,)."""
        return self._corpus.ids

    @property
    def storage(self) -> Storage:
        """The dtype of the stored multi-vectors."""
        return self._corpus.segments[0].multivector.storage

    @property
    def storage_error(self) -> float:
        """The most by which storage may change a multi-vector score of unit query vectors; 0 for float32."""
        return max(segment.storage_error for segment in self._corpus.segments)

    def __len__(self) -> int:
        return len(self._corpus)

    def __repr__(self) -> str:
        return f"HybridSearcher({len(self)} passages, multi-vectors in {self.storage})"

    @property
    def _lock(self) -> threading.Lock:
        """The lock for changes of the corpus; one per process, because a child forked under a lock keeps it locked."""
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return self.__dict__ | {"_locks": {}}
