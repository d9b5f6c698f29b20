"""The CUDA graph has only operators that ONNX Runtime runs on CUDA, and none that converts a layer's states."""

from collections import Counter
from pathlib import Path

import onnx
import pytest

KERNELS = {  # operators with a CUDA kernel for these types, in ONNX Runtime's table of kernels
    *("Add", "BiasGelu", "Cast", "Concat", "Div", "Gather", "MatMul", "Max", "PackedMultiHeadAttention"),
    *("ReduceL2", "Relu", "Reshape", "SkipLayerNormalization"),
}


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_cuda_graph_has_the_operators_it_was_designed_with(random_artifact: Path, precision: str) -> None:
    model = onnx.load(random_artifact / precision / "cuda.onnx", load_external_data=False)
    n_layers = 3
    counts = Counter(node.op_type for node in model.graph.node)
    assert set(counts) <= KERNELS
    assert counts["SkipLayerNormalization"] == 2 * n_layers + 1
    assert counts["MatMul"] == 4 * n_layers + 2
    assert counts["Cast"] == (5 if precision == "fp16" else 0)  # three heads and two of their biases
    attention = [node for node in model.graph.node if node.op_type == "PackedMultiHeadAttention"]
    assert len(attention) == n_layers
    for node in attention:
        assert list(node.input[4:]) == ["token_offset", "cu_seqlens"]  # flash attention takes no attention bias
