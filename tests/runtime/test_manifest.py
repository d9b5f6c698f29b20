"""Manifests of format version 1, which left some graphs to their names, and an int8 graph's probe."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.runtime import ArtifactError, BGEM3Model
from bgem3.runtime.artifact import MANIFEST, read_artifact
from bgem3.runtime.manifest import FORMAT_VERSION


def rewrite(artifact: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy an artifact and change the copy's manifest."""
    shutil.copytree(artifact, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def write_version_1(manifest: dict[str, Any]) -> None:
    assert manifest["format_version"] == FORMAT_VERSION == 2
    graphs = [graph for graph in manifest["graphs"] if graph["operators"] == "onnxruntime"]
    manifest["graphs"] = [{name: graph[name] for name in ("precision", "device", "file")} for graph in graphs]
    manifest["format_version"] = 1


def test_version_1_opens_with_the_same_graphs_and_results(
    int8_artifact: Path, demo_artifact: Path, tmp_path: Path
) -> None:
    old_folder = rewrite(int8_artifact, tmp_path / "int8", write_version_1)
    assert read_artifact(old_folder).graphs == read_artifact(int8_artifact).graphs
    texts = ["", "What is BM25?", "honey " * 40]
    with BGEM3Model.load(old_folder, "cpu", "int8") as old, BGEM3Model.load(int8_artifact, "cpu", "int8") as new:
        np.testing.assert_array_equal(old.encode(texts).dense, new.encode(texts).dense)
    portable = rewrite(demo_artifact, tmp_path / "portable", write_version_1)
    assert set(read_artifact(portable).graphs) == set(read_artifact(demo_artifact).graphs)


def test_an_int8_graph_without_its_probe_is_refused(int8_artifact: Path, tmp_path: Path) -> None:
    def drop_probe(manifest: dict[str, Any]) -> None:
        for graph in manifest["graphs"]:
            graph.pop("probe", None)

    with pytest.raises(ArtifactError, match=r"int8/cpu.onnx has no probe.*export the checkpoint again"):
        read_artifact(rewrite(int8_artifact, tmp_path / "artifact", drop_probe))
