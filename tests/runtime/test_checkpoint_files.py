"""Checkpoints found in a folder, on the hub and in its cache; failed downloads; the exports that the drop-in keeps."""

import errno
import fnmatch
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from bgem3.export import export_model
from bgem3.runtime import BGEM3FlagModel, CheckpointError, export_cache
from bgem3.runtime.artifact import FORMAT_VERSION
from bgem3.runtime.checkpoint_files import checkpoint_hash, find_checkpoint, find_heads
from bgem3.scoring import atomic_files

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
    assert {path.name for path in find_checkpoint("BAAI/bge-m3").iterdir()} == SMALL | {"model.safetensors"}


def test_without_safetensors_the_bin_file_is_downloaded(repository: Path) -> None:
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
    for find in (find_checkpoint, lambda source: BGEM3FlagModel(source, cache_dir=tmp_path)):
        with pytest.raises(CheckpointError, match=words):
            find(source)
    with pytest.raises(CheckpointError, match=words):
        export_model(source, tmp_path / "artifact")
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
        (errors.LocalEntryNotFoundError("no connection"), f"no connection.*{REACH}"),
        (ConnectionError("reset by peer"), f"reset by peer.*{REACH}"),
        (errors.HFValidationError("bad id"), f"bad id.*{REACH}"),
        (OSError(errno.EACCES, "no permission"), UNWRITABLE),
        (OSError(errno.ENOTDIR, "no folder"), UNWRITABLE),
        (chained(OSError(errno.ENOSPC, "full")), UNWRITABLE),
        (RuntimeError("IO Error: No space left on device (os error 28)"), UNWRITABLE),
    ],
    ids=range(10),
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


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_cache_folder_with_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    for file in (tmp_path / "file", Path("/dev/null")):
        words = rf"the hub's cache {file / below} cannot be made: {file} is a file.*cache_dir"
        with pytest.raises(CheckpointError, match=words):
            find_checkpoint(ID, file / below)


# The hub's cache


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
def snapshot(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot in the hub's cache, while the hub is offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return hub_cache / "models--someone--fine-tune" / "snapshots" / COMMIT


def test_offline_a_whole_checkpoint_in_the_cache_is_found(hub_cache: Path, snapshot: Path) -> None:
    assert find_checkpoint(ID, hub_cache) == find_heads(ID, HEADS, hub_cache) == snapshot
    words = rf"cannot download nobody/nothing.*offline.*HF_HUB_OFFLINE.*{hub_cache} holds no snapshot.*cache_dir"
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint("nobody/nothing", hub_cache)


@pytest.mark.parametrize("names", [(FILES[0],), (FILES[2],), FILES[1:3], HEADS])
def test_offline_a_part_of_a_checkpoint_says_what_is_missing_and_where(
    hub_cache: Path, snapshot: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        (snapshot / name).unlink()
    words = rf"has no {' and no '.join(names)}.*{snapshot}.*offline.*HF_HUB_OFFLINE"
    with pytest.raises(CheckpointError, match=f"{ID} {words}"):
        find_checkpoint(ID, hub_cache)
    if names == HEADS:
        with pytest.raises(CheckpointError, match=f"heads_from='{ID}' {words}"):
            find_heads(ID, HEADS, hub_cache)


def test_offline_a_blob_that_is_gone_is_named(hub_cache: Path, snapshot: Path) -> None:
    (snapshot.parent.parent / "blobs" / "blob-of-model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"no model\.safetensors: {snapshot}/model\.safetensors is a link to"):
        find_checkpoint(ID, hub_cache)


def test_the_id_that_was_given_is_not_recommended(hub_cache: Path, snapshot: Path) -> None:
    (snapshot / "sparse_linear.pt").unlink()
    snapshot.parent.parent.rename(hub_cache / "models--BAAI--bge-m3")
    with pytest.raises(CheckpointError, match=r"BAAI/bge-m3 has no .*offline") as caught:
        find_checkpoint("BAAI/bge-m3", hub_cache)
    assert "heads_from" not in str(caught.value)


@pytest.mark.parametrize("below", [".", "models--someone--fine-tune", "models--someone--fine-tune/blobs"])
def test_a_folder_of_the_hubs_cache_names_the_snapshots_that_of_main_first(
    hub_cache: Path, snapshot: Path, below: str
) -> None:
    older = snapshot.with_name("0" * 40)
    shutil.copytree(snapshot, older, symlinks=True)
    words = f"a folder of the hub's cache.*give the snapshot {snapshot} or {older}, or the hub id"
    for find in (find_checkpoint, lambda source: find_heads(source, HEADS)):
        with pytest.raises(CheckpointError, match=words):
            find(hub_cache / below)


# The exports that the drop-in keeps

CODE = """
import sys
from bgem3.runtime import BGEM3FlagModel
model = BGEM3FlagModel(sys.argv[1], devices="cpu", cache_dir=sys.argv[2])
print(model.encode("honey")["dense_vecs"][0])
"""


def exports(cache_dir: Path) -> list[Path]:
    return sorted(path for path in (cache_dir / "bgem3").iterdir() if path.is_dir())


def test_two_processes_that_start_at_once_share_one_export(random_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "bgem3" / f"{checkpoint_hash(random_checkpoint)[:32]}-fp16-v{FORMAT_VERSION}"
    left = atomic_files._temporary(target, "partial")  # by an export that was killed
    left.mkdir(parents=True)
    command = [sys.executable, "-c", CODE, str(random_checkpoint), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert sum("fp16 weights" in shown for _, shown in results) == 1, "both processes exported"
    assert exports(tmp_path) == [target], "what the killed export left is still there"
    made = (target / "manifest.json").stat().st_mtime_ns
    command[2] += "assert 'torch' not in sys.modules"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == results[0][0]
    assert (target / "manifest.json").stat().st_mtime_ns == made


def test_each_precision_and_each_change_of_the_checkpoint_has_its_own_export(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_cache, "user_cache_path", lambda name: tmp_path / name)
    checkpoint = Path(shutil.copytree(random_checkpoint, tmp_path / "checkpoint"))
    BGEM3FlagModel(checkpoint, use_fp16=False, devices="cpu")
    assert BGEM3FlagModel(checkpoint, use_fp16=True, devices="cpu").model.precision == "fp16"
    assert len(exports(tmp_path)) == 2
    with (checkpoint / "config.json").open("a") as file:
        file.write("\n")
    BGEM3FlagModel(checkpoint, devices="cpu")
    assert len(exports(tmp_path)) == 3


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
