"""Whatever stops an export, the target is whole or as it was before, and nothing else is left behind."""

import errno
import json
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
from bgem3.export.reference import reference_outputs
from bgem3.export.weights import encoder_tensors
from bgem3.runtime import ArtifactError, BGEM3Model, cli, parity
from bgem3.runtime.artifact import read_artifact
from bgem3.scoring.atomic_files import _temporary, is_temporary

TIMEOUT = 120.0  # seconds for a process that takes ten

STEPS = ["encoder_tensors", "build_cpu_graph", "reference_outputs", "_manifest", "check_parity"]
"""What an export calls one after another, from the first weight to the last comparison."""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where to export to, in a folder of its own."""
    (tmp_path / "parent").mkdir()
    return tmp_path / "parent/artifact"


def stop_at(step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an export fail when it comes to a step."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(exporter, step, fail)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_nothing_is_left(target: Path) -> None:
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupt_in_any_step_leaves_nothing(
    random_checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    stop_at(step, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        export_model(random_checkpoint, target, "fp32")
    assert_nothing_is_left(target)


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_in_any_step_is_told_with_the_target_and_leaves_nothing(
    random_checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    stop_at(step, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), monkeypatch)
    words = rf"writing {re.escape(str(target))} failed: No space left on device \(\d+\.\d GB free\); nothing was kept"
    with pytest.raises(OSError, match=words) as caught:
        export_model(random_checkpoint, target, "fp32")
    assert caught.value.errno == errno.ENOSPC
    assert_nothing_is_left(target)


def test_an_oserror_without_a_number_keeps_its_words(
    random_checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at("reference_outputs", OSError("12 requested and 3 written"), monkeypatch)
    words = rf"writing {re.escape(str(target))} failed: 12 requested and 3 written .* nothing was kept"
    with pytest.raises(OSError, match=words):
        export_model(random_checkpoint, target, "fp32")
    assert_nothing_is_left(target)


def test_bounds_that_no_graph_can_keep_give_a_parity_error_and_leave_nothing(
    random_checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.BOUNDS, "fp32", {"dense_max_difference": -1.0, "multivector_min_cosine": 1.1})
    words = (
        r"fp32/cpu\.onnx is too far from the checkpoint: dense_max_difference .*, its bound -1; multivector_min_cosine"
    )
    with pytest.raises(ParityError, match=words):
        export_model(random_checkpoint, target, "fp32")
    assert_nothing_is_left(target)


def test_a_graph_with_one_wrong_weight_gives_a_parity_error_and_leaves_nothing(
    random_checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_tensors(model: Any) -> Iterator[tuple[str, Any]]:
        for name, values in encoder_tensors(model):
            yield name, values + np.float32(0.01) if name == "sparse.bias" else values

    monkeypatch.setattr(exporter, "encoder_tensors", wrong_tensors)
    with pytest.raises(ParityError, match="too far from the checkpoint: sparse_max_difference is"):
        export_model(random_checkpoint, target, "fp32")
    assert_nothing_is_left(target)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), ParityError("far")], ids=repr)
@pytest.mark.parametrize("step", ["build_cpu_graph", "check_parity"])
def test_an_overwriting_export_that_fails_leaves_the_old_artifact(
    random_checkpoint: Path,
    random_artifact: Path,
    random_model: BGEM3Model,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
) -> None:
    copytree(random_artifact, target)
    stop_at(step, error, monkeypatch)
    with pytest.raises(type(error)):
        export_model(random_checkpoint, target, "fp32", overwrite=True)
    assert list(target.parent.iterdir()) == [target]
    assert contents(target) == contents(random_artifact)
    with BGEM3Model.load(target, "cpu", "fp32", check_hashes=True) as model:
        np.testing.assert_array_equal(model.encode(["text"]).dense, random_model.encode(["text"]).dense)


def test_overwriting_replaces_the_artifact_whole(random_checkpoint: Path, random_artifact: Path, target: Path) -> None:
    copytree(random_artifact, target)
    (target / "notes.txt").write_text("of the old one", encoding="utf-8")
    export_model(random_checkpoint, target, "fp32", overwrite=True)
    assert list(target.parent.iterdir()) == [target]
    assert set(read_artifact(target, check_hashes=True).graphs) == {("fp32", "cpu"), ("fp32", "cuda")}
    assert {path.name for path in target.iterdir()} == {"fp32", "manifest.json", "reference.npz", "tokenizer.json"}


def test_overwriting_a_link_replaces_the_link_alone(
    random_checkpoint: Path, random_artifact: Path, target: Path
) -> None:
    copytree(random_artifact, target.parent / "linked")
    target.symlink_to(target.parent / "linked")
    export_model(random_checkpoint, target, "fp32", overwrite=True)
    assert sorted(target.parent.iterdir()) == [target, target.parent / "linked"]
    assert not target.is_symlink()
    assert set(read_artifact(target).graphs) == {("fp32", "cpu"), ("fp32", "cuda")}
    assert contents(target.parent / "linked") == contents(random_artifact)


def test_an_existing_target_is_refused_and_untouched(
    random_checkpoint: Path, random_artifact: Path, target: Path
) -> None:
    copytree(random_artifact, target)
    with pytest.raises(FileExistsError, match=rf"{re.escape(str(target))} exists; choose another .*--overwrite"):
        export_model(random_checkpoint, target, "fp32")
    assert list(target.parent.iterdir()) == [target]
    assert contents(target) == contents(random_artifact)


def make_folder(target: Path) -> None:
    target.mkdir()
    (target / "thesis.txt").write_text("mine", encoding="utf-8")


def make_file(target: Path) -> None:
    target.write_text("mine", encoding="utf-8")


def make_dead_link(target: Path) -> None:
    target.symlink_to(target.parent / "nowhere")


@pytest.mark.parametrize("make", [make_folder, make_file, make_dead_link])
def test_what_is_no_artifact_is_never_overwritten(
    random_checkpoint: Path, target: Path, make: Callable[[Path], None]
) -> None:
    make(target)
    before = contents(target), target.is_symlink()
    with pytest.raises(FileExistsError, match=rf"{re.escape(str(target))} is not an artifact folder.* choose another"):
        export_model(random_checkpoint, target, "fp32", overwrite=True)
    assert list(target.parent.iterdir()) == [target]
    assert (contents(target), target.is_symlink()) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_appears_during_the_export_is_kept(
    random_checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    def make_folder_meanwhile(*arguments: Any, **options: Any) -> Any:
        make_folder(target)
        return reference_outputs(*arguments, **options)

    monkeypatch.setattr(exporter, "reference_outputs", make_folder_meanwhile)
    with pytest.raises(FileExistsError, match="choose another folder"):
        export_model(random_checkpoint, target, "fp32", overwrite=overwrite)
    assert list(target.parent.iterdir()) == [target]
    assert contents(target) == {"thesis.txt": b"mine"}


LIMITED = """
import json, resource, sys
from bgem3.export import export_model

