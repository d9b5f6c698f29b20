"""The encoder graph over our own CPU operators (runtime/kernels), which ONNX Runtime runs on its threads.

Inputs (T tokens, B texts): `token_ids`, `position_ids`, and the rows of each head as in `bgem3.export.cpu_graph`, and
`cu_seqlens` int64 (B + 1,), text i being tokens `cu_seqlens[i]:cu_seqlens[i + 1]`. Outputs are those of every graph.

Two operators of domain `bgem3` stand for most of a layer:

- `Linear` multiplies rows (T, K) by weights (K, N) and adds bias, GELU and residual before the output is written once.
  Weights stay in memory as they are stored, float16 or int8; for int8, rows are quantized on the way in, each 128
  inputs of a row with a scale and a zero point of their own, where `bgem3.export.cpu_graph` has one scale for the row
- `PackedAttention` lets queries of a text attend to the text's keys where they lie among the packed tokens: no padding,
  no mask, no copies, and at most a strip of scores in memory at any length

Float32 weights are left to ONNX Runtime's products, which are as fast as ours and keep no second copy.
"""

import numpy as np
import onnx
from onnx import TensorProto

from bgem3.export.cpu_graph import add_heads, embed_tokens
from bgem3.export.graph import ROW_INPUTS, TOKEN_INPUTS, Graph, outputs_of
from bgem3.export.quantization import parts
from bgem3.export.weights import WeightsFile
from bgem3.runtime.artifact import ModelSpec

INPUTS = {**TOKEN_INPUTS, "cu_seqlens": (TensorProto.INT64, ["texts_and_1"]), **ROW_INPUTS}


def build_native_graph(spec: ModelSpec, weights: WeightsFile) -> onnx.ModelProto:
    """Build the graph over a weights file that holds the tensors of `bgem3.export.checkpoint`.

    Parameters
    ----------
    spec : the model's dimensions
    weights : tensors by name, linear weights as (in, out)

    Returns
    -------
    A model of about 240 nodes, for 24 layers of int8, whose initializers lie in the weights file.
    """
    graph = Graph(weights)
    states = embed_tokens(graph, spec)  # (T, D)
    for layer in range(spec.n_layers):
        name = f"layer.{layer}"
        group = f"{name}.qkv"
        qkv = [_linear(graph, states, part, group) for part in parts(group)]  # each (T, D)
        context = graph.native("PackedAttention", [*qkv, "cu_seqlens"], n_heads=spec.n_heads)  # (T, D)
        if layer == spec.n_layers - 1:
            context, states = (graph.node("Gather", [rows, "state_rows"]) for rows in (context, states))  # (R, D)
        group = f"{name}.attention_output"
        attended = _linear(graph, context, group, group, residual=states)
        states = graph.layer_norm(attended, f"{name}.attention_norm", spec)
        group = f"{name}.intermediate"
        hidden = _linear(graph, states, group, group, gelu=True)
        group = f"{name}.output"
        transformed = _linear(graph, hidden, group, group, residual=states)
        states = graph.layer_norm(transformed, f"{name}.output_norm", spec)
    add_heads(graph, states)
    return graph.model(INPUTS, outputs_of(spec))


def _linear(graph: Graph, rows: str, name: str, group: str, *, gelu: bool = False, residual: str = "") -> str:
    """Multiply by one of a group's weights; add its bias if it has one, and GELU or a residual."""
    bias = graph.weight(f"{name}.bias") if f"{name}.bias" in graph.weights else ""
    smoothing = graph.stored(f"{group}.smoothing") if f"{group}.smoothing" in graph.weights else ""
    inputs = [rows, graph.stored(f"{name}.weight"), bias, residual]
    if f"{name}.weight.scale" not in graph.weights:
        if smoothing:
            inputs[0] = graph.once("Mul", [rows, smoothing])
        if graph.weights.dtype == np.float16:
            return graph.native("Linear", inputs, gelu=int(gelu))
        product = graph.linear(inputs[0], name)
        if gelu:
            product = graph.node("Gelu", [product], approximate="none")
        return graph.node("Add", [product, residual]) if residual else product
    return graph.native("Linear", [*inputs, graph.stored(f"{name}.weight.scale"), smoothing], gelu=int(gelu))
