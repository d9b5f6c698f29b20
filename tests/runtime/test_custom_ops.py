"""The graph over our custom CPU operators: it computes what the one over ONNX Runtime's does, and runs where it can."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from bgem3.export.reference import SENTENCES
from bgem3.runtime import ArtifactError, BGEM3Model, custom_ops
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.custom_ops import library
from bgem3.runtime.device import open_encoder
from bgem3.runtime.parity import check_graphs
from bgem3.runtime.reference import Reference
from tests.kernels.cpu_kernels import supported_kernels

needs_library = pytest.mark.skipif(library() is None, reason="the operators were not compiled: no C compiler was found")
TEXTS = ["", *SENTENCES, " ".join(SENTENCES)]
KERNELS = ["none", *supported_kernels()]


@pytest.fixture(scope="module")
def artifact(demo_checkpoint: Path, export_to_folder: Callable[..., Path]) -> Path:
    return export_to_folder(demo_checkpoint, ("fp16", "fp32", "int8"))


def load(folder: Path, precision: str, kernels: str) -> BGEM3Model:
    artifact = read_artifact(folder)
    return BGEM3Model(artifact, open_encoder(artifact, device="cpu", precision=precision, n_threads=2, kernels=kernels))


@needs_library
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 1e-5), ("int8", 3e-2)])
@pytest.mark.parametrize("kernels", KERNELS)
def test_every_kernel_gives_the_same_and_a_text_has_the_same_bits_alone_and_in_company(
    artifact: Path, precision: str, bound: float, kernels: str
) -> None:
    # int8 rounds otherwise in each graph; most otherwise the demo's empty text, whose rows are nearly zero
    with load(artifact, precision, kernels) as model, load(artifact, precision, "none") as other:
        together, expected = model.encode(TEXTS), other.encode(TEXTS)
        for found, right in (
            (together.dense, expected.dense),
            (together.multivector.packed, expected.multivector.packed),
            (together.sparse.toarray(), expected.sparse.toarray()),
        ):
            np.testing.assert_allclose(found, right, atol=bound)
        for i, text in enumerate(TEXTS):
            alone = model.encode([text])
            np.testing.assert_array_equal(alone.dense[0], together.dense[i])
            np.testing.assert_array_equal(alone.multivector[0], together.multivector[i])
            np.testing.assert_array_equal(alone.sparse.toarray()[0], together.sparse[[i]].toarray()[0])
        np.testing.assert_array_equal(model.encode(TEXTS, ("dense",)).dense, together.dense)


def test_the_custom_graph_has_two_kinds_of_custom_operators(artifact: Path) -> None:
    for precision, n_linear in (("fp16", 6), ("int8", 6), ("fp32", 0)):
        graph = onnx.load(artifact / precision / "native.onnx", load_external_data=False).graph
        kinds = [node.op_type for node in graph.node if node.domain == "bgem3"]
        assert (kinds.count("Linear"), kinds.count("PackedAttention")) == (n_linear * 2, 2)  # the demo has two layers
        assert len(kinds) == (n_linear + 1) * 2


def test_a_library_that_does_not_load_is_named_with_the_advice_to_reinstall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "_kernels.so"
    path.write_bytes(b"not a library")
    monkeypatch.setattr(custom_ops, "library", lambda: path)
    with pytest.raises(RuntimeError, match=f"{path} do not load .*; reinstall bgem3"):
        custom_ops.best_kernels.__wrapped__()


@pytest.mark.parametrize(
    ("function", "reason"), [("library", "not compiled; install a C compiler"), ("best_kernels", "no kernels for this")]
)
def test_without_kernels_onnxruntimes_operators_serve_and_the_log_says_why(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, function: str, reason: str
) -> None:
    monkeypatch.setattr(custom_ops, "library", lambda: Path("_kernels.so"))
    monkeypatch.setattr(custom_ops, "best_kernels", lambda: None)
    monkeypatch.setattr(custom_ops, function, lambda: None)
    opened = read_artifact(artifact)
    with caplog.at_level(logging.INFO):
        session = open_encoder(opened, device="cpu", precision="fp32")
    assert isinstance(session, CpuSession)
    assert session.kernels == "none"
    assert reason in caplog.text
    reports = check_graphs(opened, Reference.load(artifact), precision="fp32")
    assert reason in reports["fp32/native.onnx"]["not_run"]
    assert "not_run" not in reports["fp32/cpu.onnx"]


@needs_library
@pytest.mark.parametrize(
    ("kind", "attribute", "value", "message"),
    [("PackedAttention", "n_heads", 0, "n_heads is 0"), ("Linear", "gelu", 7, "gelu is 7, expected 0 or 1")],
)
def test_a_graph_that_does_not_fit_the_operators_is_refused_when_it_is_opened(
    artifact: Path, tmp_path: Path, kind: str, attribute: str, value: int, message: str
) -> None:
    folder = shutil.copytree(artifact, tmp_path / "artifact")
    opened, path = read_artifact(folder), folder / "int8/native.onnx"
    graph = onnx.load(path, load_external_data=False)
    node = next(node for node in graph.graph.node if node.op_type == kind)
    next(found for found in node.attribute if found.name == attribute).i = value
    onnx.save(graph, path)
    with pytest.raises(ArtifactError, match=f"{message}.*export the model again"):
        CpuSession(opened, opened.graph("int8", "cpu", "bgem3"), n_threads=2, kernels="portable")
