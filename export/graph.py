"""The parts that every graph shares: its construction, inputs, heads and outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bgem3.export.weights import Weights
from bgem3.runtime.manifest import OUTPUTS, ModelSpec

NATIVE_DOMAIN = "bgem3"
OPSETS = {"": 20, "com.microsoft": 1}  # 20 is the first with an exact Gelu
IR_VERSION = 9  # the one that belongs to opset 20
NORM_FLOOR = 1e-12  # least divisor of a vector, as in torch.nn.functional.normalize

Values = dict[str, tuple[int, list[Any]]]
"""Element type and shape of each input or output."""

TOKEN_INPUTS: Values = {
    "token_ids": (TensorProto.INT64, ["tokens"]),
    "position_ids": (TensorProto.INT64, ["tokens"]),
}
ROW_INPUTS: Values = {
    "state_rows": (TensorProto.INT64, ["states"]),
    **{f"{output}_rows": (TensorProto.INT64, [f"{output}_rows"]) for output in OUTPUTS},
}


class Graph:
    """A graph under construction: nodes and initializers under unique names.

    ``weights`` are the written tensors of `bgem3.export.weights.encoder_tensors`. A graph without a head lacks that
    head's rows and output.
    """

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self.spec = spec
        self.weights = weights
        self.outputs = tuple(name for name in OUTPUTS if name == "dense" or f"{name}.weight" in weights)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._made: dict[tuple[str, ...], str] = {}
        self._n_names = 0

    def name(self, kind: str) -> str:
        """Return a new name for a node."""
        self._n_names += 1
        return f"{kind}_{self._n_names}"

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add an operator and return its output's name."""
        output = output or self.name(kind)
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def once(self, kind: str, inputs: list[str]) -> str:
        """Add an operator, unless the graph has it with the same inputs already."""
        key = (kind, *inputs)
        if key not in self._made:
            self._made[key] = self.node(kind, inputs)
        return self._made[key]

    def contrib(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add one of ONNX Runtime's contrib operators."""
        return self.node(kind, inputs, domain="com.microsoft", **attributes)

    def native(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add one of our custom operators (runtime/kernels)."""
        return self.node(kind, inputs, domain=NATIVE_DOMAIN, **attributes)

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """Add a small array, which the graph's file stores."""
        self._initializers[name] = numpy_helper.from_array(np.array(value, dtype), name)
        return name

    def stored(self, name: str) -> str:
        """Refer to a tensor in its stored precision."""
        self._initializers[name] = self.weights[name]
        return name

    def weight(self, name: str) -> str:
        """Refer to a tensor in float32."""
        return self.cast(self.stored(name), name)

    def cast(self, value: str, name: str) -> str:
        """Convert a value of a tensor's stored type to float32."""
        is_float32 = self.weights[name].data_type == TensorProto.FLOAT
        return value if is_float32 else self.node("Cast", [value], to=TensorProto.FLOAT)

    def linear(self, rows: str, name: str) -> str:
        """Multiply by a weight and add a bias, in float32; leave out a tensor that does not exist."""
        names = [f"{name}.{kind}" for kind in ("weight", "bias") if f"{name}.{kind}" in self.weights]
        return self.node("Gemm", [rows, *(self.weight(tensor) for tensor in names)]) if names else rows

    def layer_norm(self, rows: str, name: str) -> str:
        """Apply a LayerNorm in float32."""
        inputs = [rows, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node("LayerNormalization", inputs, axis=-1, epsilon=self.spec.layer_norm_eps)

    def normalize(self, rows: str, output: str) -> None:
        """Scale rows to unit length: ``x / max(‖x‖, 1e-12)``."""
        lengths = self.node("ReduceL2", [rows, self.constant("last_axis", [-1])], keepdims=1)
        floor = self.constant("norm_floor", NORM_FLOOR, np.float32)
        self.node("Div", [rows, self.node("Max", [lengths, floor])], output)

    def add_heads(self, states: str, linear: Callable[[str, str], str]) -> None:
        """Add the heads, each on its own rows of the last states (R, D).

        ``linear(rows, name)`` adds the linear layer of an output's name, if it has one, and returns float32 rows.
        """
        for output in self.outputs:
            rows = linear(self.node("Gather", [states, f"{output}_rows"]), output)
            if output == "sparse":
                weights = self.node("Relu", [rows])  # (rows, 1)
                self.node("Reshape", [weights, self.constant("flat", [-1])], output)
            else:
                self.normalize(rows, output)

    def model(self, inputs: Values) -> onnx.ModelProto:
        """Return the graph as a model; its outputs are float32, with a row for each row asked for."""
        outputs: Values = {
            "dense": (TensorProto.FLOAT, ["dense_rows", self.spec.hidden_size]),
            "sparse": (TensorProto.FLOAT, ["sparse_rows"]),
            "multivector": (TensorProto.FLOAT, ["multivector_rows", self.spec.multivector_size]),
        }
        lacking = set(OUTPUTS).difference(self.outputs)

        def declared(values: Values) -> list[onnx.ValueInfoProto]:
            kinds = {name: kind for name, kind in values.items() if name.removesuffix("_rows") not in lacking}
            return [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]

        initializers = list(self._initializers.values())
        return make_model(helper.make_graph(self._nodes, "bgem3", declared(inputs), declared(outputs), initializers))


def make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Wrap a graph as a model with the operator sets that it uses."""
    is_native = any(node.domain == NATIVE_DOMAIN for node in graph.node)
    versions = OPSETS | ({NATIVE_DOMAIN: 1} if is_native else {})
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="bgem3")


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph beside its weights, and check it."""
    onnx.save(model, path)
    onnx.checker.check_model(path)
