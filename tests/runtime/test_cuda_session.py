# ruff: noqa: F811 - fixtures are imported
"""The CUDA session without a CUDA device, on the stand-in; what only a device can show is in test_gpu.py."""

import gc
import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from bgem3.export.reference import SENTENCES
from bgem3.runtime import ArtifactError, BGEM3Model, DeviceMemoryError, cuda_provider, ort, workers
from bgem3.runtime import cuda_session as cuda
from bgem3.runtime import model as model_module
from bgem3.runtime.cuda_session import CudaSession
from bgem3.runtime.encoder_session import CLOSED
from bgem3.runtime.heads import OUTPUTS, Output
from bgem3.runtime.packing import PackedBatch
from bgem3.scoring import Embeddings
from tests.runtime.cuda_stand_in import GIGABYTE, Cudart, Ran, cudart, ran  # noqa: F401
from tests.runtime.interrupting import in_thread, steps_until_done

TEXTS = ["", *SENTENCES, *(" ".join(SENTENCES[:n]) for n in range(2, 12)), "What is BM25?"]
Load = Callable[..., BGEM3Model]
OUT_OF_MEMORY = RuntimeException("CUDA failure 2: out of memory ; GPU=0")


@pytest.fixture
def load(demo_artifact: Path, ran: Ran) -> Load:
    """Load the demo artifact; "cuda" is the stand-in."""
    return partial(BGEM3Model.load, demo_artifact)


@pytest.fixture(scope="module")
def expected(demo_artifact: Path) -> Embeddings:
    """The texts on the CPU."""
    return BGEM3Model.load(demo_artifact, "cpu", "fp32").encode(TEXTS)


def assert_equal(found: Embeddings, expected: Embeddings, tolerance: float = 1e-5) -> None:
    """Compare the outputs that were found."""
    assert found.n_tokens.tolist() == expected.n_tokens.tolist()
    if "dense" in found.outputs:
        np.testing.assert_allclose(found.dense, expected.dense, atol=tolerance)
    if "sparse" in found.outputs:
        assert abs(found.sparse - expected.sparse).max() <= 4 * tolerance
    if "multivector" in found.outputs:
        np.testing.assert_allclose(found.multivector.packed, expected.multivector.packed, atol=tolerance)


def session_of(model: BGEM3Model) -> CudaSession:
    assert isinstance(model._session, CudaSession)
    return model._session


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 3e-3)])
@pytest.mark.parametrize("options", [{}, {"token_budget": 100}, {"cuda_graphs": True}], ids=str)
def test_the_session_gives_what_the_cpu_gives(
    load: Load,
    expected: Embeddings,
    options: dict[str, Any],
    precision: str,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_module, "CHARACTERS_PER_CHUNK", 100)  # many chunks, which come back in order
    with load("cuda:1", precision, **options) as model:
        assert (model.device, model.precision) == ("cuda:1", precision)
        assert_equal(model.encode(TEXTS), expected, tolerance)
        for i in (0, 1, len(TEXTS) - 1):
            assert_equal(model.encode([TEXTS[i]]), expected[i : i + 1], tolerance)


@pytest.mark.parametrize("outputs", [("dense",), ("sparse",), ("dense", "multivector")])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_only_the_heads_asked_for_are_returned(
    load: Load, expected: Embeddings, outputs: tuple[Output, ...], cuda_graphs: bool
) -> None:
    with load("cuda", "fp32", cuda_graphs=cuda_graphs) as model:
        for rows in (slice(None), slice(1, 2)):
            found = model.encode(TEXTS[rows], outputs)
            assert found.outputs == outputs
            assert_equal(found, expected[rows])


def test_the_provider_gets_the_options_that_the_graph_relies_on(load: Load, ran: Ran) -> None:
    load("cuda:1", device_memory_limit=3 * GIGABYTE).close()
    assert ran.settings == [{"session.disable_cpu_ep_fallback": "1"}]
    assert ran.provider_options == [
        {
            "device_id": 1,
            "arena_extend_strategy": "kSameAsRequested",
            "gpu_mem_limit": 3 * GIGABYTE,
            "sdpa_kernel": 19,
            "enable_skip_layer_norm_strict_mode": 1,
            "use_tf32": 0,
            "enable_cuda_graph": 0,
        }
    ]


