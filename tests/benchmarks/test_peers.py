"""Other encoders compute what bgem3 computes, and run without bgem3 installed."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peer import ALL_HEADS, Encode, Settings, require_bf16
from benchmarks.peers import PEERS, pytorch
from bgem3.export.reference import SENTENCES
from bgem3.runtime import BGEM3Model
from tests.paths import ROOT

TEXTS = ["honey", *SENTENCES[:6], "a much longer text than the model takes " * 30]


@pytest.fixture(scope="module")
def settings(
    random_artifact: Path, random_checkpoint: Path, random_model: BGEM3Model, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    spec = random_model.spec
    special_ids = [spec.cls_id, spec.pad_id, spec.eos_id, spec.unk_id]
    paths = {"artifact": random_artifact, "checkpoint": random_checkpoint, "files": tmp_path_factory.mktemp("files")}
    run = {"device": "cpu", "precision": "fp32", "threads": 1, "special_ids": special_ids}
    return {name: str(path) for name, path in paths.items()} | run | vars(spec)


def assert_equals_bgem3(encode: Encode, model: BGEM3Model) -> None:
    found, expected = encode(TEXTS, ALL_HEADS, 4), model.encode(TEXTS)
    assert found.dense is not None
    assert found.lexical is not None
    assert found.multivector is not None
    np.testing.assert_allclose(found.dense, expected.dense, atol=1e-4)
    for ours, theirs in zip(expected.multivector, found.multivector, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
    for weights, by_id in zip(expected.lexical_weights, found.lexical(), strict=True):
        named = {str(token_id): float(weight) for token_id, weight in by_id.items()}
        assert named == pytest.approx({key: float(value) for key, value in weights.items()}, abs=1e-4)
    dense_alone = encode(TEXTS[:1], ("dense",), 1)
    assert dense_alone.dense is not None
    assert dense_alone.lexical is None
    assert dense_alone.multivector is None


@pytest.mark.filterwarnings("ignore")  # optimum's, of its tracing
@pytest.mark.parametrize("name", ["bgem3", "flagembedding", "torch", "torch-sdpa", "optimum"])
def test_a_peer_computes_what_bgem3_computes(name: str, settings: Settings, random_model: BGEM3Model) -> None:
    peer = PEERS[name]
    for _ in range(2):  # what is there is taken as it is
        peer.prepare(settings)
    assert_equals_bgem3(peer.open(settings), random_model)
    assert sum(path.stat().st_size for path in peer.files(settings)) > 10_000


def test_pytorch_over_packed_tokens_computes_what_bgem3_computes(settings: Settings, random_model: BGEM3Model) -> None:
    assert_equals_bgem3(pytorch.open_packed(settings), random_model)


@pytest.mark.gpu
def test_pytorch_over_packed_tokens_is_close_to_bgem3_on_cuda(settings: Settings, random_model: BGEM3Model) -> None:
    if not importlib.import_module("torch").cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    found = pytorch.open_packed(settings | {"device": "cuda:0", "precision": "fp16"})(TEXTS, ALL_HEADS, 1)
    expected = random_model.encode(TEXTS)
    assert found.multivector
    for ours, theirs in zip(expected.multivector, found.multivector, strict=True):
        assert (ours * theirs).sum(1).min() > 0.999


def test_the_worker_needs_the_standard_library_and_numpy_alone() -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy
before = set(sys.modules)
import benchmarks.worker
print({name.partition(".")[0] for name in set(sys.modules) - before} - {"benchmarks", *sys.stdlib_module_names})
"""
    done = subprocess.run([sys.executable, "-I", "-c", program, str(ROOT)], capture_output=True, text=True, check=True)
    assert {name for name in eval(done.stdout) if not name.startswith("_")} <= {"numpy"}


def test_bf16_is_refused_where_the_cpu_only_imitates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: dict[str, Any] = {"precision": "bf16", "device": "cpu"}
    monkeypatch.setattr("benchmarks.peer.cpu_flags", lambda: {"avx2"})
    with pytest.raises(RuntimeError, match="no instructions for bf16"):
        require_bf16(wanted)
    require_bf16(wanted | {"device": "cuda:0"})
    monkeypatch.setattr("benchmarks.peer.cpu_flags", lambda: {"avx512_bf16"})
    require_bf16(wanted)
