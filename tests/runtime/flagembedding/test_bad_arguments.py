"""Arguments that the drop-in class refuses, and sources that it cannot open."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from bgem3.export import export_model
from bgem3.runtime import ArtifactError, BGEM3FlagModel, BGEM3Model, CheckpointError
from bgem3.runtime.artifact import MANIFEST


@pytest.fixture(scope="module")
def flag_model(random_artifact: Path) -> Iterator[BGEM3FlagModel]:
    """The drop-in class over the random artifact, with instructions."""
    model = BGEM3FlagModel(
        random_artifact,
        use_fp16=False,
        devices="cpu",
        query_instruction_for_retrieval="query: ",
        passage_instruction_for_retrieval="passage: ",
        query_max_length=64,
        passage_max_length=64,
        return_sparse=True,
        return_colbert_vecs=True,
    )
    yield model
    model.close()


def assert_raises(call: Callable[[], object], kind: type[Exception], *words: str) -> None:
    """Check the very type of what a call raises, and that the message holds the words (regexes) in this order."""
    with pytest.raises(kind, match="(?s)" + ".*".join(words)) as caught:
        call()
    assert caught.type is kind


# The drop-in class


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        pytest.param(
            {"normalize_embeddings": False}, ValueError, ["normalize_embeddings=False", "not supported", "True"]
        ),
        pytest.param({"use_bf16": True}, ValueError, ["use_bf16=True", "not supported", "use False"]),
        pytest.param({"pooling_method": "mean"}, ValueError, ["pooling_method='mean'", "not supported", "'cls'"]),
        pytest.param({"colbert_dim": 7}, ValueError, ["colbert_dim must be -1 or the head's 96", "found 7"]),
        pytest.param({"colbert_dim": "96"}, ValueError, ["colbert_dim must be -1 or the head's 96", "found '96'"]),
        pytest.param({"truncate_dim": 0}, ValueError, ["truncate_dim must be from 1 to 96", "found 0"]),
        pytest.param({"truncate_dim": 97}, ValueError, ["truncate_dim must be from 1 to 96", "found 97"]),
        pytest.param({"truncate_dim": -1}, ValueError, ["truncate_dim must be from 1 to 96", "found -1"]),
        pytest.param({"truncate_dim": "9"}, ValueError, ["truncate_dim must be from 1 to 96", "found '9'"]),
        pytest.param({"devices": ["cpu", 0]}, ValueError, ["one device", r"\['cpu', 0\]", "one model on each"]),
        pytest.param({"devices": []}, ValueError, ["devices must be one device", r"found \[\]"]),
        pytest.param({"devices": 1.5}, ValueError, ["devices must be one device", "found 1.5"]),
        pytest.param({"devices": "gpu"}, ValueError, ["device must be 'auto', 'cpu'", "found 'gpu'"]),
        pytest.param({"batchsize": 8}, TypeError, ["unexpected keyword argument 'batchsize'"]),
    ],
    ids=[
        "normalize",
        "bf16",
        "pooling",
        "colbert_dim",
        "colbert_dim_str",
        "truncate_dim_0",
        "truncate_dim_beyond",
        "truncate_dim_negative",
        "truncate_dim_str",
        "devices_two",
        "devices_none",
        "devices_float",
        "devices_gpu",
        "unknown",
    ],
)
def test_the_drop_in_class_refuses_what_would_change_results(
    random_artifact: Path, arguments: dict[str, Any], kind: type[Exception], words: list[str]
) -> None:
    given: dict[str, Any] = {"use_fp16": False, "devices": "cpu"} | arguments
    assert_raises(lambda: BGEM3FlagModel(random_artifact, **given), kind, *words)


def test_the_drop_in_class_with_every_output_off_says_to_set_one(flag_model: BGEM3FlagModel) -> None:
    off = {"return_dense": False, "return_sparse": False, "return_colbert_vecs": False}
    words = "return_dense, return_sparse and return_colbert_vecs are all False", "set one to True"
    assert_raises(lambda: flag_model.encode(["text"], **off), ValueError, *words)


def test_an_artifact_without_the_wanted_precision_says_what_it_has(random_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(random_artifact, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["graphs"].pop()
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    words = re.escape(str(folder)), "no graph for fp32 on cpu", "it has: fp16 on cpu, fp16 on cuda, fp32 on cuda"
    assert_raises(lambda: BGEM3FlagModel(folder, use_fp16=False, devices="cpu"), ArtifactError, *words)
    assert_raises(lambda: BGEM3Model.load(folder, "cpu", "fp32"), ArtifactError, *words)


NOT_FOUND = [
    pytest.param("no_such_folder", ["no_such_folder is neither a folder nor a hub id", "owner/name"], id="bare_name"),
    pytest.param("./no/such/folder", ["no/such/folder is neither", "check the path"], id="relative_path"),
    pytest.param("/no/such/folder", ["/no/such/folder is neither", "BAAI/bge-m3"], id="absolute_path"),
]


@pytest.mark.parametrize(("source", "words"), NOT_FOUND)
def test_a_source_that_is_neither_folder_nor_hub_id_is_refused(source: str, words: list[str], tmp_path: Path) -> None:
    assert_raises(lambda: BGEM3FlagModel(source, cache_dir=tmp_path), CheckpointError, *words)
    assert_raises(lambda: export_model(source, tmp_path / "artifact"), CheckpointError, *words)
    assert not (tmp_path / "artifact").exists()


def test_a_hub_id_that_cannot_be_downloaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    words = "cannot download nobody/nothing", "check the id and the network", "local folder"
    assert_raises(lambda: BGEM3FlagModel("nobody/nothing", cache_dir=tmp_path), CheckpointError, *words)


def test_a_checkpoint_without_the_export_extra_says_what_to_run(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bgem3.runtime.export_cache.importlib.util.find_spec", lambda name: None if name == "torch" else name
    )
    words = (
        f"{re.escape(str(random_checkpoint))} is a checkpoint",
        "needs torch",
        r"`pip install 'bgem3\[cpu,export\]'`",
        f"`bgem3 export {re.escape(str(random_checkpoint))} FOLDER --precision fp32`",
    )
    assert_raises(lambda: BGEM3FlagModel(random_checkpoint, use_fp16=False, cache_dir=tmp_path), ImportError, *words)
