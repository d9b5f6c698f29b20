"""The packed-token encoder graph for ONNX Runtime's CPU provider, built operator by operator.

Inputs (T tokens, B texts, S the longest text's tokens), written by `bgem3.runtime.packing`:

| name               | type, shape  | meaning                                                         |
|--------------------|--------------|-----------------------------------------------------------------|
| `token_ids`        | int64 (T,)   | all texts one after another, special tokens included, no padding |
| `position_ids`     | int64 (T,)   | XLM-R's positions                                               |
| `padded_index`     | int32 (B, S) | the token in each slot of the padded layout (any, where padded) |
| `packed_index`     | int32 (T,)   | the slot, in row-major order, of each token                     |
| `key_mask`         | int32 (B, S) | 1 where a slot holds a token, 0 where it is padding             |
| `state_rows`       | int64 (R,)   | tokens that the last layer carries past its attention           |
| `dense_rows`       | int64 (N,)   | rows of those states for the dense head                         |
| `sparse_rows`      | int64 (N,)   | likewise for the sparse head                                    |
| `multivector_rows` | int64 (N,)   | likewise for the multi-vector head                              |

Outputs: `dense` (rows, D), `sparse` (rows,) and `multivector` (rows, M), all float32. A graph exported without a
head has neither its output nor its rows.

Only attention sees texts: linear layers, LayerNorm and GELU work on packed tokens and never on padding.
A head is chosen by its row list: an empty list makes the head's operators work on zero rows, and with
`dense` alone `state_rows` are the CLS tokens, so the last layer's feed-forward block runs on B rows.
Attention over more than 1024 slots takes MultiHeadAttention's flash path, which holds no score matrix, and no mask:
such micro-batches must hold texts of one length. Up to 1024 slots it takes the masked path, padding or not. So a text's
length alone decides how it is computed. Its values are the same bits in any company, without which rounding to int8
would turn the last digit of float32 into a whole step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bgem3.export.graph import ROW_INPUTS, TOKEN_INPUTS, Graph, make_model, outputs_in, outputs_of
from bgem3.export.quantization import LARGEST, SMALLEST_SCALE, ZERO_POINT, parts, zero_point
from bgem3.export.weights import WeightsFile
from bgem3.runtime.artifact import ModelSpec
from bgem3.runtime.cpu_session import LONGEST_MASKED, PROBE_SIZE

INPUTS = {
    **TOKEN_INPUTS,
    "padded_index": (TensorProto.INT32, ["texts", "slots"]),
    "packed_index": (TensorProto.INT32, ["tokens"]),
    "key_mask": (TensorProto.INT32, ["texts", "slots"]),
    **ROW_INPUTS,
}


def build_cpu_graph(spec: ModelSpec, weights: WeightsFile) -> onnx.ModelProto:
    """Build the CPU graph over a weights file that holds the tensors of `bgem3.export.checkpoint`.

    Weights stored as float16 pass through a Cast, which ONNX Runtime folds when the session is made. Arithmetic is
    float32, except for the products whose weights are stored as int8 with scales (`bgem3.export.quantization`).

    Parameters
    ----------
    spec : the model's dimensions
    weights : tensors by name, linear weights as (in, out)

    Returns
    -------
    A model of a few hundred nodes whose initializers lie in the weights file.
    """
    graph = Graph(weights)
    states = embed_tokens(graph, spec)
    graph.node("Shape", ["padded_index"], "n_slots", start=1, end=2)
    graph.node("Greater", ["n_slots", graph.constant("longest_masked", LONGEST_MASKED, np.int64)], "is_long")
    graph.int64("context_shape", [-1, spec.hidden_size])
    for layer in range(spec.n_layers):
        states = _layer(graph, spec, layer, states, is_last=layer == spec.n_layers - 1)
    add_heads(graph, states)
    return graph.model(INPUTS, outputs_of(spec))


def build_probe() -> onnx.ModelProto:
    """Build the product, as the int8 graph has it, that `bgem3.runtime.cpu_session.product_settings` tries."""
    initializers: dict[str, NDArray[Any]] = {
        "weight": np.full((PROBE_SIZE, 16), LARGEST, np.int8),
        "weight_scales": np.ones(16, np.float32),
        "zero_point": np.array(ZERO_POINT, np.uint8),
    }
    inputs = {"rows": (TensorProto.UINT8, [1, PROBE_SIZE]), "scales": (TensorProto.FLOAT, [1, 1])}
    node = helper.make_node(
        "MatMulIntegerToFloat",
        ["rows", "weight", "scales", "weight_scales", "zero_point", ""],
        ["product"],
        domain="com.microsoft",
    )
    values = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
    product = helper.make_tensor_value_info("product", TensorProto.FLOAT, [1, 16])
    constants = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    return make_model(helper.make_graph([node], "probe", values, [product], constants))


def embed_tokens(graph: Graph, spec: ModelSpec) -> str:
    """Add what turns `token_ids` and `position_ids` into the first states (T, D)."""
    words = _rows(graph, "embeddings.word", "token_ids")  # (T, D)
    positions = _rows(graph, "embeddings.position", "position_ids")
    typed = graph.node("Add", [words, graph.weight("embeddings.type")])
    return graph.layer_norm(graph.node("Add", [typed, positions]), "embeddings.norm", spec)


def _rows(graph: Graph, table: str, index: str) -> str:
    """Look rows of a table up, in float32; an int8 table has a scale for each row."""
    rows = graph.cast(graph.node("Gather", [graph.stored(table), index]), table)
    if f"{table}.scale" not in graph.weights:
        return rows
    return graph.node("Mul", [rows, graph.node("Gather", [graph.stored(f"{table}.scale"), index])])


def _layer(graph: Graph, spec: ModelSpec, layer: int, states: str, *, is_last: bool) -> str:
    """Post-LayerNorm transformer block: (T, D) to (T, D), or to (R, D) in the last layer."""
    name, rows = f"layer.{layer}", "token_ids"
    inputs = _prepare(graph, states, f"{name}.qkv", rows)
    slots = [
        graph.node("Gather", [_project(graph, inputs, f"{name}.{part}"), "padded_index"])  # (B, S, D)
        for part in ("query", "key", "value")
    ]
    context = graph.node("Reshape", [_attention(graph, spec, slots), "context_shape"])  # (B*S, D)
    index = "packed_index"
    if is_last:
        rows = "state_rows"
        index = graph.node("Gather", ["packed_index", "state_rows"])
        states = graph.node("Gather", [states, "state_rows"])
    context = graph.node("Gather", [context, index])  # (T, D)
    attended = graph.node("Add", [_linear(graph, context, f"{name}.attention_output", rows), states])
    states = graph.layer_norm(attended, f"{name}.attention_norm", spec)
    hidden = graph.node("Gelu", [_linear(graph, states, f"{name}.intermediate", rows)], approximate="none")
    transformed = graph.node("Add", [_linear(graph, hidden, f"{name}.output", rows), states])
    return graph.layer_norm(transformed, f"{name}.output_norm", spec)


def _linear(graph: Graph, rows: str, group: str, counted: str) -> str:
    """Run the one projection of a group."""
    return _project(graph, _prepare(graph, rows, group, counted), group)


@dataclass(frozen=True)
class _Rows:
    """The input of a group's projections: float32, or uint8 with a scale for each row and a common zero point."""

    values: str
    scale: str = ""
    zero_point: str = ""


