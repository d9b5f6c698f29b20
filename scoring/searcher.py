"""HybridSearcher: candidates by dense or lexical score from a whole corpus, reranked by the hybrid score."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring.dense import dense_scores
from bgem3.scoring.embeddings import Embeddings
from bgem3.scoring.hybrid import DEFAULT_WEIGHTS, Scores, Weights, check_weights, hybrid_scores
from bgem3.scoring.ids import id_array
from bgem3.scoring.index_file import check_number
from bgem3.scoring.multivector import multivector_candidate_scores
from bgem3.scoring.ranking import top_k
from bgem3.scoring.segment import Segment, check_segments
from bgem3.scoring.storage import Arrays, load_parts, locked_folder, save_parts
from bgem3.scoring.stored_arrays import StoredArrays
from bgem3.scoring.token_vectors import Storage

By: TypeAlias = Literal["dense", "sparse", "both"]
BYS: tuple[By, ...] = get_args(By)
KIND = "hybrid searcher"
MEMORY_BUDGET = 64 << 20  # bytes of scores of queries with the whole corpus, at once


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """The K best passages of each of Q queries, best first.

    Attributes
    ----------
    ids : (Q, K) array of the passages' ids
    index : (Q, K) int64 array of the passages' places in the corpus
    scores : Scores of (Q, K) arrays
    """

    ids: NDArray[Any]
    index: NDArray[np.int64]
    scores: Scores


class HybridSearcher:
    """A corpus that is searched by dense and lexical score, and reranked by the hybrid of all three.

    Both retrievals are exact. Threads may search, append and save at the same time: a search sees the corpus as it was
    when it began. Make one with :meth:`build`, or :meth:`open` a saved one: its arrays are then mapped from
    disk, and read where a search needs them, so that a corpus may be larger than memory.

    Parameters
    ----------
    segments : the passages, in the order they were added
    folder, names : where the first segments are saved, and under which names
    """

    def __init__(self, segments: Sequence[Segment], folder: Path | None = None, names: Sequence[str] = ()) -> None:
        self._segments = tuple(segments)  # replaced, never changed: a search keeps to the one that it began with
        self._saved = {folder: list(names)} if folder else {}  # the first segments' names in each folder
        self._links: dict[Path, Path] = {}  # from each path that was given to the folder that it led to
        self._locks: dict[int, threading.Lock] = {}

    @classmethod
    def build(
        cls, passages: Embeddings, ids: Iterable[int] | Iterable[str] | None = None, storage: Storage = "float32"
    ) -> "HybridSearcher":
        """Hold passages for searching.

        Parameters
        ----------
        passages : embeddings of P texts with all three outputs
        ids : P different whole numbers or strings that results name the passages by; None for 0 to P - 1
        storage : of multi-vectors, by far the largest part: "float32", "float16" (half the size) or "int8" (a quarter).
            ``storage_error`` then tells what it changed; scores are computed in float32 from what is stored.

        Raises
        ------
        AttributeError
            If the passages lack an output.
        ValueError
            If the ids do not fit, or the storage is unknown.
        """
        return cls([Segment.build(passages, id_array(ids, len(passages), 0), storage)])

    def append(self, passages: Embeddings, ids: Iterable[int] | Iterable[str] | None = None) -> None:
        """Add passages after those there are, in the same storage; None as ids for the next numbers.

        What is saved stays as it is until :meth:`save`, which then writes the new passages only.

        Raises
        ------
        AttributeError, ValueError
            As :meth:`build`, and ValueError if an id is taken or the widths differ from the corpus's.
        """
        given = None if ids is None else id_array(ids, len(passages), 0)
        with self._lock:
            segments = self._segments
            _check_widths(segments[0], passages)
            if not len(passages):
                return
            checked = id_array(None, len(passages), _n_passages(segments)) if given is None else given
            _check_new(segments, checked)
            self._segments = (*segments, Segment.build(passages, checked, self.storage))

    def search(
        self,
        queries: Embeddings,
        k: int = 10,
        weights: Weights = DEFAULT_WEIGHTS,
        *,
        candidates: int = 100,
        by: By = "both",
    ) -> SearchResults:
        """Retrieve candidates for each query, rerank them by the hybrid score, and return the k best.

        Parameters
        ----------
        queries : embeddings of Q texts with all three outputs
        k : passages to return for each query; all there are, if fewer
        weights : of the dense, sparse and multi-vector score in the hybrid; divided by their sum
        candidates : passages with the best dense score ("dense"), the best lexical score ("sparse"), or so many by each
            ("both") that are reranked. Equal scores go by place in the corpus: with fewer passages that share a token
            with the query, the first of the others (their lexical score is 0) make up the number.
        by : what retrieves the candidates

        Returns
        -------
        SearchResults, ordered by hybrid score, equal ones by place in the corpus

        Raises
        ------
        AttributeError
            If the queries lack an output.
        ValueError
            If an argument is out of range, or the queries' widths are not the corpus's.
        """
        weights = check_weights(weights)
        for name, value, least in (("k", k, 1), ("candidates", candidates, k)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, found {value!r}")
        if by not in BYS:
            raise ValueError(f"by must be one of {BYS}, found {by!r}")
        segments = self._segments
        _check_widths(segments[0], queries)
        shape = len(queries), min(k, _n_passages(segments))
        index = np.empty(shape, np.int64)
        columns = [np.empty(shape, np.float32) for _ in range(4)]
        for i, chosen, retrieved in _candidates(segments, queries, candidates, by):
            found = (*retrieved, _multivector_scores(segments, queries.multivector[i], chosen))
            hybrid = hybrid_scores(*found, weights)
            best = top_k(hybrid[None], k)[0]
            index[i] = chosen[best]
            for column, values in zip(columns, (*found, hybrid), strict=True):
                column[i] = values[best]
        dense, sparse, multivector, hybrid = columns
        scores = Scores(dense=dense, sparse=sparse, multivector=multivector, hybrid=hybrid)
        return SearchResults(ids=_ids(segments)[index], index=index, scores=scores)

    def save(self, folder: str | Path) -> None:
        """Save to a folder that :meth:`open` takes; passages that it already holds are not written again.

        The folder changes in one step: a save that is stopped leaves what was saved before. Afterwards this searcher's
        arrays are those on disk, mapped, and the memory they took is free. Processes that save to one folder wait for
        each other. Whatever index the folder holds is replaced, unless it was opened or saved by this searcher and has
        changed since: then nothing is written, so that another's passages are not lost.

        Raises
        ------
        ValueError
            If the folder holds something else.
        RuntimeError
            If another save has replaced the index that this searcher opened or saved there, or ``folder`` is a link
            that led to another one then.
        OSError
            If the disk is full or not writable; what was written is removed.
        """
        path = Path(os.path.abspath(folder))
        with locked_folder(path, KIND) as place:
            segments = self._segments
            known = self._saved.get(place) or self._saved.get(self._links.get(path, place))
            is_there = known is not None and all((place / name).is_dir() for name in known)
            kept = known if known and is_there else []
            parts: list[Arrays | str] = [*kept, *(segment.arrays() for segment in segments[len(kept) :])]
            save_parts(place, KIND, parts, {"n_passages": _n_passages(segments)}, known)
            saved = HybridSearcher.open(place)
            with self._lock:
                self._saved = self._saved | saved._saved
                self._links = self._links | {path: place}
                appended = self._segments[len(segments) :]  # meanwhile
                self._segments = saved._segments + appended

    @classmethod
    def open(cls, folder: str | Path) -> "HybridSearcher":
        """Open a saved searcher, memory-mapped; its results are the same bits.

        Raises
        ------
        FileNotFoundError
            If there is none in the folder.
        ValueError
            If the folder holds something else, or a file is damaged.
        """
        path, place = Path(os.path.abspath(folder)), Path(os.path.realpath(folder))
        parts, index = load_parts(place, KIND)
        segments = [Segment.from_arrays(StoredArrays(part, place / name)) for name, part in parts.items()]
        check_segments(segments, place)
        check_number(index, "n_passages", _n_passages(segments), place)
        searcher = cls(segments, place, list(parts))
        searcher._links[path] = place
        return searcher

    @property
    def ids(self) -> NDArray[Any]:
        """(P,) array of the passages' ids."""
        return _ids(self._segments)

    @property
    def storage(self) -> Storage:
        """How the multi-vectors are kept."""
        return self._segments[0].multivector.storage

    @property
    def storage_error(self) -> float:
        """The most that storage may change a multi-vector score, for unit query vectors; 0 for float32."""
        return max(segment.storage_error for segment in self._segments)

    def __len__(self) -> int:
        return _n_passages(self._segments)

    def __repr__(self) -> str:
        return f"HybridSearcher({len(self)} passages, multi-vectors in {self.storage})"

    @property
    def _lock(self) -> threading.Lock:
        """The lock of what changes the corpus: one a process, because a forked child would wait for ever for ours."""
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return self.__dict__ | {"_locks": {}}


