"""The packed-token encoder graph for ONNX Runtime's CPU provider.

`bgem3.runtime.packing` makes its inputs (T tokens, B texts, S tokens of the longest text):

| name               | type, shape  | meaning                                                          |
|--------------------|--------------|------------------------------------------------------------------|
| `token_ids`        | int64 (T,)   | all texts one after another, with special tokens, without padding |
| `position_ids`     | int64 (T,)   | XLM-R's positions                                                |
| `padded_index`     | int32 (B, S) | the token in each slot of the padded layout; any, where padded   |
| `packed_index`     | int32 (T,)   | each token's slot, in row-major order                            |
| `key_mask`         | int32 (B, S) | 1 where a slot holds a token, 0 where it is padding              |
| `state_rows`       | int64 (R,)   | tokens that the last layer carries past its attention            |
| `dense_rows`       | int64 (N,)   | rows of those states for the dense head                          |
| `sparse_rows`      | int64 (N,)   | rows of those states for the sparse head                         |
| `multivector_rows` | int64 (N,)   | rows of those states for the multi-vector head                   |

Its outputs are float32: `dense` (rows, D), `sparse` (rows,) and `multivector` (rows, M).

Only attention uses the padded layout. All other operators work on packed tokens, so they never compute padding.
An empty row list switches a head off: its operators work on zero rows. For `dense` alone, `state_rows` are the CLS
tokens, and the last layer's feed-forward block runs on B rows.

Up to 1024 slots, MultiHeadAttention runs with a mask, even without padding. Above, it runs without a mask on its flash
path, which stores no score matrix; such a micro-batch must hold texts of one length. So a text's length alone decides
how it is computed, and its values are batch-invariant bit by bit. With int8, a difference in the last bit of float32
could become a whole step.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bgem3.export.graph import ROW_INPUTS, TOKEN_INPUTS, Graph, make_model
from bgem3.export.quantization import LARGEST, SMALLEST_SCALE, ZERO_POINT, parts, zero_point
from bgem3.export.weights import Weights
from bgem3.runtime.cpu_session import LONGEST_MASKED, PROBE_SIZE
from bgem3.runtime.manifest import ModelSpec

INPUTS = {
    **TOKEN_INPUTS,
    "padded_index": (TensorProto.INT32, ["texts", "slots"]),
    "packed_index": (TensorProto.INT32, ["tokens"]),
    "key_mask": (TensorProto.INT32, ["texts", "slots"]),
    **ROW_INPUTS,
}


def build_cpu_graph(spec: ModelSpec, weights: Weights) -> onnx.ModelProto:
    """Build the CPU graph; parameters are those of `Graph`.

    Arithmetic is float32, except for products with int8 weights (`bgem3.export.quantization`). ONNX Runtime converts
    float16 weights once, when it opens the session.
    """
    graph = Graph(spec, weights)
    states = embed_tokens(graph)
    graph.node("Shape", ["padded_index"], "n_slots", start=1, end=2)
    graph.node("Greater", ["n_slots", graph.constant("longest_masked", LONGEST_MASKED)], "is_long")
    graph.constant("context_shape", [-1, spec.hidden_size])
    for layer in range(spec.n_layers):
        states = _layer(graph, f"layer.{layer}", states, is_last=layer == spec.n_layers - 1)
    graph.add_heads(states, graph.linear)
    return graph.model(INPUTS)


def build_probe() -> onnx.ModelProto:
    """Build one product of the int8 graph, with which the runtime tests whether this CPU's products are exact."""
    inputs = {"rows": (TensorProto.UINT8, [1, PROBE_SIZE]), "scales": (TensorProto.FLOAT, [1, 1])}
    constants: dict[str, NDArray[Any]] = {
        "weight": np.full((PROBE_SIZE, 16), LARGEST, np.int8),
        "weight_scales": np.ones(16, np.float32),
        "zero_point": np.array(ZERO_POINT, np.uint8),
    }
    names = ["rows", "weight", "scales", "weight_scales", "zero_point", ""]
    node = helper.make_node("MatMulIntegerToFloat", names, ["product"], domain="com.microsoft")
    values = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
    product = helper.make_tensor_value_info("product", TensorProto.FLOAT, [1, 16])
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return make_model(helper.make_graph([node], "probe", values, [product], initializers))


def embed_tokens(graph: Graph) -> str:
    """Add the embeddings of `token_ids` and `position_ids`, and return the first states (T, D)."""
    words = _rows(graph, "embeddings.word", "token_ids")  # (T, D)
    positions = _rows(graph, "embeddings.position", "position_ids")
    typed = graph.node("Add", [words, graph.weight("embeddings.type")])
    return graph.layer_norm(graph.node("Add", [typed, positions]), "embeddings.norm")


