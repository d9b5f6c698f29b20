"""What an export writes: the files, the manifest, the portable graph."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file

from bgem3.export import export_model
from bgem3.runtime import BGEM3Model
from bgem3.runtime.artifact import read_artifact, sha256_of
from bgem3.runtime.parity import Reference
from bgem3.runtime.portable_graph import encode_portable


def test_the_artifact_holds_what_the_manifest_lists_and_nothing_else(demo_artifact: Path) -> None:
    manifest = json.loads((demo_artifact / "manifest.json").read_text(encoding="utf-8"))
    found = {path.relative_to(demo_artifact).as_posix() for path in demo_artifact.rglob("*") if path.is_file()}
    assert found == {*manifest["files"], "manifest.json"}
    assert found > {"tokenizer.json", "reference.npz", "fp16/cpu.onnx", "fp16/weights.bin", "portable/model.onnx"}
    for name, entry in manifest["files"].items():
        assert entry == {"size": (demo_artifact / name).stat().st_size, "sha256": sha256_of(demo_artifact / name)}
    read_artifact(demo_artifact, check_hashes=True)


def test_the_manifest_says_what_was_exported_with_what_and_how_close_it_came(
    demo_artifact: Path, demo_checkpoint: Path
) -> None:
    manifest = read_artifact(demo_artifact).manifest
    assert manifest["source"]["files"]["config.json"] == sha256_of(demo_checkpoint / "config.json")
    assert set(manifest["versions"]) >= {"bgem3", "onnx", "onnxruntime", "torch", "transformers"}
    assert set(manifest["parity"]) == {
        "portable/model.onnx",
        *(f"{precision}/{graph}.onnx" for precision in ("fp16", "fp32") for graph in ("cpu", "cuda", "native")),
    }
    assert manifest["parity"]["fp32/cpu.onnx"]["dense_max_difference"] < 1e-6
    assert manifest["parity"]["fp16/cpu.onnx"]["n_tokens"] > 1000
    assert str(demo_checkpoint.parent) not in json.dumps(manifest)


def test_the_reference_covers_scripts_and_lengths_from_empty_to_truncated(demo_artifact: Path) -> None:
    reference = Reference.load(demo_artifact)
    assert reference.texts[0] == ""
    assert reference.n_tokens.min() == 2
    assert reference.n_tokens[-1] == 512
    with BGEM3Model.load(demo_artifact, "cpu") as model:
        truncated = model.encode(reference.texts, ("dense",)).truncated
    assert truncated.tolist() == [False] * (len(reference.texts) - 1) + [True]
    letters = {letter for text in reference.texts for letter in text}
    assert letters >= set("aéПηتהनฝ图図도ნ🚀")


def test_an_export_is_reproducible(random_checkpoint: Path, random_artifact: Path, tmp_path: Path) -> None:
    export_model(random_checkpoint, tmp_path / "again", ("fp16", "fp32"))
    for name in ("fp16/cpu.onnx", "fp16/weights.bin", "fp32/cpu.onnx", "fp32/weights.bin", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (random_artifact / name).read_bytes(), name


def test_a_half_precision_or_bin_checkpoint_exports_as_well(random_checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(random_checkpoint / "model.safetensors")
    for form in ("half", "bin"):
        folder = tmp_path / form
        folder.mkdir()
        for path in random_checkpoint.iterdir():
            if path.name != "model.safetensors":
                (folder / path.name).write_bytes(path.read_bytes())
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(halves, tmp_path / "half/model.safetensors", {"format": "pt"})
    torch.save({name: torch.from_numpy(t) for name, t in tensors.items()}, tmp_path / "bin/pytorch_model.bin")
    for form in ("half", "bin"):
        manifest = export_model(tmp_path / form, tmp_path / f"{form}-onnx", ("fp16",))
        assert not manifest["parity"]["fp16/cpu.onnx"]["missed"]
    half, full = ((tmp_path / f"{form}-onnx/fp16/weights.bin").read_bytes() for form in ("half", "bin"))
    assert half == full, "rounding to fp16 before or during the export must give the same weights"


def test_the_portable_graph_has_standard_operators_and_the_built_graphs_results(demo_artifact: Path) -> None:
    path = demo_artifact / "portable/model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert [opset.domain for opset in model.opset_import] == [""]
    texts = ["What is BM25?", "", "хлеб <pad> 面包 " * 30, "a"]
    with BGEM3Model.load(demo_artifact, "cpu", "fp32") as built:
        expected = built.encode(texts)
    found = encode_portable(read_artifact(demo_artifact), texts)
    np.testing.assert_allclose(found.dense, expected.dense, atol=1e-5)
    np.testing.assert_allclose(found.multivector.packed, expected.multivector.packed, atol=1e-5)
    np.testing.assert_allclose(found.sparse.toarray(), expected.sparse.toarray(), atol=1e-5)


def test_progress_bars_show_weights_reference_and_verification(
    random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(random_checkpoint, tmp_path / "shown", show_progress=True)
    shown = capsys.readouterr().err
    assert all(words in shown for words in ("fp16 weights", "reference", "text/s"))
    export_model(random_checkpoint, tmp_path / "quiet")
    assert capsys.readouterr().err == ""
