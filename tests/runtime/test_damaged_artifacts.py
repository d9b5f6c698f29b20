"""Artifacts with files or manifest entries that are missing, damaged or hostile."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bgem3.runtime import ArtifactError, BGEM3Model
from bgem3.runtime.artifact import MANIFEST, read_artifact, sha256_of
from bgem3.runtime.cli import main
from bgem3.scoring import (
    Embeddings,
)


def assert_raises(call: Callable[[], object], kind: type[Exception], *words: str) -> None:
    """Check the very type of what a call raises, and that the message holds the words (regexes) in this order."""
    with pytest.raises(kind, match="(?s)" + ".*".join(words)) as caught:
        call()
    assert caught.type is kind


# Damaged artifacts


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def fix_manifest(folder: Path) -> None:
    """Give the manifest the sizes and hashes of the files as they are now."""

    def edit(manifest: dict[str, Any]) -> None:
        for name, entry in manifest["files"].items():
            entry |= {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}

    edit_manifest(folder, edit)


def manifest_of(content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())


def manifest_with(**values: object) -> Callable[[Path], object]:
    return lambda folder: edit_manifest(folder, lambda manifest: manifest.update(values))


def manifest_without(*keys: str) -> Callable[[Path], object]:
    def edit(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return lambda folder: edit_manifest(folder, edit)


def model_with(**values: object) -> Callable[[Path], object]:
    return lambda folder: edit_manifest(folder, lambda manifest: manifest["model"].update(values))


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def truncated(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def swapped(folder: Path) -> None:
    """Exchange the graphs of the two precisions."""
    (folder / "fp16/cpu.onnx").rename(folder / "graph")
    (folder / "fp32/cpu.onnx").rename(folder / "fp16/cpu.onnx")
    (folder / "graph").rename(folder / "fp32/cpu.onnx")


def naming(name: str, path: str | None = None) -> Callable[[Path], object]:
    """Make the manifest name a file that is really there, with its right size and hash."""

    def damage(folder: Path) -> None:
        outside = folder / (path or name)
        if not outside.exists():
            outside.write_bytes(b"not yours")
        entry = {"size": outside.stat().st_size, "sha256": sha256_of(outside)}
        edit_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))

    return damage


CPU_GRAPHS = ["fp32/cpu.onnx", "fp32/native.onnx"]


def replaced(names: list[str], content: bytes) -> Callable[[Path], object]:
    """Replace files and fix the manifest, so that only the reader of a file can notice."""

    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(content)
        fix_manifest(folder)

    return damage


def weights_at(location: str) -> Callable[[Path], object]:
    """Make the graph point to weights in another place, where they really are."""

    def damage(folder: Path) -> None:
        shutil.copy(folder / "fp32/weights.bin", folder.parent / "outside.bin")
        for graph in CPU_GRAPHS:
            model = onnx.load(folder / graph, load_external_data=False)
            for tensor in model.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = location.format(parent=folder.parent)
            (folder / graph).write_bytes(model.SerializeToString())
        fix_manifest(folder)

    return damage


AGAIN = "export (it|the checkpoint) again"
ENTRY = [MANIFEST, "lacks an entry or has a wrong one"]
OUT = "a path out of the folder; do not use this artifact"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(shutil.rmtree, ["no artifact folder at", "bgem3 export", "check the path"], id="folder_missing"),
        pytest.param(
            file_in_its_place,
            ["no artifact folder at", "bgem3 export"],
            id="a_file_in_its_place",
        ),
        pytest.param(
            without(MANIFEST), ["not an artifact folder", "no manifest.json", "bgem3 export"], id="no_manifest"
        ),
        pytest.param(manifest_of("{"), [MANIFEST, "not valid JSON", AGAIN], id="manifest_cut"),
        pytest.param(manifest_of(""), [MANIFEST, "not valid JSON", AGAIN], id="manifest_empty"),
        pytest.param(manifest_of(b"\xff\xfe\x00"), [MANIFEST, "not valid JSON", AGAIN], id="manifest_binary"),
        pytest.param(manifest_of("[" * 100_000), [MANIFEST, "not valid JSON", AGAIN], id="manifest_nested"),
        pytest.param(manifest_of("[]"), [MANIFEST, "holds a list, not an object", AGAIN], id="manifest_list"),
        pytest.param(manifest_of("null"), [MANIFEST, "holds a NoneType", AGAIN], id="manifest_null"),
        pytest.param(manifest_of("{}"), [MANIFEST, "format version None", "reads 1", AGAIN], id="manifest_no_version"),
        pytest.param(
            manifest_with(format_version=2),
            ["format version 2", "this bgem3 reads 1", AGAIN, "install the version that wrote it"],
            id="another_format_version",
        ),
        pytest.param(manifest_without("model"), [*ENTRY, "model", AGAIN], id="no_model"),
        pytest.param(manifest_without("graphs"), [*ENTRY, "graphs", AGAIN], id="no_graphs"),
        pytest.param(manifest_without("files"), [*ENTRY, "files", AGAIN], id="no_files"),
        pytest.param(manifest_without("source"), [*ENTRY, "source", AGAIN], id="no_source"),
        pytest.param(manifest_without("versions"), [*ENTRY, "versions", AGAIN], id="no_versions"),
        pytest.param(manifest_without("model", "pad_id"), [*ENTRY, "pad_id", AGAIN], id="no_pad_id"),
        pytest.param(manifest_without("files", "tokenizer.json", "size"), [*ENTRY, "size", AGAIN], id="no_size"),
        pytest.param(
            manifest_without("files", "fp32/cpu.onnx"), [r"not list \['fp32/cpu.onnx'\]"], id="graph_unlisted"
        ),
        pytest.param(manifest_without("files", "tokenizer.json"), ["not list .*tokenizer"], id="tokenizer_unlisted"),
        pytest.param(manifest_with(graphs=5), [*ENTRY, AGAIN], id="graphs_no_list"),
        pytest.param(
            manifest_with(graphs=[{"precision": "fp32", "device": "cpu", "file": [1]}]), ENTRY, id="graph_list"
        ),
        pytest.param(manifest_with(files=[]), [*ENTRY, AGAIN], id="files_no_object"),
        pytest.param(model_with(heads=4), [*ENTRY, "heads", AGAIN], id="unknown_dimension"),
        pytest.param(model_with(hidden_size="96"), [*ENTRY, "hidden_size is '96'", AGAIN], id="dimension_str"),
        pytest.param(model_with(max_length=None), [*ENTRY, "max_length is None", AGAIN], id="dimension_null"),
        pytest.param(without("fp32/cpu.onnx"), ["fp32/cpu.onnx is missing", "copy", AGAIN], id="graph_missing"),
        pytest.param(without("fp32/weights.bin"), ["fp32/weights.bin is missing", "copy", AGAIN], id="weights_missing"),
        pytest.param(without("tokenizer.json"), ["tokenizer.json is missing", "copy", AGAIN], id="tokenizer_missing"),
        pytest.param(without("reference.npz"), ["reference.npz is missing", "copy", AGAIN], id="reference_missing"),
        pytest.param(
            truncated("fp32/weights.bin"), [r"weights.bin has \d+ bytes, the manifest says"], id="weights_cut"
        ),
        pytest.param(truncated("fp16/weights.bin"), [r"weights.bin has \d+ bytes, the manifest says"], id="others_cut"),
        pytest.param(truncated("fp32/cpu.onnx"), [r"cpu.onnx has \d+ bytes, the manifest says", AGAIN], id="graph_cut"),
        pytest.param(truncated("tokenizer.json"), [r"tokenizer.json has \d+ bytes, the mani"], id="tokenizer_cut"),
        pytest.param(swapped, [r"cpu.onnx has \d+ bytes, the manifest says \d+", "copy", AGAIN], id="graphs_swapped"),
        pytest.param(naming("../outside.bin"), [r"names '\.\./outside.bin'", OUT], id="path_to_parent"),
        pytest.param(naming("fp32/../../outside.bin"), ["outside.bin'", OUT], id="path_through_parent"),
        pytest.param(naming("/etc/passwd"), ["names '/etc/passwd'", OUT], id="path_absolute"),
        pytest.param(naming("a\\..\\b"), [r"names 'a\\\\\.\.\\\\b'", OUT], id="path_with_backslashes"),
        pytest.param(
            replaced(CPU_GRAPHS, b"garbage" * 99),
            [r"cannot open .*fp32/(cpu|native).onnx", "[Pp]rotobuf", "bgem3 verify", AGAIN],
            id="graph_garbage",
        ),
        pytest.param(replaced(CPU_GRAPHS, b""), ["cannot open .*fp32", "bgem3 verify"], id="graph_empty"),
        pytest.param(replaced(["fp32/weights.bin"], b"short"), ["cannot open .*fp32", AGAIN], id="weights_short"),
        pytest.param(weights_at("../../outside.bin"), ["cannot open .*fp32", "escapes"], id="graph_to_parent"),
        pytest.param(weights_at("{parent}/outside.bin"), ["cannot open", "[Aa]bsolute path"], id="graph_to_absolute"),
        pytest.param(
            replaced(["tokenizer.json"], b"garbage"), ["tokenizer.json is not a tokenizer file", AGAIN], id="tokenizer"
        ),
        pytest.param(
            replaced(["tokenizer.json"], b"{}"), ["tokenizer.json is not a tokenizer file", AGAIN], id="tokenizer_empty"
        ),
        pytest.param(
            replaced(["tokenizer.json"], b"\xff\xfe"),
            ["tokenizer.json is not a tokenizer", AGAIN],
            id="tokenizer_binary",
        ),
    ],
)
def test_a_damaged_artifact_is_refused_with_the_file_and_what_to_do(
    random_artifact: Path, tmp_path: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(random_artifact, folder)
    damage(folder)
    assert_raises(lambda: BGEM3Model.load(folder, "cpu", "fp32"), ArtifactError, *words)


def test_a_manifest_that_names_a_path_out_of_the_folder_is_refused_before_the_file_is_read(
    random_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(random_artifact, folder)
    naming("../outside.bin")(folder)
    hashed: list[Path] = []

    def spy(path: Path) -> str:
        hashed.append(path.resolve())
        return sha256_of(path)

    monkeypatch.setattr("bgem3.runtime.artifact.sha256_of", spy)
    assert_raises(lambda: read_artifact(folder, check_hashes=True), ArtifactError, OUT)
    assert tmp_path / "outside.bin" not in hashed
    assert folder / "tokenizer.json" in hashed


def test_an_altered_byte_is_found_by_hashes_alone(
    random_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(random_artifact, folder)
    assert main(["verify", str(folder), "--json"]) == 0
    with (folder / "fp32/weights.bin").open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))  # the lowest bit of a weight
    BGEM3Model.load(folder, "cpu", "fp32").close()
    words = r"weights\.bin has another SHA-256 than the manifest says", "copy the artifact folder again"
    assert_raises(lambda: BGEM3Model.load(folder, "cpu", "fp32", check_hashes=True), ArtifactError, *words)
    capsys.readouterr()
    assert main(["verify", str(folder), "--json"]) == 2
    assert "SHA-256" in capsys.readouterr().err


def assert_finite(found: Embeddings) -> None:
    assert np.isfinite(found.dense).all()
    assert np.isfinite(found.sparse.data).all()
    assert np.isfinite(found.multivector.packed).all()


def assert_same(found: Embeddings, expected: Embeddings) -> None:
    np.testing.assert_array_equal(found.n_tokens, expected.n_tokens)
    np.testing.assert_array_equal(found.truncated, expected.truncated)
    np.testing.assert_array_equal(found.dense, expected.dense)
    np.testing.assert_array_equal(found.multivector.packed, expected.multivector.packed)
    assert found.lexical_weights == expected.lexical_weights
