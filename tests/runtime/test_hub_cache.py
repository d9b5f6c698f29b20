"""The hub and its cache: a part of a checkpoint, no network, no room, and downloads that are refused."""

import errno
import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from bgem3.runtime import BGEM3FlagModel, CheckpointError
from bgem3.runtime import export_cache as cache
from bgem3.runtime.source import find_checkpoint, find_heads

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "someone/fine-tune"
FILES = ("config.json", "tokenizer.json", "model.safetensors", "sparse_linear.pt", "colbert_linear.pt")


@pytest.fixture
def hub_cache(random_checkpoint: Path, tmp_path: Path) -> Path:
    """A hub's cache that holds the checkpoint: blobs, and a snapshot of links to them."""
    repository = tmp_path / "hub" / "models--someone--fine-tune"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name in FILES:
        blob = repository / "blobs" / f"blob-of-{name}"
        shutil.copy(random_checkpoint / name, blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return tmp_path / "hub"


@pytest.fixture
def snapshot(hub_cache: Path) -> Path:
    return hub_cache / "models--someone--fine-tune" / "snapshots" / COMMIT


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_a_whole_checkpoint_in_the_cache_is_found_offline(hub_cache: Path, snapshot: Path) -> None:
    assert find_checkpoint(ID, hub_cache) == snapshot
    assert find_heads(ID, FILES[3:], hub_cache) == snapshot


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("names", [(name,) for name in FILES] + [FILES[2:], FILES[1:3], FILES[3:]])
def test_offline_a_part_of_a_checkpoint_says_what_is_missing_and_where(
    hub_cache: Path, snapshot: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        (snapshot / name).unlink()
    named = [name for name in names if not set(names) - set(FILES[3:]) or name not in FILES[3:]]
    words = rf"{ID} has no {' and no '.join(named)}.*{snapshot}.*offline.*HF_HUB_OFFLINE"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint(ID, hub_cache)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", FILES[2:])
def test_the_id_that_was_given_is_not_recommended(hub_cache: Path, snapshot: Path, name: str) -> None:
    given = hub_cache / "models--BAAI--bge-m3"
    (snapshot / name).unlink()
    snapshot.parent.parent.rename(given)
    with pytest.raises(CheckpointError, match=r"BAAI/bge-m3 has no .*offline") as caught:
        find_checkpoint("BAAI/bge-m3", hub_cache)
    assert "heads_from='BAAI/bge-m3'" not in str(caught.value)
    assert "use 'BAAI/bge-m3'" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_offline_a_blob_that_is_gone_is_named(hub_cache: Path, snapshot: Path) -> None:
    (snapshot.parent.parent / "blobs" / "blob-of-model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"no model\.safetensors: {snapshot}/model\.safetensors is a link to"):
        find_checkpoint(ID, hub_cache)


@pytest.mark.usefixtures("offline")
def test_offline_heads_that_are_not_there_say_where(hub_cache: Path, snapshot: Path) -> None:
    (snapshot / "sparse_linear.pt").unlink()
    with pytest.raises(CheckpointError, match=rf"heads_from='{ID}' has no sparse_linear\.pt.*{snapshot}.*offline"):
        find_heads(ID, FILES[3:], hub_cache)


@pytest.mark.usefixtures("offline")
def test_offline_a_checkpoint_that_is_not_in_the_cache_names_the_cache(hub_cache: Path) -> None:
    words = rf"cannot download nobody/nothing.*offline.*HF_HUB_OFFLINE.*{hub_cache} holds no snapshot.*cache_dir"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint("nobody/nothing", hub_cache)


def test_online_a_part_of_a_checkpoint_gives_both_reasons(
    hub_cache: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"in {snapshot}: the repository lacks them, or the hub could not be"):
        find_checkpoint(ID, hub_cache)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_in_the_cache_is_refused(hub_cache: Path, snapshot: Path, name: str) -> None:
    (snapshot / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{ID} holds a LoRA adapter.*merge it first"):
        find_checkpoint(ID, hub_cache)


def test_an_adapter_on_the_hub_is_downloaded_so_far_that_it_is_noticed(
    hub_cache: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def record(*_: Any, allow_patterns: list[str], **__: Any) -> str:
        asked.extend(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    find_checkpoint(ID, hub_cache)
    assert any(fnmatch.fnmatch("adapter_config.json", pattern) for pattern in asked)


# A folder of the cache given as the model


@pytest.mark.parametrize(
    "below",
    [
        ".",
        "models--someone--fine-tune",
        *(f"models--someone--fine-tune/{name}" for name in ("snapshots", "blobs", "refs")),
    ],
)
def test_a_folder_of_the_hubs_cache_names_the_snapshot(hub_cache: Path, snapshot: Path, below: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"a folder of the hub's cache.*give the snapshot {snapshot}, or the hub"
    ):
        find_checkpoint(hub_cache / below)


def test_the_snapshot_that_main_names_is_named_first(hub_cache: Path, snapshot: Path) -> None:
    older = snapshot.with_name("0" * 40)
    shutil.copytree(snapshot, older, symlinks=True)
    with pytest.raises(CheckpointError, match=rf"give the snapshot {snapshot} or {older}"):
        find_checkpoint(snapshot.parent)


# A cache that cannot be written


@pytest.mark.parametrize("below", ["", "models--owner--name", "models--owner--name/snapshots"])
def test_heads_from_a_folder_of_the_hubs_cache_names_the_snapshot(hub_cache: Path, snapshot: Path, below: str) -> None:
    place = snapshot.parent.parent.parent / below.replace("models--owner--name", snapshot.parent.parent.name)
    with pytest.raises(CheckpointError, match=rf"heads_from=.*folder of the hub's cache.*snapshot {snapshot}"):
        find_heads(place, ("sparse_linear.pt",))


def test_a_cache_that_is_a_device_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"cache /dev/null/x cannot be made: /dev/null is a file; name another"):
        find_checkpoint("owner/name", "/dev/null/x")


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_a_cache_folder_with_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / below
    words = rf"the hub's cache {folder} cannot be made: {tmp_path / 'file'} is a file.*cache_dir"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint(ID, folder)
    with pytest.raises(CheckpointError, match=words):
        BGEM3FlagModel(ID, cache_dir=folder)


def chained(error: OSError) -> Exception:
    """Return what huggingface_hub may make of an error of the system."""
    outer = RuntimeError("Data processing error")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize("wrap", [lambda error: error, chained], ids=["bare", "chained"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR])
def test_a_cache_that_cannot_be_written_is_named_with_the_reason(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, wrap: Callable[[OSError], Exception], code: int
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise wrap(OSError(code, "the system's reason", str(hub_cache)))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=rf"its cache {hub_cache} cannot be written.*cache_dir") as caught:
        find_checkpoint(ID, hub_cache)
    assert "check the id and the network" not in str(caught.value)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_exports_that_cannot_be_kept_name_cache_dir(random_checkpoint: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"exports cannot be kept in .*file.*bgem3: .*name another folder as cache_dir"):
        cache.find_or_export(random_checkpoint, "fp16", tmp_path / "file" / below)


def test_a_disk_that_is_full_while_exporting_names_cache_dir(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "writing failed: no space left on device")

    monkeypatch.setattr("bgem3.export.export_model", fail)
    with pytest.raises(OSError, match=r"exports cannot be kept in .*no space left.*cache_dir") as caught:
        cache.find_or_export(random_checkpoint, "fp16", tmp_path)
    assert caught.value.errno == errno.ENOSPC


# Downloads that are refused


def refusal(kind: type[Exception]) -> Exception:
    """Make an error as huggingface_hub does of the hub's answer."""
    answer: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    return kind("the hub's words", response=answer)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        pytest.param(
            refusal(errors.GatedRepoError),
            rf"the hub's words.*accept the terms at https://huggingface\.co/{ID} and log in with `hf auth login`",
            id="gated",
        ),
        pytest.param(
            refusal(errors.RepositoryNotFoundError), "the hub's words.*no such repository, or it is private", id="404"
        ),
        pytest.param(
            refusal(errors.HfHubHTTPError), "the hub's words.*check the id and the network", id="server_error"
        ),
        pytest.param(
            errors.LocalEntryNotFoundError("no connection"), "no connection.*check the id and the network", id="offline"
        ),
        pytest.param(ConnectionError("reset by peer"), "reset by peer.*check the id and the network", id="reset"),
        pytest.param(TimeoutError("timed out"), "timed out.*check the id and the network", id="timeout"),
        pytest.param(errors.HFValidationError("bad id"), "bad id.*check the id and the network", id="invalid_id"),
    ],
)
def test_a_refused_download_says_why_and_what_to_do(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    words = rf"cannot download {ID} from the hub.*{words}.*local folder"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint(ID, hub_cache)
    with pytest.raises(CheckpointError, match=words):
        find_heads(ID, FILES[3:], hub_cache)
