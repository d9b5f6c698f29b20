"""A folder is replaced in one step, or in two that can be undone, and only if it may be replaced."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from bgem3.scoring import atomic_files, file_system
from bgem3.scoring.atomic_files import recover, whole_folder
from tests.scoring.versions import read_folder, save_folder


@pytest.fixture(params=["exchange", "two steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the exchange of two folders, and without it."""
    if request.param == "two steps":
        monkeypatch.setattr(file_system, "_renameat2", lambda *_: False)


@pytest.mark.usefixtures("way")
def test_a_folder_that_is_replaced_keeps_its_mode_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / ("a" * 255)
    save_folder(target, 1)
    target.chmod(0o750)
    save_folder(target, 2)
    assert read_folder(target) == 2
    assert target.stat().st_mode & 0o777 == 0o750
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.usefixtures("way")
def test_what_may_not_be_replaced_stays_even_if_it_appears_at_the_last_moment(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    refused = pytest.raises(FileExistsError, match="choose another folder")
    with refused, whole_folder(target, lambda place: (place / "manifest.json").exists()):
        target.mkdir()
        (target / "thesis").touch()
    assert os.listdir(tmp_path) == ["artifact"]
    assert os.listdir(target) == ["thesis"]


def test_what_appears_between_the_check_and_the_exchange_is_put_back(tmp_path: Path) -> None:
    answers = [True, False]
    save_folder(tmp_path / "artifact", 1)
    refused = pytest.raises(FileExistsError, match="choose another folder")
    with refused, whole_folder(tmp_path / "artifact", lambda _: answers.pop(0)) as folder:
        (folder / "new").touch()
    assert answers == []
    assert read_folder(tmp_path / "artifact") == 1
    assert os.listdir(tmp_path) == ["artifact"]


def test_a_target_that_a_kill_left_renamed_is_restored(tmp_path: Path) -> None:
    target, link = tmp_path / "artifact", tmp_path / "link"
    save_folder(target, 1)
    link.symlink_to(target)
    link.rename(atomic_files._temporary(link, "replaced"))
    recover(link)
    assert link.is_symlink()
    replaced = atomic_files._temporary(target, "replaced")
    target.rename(replaced)
    assert read_folder(target) == 1  # which recovers it
    replaced.mkdir()  # one whose successor is there is removed
    assert read_folder(target) == 1
    assert sorted(os.listdir(tmp_path)) == ["artifact", "link"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EIO])
def test_a_file_system_that_cannot_exchange_gets_two_steps_and_other_errors_are_raised(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            self.renameat2 = lambda *_: -1

    save_folder(tmp_path / "artifact", 1)
    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            save_folder(tmp_path / "artifact", 2)
    else:
        save_folder(tmp_path / "artifact", 2)
    assert read_folder(tmp_path / "artifact") == 1 + (number != errno.EIO)
    assert os.listdir(tmp_path) == ["artifact"]
