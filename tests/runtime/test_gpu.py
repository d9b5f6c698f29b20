"""The CUDA session on a CUDA device: `pytest -m gpu`, with the gpu, export and test extras."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.kernels import attention_kernels
from bgem3.export.reference import SENTENCES
from bgem3.runtime import BGEM3Model, DeviceMemoryError
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.bench import ExactTexts
from bgem3.runtime.cuda_feeds import packed_feeds
from bgem3.runtime.cuda_provider import SETTINGS, provider_options
from bgem3.runtime.cuda_runtime import device_memory, preload_libraries, why_unavailable
from bgem3.runtime.cuda_session import CudaSession
from bgem3.runtime.manifest import OUTPUTS
from bgem3.runtime.packing import pack

TEXTS = [*SENTENCES, *(" ".join(SENTENCES[:n]) for n in range(2, 12))]
MIB = 1 << 20
PRECISIONS = ("fp16", "fp32")

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def device() -> None:
    reason = why_unavailable()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def artifact(
    demo_checkpoint: Path,
    make_random_checkpoint: Callable[..., Path],
    export_to_folder: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Four layers with BGE-M3's head size and lengths."""
    folder, sizes = tmp_path_factory.mktemp("gpu"), {"hidden": 256, "layers": 4, "heads": 4, "intermediate": 1024}
    checkpoint = make_random_checkpoint(demo_checkpoint / "tokenizer.json", folder, weight_std=0.05, **sizes)
    return export_to_folder(checkpoint, PRECISIONS)


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[BGEM3Model]:
    with BGEM3Model.load(artifact, "cuda", "fp16") as loaded:
        yield loaded


def bytes_in_use() -> int:
    free, total = device_memory(0)
    return total - free


@pytest.mark.parametrize("precision", PRECISIONS)
def test_parity_with_pytorch_up_to_8192_tokens(artifact: Path, precision: str) -> None:
    """The export has compared every CUDA graph with PyTorch on the device."""
    report = read_artifact(artifact).manifest["parity"][f"{precision}/cuda.onnx"]
    assert report["n_tokens"] > 8192
    for head in ("dense", "sparse", "multivector") if precision == "fp32" else ():
        assert report[f"{head}_max_difference"] <= 1e-4, report
    assert report["dense_min_cosine"] >= 0.9999, report
    assert report["multivector_min_cosine"] >= 0.9999, report
    assert report["sparse_max_difference"] <= 2e-3, report


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_node_runs_on_the_device(artifact: Path, model: BGEM3Model, tmp_path: Path, precision: str) -> None:
    """A profile names the provider of every kernel that ran, copies between devices included."""
    preload_libraries()
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    for key, value in SETTINGS.items():
        options.add_session_config_entry(key, value)
    provider = ("CUDAExecutionProvider", provider_options(0))
    session = onnxruntime.InferenceSession(artifact / precision / "cuda.onnx", options, providers=[provider])
    batch = pack(model.tokenizer(TEXTS, 8192), np.arange(len(TEXTS)), model.spec.pad_id)
    session.run(list(OUTPUTS), packed_feeds(batch, OUTPUTS))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ran = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    assert sum(arguments["op_name"] == "PackedMultiHeadAttention" for arguments in ran) == model.spec.n_layers
    assert {arguments["provider"] for arguments in ran} == {"CUDAExecutionProvider"}
    assert not any("Memcpy" in arguments["op_name"] for arguments in ran)


def test_attention_is_flash_at_every_length(artifact: Path, model: BGEM3Model) -> None:
    exact = ExactTexts(model.tokenizer, model.spec, SENTENCES)
    load = partial(BGEM3Model.load, artifact, "cuda", "fp16")
    for length, found in attention_kernels(load, {n: exact(n) for n in (16, 128, 512, 2048, 8192)}).items():
        assert list(found) == ["PackedMultiHeadAttention fp16 FLASH_ATTENTION"], (length, found)


def test_a_text_alone_equals_the_text_in_any_company(model: BGEM3Model) -> None:
    together = model.encode([*TEXTS, "honey " * 3000])
    for i in (0, 7, len(TEXTS) - 1):
        alone = model.encode([TEXTS[i]])
        np.testing.assert_allclose(alone.dense[0], together.dense[i], atol=2e-3)
        np.testing.assert_allclose(alone.multivector[0], together.multivector[i], atol=5e-3)


def test_several_threads_get_what_one_thread_gets(model: BGEM3Model) -> None:
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(model.encode, [TEXTS] * 4):
            np.testing.assert_allclose(found.dense, model.encode(TEXTS).dense, atol=2e-3)


def test_captured_graphs_give_what_the_session_gives_without_them(artifact: Path, model: BGEM3Model) -> None:
    with BGEM3Model.load(artifact, "cuda", "fp16", cuda_graphs=True) as captured:
        for text in ("", "What is BM25?", "honey " * 30, "honey " * 60, *SENTENCES[:5]) * 2:
            found, expected = captured.encode([text]), model.encode([text])
            np.testing.assert_allclose(found.dense, expected.dense, atol=2e-3)
            np.testing.assert_allclose(found.multivector.packed, expected.multivector.packed, atol=5e-3)
            assert abs(found.sparse - expected.sparse).max() <= 5e-3
        np.testing.assert_allclose(captured.encode(TEXTS).dense, model.encode(TEXTS).dense, atol=2e-3)


def test_too_little_memory_halves_micro_batches_and_names_a_text_too_long(artifact: Path, model: BGEM3Model) -> None:
    limit = (artifact / "fp16/weights.bin").stat().st_size + 64 * MIB
    texts = ["honey " * 400] * 200
    with BGEM3Model.load(artifact, "cuda", "fp16", device_memory_limit=limit, token_budget=1024) as small:
        assert isinstance(small._session, CudaSession)
        small._session.token_budget = 1 << 20
        np.testing.assert_allclose(small.encode(texts).dense, model.encode(texts).dense, atol=2e-3)
        assert small._session.token_budget < 80400
    with (
        BGEM3Model.load(artifact, "cuda", "fp16", device_memory_limit=limit - 56 * MIB, token_budget=64) as small,
        pytest.raises(DeviceMemoryError, match="on one text of 8"),
    ):
        small.encode(["honey " * 8000])


def test_memory_does_not_grow_over_2000_micro_batches_of_random_shapes(model: BGEM3Model) -> None:
    rng = np.random.default_rng(0)
    in_use = []
    for _ in range(2000):
        lengths = rng.integers(1, 700, rng.integers(1, 24))
        model.encode(["honey " * length for length in lengths], ("dense",))
        in_use.append(bytes_in_use())
    assert in_use[-1] - in_use[99] <= 64 * MIB


def test_closing_gives_the_devices_memory_back(artifact: Path) -> None:
    BGEM3Model.load(artifact, "cuda").close()  # loads the libraries, which stay
    before = bytes_in_use()
    BGEM3Model.load(artifact, "cuda").close()
    assert bytes_in_use() - before <= 64 * MIB
