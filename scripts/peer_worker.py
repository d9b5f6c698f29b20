"""One contestant of bench_cpu_peers.py, in a process of its own under its own Python.

usage: python scripts/peer_worker.py {bgem3,flagembedding,lite,openvino}   (bench_cpu_peers.py does this)

Requests are lines of JSON on standard input; each is answered by a line on standard output, and nothing is computed
between them. An error ends the process, and the last line on standard error says what it was. Every answer has the
"cpu_s" that it took. SHAPE names some texts:

    {"prepare": SETTINGS}                           write what the contestant loads, if it is not there yet
    {"load": SETTINGS, "texts": {SHAPE: [...]}}     load and encode one short text
    {"tune": [SHAPE, ...]}                          find the fastest variant and batch size for each
    {"save": SHAPE, "path": NPZ}                    encode once, and write the outputs
    {"run": SHAPE, "calls": N, "warm_up": true}     seconds of N calls, tokenizing included; optional: "batch_size"
"""

import contextlib
import gc
import importlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

MAX_LENGTH = 512
ONCE = 5.0  # seconds; a call that takes longer is timed once to tune, a shorter one three times
OUTPUTS = ("dense", "sparse", "multivector")
BATCH_SIZES = {"bgem3": (1,), "flagembedding": (1, 4, 8, 16, 32), "lite": (1, 4, 8, 16), "openvino": (1, 4, 8, 16)}
MODULES = {
    "bgem3": ("bgem3.runtime",),
    "flagembedding": ("torch", "FlagEmbedding"),
    "lite": ("bge_m3_lite.embedder", "bge_m3_lite.fuse", "onnxruntime", "tokenizers"),
    "openvino": ("openvino", "tokenizers"),
}
PACKAGES = ("bge-m3-lite", "bgem3", "FlagEmbedding", "nncf", "numpy", "onnxruntime", "openvino", "tokenizers", "torch")

Settings = dict[str, Any]
Found = tuple[np.ndarray, Callable[[], list[dict[Any, float]]], Any]
"""Dense (N, D); what gives the lexical weights of N texts, by token id; N arrays of multi-vectors (tokens - 1, M)."""
Encode = Callable[[list[str], int], Found]
"""Texts and a batch size to their outputs."""


class Contestant:
    """An encoder, open in one of its variants at a time; the texts by shape, and what is fastest for each."""

    def __init__(self, kind: str, settings: Settings, texts: dict[str, list[str]]) -> None:
        self._open: Callable[[str], Encode] = partial(OPENERS[kind], settings)
        self._variants = variants(kind, settings["precision"])
        self._batch_sizes = BATCH_SIZES[kind]
        self._texts = texts
        self._best: dict[str, tuple[str, int]] = {}
        self._opened, self._encode = self._variants[0], self._open(self._variants[0])

    def first(self) -> None:
        """Encode one short text."""
        self._encode(["What is BM25?"], 1)

    def tune(self, shapes: list[str]) -> dict[str, Any]:
        """Time every variant and batch size on each shape."""
        tried: dict[str, dict[tuple[str, int], float]] = {shape: {} for shape in shapes}
        for variant in self._variants:
            self._switch(variant)
            for shape in shapes:
                texts = self._texts[shape]
                for size in sorted({min(size, len(texts)) for size in self._batch_sizes}):
                    tried[shape][variant, size] = quickest(partial(self._encode, texts, size))
        self._best = {shape: min(seconds, key=lambda choice: seconds[choice]) for shape, seconds in tried.items()}
        return {
            shape: {
                "variant": variant,
                "batch_size": size,
                "tried_seconds": {f"{name} {n}".strip(): seconds for (name, n), seconds in tried[shape].items()},
            }
            for shape, (variant, size) in self._best.items()
        }

    def run(self, shape: str, calls: int, warm_up: bool, batch_size: int | None = None) -> list[float]:
        """Return the seconds of each call; none counts in which a variant just opened is slower."""
        variant, best = self._best[shape]
        is_cold = self._switch(variant)
        call = partial(self._encode, self._texts[shape], batch_size or best)
        if warm_up or is_cold:
            call()
        return [seconds_of(call) for _ in range(calls)]

    def save(self, shape: str, path: str) -> None:
        """Write the outputs: dense (N, D), vectors (V, M), and entries (L, 2), text and token id, of weights (L,)."""
        variant, size = self._best[shape]
        self._switch(variant)
        dense, lexical_weights, vectors = self._encode(self._texts[shape], size)
        found = {(i, int(token)): weight for i, text in enumerate(lexical_weights()) for token, weight in text.items()}
        weights, entries = np.array(list(found.values()), np.float32), np.array(list(found), np.int64)
        np.savez(path, dense=dense, vectors=np.concatenate(list(vectors)), entries=entries, weights=weights)

    def _switch(self, variant: str) -> bool:
        """Open a variant in place of the one before; tell whether it was another, since the memory is there for one."""
        if variant == self._opened:
            return False
        del self._encode
        gc.collect()
        self._opened, self._encode = variant, self._open(variant)
        return True


