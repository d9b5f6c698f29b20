"""The packed-token encoder graph for ONNX Runtime's CUDA provider, built operator by operator.

Inputs (T tokens, B texts, S the longest text's tokens), written by `bgem3.runtime.packing`:

| name               | type, shape  | meaning                                                          |
|--------------------|--------------|------------------------------------------------------------------|
| `token_ids`        | int64 (T,)   | all texts one after another, special tokens included, no padding |
| `position_ids`     | int64 (T,)   | XLM-R's positions                                                |
| `cu_seqlens`       | int32 (B+1,) | text i is tokens `cu_seqlens[i]:cu_seqlens[i + 1]`               |
| `token_offset`     | int32 (B, S) | slots, row-major, of the padded layout: tokens' first, then padding's |
| `..._rows`         | int64        | as in `bgem3.export.cpu_graph`, except that none may be empty    |

Outputs: `dense` (rows, D), `sparse` (rows,) and `multivector` (rows, M), all float32.

The graph computes in the stored precision. In float16 the kernels accumulate in float32 where digits would be lost:
products (cuBLAS), softmax (flash attention) and, in the provider's strict mode, SkipLayerNormalization's statistics.
The heads add their biases and take lengths in float32.

Eight nodes a layer, and nine kernels; each bias is part of one of them:

- One product for query, key and value. PackedMultiHeadAttention takes them side by side head by head, (T, N, 3, H),
  so the three stored weights are joined in that order; ONNX Runtime does it once, when the session is made.
- PackedMultiHeadAttention sees text limits in `cu_seqlens` and takes flash attention, at every length if the
  session's `sdpa_kernel` option is set (by default, only from 513 tokens for this form of its input).
- SkipLayerNormalization adds the residual and the bias of the product before it; BiasGelu likewise.

Nothing in it needs the host: no shapes are computed and no branch is taken, so that one graph can be captured.
"""

import onnx
from onnx import TensorProto

from bgem3.export.graph import ROW_INPUTS, TOKEN_INPUTS, Graph, outputs_in, outputs_of
from bgem3.export.weights import WeightsFile
from bgem3.runtime.artifact import ModelSpec

INPUTS = {
    **TOKEN_INPUTS,
    "cu_seqlens": (TensorProto.INT32, ["texts + 1"]),
    "token_offset": (TensorProto.INT32, ["texts", "slots"]),
    **ROW_INPUTS,
}


def build_cuda_graph(spec: ModelSpec, weights: WeightsFile) -> onnx.ModelProto:
    """Build the CUDA graph over a weights file that holds the tensors of `bgem3.export.checkpoint`.

    Parameters
    ----------
    spec : the model's dimensions
    weights : tensors by name, linear weights as (in, out), shared with the CPU graph

    Returns
    -------
    A model of a few hundred nodes whose initializers lie in the weights file.
    """
    graph = Graph(weights)
    states = _embeddings(graph, spec)
    for layer in range(spec.n_layers):
        states = _layer(graph, spec, layer, states, is_last=layer == spec.n_layers - 1)
    _heads(graph, states)
    return graph.model(INPUTS, outputs_of(spec))


def _embeddings(graph: Graph, spec: ModelSpec) -> str:
    words = graph.node("Gather", [graph.stored("embeddings.word"), "token_ids"])  # (T, D)
    positions = graph.node("Gather", [graph.stored("embeddings.position"), "position_ids"])
    return _skip_layer_norm(graph, spec, [words, positions], "embeddings.norm", bias="embeddings.type")


def _layer(graph: Graph, spec: ModelSpec, layer: int, states: str, *, is_last: bool) -> str:
    """Post-LayerNorm transformer block: (T, D) to (T, D), or to (R, D) in the last layer."""
    name = f"layer.{layer}"
    context = _attention(graph, spec, name, states)
    if is_last:
        context, states = (graph.node("Gather", [rows, "state_rows"]) for rows in (context, states))
    attended = _product(graph, context, f"{name}.attention_output")
    bias = f"{name}.attention_output.bias"
    states = _skip_layer_norm(graph, spec, [attended, states], f"{name}.attention_norm", bias=bias)
    hidden = _product(graph, states, f"{name}.intermediate")  # (T, F)
    hidden = graph.contrib("BiasGelu", [hidden, graph.stored(f"{name}.intermediate.bias")])
    transformed = _product(graph, hidden, f"{name}.output")
    bias = f"{name}.output.bias"
    return _skip_layer_norm(graph, spec, [transformed, states], f"{name}.output_norm", bias=bias)


def _attention(graph: Graph, spec: ModelSpec, name: str, states: str) -> str:
    """Attend within each text, (T, D) to (T, D)."""
    width, n_heads = spec.hidden_size, spec.n_heads
    parts = [f"{name}.{part}" for part in ("query", "key", "value")]
    by_head = graph.int64("weight_by_head", [width, n_heads, 1, width // n_heads])
    weights = [graph.node("Reshape", [graph.stored(f"{part}.weight"), by_head]) for part in parts]
    joined = graph.node("Concat", weights, axis=2)  # (D, N, 3, H)
    weight = graph.node("Reshape", [joined, graph.int64("joined_weight", [width, 3 * width])])
    bias = graph.node("Concat", [graph.stored(f"{part}.bias") for part in parts], axis=0)
    shape = graph.int64("joined_heads", [-1, n_heads, 3, width // n_heads])
    joined = graph.node("Reshape", [graph.node("MatMul", [states, weight]), shape])  # (T, N, 3, H)
    inputs = [joined, "", "", bias, "token_offset", "cu_seqlens"]
    return graph.contrib("PackedMultiHeadAttention", inputs, num_heads=n_heads)


def _heads(graph: Graph, states: str) -> None:
    outputs = outputs_in(graph.weights)

    def of(name: str) -> str:
        product = _product(graph, graph.node("Gather", [states, f"{name}_rows"]), name)
        return graph.node("Add", [graph.float32(product), graph.weight(f"{name}.bias")])

    graph.normalise(graph.float32(graph.node("Gather", [states, "dense_rows"])), "dense")
    if "sparse" in outputs:
        graph.flatten(graph.node("Relu", [of("sparse")]), "sparse")  # (rows, 1) to (rows,)
    if "multivector" in outputs:
        graph.normalise(of("multivector"), "multivector")


def _product(graph: Graph, rows: str, name: str) -> str:
    """Multiply by a weight without its bias, which the next kernel adds."""
    return graph.node("MatMul", [rows, graph.stored(f"{name}.weight")])


def _skip_layer_norm(graph: Graph, spec: ModelSpec, terms: list[str], name: str, *, bias: str) -> str:
    """Normalise the sum of two terms (T, D) and a bias (D,)."""
    inputs = [*terms, graph.stored(f"{name}.weight"), graph.stored(f"{name}.bias"), graph.stored(bias)]
    return graph.contrib("SkipLayerNormalization", inputs, epsilon=spec.layer_norm_eps)
