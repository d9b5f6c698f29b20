"""The encoder graph over our custom CPU operators (runtime/kernels), which run on ONNX Runtime's threads.

Inputs and outputs are those of `bgem3.export.cpu_graph`, with `cu_seqlens` in place of the padded layout's three:
int64 (B + 1,), text i is tokens `cu_seqlens[i]:cu_seqlens[i + 1]`.

Two operators of domain `bgem3` compute most of a layer:

- `Linear` multiplies rows (T, K) by weights (K, N), and adds bias, GELU and residual before it writes the output.
  Weights stay in memory as stored, float16 or int8. For int8 it quantizes the rows itself, with a scale and a zero
  point for each block of 128 inputs of a row; `bgem3.export.cpu_graph` has one scale for the whole row.
- `PackedAttention` lets each query attend to its text's keys among the packed tokens. It needs no padding, mask or
  copies, and stores at most a strip of scores, at any length.

Float32 weights go to ONNX Runtime's own products, which are as fast and keep no second copy of the weights.
"""

import onnx
from onnx import TensorProto

from bgem3.export.cpu_graph import embed_tokens
from bgem3.export.graph import ROW_INPUTS, TOKEN_INPUTS, Graph
from bgem3.export.quantization import parts
from bgem3.export.weights import Weights
from bgem3.runtime.manifest import ModelSpec

INPUTS = {**TOKEN_INPUTS, "cu_seqlens": (TensorProto.INT64, ["texts_and_1"]), **ROW_INPUTS}


def build_native_graph(spec: ModelSpec, weights: Weights) -> onnx.ModelProto:
    """Build the graph of custom operators; parameters are those of `Graph`."""
    graph = Graph(spec, weights)
    states = embed_tokens(graph)
    for layer in range(spec.n_layers):
        states = _layer(graph, f"layer.{layer}", states, is_last=layer == spec.n_layers - 1)
    graph.add_heads(states, graph.linear)
    return graph.model(INPUTS)


def _layer(graph: Graph, name: str, states: str, *, is_last: bool) -> str:
    """Add a post-LayerNorm transformer block: (T, D) to (T, D), or to (R, D) in the last layer."""
    qkv = [_linear(graph, states, part, f"{name}.qkv") for part in parts(f"{name}.qkv")]  # each (T, D)
    context = graph.native("PackedAttention", [*qkv, "cu_seqlens"], n_heads=graph.spec.n_heads)  # (T, D)
    if is_last:
        context, states = (graph.node("Gather", [rows, "state_rows"]) for rows in (context, states))
    attended = _linear(graph, context, f"{name}.attention_output", residual=states)
    states = graph.layer_norm(attended, f"{name}.attention_norm")
    hidden = _linear(graph, states, f"{name}.intermediate", gelu=True)
    transformed = _linear(graph, hidden, f"{name}.output", residual=states)
    return graph.layer_norm(transformed, f"{name}.output_norm")


def _linear(graph: Graph, rows: str, name: str, group: str = "", *, gelu: bool = False, residual: str = "") -> str:
    """Add a projection, with GELU or a residual; ``group`` names its group if that has several projections."""
    smoothed = f"{group or name}.smoothing"
    bias = graph.weight(f"{name}.bias") if f"{name}.bias" in graph.weights else ""
    smoothing = graph.stored(smoothed) if smoothed in graph.weights else ""
    inputs = [rows, graph.stored(f"{name}.weight"), bias, residual]
    if f"{name}.weight.scale" in graph.weights:
        return graph.native("Linear", [*inputs, graph.stored(f"{name}.weight.scale"), smoothing], gelu=int(gelu))
    if smoothing:
        inputs[0] = graph.once("Mul", [rows, smoothing])
    if graph.weights[f"{name}.weight"].data_type == TensorProto.FLOAT16:
        return graph.native("Linear", inputs, gelu=int(gelu))
    product = graph.linear(inputs[0], name)
    if gelu:
        product = graph.node("Gelu", [product], approximate="none")
    return graph.node("Add", [product, residual]) if residual else product
