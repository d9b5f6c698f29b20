"""Manifests of format version 1, which left some graphs to their names."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.runtime import ArtifactError, BGEM3Model
from bgem3.runtime.artifact import FORMAT_VERSION, MANIFEST, read_artifact


@pytest.fixture(scope="module")
def version_1(int8_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same artifact with the manifest that version 1 had."""
    folder = shutil.copytree(int8_artifact, tmp_path_factory.mktemp("version_1") / "artifact")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["format_version"] == FORMAT_VERSION == 2
    kept = [graph for graph in manifest["graphs"] if graph["operators"] == "onnxruntime"]
    graphs = [{name: graph[name] for name in ("precision", "device", "file")} for graph in kept]
    write(folder, manifest | {"format_version": 1, "graphs": graphs})
    return folder


def write(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def test_version_1_opens_with_the_same_graphs_and_results(int8_artifact: Path, version_1: Path) -> None:
    assert read_artifact(version_1).graphs == read_artifact(int8_artifact).graphs
    texts = ["", "What is BM25?", "honey " * 40]
    for precision in ("fp32", "int8"):
        with (
            BGEM3Model.load(version_1, "cpu", precision) as old,
            BGEM3Model.load(int8_artifact, "cpu", precision) as new,
        ):
            np.testing.assert_array_equal(old.encode(texts).dense, new.encode(texts).dense)


def test_the_portable_graph_of_version_1_is_found(version_1: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(version_1, tmp_path / "artifact")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / "portable").mkdir()
    shutil.copy(folder / "fp32/cpu.onnx", folder / "portable/model.onnx")
    manifest["files"]["portable/model.onnx"] = manifest["files"]["fp32/cpu.onnx"]
    write(folder, manifest)
    assert read_artifact(folder).graph("fp32", "cpu", "standard").file == "portable/model.onnx"


def test_an_int8_graph_without_its_probe_is_refused(int8_artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(int8_artifact, tmp_path / "artifact")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for graph in manifest["graphs"]:
        graph.pop("probe", None)
    write(folder, manifest)
    with pytest.raises(ArtifactError, match=r"int8/cpu.onnx has no probe.*export the checkpoint again"):
        read_artifact(folder)
