"""The PyTorch encoder over packed tokens computes what bgem3 computes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bgem3.export import torch_packed
from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.export.reference import SENTENCES
from bgem3.export.torch_packed import Encoded, TorchPacked
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


@pytest.mark.parametrize("token_budget", [40, 16384])
def test_it_equals_bgem3_with_all_three_heads(
    token_budget: int, checkpoint: Checkpoint, random_model: BGEM3Model
) -> None:
    found = TorchPacked(checkpoint, "cpu", torch.float32, token_budget)(TEXTS)
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
    found = TorchPacked(checkpoint, "cpu", torch.float32)(TEXTS, outputs=("dense",))
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


def test_packed_attention_says_what_it_lacks_on_cuda(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="half precision"):
        torch_packed._import_varlen(torch.float32)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    with pytest.raises(ImportError, match=r"torch 2\.10 or newer"):
        torch_packed._import_varlen(torch.float16)


@pytest.mark.gpu
def test_on_cuda_it_is_close_to_bgem3(checkpoint: Checkpoint, random_model: BGEM3Model) -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    expected, found = random_model.encode(TEXTS), TorchPacked(checkpoint, "cuda:0", torch.float16)(TEXTS)
    assert found.dense is not None
    assert found.multivector is not None
    assert (found.dense * expected.dense).sum(1).min() > 0.999
    for ours, theirs in zip(expected.multivector, found.multivector, strict=True):
        assert (ours * theirs).sum(1).min() > 0.999