_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (50_000, 300_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        export_model(sys.argv[1], sys.argv[2], "fp32")
    except OSError as error:
        print(json.dumps([error.errno, str(error)]), flush=True)
"""

KILLED = """
import os, signal, sys
import bgem3.export.exporter as exporter

setattr(exporter, sys.argv[3], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
exporter.export_model(sys.argv[1], sys.argv[2], "fp32")
"""

INTERRUPTIBLE = """
import signal, sys, time
import bgem3.export.exporter as exporter
from bgem3.runtime.cli import main

def wait(*_, **__):
    print("waiting", flush=True)
    time.sleep(600)

exporter.reference_outputs = wait
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job lacks
sys.exit(main(["export", *sys.argv[1:]]))
"""


def start(script: str, *arguments: Path | str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_limit_on_file_size_is_told_with_the_target_and_leaves_nothing(random_checkpoint: Path, target: Path) -> None:
    with start(LIMITED, random_checkpoint, target) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    failures = [json.loads(line) for line in output.splitlines()]
    assert len(failures) == 2, errors  # in the tokenizer, and in the weights
    for number, message in failures:
        assert number == errno.EFBIG
        assert f"writing {target} failed: File too large" in message
        assert "nothing was kept" in message
    assert_nothing_is_left(target)


def test_a_folder_with_another_programs_manifest_is_not_overwritten(random_checkpoint: Path, target: Path) -> None:
    target.mkdir()
    (target / "manifest.json").write_text('{"name": "a web application"}')
    with pytest.raises(FileExistsError, match="is not an artifact folder"):
        export_model(random_checkpoint, target, overwrite=True)
    assert (target / "manifest.json").is_file()


@pytest.mark.parametrize("step", ["build_cpu_graph", "check_parity"])
def test_a_killed_export_leaves_no_target_and_nothing_that_loads(
    random_checkpoint: Path, random_artifact: Path, target: Path, step: str
) -> None:
    with start(KILLED, random_checkpoint, target, step) as process:
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGKILL, errors
    (partial,) = target.parent.iterdir()
    assert is_temporary(partial.name)
    assert (partial / "fp32/weights.bin").stat().st_size == (random_artifact / "fp32/weights.bin").stat().st_size
    with pytest.raises(ArtifactError, match="not an artifact folder"):
        BGEM3Model.load(partial)
    export_model(random_checkpoint, target, "fp32")
    assert list(target.parent.iterdir()) == [target], "what a killed export left is removed"
    BGEM3Model.load(target, check_hashes=True).close()


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_artifact_that_a_killed_export_left_renamed_is_restored_at_the_start(
    random_checkpoint: Path, random_artifact: Path, target: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    copytree(random_artifact, _temporary(target, "replaced"))
    stop_at("load_checkpoint", KeyboardInterrupt(), monkeypatch)
    with pytest.raises((KeyboardInterrupt, FileExistsError)):
        export_model(random_checkpoint, target, "fp32", overwrite=overwrite)
    assert list(target.parent.iterdir()) == [target]
    assert contents(target) == contents(random_artifact)


def test_ctrl_c_ends_the_export_command_with_status_130_and_leaves_nothing(
    random_checkpoint: Path, target: Path
) -> None:
    with start(INTERRUPTIBLE, random_checkpoint, target) as process:
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        assert list(target.parent.glob(".bgem3-*.partial/fp16/weights.bin"))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, errors
    assert errors.endswith("bgem3: interrupted\n")
    assert "Traceback" not in errors
    assert_nothing_is_left(target)


@pytest.mark.parametrize("suffix", [".jsonl", ".npz", ".parquet"])
@pytest.mark.parametrize("before", [None, "what was there"], ids=["new", "existing"])
def test_an_encode_that_fails_midway_leaves_its_output_file_as_it_was(
    random_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    before: str | None,
) -> None:
    lines, folder = tmp_path / "lines", tmp_path / "out"
    lines.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n{"title": "d"}\n', encoding="utf-8")
    folder.mkdir()
    output = folder / f"embeddings{suffix}"
    if before is not None:
        output.write_text(before, encoding="utf-8")
    encoded: list[Any] = []

    def encode(self: BGEM3Model, texts: Any, *arguments: Any) -> Any:
        encoded.append(texts)
        return original(self, texts, *arguments)

    original = BGEM3Model.encode
    monkeypatch.setattr(BGEM3Model, "encode", encode)
    monkeypatch.setattr(cli, "TEXTS_PER_CHUNK", 2)
    arguments = [str(random_artifact), str(lines), "--text-field", "text", "-o", str(output), "--device", "cpu"]
    assert cli.main(["encode", *arguments]) == 2
    assert encoded == [["a", "b"]]
    assert "line 4 is not a JSON object with the field 'text'" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ([] if before is None else [output.name])
    assert before is None or output.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param("5", "the text of line 3 must be a str, found int", id="number"),
        pytest.param("null", "the text of line 3 must be a str, found NoneType", id="null"),
        pytest.param('"\\ud800"', "the text of line 3 holds a lone surrogate", id="lone_surrogate"),
    ],
)
def test_a_bad_text_in_a_file_is_named_by_its_line(
    random_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
    words: str,
) -> None:
    lines = tmp_path / "lines"
    lines.write_text(f'{{"text": "a"}}\n{{"text": "b"}}\n{{"text": {value}}}\n', encoding="utf-8")
    monkeypatch.setattr(cli, "TEXTS_PER_CHUNK", 2)
    assert cli.main(["encode", str(random_artifact), str(lines), "--text-field", "text", "--device", "cpu"]) == 2
    assert words in capsys.readouterr().err
