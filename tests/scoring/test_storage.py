"""Index folders: a save harms nothing that is not its own, and no two processes harm each other's."""

import errno
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.scoring import Embeddings, HybridSearcher, storage
from bgem3.scoring.storage import INDEX, LOCK, UNLISTED
from tests.scoring.corpus import make_embeddings
from tests.scoring.killing import assert_nothing_is_left, read_appended, read_index, save_index, stop_saves
from tests.scoring.racing import race

Save = Callable[[Path], None]


def save_searcher(path: Path) -> None:
    HybridSearcher.build(make_embeddings(1, 4)).save(path)


def save_embeddings(path: Path) -> None:
    make_embeddings(1, 4).save(path)


savers = pytest.mark.parametrize("save", [save_searcher, save_embeddings])


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@savers
def test_a_link_to_a_folder_that_is_not_there_yet_makes_it(save: Save, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("disk/index")
    for _ in range(2):
        save(link)
    assert link.is_symlink()
    assert len(files(tmp_path / "disk")) > 3


@savers
@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_what_is_no_folder_is_named_and_untouched(save: Save, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match=r"this is no folder; save to a new one: '.*file'"):
        save(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"symbolic links: '.*loop'"):
        save(tmp_path / "loop")
    assert files(tmp_path) == ["file", "loop"]


@savers
def test_an_index_that_is_a_link_to_nothing_is_named(save: Save, tmp_path: Path) -> None:
    (tmp_path / INDEX).symlink_to("disk/object")
    for call in (save, HybridSearcher.open, Embeddings.load):
        with pytest.raises(FileNotFoundError, match=r"index\.json is a link to disk/object, which is not there"):
            call(tmp_path)
    assert files(tmp_path) == [INDEX]


@savers
@pytest.mark.parametrize(
    "name",
    [
        "part-1-thesis/a.tex",
        "part-0123456789ab/a.tex",
        "part-1",
        "thesis.tex",
        ".hidden",
        ".git/config",
        ".unlisted.txt",
    ],
)
def test_a_folder_that_holds_anything_and_no_index_is_refused_and_untouched(
    save: Save, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    before = files(folder)
    with pytest.raises(ValueError, match=r"holds other files \('.*'\) and no index\.json; save to a new folder"):
        save(folder)
    assert files(folder) == before


@savers
def test_a_folder_with_a_lock_and_other_files_is_refused_and_untouched(save: Save, tmp_path: Path) -> None:
    for name in (LOCK, "thesis.tex"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \('thesis\.tex'\)"):
        save(tmp_path)
    assert files(tmp_path) == sorted([LOCK, "thesis.tex"])
    assert (tmp_path / LOCK).read_text() == "mine"


@savers
def test_a_first_save_waits_for_another_first_save_to_the_same_folder(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    check, folder = storage._check_folder, tmp_path / "index"

    def check_while_another_saves(folder: Path, kind: str) -> None:
        if not threads:  # what is written between looking for an index and listing the folder
            folder.mkdir()
            threads.append(threading.Thread(target=save, args=(folder,)))
            noted = storage._noted
            monkeypatch.setattr(storage, "_noted", lambda place: [])
            with monkeypatch.context() as patch:
                patch.setattr(storage, "_check_folder", check)
                threads[0].start()
                threads[0].join()
            (folder / INDEX).rename(tmp_path / INDEX)
            try:
                check(folder, kind)
            finally:
                (tmp_path / INDEX).rename(folder / INDEX)
                monkeypatch.setattr(storage, "_noted", noted)
        check(folder, kind)

    monkeypatch.setattr(storage, "_check_folder", check_while_another_saves)
    save(folder)
    assert threads
    assert_nothing_is_left(folder)


@savers
@pytest.mark.parametrize("name", ["part-1-thesis", "part-0123456789ab", "part-", ".part", "notes"])
def test_what_lies_beside_the_parts_of_an_index_survives_saves(save: Save, name: str, tmp_path: Path) -> None:
    save(tmp_path / "index")
    (tmp_path / "index" / name).mkdir()
    (tmp_path / "index" / name / "a.tex").write_text("mine")
    for _ in range(2):
        save(tmp_path / "index")
    assert (tmp_path / "index" / name / "a.tex").read_text() == "mine"
    shutil.rmtree(tmp_path / "index" / name)
    assert_nothing_is_left(tmp_path / "index")


@savers
def test_an_empty_folder_and_one_with_the_lock_alone_can_be_saved_to(save: Save, tmp_path: Path) -> None:
    for name in ("empty", "locked"):
        (tmp_path / name / "index").mkdir(parents=True)
    (tmp_path / "locked/index" / LOCK).touch()
    for name in ("empty", "locked"):
        save(tmp_path / name / "index")
        assert_nothing_is_left(tmp_path / name / "index")


@pytest.mark.parametrize(
    "parts",
    [
        ["../victim"],
        ["/tmp"],
        ["victim"],
        ["."],
        [""],
        [None],
        [["part-0123456789ab"]],
        "part-0123456789ab",
        None,
        {},
        3,
    ],
    ids=repr,
)
def test_an_index_that_lists_what_no_save_writes_is_refused_and_nothing_is_deleted(
    parts: object, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    save_searcher(folder)
    for victim in (tmp_path / "victim", folder / "victim"):
        victim.mkdir()
        (victim / "thesis.tex").touch()
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"parts": parts}))
    before = files(tmp_path)
    for call in (save_searcher, HybridSearcher.open):
        with pytest.raises(ValueError, match=r"index\.json is damaged: it lists the parts"):
            call(folder)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "line", ["../victim", "victim", "part-1-thesis", "/tmp", "", ".", "part-0123456789ab/../victim"]
)
def test_a_note_of_unlisted_parts_removes_only_what_has_a_parts_name(line: str, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    save_searcher(folder)
    for victim in (tmp_path / "victim", folder / "victim", folder / "part-1-thesis"):
        victim.mkdir()
    (folder / UNLISTED).write_text(f"{line}\n")
    save_searcher(folder)
    assert (tmp_path / "victim").is_dir()
    assert {"victim", "part-1-thesis"} <= set(os.listdir(folder))
    assert not (folder / UNLISTED).exists()


def test_links_planted_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    folder, victim = tmp_path / "index", tmp_path / "victim"
    save_searcher(folder)
    victim.mkdir()
    (victim / "a").write_text("mine")
    (folder / UNLISTED).symlink_to(victim / "a")
    save_searcher(folder)
    (part,) = folder.glob("part-*")
    part.rename(tmp_path / "moved")
    part.symlink_to(tmp_path / "moved")  # a part on another disk
    save_searcher(folder)
    assert not part.is_symlink()
    assert (tmp_path / "moved/dense.npy").is_file()
    (folder / LOCK).unlink()
    (folder / LOCK).symlink_to(victim / "a")
    with pytest.raises(OSError, match="symbolic link"):
        save_searcher(folder)
    assert (victim / "a").read_text() == "mine"


def test_a_searcher_that_another_save_has_made_stale_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    save_index(folder, 1)
    stale, fresh = HybridSearcher.open(folder), HybridSearcher.open(folder)
    fresh.append(make_embeddings(5, 300, n_dims=64), range(10**6, 10**6 + 300))
    fresh.save(folder)
    n_passages = len(fresh)
    stale.append(make_embeddings(6, 30, n_dims=64), range(2 * 10**6, 2 * 10**6 + 30))
    before = files(folder)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"another save has replaced it\. Nothing was written; open it again"):
            stale.save(folder)
    assert files(folder) == before
    assert len(HybridSearcher.open(folder)) == n_passages
    stale.save(tmp_path / "other")  # as the message advises
    assert len(HybridSearcher.open(tmp_path / "other")) == len(stale)
    fresh.append(make_embeddings(7, 1, n_dims=64), [3 * 10**6])
    fresh.save(folder)  # its own save has not made it stale
    assert len(HybridSearcher.open(folder)) == n_passages + 1


@pytest.mark.parametrize("replaced_by", ["build", "append", "embeddings"])
def test_a_built_searcher_is_stale_too_once_its_own_save_was_replaced(replaced_by: str, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    built = HybridSearcher.build(make_embeddings(1, 4))
    built.save(folder)
    built.save(tmp_path / "copy")
    if replaced_by == "build":
        HybridSearcher.build(make_embeddings(2, 7)).save(folder)
    elif replaced_by == "append":
        other = HybridSearcher.open(folder)
        other.append(make_embeddings(2, 3))
        other.save(folder)
    else:
        shutil.rmtree(folder)
        make_embeddings(2, 7).save(folder)
    with pytest.raises((RuntimeError, ValueError), match=r"another save has replaced it|holds embeddings"):
        built.save(folder)
    built.save(tmp_path / "copy")


def test_a_link_that_leads_to_another_index_than_it_did_is_not_saved_through(tmp_path: Path) -> None:
    for version, n_texts in (("v1", 4), ("v2", 6)):
        HybridSearcher.build(make_embeddings(1, n_texts)).save(tmp_path / version)
    link = tmp_path / "current"
    link.symlink_to("v1")
    saved = HybridSearcher.build(make_embeddings(2, 3))
    saved.save(link)
    opened = HybridSearcher.open(link)
    link.unlink()
    link.symlink_to("v2")
    for searcher in (opened, saved):
        with pytest.raises(RuntimeError, match="v2 no longer holds the hybrid searcher that was opened or saved here"):
            searcher.save(link)
    assert len(HybridSearcher.open(link)) == 6
    saved.save(tmp_path / "v1")
    saved.save(tmp_path / "v2")
    saved.append(make_embeddings(3, 1))
    saved.save(link)
    assert len(HybridSearcher.open(link)) == 4


def test_a_searcher_knows_every_folder_that_it_was_saved_to_and_writes_only_what_each_lacks(tmp_path: Path) -> None:
    searcher = HybridSearcher.build(make_embeddings(1, 4))
    for name in ("a", "b"):
        searcher.save(tmp_path / name)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    searcher.append(make_embeddings(2, 4))
    for name in ("a", "b", "a"):
        searcher.save(tmp_path / name)
        assert len(HybridSearcher.open(tmp_path / name)) == 8
    assert first.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}.items()
    shutil.rmtree(tmp_path / "a")
    searcher.save(tmp_path / "a")
    assert len(HybridSearcher.open(tmp_path / "a")) == 8


def test_threads_that_save_one_searcher_all_succeed_and_lose_nothing(tmp_path: Path) -> None:
    searcher, errors = HybridSearcher.build(make_embeddings(0, 1)), []

    def save() -> None:
        try:
            for _ in range(5):
                searcher.save(tmp_path / "index")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(1, 6):
        searcher.append(make_embeddings(i, 1))
    for thread in threads:
        thread.join()
    assert errors == []
    searcher.save(tmp_path / "index")
    assert read_appended(tmp_path / "index") == 5
    assert_nothing_is_left(tmp_path / "index")


def test_an_index_of_an_earlier_version_opens_and_takes_more_passages(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    save_searcher(folder)
    (folder / LOCK).unlink()  # which earlier versions do not write
    index = json.loads((folder / INDEX).read_text())
    assert set(index) == {"format", "kind", "parts", "n_passages"}, "earlier versions read this index"
    searcher = HybridSearcher.open(folder)
    searcher.append(make_embeddings(2, 3))
    searcher.save(folder)
    assert len(HybridSearcher.open(folder)) == 7


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write to any folder")
def test_a_folder_that_cannot_be_written_to_opens(tmp_path: Path) -> None:
    save_searcher(tmp_path / "index")
    (tmp_path / "index").chmod(0o555)
    try:
        assert len(HybridSearcher.open(tmp_path / "index")) == 4
        with pytest.raises(PermissionError):
            save_searcher(tmp_path / "index")
    finally:
        (tmp_path / "index").chmod(0o755)


def test_opening_writes_nothing(tmp_path: Path) -> None:
    save_searcher(tmp_path / "index")
    (tmp_path / "index" / LOCK).unlink()
    before = files(tmp_path)
    HybridSearcher.open(tmp_path / "index")
    assert files(tmp_path) == before


def test_the_lock_may_be_taken_by_all_who_may_write_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index").chmod(0o775)
    save_searcher(tmp_path / "index")
    assert stat.S_IMODE((tmp_path / "index" / LOCK).stat().st_mode) == 0o664


def test_opening_reads_again_if_a_save_removed_parts_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, n_saves = tmp_path / "index", 3
    save_index(folder, 1)

    def map_part(part: Path) -> dict[str, np.ndarray]:
        nonlocal n_saves
        if n_saves:
            n_saves -= 1
            monkeypatch.setattr(storage, "_map_part", original)
            save_index(folder, 4 - n_saves)
            monkeypatch.setattr(storage, "_map_part", map_part)
        return original(part)

    original = storage._map_part
    monkeypatch.setattr(storage, "_map_part", map_part)
    assert read_index(folder) == 4
    assert n_saves == 0


def test_opening_says_so_if_a_folder_never_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    save_index(folder, 1)

    def map_part(part: Path) -> dict[str, np.ndarray]:
        index = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps(index | {"n": index.get("n", 0) + 1}))
        return original(part)

    original = storage._map_part
    monkeypatch.setattr(storage, "_map_part", map_part)
    monkeypatch.setattr(storage, "N_TRIES", 5)
    with pytest.raises(RuntimeError, match="saved 5 times meanwhile"):
        HybridSearcher.open(folder)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    save_searcher(tmp_path / "index")
    (part,) = (tmp_path / "index").glob("part-*")
    shutil.rmtree(part)
    with pytest.raises(FileNotFoundError, match=f"{part.name} is missing, but index.json lists it"):
        HybridSearcher.open(tmp_path / "index")


@savers
@pytest.mark.parametrize("is_first", [True, False])
def test_a_full_disk_leaves_what_was_there(
    save: Save, is_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_first:
        save(tmp_path / "index")
    before, n_left = files(tmp_path), 0

    def np_save(file: Any, array: Any, **options: bool) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file, array, **options)

    original = np.save
    monkeypatch.setattr(np, "save", np_save)
    for n_arrays in range(5):
        n_left = n_arrays
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path / "index")
        assert files(tmp_path) == before


