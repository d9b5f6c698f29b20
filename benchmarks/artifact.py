"""Make the artifact that is measured; without a checkpoint, from random weights, which take as long as trained ones."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bgem3.runtime.artifact import is_artifact

SMALL = {"hidden": 384, "layers": 3, "heads": 6, "intermediate": 1536}
FULL = {"vocabulary": 250002}  # BGE-M3's; its other sizes are the defaults


def make_artifact(
    folder: Path, checkpoint: Path | None, precisions: Sequence[str], *, small: bool = False, portable: bool = False
) -> tuple[Path, Path]:
    """Export a checkpoint to ``folder / "artifact"`` in a process of its own, whose memory is free afterwards.

    Parameters
    ----------
    checkpoint : None to make one with random weights in ``folder / "checkpoint"``
    small : whether that checkpoint is a small one; otherwise it has BGE-M3's size
    portable : whether the portable graph is exported, too

    Returns
    -------
    The folders of the artifact and of the checkpoint.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_make, folder, checkpoint, precisions, small, portable).result()


def make_checkpoint(folder: Path, small: bool = False) -> Path:
    """Write a checkpoint with random weights and the demo's tokenizer to ``folder / "checkpoint"``."""
    from scripts.make_demo_checkpoint import make_demo_checkpoint
    from scripts.make_random_checkpoint import make_random_checkpoint

    tokenizer = make_demo_checkpoint(folder / "demo") / "tokenizer.json"
    return make_random_checkpoint(tokenizer, folder / "checkpoint", **(SMALL if small else FULL))


def _make(
    folder: Path, checkpoint: Path | None, precisions: Sequence[str], small: bool, portable: bool
) -> tuple[Path, Path]:
    from bgem3.export import export_model, quality_gate

    artifact = folder / "artifact"
    if checkpoint is None:
        checkpoint = make_checkpoint(folder, small)
        quality_gate.BOUNDS.clear()  # no quality to lose; layers that the gate keeps in float32 would hide int8's speed
    export_model(
        checkpoint, artifact, precisions, portable=portable, overwrite=is_artifact(artifact), show_progress=True
    )
    return artifact, checkpoint
