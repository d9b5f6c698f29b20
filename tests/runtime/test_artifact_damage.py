"""Damaged artifacts: a manifest, a file or a reference is refused with what is wrong, or the model runs right."""

import contextlib
import copy
import os
import shutil
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
from bgem3.runtime.artifact import MANIFEST, REFERENCE_FILE, check_artifact, is_artifact, read_artifact
from bgem3.runtime.cli import main
from bgem3.runtime.reference import Reference
from tests.runtime.cuda_stand_in import Ran, cudart, ran
from tests.runtime.damage import (
    CPU_GRAPHS,
    TEXTS,
    Damage,
    both_kernels,
    edit_graph,
    list_file,
    load,
    manifest_of,
    move_weights,
    write_manifest,
)

__all__ = ["cudart", "ran"]  # fixtures

SIZES = ["hidden_size", "n_layers", "n_heads", "intermediate_size", "vocab_size", "multivector_size", "max_length"]
IDS = ["cls_id", "pad_id", "eos_id", "unk_id"]

# Files


def cut(name: str) -> Damage:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def replaced(content: bytes, *names: str) -> Damage:
    """Replace files and list them, so that only the reader of a file can notice."""

    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(content)
            list_file(folder, name)

    return damage


def listing(name: str) -> Damage:
    """Make the manifest list a file outside the folder."""

    def damage(folder: Path) -> None:
        (folder.parent / "outside.bin").write_bytes(b"not yours")
        list_file(folder, name)

    return damage


def weights_at(location: str) -> Damage:
    """Make the graphs read weights from another place, where they really are."""

    def damage(folder: Path) -> None:
        place = folder / "fp32" / location.format(parent=folder.parent)
        place.parent.mkdir(exist_ok=True)
        shutil.copy(folder / "fp32/weights.bin", place)
        for name in CPU_GRAPHS:
            edit_graph(folder, name, lambda graph: move_weights(graph, location.format(parent=folder.parent)))

    return damage


