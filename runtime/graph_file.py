"""A graph file's declarations, read without the onnx package and compared with the manifest before the graph is opened.

A .onnx file is one protobuf message. Only the fields that are named here by their numbers in onnx.proto are read; all
others are skipped. Tensors are looked for wherever a graph may stand: in branches, in functions, in training steps.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bgem3.runtime.artifact import MANIFEST, Artifact, ArtifactError, ModelSpec, leads_out

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
MAX_BYTES = 1 << 27  # no graph of ours holds weights: those of 24 layers take 0.1 MB
FLOAT, INT8, INT32, INT64, FLOAT16 = 1, 3, 6, 7, 10  # element types
STORED_TYPES = {"fp32": FLOAT, "fp16": FLOAT16, "int8": INT8}
TYPE_NAMES = {FLOAT: "float32", INT8: "int8", INT32: "int32", INT64: "int64", FLOAT16: "float16"}

Shape = tuple[int | None, ...]
Value = tuple[int, Shape]
"""Element type, and dimensions, None for one of no fixed size."""

ROWS: dict[str, Value] = {
    name: (INT64, (None,))
    for name in ("token_ids", "position_ids", "state_rows", "dense_rows", "sparse_rows", "multivector_rows")
}
INPUTS: dict[str, dict[str, Value]] = {
    "cpu": {
        **ROWS,
        "padded_index": (INT32, (None, None)),
        "packed_index": (INT32, (None,)),
        "key_mask": (INT32, (None, None)),
    },
    "native": {**ROWS, "cu_seqlens": (INT64, (None,))},
    "cuda": {**ROWS, "cu_seqlens": (INT32, (None,)), "token_offset": (INT32, (None, None))},
}
"""The inputs of each kind of graph (made by `bgem3.runtime.packing`)."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A stored tensor; ``locations`` are the files that hold its values, none where the graph itself does."""

    name: str
    data_type: int
    shape: Shape
    locations: tuple[str, ...]


class GraphFile:
    """The declarations of a graph file.

    Attributes
    ----------
    inputs, outputs : those of the graph, by name
    tensors : its initializers, by name
    locations : every file that a tensor of the model is read from, relative to the graph's folder
    n_heads : the numbers of attention heads that its operators are given

    Raises
    ------
    ArtifactError
        If the file is not a protobuf message with a graph.
    """

    def __init__(self, path: Path) -> None:
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self.tensors: dict[str, Tensor] = {}
        self.locations: set[str] = set()
        self.n_heads: set[int] = set()
        try:
            self._read_model(_read(path))
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError(
                f"cannot open {path}: it is not a graph in Protobuf form ({error}); {_check_folder(path)}"
            ) from None

    def _read_model(self, model: bytes) -> None:
        for number, value in _fields(model):
            if number == 7:
                self._read_graph(value, is_main=True)
            elif number == 20:
                for part, graph in _fields(value):
                    if part in (1, 2):
                        self._read_graph(graph)
            elif number == 25:
                for part, node in _fields(value):
                    if part == 7:
                        self._read_node(node)

    def _read_graph(self, graph: bytes, *, is_main: bool = False) -> None:
        for number, value in _fields(graph):
            if number == 1:
                self._read_node(value)
            elif number == 5:
                tensor = self._read_tensor(value)
                if is_main:
                    self.tensors[tensor.name] = tensor
            elif number == 15:
                self._read_sparse_tensor(value)
            elif number in (11, 12) and is_main:
                name, declared = _read_value(value)
                (self.inputs if number == 11 else self.outputs)[name] = declared

    def _read_node(self, node: bytes) -> None:
        for number, attribute in _fields(node):
            if number != 5:
                continue
            fields = list(_fields(attribute))
            is_n_heads = dict(fields).get(1) in (b"num_heads", b"n_heads")
            for part, value in fields:
                if part == 3 and is_n_heads:
                    self.n_heads.add(value)
                elif part in (5, 10):
                    self._read_tensor(value)
                elif part in (6, 11):
                    self._read_graph(value)
                elif part in (22, 23):
                    self._read_sparse_tensor(value)

    def _read_sparse_tensor(self, tensor: bytes) -> None:
        for number, value in _fields(tensor):
            if number in (1, 2):
                self._read_tensor(value)

    def _read_tensor(self, data: bytes) -> Tensor:
        tensor = _read_tensor(data)
        self.locations.update(tensor.locations)
        return tensor


