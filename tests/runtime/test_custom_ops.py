"""The graph over our own CPU operators computes what the one over ONNX Runtime's does, and is taken where it can be."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from bgem3.export.reference import SENTENCES
from bgem3.runtime import ArtifactError, BGEM3Model, Embeddings
from bgem3.runtime import custom_ops as native
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.custom_ops import NATIVE_GRAPH, library
from bgem3.runtime.parity import check_graphs
from tests.kernels.cpu_kernels import supported_kernels

needs_library = pytest.mark.skipif(library() is None, reason="the operators were not compiled: no C compiler was found")
TEXTS = ["", *SENTENCES, " ".join(SENTENCES)]
KERNELS = ["none", *supported_kernels()]


@pytest.fixture(scope="module")
def artifact(demo_checkpoint: Path, export_to_folder: Callable[..., Path]) -> Path:
    return export_to_folder(demo_checkpoint, ("fp16", "fp32", "int8"))


def load(artifact: Path, precision: str, kernels: str) -> BGEM3Model:
    read = read_artifact(artifact)
    _, path = read.graph(precision, "cpu")
    return BGEM3Model(read, CpuSession(path, precision, n_threads=2, kernels=kernels))


def encode(artifact: Path, precision: str, kernels: str, texts: list[str]) -> Embeddings:
    with load(artifact, precision, kernels) as model:
        return model.encode(texts)


@needs_library
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 1e-5), ("int8", 3e-2)])
@pytest.mark.parametrize("kernels", KERNELS[1:])
def test_both_graphs_give_the_same(artifact: Path, precision: str, bound: float, kernels: str) -> None:
    # int8 rounds otherwise in each; most otherwise the demo's empty text, whose rows are nearly zero.
    expected, found = (encode(artifact, precision, name, TEXTS) for name in ("none", kernels))
    np.testing.assert_allclose(found.dense, expected.dense, atol=bound)
    np.testing.assert_allclose(found.multivector.packed, expected.multivector.packed, atol=bound)
    np.testing.assert_allclose(found.sparse.toarray(), expected.sparse.toarray(), atol=bound)


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_text_has_the_same_bits_alone_and_in_company(artifact: Path, precision: str, kernels: str) -> None:
    with load(artifact, precision, kernels) as model:
        together = model.encode(TEXTS)
        for i, text in enumerate(TEXTS):
            alone = model.encode([text])
            np.testing.assert_array_equal(alone.dense[0], together.dense[i])
            np.testing.assert_array_equal(alone.multivector[0], together.multivector[i])
            np.testing.assert_array_equal(alone.sparse.toarray()[0], together.sparse[[i]].toarray()[0])


@needs_library
def test_heads_that_are_not_asked_for_change_nothing(artifact: Path) -> None:
    with load(artifact, "int8", "portable") as model:
        np.testing.assert_array_equal(model.encode(TEXTS, ("dense",)).dense, model.encode(TEXTS).dense)


def test_the_native_graph_has_two_kinds_of_operators_of_ours(artifact: Path) -> None:
    for precision, n_linear in (("fp16", 6), ("int8", 6), ("fp32", 0)):
        graph = onnx.load(artifact / precision / NATIVE_GRAPH, load_external_data=False).graph
        kinds = [node.op_type for node in graph.node if node.domain == "bgem3"]
        assert (kinds.count("Linear"), kinds.count("PackedAttention")) == (n_linear * 2, 2)  # of the demo's two layers
        assert len(kinds) == (n_linear + 1) * 2


@pytest.mark.parametrize(
    ("function", "reason"), [("library", "not compiled; install a C compiler"), ("best_kernels", "no kernels for this")]
)
def test_without_kernels_onnxruntimes_operators_serve_and_the_log_says_why(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, function: str, reason: str
) -> None:
    monkeypatch.setattr(native, "library", lambda: Path("_kernels.so"))
    monkeypatch.setattr(native, function, lambda: None)
    monkeypatch.setattr("bgem3.runtime.cpu_session.best_kernels", lambda: None)
    with caplog.at_level(logging.INFO):
        assert CpuSession(artifact / "fp32/cpu.onnx", "fp32", n_threads=1).kernels == "none"
    assert reason in caplog.text
    reports = check_graphs(read_artifact(artifact), lambda model: {"missed": []}, precision="fp32")
    assert reason in reports["fp32/native.onnx"]["not_run"]
    assert "not_run" not in reports["fp32/cpu.onnx"]


@needs_library
def test_an_artifact_of_an_older_version_has_no_native_graph(artifact: Path, tmp_path: Path) -> None:
    for name in ("cpu.onnx", "weights.bin"):
        (tmp_path / name).write_bytes((artifact / "fp32" / name).read_bytes())
    assert CpuSession(tmp_path / "cpu.onnx", "fp32", n_threads=1).kernels == "none"


@needs_library
@pytest.mark.parametrize(
    ("kind", "attribute", "value", "message"),
    [("PackedAttention", "n_heads", 0, "n_heads is 0"), ("Linear", "gelu", 7, "gelu is 7, expected 0 or 1")],
)
def test_a_graph_that_does_not_fit_the_operators_is_refused_when_it_is_opened(
    artifact: Path, tmp_path: Path, kind: str, attribute: str, value: int, message: str
) -> None:
    folder = shutil.copytree(artifact / "int8", tmp_path / "int8")
    graph = onnx.load(folder / NATIVE_GRAPH, load_external_data=False)
    node = next(node for node in graph.graph.node if node.op_type == kind)
    next(found for found in node.attribute if found.name == attribute).i = value
    onnx.save(graph, folder / NATIVE_GRAPH)
    with pytest.raises(ArtifactError, match=f"{message}.*export the model again"):
        CpuSession(folder / "cpu.onnx", "int8", n_threads=2, kernels="portable")