LFS = "version https://git-lfs.github.com/spec/v1"
AGAIN = "export (it|the checkpoint) again"
OUT = "a path out of the folder; do not use this artifact"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no_folder": (shutil.rmtree, "no artifact folder at .*bgem3 export.*check the path"),
    "no_manifest": (lambda f: (f / MANIFEST).unlink(), "not an artifact folder.*no manifest.json.*bgem3 export"),
    "no_graph": (lambda f: (f / CPU_GRAPHS[0]).unlink(), f"fp32/cpu.onnx is missing.*copy.*{AGAIN}"),
    "cut_weights": (cut("fp16/weights.bin"), rf"weights.bin has \d+ bytes, the manifest says \d+.*{AGAIN}"),
    "path_to_parent": (listing("../outside.bin"), rf"names '\.\./outside.bin'.*{OUT}"),
    "absolute_path": (listing("/etc/passwd"), f"names '/etc/passwd'.*{OUT}"),
    "garbage_graph": (replaced(b"garbage" * 99, *CPU_GRAPHS), f"cannot open .*fp32.*Protobuf.*bgem3 verify.*{AGAIN}"),
    "empty_graph": (replaced(b"", *CPU_GRAPHS), "cannot open .*fp32.*inputs are .*bgem3 verify"),
    "short_weights": (replaced(b"short", "fp32/weights.bin"), f"cannot open .*fp32.*{AGAIN}"),
    "weights_in_parent": (weights_at("../../outside.bin"), "cannot open .*fp32.*escapes the folder"),
    "weights_at_absolute": (weights_at("{parent}/outside.bin"), "cannot open .*absolute path"),
    "weights_unlisted": (weights_at("sub/w.bin"), "reads 'fp32/sub/w.bin', which manifest.json does not list"),
    "garbage_tokenizer": (replaced(b"garbage", "tokenizer.json"), f"tokenizer.json is not a tokenizer file.*{AGAIN}"),
    "git_lfs_pointer": (lambda f: (f / "fp16/weights.bin").write_text(LFS), "git lfs pull"),
    "git_annex_pointer": (lambda f: (f / MANIFEST).write_text("/annex/objects/SHA256E-s9--4d"), "git annex get"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_with_its_name_and_what_to_do(artifact_copy: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    damage(artifact_copy)
    with pytest.raises(ArtifactError, match=f"(?s){words}"):
        BGEM3Model.load(artifact_copy, "cpu", "fp32")


def test_the_portable_graph_reads_only_what_is_listed(
    demo_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(demo_artifact, tmp_path / "artifact"))
    manifest = manifest_of(folder)
    del manifest["files"]["portable/weights.bin"]
    manifest["graphs"] = [entry for entry in manifest["graphs"] if "portable" in entry["file"]]
    write_manifest(folder, manifest)
    assert main(["verify", str(folder), "--json"]) == 2
    assert "which manifest.json does not list" in capsys.readouterr().err


def test_hashes_show_one_altered_bit_in_any_file(artifact_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (artifact_copy / "README.md").write_bytes(b"a file that the manifest need not list")
    read_artifact(artifact_copy, check_hashes=True)
    for name in manifest_of(artifact_copy)["files"]:
        content = (artifact_copy / name).read_bytes()
        (artifact_copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=rf"{name} has another SHA-256 than .*copy the artifact folder"):
            read_artifact(artifact_copy, check_hashes=True)
        (artifact_copy / name).write_bytes(content)
    (artifact_copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main(["verify", str(artifact_copy), "--json"]) == 2
    assert "SHA-256" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")], ids=range(3))
@pytest.mark.parametrize("name", [MANIFEST, "fp32/native.onnx"])
def test_what_is_no_file_is_refused_and_never_waited_for(
    artifact_copy: Path, make: Callable[[Path], None], name: str
) -> None:
    (artifact_copy / name).unlink()
    make(artifact_copy / name)
    is_read = []

    def read() -> None:
        is_artifact(artifact_copy)
        with pytest.raises(ArtifactError, match=f"{name} is not a regular file"):
            read_artifact(artifact_copy)
        is_read.append(True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=30)
    assert is_read, "reading waits, or takes it for a file"


# Manifests


def refuse(folder: Path, manifest: object, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        check_artifact(folder, manifest)


@pytest.mark.parametrize("name", [*SIZES, *IDS, "layer_norm_eps"])
def test_a_size_that_no_model_has_is_named(random_artifact: Path, name: str) -> None:
    manifest = manifest_of(random_artifact)
    too_small = manifest["model"]["vocab_size"] if name in IDS else 0
    for value in (too_small, -1, 10**30, True, 96.5, float("nan"), float("inf"), "96", None, [96], {"a": 1}):
        edited = manifest | {"model": manifest["model"] | {name: value}}
        refuse(random_artifact, edited, rf"manifest.json .*{name}.* export the checkpoint again")


FILE = {"size": 1, "sha256": "0" * 64}
FP32 = {"precision": "fp32", "device": "cpu", "operators": "onnxruntime", "file": "fp32/cpu.onnx"}


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("model", {"n_heads": 7}, "hidden_size is 96, which 7 heads"),
        ("model", {"cls_id": 2}, "special ids .* four different ones"),
        ("model", {"vocab_size": 3}, "special ids .* below 3"),
        ("model", {"heads": 4}, "'heads'"),
        ("graphs", [FP32, FP32], "fp32 on cpu .*twice"),
        ("graphs", [FP32 | {"precision": "int4"}], "no graph of 'int4' on 'cpu'"),
        ("graphs", [FP32 | {"precision": "int8", "device": "cuda"}], "no graph of 'int8' on 'cuda'"),
        ("graphs", [FP32 | {"file": "fp32/weights.bin"}], "ends in .onnx"),
        ("graphs", [FP32 | {"file": "other.onnx"}], r"does not list \['other.onnx'\]"),
        ("graphs", [{"precision": "fp32"}], "'device' is missing"),
        ("graphs", [FP32 | {"device": ["cpu"]}], "device is "),
        ("graphs", {"fp32": "fp32/cpu.onnx"}, "graphs is .* expected a list"),
        *(
            ("files", {name: {"size": 1, "sha256": "0" * 64}}, OUT)
            for name in ("a\0b", "../a", "a\\b", "C:/a", "./a", "a//b", "", ".")
        ),
        *(("files", {name: None}, f"does not list .'{name}'.") for name in (*CPU_GRAPHS, REFERENCE_FILE)),
    ],
    ids=str,
)
def test_parts_of_a_manifest_that_no_export_writes_are_named(
    random_artifact: Path, part: str, values: Any, words: str
) -> None:
    manifest = manifest_of(random_artifact)
    if part != "graphs":
        values = {name: value for name, value in (manifest[part] | values).items() if value is not None}
    refuse(random_artifact, manifest | {part: values}, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", f"not valid JSON.*{AGAIN}"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"format_version": 1, "source": "\\ud800"}', "surrogates not allowed"),
        (b"[]", f"holds a list, not an object.*{AGAIN}"),
        (b"{}", f"format version None, this bgem3 reads .*{AGAIN} .*or install the version that wrote it"),
        (b'{"format_version": true}', "format version True"),
    ],
    ids=range(6),
)
def test_a_manifest_that_is_no_object_of_this_format_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        read_artifact(tmp_path)


def test_a_manifest_larger_than_any_is_not_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).touch()
    os.truncate(tmp_path / MANIFEST, 1 << 40)  # takes no disk
    with pytest.raises(ArtifactError, match="1099511627776 bytes"):
        read_artifact(tmp_path)
    assert not is_artifact(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything in a JSON value but the value itself."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_manifest_changed_anywhere_is_refused_or_shown_and_opened(
    random_artifact: Path, artifact_copy: Path, data: st.DataObject
) -> None:
    manifest = copy.deepcopy(manifest_of(random_artifact))
    for _ in range(data.draw(st.integers(1, 2))):
        *path, key = data.draw(st.sampled_from(list(places(manifest))))
        target: Any = manifest
        for step in path:
            target = target[step]
        if data.draw(st.integers(0, 4)) == 0:
            del target[key]
        else:
            target[key] = data.draw(JSON_VALUES)
    with contextlib.suppress(ArtifactError):
        check_artifact(random_artifact, manifest)
        write_manifest(artifact_copy, manifest)
        assert main(["info", str(artifact_copy)]) == main(["info", str(artifact_copy), "--json"]) == 0
        with BGEM3Model.load(artifact_copy, "cpu") as model:
            assert np.isfinite(model.encode(TEXTS).dense).all()


# References

REFERENCES: dict[str, dict[str, NDArray[Any] | None]] = {
    "texts_an_object": {"texts": np.frombuffer(b"{}", np.uint8)},
    "texts_nested": {"texts": np.frombuffer(b"[" * 100_000, np.uint8)},
    "no_texts": {"texts": None},
    "fewer_lengths": {"n_tokens": np.array([2, 3])},
    "dense_pickled": {"dense": np.array([None], object)},
    "fewer_vectors": {"multivector": np.ones((2, 96), np.float32)},
    "huge_shape": {"sparse_shape": np.array([2**62, 2**62])},
    "descending_indptr": {"sparse_indptr": np.array([0, 5, 2])},
}


def edit_reference(source: Path, folder: Path, edit: dict[str, NDArray[Any] | None]) -> None:
    """Write a reference with other arrays, without those that are None."""
    with np.load(source / REFERENCE_FILE) as stored:
        arrays: dict[str, Any] = {name: values for name, values in (dict(stored) | edit).items() if values is not None}
    np.savez(folder / REFERENCE_FILE, **arrays)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_that_no_export_writes_is_refused(random_artifact: Path, tmp_path: Path, name: str) -> None:
    edit_reference(random_artifact, tmp_path, REFERENCES[name])
    with pytest.raises(ArtifactError, match=r"reference.npz is not a reference that an export wrote"):
        Reference.load(tmp_path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_reference_is_refused_or_read(random_artifact: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((random_artifact / REFERENCE_FILE).read_bytes())
    place = st.integers(0, 200) | st.integers(len(content) - 900, len(content) - 1)
    content[data.draw(place)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(place) :]
    (tmp_path / REFERENCE_FILE).write_bytes(content)
    with contextlib.suppress(ArtifactError):  # no other error may leave
        Reference.load(tmp_path)


def test_verify_refuses_the_reference_of_another_model(artifact_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_reference(artifact_copy, artifact_copy, {"dense": Reference.load(artifact_copy).dense[:, :48]})
    list_file(artifact_copy, REFERENCE_FILE)
    assert main(["verify", str(artifact_copy), "--json"]) == 2
    assert "dense rows of 48 numbers, the model gives 96" in capsys.readouterr().err


# Weights


def set_weight(folder: Path, tensor_name: str, value: float) -> None:
    """Overwrite the first number of a tensor in the weights of fp32."""
    graph = onnx.load(folder / "fp32/cpu.onnx", load_external_data=False).graph
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == tensor_name)
    offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
    with (folder / "fp32/weights.bin").open("r+b") as file:
        file.seek(offset)
        file.write(np.float32(value).tobytes())
    list_file(folder, "fp32/weights.bin")


@both_kernels
@pytest.mark.parametrize(
    ("tensor", "value", "damaged"),
    [
        ("embeddings.norm.weight", np.nan, ["dense", "sparse", "multivector"]),
        ("embeddings.position", np.nan, []),  # of a position that no token has
        ("layer.1.intermediate.weight", -np.inf, ["dense", "sparse", "multivector"]),
        ("multivector.bias", np.nan, ["multivector"]),
    ],
)
def test_weights_that_give_nan_are_never_taken_for_values(
    artifact_copy: Path, tensor: str, value: float, damaged: list[str], kernels: str
) -> None:
    set_weight(artifact_copy, tensor, value)
    with load(artifact_copy, kernels=kernels) as model:
        for output in model.outputs:
            refused = pytest.raises(ArtifactError, match=f"gives {output} values that are NaN or infinite")
            with refused if output in damaged else contextlib.nullcontext():
                model.encode(TEXTS, [output])


def test_weights_that_give_nan_are_found_when_the_cuda_session_warms_up(artifact_copy: Path, ran: Ran) -> None:
    set_weight(artifact_copy, "layer.0.value.bias", np.nan)
    with pytest.raises(ArtifactError, match=r"fp32/cuda.onnx gives dense values that are NaN or infinite"):
        BGEM3Model.load(artifact_copy, "cuda", "fp32")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cuda:")]
