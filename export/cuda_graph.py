"""The packed-token encoder graph for ONNX Runtime's CUDA provider.

Inputs and outputs are those of `bgem3.export.cpu_graph`, except that no row list may be empty, and that two inputs
replace the padded layout's three:

- `cu_seqlens`, int32 (B + 1,): text i is tokens `cu_seqlens[i]:cu_seqlens[i + 1]`
- `token_offset`, int32 (B, S): the slots of the padded layout in row-major order, tokens' first, then padding's

The graph computes in the stored precision. In float16, three kinds of kernel accumulate in float32: products (cuBLAS),
softmax (flash attention) and, in the provider's strict mode, SkipLayerNormalization's statistics. The heads add their
biases and take lengths in float32.

A layer has eight nodes and nine kernels, and each bias is part of one of them:

- One product computes query, key and value. PackedMultiHeadAttention takes them side by side for each head,
  (T, N, 3, H), so the graph joins the three weights in that order, once, when ONNX Runtime opens the session.
- PackedMultiHeadAttention takes flash attention at every length if the session's `sdpa_kernel` option is set. Its
  default for inputs of this form is flash attention from 513 tokens.
- SkipLayerNormalization adds the residual and the bias of the product before it. BiasGelu adds the bias, too.

No node needs the host, computes a shape or takes a branch, so a CUDA graph can capture the whole run.
"""

import onnx
from onnx import TensorProto

from bgem3.export.graph import ROW_INPUTS, TOKEN_INPUTS, Graph
from bgem3.export.quantization import parts
from bgem3.export.weights import Weights
from bgem3.runtime.manifest import ModelSpec

INPUTS = {
    **TOKEN_INPUTS,
    "cu_seqlens": (TensorProto.INT32, ["texts + 1"]),
    "token_offset": (TensorProto.INT32, ["texts", "slots"]),
    **ROW_INPUTS,
}


def build_cuda_graph(spec: ModelSpec, weights: Weights) -> onnx.ModelProto:
    """Build the CUDA graph; parameters are those of `Graph`."""
    graph = Graph(spec, weights)
    words = graph.node("Gather", [graph.stored("embeddings.word"), "token_ids"])  # (T, D)
    positions = graph.node("Gather", [graph.stored("embeddings.position"), "position_ids"])
    states = _skip_layer_norm(graph, [words, positions], "embeddings.norm", bias="embeddings.type")
    for layer in range(spec.n_layers):
        states = _layer(graph, f"layer.{layer}", states, is_last=layer == spec.n_layers - 1)
    graph.add_heads(states, lambda rows, name: _head(graph, rows, name))
    return graph.model(INPUTS)


def _layer(graph: Graph, name: str, states: str, *, is_last: bool) -> str:
    """Add a post-LayerNorm transformer block: (T, D) to (T, D), or to (R, D) in the last layer."""
    context = _attention(graph, name, states)
    if is_last:
        context, states = (graph.node("Gather", [rows, "state_rows"]) for rows in (context, states))
    attended = _product(graph, context, f"{name}.attention_output")
    bias = f"{name}.attention_output.bias"
    states = _skip_layer_norm(graph, [attended, states], f"{name}.attention_norm", bias=bias)
    hidden = _product(graph, states, f"{name}.intermediate")  # (T, F)
    hidden = graph.contrib("BiasGelu", [hidden, graph.stored(f"{name}.intermediate.bias")])
    transformed = _product(graph, hidden, f"{name}.output")
    return _skip_layer_norm(graph, [transformed, states], f"{name}.output_norm", bias=f"{name}.output.bias")


def _attention(graph: Graph, name: str, states: str) -> str:
    """Add attention within each text, (T, D) to (T, D)."""
    width, n_heads = graph.spec.hidden_size, graph.spec.n_heads
    projections = parts(f"{name}.qkv")
    by_head = graph.constant("weight_by_head", [width, n_heads, 1, width // n_heads])
    weights = [graph.node("Reshape", [graph.stored(f"{part}.weight"), by_head]) for part in projections]
    joined = graph.node("Concat", weights, axis=2)  # (D, N, 3, H)
    weight = graph.node("Reshape", [joined, graph.constant("joined_weight", [width, 3 * width])])
    bias = graph.node("Concat", [graph.stored(f"{part}.bias") for part in projections], axis=0)
    shape = graph.constant("joined_heads", [-1, n_heads, 3, width // n_heads])
    joined = graph.node("Reshape", [graph.node("MatMul", [states, weight]), shape])  # (T, N, 3, H)
    inputs = [joined, "", "", bias, "token_offset", "cu_seqlens"]
    return graph.contrib("PackedMultiHeadAttention", inputs, num_heads=n_heads)


def _head(graph: Graph, rows: str, name: str) -> str:
    """Add a head's linear layer, if it has one, and return its rows in float32."""
    is_linear = f"{name}.weight" in graph.weights
    product = graph.cast(_product(graph, rows, name) if is_linear else rows, "embeddings.word")  # the precision of all
    return graph.node("Add", [product, graph.weight(f"{name}.bias")]) if is_linear else product


def _product(graph: Graph, rows: str, name: str) -> str:
    """Multiply by a weight; the next node adds the bias."""
    return graph.node("MatMul", [rows, graph.stored(f"{name}.weight")])


def _skip_layer_norm(graph: Graph, terms: list[str], name: str, *, bias: str) -> str:
    """Add two terms (T, D) and a bias (D,), and apply a LayerNorm to the sum."""
    inputs = [*terms, graph.stored(f"{name}.weight"), graph.stored(f"{name}.bias"), graph.stored(bias)]
    return graph.contrib("SkipLayerNormalization", inputs, epsilon=graph.spec.layer_norm_eps)
