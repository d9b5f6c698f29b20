"""Copy a checkpoint and add outlier channels to it: the same function in exact arithmetic, harder to quantize.

usage: python scripts/add_outliers.py CHECKPOINT FOLDER

Encoders such as XLM-R have channels that are large for every token. Here a few channels of each LayerNorm output that a
layer reads get a constant added, by way of the LayerNorm's bias, and whatever reads them takes it back in its own bias:
the query, key and value or the first feed-forward product, and, for the residual, what is added to it.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

N_CHANNELS = 4
SIZE = 40.0  # in standard deviations of the LayerNorm's output
ATTENTION = [f"attention.self.{part}" for part in ("query", "key", "value")]


def add_outliers(checkpoint: Path, folder: Path) -> Path:
    """Write the checkpoint with outlier channels to a new folder; return it."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    n_layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer."))
    rng = np.random.default_rng(0)
    channels = rng.choice(len(tensors["embeddings.LayerNorm.bias"]), N_CHANNELS, replace=False)
    signs = rng.choice([-1.0, 1.0], N_CHANNELS)
    norm = "embeddings.LayerNorm"
    for layer in (f"encoder.layer.{i}." for i in range(n_layers)):
        for readers, added, following in (
            (ATTENTION, "attention.output.dense", "attention.output.LayerNorm"),
            (["intermediate.dense"], "output.dense", "output.LayerNorm"),
        ):
            outliers = np.zeros_like(tensors[f"{norm}.bias"])
            outliers[channels] = signs * SIZE * np.sqrt(np.mean(tensors[f"{norm}.weight"] ** 2))
            tensors[f"{norm}.bias"] += outliers
            for reader in readers:
                tensors[f"{layer}{reader}.bias"] -= tensors[f"{layer}{reader}.weight"] @ outliers
            tensors[f"{layer}{added}.bias"] -= outliers
            norm = f"{layer}{following}"
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Copy a checkpoint and add outlier channels to it.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    add_outliers(arguments.checkpoint, arguments.folder)
