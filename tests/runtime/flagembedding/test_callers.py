"""FlagEmbedding's own examples, with only the import changed."""

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runtime.flagembedding.comparison import ALL_OUTPUTS, SCORES_TOLERANCE, assert_same

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


EXAMPLES = {
    "m3_single_device_ensemble": (open_by_class, mix_scores),
    "m3_multi_devices_compute_score": (open_by_class, score_pairs),
    "auto_m3_multi_devices": (open_by_name, embed_and_score),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_flagembeddings_examples_run_with_only_the_import_changed(
    name: str, demo_checkpoint: Path, tmp_path: Path
) -> None:
    open_model, steps = EXAMPLES[name]
    checkpoint = str(shutil.copytree(demo_checkpoint, tmp_path / "bge-m3"))  # a name that FlagAutoModel knows
    settings = {"devices": ["cpu", "cpu"] if "multi" in name else "cpu", "cache_dir": str(tmp_path)}
    found = steps(open_model(importlib.import_module("bgem3.runtime"), checkpoint, **settings))
    # on several devices FlagEmbedding starts a process for each, and gives what one gives
    expected = steps(open_model(importlib.import_module("FlagEmbedding"), checkpoint, devices="cpu"))
    tolerance = SCORES_TOLERANCE * (20 if steps is mix_scores else 1)  # which sums over a query's tokens
    assert_same(found, expected, tolerance)