def _read_tensor(data: bytes) -> Tensor:
    name, data_type, shape, locations = "", 0, [], []
    for number, value in _fields(data):
        if number == 1:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 2:
            data_type = value
        elif number == 8:
            name = value.decode()
        elif number == 13:
            entry = dict(_fields(value))
            if entry.get(1) == b"location":
                locations.append(entry.get(2, b"").decode())
    return Tensor(name=name, data_type=data_type, shape=tuple(shape), locations=tuple(locations))


def _read_value(data: bytes) -> tuple[str, Value]:
    """Read the name, element type and dimensions of an input or output."""
    entry = dict(_fields(data))
    tensor = dict(_fields(dict(_fields(entry.get(2, b""))).get(1, b"")))
    dimensions = [dict(_fields(value)).get(1) for number, value in _fields(tensor.get(2, b"")) if number == 1]
    return entry[1].decode(), (tensor.get(1, 0), tuple(dimensions))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and value of each field of a message; numbers of fixed size have None."""
    return ((number, value) for number, value, _ in _spans(message))


def _spans(message: bytes) -> Iterator[tuple[int, Any, slice]]:
    """Yield the number, the value and the place of each field of a message."""
    place, end = 0, len(message)
    while place < end:
        start = place
        value: Any = None
        key, place = _varint(message, place)
        kind = key & 7
        if kind == VARINT:
            value, place = _varint(message, place)
        elif kind == BYTES:
            size, place = _varint(message, place)
            value, place = message[place : place + size], place + size
        elif kind in FIXED_SIZES:
            place += FIXED_SIZES[kind]
        else:
            raise ValueError(f"a field is of unknown kind {kind}")
        if place > end:
            raise ValueError("a field ends beyond its message")
        yield key >> 3, value, slice(start, place)


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte; return it and the place after it."""
    value = message[place]
    place += 1
    if value < 0x80:
        return value, place
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number of more than ten bytes")


def _varints(packed: bytes) -> Iterator[int]:
    place = 0
    while place < len(packed):
        value, place = _varint(packed, place)
        yield value


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"it has {size} bytes, more than any graph without its weights")
    return path.read_bytes()


def read_linked(path: Path) -> tuple[bytes, Path] | None:
    """Return a graph that reads its weights where a link beside it leads to, and the folder that they are in.

    From 1.24 on, ONNX Runtime refuses weights whose real path leaves the folder of the graph and of what the graph is a
    link to. None stands for a graph without linked weights, which ONNX Runtime opens by its path.

    Raises
    ------
    ArtifactError
        If links lead to several folders.
    """
    if not any(beside.is_symlink() for beside in path.parent.iterdir()):
        return None
    locations = {name: path.parent / name for name in GraphFile(path).locations}
    targets = {name: place.resolve() for name, place in locations.items()}
    if not any(place.is_symlink() for place in locations.values()):
        return None
    folders = {target.parent for target in targets.values()}
    if len(folders) > 1:
        raise ArtifactError(
            f"cannot open {path}: its weights are links to several folders, {', '.join(map(str, sorted(folders)))}; "
            "copy the artifact folder with `cp -rL`, which follows links"
        )
    return with_locations(path.read_bytes(), {name: target.name for name, target in targets.items()}), folders.pop()


def with_locations(model: bytes, locations: dict[str, str]) -> bytes:
    """Return a model whose initializers are read from other files, given by the files they are read from now."""

    def edit_model(number: int, value: Any) -> bytes | None:
        return _edited(value, edit_graph) if number == 7 else None

    def edit_graph(number: int, value: Any) -> bytes | None:
        return _edited(value, edit_tensor) if number == 5 else None

    def edit_tensor(number: int, value: Any) -> bytes | None:
        return _edited(value, edit_entry) if number == 13 and (1, b"location") in _fields(value) else None

    def edit_entry(number: int, value: Any) -> bytes | None:
        return locations.get(value.decode(), value.decode()).encode() if number == 2 else None

    return _edited(model, edit_model)


def _edited(message: bytes, edit: Callable[[int, Any], bytes | None]) -> bytes:
    """Return a message in which ``edit`` replaces the values of fields of bytes; None leaves a field as it is."""
    parts = []
    for number, value, place in _spans(message):
        replacement = edit(number, value)
        if replacement is None:
            parts.append(message[place])
        else:
            parts += [_encoded(number << 3 | BYTES), _encoded(len(replacement)), replacement]
    return b"".join(parts)


