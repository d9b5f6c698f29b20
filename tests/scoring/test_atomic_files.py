"""Files and folders appear whole or not at all, under names that nobody can plant, and leave nothing behind."""

import errno
import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.runtime.bench_report import BenchReport
from bgem3.runtime.writers import write_file
from bgem3.scoring import Embeddings, atomic_files, file_system, tune_weights
from bgem3.scoring.atomic_files import recover, whole_file, whole_folder
from tests.scoring.corpus import make_embeddings
from tests.scoring.killing import read_folder, save_folder, stop_saves


def save_npz(path: Path) -> None:
    make_embeddings(1, 3).save(path)


def encode(path: Path) -> None:
    write_file([make_embeddings(1, 3), make_embeddings(2, 3)], path)


def bench(path: Path) -> None:
    BenchReport(path, 60.0).keep(1, "figure")


def plot(path: Path) -> None:
    passages = make_embeddings(1, 3)
    tune_weights(passages, passages, [{0: 1.0}, {1: 1.0}, {2: 1.0}]).plot(path)


WRITERS = [
    pytest.param(save_npz, ".npz", id="save"),
    pytest.param(encode, ".npz", id="encode_npz"),
    pytest.param(encode, ".jsonl", id="encode_jsonl"),
    pytest.param(encode, ".parquet", id="encode_parquet"),
    pytest.param(bench, ".json", id="bench"),
    pytest.param(plot, ".png", id="plot"),
]
writers = pytest.mark.parametrize(("write", "suffix"), WRITERS)
Write = Callable[[Path], None]


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@writers
def test_a_new_file_has_the_mode_that_the_umask_gives(write: Write, suffix: str, tmp_path: Path, umask: int) -> None:
    write(tmp_path / f"file{suffix}")
    assert mode_of(tmp_path / f"file{suffix}") == 0o666 & ~umask
    assert os.listdir(tmp_path) == [f"file{suffix}"]