def variants(kind: str, precision: str) -> list[str]:
    """Return the settings to try: OpenVINO's performance hint and float precision, how bge-m3-lite's threads wait."""
    if kind == "openvino":
        capabilities = importlib.import_module("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        floats = {"fp32": ["f32"], "bf16": ["bf16"]}.get(
            precision, ["f32", "bf16"] if "BF16" in capabilities else ["f32"]
        )
        return [f"{hint} {name}" for hint in ("LATENCY", "THROUGHPUT") for name in floats]
    return ["sleeping", "spinning"] if kind == "lite" else [""]


def open_bgem3(settings: Settings, _: str) -> Encode:
    """Load an artifact in one precision."""
    from bgem3.runtime import BGEM3Model

    model = BGEM3Model.load(settings["artifact"], "cpu", settings["precision"], settings["threads"])

    def encode(texts: list[str], _: int) -> Found:
        found = model.encode(texts, max_length=MAX_LENGTH)
        return found.dense, lambda: found.lexical_weights, found.multivector

    return encode


def open_flagembedding(settings: Settings, _: str) -> Encode:
    """Load the checkpoint in FlagEmbedding, fp32."""
    import torch
    from FlagEmbedding import BGEM3FlagModel

    torch.set_num_threads(settings["threads"])
    return partial(_encode_flag, BGEM3FlagModel(settings["checkpoint"], use_fp16=False, devices="cpu"))


def open_lite(settings: Settings, variant: str) -> Encode:
    """Load bge-m3-lite with the checkpoint's weights; between operators its threads spin, or sleep, its default."""
    from bge_m3_lite.embedder import BGEM3Embedder

    use_local_files(settings)
    options = {"precision": settings["precision"], "spin": variant == "spinning", "quiet": True}
    return partial(_encode_flag, BGEM3Embedder(settings["lite"], num_threads=settings["threads"], **options))


def _encode_flag(model: Any, texts: list[str], batch_size: int) -> Found:
    heads = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    found = model.encode(texts, batch_size=batch_size, max_length=MAX_LENGTH, **heads)
    return found["dense_vecs"], lambda: found["lexical_weights"], found["colbert_vecs"]


def open_openvino(settings: Settings, variant: str) -> Encode:
    """Compile the portable graph, or its quantised form, with dynamic shapes; as many batches run as OpenVINO asks."""
    import openvino

    hint, precision = variant.split()
    path = f"{settings['openvino']}/model.xml" if settings["precision"] == "int8" else settings["portable"]
    options = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": precision}
    options |= {"INFERENCE_NUM_THREADS": settings["threads"]}
    queue = openvino.AsyncInferQueue(openvino.Core().compile_model(path, "CPU", options))
    tokenizer = open_tokenizer(settings)
    outputs: dict[int, list[np.ndarray]] = {}

    def finish(request: Any, lengths: dict[int, int]) -> None:
        arrays = [request.get_tensor(name).data for name in OUTPUTS]
        for row, (text, n) in enumerate(lengths.items()):
            dense, sparse, multivector = (array[row] for array in arrays)
            outputs[text] = [dense.copy(), sparse[:n].copy(), multivector[1:n].copy()]

    queue.set_callback(finish)

    def encode(texts: list[str], batch_size: int) -> Found:
        token_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        for batch, feeds in padded_batches(token_ids, batch_size, settings["pad_id"]):
            queue.start_async(feeds, {text: len(token_ids[text]) for text in batch})
        queue.wait_all()
        dense, sparse, vectors = zip(*(outputs.pop(i) for i in range(len(texts))), strict=True)
        return np.stack(dense), lambda: lexical(token_ids, sparse, settings["special_ids"]), vectors

    return encode


def prepare_openvino(settings: Settings) -> None:
    """Quantise the portable graph with NNCF's post-training quantisation, calibrated on texts."""
    folder = Path(settings["openvino"])
    if settings["precision"] != "int8" or folder.exists():
        return
    import nncf
    import openvino

    token_ids = [encoding.ids for encoding in open_tokenizer(settings).encode_batch_fast(settings["calibration"])]
    feeds = [feed for _, feed in padded_batches(token_ids, 1, settings["pad_id"])]
    quantised = nncf.quantize(
        openvino.Core().read_model(settings["portable"]),
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(feeds),
    )
    unfinished = folder.with_name("openvino.partial")
    unfinished.mkdir(parents=True, exist_ok=True)
    openvino.save_model(quantised, unfinished / "model.xml")
    unfinished.rename(folder)