def _encoded(number: int) -> bytes:
    """Encode a number in 7 bits a byte."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def check_graph(artifact: Artifact, path: Path, precision: str, kind: str) -> None:
    """Raise ArtifactError if a graph reads files that the manifest does not list, or is of another model than it says.

    Parameters
    ----------
    path : a graph in the artifact's folder
    precision : of its stored weights
    kind : "cpu", "native" or "cuda", which decides what it is fed
    """
    if "files" not in artifact.manifest:  # the folder is being made
        return
    graph = GraphFile(path)
    check_locations(artifact, path, graph)
    outputs = _outputs(artifact.spec)
    lacking = outputs.keys() - artifact.outputs
    for side, found, all_expected in (("inputs", graph.inputs, INPUTS[kind]), ("outputs", graph.outputs, outputs)):
        expected = {name: value for name, value in all_expected.items() if name.removesuffix("_rows") not in lacking}
        if found != expected:
            raise ArtifactError(
                f"cannot open {path}: its {side} are {_described(found)}, expected {_described(expected)}; "
                f"{_check_folder(path)}"
            )
    for name, size, is_right in _sizes(graph, artifact.spec, precision):
        if not is_right:
            raise ArtifactError(
                f"cannot open {path}: its {name} {size}, which is not what {MANIFEST} says of the model; they are not "
                f"of one artifact, {_check_folder(path)}"
            )


def check_locations(artifact: Artifact, path: Path, graph: GraphFile | None = None) -> None:
    """Raise ArtifactError if a graph's tensors lie in files that the manifest does not list."""
    listed = artifact.manifest.get("files")  # none while the folder is being made
    folder = PurePosixPath(path.parent.relative_to(artifact.folder).as_posix())
    for location in sorted((graph or GraphFile(path)).locations):
        name = str(PurePosixPath(location))
        if leads_out(name):
            raise ArtifactError(
                f"cannot open {path}: it reads {location!r}, an absolute path or one that escapes the folder; do not "
                "use this artifact"
            )
        if listed is not None and str(folder / name) not in listed:
            raise ArtifactError(
                f"cannot open {path}: it reads {str(folder / name)!r}, which {MANIFEST} does not list; "
                "copy the artifact folder again or export the checkpoint again"
            )


def _outputs(spec: ModelSpec) -> dict[str, Value]:
    return {
        "dense": (FLOAT, (None, spec.hidden_size)),
        "sparse": (FLOAT, (None,)),
        "multivector": (FLOAT, (None, spec.multivector_size)),
    }


def _sizes(graph: GraphFile, spec: ModelSpec, precision: str) -> Iterator[tuple[str, str, bool]]:
    """Yield each size that a graph has: its name, the size in words, and whether it is as the manifest says."""
    shapes = {
        "embeddings.word": (spec.vocab_size, spec.hidden_size),
        "embeddings.position": (spec.max_length + spec.pad_id + 1, spec.hidden_size),
        "layer.0.intermediate.weight": (spec.hidden_size, spec.intermediate_size),
    }
    if "multivector" in graph.outputs:
        shapes["multivector.weight"] = (spec.hidden_size, spec.multivector_size)
    for name, expected in shapes.items():
        shape = graph.tensors[name].shape if name in graph.tensors else None
        yield f"tensor {name}", f"has the shape {shape}, expected {expected}", shape == expected
    data_type = graph.tensors["embeddings.word"].data_type
    yield "weights", f"are {_type_name(data_type)}, expected {precision}", data_type == STORED_TYPES[precision]
    layers = {int(name.split(".")[1]) for name in graph.tensors if re.match(r"layer\.[0-9]{1,6}\.", name)}
    is_right = len(layers) == spec.n_layers == max(layers, default=-1) + 1
    yield "layers", f"are {len(layers)}, expected {spec.n_layers}", is_right
    yield "heads", f"are {sorted(graph.n_heads)}, expected {spec.n_heads}", graph.n_heads == {spec.n_heads}


def _described(values: dict[str, Value]) -> str:
    """Write inputs or outputs as "name float32 (?, 1024)"."""
    return ", ".join(
        f"{name} {_type_name(data_type)} ({', '.join('?' if n is None else str(n) for n in shape)})"
        for name, (data_type, shape) in sorted(values.items())
    )


def _type_name(data_type: int) -> str:
    return TYPE_NAMES.get(data_type, f"of ONNX type {data_type}")


def _check_folder(path: Path) -> str:
    return f"check the folder with `bgem3 verify {path.parent.parent}`, or export the checkpoint again"
