"""The encoders of a benchmark, all called alike: what each needs, and how it is opened.

Runs under each encoder's own Python, which need not have bgem3: the standard library and NumPy are all that is
imported before it is needed.
"""

import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.bench_peer_files import HEADS, PREPARERS, Settings, cpu_flags, use_local_files

ALL_HEADS = ("dense", "sparse", "multivector")
BATCH_SIZES = (1, 4, 8, 16)
TORCH = ("torch==2.13.0", "transformers==4.57.6", "tokenizers", "numpy")
HUGGINGFACE = (*TORCH, "optimum-onnx==0.1.0", "onnxruntime", "sentence-transformers[onnx]==5.7.0")
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


class Encoded(NamedTuple):
    """Outputs for N texts; None for heads not asked for.

    Attributes
    ----------
    dense : (N, D) float array, unit length
    lexical : gives each text's weights by token id, those above 0, without special ids
    multivector : N float arrays (tokens - 1, M), unit length
    """

    dense: NDArray[Any] | None
    lexical: Callable[[], list[dict[int, float]]] | None
    multivector: Sequence[NDArray[Any]] | None


Encode = Callable[[list[str], tuple[str, ...], int], Encoded]
"""Texts, the heads asked for, in the order of ALL_HEADS, and a batch size to outputs."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """An encoder that can be measured; ours is one of them.

    Attributes
    ----------
    label : the name that is shown
    environment, packages : its Python environment, which several may share, and what pip installs there; "" is ours
    modules : imported before the clock of loading starts
    precisions, outputs, devices : what it has; "cpu" and "cuda"
    needs : of the settings "artifact", "checkpoint" and "portable", a path each
    batch_sizes : those to try
    default_batch_size : the library's own, where it is worth a row; None else
    is_thread_safe : whether threads may call it at once; they take turns otherwise
    variants : its other settings to try
    open : opens it in one of them; RuntimeError if this machine cannot run it
    prepare : writes what it loads into the folder ``settings["files"]``, unless it is there
    files : what it loads
    """

    label: str
    environment: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32",)
    outputs: tuple[str, ...] = ALL_HEADS
    devices: tuple[str, ...] = ("cpu",)
    needs: tuple[str, ...] = ("artifact", "checkpoint")
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    default_batch_size: int | None = None
    is_thread_safe: bool = True
    variants: Callable[[Settings], list[str]] = lambda _: [""]
    open: Callable[[Settings, str], Encode]
    prepare: Callable[[Settings], None] | None = None
    files: Callable[[Settings], list[Path]]


def open_bgem3(settings: Settings, variant: str) -> Encode:
    """Load an artifact in one precision; on CUDA also with graphs captured for short queries."""
    BGEM3Model = importlib.import_module("bgem3.runtime").BGEM3Model  # noqa: N806
    options = {"cuda_graphs": True} if variant else {}
    load = (settings["artifact"], settings["device"], settings["precision"], settings["threads"])
    return _encode_bgem3(BGEM3Model.load(*load, **options))


def open_bgem3_kernels(kernels: str, settings: Settings, _: str) -> Encode:
    """Load an artifact with the named CPU kernels, whichever bgem3 would choose; RuntimeError if the CPU lacks them."""
    model, artifact, device = (
        importlib.import_module(f"bgem3.runtime.{name}") for name in ("model", "artifact", "device")
    )
    opened = artifact.read_artifact(settings["artifact"])
    options = {"precision": settings["precision"], "n_threads": settings["threads"], "kernels": kernels}
    try:
        session = device.open_encoder(opened, device="cpu", **options)
    except artifact.ArtifactError as error:
        raise RuntimeError(f"the kernels {kernels!r} cannot be loaded: {error}") from None
    return _encode_bgem3(model.BGEM3Model(opened, session))


def _encode_bgem3(model: Any) -> Encode:
    def encode(texts: list[str], outputs: tuple[str, ...], _: int) -> Encoded:
        found = model.encode(texts, outputs)
        return Encoded(
            dense=found.dense if "dense" in outputs else None,
            lexical=(lambda: found.lexical_weights) if "sparse" in outputs else None,
            multivector=found.multivector if "multivector" in outputs else None,
        )

    return encode


def open_flagembedding(settings: Settings, _: str) -> Encode:
    """Load the checkpoint in FlagEmbedding."""
    importlib.import_module("torch").set_num_threads(settings["threads"])
    load = importlib.import_module("FlagEmbedding").BGEM3FlagModel
    is_half = settings["precision"] == "fp16"
    return partial(
        _encode_flag, load(settings["checkpoint"], use_fp16=is_half, devices=settings["device"]), settings["max_length"]
    )


def open_lite(settings: Settings, variant: str) -> Encode:
    """Load bge-m3-lite with the checkpoint's weights; between operators its threads spin, or sleep, its default."""
    use_local_files(settings)
    load = importlib.import_module("bge_m3_lite.embedder").BGEM3Embedder
    options = {"precision": settings["precision"], "spin": variant == "spinning", "quiet": True}
    model = load(settings["files"], num_threads=settings["threads"], **options)
    return partial(_encode_flag, model, settings["max_length"])


