"""sentence-transformers: its own int8 ONNX export in ONNX Runtime; it gives dense vectors alone."""

import json
import shutil
from pathlib import Path

from benchmarks.peer import Encode, Encoded, Peer, Settings, cpu_flags


def prepare(settings: Settings) -> None:
    """Quantize with sentence-transformers' own function, for this CPU's instructions."""
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    folder = Path(settings["files"])
    if list(folder.glob("onnx/*int8*.onnx")):
        return
    source = folder / "fp32"
    shutil.rmtree(source, ignore_errors=True)
    describe(settings, source)
    model = SentenceTransformer(str(source), backend="onnx", device="cpu")
    model.save_pretrained(str(folder))
    kind = "avx512_vnni" if {"avx512_vnni", "avx_vnni"} & cpu_flags() else "avx2"
    export_dynamic_quantized_onnx_model(model, kind, str(folder), file_suffix="int8")
    shutil.rmtree(source)
    for path in (folder / "onnx").glob("model.onnx*"):
        path.unlink()


def describe(settings: Settings, folder: Path) -> None:
    """Write a folder in sentence-transformers' form: the checkpoint, CLS pooling and normalization."""
    checkpoint = Path(settings["checkpoint"]).resolve()
    shutil.copytree(checkpoint, folder, copy_function=lambda a, b: Path(b).symlink_to(a))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": settings["hidden_size"], "pooling_mode_cls_token": True}
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": settings["max_length"], "do_lower_case": False},
        "1_Pooling/config.json": pooling | {"pooling_mode_mean_tokens": False},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "2_Normalize").mkdir()


def open_sentence_transformers(settings: Settings, _: str) -> Encode:
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
