"""Fine-tunes that were saved without their heads: other checkpoints' heads, and artifacts of fewer outputs."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bgem3.export import export_model
from bgem3.export.reference import SENTENCES
from bgem3.runtime import ArtifactError, BGEM3FlagModel, BGEM3Model, CheckpointError
from bgem3.runtime.artifact import read_artifact, sha256_of
from bgem3.runtime.cli import main
from bgem3.runtime.cpu_session import Output
from bgem3.runtime.device import open_encoder
from tests.runtime.test_cuda_session import Ran, cudart, ran  # noqa: F401 - fixtures

HEADS = ("sparse_linear.pt", "colbert_linear.pt")
TEXTS = ["", *SENTENCES[:5], " ".join(SENTENCES[:4])]
SUBSETS: dict[str, tuple[Output, ...]] = {
    "dense": ("dense",),
    "sparse": ("dense", "sparse"),
    "multivector": ("dense", "multivector"),
}


@pytest.fixture(scope="module")
def headless(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as sentence-transformers saves a fine-tune: without heads."""
    folder = Path(shutil.copytree(random_checkpoint, tmp_path_factory.mktemp("headless") / "fine-tune"))
    for name in HEADS:
        (folder / name).unlink()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "modules.json").write_text("[]")
    return folder


@pytest.fixture(scope="module")
def artifacts(headless: Path, random_checkpoint: Path, export_to_folder: Callable[..., Path]) -> dict[str, Path]:
    """An artifact for each subset of outputs, made of a checkpoint with the heads for these alone."""
    folders = {}
    for name, outputs in SUBSETS.items():
        checkpoint = Path(shutil.copytree(headless, headless.parent / name))
        if name == "sparse":
            shutil.copy(random_checkpoint / "sparse_linear.pt", checkpoint)
        if name == "multivector":
            shutil.copy(random_checkpoint / "colbert_linear.pt", checkpoint)
        precisions, portable = (("fp16", "fp32"), True) if name == "dense" else (("fp32",), False)
        folders[name] = export_to_folder(checkpoint, precisions, outputs=outputs, portable=portable)
    return folders


@pytest.fixture(scope="module")
def dense_artifact(artifacts: dict[str, Path]) -> Path:
    return artifacts["dense"]


# Other checkpoints' heads


