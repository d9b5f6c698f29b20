"""The CUDA graph without a CUDA device: its structure, and its numbers with attention in standard operators."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from bgem3.export.checkpoint import load_checkpoint
from bgem3.export.cuda_graph import INPUTS
from bgem3.export.reference import SENTENCES, reference_outputs
from bgem3.runtime import BGEM3Model
from bgem3.runtime.manifest import OUTPUTS
from bgem3.runtime.parity import compare
from tests.runtime.cuda_stand_in import Ran, cudart, ran  # noqa: F401 - fixtures

TEXTS = ["", "a", *SENTENCES, " ".join(SENTENCES)]
KERNELS = {  # operators with a CUDA kernel for these types, in ONNX Runtime's table of kernels
    *("Add", "BiasGelu", "Cast", "Concat", "Div", "Gather", "MatMul", "Max", "PackedMultiHeadAttention"),
    *("ReduceL2", "Relu", "Reshape", "SkipLayerNormalization"),
}
TOLERANCES = {  # against PyTorch in float32; the demo checkpoint's largest lexical weight is about 1
    "fp32": {"dense_max_difference": 1e-6, "sparse_max_difference": 1e-5, "multivector_max_difference": 1e-6},
    "fp16": {"dense_max_difference": 3e-3, "sparse_max_difference": 4e-3, "multivector_max_difference": 3e-3},
}


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
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert types == {name: kind for name, (kind, _) in INPUTS.items()}
    outputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    assert outputs == dict.fromkeys(OUTPUTS, TensorProto.FLOAT)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_cuda_graph_gives_what_pytorch_gives(
    demo_checkpoint: Path,
    demo_artifact: Path,
    ran: Ran,  # noqa: F811
    precision: str,
) -> None:
    with BGEM3Model.load(demo_artifact, "cuda", precision) as model:
        found = model.encode(TEXTS)
    report = compare(found, reference_outputs(load_checkpoint(demo_checkpoint), TEXTS))
    assert report["tokens_equal"]
    for name, bound in TOLERANCES[precision].items():
        assert report[name] <= bound, report
    assert min(report["dense_min_cosine"], report["multivector_min_cosine"]) >= 0.9999
