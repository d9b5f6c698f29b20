"""The CUDA graph without a CUDA device: its structure, and its numbers by an independent evaluation."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bgem3.export.checkpoint import load_checkpoint
from bgem3.export.cuda_graph import INPUTS
from bgem3.export.reference import SENTENCES, reference_outputs
from bgem3.runtime import BGEM3Model
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import OUTPUTS, Output
from bgem3.runtime.cuda_session import fixed_length_feeds, packed_feeds
from bgem3.runtime.packing import PackedBatch, pack
from bgem3.runtime.parity import compare
from bgem3.runtime.results import Assembly
from bgem3.runtime.tokenizer import TextTokenizer
from tests.export.contrib_ops import evaluate

MIXED_TEXTS = ["", "a", *SENTENCES, " ".join(SENTENCES)]
KERNELS = {  # operators with a CUDA kernel for these types, in ONNX Runtime's table of kernels
    *("Add", "BiasGelu", "Cast", "Concat", "Div", "Gather", "MatMul", "Max", "PackedMultiHeadAttention"),
    *("ReduceL2", "Relu", "Reshape", "SkipLayerNormalization"),
}
TOLERANCES = {  # against PyTorch in float32; the demo checkpoint's largest lexical weight is about 1
    "fp32": {"dense_max_difference": 1e-6, "sparse_max_difference": 1e-5, "multivector_max_difference": 1e-6},
    "fp16": {"dense_max_difference": 3e-3, "sparse_max_difference": 4e-3, "multivector_max_difference": 3e-3},
}


def batch_of(artifact: Path, texts: list[str]) -> PackedBatch:
    read = read_artifact(artifact)
    tokenized = TextTokenizer(artifact / "tokenizer.json", read.spec)(texts, read.spec.max_length)
    return pack(tokenized, np.arange(len(texts)), read.spec.pad_id)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_cuda_graph_has_the_operators_it_was_designed_with(random_artifact: Path, precision: str) -> None:
    model = onnx.load(random_artifact / precision / "cuda.onnx", load_external_data=False)
    n_layers, is_fp16 = 3, precision == "fp16"
    counts = Counter(node.op_type for node in model.graph.node)
    assert set(counts) <= KERNELS
    assert counts["PackedMultiHeadAttention"] == n_layers
    assert counts["SkipLayerNormalization"] == 2 * n_layers + 1
    assert counts["BiasGelu"] == n_layers
    assert counts["MatMul"] == 4 * n_layers + 2
    assert counts["Concat"] == 2 * n_layers  # of weights and of biases
    assert counts["Cast"] == (5 if is_fp16 else 0)  # three heads and two of their biases
    assert {value.name: value.type.tensor_type.elem_type for value in model.graph.input} == {
        name: kind for name, (kind, _) in INPUTS.items()
    }
    assert [value.name for value in model.graph.output] == list(OUTPUTS)
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_all_graphs_share_one_weights_file(random_artifact: Path, precision: str) -> None:
    tensors = {}
    for graph in ("cpu", "cuda", "native"):
        model = onnx.load(random_artifact / precision / f"{graph}.onnx", load_external_data=False)
        tensors[graph] = {
            tensor.name: [(entry.key, entry.value) for entry in tensor.external_data]
            for tensor in model.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }
    assert tensors["cuda"] == tensors["cpu"] == tensors["native"]
    names = {path.name for path in (random_artifact / precision).iterdir()}
    assert names == {"weights.bin", "cpu.onnx", "cuda.onnx", "native.onnx"}


def test_every_attention_node_is_packed_and_sees_only_the_limits_of_texts(random_artifact: Path) -> None:
    model = onnx.load(random_artifact / "fp16/cuda.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "PackedMultiHeadAttention":
            assert list(node.input[1:3]) == ["", ""]  # flash attention takes no attention bias; see the kernel
            assert list(node.input[4:]) == ["token_offset", "cu_seqlens"]
            assert [(attribute.name, attribute.i) for attribute in node.attribute] == [("num_heads", 6)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_evaluated_independently_the_cuda_graph_gives_what_pytorch_gives(
    demo_checkpoint: Path, demo_artifact: Path, precision: str
) -> None:
    spec = read_artifact(demo_artifact).spec
    tokenized = TextTokenizer(demo_artifact / "tokenizer.json", spec)(MIXED_TEXTS, spec.max_length)
    result = Assembly(spec, OUTPUTS)
    result.extend(tokenized)
    batch = batch_of(demo_artifact, MIXED_TEXTS)
    found = evaluate(demo_artifact / precision / "cuda.onnx", packed_feeds(batch, OUTPUTS))
    result.add(batch, {name: found[name] for name in OUTPUTS})
    report = compare(result.embeddings(), reference_outputs(load_checkpoint(demo_checkpoint), MIXED_TEXTS))
    assert report["tokens_equal"]
    for name, bound in TOLERANCES[precision].items():
        assert report[name] <= bound, report
    assert min(report["dense_min_cosine"], report["multivector_min_cosine"]) >= 0.9999


def test_a_text_alone_evaluates_as_in_a_micro_batch(random_artifact: Path) -> None:
    path = random_artifact / "fp32/cuda.onnx"
    together = evaluate(path, packed_feeds(batch_of(random_artifact, MIXED_TEXTS[:5]), OUTPUTS))
    alone = evaluate(path, packed_feeds(batch_of(random_artifact, MIXED_TEXTS[2:3]), OUTPUTS))
    np.testing.assert_allclose(together["dense"][2:3], alone["dense"], atol=1e-6)


@pytest.mark.parametrize("outputs", [("dense",), ("sparse",), ("multivector",), ("dense", "sparse")])
def test_a_head_not_asked_for_works_on_one_row_only(random_artifact: Path, outputs: tuple[Output, ...]) -> None:
    batch = batch_of(random_artifact, MIXED_TEXTS[:4])
    found = evaluate(random_artifact / "fp32/cuda.onnx", packed_feeds(batch, outputs))
    every = evaluate(random_artifact / "fp32/cuda.onnx", packed_feeds(batch, OUTPUTS))
    for name in OUTPUTS:
        if name in outputs:
            np.testing.assert_allclose(found[name], every[name], atol=1e-6)
        else:
            assert len(found[name]) == 1


@pytest.mark.parametrize("length", [16, 32])
@pytest.mark.parametrize("outputs", [("dense",), OUTPUTS])
def test_a_query_lengthened_to_a_captured_graphs_length_keeps_its_values(
    demo_artifact: Path, length: int, outputs: tuple[Output, ...]
) -> None:
    spec = read_artifact(demo_artifact).spec
    path = demo_artifact / "fp32/cuda.onnx"
    with BGEM3Model.load(demo_artifact, "cpu", "fp32") as model:
        for text in ("", "What is BM25?", " ".join(["honey"] * (length - 2))):
            batch = batch_of(demo_artifact, [text])
            n_tokens = len(batch.token_ids)
            found: dict[str, NDArray[Any]] = evaluate(path, fixed_length_feeds(batch, outputs, length, spec.pad_id))
            expected = model.encode([text])
            np.testing.assert_allclose(found["dense"], expected.dense, atol=1e-6)
            if "multivector" in outputs:
                assert len(found["sparse"]) == length
                assert len(found["multivector"]) == length - 1
                np.testing.assert_allclose(found["multivector"][: n_tokens - 1], expected.multivector[0], atol=1e-6)
        assert n_tokens == length  # the last text leaves no room for padding
