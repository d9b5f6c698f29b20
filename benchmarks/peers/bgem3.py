"""bgem3 itself."""

from pathlib import Path
from typing import Any

from benchmarks.peer import Encode, Encoded, Peer, Settings


def open_bgem3(settings: Settings) -> Encode:
    """Load the artifact as users do."""
    from bgem3.runtime import BGEM3Model

    model: Any = BGEM3Model.load(settings["artifact"], "cpu", settings["precision"], settings["threads"])

    def encode(texts: list[str], outputs: tuple[str, ...], _: int) -> Encoded:
        found = model.encode(texts, outputs)
        return Encoded(
            dense=found.dense if "dense" in outputs else None,
            lexical=(lambda: found.lexical_weights) if "sparse" in outputs else None,
            multivector=found.multivector if "multivector" in outputs else None,
        )

    return encode


PEERS = (
    Peer(
        name="bgem3",
        label="bgem3",
        packages=("bgem3", "onnxruntime", "tokenizers", "numpy"),
        modules=("bgem3.runtime", "onnxruntime", "tokenizers"),
        precisions=("int8", "fp32", "fp16"),
        needs=(),
        batch_sizes=(1,),
        open=open_bgem3,
        files=lambda settings: Path(settings["artifact"], settings["precision"]).iterdir(),
    ),
)