def prepare_lite(settings: Settings) -> None:
    """Give bge-m3-lite the backbone it expects, and run its own fusion and quantisation on it."""
    from bge_m3_lite.fuse import fuse
    from bge_m3_lite.quantize import quantize

    use_local_files(settings)
    folder = Path(settings["lite"])
    if not (folder / "model_fused.onnx").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_backbone(Path(settings["portable"]), folder)
        fuse(folder / "model.onnx")
    if settings["precision"] == "int8" and not (folder / "model_int8.onnx").exists():
        quantize(folder / "model_fused.onnx", folder / "model_int8.onnx", calibration_texts=settings["calibration"])


def write_backbone(portable: Path, folder: Path) -> None:
    """Write the portable graph without its heads, under the names that bge-m3-lite gives files and outputs."""
    import onnx

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
    from bge_m3_lite import embedder, fuse, hub, tokenizer

    def ensure_files(files: Any, *_: Any, **__: Any) -> dict[str, Path]:
        names = [file.name for file in files]
        return {name: Path(settings["checkpoint" if name.endswith(".pt") else "lite"]) / name for name in names}

    ours = open_tokenizer(settings)
    hub.ensure_files = ensure_files
    embedder.HIDDEN_SIZE = fuse.HIDDEN_SIZE = settings["hidden_size"]
    fuse.NUM_HEADS = settings["n_heads"]
    tokenizer.XLMRobertaTokenizer.from_file = lambda _: SimpleNamespace(
        PAD_ID=settings["pad_id"],
        special_ids=frozenset(settings["special_ids"]),
        encode=lambda text, max_length: ours.encode(text).ids,
    )


def open_tokenizer(settings: Settings) -> Any:
    """Open the artifact's tokenizer.json, to cut texts at MAX_LENGTH tokens and pad nothing."""
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(f"{settings['artifact']}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    return tokenizer


def padded_batches(
    token_ids: list[list[int]], batch_size: int, pad_id: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Yield the texts of each batch, the longest first, and their int64 arrays (B, S)."""
    order = sorted(range(len(token_ids)), key=lambda text: -len(token_ids[text]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        input_ids = np.full((len(batch), len(token_ids[batch[0]])), pad_id, np.int64)
        mask = np.zeros_like(input_ids)
        for row, text in enumerate(batch):
            input_ids[row, : len(token_ids[text])] = token_ids[text]
            mask[row, : len(token_ids[text])] = 1
        yield batch, {"input_ids": input_ids, "attention_mask": mask}


def lexical(token_ids: list[list[int]], sparse: Any, special_ids: list[int]) -> list[dict[int, float]]:
    """Return each text's highest positive weight of each token id, special ids left out."""
    texts: list[dict[int, float]] = []
    for ids, weights in zip(token_ids, sparse, strict=True):
        texts.append({})
        for token, weight in sorted(zip(ids, weights.tolist(), strict=True), key=lambda pair: pair[1]):
            if weight > 0 and token not in special_ids:
                texts[-1][token] = weight
    return texts


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def quickest(call: Callable[[], object]) -> float:
    """Return the shortest of three calls; of one, where it takes long."""
    first = seconds_of(call)
    return first if first > ONCE else min(first, seconds_of(call), seconds_of(call))


def peak_rss_bytes() -> int:
    """Return this process's peak resident memory, as Linux counts it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


OPENERS: dict[str, Callable[[Settings, str], Encode]] = {
    "bgem3": open_bgem3,
    "flagembedding": open_flagembedding,
    "lite": open_lite,
    "openvino": open_openvino,
}
PREPARERS = {"lite": prepare_lite, "openvino": prepare_openvino}


def load(kind: str, request: dict[str, Any]) -> tuple[Contestant, dict[str, Any]]:
    """Open a contestant; return it with its times, memory and versions."""
    answer: dict[str, Any] = {"versions": {"python": sys.version.split()[0]}}
    answer["import_s"] = seconds_of(lambda: [importlib.import_module(name) for name in MODULES[kind]])
    start = time.perf_counter()
    contestant = Contestant(kind, request["load"], request["texts"])
    answer["load_s"] = time.perf_counter() - start
    answer["first_embedding_s"] = seconds_of(contestant.first)
    answer["loaded_peak_rss_bytes"] = peak_rss_bytes()
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            answer["versions"][name] = version(name)
    return contestant, answer


def main() -> None:
    """Answer requests until there are no more."""
    kind = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    contestant: Any = None
    for line in sys.stdin:
        request, start = json.loads(line), time.process_time()
        answer: Any = {}
        if "prepare" in request:
            answer["prepare_s"] = seconds_of(partial(PREPARERS[kind], request["prepare"]))
            answer["prepare_peak_rss_bytes"] = peak_rss_bytes()
        elif "load" in request:
            contestant, answer = load(kind, request)
        elif "tune" in request:
            answer["tuned"] = contestant.tune(request["tune"])
        elif "save" in request:
            contestant.save(request["save"], request["path"])
        else:
            answer["seconds"] = contestant.run(request.pop("run"), **request)
            answer["peak_rss_bytes"] = peak_rss_bytes()
        answer["cpu_s"] = time.process_time() - start
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