@writers
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_file_that_exists_keeps_its_mode(write: Write, suffix: str, mode: int, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert mode_of(path) == mode
    assert path.read_bytes() != b"old"


@writers
@pytest.mark.parametrize("exists", [True, False], ids=["file", "dangling"])
def test_a_link_is_kept_and_what_it_points_to_is_written(
    write: Write, suffix: str, exists: bool, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    target, link, second = tmp_path / f"a/target{suffix}", tmp_path / f"b/link{suffix}", tmp_path / f"b/second{suffix}"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(f"../a/target{suffix}")
    second.symlink_to(link)
    write(second)
    assert link.is_symlink()
    assert second.is_symlink()
    assert not target.is_symlink()
    assert target.read_bytes() not in (b"old", b"")
    assert sorted(os.listdir(tmp_path / "a") + os.listdir(tmp_path / "b")) == sorted(
        [target.name, link.name, second.name]
    )


@writers
def test_a_name_as_long_as_the_system_allows_can_be_written(write: Write, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / ("ä" * ((255 - len(suffix)) // 2) + suffix)
    write(path)
    write(path)
    assert os.listdir(tmp_path) == [path.name]


def test_a_link_that_is_planted_at_the_temporary_name_is_never_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda n_bytes: "0" * 2 * n_bytes)
    (tmp_path / "victim").write_bytes(b"mine")
    planted = atomic_files._temporary(tmp_path / "file.npz", "partial")
    for target in ("victim", "nowhere"):
        planted.symlink_to(tmp_path / target)
        monkeypatch.setattr(atomic_files, "recover", lambda target: None)  # which would remove the link
        with pytest.raises(FileExistsError):
            save_npz(tmp_path / "file.npz")
        planted.unlink()
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["victim"]


def test_a_loop_of_links_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.npz").symlink_to("loop.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OSError, match="symbolic links"):
        save_npz(tmp_path / "loop.npz")
    with pytest.raises(IsADirectoryError, match=r"folder\.npz"):
        save_npz(tmp_path / "folder.npz")
    with pytest.raises(FileNotFoundError, match="missing"):
        save_npz(tmp_path / "missing/file.npz")
    assert sorted(os.listdir(tmp_path)) == ["folder.npz", "loop.npz"]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    path, found = tmp_path / "pipe.jsonl", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    encode(path)
    reader.join(30)
    assert found[0].count(b"\n") == 6
    assert path.is_fifo()


@pytest.mark.parametrize("n", [8, pytest.param(200, marks=pytest.mark.stress)])
def test_threads_that_save_one_file_leave_one_of_their_files_whole(n: int, tmp_path: Path) -> None:
    path, texts = tmp_path / "file.npz", [make_embeddings(i, 50) for i in range(3)]
    errors: list[Exception] = []

    def save(embeddings: Embeddings) -> None:
        try:
            for _ in range(n):
                embeddings.save(path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(embeddings,)) for embeddings in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            found = Embeddings.load(path).dense
            assert any(np.array_equal(found, each.dense) for each in texts)
    assert errors == []
    assert os.listdir(tmp_path) == [path.name]


@writers
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_file_that_was_there_and_nothing_else(
    write: Write, suffix: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / f"file{suffix}"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write(path)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(("write", "suffix"), WRITERS[:4])  # the others make the folder
def test_a_folder_that_is_not_there_is_told_with_the_target(write: Write, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "none" / f"file{suffix}"
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{path}'"):
        write(path)


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
    with whole_file(tmp_path / "file") as file:
        file.write(b"12345")
    assert calls == ["sync file of 5", "replace", "sync folder"]


def leftovers(target: Path) -> dict[str, Path]:
    """Make what a killed writer leaves: a file and a folder."""
    file, folder = (atomic_files._temporary(target, "partial") for _ in range(2))
    file.write_bytes(b"half")
    (folder / "fp16").mkdir(parents=True)
    (folder / "fp16/weights.bin").write_bytes(b"half")
    return {"file": file, "folder": folder}


def test_the_next_writer_removes_what_killed_ones_left_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "saved.npz"
    killed = leftovers(target)
    others = leftovers(tmp_path / "other.npz")
    mine = [
        ".saved.npz.123.partial.npz",
        ".bgem3-notes.partial",
        f"{killed['file'].name}.txt",
        "x" + others["file"].name,
    ]
    for name in mine:
        (tmp_path / name).write_bytes(b"mine")
    save_npz(target)
    assert sorted(os.listdir(tmp_path)) == sorted([target.name, *mine, *(path.name for path in others.values())])


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_living_process_writes_is_never_removed(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "saved"
    path = leftovers(target)[kind]
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    recover(target)
    assert path.exists()
    os.close(descriptor)
    recover(target)
    assert not path.exists()


def test_writers_of_one_target_at_once_do_not_remove_each_others_files(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with whole_file(target) as first:
        first.write(b"first")
        with whole_file(target) as second:
            second.write(b"second")
        assert target.read_bytes() == b"second"
    assert target.read_bytes() == b"first"
    with whole_folder(tmp_path / "folder", lambda _: True) as outer:
        (outer / "outer").touch()
        with whole_folder(tmp_path / "folder", lambda _: True) as inner:
            (inner / "inner").touch()
    assert os.listdir(tmp_path / "folder") == ["outer"]
    assert sorted(os.listdir(tmp_path)) == ["folder", "target"]


def cannot_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "_renameat2", lambda *_: False)


@pytest.fixture(params=["exchange", "two steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with the exchange of two folders, and without it."""
    if request.param == "two steps":
        cannot_exchange(monkeypatch)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_a_folder_that_is_replaced_keeps_its_mode_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / ("a" * 255)
    save_folder(target, 1)
    (target / "notes").touch()
    target.chmod(0o750)
    save_folder(target, 2)
    assert read_folder(target) == 2
    assert mode_of(target) == 0o750
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.usefixtures("way")
def test_what_may_not_be_replaced_stays_even_if_it_appears_at_the_last_moment(tmp_path: Path) -> None:
    target = tmp_path / "artifact"

    def make_thesis() -> None:
        target.mkdir()
        (target / "thesis").touch()

    def may_replace(place: Path) -> bool:
        return (place / "manifest.json").exists()

    with pytest.raises(FileExistsError, match="choose another folder"), whole_folder(target, may_replace):
        make_thesis()
    assert os.listdir(tmp_path) == ["artifact"]
    assert os.listdir(target) == ["thesis"]


def test_what_appears_between_the_check_and_the_exchange_is_put_back(tmp_path: Path) -> None:
    target, answers = tmp_path / "artifact", [True, False]
    save_folder(target, 1)
    with (
        pytest.raises(FileExistsError, match="choose another folder"),
        whole_folder(target, lambda _: answers.pop(0)) as folder,
    ):
        (folder / "new").touch()
    assert answers == []
    assert read_folder(target) == 1
    assert os.listdir(tmp_path) == ["artifact"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken")], ids=repr)
def test_a_failure_between_the_two_steps_puts_the_old_folder_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "artifact"
    save_folder(target, 1)
    cannot_exchange(monkeypatch)

    def rename(path: Path, to: Any) -> Path:
        if path.suffix == ".partial" and to == target:
            assert not target.exists()
            raise error
        return original(path, to)

    original = Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(error)):
        save_folder(target, 2)
    assert read_folder(target) == 1
    assert os.listdir(tmp_path) == ["artifact"]


def test_a_target_that_a_kill_left_renamed_is_restored(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    save_folder(target, 1)
    replaced = atomic_files._temporary(target, "replaced")
    target.rename(replaced)
    recover(target)
    assert read_folder(target) == 1
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "link").rename(atomic_files._temporary(tmp_path / "link", "replaced"))
    recover(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    replaced.mkdir()  # and one is removed whose successor is there
    recover(target)
    assert read_folder(target) == 1
    assert sorted(os.listdir(tmp_path)) == ["artifact", "link"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_exchange_gets_two_steps(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes

    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            self.renameat2 = lambda *_: -1

    target = tmp_path / "artifact"
    save_folder(target, 1)
    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)
    save_folder(target, 2)
    assert read_folder(target) == 2
    assert os.listdir(tmp_path) == ["artifact"]
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        save_folder(target, 3)
    assert read_folder(target) == 2
    assert os.listdir(tmp_path) == ["artifact"]


@pytest.mark.parametrize("stride", [2, pytest.param(1, marks=pytest.mark.stress)])
@pytest.mark.parametrize("way", ["killed", "interrupted"])
@pytest.mark.parametrize("job", ["npz", "exchange", "two_steps"])
def test_a_save_that_is_stopped_at_any_step_leaves_old_or_new_and_the_next_one_cleans_up(
    job: str, way: str, stride: int, tmp_path: Path
) -> None:
    assert stop_saves(job, tmp_path, way, stride) >= 3


@pytest.mark.parametrize("job", ["npz", "exchange", "two_steps"])
@pytest.mark.parametrize("n", [5, pytest.param(200, marks=pytest.mark.stress)])
def test_kills_at_random_moments_leave_old_or_new_and_the_next_save_cleans_up(job: str, n: int, tmp_path: Path) -> None:
    assert stop_saves(job, tmp_path, "random", n) == n


@pytest.mark.parametrize("job", ["npz", "exchange"])
@pytest.mark.parametrize("n", [4, pytest.param(50, marks=pytest.mark.stress)])
def test_what_a_full_disk_stops_is_removed_at_once(job: str, n: int, tmp_path: Path) -> None:
    assert stop_saves(job, tmp_path, "full", n) >= n


def test_the_tuning_plot_without_a_suffix_is_a_png(tmp_path: Path) -> None:
    plot(tmp_path / "tuning")
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")
