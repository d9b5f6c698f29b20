"""OpenVINO: the portable graph in float32 or bfloat16, or quantized by NNCF."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from benchmarks.padded import Feeds, open_tokenizer, padded_batches, padded_encoder
from benchmarks.peer import Encode, Peer, Settings, require_bf16


def prepare(settings: Settings) -> None:
    """Quantize the portable graph with NNCF's post-training quantization, calibrated on texts."""
    folder = Path(settings["files"])
    if settings["precision"] != "int8" or (folder / "model.xml").exists():
        return
    import nncf
    import openvino

    token_ids = [encoding.ids for encoding in open_tokenizer(settings).encode_batch_fast(settings["calibration"])]
    feeds = [feed for _, feed in padded_batches(token_ids, 1, settings["pad_id"])]
    quantized = nncf.quantize(
        openvino.Core().read_model(Path(settings["portable"], "model.onnx")),
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(feeds),
    )
    openvino.save_model(quantized, folder / "partial.xml")
    for suffix in (".bin", ".xml"):  # the graph is renamed last, so that an unfinished one is not taken for a whole one
        (folder / f"partial{suffix}").rename(folder / f"model{suffix}")


def open_openvino(settings: Settings) -> Encode:
    """Compile with dynamic shapes; each calling thread has an inference request of its own."""
    import openvino

    require_bf16(settings)
    path, options = Path(settings["portable"], "model.onnx"), {"PERFORMANCE_HINT": "LATENCY"}
    if settings["precision"] == "int8":
        path = Path(settings["files"], "model.xml")
    else:
        options["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[settings["precision"]]
    compiled = openvino.Core().compile_model(path, "CPU", options | {"INFERENCE_NUM_THREADS": settings["threads"]})
    local = threading.local()

    def forward(batches: Iterable[Feeds], outputs: tuple[str, ...]) -> Iterator[list[NDArray[Any]]]:
        if not hasattr(local, "request"):
            local.request = compiled.create_infer_request()
        for feeds in batches:
            local.request.infer(feeds)
            yield [local.request.get_tensor(name).data for name in outputs]

    return padded_encoder(settings, forward)


def _files(settings: Settings) -> list[Path]:
    return list(Path(settings["files" if settings["precision"] == "int8" else "portable"]).iterdir())


PEERS = (
    Peer(
        name="openvino",
        label="OpenVINO",
        environment="openvino",
        packages=("openvino==2026.4.1", "nncf", "onnx", "tokenizers", "numpy"),
        modules=("openvino", "tokenizers"),
        precisions=("fp32", "bf16", "int8"),
        needs=("portable",),
        prepare=prepare,
        open=open_openvino,
        files=_files,
    ),
)
