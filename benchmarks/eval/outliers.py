"""Copy a checkpoint and give it outlier channels: the same function in exact arithmetic, harder to quantize.

Encoders such as XLM-R have channels that are large for every token. Here the bias of every LayerNorm moves a few
channels by a constant. Every reader of the LayerNorm's output takes the constant back in its own bias: the query, key
and value or the first feed-forward product, and for the residual the product that is added to it.
"""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

N_CHANNELS = 4
SIZE = 40.0  # of the constant, in standard deviations of the LayerNorm's output
BLOCKS = (  # of a layer: readers of the LayerNorm before it, the product added to the residual, and the next LayerNorm
    ([f"attention.self.{part}" for part in ("query", "key", "value")], "attention.output.dense", "attention.output"),
    (["intermediate.dense"], "output.dense", "output"),
)


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
        for readers, added, following in BLOCKS:
            outliers = np.zeros_like(tensors[f"{norm}.bias"])
            outliers[channels] = signs * SIZE * np.sqrt(np.mean(tensors[f"{norm}.weight"] ** 2))
            tensors[f"{norm}.bias"] += outliers
            for reader in readers:
                tensors[f"{layer}{reader}.bias"] -= tensors[f"{layer}{reader}.weight"] @ outliers
            tensors[f"{layer}{added}.bias"] -= outliers
            norm = f"{layer}{following}.LayerNorm"
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