@pytest.mark.parametrize(("cuda_graphs", "n_workers"), [(False, 2), (True, 1)])
def test_every_worker_warms_up_with_the_largest_micro_batch(
    load: Load, ran: Ran, cuda_graphs: bool, n_workers: int
) -> None:
    with load("cuda", token_budget=2000, cuda_graphs=cuda_graphs) as model:
        # texts of 256 tokens, one of them twice as long; then the captured graphs' lengths, for two sets of heads
        assert ran.n_tokens == [1792] * n_workers + [16, 32, 64] * 2 * cuda_graphs
        model.encode(TEXTS * 4)
    assert len(ran.threads) == n_workers
    assert all(name.startswith("cuda:0") for name in ran.threads)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error in execution: Failed to allocate memory for requested buffer of size 1024"),
        RuntimeException("Available memory of 1024 is smaller than requested bytes of 4096"),
        OUT_OF_MEMORY,
        RuntimeException("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
    ids=str,
)
def test_out_of_memory_halves_the_micro_batch_and_the_budget(
    load: Load, ran: Ran, expected: Embeddings, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    with load("cuda", "fp32") as model:
        ran.n_tokens.clear()
        ran.error = lambda n_tokens: error if n_tokens > 600 else None
        with caplog.at_level(logging.WARNING):
            assert_equal(model.encode(TEXTS), expected)
        budget = session_of(model).token_budget
        assert budget <= 1200
        assert f"at most {budget} tokens" in caplog.text
        assert "gpu:0" in ran.entries("memory.enable_memory_arena_shrinkage")
        ran.n_tokens.clear()
        assert_equal(model.encode(TEXTS), expected)
        assert max(ran.n_tokens) <= 1200, "the lower budget stays"


def test_the_token_budget_falls_to_what_the_warm_up_fits_in_memory(load: Load, ran: Ran) -> None:
    ran.error = lambda n_tokens: OUT_OF_MEMORY if n_tokens > 600 else None
    with load("cuda", token_budget=2000) as model:
        assert 300 <= session_of(model).token_budget <= 1200


def test_out_of_memory_on_one_text_names_its_length(load: Load, ran: Ran) -> None:
    with load("cuda") as model:
        ran.error = lambda n_tokens: OUT_OF_MEMORY if n_tokens > 100 else None
        words = r"cuda:0 ran out of memory \(8.59 of 17.18 GB free\) on one text of 203 tokens; .*max_length"
        with pytest.raises(DeviceMemoryError, match=words):
            model.encode([*TEXTS[:5], "honey " * 200])
        ran.error = lambda n_tokens: None
        assert len(model.encode(TEXTS[:3])) == 3, "the model can still be used"


def test_another_error_is_not_retried_and_stops_the_micro_batches_that_wait(load: Load, ran: Ran) -> None:
    with load("cuda", token_budget=60) as model:
        ran.n_tokens.clear()
        ran.error = lambda n_tokens: RuntimeException("CUDA failure 700: an illegal memory access was encountered")
        with pytest.raises(RuntimeException, match="illegal"):
            model.encode(TEXTS * 20)
        n_ran = len(ran.n_tokens)
        assert n_ran <= cuda.N_QUEUED + 1
        ran.error = lambda n_tokens: None
        model.encode(TEXTS[:1])
        assert len(ran.n_tokens) == n_ran + 1


def test_weights_that_do_not_fit_the_device_are_told_from_a_damaged_file(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeException("Failed to allocate memory of size 7")

    monkeypatch.setattr(cuda_provider, "make_session", fail)
    with pytest.raises(DeviceMemoryError, match=r"cuda:0 has too little free memory for the weights in .*fp16"):
        load("cuda")


def test_pinned_memory_is_reused_and_given_back(load: Load, cudart: Cudart) -> None:
    with load("cuda") as model:
        pinned = dict(cudart.pinned)
        assert len(pinned) == 2 * (8 + 3)  # each worker's inputs and outputs
        model.encode(TEXTS)
        assert cudart.pinned == pinned  # the warm-up's were large enough
    gc.collect()
    assert not cudart.pinned


def test_an_interrupt_at_any_step_of_a_call_leaves_the_workers_to_the_others(load: Load) -> None:
    with load("cuda", "fp32", token_budget=40) as model:
        session, batch = session_of(model), session_of(model)._filler(np.array([16]))

        def call() -> int:
            finished: list[int] = []
            session.run_all([batch] * 7, OUTPUTS, lambda batch, arrays: finished.append(len(arrays["dense"])))
            return len(finished)

        for n_steps, value in steps_until_done(KeyboardInterrupt(), (cuda, workers), lambda: call):
            assert value in (None, 7)
            assert call() == 7, n_steps
        assert n_steps > 100
        assert not session._callers


@pytest.mark.parametrize("token_budget", [60, 2000])
def test_closing_ends_the_callers_with_their_present_micro_batch(
    load: Load, expected: Embeddings, token_budget: int
) -> None:
    model = load("cuda", "fp32", token_budget=token_budget)
    n_encoded = [0] * 4

    def encode_until_closed(i: int) -> str:
        while True:
            try:
                assert_equal(model.encode(TEXTS), expected)
            except RuntimeError as error:
                return str(error)
            n_encoded[i] += 1

    callers = [in_thread(lambda i=i: encode_until_closed(i)) for i in range(4)]  # type: ignore[misc]
    while min(n_encoded) < 1:
        time.sleep(0.001)
    closers = [in_thread(model.close) for _ in range(2)]
    for closer in closers:
        closer.result(60)
    assert [caller.result(60) for caller in callers] == [CLOSED] * 4
    model.close()


def test_a_handler_that_interrupts_encode_may_close_the_model_but_not_encode(load: Load, cudart: Cudart) -> None:
    model = load("cuda", "fp32")
    session = session_of(model)
    batch = session._filler(np.array([16]))

    def interrupted() -> Iterator[PackedBatch]:
        """Stand for steps of the caller's thread, which a signal's handler may interrupt."""
        yield batch
        with pytest.raises(RuntimeError, match=r"same thread is within encode.*first call has returned"):
            model.encode(["one"])
        yield batch
        model.close()
        yield batch

    with pytest.raises(RuntimeError, match=CLOSED):
        session.run_all(interrupted(), OUTPUTS, lambda *_: None)
    del session
    gc.collect()
    assert not cudart.pinned


def test_a_model_that_is_dropped_ends_its_workers(load: Load, cudart: Cudart) -> None:
    n_threads = threading.active_count()
    model = load("cuda", "fp32")
    model.encode(TEXTS)
    assert threading.active_count() == n_threads + 2
    del model
    gc.collect()
    assert threading.active_count() == n_threads
    assert not cudart.pinned


def test_captured_graphs_are_kept_by_length_and_heads(load: Load, ran: Ran) -> None:
    with load("cuda", cuda_graphs=True) as model:
        ran.run_options.clear()
        for outputs in (("dense",), OUTPUTS):
            for text in ("What is BM25?", "What is BGE M3?", "honey " * 20):
                model.encode([text], outputs)
        model.encode(["honey " * 70])
        model.encode(TEXTS[:2])
        # all graphs were captured while the model was loaded
        assert ran.entries("gpu_graph_id") == ["4", "4", "5", "1", "1", "2", "-1", "-1"]


def test_auto_takes_the_device_that_there_is_and_says_so(
    load: Load, cudart: Cudart, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load().close()
        cudart.n_devices = None
        load().close()
    reason = "counting CUDA devices failed: cudaErrorInsufficientDriver"
    messages = [record.message for record in caplog.records if record.message.startswith("device")]
    assert messages == [
        "device 'auto': running on cuda:0 with fp16 weights",
        f"device 'auto': running on cpu with fp16 weights, since {reason}",
    ]


@pytest.mark.parametrize(
    ("providers", "n_devices", "words"),
    [
        (["CPUExecutionProvider"], 2, r"no CUDA provider .*CPUExecutionProvider.*bgem3\[gpu\].*device='cpu'"),
        (["CUDAExecutionProvider"], None, "counting CUDA devices failed: cudaErrorInsufficientDriver; .*nvidia-smi"),
        (["CUDAExecutionProvider"], 0, "it has no CUDA device"),
        (["CUDAExecutionProvider"], 2, "end at cuda:1"),
    ],
)
def test_a_device_that_cannot_be_used_says_why(
    demo_artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    cudart: Cudart,
    providers: list[str],
    n_devices: int | None,
    words: str,
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    cudart.n_devices = n_devices
    with pytest.raises(RuntimeError, match=f"'cuda:2' was asked for, but .*{words}"):
        BGEM3Model.load(demo_artifact, "cuda:2")


def test_missing_bindings_are_named(demo_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(RuntimeError, match=r"cuda-bindings cannot be imported .*bgem3\[gpu\]"):
        BGEM3Model.load(demo_artifact, "cuda")


@pytest.mark.parametrize("drops_provider", [True, False])
def test_a_cuda_library_that_does_not_load_is_an_error_and_never_the_cpu(
    demo_artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    cudart: Cudart,
    drops_provider: bool,
) -> None:
    """Without CUDA's libraries ONNX Runtime drops the provider, as the one here does, or keeps only the CPU's."""

    def without_provider(path: Path, n_threads: int, *_: Any, **__: Any) -> Any:
        if drops_provider:
            return ort.make_session(path, n_threads, {"session.disable_cpu_ep_fallback": "1"}, providers=[])
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(cuda_provider, "make_session", without_provider)
    with pytest.raises(RuntimeError, match=r"'cuda:0' was asked for, but .* did not load its CUDA provider .*cuDNN"):
        BGEM3Model.load(demo_artifact, "cuda")


@pytest.mark.parametrize("option", [{"cuda_graphs": True}, {"device_memory_limit": GIGABYTE}], ids=str)
def test_options_of_cuda_are_refused_on_cpu(demo_artifact: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} is for CUDA, found it with device='cpu'; leave it out"):
        BGEM3Model.load(demo_artifact, "cpu", **option)


def test_an_artifact_without_cuda_graphs_says_what_it_has(demo_artifact: Path, ran: Ran, tmp_path: Path) -> None:
    folder = shutil.copytree(demo_artifact, tmp_path / "artifact")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["graphs"] = [graph for graph in manifest["graphs"] if graph["device"] == "cpu"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="has no graph for any precision on cuda, it has: fp16 on cpu, fp32 on cpu"):
        BGEM3Model.load(folder, "cuda")
    with BGEM3Model.load(folder) as model:
        assert model.device == "cpu"
