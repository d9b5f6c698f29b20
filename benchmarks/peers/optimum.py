"""optimum's default ONNX export in ONNX Runtime; NumPy computes the heads, since the graph has none."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.padded import Feeds, padded_encoder
from benchmarks.peer import TORCH, Encode, Peer, Settings


def prepare(settings: Settings) -> None:
    """Export the backbone, and write the heads for NumPy."""
    import torch
    from optimum.exporters.onnx import main_export

    folder = Path(settings["files"])
    if (folder / "heads.npz").exists():
        return
    main_export(settings["checkpoint"], output=folder, task="feature-extraction", do_validation=False)
    heads: dict[str, Any] = {}
    for name in ("sparse_linear", "colbert_linear"):
        state = torch.load(Path(settings["checkpoint"], f"{name}.pt"), weights_only=True, map_location="cpu")
        heads |= {f"{name}.{key}": values.float().numpy() for key, values in state.items()}
    np.savez(folder / "heads.npz", **heads)


def open_optimum(settings: Settings) -> Encode:
    """Open the exported graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    graph = str(Path(settings["files"], "model.onnx"))
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    heads = dict(np.load(Path(settings["files"], "heads.npz")))
    names = {value.name for value in session.get_inputs()}

    def linear(name: str, hidden: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(hidden @ heads[f"{name}.weight"].T + heads[f"{name}.bias"])

    def normalize(vectors: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))

    def forward(batches: Iterable[Feeds], outputs: tuple[str, ...]) -> Iterator[list[NDArray[Any]]]:
        for feeds in batches:
            hidden = session.run(["last_hidden_state"], {name: feeds[name] for name in names})[0]
            compute = {
                "dense": lambda: normalize(hidden[:, 0]),  # noqa: B023
                "sparse": lambda: np.maximum(linear("sparse_linear", hidden), 0)[..., 0],  # noqa: B023
                "multivector": lambda: normalize(linear("colbert_linear", hidden)),  # noqa: B023
            }
            yield [compute[name]() for name in outputs]

    return padded_encoder(settings, forward)


PEERS = (
    Peer(
        name="optimum",
        label="optimum ONNX",
        environment="optimum",
        packages=("optimum-onnx==0.1.0", "onnxruntime", *TORCH),
        modules=("onnxruntime", "tokenizers"),
        prepare=prepare,
        open=open_optimum,
        files=lambda settings: Path(settings["files"]).glob("[mh]*.[on]*"),
    ),
)
