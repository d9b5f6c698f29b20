"""The BGE-M3 tutorial's calls run with only the import line changed, and give the same results."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.flagembedding.comparison import SCORES_TOLERANCE, assert_same

# CHECKPOINT and USE_FP16 are given from outside; the rest follows section 2 of the tutorial call by call.
TUTORIAL = """
model = BGEM3FlagModel(CHECKPOINT, use_fp16=USE_FP16, devices="cpu")
sentences_1 = ["What is BGE M3?", "Defination of BM25"]
sentences_2 = [
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms appearing "
    "in each document",
]

# dense
embeddings_1 = model.encode(sentences_1, max_length=10)["dense_vecs"]
embeddings_2 = model.encode(sentences_2, max_length=100)["dense_vecs"]
s_dense = embeddings_1 @ embeddings_2.T
print(s_dense)

# sparse
sparse_1 = model.encode(sentences_1, return_sparse=True)
sparse_2 = model.encode(sentences_2, return_sparse=True)
tokens_1 = model.convert_id_to_token(sparse_1["lexical_weights"])
print(tokens_1)
s_lex_10_20 = model.compute_lexical_matching_score(sparse_1["lexical_weights"][0], sparse_2["lexical_weights"][0])
s_lex_10_21 = model.compute_lexical_matching_score(sparse_1["lexical_weights"][0], sparse_2["lexical_weights"][1])
print(s_lex_10_20)
print(s_lex_10_21)

# multi-vector
output_1 = model.encode(sentences_1, return_dense=True, return_sparse=True, return_colbert_vecs=True)
output_2 = model.encode(sentences_2, return_dense=True, return_sparse=True, return_colbert_vecs=True)
print(f"({len(output_1['colbert_vecs'][0])}, {len(output_1['colbert_vecs'][0][0])})")
print(f"({len(output_2['colbert_vecs'][0])}, {len(output_2['colbert_vecs'][0][0])})")
s_mul_10_20 = model.colbert_score(output_1["colbert_vecs"][0], output_2["colbert_vecs"][0]).item()
s_mul_10_21 = model.colbert_score(output_1["colbert_vecs"][0], output_2["colbert_vecs"][1]).item()
print(s_mul_10_20)
print(s_mul_10_21)

# hybrid
s_rank_10_20 = 1/3 * s_dense[0][0] + 1/3 * s_lex_10_20 + 1/3 * s_mul_10_20
s_rank_10_21 = 1/3 * s_dense[0][1] + 1/3 * s_lex_10_21 + 1/3 * s_mul_10_21
print(s_rank_10_20)
print(s_rank_10_21)
"""
NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?")


def run_tutorial(import_line: str, checkpoint: Path, precision: str) -> dict[str, Any]:
    """Run the tutorial in a namespace of its own; return what it computed, by name."""
    namespace: dict[str, Any] = {"CHECKPOINT": str(checkpoint), "USE_FP16": precision == "fp16"}
    exec(f"{import_line}\n{TUTORIAL}", namespace)
    for name in ("__builtins__", "BGEM3FlagModel", "model"):
        del namespace[name]
    return namespace


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_tutorial_gives_the_same_results_with_only_the_import_line_changed(
    demo_checkpoint: Path,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bgem3.runtime.export_cache.user_cache_path", lambda name: tmp_path / name)
    reference = run_tutorial("from FlagEmbedding import BGEM3FlagModel", demo_checkpoint, precision)
    reference_prints = capsys.readouterr().out
    ours = run_tutorial("from bgem3.runtime import BGEM3FlagModel", demo_checkpoint, precision)
    our_prints = capsys.readouterr().out

    assert_same(ours, reference, SCORES_TOLERANCE)
    our_numbers, reference_numbers = (
        [float(number) for number in NUMBER.findall(prints)] for prints in (our_prints, reference_prints)
    )
    np.testing.assert_allclose(our_numbers, reference_numbers, rtol=0, atol=SCORES_TOLERANCE)
    our_frame, reference_frame = (
        [NUMBER.sub("#", line).split() for line in prints.splitlines()] for prints in (our_prints, reference_prints)
    )
    assert our_frame == reference_frame
    assert len(reference_frame) == 11

    for score in ("s_lex", "s_mul", "s_rank"):  # and they mean something
        assert ours[f"{score}_10_20"] > ours[f"{score}_10_21"]
