"""The encoders of the benchmark: what each needs is said, and those that run here compute what bgem3 computes."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.export.reference import SENTENCES
from bgem3.runtime import BGEM3Model
from bgem3.runtime.bench_peer_files import Settings, cpu_flags, describe_for_sentence_transformers
from bgem3.runtime.bench_peers import ALL_HEADS, PEERS, Encoded, Peer, lexical, padded_batches, require_bf16

TEXTS = ["honey", *SENTENCES[:6], "a much longer text than the model takes " * 30]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def settings(
    random_artifact: Path, random_checkpoint: Path, random_model: BGEM3Model, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    spec = random_model.spec
    return {
        "artifact": str(random_artifact),
        "checkpoint": str(random_checkpoint),
        "files": str(tmp_path_factory.mktemp("peers") / "files"),
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "max_length": spec.max_length,
        "pad_id": spec.pad_id,
        "special_ids": [spec.cls_id, spec.pad_id, spec.eos_id, spec.unk_id],
        "hidden_size": spec.hidden_size,
        "n_heads": spec.n_heads,
    }


def assert_equals_bgem3(found: Encoded, model: BGEM3Model) -> None:
    expected = model.encode(TEXTS)
    assert found.dense is not None
    assert found.lexical is not None
    assert found.multivector is not None
    np.testing.assert_allclose(found.dense, expected.dense, atol=TOLERANCE)
    for ours, theirs in zip(expected.multivector, found.multivector, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=TOLERANCE)
    for weights, by_id in zip(expected.lexical_weights, found.lexical(), strict=True):
        found_weights = {str(token_id): float(weight) for token_id, weight in by_id.items()}
        assert found_weights == pytest.approx({key: float(value) for key, value in weights.items()}, abs=TOLERANCE)


@pytest.mark.filterwarnings("ignore")  # optimum's, of its tracing
@pytest.mark.parametrize("kind", ["bgem3", "flagembedding", "torch", "torch-sdpa", "torch-packed", "optimum"])
def test_a_peer_computes_what_bgem3_computes(kind: str, settings: Settings, random_model: BGEM3Model) -> None:
    peer = PEERS[kind]
    missing = [name for name in peer.modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing} cannot be imported here")
    if peer.prepare:
        peer.prepare(settings)
        peer.prepare(settings)  # what is there is taken as it is
    encode = peer.open(settings, peer.variants(settings)[0])
    assert_equals_bgem3(encode(TEXTS, ALL_HEADS, 4), random_model)
    dense_alone = encode(TEXTS[:1], ("dense",), 1)
    assert dense_alone.dense is not None
    assert dense_alone.lexical is None
    assert dense_alone.multivector is None
    assert all(path.is_file() for path in peer.files(settings))


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_the_table_of_peers_is_whole(peer: Peer) -> None:
    assert peer.outputs[0] == "dense"
    assert set(peer.outputs) <= set(ALL_HEADS)
    assert set(peer.devices) <= {"cpu", "cuda"}
    assert set(peer.needs) <= {"artifact", "checkpoint", "portable"}
    assert peer.batch_sizes[0] == 1
    if peer.environment:
        assert any("==" in package for package in peer.packages), "what is measured has a version"
        assert {re.split(r"[\[=]", package)[0] for package in peer.packages} >= {"numpy", "tokenizers"}
        shared = {other.packages for other in PEERS.values() if other.environment == peer.environment}
        assert shared == {peer.packages}, "one environment has one list of packages"


def test_labels_tell_peers_apart() -> None:
    assert len({peer.label for peer in PEERS.values()}) == len(PEERS)


def test_texts_are_padded_to_the_longest_of_their_batch() -> None:
    batches = list(padded_batches([[5, 6], [7], [8, 9, 10]], 2, pad_id=1))
    assert [batch for batch, _ in batches] == [[2, 0], [1]]
    assert batches[0][1]["input_ids"].tolist() == [[8, 9, 10], [5, 6, 1]]
    assert batches[0][1]["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_token_weighs_as_its_heaviest_occurrence() -> None:
    sparse = [np.array([0.9, 0.2, 0.5, 0.3, 0.0, 0.9])]
    assert lexical([[0, 7, 8, 7, 9, 2]], sparse, special_ids=[0, 2]) == [{8: 0.5, 7: 0.3}]


def test_bf16_is_refused_where_the_cpu_only_imitates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: dict[str, Any] = {"precision": "bf16", "device": "cpu"}
    monkeypatch.setattr("bgem3.runtime.bench_peers.cpu_flags", lambda: {"avx2"})
    with pytest.raises(RuntimeError, match="no instructions for bf16"):
        require_bf16(wanted)
    require_bf16(wanted | {"device": "cuda:0"})
    monkeypatch.setattr("bgem3.runtime.bench_peers.cpu_flags", lambda: {"avx512_bf16"})
    require_bf16(wanted)
    assert all(re.fullmatch(r"\w+", flag) for flag in cpu_flags())


def test_sentence_transformers_finds_pooling_and_normalization(settings: Settings, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    describe_for_sentence_transformers(settings, tmp_path / "model")
    model = library.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    found = model.encode(TEXTS, show_progress_bar=False)
    expected = BGEM3Model.load(settings["artifact"], "cpu", "fp32", 1).encode(TEXTS).dense
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
