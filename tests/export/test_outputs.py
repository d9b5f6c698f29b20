"""Artifacts of fewer outputs, and heads of another checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import huggingface_hub
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
from tests.export.checkpoints import HEADS, remove, write
from tests.runtime.cuda_stand_in import Ran, cudart, ran  # noqa: F401 - fixtures

TEXTS = ["", *SENTENCES[:5], " ".join(SENTENCES[:4])]


@pytest.fixture(scope="module")
def headless(random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as sentence-transformers saves a fine-tune: without heads."""
    folder = Path(copytree(random_checkpoint, tmp_path_factory.mktemp("headless") / "fine-tune"))
    remove(*HEADS)(folder)
    return folder


@pytest.fixture(scope="module")
def dense_artifact(headless: Path, export_to_folder: Callable[..., Path]) -> Path:
    return export_to_folder(headless, "fp32", outputs="dense", portable=True)


@pytest.mark.parametrize("is_local", [True, False], ids=["folder", "hub"])
def test_heads_from_another_checkpoint_give_the_artifact_of_a_whole_one(
    headless: Path,
    random_checkpoint: Path,
    random_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_local: bool,
) -> None:
    def download(hub_id: str, allow_patterns: list[str], **_: Any) -> str:
        assert (hub_id, set(allow_patterns)) == ("BAAI/bge-m3", set(HEADS))
        return str(copytree(random_checkpoint, tmp_path / "commit"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    heads_from = str(random_checkpoint) if is_local else "BAAI/bge-m3"
    arguments = [str(headless), str(tmp_path / "artifact"), "--precision", "fp32", "--heads-from", heads_from]
    assert main(["export", *arguments]) == 0
    manifest, whole = (read_artifact(artifact).manifest for artifact in (tmp_path / "artifact", random_artifact))
    assert "outputs" not in manifest
    for name in ("fp32/weights.bin", "fp32/cpu.onnx", "fp32/cuda.onnx", "fp32/native.onnx", "tokenizer.json"):
        assert manifest["files"][name] == whole["files"][name]
    assert set(manifest["source"]["files"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    expected = (random_checkpoint.name, None) if is_local else ("BAAI/bge-m3", "commit")
    hashes = {name: sha256_of(random_checkpoint / name) for name in HEADS}
    assert tuple(manifest["source"]["heads_from"].values()) == (*expected, hashes)


@pytest.mark.parametrize(
    ("n_inputs", "names", "words"),
    [(96, HEADS[:1], r"heads' has no colbert_linear\.pt"), (64, HEADS, r"has weight \(1, 64\).*expected \(1, 96\)")],
    ids=["missing", "narrow"],
)
def test_heads_that_are_missing_or_of_another_model_are_refused(
    headless: Path, tmp_path: Path, n_inputs: int, names: tuple[str, ...], words: str
) -> None:
    (tmp_path / "heads").mkdir()
    for name in names:
        torch.save(torch.nn.Linear(n_inputs, 1).state_dict(), tmp_path / "heads" / name)
    with pytest.raises(CheckpointError, match=words):
        export_model(headless, tmp_path / "artifact", "fp32", heads_from=tmp_path / "heads")
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"outputs": ("sparse",)}, r"outputs must be 'dense' and any other of .*found \('sparse',\)"),
        ({"outputs": ("dense", "colbert")}, r"outputs must be 'dense'.*found \('dense', 'colbert'\)"),
        ({"outputs": ("dense",), "heads_from": "BAAI/bge-m3"}, "needs no heads, but heads_from='BAAI/bge-m3' is given"),
        ({"precisions": ("fp16", "bf16")}, r"precisions must be .*'fp32', 'int8'\), found \('fp16', 'bf16'\)"),
        ({"precisions": ()}, r"precisions must be .*found \(\)"),
    ],
)
def test_unknown_outputs_and_precisions_are_refused(
    headless: Path, tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        export_model(headless, tmp_path / "artifact", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kernels", ["auto", "none"])
@pytest.mark.parametrize("output", ["sparse", "multivector"])
def test_an_artifact_of_fewer_outputs_gives_what_the_whole_one_gives(
    random_checkpoint: Path, random_artifact: Path, tmp_path: Path, output: Output, kernels: str
) -> None:
    export_model(random_checkpoint, tmp_path / "artifact", "fp32", outputs=("dense", output))
    found, expected = (
        BGEM3Model(artifact, open_encoder(artifact, device="cpu", precision="fp32", n_threads=1, kernels=kernels))
        for artifact in map(read_artifact, (tmp_path / "artifact", random_artifact))
    )
    with found, expected:
        ours, theirs = found.encode(TEXTS), expected.encode(TEXTS)
    assert found.outputs == ours.outputs == ("dense", output)
    np.testing.assert_array_equal(ours.dense, theirs.dense)
    if output == "sparse":
        assert ours.lexical_weights == theirs.lexical_weights
    else:
        np.testing.assert_array_equal(ours.multivector.packed, theirs.multivector.packed)


def test_outputs_that_are_not_there_say_why_and_what_to_do(
    dense_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("the sea\n")
    assert main(["encode", str(dense_artifact), str(tmp_path / "texts.txt"), "--device", "cpu"]) == 0
    assert "dense" in json.loads(capsys.readouterr().out)
    flag = BGEM3FlagModel(dense_artifact, devices="cpu", use_fp16=False)
    assert flag.encode("text")["dense_vecs"].shape == (96,)
    with BGEM3Model.load(dense_artifact, "cpu", "fp32") as model:
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


def test_a_dense_only_artifact_runs_on_cuda(
    dense_artifact: Path,
    random_model: BGEM3Model,
    ran: Ran,  # noqa: F811
) -> None:
    with BGEM3Model.load(dense_artifact, "cuda", "fp32", cuda_graphs=True) as model:
        found = model.encode(TEXTS)
    assert found.outputs == ("dense",)
    np.testing.assert_allclose(found.dense, random_model.encode(TEXTS).dense, atol=1e-5)


@pytest.mark.parametrize("listed", [["dense", "colbert"], ["sparse", "dense"], "dense", [["x"]]])
def test_a_manifest_that_lists_other_outputs_is_refused(dense_artifact: Path, tmp_path: Path, listed: object) -> None:
    manifest = json.loads((dense_artifact / "manifest.json").read_text(encoding="utf-8"))
    write("manifest.json", manifest | {"outputs": listed})(tmp_path)
    with pytest.raises(ArtifactError, match="outputs"):
        read_artifact(tmp_path)
