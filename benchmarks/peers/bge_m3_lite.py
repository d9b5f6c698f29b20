"""bge-m3-lite: BGE-M3 in ONNX Runtime with fused operators; here with the checkpoint's weights in place of its own.

Its fusion takes models of 24 layers alone, so --quick leaves it out.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.padded import open_tokenizer
from benchmarks.peer import Encode, Peer, Settings
from benchmarks.peers.flagembedding import flag_encoder


def prepare(settings: Settings) -> None:
    """Write the backbone that it expects, and run its own fusion and quantization."""
    use_local_files(settings)
    from bge_m3_lite.fuse import fuse

    folder = Path(settings["files"])
    if not (folder / "model_fused.onnx").exists():
        write_backbone(Path(settings["portable"]), folder)
        fuse(folder / "model.onnx")
    if settings["precision"] == "int8" and not (folder / "model_int8.onnx").exists():
        from bge_m3_lite.quantize import quantize

        quantize(folder / "model_fused.onnx", folder / "model_int8.onnx", calibration_texts=settings["calibration"])


def write_backbone(portable: Path, folder: Path) -> None:
    """Write the portable graph without its heads, under bge-m3-lite's names of files and outputs."""
    import onnx

    model = onnx.load(portable / "model.onnx", load_external_data=False)
    names = [value.name for value in model.graph.input]
    (states,) = (node.input[0] for node in model.graph.node if "sparse_linear.weight" in node.input)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info(states, onnx.TensorProto.FLOAT, None))
    backbone = onnx.utils.Extractor(model).extract_model(names, [states])
    (node,) = (node for node in backbone.graph.node if states in node.output)
    node.output[0] = backbone.graph.output[0].name = "token_embeddings"
    del backbone.graph.value_info[:]
    for tensor in backbone.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "model.onnx_data"
    shutil.copyfile(portable / "weights.bin", folder / "model.onnx_data")  # onnx follows no links
    onnx.save(backbone, folder / "model.onnx")


def use_local_files(settings: Settings) -> None:
    """Point bge-m3-lite at our files and sizes; unpatched, it takes the published files alone, by their hashes.

    Its tokenizer in Python gives way to the `tokenizers` library, which is faster.
    """
    import bge_m3_lite.embedder as embedder
    import bge_m3_lite.fuse as fuse
    import bge_m3_lite.hub as hub
    import bge_m3_lite.tokenizer as tokenizer

    def ensure_files(files: Any, *_: Any, **__: Any) -> dict[str, Path]:
        names = [file.name for file in files]
        return {name: Path(settings["checkpoint" if name.endswith(".pt") else "files"]) / name for name in names}

    ours = open_tokenizer(settings)
    hub.ensure_files = ensure_files
    embedder.HIDDEN_SIZE = fuse.HIDDEN_SIZE = settings["hidden_size"]
    fuse.NUM_HEADS = settings["n_heads"]
    tokenizer.XLMRobertaTokenizer.from_file = lambda _: SimpleNamespace(
        PAD_ID=settings["pad_id"],
        special_ids=frozenset(settings["special_ids"]),
        encode=lambda text, max_length: ours.encode(text).ids,
    )


def open_lite(settings: Settings) -> Encode:
    """Load the fused or quantized model; its threads spin between operators, which is faster than its default."""
    use_local_files(settings)
    from bge_m3_lite.embedder import BGEM3Embedder

    options = {"precision": settings["precision"], "spin": True, "quiet": True}
    model = BGEM3Embedder(settings["files"], num_threads=settings["threads"], **options)
    return flag_encoder(model, settings["max_length"])


def _files(settings: Settings) -> Iterable[Path]:
    pattern = "model_int8*" if settings["precision"] == "int8" else "model[_.][fo]*[da]"
    return (path for path in Path(settings["files"]).glob(pattern) if path.name != "model.onnx")


PEERS = (
    Peer(
        name="lite",
        label="bge-m3-lite",
        environment="bge_m3_lite",
        packages=("bge-m3-lite[quant]==0.6.2", "onnxruntime", "tokenizers", "numpy"),
        modules=("bge_m3_lite.embedder", "bge_m3_lite.fuse", "onnxruntime", "tokenizers"),
        precisions=("fp32", "int8"),
        needs=("checkpoint", "portable"),
        prepare=prepare,
        open=open_lite,
        files=_files,
    ),
)
