"""Graph files: their declarations are read, compared with the manifest, and refused where they differ."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgem3.export import cpu_graph, cuda_graph, native_graph
from bgem3.runtime import ArtifactError
from bgem3.runtime.artifact import Artifact, check_artifact, read_artifact
from bgem3.runtime.graph_file import ELEMENT_TYPES, INPUTS, GraphFile, check_graph
from bgem3.runtime.manifest import OUTPUTS, GraphEntry, Output
from tests.runtime.damage import CPU_GRAPHS, TEXTS, both_kernels, edit_graph, load, manifest_of, move_weights

GRAPHS = [f"{precision}/{device}.onnx" for precision in ("fp16", "fp32") for device in ("cpu", "cuda", "native")]


def declaration(data_type: int, sizes: list[object]) -> str:
    return f"{ELEMENT_TYPES[data_type]} ({', '.join(map(str, sizes))})"


@pytest.mark.parametrize("name", [*GRAPHS[:3], "portable/model.onnx"])
def test_a_graph_is_read_and_pointed_to_other_weights_as_by_the_onnx_package(demo_artifact: Path, name: str) -> None:
    found, model = GraphFile(demo_artifact / name), onnx.load(demo_artifact / name, load_external_data=False)
    assert found.tensors == {t.name: declaration(t.data_type, list(t.dims)) for t in model.graph.initializer}
    for values, declared in ((found.inputs, model.graph.input), (found.outputs, model.graph.output)):
        assert values.keys() == {value.name for value in declared}
        for value in declared:
            tensor = value.type.tensor_type
            sizes: list[object] = [d.dim_value if d.HasField("dim_value") else "?" for d in tensor.shape.dim]
            assert values[value.name] == declaration(tensor.elem_type, sizes)
    assert found.locations == {"weights.bin"}
    move_weights(model.graph, "größe.bin")
    assert onnx.ModelProto.FromString(found.with_locations({"weights.bin": "größe.bin"})) == model


def entry_of(artifact: Artifact, name: str) -> GraphEntry:
    """Return the manifest's entry of a graph by its file."""
    return next(graph for graph in artifact.graphs if graph.file == name)


def test_exported_graphs_declare_what_is_expected_of_each_kind(demo_artifact: Path) -> None:
    exported = {"cpu": cpu_graph.INPUTS, "cuda": cuda_graph.INPUTS, "native": native_graph.INPUTS}
    for kind, inputs in exported.items():
        assert INPUTS[kind] == {name: declaration(dtype, ["?"] * len(shape)) for name, (dtype, shape) in inputs.items()}
    artifact = read_artifact(demo_artifact)
    for name in GRAPHS:
        check_graph(artifact, entry_of(artifact, name))


def test_files_of_tensors_are_found_wherever_a_graph_may_have_them(tmp_path: Path) -> None:
    def tensor(location: str) -> onnx.TensorProto:
        made = onnx.TensorProto(name=location, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=location)
        return made

    def constant(location: str) -> onnx.NodeProto:
        return onnx.helper.make_node("Constant", [], [location], value=tensor(location))

    branch = onnx.helper.make_graph([constant("in_branch")], "branch", [], [], [tensor("of_branch")])
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[1])
    nodes = [
        constant("constant"),
        onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch),
        onnx.NodeProto(attribute=[onnx.helper.make_attribute("tensors", [tensor("one"), tensor("of_two")])]),
        onnx.NodeProto(attribute=[onnx.AttributeProto(name="sparse", type="SPARSE_TENSOR", sparse_tensor=sparse)]),
        onnx.NodeProto(attribute=[onnx.helper.make_attribute("graphs", [branch])]),
    ]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], [tensor("initializer")])
    graph.sparse_initializer.add(values=tensor("sparse_values"), indices=tensor("sparse_indices"))
    model = onnx.helper.make_model(graph)
    model.functions.add(name="f", domain="d", node=[constant("in_function")])
    model.functions[0].attribute_proto.append(onnx.helper.make_attribute("default", tensor("default")))
    model.training_info.add(algorithm=onnx.helper.make_graph([constant("in_training")], "training", [], []))
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    names = "initializer constant in_branch of_branch one of_two values indices sparse_values sparse_indices"
    found = GraphFile(tmp_path / "graph.onnx").locations
    assert found == {*names.split(), "in_function", "default", "in_training"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vocab_size": 900}, r"tensor embeddings.word is float(16|32) \(\d+, 96\), expected float(16|32) \(900, 96\)"),
        ({"hidden_size": 48}, r"outputs are dense float32 \(\?, 96\)"),
        ({"multivector_size": 48}, r"outputs are .*multivector float32 \(\?, 96\)"),
        ({"intermediate_size": 161}, r"tensor layer.0.intermediate.weight is .* \(96, 160\), expected \(96, 161\)"),
        ({"max_length": 8192}, "tensor embeddings.position is "),
        ({"n_layers": 2}, "layers are 3, expected 2"),
        ({"n_heads": 3}, r"heads are \[6\], expected 3"),
    ],
    ids=str,
)
def test_sizes_other_than_the_graphs_are_refused(random_artifact: Path, values: dict[str, int], words: str) -> None:
    manifest = manifest_of(random_artifact)
    artifact = check_artifact(random_artifact, manifest | {"model": manifest["model"] | values})
    for name in ("fp16/cpu.onnx", "fp32/native.onnx", "fp32/cuda.onnx"):
        with pytest.raises(ArtifactError, match=f"cannot open .*{name}: its {words}.*manifest.json says.*bgem3 verify"):
            check_graph(artifact, entry_of(artifact, name))


