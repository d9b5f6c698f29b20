"""milvus-model's embedding function runs over the drop-in, where neither PyTorch nor FlagEmbedding is installed."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bgem3.runtime
from bgem3.runtime import BGEM3FlagModel, BGEM3Model

pytestmark = pytest.mark.integrations

ARTIFACT = Path(sys.prefix, "artifact")  # `make test-integrations` exports it
TEXTS = ["the sea", "", " ", "Water boils at 100 °C , doesn't it ?", "面包 为什么 会 发 起来？", "words " * 50]


@pytest.fixture
def embedding_function(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class BGEM3EmbeddingFunction, with FlagEmbedding replaced by bgem3.runtime."""
    monkeypatch.setattr("milvus_model.utils._check_library", lambda *_, **__: None)  # it would install FlagEmbedding
    monkeypatch.setitem(sys.modules, "FlagEmbedding", bgem3.runtime)
    return importlib.import_module("milvus_model.hybrid.bge_m3").BGEM3EmbeddingFunction


@pytest.mark.parametrize("settings", [{}, {"devices": ["cpu", "cpu"]}, {"precision": "fp32", "n_threads": 1}], ids=str)
def test_milvus_models_embedding_function_runs_over_the_drop_in(
    embedding_function: Any, settings: dict[str, Any]
) -> None:
    arguments = {"device": "cpu", "use_fp16": False, "return_colbert_vecs": True} | settings
    function = embedding_function(model_name=str(ARTIFACT), **arguments)
    assert type(function.model) is BGEM3FlagModel
    model = BGEM3Model.load(ARTIFACT, device="cpu", precision="fp32")
    spec = model.spec
    sizes = {"dense": spec.hidden_size, "colbert_vecs": spec.multivector_size, "sparse": spec.vocab_size}
    assert function.dim == sizes
    expected = model.encode(TEXTS)
    for encode in (function, function.encode_queries, function.encode_documents):
        found = encode(TEXTS)
        np.testing.assert_allclose(found["dense"], expected.dense, atol=1e-6)
        np.testing.assert_allclose(found["sparse"].toarray(), expected.sparse.toarray(), atol=1e-6)
        for found_vectors, vectors in zip(found["colbert_vecs"], expected.multivector, strict=True):
            np.testing.assert_allclose(found_vectors, vectors, atol=1e-6)
