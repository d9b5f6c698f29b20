"""Copies of artifact folders whose files and manifests tests damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from bgem3.runtime import BGEM3Model
from bgem3.runtime.artifact import MANIFEST, read_artifact, sha256_of
from bgem3.runtime.device import open_encoder

Damage = Callable[[Path], object]
TEXTS = ["", "What is BM25?", "Die Brücke ist gesperrt."]
CPU_GRAPHS = ("fp32/cpu.onnx", "fp32/native.onnx")

both_kernels = pytest.mark.parametrize("kernels", ["none", "auto"], ids=["onnxruntime", "custom"])
"""Runs a test with ONNX Runtime's operators and with the custom ones, where this CPU has them."""


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def write_manifest(folder: Path, manifest: object) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def list_file(folder: Path, name: str) -> None:
    """Make the manifest list a file as it is now."""
    manifest = manifest_of(folder)
    manifest["files"][name] = {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    write_manifest(folder, manifest)


def edit_graph(folder: Path, name: str, edit: Callable[[onnx.GraphProto], object]) -> None:
    model = onnx.load(folder / name, load_external_data=False)
    edit(model.graph)
    (folder / name).write_bytes(model.SerializeToString())
    list_file(folder, name)


def move_weights(graph: onnx.GraphProto, location: str) -> None:
    """Make a graph read its weights from another file."""
    for entry in (entry for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"):
        entry.value = location


def load(folder: Path, precision: str = "fp32", kernels: str = "none") -> BGEM3Model:
    artifact = read_artifact(folder)
    return BGEM3Model(artifact, open_encoder(artifact, device="cpu", precision=precision, n_threads=1, kernels=kernels))
