"""A graph file's declarations, compared with the manifest before ONNX Runtime opens the file."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bgem3.runtime.artifact import MANIFEST, Artifact, ArtifactError, leads_out, verify_help
from bgem3.runtime.manifest import GraphEntry
from bgem3.runtime.onnx_proto import messages, read_model

ELEMENT_TYPES = {1: "float32", 3: "int8", 6: "int32", 7: "int64", 10: "float16"}  # by their numbers in onnx.proto
STORED_TYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
ROW_INPUTS = ("token_ids", "position_ids", "state_rows", "dense_rows", "sparse_rows", "multivector_rows")
ROWS = dict.fromkeys(ROW_INPUTS, "int64 (?)")
INPUTS = {
    "cpu": {**ROWS, "padded_index": "int32 (?, ?)", "packed_index": "int32 (?)", "key_mask": "int32 (?, ?)"},
    "native": {**ROWS, "cu_seqlens": "int64 (?)"},
    "cuda": {**ROWS, "cu_seqlens": "int32 (?)", "token_offset": "int32 (?, ?)"},
}
"""The inputs of each kind of graph, which `bgem3.runtime.packing` makes. A question mark is a size that varies."""


class GraphFile:
    """The declarations of a graph file.

    Attributes
    ----------
    inputs, outputs, tensors : dict of str to str
        Element type and shape by name, such as "float32 (?, 1024)"; ``tensors`` are the stored ones.
    locations : set of str
        The files that tensors are read from, relative to the graph's folder.
    n_heads : set of int
        The numbers of attention heads that the operators are given.

    Raises
    ------
    ArtifactError
        If the file is no Protocol Buffers message of this form.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._model = read_model(path)
            graph = self._model.graph
            self.inputs, self.outputs = map(_declarations, (graph.input, graph.output))
            self.tensors = {tensor.name: _declaration(tensor.data_type, tensor.dims) for tensor in graph.initializer}
            self.locations = {entry.value for entry in self._location_entries()}
            self.n_heads = {
                attribute.i
                for attribute in messages(self._model, "Attribute")
                if attribute.name in ("num_heads", "n_heads")
            }
        except ValueError as error:
            raise ArtifactError(
                f"cannot open {path}: it is not a graph in Protobuf form ({error}); {verify_help(path)}"
            ) from None

    def with_locations(self, locations: dict[str, str]) -> bytes:
        """Return the file's content with tensors read from other files, given by the present ones."""
        for entry in self._location_entries():
            entry.value = locations[entry.value]
        content: bytes = self._model.SerializeToString()
        return content

    def _location_entries(self) -> Iterator[Any]:
        for tensor in messages(self._model, "Tensor"):
            yield from (entry for entry in tensor.external_data if entry.key == "location")


def read_linked(path: Path) -> tuple[bytes, Path] | None:
    """Return a graph whose weights are links, pointed to the files themselves, and the folder of these files.

    From 1.24 on, ONNX Runtime refuses weights whose real path leaves the folder of the graph and of what the graph is a
    link to. None means that no weights are links. Links to several folders raise ArtifactError.
    """
    if not any(beside.is_symlink() for beside in path.parent.iterdir()):
        return None
    graph = GraphFile(path)
    files = {name: path.parent / name for name in graph.locations}
    if not any(file.is_symlink() for file in files.values()):
        return None
    targets = {name: file.resolve() for name, file in files.items()}
    folders = {target.parent for target in targets.values()}
    if len(folders) > 1:
        raise ArtifactError(
            f"cannot open {path}: its weights are links to several folders, {', '.join(map(str, sorted(folders)))}; "
            "copy the artifact folder with `cp -rL`, which follows links"
        )
    return graph.with_locations({name: target.name for name, target in targets.items()}), folders.pop()


def check_graph(artifact: Artifact, entry: GraphEntry) -> None:
    """Raise ArtifactError if a graph reads unlisted files, or is of another model than the manifest describes."""
    if "files" not in artifact.manifest:  # the folder is being made
        return
    path = artifact.folder / entry.file
    graph = GraphFile(path)
    check_locations(artifact, path, graph)
    kind = "native" if entry.operators == "bgem3" else entry.device
    difference = next(_differences(graph, artifact, entry.precision, kind), None)
    if difference:
        raise ArtifactError(f"cannot open {path}: its {difference}, as {MANIFEST} says; {verify_help(path)}")


def check_locations(artifact: Artifact, path: Path, graph: GraphFile | None = None) -> None:
    """Raise ArtifactError if a graph reads tensors from files that the manifest does not list."""
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


def _declarations(values: Any) -> dict[str, str]:
    types = {value.name: value.type.tensor_type for value in values}
    return {
        name: _declaration(declared.elem_type, (size.dim_value or "?" for size in declared.shape.dim))
        for name, declared in types.items()
    }


def _declaration(element_type: int, sizes: Iterable[int | str]) -> str:
    return f"{ELEMENT_TYPES.get(element_type, f'ONNX type {element_type}')} ({', '.join(map(str, sizes))})"


def _differences(graph: GraphFile, artifact: Artifact, precision: str, kind: str) -> Iterator[str]:
    """Yield, in words, each declaration of a graph that does not fit the manifest."""
    spec = artifact.spec
    outputs = {
        "dense": f"float32 (?, {spec.hidden_size})",
        "sparse": "float32 (?)",
        "multivector": f"float32 (?, {spec.multivector_size})",
    }
    missing = outputs.keys() - artifact.outputs
    for side, found, all_expected in (("inputs", graph.inputs, INPUTS[kind]), ("outputs", graph.outputs, outputs)):
        expected = {name: value for name, value in all_expected.items() if name.removesuffix("_rows") not in missing}
        if found != expected:
            yield f"{side} are {_listed(found)}, expected {_listed(expected)}"
    tensors = {
        "embeddings.word": f"{STORED_TYPES[precision]} ({spec.vocab_size}, {spec.hidden_size})",
        "embeddings.position": f"({spec.max_length + spec.pad_id + 1}, {spec.hidden_size})",
        "layer.0.intermediate.weight": f"({spec.hidden_size}, {spec.intermediate_size})",
    }
    if "multivector" in graph.outputs:
        tensors["multivector.weight"] = f"({spec.hidden_size}, {spec.multivector_size})"
    for name, declared in tensors.items():
        if not graph.tensors.get(name, "").endswith(declared):
            yield f"tensor {name} is {graph.tensors.get(name)}, expected {declared}"
    layers = {int(name.split(".")[1]) for name in graph.tensors if re.match(r"layer\.[0-9]{1,6}\.", name)}
    if not len(layers) == spec.n_layers == max(layers, default=-1) + 1:
        yield f"layers are {len(layers)}, expected {spec.n_layers}"
    if graph.n_heads != {spec.n_heads}:
        yield f"heads are {sorted(graph.n_heads)}, expected {spec.n_heads}"


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {declared}" for name, declared in sorted(values.items()))
