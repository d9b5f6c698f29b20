"""Saves whose content is a version, a number, so that reading tells which save there is."""

from pathlib import Path

import numpy as np

from bgem3.scoring import Embeddings, HybridSearcher
from bgem3.scoring.atomic_files import recover, whole_folder
from bgem3.scoring.storage import INDEX, LOCK
from tests.scoring.corpus import make_embeddings

N_FILES, N_BYTES = 3, 20_000  # of a folder that stands for an artifact


def content(version: int) -> Embeddings:
    """Return the embeddings that stand for a version."""
    texts = make_embeddings(version, 3 + version % 5, n_dims=64)
    texts.n_tokens[:] = version
    return texts


def save_embeddings(path: Path, version: int) -> None:
    content(version).save(path)


def read_embeddings(path: Path) -> int:
    found = Embeddings.load(path)
    version = int(found.n_tokens[0])
    for name, array in content(version)._arrays().items():
        np.testing.assert_array_equal(found._arrays()[name], array)
    return version


def build_index(path: Path, n_passages: int) -> None:
    HybridSearcher.build(Embeddings.concatenate([make_embeddings(i, 1) for i in range(n_passages)])).save(path)


def append_index(path: Path, version: int) -> None:
    """Append passages, one for each version that the index lacks; an index of many parts is built anew first."""
    n_passages = len(HybridSearcher.open(path)) if (path / INDEX).exists() else 1
    if not (path / INDEX).exists() or len(list(path.glob("part-*"))) > 3:
        build_index(path, n_passages)
    searcher = HybridSearcher.open(path)
    while len(searcher) <= version:
        searcher.append(make_embeddings(len(searcher), 1))
    searcher.save(path)


def read_appended(path: Path) -> int:
    found = HybridSearcher.open(path)
    expected = Embeddings.concatenate([make_embeddings(i, 1) for i in range(len(found))])
    dense = np.concatenate([segment.dense for segment in found._corpus.segments])
    np.testing.assert_array_equal(dense, expected.dense)
    return len(found) - 1


def save_folder(path: Path, version: int) -> None:
    """Write a folder as an overwriting export does."""
    with whole_folder(path, lambda place: (place / "manifest.json").is_file()) as folder:
        (folder / "fp16").mkdir()
        for i in range(N_FILES):
            (folder / "fp16" / f"{i}.bin").write_bytes(version.to_bytes(4, "little") * N_BYTES)
        (folder / "manifest.json").write_text(str(version))


def read_folder(path: Path) -> int:
    recover(path)
    version = int((path / "manifest.json").read_text())
    for i in range(N_FILES):
        assert (path / "fp16" / f"{i}.bin").read_bytes() == version.to_bytes(4, "little") * N_BYTES
    assert len(list(path.rglob("*"))) == N_FILES + 2
    return version


def assert_nothing_is_left(path: Path) -> None:
    """Raise AssertionError if there is a file beside or in what was saved that does not belong to it."""
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    if (path / INDEX).exists():
        text, found = (path / INDEX).read_text(), {found.name for found in path.iterdir()}
        parts = {name for name in found if name.startswith("part-")}
        assert found - parts == {INDEX, LOCK}, found
        assert all(name in text for name in parts), f"{parts} in {text}"
        assert text.count("part-") == len(parts)