def test_heads_from_a_folder_give_the_artifact_of_a_whole_checkpoint(
    headless: Path, random_checkpoint: Path, random_artifact: Path, tmp_path: Path
) -> None:
    manifest = export_model(headless, tmp_path / "artifact", "fp32", heads_from=random_checkpoint)
    whole = read_artifact(random_artifact).manifest
    assert "outputs" not in manifest
    for name in ("fp32/weights.bin", "fp32/cpu.onnx", "fp32/cuda.onnx", "fp32/native.onnx", "tokenizer.json"):
        assert manifest["files"][name] == whole["files"][name]
    assert manifest["source"]["id"] == "fine-tune"
    assert set(manifest["source"]["files"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert manifest["source"]["heads_from"] == {
        "id": random_checkpoint.name,
        "revision": None,
        "files": {name: sha256_of(random_checkpoint / name) for name in HEADS},
    }


def test_of_a_hub_id_only_the_heads_are_downloaded(
    headless: Path, random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def download(hub_id: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append((hub_id, allow_patterns))
        snapshot.mkdir(parents=True)
        for name in allow_patterns:
            shutil.copy(random_checkpoint / name, snapshot)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    arguments = ["--heads-from", "BAAI/bge-m3", "--outputs", "dense", "sparse", "--precision", "fp32", "--json"]
    assert main(["export", str(headless), str(tmp_path / "artifact"), *arguments]) == 0
    assert asked == [("BAAI/bge-m3", ["sparse_linear.pt"])]
    manifest = read_artifact(tmp_path / "artifact").manifest
    assert manifest["outputs"] == ["dense", "sparse"]
    assert (manifest["source"]["heads_from"]["id"], manifest["source"]["heads_from"]["revision"]) == (
        "BAAI/bge-m3",
        snapshot.name,
    )


def stored_head(n_outputs: int, n_inputs: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.ones(n_outputs, n_inputs), "bias": torch.ones(n_outputs)}


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        pytest.param({}, r"heads_from='.*heads' has no sparse_linear\.pt and no colbert_linear\.pt", id="none"),
        pytest.param({"sparse_linear.pt": stored_head(1, 96)}, r"heads' has no colbert_linear\.pt", id="one"),
        pytest.param(
            {"sparse_linear.pt": stored_head(1, 64), "colbert_linear.pt": stored_head(64, 64)},
            r"sparse_linear\.pt has weight \(1, 64\).*expected \(1, 96\)",
            id="of_a_smaller_model",
        ),
    ],
)
def test_heads_that_are_missing_or_of_another_model_are_refused(
    headless: Path, tmp_path: Path, heads: dict[str, dict[str, torch.Tensor]], words: str
) -> None:
    (tmp_path / "heads").mkdir()
    for name, state in heads.items():
        torch.save(state, tmp_path / "heads" / name)
    with pytest.raises(CheckpointError, match=words):
        export_model(headless, tmp_path / "artifact", "fp32", heads_from=tmp_path / "heads")
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"outputs": ("sparse",)}, r"outputs must be 'dense' and any other of .*found \('sparse',\)"),
        ({"outputs": ()}, r"outputs must be 'dense'.*found \(\)"),
        ({"outputs": ("dense", "colbert")}, r"outputs must be 'dense'.*found \('dense', 'colbert'\)"),
        ({"outputs": ("dense",), "heads_from": "BAAI/bge-m3"}, "heads_from='BAAI/bge-m3' gives heads.*leave one out"),
    ],
)
def test_outputs_that_cannot_be_exported_are_refused(
    headless: Path, tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        export_model(headless, tmp_path / "artifact", **arguments)


def test_a_checkpoint_without_heads_names_both_ways_on(headless: Path, tmp_path: Path) -> None:
    words = r"no sparse_linear\.pt and no colbert_linear\.pt.*heads_from='BAAI/bge-m3'.*--outputs dense"
    with pytest.raises(CheckpointError, match=words):
        export_model(headless, tmp_path / "artifact")
    with pytest.raises(CheckpointError, match=words):  # the drop-in keeps no export without heads
        BGEM3FlagModel(headless, devices="cpu", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


# Artifacts of fewer outputs


@pytest.mark.parametrize("name", SUBSETS)
@pytest.mark.parametrize("kernels", ["auto", "none"])
def test_an_artifact_of_fewer_outputs_gives_what_the_whole_one_gives(
    artifacts: dict[str, Path], random_artifact: Path, name: str, kernels: str
) -> None:
    models = []
    for folder in (artifacts[name], random_artifact):
        artifact = read_artifact(folder)
        session = open_encoder(artifact, device="cpu", precision="fp32", n_threads=1, kernels=kernels)
        models.append(BGEM3Model(artifact, session))
    model, whole = models
    assert model.outputs == SUBSETS[name]
    assert whole.outputs == ("dense", "sparse", "multivector")
    found, expected = model.encode(TEXTS), whole.encode(TEXTS, SUBSETS[name])
    assert found.outputs == SUBSETS[name]
    np.testing.assert_array_equal(found.dense, expected.dense)
    if name == "sparse":
        assert found.lexical_weights == expected.lexical_weights
    if name == "multivector":
        np.testing.assert_array_equal(found.multivector.packed, expected.multivector.packed)
    for model in models:
        model.close()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_dense_only_artifact_runs_on_cuda(
    dense_artifact: Path,
    random_artifact: Path,
    ran: Ran,  # noqa: F811
    precision: str,
    cuda_graphs: bool,
) -> None:
    with BGEM3Model.load(random_artifact, "cpu", precision) as whole:
        expected = whole.encode(TEXTS, ("dense",)).dense
    with BGEM3Model.load(dense_artifact, "cuda", precision, cuda_graphs=cuda_graphs) as model:
        found = model.encode(TEXTS)
    assert found.outputs == ("dense",)
    np.testing.assert_allclose(found.dense, expected, atol=2e-3 if precision == "fp16" else 1e-5)


@pytest.mark.parametrize("outputs", [("sparse",), ("multivector",), ("dense", "sparse", "multivector"), "sparse"])
def test_outputs_that_are_not_there_say_why_and_what_to_do(dense_artifact: Path, outputs: Sequence[Output]) -> None:
    words = r"exported without (sparse|multivector).*gives dense alone.*export the checkpoint again.*heads_from"
    with BGEM3Model.load(dense_artifact, "cpu", "fp32") as model, pytest.raises(ValueError, match=words):
        model.encode(TEXTS, outputs)


def test_embeddings_without_an_output_name_the_export_as_a_reason(dense_artifact: Path) -> None:
    with BGEM3Model.load(dense_artifact, device="cpu") as model:
        found = model.encode(["the sea"])
    with pytest.raises(AttributeError, match="not asked for, or the model was exported without it"):
        _ = found.sparse


def test_scores_that_need_other_outputs_say_why_and_what_to_do(dense_artifact: Path) -> None:
    words = r"exported without sparse and multivector.*heads_from"
    with BGEM3Model.load(dense_artifact, "cpu", "fp32") as model:
        with pytest.raises(ValueError, match=words):
            model.score(["a"], ["b"])
        with pytest.raises(ValueError, match=words):
            model.score_pairs([("a", "b")])
    flag = BGEM3FlagModel(dense_artifact, devices="cpu", use_fp16=False)
    assert flag.encode("text")["dense_vecs"].shape == (96,)
    calls: list[Callable[[], object]] = [
        lambda: flag.encode("text", return_sparse=True),
        lambda: flag.compute_score(("a", "b")),
        lambda: flag.compute_score(("a", "b"), max_query_length=3, max_passage_length=4),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=words.replace("sparse and multivector", "sparse")):
            call()


def test_the_command_line_encodes_verifies_and_shows_a_dense_only_artifact(
    dense_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("the sea\n")
    assert main(["encode", str(dense_artifact), str(tmp_path / "texts.txt"), "--device", "cpu"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"dense"}
    assert main(["verify", str(dense_artifact), "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert {"fp16/cpu.onnx", "fp32/cpu.onnx", "fp32/native.onnx", "portable/model.onnx"} <= set(reports)
    assert not {name for report in reports.values() for name in report.get("bounds", ()) if "dense" not in name}
    assert main(["info", str(dense_artifact)]) == 0
    assert "outputs" in capsys.readouterr().out
    assert main(["score", str(dense_artifact), "-q", "a", "-p", "b", "--device", "cpu"]) == 2
    assert "exported without sparse and multivector" in capsys.readouterr().err


@pytest.mark.parametrize(
    "listed", [[], ["sparse"], ["dense", "colbert"], ["sparse", "dense"], "dense", 3, None, [["x"]]]
)
def test_a_manifest_that_lists_other_outputs_is_refused(dense_artifact: Path, tmp_path: Path, listed: object) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(dense_artifact, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"outputs": listed}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"wrong one.*outputs|not iterable"):
        read_artifact(folder)


# Few positions


@pytest.mark.parametrize(("n_positions", "outputs"), [(64, SUBSETS["dense"]), (5, ("dense", "sparse", "multivector"))])
def test_int8_takes_a_model_of_few_positions(
    demo_checkpoint: Path, tmp_path: Path, n_positions: int, outputs: tuple[Output, ...]
) -> None:
    folder = Path(shutil.copytree(demo_checkpoint, tmp_path / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    name = "embeddings.position_embeddings.weight"
    save_file(tensors | {name: tensors[name][: n_positions + 2].clone()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = n_positions + 2
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    manifest = export_model(folder, tmp_path / "artifact", "int8", outputs=outputs, calibration=list(SENTENCES))
    assert manifest["model"]["max_length"] == n_positions
    assert "hybrid_top_passages_changed" in manifest["int8"]["quality"] or outputs == ("dense",)
    with BGEM3Model.load(tmp_path / "artifact", "cpu") as model:
        assert model.encode(["a long text " * 100]).n_tokens.tolist() == [n_positions]
