"""Files and folders appear whole or not at all, under names that nobody can plant, and leave nothing behind."""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bgem3.runtime.writers import write_file
from bgem3.scoring import atomic_files, tune_weights
from bgem3.scoring.atomic_files import recover, whole_file, whole_folder
from tests.scoring.corpus import make_embeddings


def encode(path: Path) -> None:
    write_file([make_embeddings(1, 3), make_embeddings(2, 3)], path)


def plot(path: Path) -> None:
    passages = make_embeddings(1, 3)
    tune_weights(passages, passages, [{0: 1.0}, {1: 1.0}, {2: 1.0}]).plot(path)


def write(path: Path, content: bytes = b"new") -> None:
    with whole_file(path) as file:
        file.write(content)


@pytest.mark.parametrize(
    ("writer", "name"),
    [(encode, "a.npz"), (encode, "a.jsonl"), (encode, "a.parquet"), (plot, "a.png")],
)
def test_every_writer_leaves_the_old_file_and_nothing_else_if_the_disk_is_full(
    writer: Callable[[Path], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / name
    path.write_bytes(b"old")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
                writer(path)
        assert os.listdir(tmp_path) == [name]
        assert path.read_bytes() == b"old"
    writer(path)
    assert path.stat().st_size > 100
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{tmp_path / 'none' / name}'"):
        writer(tmp_path / "none" / name)


def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    (tmp_path / "new").chmod(0o444)
    write(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o444


def test_a_link_is_kept_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    target, link, second = tmp_path / "a/target", tmp_path / "b/link", tmp_path / "b/second"
    link.symlink_to("../a/target")
    second.symlink_to(link)
    for content in (b"first", b"second"):
        write(second, content)
        assert target.read_bytes() == content
    assert link.is_symlink()
    assert second.is_symlink()
    assert sorted(os.listdir(tmp_path / "a") + os.listdir(tmp_path / "b")) == ["link", "second", "target"]


def test_a_link_that_is_planted_at_the_temporary_name_is_never_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda n_bytes: "0" * 2 * n_bytes)
    monkeypatch.setattr(atomic_files, "recover", lambda target: None)  # which would remove the link
    (tmp_path / "victim").write_bytes(b"mine")
    planted = atomic_files._temporary(tmp_path / "file", "partial")
    for target in ("victim", "nowhere"):
        planted.symlink_to(tmp_path / target)
        with pytest.raises(FileExistsError):
            write(tmp_path / "file")
        planted.unlink()
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["victim"]


def test_a_folder_is_refused_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        write(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(pipe.read_bytes)
        write(pipe)
    assert found.result() == b"new"
    assert pipe.is_fifo()


def test_a_file_is_on_disk_before_it_takes_its_place_and_its_name_is_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append("sync folder" if is_folder else f"sync file of {os.fstat(descriptor).st_size}")

    def replace(path: Path, to: Path) -> None:
        calls.append("replace")
        original(path, to)

    original = os.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write(tmp_path / "file", b"12345")
    assert calls == ["sync file of 5", "replace", "sync folder"]


def test_the_next_writer_removes_what_killed_ones_left_and_nothing_else(tmp_path: Path) -> None:
    def leftover(target: str) -> Path:
        folder = atomic_files._temporary(tmp_path / target, "partial")
        (folder / "fp16").mkdir(parents=True)
        return folder

    leftover("saved")
    locked, other = leftover("saved"), leftover("other")
    descriptor = os.open(locked, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as a living process does
    mine = [".bgem3-notes.partial", f"{other.name}.txt", f"x{other.name}"]
    for name in mine:
        (tmp_path / name).write_bytes(b"mine")
    write(tmp_path / "saved")
    assert sorted(os.listdir(tmp_path)) == sorted(["saved", *mine, locked.name, other.name])
    os.close(descriptor)
    recover(tmp_path / "saved")
    assert not locked.exists()


def test_writers_of_one_target_at_once_do_not_remove_each_others_files(tmp_path: Path) -> None:
    with whole_file(tmp_path / "target") as first:
        first.write(b"first")
        write(tmp_path / "target", b"second")
        assert (tmp_path / "target").read_bytes() == b"second"
    assert (tmp_path / "target").read_bytes() == b"first"
    with whole_folder(tmp_path / "folder", lambda _: True) as outer:
        (outer / "outer").touch()
        with whole_folder(tmp_path / "folder", lambda _: True) as inner:
            (inner / "inner").touch()
    assert os.listdir(tmp_path / "folder") == ["outer"]
    assert sorted(os.listdir(tmp_path)) == ["folder", "target"]
