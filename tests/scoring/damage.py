"""What damaged files do to those who use them; it runs in a process of its own, which a fault in C code may end."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.scoring import (
    Embeddings,
    HybridSearcher,
    MultiVectors,
    dense_scores,
    multivector_pair_scores,
    multivector_scores,
    sparse_pair_scores,
    sparse_scores,
)
from bgem3.scoring.corpus import BYS
from tests.scoring.corpus import make_embeddings

N_TEXTS = 6


def use_embeddings(path: Path) -> None:
    """Load embeddings, and do with them all that can be done."""
    embeddings = Embeddings.load(path)
    halves = embeddings[::2], embeddings[[]]
    Embeddings.concatenate(halves)
    embeddings.to_qdrant()
    embeddings.to_flag()
    queries = make_embeddings(1, len(embeddings))
    if "dense" in embeddings.outputs and embeddings.dense.shape[1] == queries.dense.shape[1]:
        dense_scores(queries.dense, embeddings.dense)
    if "sparse" in embeddings.outputs:
        sparse_scores(embeddings.sparse, embeddings.sparse)
        sparse_pair_scores(embeddings.sparse, embeddings.sparse)
        (embeddings.sparse @ embeddings.sparse.T).toarray()
    if "multivector" in embeddings.outputs:
        multivector_scores(embeddings.multivector, embeddings.multivector)
        multivector_pair_scores(embeddings.multivector, embeddings.multivector)
    if len(embeddings.outputs) == 3:
        HybridSearcher.build(embeddings)


def use_searcher(folder: Path) -> None:
    """Open a searcher, search and append."""
    searcher = HybridSearcher.open(folder)
    for by in BYS:
        searcher.search(make_embeddings(2, 20), k=3, by=by)  # which hold every token
    searcher.append(make_embeddings(3, 2), ["x", "y"] if searcher.ids.dtype.kind == "U" else [10**6, 10**6 + 1])
    searcher.search(make_embeddings(2, 3))


def use_matrix(matrix: Any) -> None:
    """Score a matrix of lexical weights, on either side."""
    for score in (sparse_scores, sparse_pair_scores):
        score(matrix, matrix)
    passages = make_embeddings(1, matrix.shape[0])
    passages._sparse = matrix
    HybridSearcher.build(passages)


def use_vectors(vectors: MultiVectors) -> None:
    """Score multi-vectors, on either side."""
    multivector_scores(vectors, vectors)
    multivector_pair_scores(vectors, vectors)


def outcome(use: Callable[[Any], None], damaged: Any) -> str:
    """Return what use of something damaged ends in: an error's type and message, or nothing."""
    try:
        with np.errstate(all="ignore"):
            use(damaged)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Replace the arrays of a saved .npz file, or of the part of a saved folder; objects are pickled."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return
    for old in path.glob("*.npy"):
        old.unlink()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
