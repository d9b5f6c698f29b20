"""What the graphs of every device share: how one is put together, and the inputs and outputs common to all."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bgem3.export.weights import WeightsFile
from bgem3.runtime.artifact import OUTPUTS, ModelSpec, Output

NATIVE_DOMAIN = "bgem3"
OPSETS = {"": 20, "com.microsoft": 1}  # 20 is the first with an exact Gelu
IR_VERSION = 9
NORM_FLOOR = 1e-12  # torch.nn.functional.normalize's eps

Values = dict[str, tuple[int, list[Any]]]  # element type and shape by name

TOKEN_INPUTS: Values = {
    "token_ids": (TensorProto.INT64, ["tokens"]),
    "position_ids": (TensorProto.INT64, ["tokens"]),
}

ROW_INPUTS: Values = {
    "state_rows": (TensorProto.INT64, ["states"]),
    "dense_rows": (TensorProto.INT64, ["dense_rows"]),
    "sparse_rows": (TensorProto.INT64, ["sparse_rows"]),
    "multivector_rows": (TensorProto.INT64, ["multivector_rows"]),
}


def outputs_of(spec: ModelSpec) -> Values:
    """Return the outputs of every graph: float32, a row for each row asked for."""
    return {
        "dense": (TensorProto.FLOAT, ["dense_rows", spec.hidden_size]),
        "sparse": (TensorProto.FLOAT, ["sparse_rows"]),
        "multivector": (TensorProto.FLOAT, ["multivector_rows", spec.multivector_size]),
    }


def outputs_in(weights: WeightsFile) -> tuple[Output, ...]:
    """Return the outputs that a weights file has heads for; the dense one needs no tensor."""
    return tuple(name for name in OUTPUTS if name == "dense" or f"{name}.weight" in weights)


class Graph:
    """Collects nodes and initializers under unique names."""

    def __init__(self, weights: WeightsFile) -> None:
        self.weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._made: dict[tuple[str, ...], str] = {}
        self._n_names = 0

    def name(self, kind: str) -> str:
        self._n_names += 1
        return f"{kind}_{self._n_names}"

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or self.name(kind)
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def once(self, kind: str, inputs: list[str]) -> str:
        """Add an operator, or return what the same one with the same inputs gave."""
        key = (kind, *inputs)
        if key not in self._made:
            self._made[key] = self.node(kind, inputs)
        return self._made[key]

    def contrib(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add an operator of ONNX Runtime's own."""
        return self.node(kind, inputs, domain="com.microsoft", **attributes)

    def native(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add an operator of our own (runtime/kernels)."""
        return self.node(kind, inputs, domain=NATIVE_DOMAIN, **attributes)

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        """Add a small array of its own."""
        self._initializers[name] = numpy_helper.from_array(np.array(value, dtype), name)
        return name

    def int64(self, name: str, values: list[int]) -> str:
        return self.constant(name, values, np.int64)

    def stored(self, name: str) -> str:
        """Refer to a tensor in its stored precision."""
        self._initializers[name] = self.weights.initializer(name)
        return name

    def float32(self, value: str) -> str:
        """Turn a value of the weights' precision into float32."""
        return value if self.weights.dtype == np.float32 else self.node("Cast", [value], to=TensorProto.FLOAT)

    def weight(self, name: str) -> str:
        """Refer to a tensor in float32."""
        return self.cast(self.stored(name), name)

    def cast(self, value: str, name: str) -> str:
        """Turn a value of a tensor's stored type, such as the tensor or some of its rows, into float32."""
        is_float32 = self.weights.initializer(name).data_type == TensorProto.FLOAT
        return value if is_float32 else self.node("Cast", [value], to=TensorProto.FLOAT)

    def linear(self, rows: str, name: str) -> str:
        """Multiply by a weight, and add its bias if it has one, in float32."""
        names = [f"{name}.{kind}" for kind in ("weight", "bias") if f"{name}.{kind}" in self.weights]
        return self.node("Gemm", [rows, *(self.weight(tensor) for tensor in names)])

    def layer_norm(self, rows: str, name: str, spec: ModelSpec) -> str:
        inputs = [rows, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node("LayerNormalization", inputs, axis=-1, epsilon=spec.layer_norm_eps)

    def normalise(self, rows: str, output: str) -> str:
        """Scale rows to unit length: ``x / max(‖x‖, 1e-12)``."""
        lengths = self.node("ReduceL2", [rows, self.int64("last_axis", [-1])], keepdims=1)
        floor = self.constant("norm_floor", NORM_FLOOR, np.float32)
        return self.node("Div", [rows, self.node("Max", [lengths, floor])], output)

    def flatten(self, rows: str, output: str) -> None:
        self.node("Reshape", [rows, self.int64("flat", [-1])], output)

    def model(self, inputs: Values, outputs: Values) -> onnx.ModelProto:
        """Return the graph, without the rows and the output of a head that the weights lack."""
        lacking = set(OUTPUTS).difference(outputs_in(self.weights))

        def declared(values: Values) -> list[onnx.ValueInfoProto]:
            kinds = {name: kind for name, kind in values.items() if name.removesuffix("_rows") not in lacking}
            return [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]

        graph = helper.make_graph(
            self._nodes, "bgem3", declared(inputs), declared(outputs), list(self._initializers.values())
        )
        return make_model(graph)


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