def test_parts_that_cannot_be_removed_are_removed_by_a_later_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    save_index(folder, 1)
    monkeypatch.setattr(storage, "remove", lambda path: None)  # as Windows does where files are mapped
    for version in (2, 3):
        save_index(folder, version)
    assert len(list(folder.glob("part-*"))) == 3
    monkeypatch.undo()
    save_index(folder, 4)
    assert read_index(folder) == 4
    assert_nothing_is_left(folder)


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.stress)])
@pytest.mark.parametrize("way", ["killed", "interrupted"])
@pytest.mark.parametrize("job", ["parts", "index", pytest.param("append", marks=pytest.mark.stress)])
def test_a_save_that_is_stopped_at_any_step_leaves_old_or_new_and_the_next_one_cleans_up(
    job: str, way: str, stride: int, tmp_path: Path
) -> None:
    assert stop_saves(job, tmp_path, way, stride) >= 4


@pytest.mark.parametrize("job", ["index", "append"])
@pytest.mark.parametrize("n", [5, pytest.param(200, marks=pytest.mark.stress)])
def test_kills_at_random_moments_leave_old_or_new_and_the_next_save_cleans_up(job: str, n: int, tmp_path: Path) -> None:
    assert stop_saves(job, tmp_path, "random", n) == n


@pytest.mark.parametrize("job", ["parts", "index"])
@pytest.mark.parametrize("n", [3, pytest.param(30, marks=pytest.mark.stress)])
def test_what_a_limit_on_file_size_stops_is_removed_at_once(job: str, n: int, tmp_path: Path) -> None:
    assert stop_saves(job, tmp_path, "full", n) >= n


