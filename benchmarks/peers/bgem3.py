"""bgem3 itself: the best kernels for this CPU, or named ones to compare them with."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peer import Encode, Encoded, Peer, Settings

PACKAGES = ("bgem3", "onnxruntime", "onnxruntime-gpu", "tokenizers", "numpy")


def open_best(settings: Settings, variant: str) -> Encode:
    """Load the artifact as users do; on CUDA, one variant captures graphs for short queries."""
    from bgem3.runtime import BGEM3Model

    place = (settings["artifact"], settings["device"], settings["precision"], settings["threads"])
    return _encoder(BGEM3Model.load(*place, cuda_graphs=bool(variant)))


def open_kernels(kernels: str, settings: Settings, _: str) -> Encode:
    """Load the artifact with the named CPU kernels, whichever bgem3 would choose."""
    from bgem3.runtime.artifact import read_artifact
    from bgem3.runtime.device import open_encoder
    from bgem3.runtime.model import BGEM3Model

    artifact = read_artifact(settings["artifact"])
    options = {"precision": settings["precision"], "n_threads": settings["threads"], "kernels": kernels}
    return _encoder(BGEM3Model(artifact, open_encoder(artifact, device="cpu", **options)))


def _encoder(model: Any) -> Encode:
    def encode(texts: list[str], outputs: tuple[str, ...], _: int) -> Encoded:
        found = model.encode(texts, outputs)
        return Encoded(
            dense=found.dense if "dense" in outputs else None,
            lexical=(lambda: found.lexical_weights) if "sparse" in outputs else None,
            multivector=found.multivector if "multivector" in outputs else None,
        )

    return encode


def _files(settings: Settings) -> Iterable[Path]:
    return Path(settings["artifact"], settings["precision"]).iterdir()


def _variants(settings: Settings) -> list[str]:
    return ["", "CUDA graphs"] if settings["device"].startswith("cuda") else [""]


def _kernel_peer(name: str, label: str, kernels: str) -> Peer:
    return Peer(
        name=f"bgem3-{name}",
        label=f"bgem3, {label}",
        packages=PACKAGES,
        modules=("bgem3.runtime",),
        precisions=("int8",),
        devices=(),  # measured only when named: bgem3 chooses the best of them itself
        needs=(),
        batch_sizes=(1,),
        open=partial(open_kernels, kernels),
        files=_files,
    )


PEERS = (
    Peer(
        name="bgem3",
        label="bgem3",
        packages=PACKAGES,
        modules=("bgem3.runtime",),
        precisions=("int8", "fp32", "fp16"),
        devices=("cpu", "cuda"),
        needs=(),
        batch_sizes=(1,),
        variants=_variants,
        open=open_best,
        files=_files,
    ),
    _kernel_peer("onnxruntime", "ONNX Runtime's operators", "none"),
    _kernel_peer("vnni", "AVX-512 VNNI kernels", "AVX-512 VNNI"),
    _kernel_peer("avx2", "AVX2 kernels", "AVX2"),
)
