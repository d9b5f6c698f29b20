"""The entries of an artifact's manifest, and the checks that each of them holds what an export writes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any, Literal

Output = Literal["dense", "sparse", "multivector"]
OUTPUTS: tuple[Output, ...] = ("dense", "sparse", "multivector")
PRECISIONS = ("fp16", "fp32", "int8")
"""Precisions this version reads, the default first."""

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
MAX_SIZE = (1 << 31) - 1  # of a dimension or an id, since ONNX Runtime's operators count in 32 bits

CUSTOM_GRAPH = "native.onnx"
PROBE_GRAPH = "probe.onnx"
PORTABLE_GRAPH = "portable/model.onnx"
"""Names of the graphs that version 1 does not list as such; exports of version 2 have them, too."""

KINDS_OF_GRAPHS = {
    *((precision, "cuda", "onnxruntime") for precision in ("fp16", "fp32")),
    *((precision, "cpu", operators) for precision in PRECISIONS for operators in ("onnxruntime", "bgem3")),
    ("fp32", "cpu", "standard"),
}
"""Precision, device and operators of every graph that there may be."""

Files = Mapping[str, tuple[int, str]]
"""Size and SHA-256 of each file, by its path in the folder."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Dimensions and special token ids of the exported model.

    ``max_length`` counts tokens, CLS and EOS included. ``multivector_size`` is 0 if the graphs have no such output.
    """

    hidden_size: int
    n_layers: int
    n_heads: int
    intermediate_size: int
    vocab_size: int
    multivector_size: int
    max_length: int
    layer_norm_eps: float
    cls_id: int
    pad_id: int
    eos_id: int
    unk_id: int


@dataclass(frozen=True, kw_only=True)
class GraphEntry:
    """One graph of an artifact.

    Attributes
    ----------
    precision : "fp16", "fp32" or "int8", in which the weights are stored
    device : "cpu" or "cuda"
    operators : "onnxruntime" (ONNX Runtime's own), "bgem3" (our custom ones) or "standard" (those of the ONNX standard)
    file : path in the artifact folder
    probe : path of the graph that tells whether this CPU's int8 products are exact; only int8 graphs over ONNX
        Runtime's operators have one
    """

    precision: str
    device: str
    operators: str
    file: str
    probe: str | None = None

    def to_json(self) -> dict[str, str]:
        """Return the entry as the manifest holds it."""
        return {name: value for name, value in vars(self).items() if value is not None}


def entry(values: Any, key: str, kind: type) -> Any:
    """Return an entry of an object; raise KeyError or TypeError if it is missing or of another type."""
    if not isinstance(values, dict):
        raise TypeError(f"{values!r:.80} stands where an object with {key!r} is expected")
    if type(values[key]) is not kind:
        raise TypeError(f"{key} is {values[key]!r:.80}, expected {_KIND_NAMES[kind]}")
    return values[key]


_KIND_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def read_outputs(manifest: dict[str, Any]) -> tuple[Output, ...]:
    """Return the outputs that every graph has; a manifest that does not list them has all three."""
    listed = manifest.get("outputs", OUTPUTS)
    outputs = tuple(name for name in OUTPUTS if name in listed)
    if "dense" not in outputs or list(outputs) != list(listed):
        raise TypeError(f"outputs is {listed!r:.80}")
    return outputs


def read_spec(manifest: dict[str, Any]) -> ModelSpec:
    """Return the model's dimensions; raise KeyError, TypeError or ValueError if no model can have them."""
    values, has_vectors = entry(manifest, "model", dict), "multivector" in read_outputs(manifest)
    unknown = sorted(values.keys() - {field.name for field in fields(ModelSpec)})
    if unknown:
        raise ValueError(f"model has {unknown}, which this version does not know")
    for field in fields(ModelSpec):
        may_be_0 = field.name.endswith("_id") or (field.name == "multivector_size" and not has_vectors)
        value, low = values[field.name], 0 if may_be_0 else 1
        if field.type is float:
            if type(value) not in (int, float) or not 0 < value < 1:
                raise TypeError(f"{field.name} is {value!r:.80}, expected a number between 0 and 1")
        elif type(value) is not int or not low <= value <= MAX_SIZE:
            raise TypeError(f"{field.name} is {value!r:.80}, expected a whole number from {low} to {MAX_SIZE}")
    spec = ModelSpec(**values)
    if spec.hidden_size % spec.n_heads:
        raise ValueError(f"hidden_size is {spec.hidden_size}, which {spec.n_heads} heads (n_heads) do not divide")
    if spec.max_length < 2:
        raise ValueError(f"max_length is {spec.max_length}, expected at least 2: CLS and EOS")
    ids = {name: getattr(spec, name) for name in ("cls_id", "pad_id", "eos_id", "unk_id")}
    if len(set(ids.values())) < len(ids) or max(ids.values()) >= spec.vocab_size:
        raise ValueError(f"the special ids are {ids}, expected four different ones below {spec.vocab_size}")
    return spec


def read_files(manifest: dict[str, Any]) -> Files:
    """Return each file's size and SHA-256."""
    files = {}
    for name, values in entry(manifest, "files", dict).items():
        size, sha256 = entry(values, "size", int), entry(values, "sha256", str)
        if size < 0 or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise ValueError(f"{name!r:.80} has size {size} and SHA-256 {sha256!r:.80}")
        files[name] = size, sha256
    return files


def read_graphs(manifest: dict[str, Any], files: Files) -> tuple[GraphEntry, ...]:
    """Return the graphs, in the manifest's order."""
    entries = entry(manifest, "graphs", list)
    if manifest["format_version"] == 1:
        entries = _graphs_of_version_1(entries, files)
    graphs = [_read_graph(values) for values in entries]
    for i, graph in enumerate(graphs):
        kind = graph.precision, graph.device, graph.operators
        if kind not in KINDS_OF_GRAPHS:
            raise ValueError(
                f"there is no graph of {graph.precision!r:.80} on {graph.device!r:.80} with {graph.operators!r:.80} "
                "operators in this format"
            )
        if kind in [(other.precision, other.device, other.operators) for other in graphs[:i]]:
            raise ValueError(f"graphs has {graph.precision} on {graph.device} with {graph.operators} operators twice")
        if kind == ("int8", "cpu", "onnxruntime") and graph.probe is None:
            raise ValueError(f"{graph.file} has no probe of this CPU's int8 products")
    return tuple(graphs)


def _read_graph(values: Any) -> GraphEntry:
    names = ["precision", "device", "operators", "file", *(["probe"] if "probe" in values else [])]
    graph = GraphEntry(**{name: entry(values, name, str) for name in names})
    for file in (graph.file, graph.probe or graph.file):
        if not file.endswith(".onnx"):
            raise ValueError(f"a graph's file is {file!r:.80}, expected a name that ends in .onnx")
    return graph


def _graphs_of_version_1(entries: list[Any], files: Files) -> list[Any]:
    """Return the entries that version 2 has for the same graphs: version 1 left some to their names beside others."""
    graphs: list[Any] = []
    for values in entries:
        file, device = entry(values, "file", str), entry(values, "device", str)
        custom, probe = (str(PurePosixPath(file).with_name(name)) for name in (CUSTOM_GRAPH, PROBE_GRAPH))
        has_probe = device == "cpu" and probe in files
        graphs.append(values | {"operators": "onnxruntime"} | ({"probe": probe} if has_probe else {}))
        if device == "cpu" and custom in files:
            graphs.append(values | {"operators": "bgem3", "file": custom})
    if PORTABLE_GRAPH in files:
        graphs.append({"precision": "fp32", "device": "cpu", "operators": "standard", "file": PORTABLE_GRAPH})
    return graphs


def check_reports(manifest: dict[str, Any]) -> None:
    """Raise KeyError or TypeError if the entries that are only shown are not as an export writes them."""
    source = entry(manifest, "source", dict)
    entry(source, "id", str)
    if source["revision"] is not None:
        entry(source, "revision", str)
    versions = entry(manifest, "versions", dict)
    for name in versions:
        entry(versions, name, str)
    parity = entry(manifest, "parity", dict)
    for file in parity:
        report = entry(parity, file, dict)
        published = entry(report, "published", dict) if "published" in report else {}
        for name, value in published.items():
            if type(value) not in (int, float):
                raise TypeError(f"{name} is {value!r:.80}, expected a number")