def test_a_graph_of_another_precision_is_refused(random_artifact: Path) -> None:
    artifact = read_artifact(random_artifact)
    entry = dataclasses.replace(entry_of(artifact, "fp16/cpu.onnx"), precision="fp32")
    with pytest.raises(ArtifactError, match=r"cpu.onnx: its tensor embeddings.word is float16"):
        check_graph(artifact, entry)


def widen_input(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32


def fix_rows(graph: onnx.GraphProto) -> None:
    graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1


def without_an_output(graph: onnx.GraphProto) -> None:
    del graph.output[1]


@both_kernels
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (widen_input, r"inputs are .*token_ids int32 \(\?\)"),
        (fix_rows, r"outputs are dense float32 \(1, 96\)"),
        (without_an_output, "outputs are dense .* multivector"),
    ],
)
def test_a_graph_of_other_inputs_or_outputs_is_refused(
    artifact_copy: Path, edit: Callable[[onnx.GraphProto], object], words: str, kernels: str
) -> None:
    for name in CPU_GRAPHS:
        edit_graph(artifact_copy, name, edit)
    with pytest.raises(ArtifactError, match=rf"cannot open .*fp32/.*{words}"):
        load(artifact_copy, kernels=kernels)


def gather(output: str, row: int) -> Callable[[onnx.GraphProto], object]:
    """Make a graph give one row of an output, whatever it is asked for, though it declares as many as asked for."""

    def edit(graph: onnx.GraphProto) -> None:
        (node,) = (node for node in graph.node if output in node.output)
        node.output[list(node.output).index(output)] = "all_rows"
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([row]), "row"))
        graph.node.append(onnx.helper.make_node("Gather", ["all_rows", "row"], [output]))

    return edit


@both_kernels
@pytest.mark.parametrize("output", OUTPUTS)
def test_one_row_is_never_taken_for_the_rows_of_all_texts(artifact_copy: Path, output: Output, kernels: str) -> None:
    for name in CPU_GRAPHS:
        edit_graph(artifact_copy, name, gather(output, 0))
    refused = pytest.raises(ArtifactError, match=rf"gives {output} of the shape \(1,")
    with load(artifact_copy, kernels=kernels) as model, refused:
        model.encode(TEXTS)


def test_what_onnxruntime_fails_to_run_is_a_runtime_error(artifact_copy: Path) -> None:
    edit_graph(artifact_copy, "fp32/cpu.onnx", gather("dense", 10**6))
    with (
        load(artifact_copy) as model,
        pytest.raises(RuntimeError, match=r"failed to run .*fp32/cpu.onnx .*bgem3 verify"),
    ):
        model.encode(TEXTS)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_graph_file_is_refused_or_read(demo_artifact: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((demo_artifact / "fp32/cpu.onnx").read_bytes())
    places = st.integers(0, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(places) :]
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with contextlib.suppress(ArtifactError):  # no other error may leave
        GraphFile(path)


@pytest.mark.parametrize(
    "content",
    [b"\x3a\xff\xff\xff\xff\x0f", b"\x80" * 20, b"\x3b", b"\x3a\x05\x2a\x03\x42\x01\xff"],
    ids=["longer_than_the_file", "endless_number", "unknown_kind", "name_that_is_not_utf8"],
)
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match="not a graph in Protobuf form"):
        GraphFile(tmp_path / "graph.onnx")
