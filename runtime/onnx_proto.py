"""The part of onnx.proto that is read at run time.

A .onnx file is one message of Protocol Buffers. It is read here, since importing a library for it would take longer
than all else that loading a small model does.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 27  # bytes of a graph file; weights are in other files, and a graph of 24 layers takes 0.1 MB
NUMBER, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # wire types, which say how a field is stored
MESSAGES = """
Model: graph 7 Graph, training_info 20 Training, functions 25 Function
Training: initialization 1 Graph, algorithm 2 Graph
Function: node 7 Node, attribute_proto 11 Attribute
Graph: node 1 Node, initializer 5 Tensor, input 11 Value, output 12 Value, sparse_initializer 15 SparseTensor
Node: attribute 5 Attribute
Attribute: name 1 str, i 3 int, t 5 Tensor, g 6 Graph, tensors 10 Tensor, graphs 11 Graph,
    sparse_tensor 22 SparseTensor, sparse_tensors 23 SparseTensor
SparseTensor: values 1 Tensor, indices 2 Tensor
Tensor: dims 1 int, data_type 2 int, name 8 str, external_data 13 Entry
Entry: key 1 str, value 2 str
Value: name 1 str, type 2 Type
Type: tensor_type 1 TensorType
TensorType: elem_type 1 int, shape 2 Shape
Shape: dim 1 Dimension
Dimension: dim_value 1 int
"""
"""The messages, with the name, number and type of each field that is read. Others are kept as they are."""
SCHEMA = {
    kind: {int(number): (name, type_) for name, number, type_ in map(str.split, fields.split(","))}
    for kind, fields in (message.split(": ") for message in re.split(r"\n(?=\S)", MESSAGES.strip()))
}


@dataclass
class Message:
    """A message: its kind, and the name, number, wire type and value of each field, in the file's order."""

    kind: str
    fields: list[tuple[str, int, int, Any]]

    def values(self, *path: str) -> list[Any]:
        """Return all values at a path of field names. A field that is repeated has the values of all its places."""
        found = [value for name, _, _, value in self.fields if name == path[0]]
        return [value for message in found for value in message.values(*path[1:])] if path[1:] else found

    def last(self, name: str, default: Any) -> Any:
        """Return the last value of a field, which is the one that counts for a field that is not repeated."""
        return (self.values(name) or [default])[-1]

    def replace(self, name: str, value: str) -> None:
        """Give a field another value."""
        self.fields = [(*field[:3], value if field[0] == name else field[3]) for field in self.fields]

    def encode(self) -> bytes:
        """Return the message as a file holds it."""
        parts = []
        for _, number, wire_type, value in self.fields:
            parts.append(_encode_number(number << 3 | wire_type))
            if wire_type == NUMBER:
                parts.append(_encode_number(value))
                continue
            content = value if isinstance(value, bytes) else value.encode()
            parts += [_encode_number(len(content)), content] if wire_type == BYTES else [content]
        return b"".join(parts)


def read_messages(path: Path) -> list[Message]:
    """Return every message of a graph file, the Model last, or raise ValueError if the file is none."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"it has {size} bytes, more than any graph without its weights")
    found: list[Message] = []
    try:
        _decode(path.read_bytes(), "Model", found)
    except RecursionError:
        raise ValueError("its messages are too deep") from None
    return found


def _decode(data: bytes, kind: str, found: list[Message]) -> Message:
    """Return a message, and add it and those in it to the messages found."""
    fields: list[tuple[str, int, int, Any]] = []
    known, place = SCHEMA[kind], 0
    while place < len(data):
        key, place = (data[place], place + 1) if data[place] < 0x80 else _read_number(data, place)
        number, wire_type = key >> 3, key & 7
        name, type_ = known.get(number, ("", ""))
        if wire_type == NUMBER:
            value, place = _read_number(data, place)
            fields.append((name if type_ == "int" else "", number, wire_type, value))
            continue
        if wire_type == BYTES:
            size, place = _read_number(data, place)
        elif wire_type in (EIGHT_BYTES, FOUR_BYTES):
            size, name, type_ = (8 if wire_type == EIGHT_BYTES else 4), "", ""
        else:
            raise ValueError(f"it has the unknown wire type {wire_type}")
        content, place = data[place : place + size], place + size
        if place > len(data):
            raise ValueError("it ends within a field")
        if type_ == "int":  # a list of numbers
            start = 0
            while start < size:
                value, start = _read_number(content, start)
                fields.append((name, number, NUMBER, value))
        else:
            decoded = content.decode() if type_ == "str" else _decode(content, type_, found) if type_ else content
            fields.append((name, number, wire_type, decoded))
    found.append(Message(kind, fields))
    return found[-1]


def _read_number(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at a place, seven bits a byte from the lowest, and the place after it."""
    number = shift = 0
    for byte in data[place : place + 10]:
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7
    raise ValueError("it has a number without an end")


def _encode_number(number: int) -> bytes:
    content = bytearray()
    while number >= 0x80:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*content, number])