def _rows(graph: Graph, table: str, index: str) -> str:
    """Look up rows of a table in float32; an int8 table has a scale for each row."""
    rows = graph.cast(graph.node("Gather", [graph.stored(table), index]), table)
    if f"{table}.scale" not in graph.weights:
        return rows
    return graph.node("Mul", [rows, graph.node("Gather", [graph.stored(f"{table}.scale"), index])])


def _layer(graph: Graph, name: str, states: str, *, is_last: bool) -> str:
    """Add a post-LayerNorm transformer block: (T, D) to (T, D), or to (R, D) in the last layer."""
    rows = "token_ids"
    inputs = _prepare(graph, states, f"{name}.qkv", rows)
    slots = [
        graph.node("Gather", [_project(graph, inputs, part), "padded_index"])  # (B, S, D)
        for part in parts(f"{name}.qkv")
    ]
    context = graph.node("Reshape", [_attention(graph, slots), "context_shape"])  # (B*S, D)
    index = "packed_index"
    if is_last:
        rows = "state_rows"
        index = graph.node("Gather", ["packed_index", "state_rows"])
        states = graph.node("Gather", [states, "state_rows"])
    context = graph.node("Gather", [context, index])  # (T, D)
    attended = graph.node("Add", [_linear(graph, context, f"{name}.attention_output", rows), states])
    states = graph.layer_norm(attended, f"{name}.attention_norm")
    hidden = graph.node("Gelu", [_linear(graph, states, f"{name}.intermediate", rows)], approximate="none")
    transformed = graph.node("Add", [_linear(graph, hidden, f"{name}.output", rows), states])
    return graph.layer_norm(transformed, f"{name}.output_norm")


def _linear(graph: Graph, rows: str, group: str, counted: str) -> str:
    """Add the projection of a group that has only one."""
    return _project(graph, _prepare(graph, rows, group, counted), group)


def _prepare(graph: Graph, rows: str, group: str, counted: str) -> list[str]:
    """Return a group's input: float32 rows alone, or uint8 rows, their scales and their common zero point.

    ``counted`` names a graph input that has the same number of rows.
    """
    if f"{group}.smoothing" in graph.weights:
        rows = graph.node("Mul", [rows, graph.stored(f"{group}.smoothing")])
    if f"{parts(group)[0]}.weight.scale" not in graph.weights:
        return [rows]
    axis = graph.constant("last_axis", [-1])
    zero = zero_point(group)
    bounds = [
        graph.node("Div", [graph.node(end, [rows, axis], keepdims=0), graph.constant(f"levels_{n}", n, np.float32)])
        for end, n in (("ReduceMax", 255 - zero), ("ReduceMin", -zero))
    ]
    scale = graph.node("Max", [*bounds, graph.constant("least_scale", SMALLEST_SCALE, np.float32)])  # (T,)
    common = graph.constant(f"zero_point_{zero}", zero, np.uint8)
    zero_points = graph.once("Expand", [common, graph.once("Shape", [counted])])
    quantized = graph.node("QuantizeLinear", [rows, scale, zero_points], axis=0)
    return [quantized, graph.node("Unsqueeze", [scale, axis]), common]


def _project(graph: Graph, prepared: list[str], name: str) -> str:
    """Multiply by a weight and add its bias, if it has one."""
    if len(prepared) == 1:
        return graph.linear(prepared[0], name)
    rows, scale, zero = prepared
    # ONNX Runtime puts a zero point into the empty input if it turns the weight to uint8.
    inputs = [rows, graph.stored(f"{name}.weight"), scale, graph.stored(f"{name}.weight.scale"), zero, ""]
    product = graph.contrib("MatMulIntegerToFloat", inputs)
    if f"{name}.bias" not in graph.weights:
        return product
    return graph.node("Add", [product, graph.weight(f"{name}.bias")])  # the operator would scale its own bias


def _attention(graph: Graph, slots: list[str]) -> str:
    """Add attention within each text, (B, S, D) to (B, S, D), with a mask unless the texts are long."""
    settings: dict[str, Any] = {
        "domain": "com.microsoft",
        "num_heads": graph.spec.n_heads,
        "mask_filter_value": float(np.finfo(np.float32).min),
    }
    branches = {}
    for branch, inputs in (("then_branch", slots), ("else_branch", [*slots, "", "key_mask"])):
        output = graph.name("MultiHeadAttention")
        node = helper.make_node("MultiHeadAttention", inputs, [output], name=output, **settings)
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["texts", "slots", graph.spec.hidden_size])
        branches[branch] = helper.make_graph([node], output, [], [value])
    return graph.node("If", ["is_long"], **branches)
