"""Artifacts of fewer outputs, and heads of another checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch

from bgem3.export import export_model
from bgem3.export.reference import SENTENCES
from bgem3.runtime import ArtifactError, BGEM3FlagModel, BGEM3Model, CheckpointError
from bgem3.runtime.artifact import read_artifact, sha256_of
from bgem3.runtime.cli import main
from bgem3.runtime.device import open_encoder
from bgem3.runtime.manifest import Output
from tests.export.checkpoints import HEADS, remove, settings
from tests.runtime.cuda_stand_in import Ran, cudart, ran  # noqa: F401 - fixtures

TEXTS = ["", *SENTENCES[:5], " ".join(SENTENCES[:4])]
SUBSETS: dict[str, tuple[Output, ...]] = {
    "dense": ("dense",),
    "sparse": ("dense", "sparse"),
    "multivector": ("dense", "multivector"),
}


@pytest.fixture(scope="module")
def headless(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as sentence-transformers saves a fine-tune: without heads."""
    folder = Path(copytree(random_checkpoint, tmp_path_factory.mktemp("headless") / "fine-tune"))
    remove(*HEADS)(folder)
    return folder


@pytest.fixture(scope="module")
def artifacts(headless: Path, random_checkpoint: Path, export_to_folder: Callable[..., Path]) -> dict[str, Path]:
    """An artifact for each subset of outputs, with heads of its own or of another checkpoint."""
    return {
        "dense": export_to_folder(headless, "fp32", outputs=SUBSETS["dense"], portable=True),
        "sparse": export_to_folder(headless, "fp32", outputs=SUBSETS["sparse"], heads_from=random_checkpoint),
        "multivector": export_to_folder(random_checkpoint, "fp32", outputs=SUBSETS["multivector"]),
    }


