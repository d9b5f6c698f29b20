"""The part of onnx.proto that is read at run time.

A .onnx file is one message of Protocol Buffers. It is read here, since importing a library for it would take longer
than all else that loading a small model does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 27  # bytes of a graph file; weights are in other files, and a graph of 24 layers takes 0.1 MB
NUMBER, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # wire types, which say how a field is stored
SCHEMA: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {7: ("graph", "Graph"), 20: ("training_info", "Training"), 25: ("functions", "Function")},
    "Training": {1: ("initialization", "Graph"), 2: ("algorithm", "Graph")},
    "Function": {7: ("node", "Node"), 11: ("attribute_proto", "Attribute")},
    "Graph": {
        1: ("node", "Node"),
        5: ("initializer", "Tensor"),
        11: ("input", "Value"),
        12: ("output", "Value"),
        15: ("sparse_initializer", "SparseTensor"),
    },
    "Node": {5: ("attribute", "Attribute")},
    "Attribute": {
        1: ("name", "str"),
        3: ("i", "int"),
        5: ("t", "Tensor"),
        6: ("g", "Graph"),
        10: ("tensors", "Tensor"),
        11: ("graphs", "Graph"),
        22: ("sparse_tensor", "SparseTensor"),
        23: ("sparse_tensors", "SparseTensor"),
    },
    "SparseTensor": {1: ("values", "Tensor"), 2: ("indices", "Tensor")},
    "Tensor": {1: ("dims", "int"), 2: ("data_type", "int"), 8: ("name", "str"), 13: ("external_data", "Entry")},
    "Entry": {1: ("key", "str"), 2: ("value", "str")},
    "Value": {1: ("name", "str"), 2: ("type", "Type")},
    "Type": {1: ("tensor_type", "TensorType")},
    "TensorType": {1: ("elem_type", "int"), 2: ("shape", "Shape")},
    "Shape": {1: ("dim", "Dimension")},
    "Dimension": {1: ("dim_value", "int")},
}
"""The messages: by its number, the name and type of each field that is read. Others are kept as they are."""


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

    def messages(self, kind: str) -> Iterator["Message"]:
        """Yield every message of a kind in this one, to any depth."""
        for _, _, _, value in self.fields:
            if isinstance(value, Message):
                if value.kind == kind:
                    yield value
                yield from value.messages(kind)

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


def read_model(path: Path) -> Message:
    """Return a graph file's Model message, or raise ValueError if the file is none."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"it has {size} bytes, more than any graph without its weights")
    try:
        return _decode(path.read_bytes(), "Model")
    except RecursionError:
        raise ValueError("its messages are too deep") from None


def _decode(data: bytes, kind: str) -> Message:
    fields: list[tuple[str, int, int, Any]] = []
    place = 0
    while place < len(data):
        key, place = _read_number(data, place)
        number, wire_type = key >> 3, key & 7
        name, type_ = SCHEMA[kind].get(number, ("", ""))
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
            decoded = content.decode() if type_ == "str" else _decode(content, type_) if type_ else content
            fields.append((name, number, wire_type, decoded))
    return Message(kind, fields)


def _read_number(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at a place, seven bits a byte from the lowest, and the place after it."""
    number = 0
    for i, byte in enumerate(data[place : place + 10]):
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, place + i + 1
    raise ValueError("it has a number without an end")


def _encode_number(number: int) -> bytes:
    content = bytearray()
    while number >= 0x80:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*content, number])
