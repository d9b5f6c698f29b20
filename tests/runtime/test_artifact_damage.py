"""Damaged artifacts: whatever a manifest, a file or a graph is, it is refused with what is wrong, or it runs right."""

import contextlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bgem3.runtime import ArtifactError, BGEM3Model
from bgem3.runtime.artifact import MANIFEST, is_artifact, read_artifact, sha256_of
from bgem3.runtime.cli import main
from bgem3.runtime.cpu_session import OUTPUTS, Output, check_arrays, output_shapes
from bgem3.runtime.cuda_session import CudaSession
from bgem3.runtime.custom_ops import library
from bgem3.runtime.device import open_encoder
from bgem3.runtime.parity import REFERENCE_FILE, Reference
from tests.runtime.test_cuda_session import Ran, cudart, ran

__all__ = ["cudart", "ran"]  # fixtures

TEXTS = ["", "What is BM25?", "Die Brücke ist gesperrt."]
SIZES = ["hidden_size", "n_layers", "n_heads", "intermediate_size", "vocab_size", "multivector_size", "max_length"]
IDS = ["cls_id", "pad_id", "eos_id", "unk_id"]
KERNELS = ["none", pytest.param("portable", marks=pytest.mark.skipif(library() is None, reason="not compiled"))]


@pytest.fixture
def folder(random_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact, to be damaged."""
    shutil.copytree(random_artifact, tmp_path / "artifact")
    return tmp_path / "artifact"


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def write_manifest(folder: Path, manifest: object) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def edit_model(folder: Path, **values: object) -> None:
    manifest = manifest_of(folder)
    manifest["model"] |= values
    write_manifest(folder, manifest)


def list_file(folder: Path, name: str) -> None:
    """Make the manifest list a file as it is now."""
    manifest = manifest_of(folder)
    manifest["files"][name] = {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
    write_manifest(folder, manifest)


def load(folder: Path, precision: str = "fp32", kernels: str = "none") -> BGEM3Model:
    artifact = read_artifact(folder)
    return BGEM3Model(artifact, open_encoder(artifact, device="cpu", precision=precision, n_threads=1, kernels=kernels))


# Manifests


@pytest.mark.parametrize(
    "value", [0, -1, -(10**30), 10**30, True, 96.0, float("nan"), float("inf"), "96", None, [96], {"a": 1}]
)
@pytest.mark.parametrize("name", [*SIZES, *IDS])
def test_a_size_that_no_model_has_is_named(folder: Path, name: str, value: object) -> None:
    if value == 0 and name in IDS:
        value = manifest_of(folder)["model"]["vocab_size"]
    edit_model(folder, **{name: value})
    with pytest.raises(ArtifactError, match=rf"manifest.json .*{name}.* export the checkpoint again"):
        read_artifact(folder)


@pytest.mark.parametrize("value", [0, -1e-5, 1, 1e9, float("nan"), float("inf"), True, "1e-5", None, []])
def test_a_layer_norm_eps_that_no_model_has_is_named(folder: Path, value: object) -> None:
    edit_model(folder, layer_norm_eps=value)
    with pytest.raises(ArtifactError, match=r"layer_norm_eps is .* expected a number between 0 and 1"):
        read_artifact(folder)


def test_heads_must_divide_the_hidden_size(folder: Path) -> None:
    edit_model(folder, n_heads=7)
    with pytest.raises(ArtifactError, match="hidden_size is 96, which 7 heads"):
        read_artifact(folder)


@pytest.mark.parametrize(("one", "other"), [("cls_id", "eos_id"), ("pad_id", "unk_id"), ("eos_id", "pad_id")])
def test_special_ids_must_differ(folder: Path, one: str, other: str) -> None:
    edit_model(folder, **{one: manifest_of(folder)["model"][other]})
    with pytest.raises(ArtifactError, match=r"special ids .* four different ones"):
        read_artifact(folder)


def test_a_vocabulary_of_three_tokens_is_refused_before_a_text_is_scored(folder: Path) -> None:
    edit_model(folder, vocab_size=3)
    assert main(["score", str(folder), "-q", "bread", "-p", "dough"]) == 2


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vocab_size": 900}, "embeddings.word has the shape"),
        ({"vocab_size": 10**9}, "embeddings.word has the shape"),
        ({"hidden_size": 48}, r"outputs are dense float32 \(\?, 96\)"),
        ({"multivector_size": 48}, r"outputs are .*multivector float32 \(\?, 96\)"),
        ({"intermediate_size": 161}, r"intermediate.weight has the shape \(96, 160\), expected \(96, 161\)"),
        ({"max_length": 127}, "embeddings.position has the shape"),
        ({"max_length": 8192}, "embeddings.position has the shape"),
        ({"pad_id": 4}, "embeddings.position has the shape"),
        ({"n_layers": 2}, "layers are 3, expected 2"),
        ({"n_layers": 2**31 - 1}, "layers are 3, expected 2147483647"),
        ({"n_heads": 3}, r"heads are \[6\], expected 3"),
    ],
)
def test_sizes_other_than_the_graphs_are_refused_when_it_is_opened(
    folder: Path, precision: str, kernels: str, values: dict[str, int], words: str
) -> None:
    edit_model(folder, **values)
    with pytest.raises(ArtifactError, match=f"cannot open .*{precision}/.*{words}.*bgem3 verify"):
        load(folder, precision, kernels)


@pytest.mark.parametrize(
    ("graphs", "words"),
    [
        ([{"precision": "fp32", "device": "cpu", "file": "fp32/cpu.onnx"}] * 2, "fp32 on cpu twice"),
        ([{"precision": "int4", "device": "cpu", "file": "fp32/cpu.onnx"}], "no graph of 'int4' on 'cpu'"),
        ([{"precision": "fp32", "device": "tpu", "file": "fp32/cpu.onnx"}], "no graph of 'fp32' on 'tpu'"),
        ([{"precision": "int8", "device": "cuda", "file": "fp32/cpu.onnx"}], "no graph of 'int8' on 'cuda'"),
        ([{"precision": "fp32", "device": "cpu", "file": "fp32/weights.bin"}], "ends in .onnx"),
        ([{"precision": "fp32", "device": "cpu"}], "'file' is missing"),
        ([{"precision": "fp32", "device": ["cpu"], "file": "fp32/cpu.onnx"}], "device is "),
        ([["fp32", "cpu", "fp32/cpu.onnx"]], "an object with 'precision' is expected"),
        ({"fp32": "fp32/cpu.onnx"}, "graphs is .* expected a list"),
    ],
)
def test_graph_entries_that_no_export_writes_are_refused(folder: Path, graphs: object, words: str) -> None:
    write_manifest(folder, manifest_of(folder) | {"graphs": graphs})
    with pytest.raises(ArtifactError, match=words):
        read_artifact(folder)


@pytest.mark.parametrize(
    "name", ["a\0b", "/etc/passwd", "../a", "fp32/../../a", "a\\b", "C:/a", "./a", "a//b", "", "."]
)
def test_names_that_are_no_plain_relative_paths_are_refused(folder: Path, name: str) -> None:
    manifest = manifest_of(folder)
    manifest["files"][name] = manifest["files"]["tokenizer.json"]
    write_manifest(folder, manifest)
    with pytest.raises(ArtifactError, match="a path out of the folder; do not use this artifact"):
        read_artifact(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"format_version": 1, "source": "\\ud800"}', "surrogates not allowed"),
        (b'{"format_version": "\xff"}', "not valid JSON"),
        (b'{"a": ' * 100_000, "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b'{"format_version": true}', "format version True"),
        (b'{"format_version": 1.0}', "format version 1.0"),
        (b'{"format_version": ["1"]}', "format version"),
        (b'{"format_version": 1e999}', "format version inf"),
    ],
)
def test_a_manifest_that_is_no_object_of_this_version_is_refused(folder: Path, content: bytes, words: str) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        read_artifact(folder)
    is_artifact(folder)


def test_a_manifest_larger_than_any_is_not_read(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 1 << 40)  # takes no disk
    with pytest.raises(ArtifactError, match="1099511627776 bytes"):
        read_artifact(folder)
    assert not is_artifact(folder)


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([10**30, 2**31, 2**63, -1]),
        st.floats(),
        st.text(st.characters(codec=None), max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything in a JSON value but the value itself."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_manifest_changed_anywhere_is_refused_or_shown_and_opened(
    random_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    manifest = manifest_of(random_artifact)
    for _ in range(data.draw(st.integers(1, 2))):
        *path, key = data.draw(st.sampled_from(list(places(manifest))))
        target = manifest
        for step in path:
            target = target[step]
        if data.draw(st.integers(0, 4)) == 0:
            del target[key]
        else:
            target[key] = data.draw(JSON_VALUES)
    folder = tmp_path / "artifact"
    if not folder.exists():
        shutil.copytree(random_artifact, folder)
    write_manifest(folder, manifest)
    is_artifact(folder)
    try:
        read_artifact(folder)
    except ArtifactError:
        return
    assert main(["info", str(folder)]) == main(["info", str(folder), "--json"]) == 0
    capsys.readouterr()
    with contextlib.suppress(ArtifactError), BGEM3Model.load(folder, "cpu") as model:
        assert np.isfinite(model.encode(TEXTS).dense).all()


# Files


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def link_to_endless_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_a_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
@pytest.mark.parametrize("make", [make_fifo, make_folder, make_socket, link_to_endless_zeros, link_to_a_fifo])
@pytest.mark.parametrize(
    "name", [MANIFEST, "tokenizer.json", REFERENCE_FILE, "fp32/cpu.onnx", "fp32/native.onnx", "fp16/weights.bin"]
)
def test_what_is_no_file_is_refused_and_never_waited_for(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    (folder / name).unlink()
    make(folder / name)
    found: list[object] = []

    def read() -> None:
        is_artifact(folder)
        try:
            read_artifact(folder)
        except ArtifactError as error:
            found.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=30)
    assert len(found) == 1, "reading waits"
    assert f"{name} is not a regular file" in str(found[0])


@pytest.mark.parametrize("check_hashes", [False, True])
@pytest.mark.parametrize(
    "name", ["fp32/native.onnx", "fp32/probe.onnx", "fp16/native.onnx", "portable/model.onnx", REFERENCE_FILE]
)
def test_a_file_that_would_be_used_must_be_listed(folder: Path, name: str, check_hashes: bool) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(folder / "fp32/native.onnx", folder / "copy")
    shutil.copy(folder / "copy", folder / name)
    manifest = manifest_of(folder)
    manifest["files"].pop(name, None)
    write_manifest(folder, manifest)
    with pytest.raises(ArtifactError, match=rf"holds \['{name}'\], which manifest.json does not list.*remove them"):
        read_artifact(folder, check_hashes=check_hashes)


def test_other_files_in_the_folder_do_not_matter(folder: Path) -> None:
    for name in ("README.md", ".gitattributes", "fp32/notes.txt", "fp32/other.onnx"):
        (folder / name).write_bytes(b"anything")
    read_artifact(folder, check_hashes=True)


def listed_files(precision: str) -> list[str]:
    return [f"{precision}/{name}" for name in ("cpu.onnx", "cuda.onnx", "native.onnx", "weights.bin")]


@pytest.mark.parametrize("name", [*listed_files("fp16"), *listed_files("fp32"), "tokenizer.json", REFERENCE_FILE])
def test_hashes_cover_everything_that_is_listed(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} has another SHA-256"):
        read_artifact(folder, check_hashes=True)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("location", ["other.bin", "sub/weights.bin"])
def test_weights_that_are_not_listed_are_not_read(folder: Path, location: str, kernels: str) -> None:
    place = folder / "fp32" / location
    place.parent.mkdir(exist_ok=True)
    shutil.copy(folder / "fp32/weights.bin", place)
    for name in ("fp32/cpu.onnx", "fp32/native.onnx"):
        edit_graph(folder, name, lambda graph: move_weights(graph, location))
    with pytest.raises(ArtifactError, match=f"reads 'fp32/{location}', which manifest.json does not list"):
        load(folder, kernels=kernels)
    list_file(folder, f"fp32/{location}")
    with load(folder, kernels=kernels) as model:
        model.encode(TEXTS)


def test_the_portable_graph_reads_only_what_is_listed(demo_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(demo_artifact, folder)
    manifest = manifest_of(folder)
    del manifest["files"]["portable/weights.bin"]
    write_manifest(folder, manifest | {"graphs": []})
    assert main(["verify", str(folder), "--json"]) == 2


# Graphs


def edit_graph(folder: Path, name: str, edit: Callable[[onnx.GraphProto], object]) -> None:
    model = onnx.load(folder / name, load_external_data=False)
    edit(model.graph)
    (folder / name).write_bytes(model.SerializeToString())
    list_file(folder, name)


def move_weights(graph: onnx.GraphProto, location: str) -> None:
    for tensor in graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location


def add_input(graph: onnx.GraphProto) -> None:
    graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("extra", 7, ["tokens"]))


def widen_input(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32


def add_input_dimension(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim.add(dim_param="more")


def fix_rows(graph: onnx.GraphProto) -> None:
    graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1


def without_an_output(graph: onnx.GraphProto) -> None:
    del graph.output[1]


def half_an_output(graph: onnx.GraphProto) -> None:
    graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def without_inputs_and_outputs(graph: onnx.GraphProto) -> None:
    graph.Clear()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (add_input, r"inputs are .*extra int64 \(\?\)"),
        (widen_input, r"inputs are .*token_ids int32 \(\?\)"),
        (add_input_dimension, r"token_ids int64 \(\?, \?\)"),
        (fix_rows, r"outputs are dense float32 \(1, 96\)"),
        (without_an_output, "outputs are dense .* multivector"),
        (half_an_output, r"sparse float16 \(\?\)"),
        (without_inputs_and_outputs, "inputs are , expected"),
    ],
)
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_graph_of_other_inputs_or_outputs_is_refused(
    folder: Path, edit: Callable[[onnx.GraphProto], object], words: str, kernels: str
) -> None:
    for name in ("fp32/cpu.onnx", "fp32/native.onnx"):
        edit_graph(folder, name, edit)
    with pytest.raises(ArtifactError, match=rf"cannot open .*fp32/.*{words}"):
        load(folder, kernels=kernels)


@pytest.mark.parametrize(("name", "other"), [("fp32/cpu.onnx", "fp32/cuda.onnx"), ("fp32/cpu.onnx", "fp16/cpu.onnx")])
def test_another_graph_in_a_graphs_place_is_refused(folder: Path, name: str, other: str) -> None:
    shutil.copy(folder / other, folder / name)
    list_file(folder, name)
    with pytest.raises(ArtifactError, match=r"cannot open .*cpu.onnx: its (inputs|weights) are"):
        load(folder)


def one_row(output: str) -> Callable[[onnx.GraphProto], object]:
    """Make a graph give one row of an output, whatever it is asked for, though it declares as many as asked for."""

    def edit(graph: onnx.GraphProto) -> None:
        (node,) = (node for node in graph.node if output in node.output)
        node.output[0] = "all_rows"
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first_row"))
        graph.node.append(onnx.helper.make_node("Gather", ["all_rows", "first_row"], [output]))

    return edit


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_one_row_is_never_taken_for_the_rows_of_all_texts(folder: Path, output: Output, kernels: str) -> None:
    for name in ("fp32/cpu.onnx", "fp32/native.onnx"):
        edit_graph(folder, name, one_row(output))
    with (
        load(folder, kernels=kernels) as model,
        pytest.raises(ArtifactError, match=rf"gives {output} of the shape \(1,"),
    ):
        model.encode(TEXTS)


def set_weight(folder: Path, tensor_name: str, value: float) -> None:
    """Overwrite the first number of a tensor in the weights of fp32."""
    graph = onnx.load(folder / "fp32/cpu.onnx", load_external_data=False).graph
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == tensor_name)
    offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
    with (folder / "fp32/weights.bin").open("r+b") as file:
        file.seek(offset)
        file.write(np.float32(value).tobytes())
    list_file(folder, "fp32/weights.bin")


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("tensor", "outputs"),
    [
        ("embeddings.norm.weight", ["dense", "sparse", "multivector"]),
        ("embeddings.position", []),  # of a position that no token has
        ("layer.0.value.bias", ["dense", "sparse", "multivector"]),
        ("layer.1.intermediate.weight", ["dense", "sparse", "multivector"]),
        ("layer.2.output_norm.bias", ["dense", "sparse", "multivector"]),
        ("multivector.bias", ["multivector"]),
    ],
)
def test_weights_that_give_nan_are_never_taken_for_values(
    folder: Path, tensor: str, value: float, outputs: list[Output], kernels: str
) -> None:
    set_weight(folder, tensor, value)
    with load(folder, kernels=kernels) as model:
        for output in OUTPUTS:
            if (tensor, output) == ("layer.2.output_norm.bias", "sparse") and np.isinf(value):
                continue  # ReLU turns minus infinity into 0
            if output in outputs:
                with pytest.raises(ArtifactError, match=f"gives {output} values that are NaN or infinite"):
                    model.encode(TEXTS, [output])
            else:
                model.encode(TEXTS, [output])


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_one_number_that_is_not_finite_is_found_anywhere(data: st.DataObject) -> None:
    shapes: dict[Output, tuple[int, ...]] = {"dense": (3, 8), "sparse": (17,), "multivector": (14, 8)}
    arrays: dict[Output, NDArray[np.float32]] = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    check_arrays(arrays, shapes, Path("fp32/cpu.onnx"))
    name = data.draw(st.sampled_from(OUTPUTS))
    place = data.draw(st.integers(0, arrays[name].size - 1))
    arrays[name].flat[place] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    with pytest.raises(ArtifactError, match=f"gives {name} values"):
        check_arrays(arrays, shapes, Path("fp32/cpu.onnx"))


def test_what_onnxruntime_fails_to_run_is_a_runtime_error(folder: Path) -> None:
    def read_beyond(graph: onnx.GraphProto) -> None:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([10**6]), "beyond"))
        for node in graph.node:
            if "dense" in node.output:
                node.output[0] = "all_rows"
        graph.node.append(onnx.helper.make_node("Gather", ["all_rows", "beyond"], ["dense"]))

    edit_graph(folder, "fp32/cpu.onnx", read_beyond)
    with load(folder) as model, pytest.raises(RuntimeError, match=r"failed to run .*fp32/cpu.onnx .*bgem3 verify"):
        model.encode(TEXTS)


# References


def arrays_of(folder: Path) -> dict[str, NDArray[Any] | None]:
    with np.load(folder / REFERENCE_FILE) as arrays:
        return dict(arrays)


def write_arrays(folder: Path, arrays: dict[str, NDArray[Any] | None]) -> None:
    """Write a reference of these arrays, without those that are None."""
    given: dict[str, Any] = {name: values for name, values in arrays.items() if values is not None}
    np.savez(folder / REFERENCE_FILE, **given)
    list_file(folder, REFERENCE_FILE)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param({"texts": None}, id="no_texts"),
        pytest.param({"texts": np.frombuffer(b"{}", np.uint8)}, id="texts_no_list"),
        pytest.param({"texts": np.frombuffer(b"[]", np.uint8)}, id="no_text_at_all"),
        pytest.param({"texts": np.frombuffer(b"\xff", np.uint8)}, id="texts_no_json"),
        pytest.param({"texts": np.frombuffer(b"[" * 100_000, np.uint8)}, id="texts_nested"),
        pytest.param({"n_tokens": np.array([2, 3])}, id="fewer_lengths"),
        pytest.param({"n_tokens": np.array("two")}, id="lengths_of_text"),
        pytest.param({"dense": np.ones(5, np.float32)}, id="dense_of_one_dimension"),
        pytest.param({"dense": np.array([None], object)}, id="dense_pickled"),
        pytest.param({"multivector": np.ones((2, 96), np.float32)}, id="fewer_vectors"),
        pytest.param({"multivector_rows": None}, id="no_rows"),
        pytest.param({"sparse_shape": np.array([-1, 5])}, id="negative_shape"),
        pytest.param({"sparse_shape": np.array([2**62, 2**62])}, id="huge_shape"),
        pytest.param({"sparse_indices": np.array([10**6])}, id="column_beyond_the_vocabulary"),
        pytest.param({"sparse_indptr": np.array([0, 5, 2])}, id="descending_indptr"),
    ],
)
def test_a_reference_that_no_export_writes_is_refused(folder: Path, edit: dict[str, NDArray[Any] | None]) -> None:
    write_arrays(folder, arrays_of(folder) | edit)
    with pytest.raises(ArtifactError, match=r"reference.npz is not a reference that an export wrote"):
        Reference.load(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_reference_is_refused_or_read(random_artifact: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((random_artifact / REFERENCE_FILE).read_bytes())
    place = st.integers(0, len(content) - 1) | st.integers(0, 200) | st.integers(len(content) - 900, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(place)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(place) :]
    (tmp_path / REFERENCE_FILE).write_bytes(content)
    with contextlib.suppress(ArtifactError):
        Reference.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY\x01\x00", b"not an archive" * 99])
def test_verify_says_that_the_reference_is_damaged(
    folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / REFERENCE_FILE).write_bytes(content)
    list_file(folder, REFERENCE_FILE)
    assert main(["verify", str(folder), "--json"]) == 2
    assert "reference.npz is not a reference" in capsys.readouterr().err


def test_verify_refuses_the_reference_of_another_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = arrays_of(folder)
    assert arrays["dense"] is not None
    arrays["dense"] = arrays["dense"][:, :48]
    write_arrays(folder, arrays)
    assert main(["verify", str(folder), "--json"]) == 2
    assert "dense rows of 48 numbers, the model gives 96" in capsys.readouterr().err


# CUDA, on the stand-in of tests.runtime.test_cuda_session


def test_weights_that_give_nan_are_found_when_the_cuda_session_warms_up(folder: Path, ran: Ran) -> None:
    set_weight(folder, "layer.0.value.bias", np.nan)
    with pytest.raises(ArtifactError, match=r"fp32/cuda.onnx gives dense values that are NaN or infinite"):
        BGEM3Model.load(folder, "cuda", "fp32")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cuda:")]


def test_nan_in_one_text_alone_is_found_on_cuda(folder: Path, ran: Ran) -> None:
    spec = read_artifact(folder).spec
    with BGEM3Model.load(folder, "cuda", "fp32", token_budget=40) as model:
        model.encode(TEXTS)
        shapes = output_shapes(spec, len(TEXTS), int(model.encode(TEXTS).n_tokens.sum()))
        bad = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CudaSession, "_run", lambda self, batch, outputs: {name: bad[name] for name in outputs})
            with pytest.raises(ArtifactError, match="gives sparse"):
                model.encode(TEXTS, ["sparse"])
        assert np.isfinite(model.encode(TEXTS).dense).all()


@pytest.mark.parametrize("values", [{"vocab_size": 900}, {"n_heads": 3}, {"max_length": 127}])
def test_sizes_other_than_the_cuda_graphs_are_refused(folder: Path, ran: Ran, values: dict[str, int]) -> None:
    edit_model(folder, **values)
    with pytest.raises(ArtifactError, match=r"cannot open .*fp32/cuda.onnx"):
        BGEM3Model.load(folder, "cuda", "fp32")
    assert not ran.settings  # nothing was opened
