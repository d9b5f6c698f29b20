"""Artifacts whose files are links into another place: another disk, git-annex, DVC, the hub's cache."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bgem3.runtime import ArtifactError, BGEM3Model
from bgem3.runtime.artifact import read_artifact, sha256_of
from bgem3.runtime.cli import main
from bgem3.runtime.custom_ops import library
from bgem3.runtime.device import open_encoder
from bgem3.runtime.graph_file import read_linked
from bgem3.runtime.parity import Reference
from bgem3.runtime.portable_graph import encode_portable

TEXTS = ["", "What is BM25?", "Die Brücke ist gesperrt. " * 9]
WEIGHTS = "weights.bin"
KERNELS = ["none", pytest.param("portable", marks=pytest.mark.skipif(library() is None, reason="not compiled"))]


def store(path: Path, place: Path, *, relative: bool = True) -> None:
    """Move a file to another place, and leave a link to it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)
    path.symlink_to(os.path.relpath(place, path.parent) if relative else place)


def files(folder: Path, name: str = "*") -> list[Path]:
    return [path for path in folder.rglob(name) if path.is_file()]


def on_another_disk(folder: Path) -> Path:
    for path in files(folder, WEIGHTS):
        store(path, folder.parent / "disk" / f"{path.parent.name} größe.bin", relative=False)
    return folder


def in_the_hub_cache(folder: Path) -> Path:
    for path in files(folder):
        store(path, folder.parent / "blobs" / sha256_of(path))
    return folder


def in_git_annex(folder: Path, name: str = "*") -> Path:
    for path in files(folder, name):
        key = f"SHA256E-s{path.stat().st_size}--{sha256_of(path)}{path.suffix}"
        place = folder / ".git/annex/objects" / key[-7:-5] / key[-9:-7] / key / key
        store(path, place)
        place.chmod(0o444)
    return folder


def in_git_annex_but_for_graphs(folder: Path) -> Path:
    return in_git_annex(folder, WEIGHTS)


def in_dvc(folder: Path) -> Path:
    for path in files(folder):
        digest = sha256_of(path)[:32]
        store(path, folder.parent / "cache/files/md5" / digest[:2] / digest[2:], relative=False)
    return folder


def through_two_links(folder: Path) -> Path:
    for path in files(folder, WEIGHTS):
        place = folder.parent / "disk" / path.parent.name
        store(path, place)
        store(place, folder.parent / "other" / path.parent.name)
    return folder


def within_the_folder(folder: Path) -> Path:
    for path in files(folder, WEIGHTS):
        store(path, folder / f"weights-{path.parent.name}.bin")
    return folder


def graphs_alone(folder: Path) -> Path:
    for path in files(folder, "*.onnx"):
        store(path, folder.parent / "graphs" / path.relative_to(folder))
    return folder


def whole_folder(folder: Path) -> Path:
    store(folder, folder.parent / "disk/artifact")
    return folder


def folders_of_precisions(folder: Path) -> Path:
    for path in list(folder.iterdir()):
        store(path, folder.parent / "disk" / path.name)
    return folder


LAYOUTS = [
    on_another_disk,
    in_the_hub_cache,
    in_git_annex,
    in_git_annex_but_for_graphs,
    in_dvc,
    through_two_links,
    within_the_folder,
    graphs_alone,
    whole_folder,
    folders_of_precisions,
]


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.__name__)
def linked(demo_artifact: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("linked") / "models/artifact"
    shutil.copytree(demo_artifact, folder)
    layout: Callable[[Path], Path] = request.param
    return layout(folder)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_linked_artifact_gives_the_same_bits(demo_artifact: Path, linked: Path, precision: str, kernels: str) -> None:
    found, expected = (
        BGEM3Model(read, open_encoder(read, device="cpu", precision=precision, n_threads=1, kernels=kernels))
        for read in (read_artifact(linked, check_hashes=True), read_artifact(demo_artifact))
    )
    with found, expected:
        ours, theirs = found.encode(TEXTS), expected.encode(TEXTS)
    np.testing.assert_array_equal(ours.dense, theirs.dense)
    np.testing.assert_array_equal(ours.multivector.packed, theirs.multivector.packed)
    np.testing.assert_array_equal(ours.sparse.toarray(), theirs.sparse.toarray())


def test_the_portable_graph_and_the_reference_of_a_linked_artifact_are_read(demo_artifact: Path, linked: Path) -> None:
    assert Reference.load(linked).texts == Reference.load(demo_artifact).texts
    ours, theirs = (encode_portable(read_artifact(folder), TEXTS) for folder in (linked, demo_artifact))
    np.testing.assert_array_equal(ours.dense, theirs.dense)


def test_weights_that_are_no_links_are_opened_by_the_graphs_path(demo_artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_artifact, tmp_path / "artifact")
    (tmp_path / "artifact/fp16/notes").symlink_to("weights.bin")
    assert read_linked(tmp_path / "artifact/fp16/cpu.onnx") is None
    assert read_linked(demo_artifact / "fp16/cpu.onnx") is None


@pytest.mark.parametrize("name", ["fp16/weights.bin", "fp16/cpu.onnx", "tokenizer.json", "manifest.json"])
def test_a_link_to_a_file_that_is_not_there_says_how_to_bring_it(
    demo_artifact: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(demo_artifact, folder)
    (folder / name).unlink()
    (folder / name).symlink_to("../.git/annex/objects/4f/Qz/KEY")
    with pytest.raises(ArtifactError, match=rf"{name} is missing: it is a link to .*KEY, .*git annex get.*dvc pull"):
        read_artifact(folder)


def test_links_in_a_circle_are_refused(demo_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(demo_artifact, folder)
    (folder / "fp16/weights.bin").unlink()
    (folder / "fp16/weights.bin").symlink_to("weights.bin")
    with pytest.raises(ArtifactError, match=r"cannot read .*weights.bin .*links"):
        read_artifact(folder)


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1135511616\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s1135511616--4d7a.bin\n", "git annex get"),
    ],
)
@pytest.mark.parametrize("name", ["fp16/weights.bin", "manifest.json", "fp32/native.onnx", "reference.npz"])
def test_a_pointer_in_place_of_a_file_says_how_to_bring_the_file(
    demo_artifact: Path, tmp_path: Path, name: str, content: bytes, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(demo_artifact, folder)
    (folder / name).write_bytes(content)
    assert main(["info", str(folder)]) == 2
    assert command in capsys.readouterr().err