def test_heads_from_a_folder_give_the_artifact_of_a_whole_checkpoint(
    headless: Path, random_checkpoint: Path, random_artifact: Path, tmp_path: Path
) -> None:
    manifest = export_model(headless, tmp_path / "artifact", "fp32", heads_from=random_checkpoint)
    whole = read_artifact(random_artifact).manifest
    assert "outputs" not in manifest
    for name in ("fp32/weights.bin", "fp32/cpu.onnx", "fp32/cuda.onnx", "fp32/native.onnx", "tokenizer.json"):
        assert manifest["files"][name] == whole["files"][name]
    assert set(manifest["source"]["files"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    hashes = {name: sha256_of(random_checkpoint / name) for name in HEADS}
    assert manifest["source"]["heads_from"] == {"id": random_checkpoint.name, "revision": None, "files": hashes}


@pytest.mark.parametrize(
    ("widths", "words"),
    [
        ({}, r"heads_from='.*heads' has no sparse_linear\.pt and no colbert_linear\.pt"),
        ({"sparse_linear.pt": (1, 96)}, r"heads' has no colbert_linear\.pt"),
        ({"sparse_linear.pt": (1, 64), "colbert_linear.pt": (64, 64)}, r"has weight \(1, 64\).*expected \(1, 96\)"),
    ],
    ids=["none", "one", "narrow"],
)
def test_heads_that_are_missing_or_of_another_model_are_refused(
    headless: Path, tmp_path: Path, widths: dict[str, tuple[int, int]], words: str
) -> None:
    (tmp_path / "heads").mkdir()
    for name, (n_outputs, n_inputs) in widths.items():
        torch.save(torch.nn.Linear(n_inputs, n_outputs).state_dict(), tmp_path / "heads" / name)
    with pytest.raises(CheckpointError, match=words):
        export_model(headless, tmp_path / "artifact", "fp32", heads_from=tmp_path / "heads")
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"outputs": ("sparse",)}, r"outputs must be 'dense' and any other of .*found \('sparse',\)"),
        ({"outputs": ()}, r"outputs must be 'dense'.*found \(\)"),
        ({"outputs": ("dense", "colbert")}, r"outputs must be 'dense'.*found \('dense', 'colbert'\)"),
        ({"outputs": ("dense",), "heads_from": "BAAI/bge-m3"}, "needs no heads, but heads_from='BAAI/bge-m3' is given"),
        ({"precisions": ("fp16", "bf16")}, r"precisions must be .*'fp32', 'int8'\), found \('fp16', 'bf16'\)"),
        ({"precisions": "fp64"}, "precisions must be .*found 'fp64'"),
        ({"precisions": ()}, r"precisions must be .*found \(\)"),
    ],
)
def test_unknown_outputs_and_precisions_are_refused(
    headless: Path, tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        export_model(headless, tmp_path / "artifact", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SUBSETS)
@pytest.mark.parametrize("kernels", ["auto", "none"])
def test_an_artifact_of_fewer_outputs_gives_what_the_whole_one_gives(
    artifacts: dict[str, Path], random_artifact: Path, name: str, kernels: str
) -> None:
    found, expected = (
        BGEM3Model(artifact, open_encoder(artifact, device="cpu", precision="fp32", n_threads=1, kernels=kernels))
        for artifact in map(read_artifact, (artifacts[name], random_artifact))
    )
    with found, expected:
        assert found.outputs == SUBSETS[name]
        ours, theirs = found.encode(TEXTS), expected.encode(TEXTS, SUBSETS[name])
    assert ours.outputs == SUBSETS[name]
    np.testing.assert_array_equal(ours.dense, theirs.dense)
    if name == "sparse":
        assert ours.lexical_weights == theirs.lexical_weights
    if name == "multivector":
        np.testing.assert_array_equal(ours.multivector.packed, theirs.multivector.packed)


def test_outputs_that_are_not_there_say_why_and_what_to_do(artifacts: dict[str, Path]) -> None:
    flag = BGEM3FlagModel(artifacts["dense"], devices="cpu", use_fp16=False)
    assert flag.encode("text")["dense_vecs"].shape == (96,)
    with BGEM3Model.load(artifacts["dense"], "cpu", "fp32") as model:
        calls: list[Callable[[], object]] = [
            lambda: model.encode(TEXTS, ("dense", "multivector")),
            lambda: model.encode(TEXTS, ("sparse",)),
            lambda: model.score(["a"], ["b"]),
            lambda: model.score_pairs([("a", "b")]),
            lambda: flag.encode("text", return_sparse=True),
            lambda: flag.compute_score(("a", "b"), max_query_length=3, max_passage_length=4),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=r"exported without (sparse|multivector).*heads_from"):
                call()
        with pytest.raises(AttributeError, match="not asked for, or the model was exported without it"):
            _ = model.encode(["the sea"]).sparse


def test_the_command_line_encodes_and_verifies_a_dense_only_artifact(
    artifacts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(artifacts["dense"])
    (tmp_path / "texts.txt").write_text("the sea\n")
    assert main(["encode", folder, str(tmp_path / "texts.txt"), "--device", "cpu"]) == 0
    assert "dense" in json.loads(capsys.readouterr().out)
    assert main(["verify", folder, "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert {"fp32/cpu.onnx", "fp32/native.onnx", "portable/model.onnx"} <= set(reports)
    assert not {name for report in reports.values() for name in report.get("bounds", ()) if "dense" not in name}


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_dense_only_artifact_runs_on_cuda(
    artifacts: dict[str, Path],
    random_model: BGEM3Model,
    ran: Ran,  # noqa: F811
    cuda_graphs: bool,
) -> None:
    with BGEM3Model.load(artifacts["dense"], "cuda", "fp32", cuda_graphs=cuda_graphs) as model:
        found = model.encode(TEXTS)
    assert found.outputs == ("dense",)
    np.testing.assert_allclose(found.dense, random_model.encode(TEXTS).dense, atol=1e-5)


@pytest.mark.parametrize("listed", [[], ["dense", "colbert"], ["sparse", "dense"], "dense", None, [["x"]]])
def test_a_manifest_that_lists_other_outputs_is_refused(
    artifacts: dict[str, Path], tmp_path: Path, listed: object
) -> None:
    settings("manifest.json", outputs=listed)(Path(copytree(artifacts["dense"], tmp_path / "artifact")))
    with pytest.raises(ArtifactError, match=r"wrong one.*outputs|not iterable"):
        read_artifact(tmp_path / "artifact")
