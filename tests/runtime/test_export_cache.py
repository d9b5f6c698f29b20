"""BGEM3FlagModel on a checkpoint: exported once, kept by the files' hash, safe for two processes at once."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bgem3.runtime import BGEM3FlagModel
from bgem3.runtime import export_cache as cache
from bgem3.runtime.source import checkpoint_hash
from bgem3.scoring import atomic_files

CODE = """
import sys
from bgem3.runtime import BGEM3FlagModel
model = BGEM3FlagModel(sys.argv[1], devices="cpu", cache_dir=sys.argv[2])
print(model.encode("honey")["dense_vecs"][0])
"""


def artifacts(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "bgem3").iterdir() if path.is_dir())


def test_a_checkpoint_is_exported_once_and_found_again_without_torch(random_checkpoint: Path, tmp_path: Path) -> None:
    first = BGEM3FlagModel(random_checkpoint, devices="cpu", cache_dir=tmp_path)
    (name,) = artifacts(tmp_path)
    assert name == f"{checkpoint_hash(random_checkpoint)[:32]}-fp16-v1"
    made = (tmp_path / "bgem3" / name / "manifest.json").stat().st_mtime_ns
    code = CODE + "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, random_checkpoint, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(float(first.encode("honey")["dense_vecs"][0]), abs=1e-6)
    assert (tmp_path / "bgem3" / name / "manifest.json").stat().st_mtime_ns == made


def test_each_precision_and_each_change_of_the_checkpoint_has_its_own_export(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(random_checkpoint, checkpoint)
    BGEM3FlagModel(checkpoint, use_fp16=False, devices="cpu", cache_dir=tmp_path)
    assert BGEM3FlagModel(checkpoint, use_fp16=True, devices="cpu", cache_dir=tmp_path).model.precision == "fp16"
    assert len(artifacts(tmp_path)) == 2
    with (checkpoint / "config.json").open("a") as file:
        file.write("\n")
    BGEM3FlagModel(checkpoint, devices="cpu", cache_dir=tmp_path)
    assert len(artifacts(tmp_path)) == 3


def test_two_processes_that_start_at_once_share_one_export(random_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(random_checkpoint), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert sum("fp16 weights" in errors for _, errors in results) == 1, "both processes exported"
    assert len(artifacts(tmp_path)) == 1


def test_what_a_killed_export_left_is_cleared_away(random_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "bgem3" / f"{checkpoint_hash(random_checkpoint)[:32]}-fp16-v1"
    left = atomic_files._temporary(target, "partial")
    left.mkdir(parents=True)
    (left / "weights.bin").write_bytes(b"half")
    BGEM3FlagModel(random_checkpoint, devices="cpu", cache_dir=tmp_path)
    assert not left.exists()


def test_the_users_cache_folder_is_used_by_default(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / name)
    BGEM3FlagModel(random_checkpoint, devices="cpu")
    assert len(artifacts(tmp_path)) == 1