def _encode_flag(model: Any, max_length: int, texts: list[str], outputs: tuple[str, ...], batch_size: int) -> Encoded:
    found = model.encode(
        texts,
        batch_size=batch_size,
        max_length=max_length,
        return_dense="dense" in outputs,
        return_sparse="sparse" in outputs,
        return_colbert_vecs="multivector" in outputs,
    )
    return Encoded(
        dense=found["dense_vecs"] if "dense" in outputs else None,
        lexical=(lambda: found["lexical_weights"]) if "sparse" in outputs else None,
        multivector=found["colbert_vecs"] if "multivector" in outputs else None,
    )


def open_torch(attention: str, settings: Settings, _: str) -> Encode:
    """Load transformers' backbone with one kind of attention, and the heads: a forward pass over padded batches."""
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    precision, device, checkpoint = settings["precision"], settings["device"], Path(settings["checkpoint"])
    require_bf16(settings)
    torch.set_num_threads(settings["threads"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    load = transformers.XLMRobertaModel.from_pretrained
    backbone = load(checkpoint, attn_implementation=attention, dtype=dtype, add_pooling_layer=False).to(device).eval()
    states = (torch.load(checkpoint / f"{name}.pt", weights_only=True, map_location=device) for name in HEADS)
    sparse, multivector = ({key: values.to(dtype) for key, values in state.items()} for state in states)
    tokenizer, functional = open_tokenizer(settings), torch.nn.functional
    linear = functional.linear

    def forward(feeds: dict[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        hidden = backbone(**{name: torch.from_numpy(array).to(device) for name, array in feeds.items()})[0]
        found = []
        if "dense" in outputs:
            found.append(functional.normalize(hidden[:, 0], dim=-1))
        if "sparse" in outputs:
            found.append(torch.relu(linear(hidden, **sparse)).squeeze(-1))
        if "multivector" in outputs:
            found.append(functional.normalize(linear(hidden, **multivector), dim=-1))
        return [values.float().cpu().numpy() for values in found]

    def encode(texts: list[str], outputs: tuple[str, ...], batch_size: int) -> Encoded:
        with torch.inference_mode():
            return encode_padded(forward, tokenizer, settings, texts, outputs, batch_size)

    return encode


def open_torch_packed(settings: Settings, _: str) -> Encode:
    """Load the checkpoint in our own PyTorch loop over packed tokens, without padding."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(settings["threads"])
    packed, checkpoint = (importlib.import_module(f"bgem3.export.{name}") for name in ("torch_packed", "checkpoint"))
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[settings["precision"]]
    encoder = packed.TorchPacked(checkpoint.load_checkpoint(settings["checkpoint"]), settings["device"], dtype)
    tokenizer = open_tokenizer(settings)

    def encode(texts: list[str], outputs: tuple[str, ...], _: int) -> Encoded:
        found = encoder(texts, outputs)
        token_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)] if found.lexical else []
        weights = partial(lexical, token_ids, found.lexical, settings["special_ids"])
        return Encoded(found.dense, weights if found.lexical else None, found.multivector)

    return encode


def open_optimum(settings: Settings, _: str) -> Encode:
    """Open optimum's default export in ONNX Runtime; the heads are NumPy's, as there is none in the graph."""
    session = open_onnxruntime(Path(settings["files"], "model.onnx"), settings)
    with np.load(Path(settings["files"], "heads.npz")) as arrays:
        heads = dict(arrays)
    names = {value.name for value in session.get_inputs()}
    tokenizer = open_tokenizer(settings)

    def apply(name: str, hidden: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(hidden @ heads[f"{name}.weight"].T + heads[f"{name}.bias"])

    def forward(feeds: dict[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
        hidden = session.run(["last_hidden_state"], {name: feeds[name] for name in names})[0]
        found = []
        if "dense" in outputs:
            found.append(normalized(hidden[:, 0]))
        if "sparse" in outputs:
            found.append(np.maximum(apply("sparse_linear", hidden), 0)[..., 0])
        if "multivector" in outputs:
            found.append(normalized(apply("colbert_linear", hidden)))
        return found

    return partial(encode_padded, forward, tokenizer, settings)


def open_onnxruntime(path: Path, settings: Settings) -> Any:
    """Open a graph in ONNX Runtime as it is, on so many threads."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_sentence_transformers(settings: Settings, _: str) -> Encode:
    """Open what sentence-transformers quantized, in ONNX Runtime; dense vectors are all that it gives."""
    options = importlib.import_module("onnxruntime").SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    (file,) = Path(settings["files"], "onnx").glob("*int8*.onnx")
    library = importlib.import_module("sentence_transformers")
    model = library.SentenceTransformer(
        settings["files"],
        backend="onnx",
        device="cpu",
        model_kwargs={"file_name": file.name, "session_options": options, "provider": "CPUExecutionProvider"},
    )

    def encode(texts: list[str], _: tuple[str, ...], batch_size: int) -> Encoded:
        return Encoded(model.encode(texts, batch_size=batch_size, show_progress_bar=False), None, None)

    return encode


def open_llamacpp(settings: Settings, variant: str) -> Encode:
    """Open the GGUF file in llama.cpp, with room for one longest text; dense vectors are all that it gives."""
    library = importlib.import_module("llama_cpp")
    n_tokens = settings["max_length"]
    model = library.Llama(
        f"{settings['files']}/model.gguf",
        embedding=True,
        pooling_type=library.LLAMA_POOLING_TYPE_CLS,
        flash_attn=variant == "flash attention",
        n_ctx=n_tokens,
        n_batch=n_tokens,
        n_ubatch=n_tokens,
        n_threads=settings["threads"],
        n_threads_batch=settings["threads"],
        verbose=False,
    )

    def encode(texts: list[str], _: tuple[str, ...], batch_size: int) -> Encoded:
        batches = (texts[start : start + batch_size] for start in range(0, len(texts), batch_size))
        rows = [row for batch in batches for row in model.embed(batch, normalize=True, truncate=True)]
        return Encoded(np.array(rows, np.float32), None, None)

    return encode


def open_openvino(settings: Settings, variant: str) -> Encode:
    """Compile the portable graph, or its quantized form, with dynamic shapes.

    Several batches run at once as OpenVINO asks for; single batches have a request for each thread that calls.
    """
    openvino = importlib.import_module("openvino")
    precision = settings["precision"]
    require_bf16(settings)
    hint, floats = variant.split()
    path = f"{settings['files']}/model.xml" if precision == "int8" else settings["portable"]
    options = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": floats}
    options |= {"INFERENCE_NUM_THREADS": settings["threads"]}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    queue, lock, local = openvino.AsyncInferQueue(compiled), threading.Lock(), threading.local()
    tokenizer = open_tokenizer(settings)

    def encode(texts: list[str], outputs: tuple[str, ...], batch_size: int) -> Encoded:
        if len(texts) == 1:
            if not hasattr(local, "request"):
                local.request = compiled.create_infer_request()

            def forward(feeds: dict[str, NDArray[Any]], outputs: tuple[str, ...]) -> list[NDArray[Any]]:
                local.request.infer(feeds)
                return [local.request.get_tensor(name).data for name in outputs]

            return encode_padded(forward, tokenizer, settings, texts, outputs, 1)
        with lock:
            return encode_queued(texts, outputs, batch_size)

    def encode_queued(texts: list[str], outputs: tuple[str, ...], batch_size: int) -> Encoded:
        token_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        found: dict[int, list[NDArray[Any]]] = {}

        def finish(request: Any, batch: list[int]) -> None:
            take(found, batch, token_ids, outputs, [request.get_tensor(name).data for name in outputs])

        queue.set_callback(finish)
        for batch, feeds in padded_batches(token_ids, batch_size, settings["pad_id"]):
            queue.start_async(feeds, batch)
        queue.wait_all()
        return gathered(found, token_ids, outputs, settings)

    return encode


def openvino_variants(settings: Settings) -> list[str]:
    """Return performance hints and the precisions of what is computed in floats."""
    capabilities = importlib.import_module("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    floats = {"fp32": ["f32"], "bf16": ["bf16"]}.get(
        settings["precision"], ["f32", "bf16"] if "BF16" in capabilities else ["f32"]
    )
    return [f"{hint} {name}" for hint in ("LATENCY", "THROUGHPUT") for name in floats]


def require_bf16(settings: Settings) -> None:
    """Raise RuntimeError if bf16 is asked for and the CPU only imitates it."""
    if settings["precision"] == "bf16" and settings["device"] == "cpu" and not BF16_FLAGS & cpu_flags():
        raise RuntimeError("this CPU has no instructions for bf16")


def encode_padded(
    forward: Callable[[dict[str, NDArray[Any]], tuple[str, ...]], list[NDArray[Any]]],
    tokenizer: Any,
    settings: Settings,
    texts: list[str],
    outputs: tuple[str, ...],
    batch_size: int,
) -> Encoded:
    """Tokenize, pad, run batch by batch, and put the texts' outputs in order.

    Parameters
    ----------
    forward : takes int64 ``input_ids`` and ``attention_mask`` (B, S), and returns of the heads asked for dense (B, D),
        sparse (B, S) and multivector (B, S, M)
    """
    token_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    found: dict[int, list[NDArray[Any]]] = {}
    for batch, feeds in padded_batches(token_ids, batch_size, settings["pad_id"]):
        take(found, batch, token_ids, outputs, forward(feeds, outputs))
    return gathered(found, token_ids, outputs, settings)


def take(
    found: dict[int, list[NDArray[Any]]],
    batch: list[int],
    token_ids: list[list[int]],
    outputs: tuple[str, ...],
    arrays: list[NDArray[Any]],
) -> None:
    """Copy each text's outputs out of its batch's, without the padding's; multi-vectors without CLS's."""
    for row, text in enumerate(batch):
        n_tokens = len(token_ids[text])
        parts = {"dense": slice(None), "sparse": slice(n_tokens), "multivector": slice(1, n_tokens)}
        found[text] = [array[row][parts[head]].copy() for head, array in zip(outputs, arrays, strict=True)]


def gathered(
    found: dict[int, list[NDArray[Any]]], token_ids: list[list[int]], outputs: tuple[str, ...], settings: Settings
) -> Encoded:
    """Put together the outputs of all texts, in their order."""
    columns = [found[text] for text in range(len(token_ids))]
    heads = dict(zip(outputs, zip(*columns, strict=True), strict=True))
    weights = partial(lexical, token_ids, heads.get("sparse"), settings["special_ids"])
    return Encoded(
        dense=np.stack(heads["dense"]) if "dense" in heads else None,
        lexical=weights if "sparse" in heads else None,
        multivector=heads.get("multivector"),
    )


def open_tokenizer(settings: Settings) -> Any:
    """Open the artifact's tokenizer.json, to cut texts at the model's maximum and pad nothing."""
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(f"{settings['artifact']}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings["max_length"])
    return tokenizer


def padded_batches(
    token_ids: list[list[int]], batch_size: int, pad_id: int
) -> Iterator[tuple[list[int], dict[str, NDArray[np.int64]]]]:
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


def normalized(vectors: NDArray[Any]) -> NDArray[Any]:
    """Scale vectors to unit length."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def files_in(setting: str, *patterns: str) -> Callable[[Settings], list[Path]]:
    """Return what lists the files of a setting's folder, or of the folder that its file is in."""

    def files(settings: Settings) -> list[Path]:
        place = Path(settings[setting])
        folder = place if place.is_dir() else place.parent
        return [path for pattern in patterns or ("*",) for path in folder.rglob(pattern) if path.is_file()]

    return files


def _lite_files(settings: Settings) -> list[Path]:
    names = ("model_int8*",) if settings["precision"] == "int8" else ("model_fused*", "model.onnx_data")
    return files_in("files", *names)(settings)


def _openvino_files(settings: Settings) -> list[Path]:
    return files_in("files" if settings["precision"] == "int8" else "portable")(settings)


PEERS: dict[str, Peer] = {
    "bgem3": Peer(
        label="bgem3",
        environment="",
        packages=("bgem3", "onnxruntime", "onnxruntime-gpu", "tokenizers", "numpy"),
        modules=("bgem3.runtime",),
        precisions=("fp16", "fp32", "int8"),
        devices=("cpu", "cuda"),
        needs=("artifact",),
        batch_sizes=(1,),
        variants=lambda settings: ["", "CUDA graphs"] if settings["device"].startswith("cuda") else [""],
        open=open_bgem3,
        files=lambda settings: list(Path(settings["artifact"], settings["precision"]).iterdir()),
    ),
    **{
        f"bgem3-{name}": Peer(
            label=f"bgem3, {label}",
            environment="",
            packages=("bgem3", "onnxruntime", "tokenizers", "numpy"),
            modules=("bgem3.runtime",),
            precisions=("int8",),
            devices=(),  # bgem3 chooses the best of them itself: measured only when named
            needs=("artifact",),
            batch_sizes=(1,),
            open=partial(open_bgem3_kernels, kernels),
            files=lambda settings: list(Path(settings["artifact"], settings["precision"]).iterdir()),
        )
        for name, label, kernels in (
            ("onnxruntime", "ONNX Runtime's operators", "none"),
            ("vnni", "AVX-512 VNNI kernels", "AVX-512 VNNI"),
            ("avx2", "AVX2 kernels", "AVX2"),
        )
    },
    "flagembedding": Peer(
        label="FlagEmbedding",
        environment="flagembedding",
        packages=("FlagEmbedding==1.4.2", *TORCH),
        modules=("torch", "FlagEmbedding"),
        precisions=("fp32", "fp16"),
        devices=("cpu", "cuda"),
        batch_sizes=(*BATCH_SIZES, 32),
        default_batch_size=256,
        is_thread_safe=False,
        open=open_flagembedding,
        files=files_in("checkpoint"),
    ),
    "torch": Peer(
        label="PyTorch eager",
        environment="huggingface",
        packages=HUGGINGFACE,
        modules=("torch", "transformers", "tokenizers"),
        precisions=("fp32", "bf16"),
        devices=("cpu", "cuda"),
        open=partial(open_torch, "eager"),
        files=files_in("checkpoint"),
    ),
    "torch-sdpa": Peer(
        label="PyTorch SDPA",
        environment="huggingface",
        packages=HUGGINGFACE,
        modules=("torch", "transformers", "tokenizers"),
        precisions=("fp32", "bf16", "fp16"),
        devices=("cpu", "cuda"),
        batch_sizes=(*BATCH_SIZES, 32),
        open=partial(open_torch, "sdpa"),
        files=files_in("checkpoint"),
    ),
    "torch-packed": Peer(
        label="PyTorch packed",
        environment="",
        packages=("torch", "transformers", "numpy"),
        modules=("torch", "bgem3.export.torch_packed"),
        precisions=("fp32", "fp16"),
        devices=("cuda",),
        batch_sizes=(1,),
        open=open_torch_packed,
        files=files_in("checkpoint"),
    ),
    "optimum": Peer(
        label="optimum ONNX",
        environment="huggingface",
        packages=HUGGINGFACE,
        modules=("onnxruntime", "tokenizers"),
        open=open_optimum,
        prepare=PREPARERS["optimum"],
        files=files_in("files", "*.onnx*", "*.npz"),
    ),
    "openvino": Peer(
        label="OpenVINO",
        environment="openvino",
        packages=("openvino==2026.4.1", "nncf", "onnx", "tokenizers", "numpy"),
        modules=("openvino", "tokenizers"),
        precisions=("fp32", "bf16", "int8"),
        needs=("artifact", "portable"),
        variants=openvino_variants,
        open=open_openvino,
        prepare=PREPARERS["openvino"],
        files=_openvino_files,
    ),
    "lite": Peer(
        label="bge-m3-lite",
        environment="lite",
        packages=("bge-m3-lite[quant]==0.6.2", "onnxruntime", "tokenizers", "numpy"),
        modules=("bge_m3_lite.embedder", "bge_m3_lite.fuse", "onnxruntime", "tokenizers"),
        precisions=("fp32", "int8"),
        needs=("artifact", "checkpoint", "portable"),
        variants=lambda _: ["sleeping", "spinning"],
        open=open_lite,
        prepare=PREPARERS["lite"],
        files=_lite_files,
    ),
    "llamacpp": Peer(
        label="llama.cpp",
        environment="llamacpp",
        packages=("llama-cpp-python==0.3.36", *TORCH, "sentencepiece", "protobuf"),  # all but the first to convert
        modules=("llama_cpp",),
        precisions=("q8_0",),
        outputs=("dense",),
        batch_sizes=(1, 4, 8),
        is_thread_safe=False,
        variants=lambda _: ["plain", "flash attention"],
        open=open_llamacpp,
        prepare=PREPARERS["llamacpp"],
        files=files_in("files", "*.gguf"),
    ),
    "sentence-transformers": Peer(
        label="sentence-transformers ONNX",
        environment="huggingface",
        packages=HUGGINGFACE,
        modules=("sentence_transformers", "onnxruntime"),
        precisions=("int8",),
        outputs=("dense",),
        open=open_sentence_transformers,
        prepare=PREPARERS["sentence-transformers"],
        files=files_in("files", "*.onnx*"),
    ),
}
"""Every encoder by its kind."""
