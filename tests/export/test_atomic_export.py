"""An export writes its target whole or not at all, whatever stops it."""

import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

import bgem3.export.exporter as exporter
from bgem3.export import ParityError, export_model
from bgem3.export.weights import encoder_tensors
from bgem3.runtime import ArtifactError, BGEM3Model, parity
from bgem3.runtime.artifact import read_artifact
from bgem3.scoring.atomic_files import _temporary, is_temporary


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A path to export to, alone in its folder."""
    (tmp_path / "parent").mkdir()
    return tmp_path / "parent/artifact"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        ("encoder_tensors", KeyboardInterrupt(), "^$"),
        (
            "reference_outputs",
            OSError(errno.ENOSPC, "No space"),
            r"{} failed: No space \(\d+\.\d GB free\); nothing was kept",
        ),
        ("check_graphs", OSError("12 requested and 3 written"), "{} failed: 12 requested and 3 written .* nothing was"),
    ],
    ids=["interrupt", "full_disk", "no_number"],
)
def test_a_failure_in_any_step_leaves_the_target_as_it_was(
    random_checkpoint: Path,
    random_artifact: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
    words: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        (partial,) = (path for path in target.parent.iterdir() if is_temporary(path.name))
        with pytest.raises(ArtifactError, match="not an artifact folder"):
            BGEM3Model.load(partial)
        raise error

    monkeypatch.setattr(exporter, step, fail)
    for had_target in (False, True):
        if had_target:
            copytree(random_artifact, target)
        with pytest.raises(type(error), match=words.format(re.escape(f"writing {target}"))):
            export_model(random_checkpoint, target, "fp32", overwrite=True)
        assert list(target.parent.iterdir()) == [target] * had_target
    assert contents(target) == contents(random_artifact)


def test_a_wrong_weight_gives_a_parity_error_and_leaves_nothing(
    random_checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_tensors(model: Any) -> Iterator[tuple[str, Any]]:
        for name, values in encoder_tensors(model):
            yield name, values + np.float32(0.01) if name == "sparse.bias" else values

    monkeypatch.setattr(exporter, "encoder_tensors", wrong_tensors)
    monkeypatch.setitem(parity.BOUNDS["fp32"], "dense_max_difference", -1.0)
    words = r"fp32/c\w+\.onnx is too far from the checkpoint: .*sparse_max_difference is .*, its bound .*"
    with pytest.raises(ParityError, match=words) as caught:
        export_model(random_checkpoint, target, "fp32")
    assert re.search("dense_max_difference is .*, its bound -1", str(caught.value)), "one report names all misses"
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("is_link", [False, True])
def test_overwriting_replaces_the_artifact_whole_or_a_link_alone(
    random_checkpoint: Path, random_artifact: Path, target: Path, is_link: bool
) -> None:
    old = target.with_name("linked") if is_link else target
    copytree(random_artifact, old)
    (old / "notes.txt").write_text("the old one's", encoding="utf-8")
    before = contents(old)
    if is_link:
        target.symlink_to(old)
    export_model(random_checkpoint, target, "fp32", overwrite=True)
    assert set(target.parent.iterdir()) == {target, old}
    assert not target.is_symlink()
    assert {path.name for path in target.iterdir()} == {"fp32", "manifest.json", "reference.npz", "tokenizer.json"}
    assert {graph.precision for graph in read_artifact(target, check_hashes=True).graphs} == {"fp32"}
    assert not is_link or contents(old) == before


def make_folder(target: Path) -> None:
    target.mkdir()
    (target / "manifest.json").write_text('{"name": "a web application"}', encoding="utf-8")


MAKERS = [make_folder, lambda target: target.write_text("mine"), lambda target: target.symlink_to("nowhere")]


@pytest.mark.parametrize("make", MAKERS, ids=["folder", "file", "dead_link"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_artifact_is_never_overwritten(
    random_checkpoint: Path, target: Path, make: Callable[[Path], object], overwrite: bool
) -> None:
    make(target)
    before = contents(target), target.is_symlink(), target.lstat()
    words = "is not an artifact folder.* choose another" if overwrite else "exists; choose another .*--overwrite"
    with pytest.raises(FileExistsError, match=f"{re.escape(str(target))} {words}"):
        export_model(random_checkpoint, target, "fp32", overwrite=overwrite)
    assert list(target.parent.iterdir()) == [target]
    assert (contents(target), target.is_symlink(), target.lstat()) == before


def test_the_next_export_restores_and_removes_what_a_killed_one_left(
    random_checkpoint: Path, random_artifact: Path, target: Path
) -> None:
    copytree(random_artifact, _temporary(target, "replaced"))
    _temporary(target, "partial").mkdir()
    with pytest.raises(FileExistsError):
        export_model(random_checkpoint, target, "fp32")
    assert list(target.parent.iterdir()) == [target]
    assert contents(target) == contents(random_artifact)
