"""The part of onnx.proto that is read at run time, which therefore needs no onnx package.

A .onnx file is one message of Protocol Buffers, whose library ONNX Runtime needs, too.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 27  # bytes of a graph file; weights are in other files, and a graph of 24 layers takes 0.1 MB
SCHEMA = """
Model: graph 7 Graph, training_info 20 Training*, functions 25 Function*
Training: initialization 1 Graph, algorithm 2 Graph
Function: node 7 Node*, attribute_proto 11 Attribute*
Graph: node 1 Node*, initializer 5 Tensor*, input 11 Value*, output 12 Value*, sparse_initializer 15 SparseTensor*
Node: attribute 5 Attribute*
Attribute: name 1 string, i 3 int64, t 5 Tensor, g 6 Graph, tensors 10 Tensor*, graphs 11 Graph*
Attribute: sparse_tensor 22 SparseTensor, sparse_tensors 23 SparseTensor*
SparseTensor: values 1 Tensor, indices 2 Tensor
Tensor: dims 1 int64*, data_type 2 int32, name 8 string, external_data 13 Entry*
Entry: key 1 string, value 2 string
Value: name 1 string, type 2 Type
Type: tensor_type 1 TensorType
TensorType: elem_type 1 int32, shape 2 Shape
Shape: dim 1 Dimension*
Dimension: dim_value 1 int64
"""
"""The messages, each with the names, numbers and types of fields; a star marks a repeated one. Others are skipped."""


def read_model(path: Path) -> Any:
    """Return a graph file's Model message, or raise ValueError if the file is none."""
    # imported here, since it takes 20 ms, which only opening a graph needs
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"it has {size} bytes, more than any graph without its weights")
    try:
        return _model_class().FromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(str(error)) from None


def messages(message: Any, kind: str) -> Iterator[Any]:
    """Yield every message of a kind within a message, to any depth."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if field.message_type.name == kind:
                yield part
            yield from messages(part, kind)


@cache
def _model_class() -> Any:
    """Make the class of Model messages, in proto3, whose strings must be UTF-8."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

    file = descriptor_pb2.FileDescriptorProto(name="onnx_part.proto", package="onnx_part", syntax="proto3")
    described: dict[str, Any] = {}
    for line in SCHEMA.strip().splitlines():
        message, _, fields = line.partition(": ")
        if message not in described:
            described[message] = file.message_type.add(name=message)
        for name, number, kind in map(str.split, fields.split(",")):
            field = described[message].field.add(name=name, number=int(number))
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            if kind[0].isupper():
                field.type, field.type_name = field.TYPE_MESSAGE, f".onnx_part.{kind.removesuffix('*')}"
                continue
            field.type = getattr(field, f"TYPE_{kind.removesuffix('*').upper()}")
            if not kind.endswith("*"):  # a zero that is set stays set, for which proto3 needs a oneof
                field.proto3_optional, field.oneof_index = True, len(described[message].oneof_decl)
                described[message].oneof_decl.add(name=f"_{name}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx_part.Model"))
