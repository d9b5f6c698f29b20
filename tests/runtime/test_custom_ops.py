"""The graph over our custom CPU operators: it computes what the one over ONNX Runtime's does, and runs where it can."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from bgem3.export.reference import SENTENCES
from bgem3.runtime import BGEM3Model, custom_ops
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.device import open_encoder
from bgem3.runtime.parity import check_graphs
from bgem3.runtime.reference import Reference
from tests.kernels.cpu_kernels import supported_kernels

needs_library = pytest.mark.skipif(
    custom_ops.library() is None, reason="the operators were not compiled: no C compiler was found"
)
TEXTS = ["", *SENTENCES[:8], " ".join(SENTENCES[:12])]


@pytest.fixture(scope="module")
def artifacts(demo_artifact: Path, int8_artifact: Path) -> dict[str, Path]:
    """The demo checkpoint's artifact folder for each precision."""
    return {"fp16": demo_artifact, "fp32": demo_artifact, "int8": int8_artifact}


def load(folder: Path, precision: str, kernels: str) -> BGEM3Model:
    artifact = read_artifact(folder)
    return BGEM3Model(artifact, open_encoder(artifact, device="cpu", precision=precision, n_threads=2, kernels=kernels))


@needs_library
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 1e-5), ("int8", 3e-2)])
@pytest.mark.parametrize("kernels", ["none", *supported_kernels()])
def test_every_kernel_gives_the_same_and_a_text_has_the_same_bits_alone_and_in_company(
    artifacts: dict[str, Path], precision: str, bound: float, kernels: str
) -> None:
    # int8 rounds otherwise in each graph; most otherwise the demo's empty text, whose rows are nearly zero
    folder = artifacts[precision]
    with load(folder, precision, kernels) as model, load(folder, precision, "none") as other:
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


def test_the_custom_graph_has_two_kinds_of_custom_operators(artifacts: dict[str, Path]) -> None:
    for precision, n_linear in (("fp16", 12), ("int8", 12), ("fp32", 0)):  # the demo has two layers
        graph = onnx.load(artifacts[precision] / precision / "native.onnx", load_external_data=False).graph
        kinds = Counter(node.op_type for node in graph.node if node.domain == "bgem3")
        assert kinds == Counter(Linear=n_linear, PackedAttention=2)


def test_a_library_that_does_not_load_is_named_with_the_advice_to_reinstall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "_kernels.so"
    path.write_bytes(b"not a library")
    monkeypatch.setattr(custom_ops, "library", lambda: path)
    with pytest.raises(RuntimeError, match=f"{path} do not load .*; reinstall bgem3"):
        custom_ops.best_kernels.__wrapped__()


@pytest.mark.parametrize(
    ("function", "reason"), [("library", "not compiled; install gcc"), ("best_kernels", "no kernels for this")]
)
def test_without_kernels_onnxruntimes_operators_serve_and_the_log_says_why(
    demo_artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, function: str, reason: str
) -> None:
    monkeypatch.setattr(custom_ops, "library", lambda: Path("_kernels.so"))
    monkeypatch.setattr(custom_ops, "best_kernels", lambda: None)
    monkeypatch.setattr(custom_ops, function, lambda: None)
    opened = read_artifact(demo_artifact)
    with caplog.at_level(logging.INFO):
        session = open_encoder(opened, device="cpu", precision="fp32")
    assert isinstance(session, CpuSession)
    assert session.kernels == "none"
    assert reason in caplog.text
    reports = check_graphs(opened, Reference.load(demo_artifact), precision="fp32")
    assert reason in reports["fp32/native.onnx"]["not_run"]
    assert "not_run" not in reports["fp32/cpu.onnx"]
