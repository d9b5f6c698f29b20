"""What a graph file declares is read as the onnx package reads it, and damaged files are refused."""

import contextlib
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bgem3.export import cpu_graph, cuda_graph, native_graph
from bgem3.runtime.artifact import ArtifactError, read_artifact
from bgem3.runtime.graph_file import INPUTS, GraphFile, check_graph, with_locations

GRAPHS = [f"{precision}/{device}.onnx" for precision in ("fp16", "fp32") for device in ("cpu", "cuda", "native")]


def load(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("name", [*GRAPHS, "portable/model.onnx"])
def test_a_graphs_declarations_are_read_as_the_onnx_package_reads_them(demo_artifact: Path, name: str) -> None:
    found, expected = GraphFile(demo_artifact / name), load(demo_artifact / name).graph
    assert {name: (tensor.data_type, tensor.shape) for name, tensor in found.tensors.items()} == {
        tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in expected.initializer
    }
    for values, declared in ((found.inputs, expected.input), (found.outputs, expected.output)):
        assert values == {
            value.name: (
                value.type.tensor_type.elem_type,
                tuple(
                    size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
                ),
            )
            for value in declared
        }
    assert found.locations == {"weights.bin"}


@pytest.mark.parametrize("kind", INPUTS)
def test_each_kind_of_graph_is_expected_to_take_what_the_export_declares(kind: str) -> None:
    declared = {"cpu": cpu_graph.INPUTS, "cuda": cuda_graph.INPUTS, "native": native_graph.INPUTS}[kind]
    assert INPUTS[kind] == {name: (dtype, (None,) * len(shape)) for name, (dtype, shape) in declared.items()}


@pytest.mark.parametrize("name", GRAPHS)
def test_an_exported_graph_is_of_its_manifest(demo_artifact: Path, name: str) -> None:
    precision, file = name.split("/")
    check_graph(read_artifact(demo_artifact), demo_artifact / name, precision, file.removesuffix(".onnx"))


def test_files_of_tensors_are_found_wherever_a_graph_may_stand(tmp_path: Path) -> None:
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
    model.training_info.add(algorithm=onnx.helper.make_graph([constant("in_training")], "training", [], []))
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    names = (
        "initializer constant in_branch of_branch one of_two values indices sparse_values sparse_indices in_function"
    )
    assert GraphFile(tmp_path / "graph.onnx").locations == {*names.split(), "in_training"}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("location", ["w", "SHA256E-s1135511616--" + "0f" * 200 + ".bin", "größe.bin"])
def test_a_model_is_pointed_to_another_file_and_else_unchanged(demo_artifact: Path, name: str, location: str) -> None:
    content, expected = (demo_artifact / name).read_bytes(), load(demo_artifact / name)
    for tensor in expected.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    assert onnx.ModelProto.FromString(with_locations(content, {"weights.bin": location})) == expected
    assert with_locations(content, {}) == content


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    [
        pytest.param(b"\x3a\xff\xff\xff\xff\x0f", id="longer_than_the_file"),
        pytest.param(b"\x80" * 20, id="endless_number"),
        pytest.param(b"\x38\x01", id="number_for_the_graph"),
        pytest.param(b"\x3b", id="unknown_kind"),
        pytest.param(b"\x3a\x03\x5a\x01\x08", id="cut_input"),
        pytest.param(b"\x3a\x02\x5a\x00", id="input_without_a_name"),
        pytest.param(b"\x3a\x05\x2a\x03\x42\x01\xff", id="name_that_is_not_utf8"),
    ],
)
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match="not a graph in Protobuf form"):
        GraphFile(tmp_path / "graph.onnx")


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    """A node's attribute holds a graph, whose node's attribute holds a graph, and so on."""
    content = b""
    for _ in range(3000):
        for number in (6, 5, 1):
            content = _field(number, content)
    (tmp_path / "graph.onnx").write_bytes(_field(7, content))
    with pytest.raises(ArtifactError, match="recursion"):
        GraphFile(tmp_path / "graph.onnx")


def _field(number: int, value: bytes) -> bytes:
    size, digits = len(value), bytearray()
    while size > 0x7F:
        digits.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *digits, size]) + value
