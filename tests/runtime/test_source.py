"""Finding a checkpoint: what is asked of the hub, and what is done when it does not answer."""

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from bgem3.export import export_model
from bgem3.runtime import CheckpointError
from bgem3.runtime.source import find_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A hub with one repository; downloads what the patterns ask for, as `snapshot_download` does."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository = repository
        self.cache = cache / "snapshots" / COMMIT

    def snapshot_download(
        self, repo_id: str, allow_patterns: list[str], ignore_patterns: str, cache_dir: Path | None
    ) -> str:
        assert repo_id == "BAAI/bge-m3"
        for path in (path for path in self.repository.rglob("*") if path.is_file()):
            name = path.relative_to(self.repository).as_posix()
            if any(fnmatch.fnmatch(name, p) for p in allow_patterns) and not fnmatch.fnmatch(name, ignore_patterns):
                self.cache.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / name)
        return str(self.cache)


@pytest.fixture
def hub(random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    repository = tmp_path / "repository"
    shutil.copytree(random_checkpoint, repository)
    for extra in ("onnx/config.json", "onnx/model.onnx", "pytorch_model.bin", "README.md", "imgs/plot.png"):
        (repository / extra).parent.mkdir(exist_ok=True)
        (repository / extra).write_text("not needed")
    hub = Hub(repository, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def downloaded(hub: Hub) -> set[str]:
    return {path.name for path in hub.cache.iterdir()}


SMALL = {"config.json", "tokenizer.json", "tokenizer_config.json", "sparse_linear.pt", "colbert_linear.pt"}


def test_only_the_files_needed_are_downloaded_and_safetensors_are_preferred(hub: Hub) -> None:
    assert find_checkpoint("BAAI/bge-m3") == hub.cache
    assert downloaded(hub) == SMALL | {"model.safetensors"}


def test_without_safetensors_the_bin_file_is_downloaded(hub: Hub) -> None:
    (hub.repository / "model.safetensors").unlink()
    find_checkpoint("BAAI/bge-m3")
    assert downloaded(hub) == SMALL | {"pytorch_model.bin"}


def test_the_manifest_names_the_hub_id_and_the_commit(hub: Hub, tmp_path: Path) -> None:
    manifest = export_model("BAAI/bge-m3", tmp_path / "artifact")
    assert (manifest["source"]["id"], manifest["source"]["revision"]) == ("BAAI/bge-m3", COMMIT)


def test_a_hub_repository_without_its_heads_is_refused(hub: Hub) -> None:
    (hub.repository / "sparse_linear.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no sparse_linear\.pt.*random sparse weights"):
        find_checkpoint("BAAI/bge-m3")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"no connection.*check the id and the network.*local folder"):
        find_checkpoint("BAAI/bge-m3")


def test_a_revision_in_an_id_says_how_to_get_it() -> None:
    with pytest.raises(CheckpointError, match="hf download BAAI/bge-m3 --revision refs/pr/1`"):
        find_checkpoint("BAAI/bge-m3@refs/pr/1")


@pytest.mark.parametrize("source", ["no-such-folder", "/no/such/folder", "owner/name/file"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_named(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"neither a folder nor a hub id"):
        find_checkpoint(source)