@pytest.mark.parametrize("n", [4, pytest.param(60, marks=pytest.mark.stress)])
def test_two_saves_at_once_leave_one_of_them_whole(n: int, tmp_path: Path) -> None:
    assert race("savers", tmp_path, n) == {"pairs": n, "loaded": n}


@pytest.mark.parametrize("n", [4, pytest.param(60, marks=pytest.mark.stress)])
def test_of_two_that_open_append_and_save_at_once_one_is_refused_and_nothing_is_lost(n: int, tmp_path: Path) -> None:
    assert race("appenders", tmp_path, n) == {"pairs": n, "refused": n, "lost": 0}


@pytest.mark.parametrize("n", [40, pytest.param(400, marks=pytest.mark.stress)])
def test_opening_during_saves_gives_the_old_or_the_new_whole(n: int, tmp_path: Path) -> None:
    assert race("readers", tmp_path, n) == {"opened": n}


def test_embeddings_load_whole_during_saves(tmp_path: Path) -> None:
    texts = [make_embeddings(i, 5 + i) for i in range(2)]
    texts[0].save(tmp_path / "saved")
    done = threading.Event()

    def save() -> None:
        for i in range(30):
            texts[i % 2].save(tmp_path / "saved")
        done.set()

    thread = threading.Thread(target=save)
    thread.start()
    while not done.is_set():
        found = Embeddings.load(tmp_path / "saved")
        np.testing.assert_array_equal(found.dense, texts[len(found) - 5].dense)
    thread.join()
