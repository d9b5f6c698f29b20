"""An export writes its target whole or not at all, whatever stops it."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

import bgem3.export.exporter as exporter
from bgem3.export import ParityError, export_model
from bgem3.export.weights import encoder_tensors
from bgem3.runtime import ArtifactError, BGEM3Model, cli, parity
from bgem3.runtime.artifact import read_artifact
from bgem3.scoring.atomic_files import _temporary, is_temporary

TIMEOUT = 120.0  # seconds for a process that takes ten
STEPS = ["encoder_tensors", "reference_outputs", "check_graphs"]
"""Functions that an export calls, from the first weight to the last comparison."""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A path to export to, alone in its folder."""
    (tmp_path / "parent").mkdir()
    return tmp_path / "parent/artifact"


def stop_at(step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an export fail at a step."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(exporter, step, fail)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("has_old", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), "^$"),
        (OSError(errno.ENOSPC, "No space left"), r"writing {} failed: No space left \(\d+\.\d GB free\); nothing was "),
        (OSError("12 requested and 3 written"), "writing {} failed: 12 requested and 3 written .* nothing was kept"),
    ],
    ids=["interrupt", "full_disk", "no_number"],
)
def test_a_failure_in_any_step_leaves_the_target_as_it_was(
    random_checkpoint: Path,
    random_artifact: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    words: str,
    step: str,
    has_old: bool,
) -> None:
    if has_old:
        copytree(random_artifact, target)
    stop_at(step, error, monkeypatch)
    with pytest.raises(type(error), match=words.format(re.escape(str(target)))):
        export_model(random_checkpoint, target, "fp32", overwrite=True)
    assert list(target.parent.iterdir()) == [target] * has_old
    assert not has_old or contents(target) == contents(random_artifact)


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


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_appears_during_the_export_is_kept(
    random_checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    def make_folder_meanwhile(*arguments: Any, **options: Any) -> Any:
        make_folder(target)
        return {}

    monkeypatch.setattr(exporter, "check_graphs", make_folder_meanwhile)
    with pytest.raises(FileExistsError, match="choose another folder"):
        export_model(random_checkpoint, target, "fp32", overwrite=overwrite)
    assert list(target.parent.iterdir()) == [target]
    assert list(contents(target)) == ["manifest.json"]


KILLED = """
import os, signal, sys
import bgem3.export.exporter as exporter

exporter.check_graphs = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
exporter.export_model(sys.argv[1], sys.argv[2], "fp32")
"""


def test_a_killed_export_leaves_no_target_and_nothing_that_loads(
    random_checkpoint: Path, random_artifact: Path, target: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(random_checkpoint), str(target)]
    process = subprocess.run(command, capture_output=True, timeout=TIMEOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.returncode == -signal.SIGKILL, process.stderr
    (partial,) = target.parent.iterdir()
    assert is_temporary(partial.name)
    assert (partial / "fp32/weights.bin").stat().st_size == (random_artifact / "fp32/weights.bin").stat().st_size
    with pytest.raises(ArtifactError, match="not an artifact folder"):
        BGEM3Model.load(partial)
    export_model(random_checkpoint, target, "fp32")
    assert list(target.parent.iterdir()) == [target], "the next export removes what a killed one left"
    read_artifact(target, check_hashes=True)


def test_an_artifact_that_a_killed_export_left_renamed_is_restored_at_the_start(
    random_checkpoint: Path, random_artifact: Path, target: Path
) -> None:
    copytree(random_artifact, _temporary(target, "replaced"))
    with pytest.raises(FileExistsError):
        export_model(random_checkpoint, target, "fp32")
    assert list(target.parent.iterdir()) == [target]
    assert contents(target) == contents(random_artifact)


def test_ctrl_c_ends_the_export_command_with_status_130_and_leaves_nothing(
    random_checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporter, "reference_outputs", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert cli.main(["export", str(random_checkpoint), str(target)]) == 130
    assert capsys.readouterr().err.endswith("bgem3: interrupted\n")
    assert list(target.parent.iterdir()) == []
