"""Checkpoints found in a folder, on the hub and in its cache; failed downloads; the exports that the drop-in keeps."""

import errno
import fnmatch
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors

from bgem3.export import export_model
from bgem3.runtime import BGEM3FlagModel, CheckpointError, export_cache
from bgem3.runtime.checkpoint_files import checkpoint_hash, find_checkpoint, find_heads
from bgem3.runtime.manifest import FORMAT_VERSION

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "someone/fine-tune"
FILES = ("config.json", "tokenizer.json", "model.safetensors", "sparse_linear.pt", "colbert_linear.pt")
HEADS = FILES[3:]


# The hub


@pytest.fixture
def repository(random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's one repository, whose files are downloaded into tmp_path/cache as `snapshot_download` does."""
    repository = Path(shutil.copytree(random_checkpoint, tmp_path / "repository"))
    for extra in ("onnx/config.json", "onnx/model.onnx", "pytorch_model.bin", "README.md", "imgs/plot.png"):
        (repository / extra).parent.mkdir(exist_ok=True)
        (repository / extra).write_text("not needed")

    def download(repo_id: str, allow_patterns: list[str], ignore_patterns: str, cache_dir: Path | None) -> str:
        assert repo_id == "BAAI/bge-m3"
        snapshot = tmp_path / "cache" / COMMIT
        snapshot.mkdir(parents=True, exist_ok=True)
        for path in (path for path in repository.rglob("*") if path.is_file()):
            name = path.relative_to(repository).as_posix()
            if any(fnmatch.fnmatch(name, p) for p in allow_patterns) and not fnmatch.fnmatch(name, ignore_patterns):
                shutil.copy(path, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return repository


SMALL = {"config.json", "tokenizer.json", "tokenizer_config.json", *HEADS}


def test_only_the_files_needed_are_downloaded_and_safetensors_are_preferred(repository: Path) -> None:
    found = find_checkpoint("BAAI/bge-m3")
    assert {path.name for path in found.iterdir()} == SMALL | {"model.safetensors"}
    shutil.rmtree(found)
    (repository / "model.safetensors").unlink()
    assert {path.name for path in find_checkpoint("BAAI/bge-m3").iterdir()} == SMALL | {"pytorch_model.bin"}


def test_the_manifest_names_the_hub_id_and_the_commit(repository: Path, tmp_path: Path) -> None:
    manifest = export_model("BAAI/bge-m3", tmp_path / "artifact")
    assert (manifest["source"]["id"], manifest["source"]["revision"]) == ("BAAI/bge-m3", COMMIT)


def test_a_hub_repository_without_a_head_or_with_an_adapter_is_refused(repository: Path) -> None:
    (repository / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"BAAI/bge-m3 holds a LoRA adapter.*merge it first"):
        find_checkpoint("BAAI/bge-m3")
    (repository / "adapter_config.json").unlink()
    shutil.rmtree(repository.parent / "cache")
    (repository / "sparse_linear.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no sparse_linear\.pt in .*the repository lacks them.*random sparse"):
        find_checkpoint("BAAI/bge-m3")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("no-such-folder", "neither a folder nor a hub id of the form owner/name"),
        ("/no/such/folder", "neither a folder nor a hub id.*check the path"),
        ("owner/name/file", "neither a folder nor a hub id"),
        ("BAAI/bge-m3@refs/pr/1", "hf download BAAI/bge-m3 --revision refs/pr/1`"),
    ],
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_named(source: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def refusal(kind: type[Exception]) -> Exception:
    """Make an error as huggingface_hub does of the hub's answer."""
    answer: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    return kind("the hub's words", response=answer)  # type: ignore[call-arg]


def chained(error: OSError) -> Exception:
    outer = RuntimeError("Data processing error")
    outer.__cause__ = error
    return outer


REACH = "check the id and the network.*local folder"
UNWRITABLE = "its cache {cache} cannot be written.*cache_dir"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            refusal(errors.GatedRepoError),
            rf"the hub's words.*accept the terms at https://huggingface\.co/{ID} and log in with `hf auth login`",
        ),
        (refusal(errors.RepositoryNotFoundError), "the hub's words.*no such repository, or it is private"),
        (refusal(errors.HfHubHTTPError), f"the hub's words.*{REACH}"),
        (ConnectionError("reset by peer"), f"reset by peer.*{REACH}"),
        (chained(OSError(errno.ENOSPC, "full")), UNWRITABLE),
        (RuntimeError("IO Error: No space left on device (os error 28)"), UNWRITABLE),
    ],
    ids=range(6),
)
def test_a_download_that_fails_says_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    words = f"cannot download {ID} from the hub.*{words.format(cache=tmp_path)}"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint(ID, tmp_path)
    with pytest.raises(CheckpointError, match=words):
        find_heads(ID, HEADS, tmp_path)


def test_a_cache_folder_with_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for file in (tmp_path / "file", Path("/dev/null")):
        words = rf"the hub's cache {file}/deeper cannot be made: {file} is a file.*cache_dir"
        with pytest.raises(CheckpointError, match=words):
            find_checkpoint(ID, file / "deeper")


# The hub's cache