def _ids(segments: Sequence[Segment]) -> NDArray[Any]:
    """Return the ids of all passages; those of no passages have no kind."""
    return np.concatenate([segment.ids for segment in segments if len(segment.ids)] or [segments[0].ids])


def _n_passages(segments: Sequence[Segment]) -> int:
    return sum(len(segment.ids) for segment in segments)


def _candidates(
    segments: Sequence[Segment], queries: Embeddings, n_candidates: int, by: By
) -> Iterator[tuple[int, NDArray[np.int64], tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Yield each query's number, its candidates in ascending order, and their dense and lexical scores."""
    n_at_once = max(1, MEMORY_BUDGET // (8 * max(1, _n_passages(segments))))
    for first in range(0, len(queries), n_at_once):
        block = queries[first : first + n_at_once]
        lexical = np.concatenate([segment.postings.scores(block.sparse) for segment in segments], axis=1)
        found = [] if by == "dense" else [top_k(lexical, n_candidates)]
        if by != "sparse":
            dense = np.concatenate([dense_scores(block.dense, segment.dense) for segment in segments], axis=1)
            found.append(top_k(dense, n_candidates))
        for i in range(len(block)):
            chosen = np.unique(np.concatenate([best[i] for best in found]))
            exact = dense[i, chosen] if by != "sparse" else _dense_scores(segments, block.dense[[i]], chosen)
            yield first + i, chosen, (exact, lexical[i, chosen])


def _dense_scores(
    segments: Sequence[Segment], query: NDArray[np.float32], index: NDArray[np.int64]
) -> NDArray[np.float32]:
    parts = [dense_scores(query, segment.dense[local])[0] for segment, local in _split(segments, index)]
    return np.concatenate([np.empty(0, np.float32), *parts])


def _multivector_scores(
    segments: Sequence[Segment], query: NDArray[np.float32], index: NDArray[np.int64]
) -> NDArray[np.float32]:
    parts = [
        multivector_candidate_scores(query, segment.multivector, local) for segment, local in _split(segments, index)
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])


def _split(segments: Sequence[Segment], index: NDArray[np.int64]) -> Iterator[tuple[Segment, NDArray[np.int64]]]:
    """Yield each segment with the passages of an ascending ``index`` that are its own, as places in it."""
    start = 0
    for segment in segments:
        first, last = np.searchsorted(index, [start, start + len(segment.ids)])
        if first < last:
            yield segment, index[first:last] - start
        start += len(segment.ids)


def _check_new(segments: Sequence[Segment], added: NDArray[Any]) -> None:
    """Raise ValueError if ids are not of the corpus's kind, or one is taken."""
    if not _n_passages(segments):
        return
    ids = _ids(segments)
    if added.dtype.kind != ids.dtype.kind:
        raise ValueError(f"ids must be of the corpus's kind, found {added.dtype} for {ids.dtype}")
    taken = added[np.isin(added, ids)]
    if len(taken):
        raise ValueError(f"ids must be new, but {taken[:5].tolist()} are in the corpus")


def _check_widths(corpus: Segment, texts: Embeddings) -> None:
    for name, found, expected in (
        ("dense vectors", texts.dense.shape[1], corpus.dense.shape[1]),
        ("multivector vectors", texts.multivector.packed.shape[1], corpus.multivector.packed.shape[1]),
        ("sparse weights", texts.sparse.shape[1], corpus.vocabulary_size),
    ):
        if found != expected and len(texts):
            raise ValueError(
                f"{name} must be as wide as the corpus's, {expected}, found {found}; "
                "were both encoded by the same model?"
            )
