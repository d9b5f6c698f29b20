"""What the encoders beside ours load, made of a checkpoint with their own tools: conversions, fusion, quantization.

Runs under each encoder's own Python: the standard library and NumPy are all that is imported before it is needed. What
is there already is taken as it is; what is made is written aside and renamed.
"""

import importlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

Settings = dict[str, Any]
HEADS = ("sparse_linear", "colbert_linear")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``folder`` when all is written."""
    unfinished = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(folder)


def prepare_openvino(settings: Settings) -> None:
    """Quantize the portable graph with NNCF's post-training quantization, calibrated on texts."""
    folder = Path(settings["files"])
    if settings["precision"] != "int8" or folder.exists():
        return
    from bgem3.runtime.bench_peers import open_tokenizer, padded_batches

    nncf, openvino = (importlib.import_module(name) for name in ("nncf", "openvino"))
    token_ids = [encoding.ids for encoding in open_tokenizer(settings).encode_batch_fast(settings["calibration"])]
    feeds = [feed for _, feed in padded_batches(token_ids, 1, settings["pad_id"])]
    quantized = nncf.quantize(
        openvino.Core().read_model(settings["portable"]),
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(feeds),
    )
    with _new_folder(folder) as unfinished:
        openvino.save_model(quantized, unfinished / "model.xml")


def prepare_lite(settings: Settings) -> None:
    """Give bge-m3-lite the backbone it expects, and run its own fusion and quantization on it."""
    use_local_files(settings)
    folder = Path(settings["files"])
    if not (folder / "model_fused.onnx").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_backbone(Path(settings["portable"]), folder)
        importlib.import_module("bge_m3_lite.fuse").fuse(folder / "model.onnx")
    if settings["precision"] == "int8" and not (folder / "model_int8.onnx").exists():
        quantize = importlib.import_module("bge_m3_lite.quantize").quantize
        quantize(folder / "model_fused.onnx", folder / "model_int8.onnx", calibration_texts=settings["calibration"])


def write_backbone(portable: Path, folder: Path) -> None:
    """Write the portable graph without its heads, under the names that bge-m3-lite gives files and outputs."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(portable, load_external_data=False)
    graph = model.graph
    needed = {next(node for node in graph.node if "sparse_linear.weight" in node.input).input[0]}
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
    nodes[0].output[0] = "token_embeddings"
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    for tensor in weights:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "model.onnx_data"
    output = onnx.helper.make_tensor_value_info("token_embeddings", onnx.TensorProto.FLOAT, None)
    for field, values in ((graph.node, nodes[::-1]), (graph.initializer, weights), (graph.output, [output])):
        del field[:]
        field.extend(values)
    del graph.value_info[:]
    shutil.copyfile(portable.with_name("weights.bin"), folder / "model.onnx_data")  # onnx follows no links
    onnx.save(model, folder / "model.onnx")


def use_local_files(settings: Settings) -> None:
    """Point bge-m3-lite at our files and sizes: by itself it takes the published files alone, by their hashes.

    Its tokenizer, in Python, gives way to the `tokenizers` library, which is faster; no caller asks for another length.
    """
    from bgem3.runtime.bench_peers import open_tokenizer

    embedder: Any = importlib.import_module("bge_m3_lite.embedder")
    fuse: Any = importlib.import_module("bge_m3_lite.fuse")
    hub: Any = importlib.import_module("bge_m3_lite.hub")
    tokenizer: Any = importlib.import_module("bge_m3_lite.tokenizer")

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


def prepare_optimum(settings: Settings) -> None:
    """Export the backbone as optimum does by default, and write the heads for NumPy."""
    folder = Path(settings["files"])
    if folder.exists():
        return
    export = importlib.import_module("optimum.exporters.onnx").main_export
    with _new_folder(folder) as unfinished:
        export(settings["checkpoint"], output=unfinished, task="feature-extraction", do_validation=False)
        torch = importlib.import_module("torch")
        heads: dict[str, Any] = {}
        for name in HEADS:
            state = torch.load(Path(settings["checkpoint"], f"{name}.pt"), weights_only=True, map_location="cpu")
            heads |= {f"{name}.{key}": values.float().numpy() for key, values in state.items()}
        np.savez(unfinished / "heads.npz", **heads)


def prepare_sentence_transformers(settings: Settings) -> None:
    """Quantize with sentence-transformers' own function, for this CPU's instructions."""
    folder = Path(settings["files"])
    if folder.exists():
        return
    library = importlib.import_module("sentence_transformers")
    with _new_folder(folder) as unfinished:
        source = unfinished / "fp32"
        describe_for_sentence_transformers(settings, source)
        model = library.SentenceTransformer(str(source), backend="onnx", device="cpu")
        model.save_pretrained(str(unfinished))
        kind = "avx512_vnni" if {"avx512_vnni", "avx_vnni"} & cpu_flags() else "avx2"
        library.export_dynamic_quantized_onnx_model(model, kind, str(unfinished), file_suffix="int8")
        shutil.rmtree(source)
        for path in (unfinished / "onnx").glob("model.onnx*"):
            path.unlink()


def describe_for_sentence_transformers(settings: Settings, folder: Path) -> None:
    """Write a folder as sentence-transformers has it: the checkpoint, CLS pooling and normalization."""
    link_files(settings["checkpoint"], folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": settings["hidden_size"], "pooling_mode_cls_token": True}
    pooling |= {"pooling_mode_mean_tokens": False}
    for name, content in (
        ("modules.json", modules),
        ("sentence_bert_config.json", {"max_seq_length": settings["max_length"], "do_lower_case": False}),
        ("1_Pooling/config.json", pooling),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "2_Normalize").mkdir()


def prepare_llamacpp(settings: Settings) -> None:
    """Convert the backbone to GGUF in Q8_0 with llama.cpp's converter, from llama-cpp-python's source package."""
    folder = Path(settings["files"])
    if folder.exists():
        return
    with _new_folder(folder) as unfinished, tempfile.TemporaryDirectory() as place:
        package = f"llama-cpp-python=={version('llama-cpp-python')}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", package]
        subprocess.run([*pip, "--dest", place], check=True)
        (archive,) = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(place, filter="data")
        (converter,) = Path(place).glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")
        source = describe_for_llamacpp(settings, Path(place, "checkpoint"))
        convert = [sys.executable, str(converter), str(source), "--outtype", "q8_0"]
        convert += ["--outfile", str(unfinished / "model.gguf")]
        subprocess.run(convert, check=True)


def describe_for_llamacpp(settings: Settings, folder: Path) -> Path:
    """Write a folder as the converter reads it: of several normalizers it looks for the first one's table alone."""
    link_files(settings["checkpoint"], folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    steps = tokenizer["normalizer"].get("normalizers", [tokenizer["normalizer"]])
    tokenizer["normalizer"] = next(step for step in steps if step["type"] == "Precompiled")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def link_files(source: str, folder: Path) -> None:
    """Make a folder of links to the files of another."""
    shutil.copytree(source, folder, copy_function=lambda a, b: Path(b).symlink_to(Path(a).resolve()))


def cpu_flags() -> set[str]:
    """Return the instruction sets of this CPU, by Linux's names; none elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split(":")[1].split()}


PREPARERS: dict[str, Callable[[Settings], None]] = {
    "lite": prepare_lite,
    "openvino": prepare_openvino,
    "optimum": prepare_optimum,
    "llamacpp": prepare_llamacpp,
    "sentence-transformers": prepare_sentence_transformers,
}
