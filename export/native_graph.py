"""The encoder graph over our own CPU operators (runtime/kernels), which ONNX Runtime runs on its threads.

Inputs (T tokens, B texts): `token_ids`, `position_ids`, and the rows of each head as in `bgem3.export.cpu_graph`, and
`cu_seqlens` int64 (B + 1,), text i being tokens `cu_seqlens[i]:cu_seqlens[i + 1]`. Outputs are those of every graph.

Two operators of domain `bgem3` stand for most of a layer:

- `QuantizedLinear`: rows (T, K) are quantized one by one, multiplied by int8 weights (K, N), scaled, and given their
  bias, GELU and residual before they are written once
- `PackedAttention`: queries of a text attend to the text's keys where they lie among the packed tokens: no padding, no
  mask, no copies, and at most a strip of scores in memory at any length

Projections whose weights are not int8 are ONNX Runtime's own products.
"""

import numpy as np
import onnx
from onnx import TensorProto

from bgem3.export.cpu_graph import add_heads, embed_tokens
from bgem3.export.graph import ROW_INPUTS, TOKEN_INPUTS, Graph, outputs_of
from bgem3.export.quantization import parts, row_quantization
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
    A model of about 170 nodes whose initializers lie in the weights file.
    """
    graph = Graph(weights)
    states = embed_tokens(graph, spec)  # (T, D)
    for layer in range(spec.n_layers):
        name = f"layer.{layer}"
        qkv = _linear(graph, states, f"{name}.qkv")  # (T, 3 D)
        context = graph.native("PackedAttention", [qkv, "cu_seqlens"], n_heads=spec.n_heads)  # (T, D)
        if layer == spec.n_layers - 1:
            context, states = (graph.node("Gather", [rows, "state_rows"]) for rows in (context, states))  # (R, D)
        attended = _linear(graph, context, f"{name}.attention_output", residual=states)
        states = graph.layer_norm(attended, f"{name}.attention_norm", spec)
        hidden = _linear(graph, states, f"{name}.intermediate", gelu=True)
        states = graph.layer_norm(
            _linear(graph, hidden, f"{name}.output", residual=states), f"{name}.output_norm", spec
        )
    add_heads(graph, states)
    return graph.model(INPUTS, outputs_of(spec))


def _linear(graph: Graph, rows: str, group: str, *, gelu: bool = False, residual: str = "") -> str:
    """Multiply by a group's weights side by side; add biases, GELU or a residual."""
    smoothing = f"{group}.smoothing" if f"{group}.smoothing" in graph.weights else ""
    names = parts(group)
    if f"{names[0]}.weight.scale" in graph.weights:
        how = row_quantization(group)
        inputs = [
            rows,
            _joined(graph, [graph.stored(f"{name}.weight") for name in names], axis=1),
            _joined(graph, [graph.stored(f"{name}.weight.scale") for name in names], axis=0),
            _bias(graph, names),
            graph.stored(smoothing) if smoothing else "",
            residual,
        ]
        return graph.native(
            "QuantizedLinear",
            inputs,
            zero_point=how.zero_point,
            n_levels=float(how.n_levels),
            least_scale=how.least_scale,
            skewed=int(how.is_of_gelu),
            gelu=int(gelu),
        )
    if smoothing:
        rows = graph.node("Mul", [rows, graph.stored(smoothing)])
    weight = _joined(graph, [graph.weight(f"{name}.weight") for name in names], axis=1)
    product = graph.node("Gemm", [rows, weight, _bias(graph, names)])
    if gelu:
        product = graph.node("Gelu", [product], approximate="none")
    return graph.node("Add", [product, residual]) if residual else product


def _bias(graph: Graph, names: list[str]) -> str:
    """Return the projections' biases side by side, zeros for one that has none."""
    biases = []
    for name in names:
        if f"{name}.bias" in graph.weights:
            biases.append(graph.weight(f"{name}.bias"))
        else:
            n_outputs = graph.stored_shape(f"{name}.weight")[1]
            biases.append(graph.constant(f"zeros_{n_outputs}", np.zeros(n_outputs), np.float32))
    return _joined(graph, biases, axis=0)


def _joined(graph: Graph, values: list[str], axis: int) -> str:
    """Put constants side by side, which ONNX Runtime does once, when the session is made."""
    return values[0] if len(values) == 1 else graph.node("Concat", values, axis=axis)
