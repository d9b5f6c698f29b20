"""sentence-transformers: its own int8 ONNX export in ONNX Runtime; it gives dense vectors alone."""

import shutil
from pathlib import Path

from benchmarks.peer import Encode, Encoded, Peer, Settings, cpu_flags


def prepare(settings: Settings) -> None:
    """Quantize with sentence-transformers' own function, for this CPU's instructions."""
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    folder = Path(settings["files"])
    if list(folder.glob("onnx/*int8*.onnx")):
        return
    backbone = Transformer(settings["checkpoint"], max_seq_length=settings["max_length"])
    pooling = Pooling(settings["hidden_size"], pooling_mode="cls")
    source = folder / "fp32"
    SentenceTransformer(modules=[backbone, pooling, Normalize()]).save(str(source))
    model = SentenceTransformer(str(source), backend="onnx", device="cpu")
    model.save_pretrained(str(folder))
    kind = "avx512_vnni" if {"avx512_vnni", "avx_vnni"} & cpu_flags() else "avx2"
    export_dynamic_quantized_onnx_model(model, kind, str(folder), file_suffix="int8")
    shutil.rmtree(source)
    for path in (folder / "onnx").glob("model.onnx*"):
        path.unlink()


def open_sentence_transformers(settings: Settings) -> Encode:
    """Open the quantized graph."""
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    (file,) = Path(settings["files"], "onnx").glob("*int8*.onnx")
    model_options = {"file_name": file.name, "session_options": options, "provider": "CPUExecutionProvider"}
    model = SentenceTransformer(settings["files"], backend="onnx", device="cpu", model_kwargs=model_options)

    def encode(texts: list[str], _: tuple[str, ...], batch_size: int) -> Encoded:
        return Encoded(dense=model.encode(texts, batch_size=batch_size, show_progress_bar=False))

    return encode


PEERS = (
    Peer(
        name="sentence-transformers",
        label="sentence-transformers ONNX",
        environment="sentence_transformers",
        packages=("sentence-transformers[onnx]==5.7.0", "onnxruntime", "torch==2.13.0", "tokenizers", "numpy"),
        modules=("sentence_transformers", "onnxruntime"),
        precisions=("int8",),
        outputs=("dense",),
        prepare=prepare,
        open=open_sentence_transformers,
        files=lambda settings: Path(settings["files"]).rglob("*.onnx*"),
    ),
)
