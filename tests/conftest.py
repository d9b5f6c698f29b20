"""Checkpoints and artifacts that tests share, each made once."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bgem3.export import export_model
from bgem3.export.checkpoint import Checkpoint, load_checkpoint
from bgem3.runtime import BGEM3Model
from scripts.make_demo_checkpoint import make_demo_checkpoint
from scripts.make_random_checkpoint import make_random_checkpoint as make_random
from tests.paths import SHARED

SHARED_TOKENIZER = SHARED / "data/xlm-roberta-tokenizer/tokenizer.json"


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    """Small models gain nothing from a second thread, and on a busy machine waiting for it takes minutes."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start, too


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in demo checkpoint, whose scores make sense."""
    return make_demo_checkpoint(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def export_to_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The function that exports a checkpoint, as export_model does, to a new folder."""

    def export(checkpoint: Path, precisions: Sequence[str], **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("artifacts") / "artifact"
        export_model(checkpoint, folder, precisions, **options)
        return folder

    return export


@pytest.fixture(scope="session")
def demo_artifact(demo_checkpoint: Path, export_to_folder: Callable[..., Path]) -> Path:
    """The demo checkpoint exported in every form."""
    return export_to_folder(demo_checkpoint, ("fp16", "fp32"), portable=True)


@pytest.fixture(scope="session")
def demo_model(demo_artifact: Path) -> BGEM3Model:
    """The demo artifact in fp32."""
    return BGEM3Model.load(demo_artifact, device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def int8_artifact(demo_checkpoint: Path, export_to_folder: Callable[..., Path]) -> Path:
    """The demo checkpoint exported as fp32 and int8."""
    return export_to_folder(demo_checkpoint, ("fp32", "int8"))


@pytest.fixture(scope="session")
def make_random_checkpoint() -> Callable[..., Path]:
    """The function that writes a checkpoint of random weights."""
    return make_random


@pytest.fixture(scope="session")
def random_checkpoint(
    demo_checkpoint: Path, make_random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small random checkpoint: 3 layers, 96 wide, 6 heads, 128 tokens, the demo's tokenizer."""
    return make_random_checkpoint(
        demo_checkpoint / "tokenizer.json",
        tmp_path_factory.mktemp("random"),
        hidden=96,
        layers=3,
        heads=6,
        intermediate=160,
        max_length=128,
        weight_std=0.1,
    )


@pytest.fixture(scope="session")
def random_artifact(random_checkpoint: Path, export_to_folder: Callable[..., Path]) -> Path:
    """The random checkpoint exported as fp16 and fp32."""
    return export_to_folder(random_checkpoint, ("fp16", "fp32"))


@pytest.fixture(scope="session")
def random_model(random_artifact: Path) -> BGEM3Model:
    """The random artifact in fp32."""
    return BGEM3Model.load(random_artifact, device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def bge_m3_tokenizer() -> Path:
    """BGE-M3's own tokenizer.json, where the machine has it."""
    if not SHARED_TOKENIZER.is_file():
        pytest.skip("BGE-M3's tokenizer.json is not on this machine")
    return SHARED_TOKENIZER


@pytest.fixture(scope="session")
def loaded_checkpoint(random_checkpoint: Path) -> Checkpoint:
    """The random checkpoint, loaded."""
    return load_checkpoint(random_checkpoint)


@pytest.fixture
def checkpoint_copy(random_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the random checkpoint, for one test to change."""
    return Path(shutil.copytree(random_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def artifact_copy(random_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the random artifact, for one test to change."""
    return Path(shutil.copytree(random_artifact, tmp_path / "artifact"))
