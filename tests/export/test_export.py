"""The files that an export writes, the manifest, and the portable graph."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bgem3.export import export_model
from bgem3.runtime import BGEM3Model
from bgem3.runtime.artifact import read_artifact, sha256_of
from bgem3.runtime.portable_graph import encode_portable
from tests.export.checkpoints import QUERY, TOKENIZER, edited, weights


def test_the_artifact_holds_what_the_manifest_lists_and_nothing_else(
    demo_artifact: Path, demo_checkpoint: Path
) -> None:
    manifest = read_artifact(demo_artifact, check_hashes=True).manifest
    found = {path.relative_to(demo_artifact).as_posix() for path in demo_artifact.rglob("*") if path.is_file()}
    graphs = {f"{precision}/{graph}.onnx" for precision in ("fp16", "fp32") for graph in ("cpu", "cuda", "native")}
    graphs.add("portable/model.onnx")
    weights = {f"{folder}/weights.bin" for folder in ("fp16", "fp32", "portable")}
    assert found == {*manifest["files"], "manifest.json"}
    assert found == {"tokenizer.json", "reference.npz", "manifest.json", *weights, *graphs}
    assert manifest["source"]["files"]["config.json"] == sha256_of(demo_checkpoint / "config.json")
    assert set(manifest["versions"]) >= {"bgem3", "onnx", "onnxruntime", "torch", "transformers"}
    assert set(manifest["parity"]) == graphs
    assert manifest["parity"]["fp32/cpu.onnx"]["dense_max_difference"] < 1e-6
    assert manifest["parity"]["fp16/cpu.onnx"]["n_tokens"] > 1000
    assert str(demo_checkpoint.parent) not in json.dumps(manifest)
    assert all((demo_artifact / graph).stat().st_size < 100_000 for graph in graphs), "graphs share weights.bin"


def test_an_export_is_reproducible_and_rounds_like_a_half_precision_checkpoint(
    checkpoint_copy: Path, random_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_model(checkpoint_copy, tmp_path / "again", show_progress=True)
    shown = capsys.readouterr().err
    assert all(words in shown for words in ("fp16 weights", "reference", "text/s"))
    weights(lambda t: {name: t[name].half() for name in t})(checkpoint_copy)
    export_model(checkpoint_copy, tmp_path / "half")
    assert capsys.readouterr().err == "", "no progress is shown unless asked for"
    for name in ("fp16/cpu.onnx", "fp16/cuda.onnx", "fp16/native.onnx", "fp16/weights.bin", "tokenizer.json"):
        for folder in ("again", "half"):
            assert (tmp_path / folder / name).read_bytes() == (random_artifact / name).read_bytes(), name


def test_a_weight_too_large_for_fp16_is_named_and_fp32_still_works(checkpoint_copy: Path, tmp_path: Path) -> None:
    weights(lambda t: t | {QUERY: t[QUERY].fill_(1e6)})(checkpoint_copy)
    words = r"weight 'layer.0.query.weight' reaches 1e\+06, beyond the largest float16.*precisions=\('fp32',\)"
    with pytest.raises(OverflowError, match=words):
        export_model(checkpoint_copy, tmp_path / "artifact", ("fp32", "fp16"))
    assert not (tmp_path / "artifact").exists()
    export_model(checkpoint_copy, tmp_path / "artifact", "fp32")
    with BGEM3Model.load(tmp_path / "artifact", "cpu") as model:
        assert np.isfinite(model.encode(["text"]).multivector.packed).all()


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


def test_a_model_of_other_dimensions_and_special_ids_exports_with_parity(
    demo_checkpoint: Path, make_random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Nothing assumes BGE-M3's size: odd widths, one layer, a narrow colbert head, shuffled special ids."""
    new_id = {0: 5, 5: 0, 1: 7, 7: 1, 2: 9, 9: 2, 3: 4, 4: 3}

    def shuffle(values: dict[str, Any]) -> None:
        vocabulary = values["model"]["vocab"]
        values["model"] |= {"vocab": [vocabulary[new_id.get(i, i)] for i in range(len(vocabulary))], "unk_id": 4}
        for token in values["added_tokens"]:
            token["id"] = new_id.get(token["id"], token["id"])
        for special in values["post_processor"]["special_tokens"].values():
            special["ids"] = [new_id[i] for i in special["ids"]]

    (tmp_path / "tokenizer.json").write_bytes((demo_checkpoint / "tokenizer.json").read_bytes())
    edited(TOKENIZER, shuffle)(tmp_path)
    dimensions = {"hidden": 60, "layers": 1, "heads": 5, "intermediate": 84, "max_length": 50, "multivector": 24}
    checkpoint = make_random_checkpoint(tmp_path / "tokenizer.json", tmp_path / "ck", weight_std=0.1, **dimensions)
    manifest = export_model(checkpoint, tmp_path / "artifact", ("fp32", "fp16"), portable=True)
    expected = {"cls_id": 5, "pad_id": 7, "eos_id": 9, "unk_id": 4, "hidden_size": 60, "multivector_size": 24}
    assert {name: manifest["model"][name] for name in expected} == expected
    assert manifest["model"]["max_length"] == 50
    assert manifest["parity"]["fp32/cpu.onnx"]["dense_max_difference"] < 1e-6
    assert not any(report["missed"] for report in manifest["parity"].values())
    with BGEM3Model.load(tmp_path / "artifact", "cpu", "fp32") as model:
        assert model.encode(["BM25"]).multivector[0].shape[1] == 24