@pytest.fixture
def snapshot(random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in the hub's cache tmp_path/hub: a snapshot of links to blobs, while the hub is offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--someone--fine-tune"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name in FILES:
        blob = repository / "blobs" / f"blob-of-{name}"
        shutil.copy(random_checkpoint / name, blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_offline_a_whole_checkpoint_in_the_cache_is_found(tmp_path: Path, snapshot: Path) -> None:
    cache = tmp_path / "hub"
    assert find_checkpoint(ID, cache) == find_heads(ID, HEADS, cache) == snapshot
    words = rf"cannot download nobody/nothing.*offline.*HF_HUB_OFFLINE.*{cache} holds no snapshot.*cache_dir"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint("nobody/nothing", cache)
    (snapshot.parent.parent / "blobs" / "blob-of-model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"no model\.safetensors: {snapshot}/model\.safetensors is a link to"):
        find_checkpoint(ID, cache)


@pytest.mark.parametrize("names", [(FILES[0],), FILES[1:3], HEADS])
def test_offline_a_part_of_a_checkpoint_says_what_is_missing_and_where(
    tmp_path: Path, snapshot: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        (snapshot / name).unlink()
    words = rf"has no {' and no '.join(names)}.*{snapshot}.*offline.*HF_HUB_OFFLINE"
    with pytest.raises(CheckpointError, match=f"{ID} {words}"):
        find_checkpoint(ID, tmp_path / "hub")
    if names == HEADS:
        with pytest.raises(CheckpointError, match=f"heads_from='{ID}' {words}"):
            find_heads(ID, HEADS, tmp_path / "hub")


def test_the_id_that_was_given_is_not_recommended(tmp_path: Path, snapshot: Path) -> None:
    (snapshot / "sparse_linear.pt").unlink()
    snapshot.parent.parent.rename(tmp_path / "hub/models--BAAI--bge-m3")
    with pytest.raises(CheckpointError, match=r"BAAI/bge-m3 has no .*offline") as caught:
        find_checkpoint("BAAI/bge-m3", tmp_path / "hub")
    assert "heads_from" not in str(caught.value)


@pytest.mark.parametrize("below", [".", "models--someone--fine-tune", "models--someone--fine-tune/blobs"])
def test_a_folder_of_the_hubs_cache_names_the_snapshots_that_of_main_first(
    tmp_path: Path, snapshot: Path, below: str
) -> None:
    older = snapshot.with_name("0" * 40)
    shutil.copytree(snapshot, older, symlinks=True)
    words = f"a folder of the hub's cache.*give the snapshot {snapshot} or {older}, or the hub id"
    for find in (find_checkpoint, lambda source: find_heads(source, HEADS)):
        with pytest.raises(CheckpointError, match=words):
            find(tmp_path / "hub" / below)


# The exports that the drop-in keeps


def exports(cache_dir: Path) -> list[Path]:
    return sorted(path for path in (cache_dir / "bgem3").iterdir() if path.is_dir())


def test_callers_that_start_at_once_share_one_export(
    random_checkpoint: Path, random_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(source: Path, target: Path, *_: Any, **__: Any) -> None:
        time.sleep(0.2)
        shutil.copytree(random_artifact, target)  # fails if the folder is there

    monkeypatch.setattr("bgem3.export.export_model", export)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(export_cache.find_or_export, [random_checkpoint] * 3, ["fp16"] * 3, [tmp_path] * 3))
    target = tmp_path / "bgem3" / f"{checkpoint_hash(random_checkpoint)[:32]}-fp16-v{FORMAT_VERSION}"
    assert {*found, *exports(tmp_path)} == {target}


def test_each_precision_and_each_change_of_the_checkpoint_is_exported_once(
    checkpoint_copy: Path, random_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_cache, "user_cache_path", lambda name: tmp_path / name)
    export = Mock(side_effect=lambda source, target, *_, **__: shutil.copytree(random_artifact, target))
    monkeypatch.setattr("bgem3.export.export_model", export)
    for n_exports, (precision, added) in enumerate((("fp32", ""), ("fp16", ""), ("fp16", "\n")), start=1):
        with (checkpoint_copy / "config.json").open("a") as file:
            file.write(added)
        for _ in range(2):
            BGEM3FlagModel(checkpoint_copy, precision=precision, devices="cpu")
            assert export.call_args.args[2] == (precision,)
            assert len(exports(tmp_path)) == export.call_count == n_exports


def fill_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "writing failed: no space left on device")


def test_exports_that_cannot_be_kept_name_cache_dir(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find: Callable[[Path], Path] = lambda folder: export_cache.find_or_export(random_checkpoint, "fp16", folder)  # noqa: E731
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"exports cannot be kept in .*file.*bgem3: .*name another folder as cache_dir"):
        find(tmp_path / "file")
    monkeypatch.setattr("bgem3.export.export_model", fill_disk)
    with pytest.raises(OSError, match=r"exports cannot be kept in .*no space left.*cache_dir") as caught:
        find(tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_a_checkpoint_without_the_export_extra_says_what_to_run(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        export_cache, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: name != "torch"))
    )
    words = (
        rf"needs torch: `pip install 'bgem3\[cpu,export\]'`.*`bgem3 export {random_checkpoint} FOLDER --precision fp32`"
    )
    with pytest.raises(ImportError, match=words):
        BGEM3FlagModel(random_checkpoint, use_fp16=False, cache_dir=tmp_path)
