"""Artifacts whose files are links into another place: another disk, git-annex, DVC, the hub's cache."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bgem3.runtime import ArtifactError
from bgem3.runtime.artifact import MANIFEST, WEIGHTS_FILE, read_artifact, sha256_of
from bgem3.runtime.graph_file import read_linked
from bgem3.runtime.portable_graph import encode_portable
from bgem3.runtime.reference import Reference
from tests.runtime.damage import load

TEXTS = ["", "What is BM25?", "Die Brücke ist gesperrt. " * 9]


def store(path: Path, place: Path, *, relative: bool = True) -> None:
    """Move a file to another place, and leave a link to it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)
    path.symlink_to(os.path.relpath(place, path.parent) if relative else place)


def store_all(place_of: Callable[[Path, Path], Path], name: str = "*", *, relative: bool = True) -> Callable[..., None]:
    """Return a layout that moves the files of a name to the places that a function gives."""

    def layout(folder: Path) -> None:
        for path in [path for path in folder.rglob(name) if path.is_file()]:
            store(path, place_of(folder, path), relative=relative)

    return layout


def through_two_links(folder: Path) -> None:
    for path in folder.rglob(WEIGHTS_FILE):
        place = folder.parent / "disk" / path.parent.name
        store(path, place)
        store(place, folder.parent / "other" / path.parent.name)


def folders_of_precisions(folder: Path) -> None:
    for path in list(folder.iterdir()):
        store(path, folder.parent / "disk" / path.name)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "weights_on_another_disk": store_all(
        lambda folder, path: folder.parent / "disk" / f"{path.parent.name} größe.bin", WEIGHTS_FILE, relative=False
    ),
    "hub_cache": store_all(lambda folder, path: folder.parent / "blobs" / sha256_of(path)),
    "within_the_folder": store_all(lambda folder, path: folder / f"weights-{path.parent.name}.bin", WEIGHTS_FILE),
    "through_two_links": through_two_links,
    "whole_folder": lambda folder: store(folder, folder.parent / "disk/artifact"),
    "folders_of_precisions": folders_of_precisions,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_linked_artifact_gives_the_same_bits(demo_artifact: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "models/artifact"
    shutil.copytree(demo_artifact, folder)
    LAYOUTS[name](folder)
    linked, whole = read_artifact(folder, check_hashes=True), read_artifact(demo_artifact)
    for precision, kernels in (("fp16", "none"), ("fp32", "auto")):
        with load(folder, precision, kernels) as found, load(demo_artifact, precision, kernels) as expected:
            ours, theirs = found.encode(TEXTS), expected.encode(TEXTS)
        np.testing.assert_array_equal(ours.dense, theirs.dense)
        np.testing.assert_array_equal(ours.multivector.packed, theirs.multivector.packed)
        np.testing.assert_array_equal(ours.sparse.toarray(), theirs.sparse.toarray())
    ours, theirs = encode_portable(linked, TEXTS), encode_portable(whole, TEXTS)
    np.testing.assert_array_equal(ours.dense, theirs.dense)
    assert Reference.load(folder).texts == Reference.load(demo_artifact).texts


def test_weights_that_are_no_links_are_opened_by_the_graphs_path(artifact_copy: Path) -> None:
    assert read_linked(artifact_copy / "fp16/cpu.onnx") is None
    (artifact_copy / "fp16/notes").symlink_to(WEIGHTS_FILE)
    assert read_linked(artifact_copy / "fp16/cpu.onnx") is None


@pytest.mark.parametrize("name", ["fp16/weights.bin", MANIFEST])
def test_a_link_that_leads_nowhere_says_how_to_bring_the_file(artifact_copy: Path, name: str) -> None:
    path = artifact_copy / name
    for target, words in (
        ("../.git/annex/KEY", f"{name} is missing: it is a link to .*KEY, .*git annex get.*dvc pull"),
        (path.name, f"cannot read .*{name} .*links"),  # a circle
    ):
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(ArtifactError, match=words):
            read_artifact(artifact_copy)