def _prepare(graph: Graph, rows: str, group: str, counted: str) -> _Rows:
    """Quantize a group's input, row by row, if its weights are int8; ``counted`` is an input of as many rows."""
    if f"{group}.smoothing" in graph.weights:
        rows = graph.node("Mul", [rows, graph.stored(f"{group}.smoothing")])
    if f"{parts(group)[0]}.weight.scale" not in graph.weights:
        return _Rows(rows)
    axis = graph.int64("last_axis", [-1])
    zero = zero_point(group)
    bounds = [
        graph.node("Div", [graph.node(end, [rows, axis], keepdims=0), graph.constant(f"levels_{n}", n, np.float32)])
        for end, n in (("ReduceMax", 255 - zero), ("ReduceMin", -zero))
    ]
    scale = graph.node("Max", [*bounds, graph.constant("least_scale", SMALLEST_SCALE, np.float32)])  # (T,)
    common = graph.constant(f"zero_point_{zero}", zero, np.uint8)
    zero_points = graph.once("Expand", [common, graph.once("Shape", [counted])])
    quantized = graph.node("QuantizeLinear", [rows, scale, zero_points], axis=0)
    return _Rows(quantized, graph.node("Unsqueeze", [scale, axis]), common)


def _project(graph: Graph, rows: _Rows, name: str) -> str:
    if not rows.scale:
        return graph.linear(rows.values, name)
    inputs = [rows.values, graph.stored(f"{name}.weight"), rows.scale, graph.stored(f"{name}.weight.scale")]
    # The empty input is where ONNX Runtime puts a zero point, should it turn the weight to uint8 (`product_settings`).
    product = graph.contrib("MatMulIntegerToFloat", [*inputs, rows.zero_point, ""])
    if f"{name}.bias" not in graph.weights:
        return product
    return graph.node("Add", [product, graph.weight(f"{name}.bias")])  # the operator adds its own before a row's scale


def _attention(graph: Graph, spec: ModelSpec, slots: list[str]) -> str:
    """Attend within each text, (B, S, D) to (B, S, D); long texts come without padding and take no mask."""
    settings: dict[str, Any] = {
        "domain": "com.microsoft",
        "num_heads": spec.n_heads,
        "mask_filter_value": float(np.finfo(np.float32).min),
    }
    branches = {}
    for branch, inputs in (("then_branch", slots), ("else_branch", [*slots, "", "key_mask"])):
        output = graph.name("MultiHeadAttention")
        node = helper.make_node("MultiHeadAttention", inputs, [output], name=output, **settings)
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["texts", "slots", spec.hidden_size])
        branches[branch] = helper.make_graph([node], output, [], [value])
    return graph.node("If", ["is_long"], **branches)


def add_heads(graph: Graph, states: str) -> None:
    """Add the heads that the weights have on the last states (R, D), each on its own rows of them."""
    outputs = outputs_in(graph.weights)

    def of(name: str) -> str:
        return graph.linear(graph.node("Gather", [states, f"{name}_rows"]), name)

    graph.normalise(graph.node("Gather", [states, "dense_rows"]), "dense")
    if "sparse" in outputs:
        graph.flatten(graph.node("Relu", [of("sparse")]), "sparse")  # (rows, 1) to (rows,)
    if "multivector" in outputs:
        graph.normalise(of("multivector"), "multivector")
