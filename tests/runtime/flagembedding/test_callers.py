"""FlagEmbedding's own examples and milvus-model, with only the import changed."""

import functools
import importlib
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import FlagEmbedding
import numpy as np
import pytest
import torch

from bgem3.runtime import BGEM3FlagModel, BGEM3Model
from tests.runtime.flagembedding.comparison import TOLERANCES, assert_same

ALL_OUTPUTS = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
TEXTS = ["the sea", "", "面包 为什么 会 发 起来？", "<mask> is a token", "words " * 50]

# FlagEmbedding's examples of M3, call by call

QUERIES = ["Why does bread rise?", "How do tides come about?"] * 20
PASSAGES = ["Yeast gives off gas, which lifts the dough of bread.", "The pull of the moon causes the tides."] * 20


def embed_and_score(model: Any) -> dict[str, Any]:
    """Do what the examples of one and several devices do: dense and lexical scores of all with all."""
    queries, passages = (
        method(texts, return_dense=True, return_sparse=True, return_colbert_vecs=False)
        for method, texts in ((model.encode_queries, QUERIES), (model.encode_corpus, PASSAGES))
    )
    dense = queries["dense_vecs"] @ passages["dense_vecs"].T
    sparse = model.compute_lexical_matching_score(queries["lexical_weights"], passages["lexical_weights"])
    return {"dense": dense[:2, :2], "sparse": sparse[:2, :2]}


def score_pairs(model: Any) -> dict[str, Any]:
    """Do what the examples of compute_score do: weighted scores of pairs, then of the reversed queries."""
    scores = [
        model.compute_score(list(zip(queries, PASSAGES, strict=True)), weights_for_different_modes=[1.0, 0.3, 1.0])
        for queries in (QUERIES, QUERIES[::-1])
    ]
    return {str(i): {key: values[:2] for key, values in found.items()} for i, found in enumerate(scores)}


def mix_scores(model: Any) -> dict[str, Any]:
    """Do what the example of an ensemble does: padded multi-vectors scored in torch, and a weighted sum."""
    queries, passages = (
        method(texts[:20], **ALL_OUTPUTS)
        for method, texts in ((model.encode_queries, QUERIES), (model.encode_corpus, PASSAGES))
    )
    dense = torch.tensor(queries["dense_vecs"]) @ torch.tensor(passages["dense_vecs"]).T
    sparse = model.compute_lexical_matching_score(queries["lexical_weights"], passages["lexical_weights"])
    padded = [
        torch.nn.utils.rnn.pad_sequence([torch.tensor(vectors) for vectors in side["colbert_vecs"]], batch_first=True)
        for side in (queries, passages)
    ]
    colbert = torch.einsum("qrd,pcd->qprc", *padded).max(dim=3)[0].sum(dim=2)
    mixed = 0.45 * dense + 0.45 * torch.tensor(sparse, dtype=torch.float) + 0.1 * colbert
    return {"sparse": sparse[:2, :2], "colbert": colbert[:2, :2].numpy(), "mixed": mixed[:2, :2].numpy()}


def open_by_class(module: Any, checkpoint: str, **settings: Any) -> Any:
    return module.BGEM3FlagModel(checkpoint, normalize_embeddings=True, use_fp16=True, pooling_method="cls", **settings)


def open_by_name(module: Any, checkpoint: str, **settings: Any) -> Any:
    return module.FlagAutoModel.from_finetuned(checkpoint, **settings)


@pytest.fixture(scope="module")
def named_checkpoint(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo checkpoint in a folder whose name FlagAutoModel knows."""
    return str(shutil.copytree(demo_checkpoint, tmp_path_factory.mktemp("named") / "bge-m3"))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache that holds the export of the first example for the others."""
    return str(tmp_path_factory.mktemp("cache"))


EXAMPLES = {
    "m3_single_device": (open_by_class, embed_and_score),
    "m3_multi_devices": (open_by_class, embed_and_score),
    "m3_single_device_compute_score": (open_by_class, score_pairs),
    "m3_multi_devices_compute_score": (open_by_class, score_pairs),
    "m3_single_device_ensemble": (open_by_class, mix_scores),
    "auto_m3_single_device": (open_by_name, embed_and_score),
    "auto_m3_multi_devices": (open_by_name, embed_and_score),
}


@pytest.fixture(scope="module")
def example_results(named_checkpoint: str) -> Callable[..., dict[str, Any]]:
    """The function that runs an example with FlagEmbedding, once for one and for several devices.

    FlagEmbedding starts a process for each of several devices, and gives what one device gives.
    """

    @functools.cache
    def run(open_model: Callable[..., Any], steps: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return steps(open_model(importlib.import_module("FlagEmbedding"), named_checkpoint, devices="cpu"))

    return run


@pytest.mark.parametrize("name", EXAMPLES)
def test_flagembeddings_examples_run_with_only_the_import_changed(
    name: str, named_checkpoint: str, cache_dir: str, example_results: Callable[..., dict[str, Any]]
) -> None:
    open_model, steps = EXAMPLES[name]
    settings: dict[str, Any] = {"devices": ["cpu", "cpu"] if "multi" in name else "cpu", "cache_dir": cache_dir}
    found = steps(open_model(importlib.import_module("bgem3.runtime"), named_checkpoint, **settings))
    tolerance = TOLERANCES["fp16"]["scores"] * (20 if steps is mix_scores else 1)  # which sums over a query's tokens
    assert_same(found, example_results(open_model, steps), tolerance)


# milvus-model


def milvus_module(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """Return milvus-model's module with its import of FlagEmbedding changed to ours, or skip without it."""
    package = name.partition(".hybrid")[0]
    try:
        is_there = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        pytest.skip(f"{package} is not installed")
    for needed in ("datasets", "peft"):
        if not importlib.util.find_spec(needed):
            pytest.skip(f"{package} would install {needed} by itself")
    monkeypatch.setattr(FlagEmbedding, "BGEM3FlagModel", BGEM3FlagModel)  # some versions import it when called
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "BGEM3FlagModel", BGEM3FlagModel, raising=False)
    return module


@pytest.mark.parametrize("name", ["milvus_model.hybrid.bge_m3", "pymilvus.model.hybrid.bge_m3"])
@pytest.mark.parametrize("settings", [{}, {"devices": ["cpu", "cpu"]}, {"precision": "fp32", "n_threads": 1}], ids=str)
def test_milvus_models_embedding_function_runs_over_the_drop_in(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    module = milvus_module(monkeypatch, name)
    function = module.BGEM3EmbeddingFunction(
        model_name=str(random_artifact),
        **({"device": "cpu", "use_fp16": False, "return_colbert_vecs": True} | settings),
    )
    assert type(function.model) is BGEM3FlagModel
    model = BGEM3Model.load(random_artifact, device="cpu", precision="fp32")
    spec = model.spec
    assert function.dim == {
        "dense": spec.hidden_size,
        "colbert_vecs": spec.multivector_size,
        "sparse": spec.vocab_size,
    }
    expected = model.encode(TEXTS)
    for encode in (function, function.encode_queries, function.encode_documents):
        found = encode(TEXTS)
        np.testing.assert_allclose(found["dense"], expected.dense, atol=1e-6)
        np.testing.assert_allclose(found["sparse"].toarray(), expected.sparse.toarray(), atol=1e-6)
        assert found["sparse"].shape == (len(TEXTS), spec.vocab_size)
        for one_found, one_expected in zip(found["colbert_vecs"], expected.multivector, strict=True):
            np.testing.assert_allclose(one_found, one_expected, atol=1e-6)
