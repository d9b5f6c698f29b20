"""The PyTorch encoders that bgem3 is measured beside compute what bgem3 computes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.export.peers import Encoder, FlagEmbeddingEncoder, load_encoders
from bgem3.export.reference import SENTENCES
from bgem3.export.torch_encoders import Encoded, TorchPacked, TorchPadded
from bgem3.runtime import BGEM3Model

TEXTS = ["", "honey", *SENTENCES, "a much longer text than the model takes " * 30]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(random_checkpoint)


def assert_equals_bgem3(found: Encoded, model: BGEM3Model) -> None:
    expected = model.encode(TEXTS)
    assert found.dense is not None
    assert found.multivector is not None
    np.testing.assert_allclose(found.dense, expected.dense, atol=TOLERANCE)
    for ours, theirs in zip(expected.multivector, found.multivector, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=TOLERANCE)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda c: TorchPadded(c, "cpu", torch.float32), id="padded"),
        pytest.param(lambda c: TorchPacked(c, "cpu", torch.float32), id="packed"),
        pytest.param(lambda c: TorchPacked(c, "cpu", torch.float32, token_budget=40), id="packed under a small budget"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_torch_encoder_equals_bgem3_with_all_three_heads(
    make: type, batch_size: int, checkpoint: Checkpoint, random_model: BGEM3Model
) -> None:
    encoder: Encoder = make(checkpoint)
    found = encoder(TEXTS, batch_size=batch_size)
    assert_equals_bgem3(found, random_model)
    spec = random_model.spec
    tokens = random_model.tokenizer(TEXTS, spec.max_length)
    assert found.lexical is not None
    for i, (weights, expected) in enumerate(
        zip(found.lexical, random_model.encode(TEXTS).lexical_weights, strict=True)
    ):
        merged: dict[str, float] = {}
        ids = tokens.token_ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist()
        for token_id, weight in zip(ids, weights.tolist(), strict=True):
            if weight > 0 and token_id not in (spec.cls_id, spec.pad_id, spec.eos_id, spec.unk_id):
                merged[str(token_id)] = max(weight, merged.get(str(token_id), 0.0))
        assert merged == pytest.approx({key: float(value) for key, value in expected.items()}, abs=TOLERANCE)


def test_outputs_not_asked_for_are_not_computed(checkpoint: Checkpoint) -> None:
    for encoder in (TorchPadded(checkpoint, "cpu", torch.float32), TorchPacked(checkpoint, "cpu", torch.float32)):
        found = encoder(TEXTS, outputs=("dense",))
        assert found.dense is not None
        assert found.dense.shape == (len(TEXTS), checkpoint.spec.hidden_size)
        assert found.lexical is found.multivector is None


def test_an_encoder_of_another_dtype_leaves_the_checkpoint_as_it_was(
    checkpoint: Checkpoint, random_model: BGEM3Model
) -> None:
    before = next(checkpoint.model.parameters())
    found = TorchPacked(checkpoint, "cpu", torch.bfloat16)(TEXTS)
    assert next(checkpoint.model.parameters()) is before
    assert before.dtype == torch.float32
    assert found.dense is not None
    assert found.dense.dtype == np.float32
    assert (found.dense * random_model.encode(TEXTS).dense).sum(1).min() > 0.99


def test_flagembedding_is_called_in_the_same_form(checkpoint: Checkpoint, random_model: BGEM3Model) -> None:
    encoder = FlagEmbeddingEncoder(checkpoint, "cpu", torch.float32)
    assert_equals_bgem3(encoder(TEXTS, batch_size=4), random_model)
    dense_alone = encoder(TEXTS[:2], outputs=("dense",))
    assert dense_alone.lexical is dense_alone.multivector is None


def test_in_place_of_an_encoder_that_cannot_run_stands_the_reason(
    random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "FlagEmbedding", None)
    encoders = load_encoders(random_checkpoint, "cpu", "fp32")
    assert list(encoders) == ["torch packed", "torch padded", "FlagEmbedding"]
    assert "pip install" in str(encoders["FlagEmbedding"])
    assert not isinstance(encoders["torch packed"], str)


def test_packed_attention_says_what_it_lacks_on_cuda(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    from bgem3.export import torch_encoders

    with pytest.raises(ValueError, match="half precision"):
        torch_encoders._import_varlen(torch.float32)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    with pytest.raises(ImportError, match=r"torch 2\.10 or newer"):
        torch_encoders._import_varlen(torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [TorchPadded, TorchPacked])
def test_a_torch_encoder_on_cuda_is_close_to_bgem3(
    kind: type, checkpoint: Checkpoint, random_model: BGEM3Model
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    expected, found = random_model.encode(TEXTS), kind(checkpoint, "cuda:0", torch.float16)(TEXTS)
    assert (found.dense * expected.dense).sum(1).min() > 0.999
    for ours, theirs in zip(expected.multivector, found.multivector, strict=True):
        assert (ours * theirs).sum(1).min() > 0.999
