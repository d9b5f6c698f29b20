"""The CUDA graph without a CUDA device: its structure, and its numbers with attention in standard operators."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bgem3.export.checkpoint import load_checkpoint
from bgem3.export.cuda_graph import INPUTS
from bgem3.export.reference import SENTENCES, reference_outputs
from bgem3.runtime import BGEM3Model
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cuda_feeds import fixed_length_feeds, packed_feeds
from bgem3.runtime.heads import OUTPUTS, Output
from bgem3.runtime.ort import open_cpu_session
from bgem3.runtime.packing import PackedBatch, pack
from bgem3.runtime.parity import compare
from bgem3.runtime.results import ResultArrays
from bgem3.runtime.tokenizer import TextTokenizer
from tests.export.contrib_ops import for_cpu

Run = Callable[[dict[str, NDArray[Any]]], dict[Output, NDArray[Any]]]
MIXED_TEXTS = ["", "a", *SENTENCES, " ".join(SENTENCES)]
KERNELS = {  # operators with a CUDA kernel for these types, in ONNX Runtime's table of kernels
    *("Add", "BiasGelu", "Cast", "Concat", "Div", "Gather", "MatMul", "Max", "PackedMultiHeadAttention"),
    *("ReduceL2", "Relu", "Reshape", "SkipLayerNormalization"),
}
TOLERANCES = {  # against PyTorch in float32; the demo checkpoint's largest lexical weight is about 1
    "fp32": {"dense_max_difference": 1e-6, "sparse_max_difference": 1e-5, "multivector_max_difference": 1e-6},
    "fp16": {"dense_max_difference": 3e-3, "sparse_max_difference": 4e-3, "multivector_max_difference": 3e-3},
}


@contextmanager
def opened(path: Path) -> Iterator[Run]:
    """Yield a function that runs a CUDA graph on the CPU."""
    copy = for_cpu(path, path.with_name("cuda_on_cpu.onnx"))
    session = open_cpu_session(copy, 1)
    copy.unlink()
    names = [value.name for value in session.get_outputs()]
    yield lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def batch_of(artifact: Path, texts: list[str]) -> PackedBatch:
    read = read_artifact(artifact)
    tokenized = TextTokenizer(artifact / "tokenizer.json", read.spec)(texts, read.spec.max_length)
    return pack(tokenized, np.arange(len(texts)), read.spec.pad_id)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("lengths", [[1], [6], [1, 1, 1], [3, 1, 5], [5, 2, 1, 0]], ids=str)
def test_attention_in_standard_operators_is_attention_within_each_text(
    lengths: list[int], dtype: type[np.floating], tmp_path: Path
) -> None:
    n_heads, size, rng = 3, 8, np.random.default_rng(0)
    query = (2 * rng.normal(size=(sum(lengths), n_heads, 3, size))).astype(dtype)
    bias = rng.normal(size=3 * n_heads * size).astype(dtype)
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = {"query": kind, "bias": kind, "cu_seqlens": TensorProto.INT32}
    names = ["query", "", "", "bias", "", "cu_seqlens"]
    node = helper.make_node("PackedMultiHeadAttention", names, ["output"], domain="com.microsoft", num_heads=n_heads)
    values = [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()]
    graph = helper.make_graph([node], "attention", values, [helper.make_tensor_value_info("output", kind, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (tmp_path / "node.onnx").write_bytes(model.SerializeToString())
    session = open_cpu_session(for_cpu(tmp_path / "node.onnx", tmp_path / "cpu.onnx"), 1)
    (found,) = session.run(["output"], {"query": query, "bias": bias, "cu_seqlens": ends})

    biased = torch.from_numpy(query.astype(float) + bias.astype(float).reshape(3, n_heads, size).transpose(1, 0, 2))
    queries, keys, texts = *biased.permute(2, 1, 0, 3)[:2], [slice(*pair) for pair in itertools.pairwise(ends)]
    attend, vectors = torch.nn.functional.scaled_dot_product_attention, biased.permute(2, 1, 0, 3)[2]
    contexts = [attend(queries[:, text], keys[:, text], vectors[:, text]) for text in texts]
    expected = torch.cat(contexts, dim=1).transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(found, expected, rtol=np.finfo(dtype).eps, atol=2e-6)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_cuda_graph_has_the_operators_it_was_designed_with(random_artifact: Path, precision: str) -> None:
    model = onnx.load(random_artifact / precision / "cuda.onnx", load_external_data=False)
    n_layers, is_fp16 = 3, precision == "fp16"
    counts = Counter(node.op_type for node in model.graph.node)
    assert set(counts) <= KERNELS
    assert counts["SkipLayerNormalization"] == 2 * n_layers + 1
    assert counts["BiasGelu"] == n_layers
    assert counts["MatMul"] == 4 * n_layers + 2
    assert counts["Cast"] == (5 if is_fp16 else 0)  # three heads and two of their biases
    attention = [node for node in model.graph.node if node.op_type == "PackedMultiHeadAttention"]
    assert len(attention) == n_layers
    for node in attention:
        assert list(node.input[1:3]) == ["", ""]
        assert list(node.input[4:]) == ["token_offset", "cu_seqlens"]  # flash attention takes no attention bias
    assert {value.name: value.type.tensor_type.elem_type for value in model.graph.input} == {
        name: kind for name, (kind, _) in INPUTS.items()
    }
    outputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    assert outputs == dict.fromkeys(OUTPUTS, TensorProto.FLOAT)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_cuda_graph_gives_what_pytorch_gives(demo_checkpoint: Path, demo_artifact: Path, precision: str) -> None:
    spec = read_artifact(demo_artifact).spec
    result = ResultArrays(spec, OUTPUTS)
    result.extend(TextTokenizer(demo_artifact / "tokenizer.json", spec)(MIXED_TEXTS, spec.max_length))
    batch = batch_of(demo_artifact, MIXED_TEXTS)
    with opened(demo_artifact / precision / "cuda.onnx") as run:
        result.add(batch, run(packed_feeds(batch, OUTPUTS)))
    report = compare(result.embeddings(), reference_outputs(load_checkpoint(demo_checkpoint), MIXED_TEXTS))
    assert report["tokens_equal"]
    for name, bound in TOLERANCES[precision].items():
        assert report[name] <= bound, report
    assert min(report["dense_min_cosine"], report["multivector_min_cosine"]) >= 0.9999


@pytest.mark.parametrize("outputs", [("dense",), ("sparse",), ("multivector",), ("dense", "sparse")])
def test_a_head_not_asked_for_works_on_one_row_only(random_artifact: Path, outputs: tuple[Output, ...]) -> None:
    batch = batch_of(random_artifact, MIXED_TEXTS[:4])
    with opened(random_artifact / "fp32/cuda.onnx") as run:
        found, every = run(packed_feeds(batch, outputs)), run(packed_feeds(batch, OUTPUTS))
    for name in outputs:
        np.testing.assert_allclose(found[name], every[name], atol=1e-6)
    assert [len(found[name]) for name in OUTPUTS if name not in outputs] == [1] * (3 - len(outputs))


@pytest.mark.parametrize("length", [16, 32])
@pytest.mark.parametrize("outputs", [("dense",), OUTPUTS])
def test_a_query_lengthened_to_a_captured_graphs_length_keeps_its_values(
    demo_artifact: Path, length: int, outputs: tuple[Output, ...]
) -> None:
    spec = read_artifact(demo_artifact).spec
    with (
        BGEM3Model.load(demo_artifact, "cpu", "fp32") as model,
        opened(demo_artifact / "fp32/cuda.onnx") as run,
    ):
        for text in ("", "What is BM25?", " ".join(["honey"] * (length - 2))):  # the last one needs no padding
            batch = batch_of(demo_artifact, [text])
            n_tokens = len(batch.token_ids)
            found = run(fixed_length_feeds(batch, outputs, length, spec.pad_id))
            expected = model.encode([text])
            np.testing.assert_allclose(found["dense"], expected.dense, atol=1e-6)
            if "multivector" in outputs:
                assert (len(found["sparse"]), len(found["multivector"])) == (length, length - 1)
                np.testing.assert_allclose(found["multivector"][: n_tokens - 1], expected.multivector[0], atol=1e-6)
    assert n_tokens == length
