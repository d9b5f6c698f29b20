"""FlagEmbedding, BGE-M3's reference implementation."""

from typing import Any

from benchmarks.peer import TORCH, Encode, Encoded, Peer, Settings, checkpoint_files


def open_flagembedding(settings: Settings) -> Encode:
    """Load the checkpoint."""
    import torch
    from FlagEmbedding import BGEM3FlagModel

    torch.set_num_threads(settings["threads"])
    model = BGEM3FlagModel(settings["checkpoint"], use_fp16=False, devices="cpu")
    return flag_encoder(model, settings["max_length"])


def flag_encoder(model: Any, max_length: int) -> Encode:
    """Return an encoder over any model whose `encode` is called as FlagEmbedding's is."""

    def encode(texts: list[str], outputs: tuple[str, ...], batch_size: int) -> Encoded:
        heads = {
            "return_dense": "dense" in outputs,
            "return_sparse": "sparse" in outputs,
            "return_colbert_vecs": "multivector" in outputs,
        }
        found = model.encode(texts, batch_size=batch_size, max_length=max_length, **heads)
        return Encoded(
            dense=found["dense_vecs"] if "dense" in outputs else None,
            lexical=(lambda: found["lexical_weights"]) if "sparse" in outputs else None,
            multivector=found["colbert_vecs"] if "multivector" in outputs else None,
        )

    return encode


PEERS = (
    Peer(
        name="flagembedding",
        label="FlagEmbedding",
        environment="flagembedding",
        packages=("FlagEmbedding==1.4.2", *TORCH),
        modules=("torch", "FlagEmbedding"),
        is_thread_safe=False,
        open=open_flagembedding,
        files=checkpoint_files,
    ),
)
