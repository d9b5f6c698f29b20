"""Folders of parts: a save harms nothing that is not its own, and no two processes harm each other's."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bgem3.scoring import Embeddings, HybridSearcher, storage
from bgem3.scoring.storage import INDEX, LOCK, UNLISTED
from tests.scoring.corpus import make_embeddings
from tests.scoring.versions import assert_nothing_is_left, read_embeddings, save_embeddings


def save(path: Path) -> None:
    make_embeddings(1, 4).save(path)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_is_no_folder_is_named_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "pipe"):
        with pytest.raises(NotADirectoryError, match=rf"this is no folder; save to a new one: '.*{name}'"):
            save(tmp_path / name)
    with pytest.raises(OSError, match=r"symbolic links: '.*loop'"):
        save(tmp_path / "loop")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / INDEX).symlink_to("disk/object")
    for call in (save, HybridSearcher.open, Embeddings.load):
        with pytest.raises(FileNotFoundError, match=r"index\.json is a link to disk/object, which is not there"):
            call(tmp_path / "index")
    assert files(tmp_path) == ["file", "index", f"index/{INDEX}", "loop", "pipe"]


FOREIGN = ["part-0123456789ab/a.tex", "part-1", ".hidden"]


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_in_a_folder_survive_saves_and_without_an_index_it_is_refused(name: str, tmp_path: Path) -> None:
    folder, file = tmp_path / "index", tmp_path / "index" / name
    save(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    (folder / UNLISTED).write_text("\n".join([*FOREIGN, "../victim", "/tmp", "", ".", "part-0123456789ac/../victim"]))
    for _ in range(2):
        save(folder)
    assert not (folder / UNLISTED).exists()
    (folder / INDEX).unlink()
    before = files(folder)
    with pytest.raises(ValueError, match=r"holds other files \('.*'\) and no index\.json; save to a new folder"):
        save(folder)
    assert files(folder) == before
    assert file.read_text() == "mine"


def test_links_planted_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    folder, victim = tmp_path / "index", tmp_path / "victim"
    save(folder)
    victim.write_text("mine")
    (folder / UNLISTED).symlink_to(victim)
    save(folder)
    (folder / LOCK).unlink()
    (folder / LOCK).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        save(folder)
    assert victim.read_text() == "mine"


def test_an_index_of_an_earlier_version_opens_without_writing_and_takes_more_passages(tmp_path: Path) -> None:
    HybridSearcher.build(make_embeddings(1, 4)).save(tmp_path)
    (tmp_path / LOCK).unlink()  # which earlier versions do not write
    index = json.loads((tmp_path / INDEX).read_text())
    assert set(index) == {"format", "kind", "parts", "n_passages"}, "earlier versions read this index"
    before = files(tmp_path)
    searcher = HybridSearcher.open(tmp_path)
    assert files(tmp_path) == before
    searcher.append(make_embeddings(2, 3))
    searcher.save(tmp_path)
    assert len(HybridSearcher.open(tmp_path)) == 7


def test_opening_reads_again_if_a_save_removed_parts_meanwhile_and_says_if_that_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_saves = 3
    save_embeddings(tmp_path, 1)

    def map_part(part: Path) -> dict[str, Any]:
        nonlocal n_saves
        if n_saves:
            n_saves -= 1
            with monkeypatch.context() as patch:
                patch.setattr(storage, "_map_part", original)
                save_embeddings(tmp_path, 4 - n_saves)
        return original(part)

    original = storage._map_part
    monkeypatch.setattr(storage, "_map_part", map_part)
    assert read_embeddings(tmp_path) == 4
    n_saves = -1
    monkeypatch.setattr(storage, "N_TRIES", 5)
    with pytest.raises(RuntimeError, match="saved 5 times meanwhile"):
        Embeddings.load(tmp_path)


def test_parts_that_cannot_be_removed_are_removed_by_a_later_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    save_embeddings(folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", lambda path: None)  # as Windows does where files are mapped
        save_embeddings(folder, 2)
        save_embeddings(folder, 3)
    assert len(list(folder.glob("part-*"))) == 3
    save_embeddings(folder, 4)
    assert read_embeddings(folder) == 4
    assert_nothing_is_left(folder)


def test_a_full_disk_leaves_the_old_index_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save_embeddings(tmp_path / "old", 1)
    for call, name in ((storage, "write_npy"), (storage, "sync_tree"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(call, name, fail)
            for path in (tmp_path / "old", tmp_path / "new"):
                with pytest.raises(OSError, match="No space left on device"):
                    save_embeddings(path, 2)
        assert os.listdir(tmp_path) == ["old"]
        assert_nothing_is_left(tmp_path / "old")
        assert read_embeddings(tmp_path / "old") == 1
