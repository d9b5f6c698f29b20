# ruff: noqa: F811 - fixtures are imported
"""The CUDA session without a CUDA device, on the stand-in; what only a device can show is in test_gpu.py."""

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from bgem3.export.reference import SENTENCES
from bgem3.runtime import ArtifactError, BGEM3Model, DeviceMemoryError, cuda_provider, cuda_session, ort
from bgem3.runtime import model as model_module
from bgem3.runtime.cuda_session import CudaSession
from bgem3.runtime.encoder_session import CLOSED
from bgem3.runtime.manifest import OUTPUTS, Output
from bgem3.runtime.packing import PackedBatch
from bgem3.scoring import Embeddings
from tests.runtime.cuda_stand_in import GIGABYTE, Cudart, Ran, cudart, ran  # noqa: F401
from tests.runtime.interrupting import SECONDS, encode_until_closed, interrupted_everywhere

TEXTS = ["", *SENTENCES[:12], *(" ".join(SENTENCES[:n]) for n in range(2, 12, 3)), "What is BM25?"]
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


@pytest.mark.parametrize(
    ("precision", "options", "outputs", "tolerance"),
    [
        ("fp16", {}, OUTPUTS, 3e-3),
        ("fp32", {"token_budget": 100}, OUTPUTS, 1e-5),
        ("fp32", {"cuda_graphs": True}, OUTPUTS, 1e-5),
        ("fp32", {}, ("dense",), 1e-5),
        ("fp32", {"cuda_graphs": True}, ("sparse",), 1e-5),
        ("fp32", {}, ("dense", "multivector"), 1e-5),
    ],
    ids=str,
)
def test_the_session_gives_what_the_cpu_gives(
    load: Load,
    expected: Embeddings,
    precision: str,
    options: dict[str, Any],
    outputs: tuple[Output, ...],
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_module, "CHARACTERS_PER_CHUNK", 100)  # many chunks, which come back in order
    with load("cuda:1", precision, **options) as model:
        assert (model.device, model.precision) == ("cuda:1", precision)
        for rows in (slice(None), slice(0, 1), slice(1, 2)):
            found = model.encode(TEXTS[rows], outputs)
            assert found.outputs == outputs
            assert_equal(found, expected[rows], tolerance)


def test_the_provider_gets_the_options_that_the_graph_relies_on(load: Load, ran: Ran) -> None:
    load("cuda:1", device_memory_limit=3 * GIGABYTE).close()
    settings, options = ran.made[0]
    assert settings == {"session.disable_cpu_ep_fallback": "1"}
    assert (options["device_id"], options["gpu_mem_limit"]) == (1, 3 * GIGABYTE)
    assert (options["enable_skip_layer_norm_strict_mode"], options["use_tf32"], options["enable_cuda_graph"]) == (
        1,
        0,
        0,
    )


@pytest.mark.parametrize(("cuda_graphs", "n_workers"), [(False, 2), (True, 1)])
def test_every_worker_warms_up_with_the_largest_micro_batch(
    load: Load, ran: Ran, cuda_graphs: bool, n_workers: int
) -> None:
    with load("cuda", token_budget=1000, cuda_graphs=cuda_graphs) as model:
        # texts of 256 tokens, one of them twice as long; then the captured graphs' lengths, for two sets of heads
        assert ran.n_tokens == [768] * n_workers + [16, 32, 64] * 2 * cuda_graphs
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
        ran.error = lambda n_tokens: error if n_tokens > 600 else None
        with caplog.at_level(logging.WARNING):
            assert_equal(model.encode(TEXTS), expected)
        budget = session_of(model).token_budget
        assert 150 <= budget <= 600
        assert f"at most {budget} tokens" in caplog.text
        assert "gpu:0" in ran.entries("memory.enable_memory_arena_shrinkage")
        ran.n_tokens.clear()
        model.encode(TEXTS)
        assert max(ran.n_tokens) <= budget, "the lower budget stays"


def test_out_of_memory_on_one_text_names_its_length(load: Load, ran: Ran) -> None:
    with load("cuda") as model:
        ran.error = lambda n_tokens: OUT_OF_MEMORY if n_tokens > 100 else None
        words = r"cuda:0 ran out of memory \(8.59 of 17.18 GB free\) on one text of 203 tokens; .*max_length"
        with pytest.raises(DeviceMemoryError, match=words):
            model.encode([*TEXTS[:5], "honey " * 200])
        ran.error = lambda n_tokens: None
        assert len(model.encode(TEXTS[:3])) == 3, "the model can still be used"


def test_a_text_that_does_not_fit_beside_another_workers_runs_again_alone(load: Load, ran: Ran) -> None:
    with load("cuda") as model:
        expected = model.encode(["honey " * 200])
        running = session_of(model)._running
        ran.n_tokens.clear()
        ran.error = lambda n_tokens: OUT_OF_MEMORY if running._value else None  # the other worker may run
        np.testing.assert_array_equal(model.encode(["honey " * 200]).dense, expected.dense)
        assert ran.n_tokens == [203, 203]


def test_another_error_is_not_retried_and_stops_the_micro_batches_that_wait(load: Load, ran: Ran) -> None:
    with load("cuda", token_budget=60) as model:
        ran.n_tokens.clear()
        ran.error = lambda n_tokens: RuntimeException("CUDA failure 700: an illegal memory access was encountered")
        with pytest.raises(RuntimeException, match="illegal"):
            model.encode(TEXTS * 20)
        n_ran = len(ran.n_tokens)
        assert n_ran <= cuda_session.N_QUEUED + 1
        ran.error = lambda n_tokens: None
        model.encode(TEXTS[:1])
        assert len(ran.n_tokens) == n_ran + 1


def test_an_interrupt_at_any_step_of_a_call_leaves_the_workers_to_the_others(load: Load) -> None:
    with load("cuda", "fp32", token_budget=40) as model:
        session = session_of(model)
        batch = session._filler(np.array([16]))

        def call() -> int:
            finished: list[int] = []
            session.run_all([batch] * 7, OUTPUTS, lambda batch, arrays: finished.append(len(arrays["dense"])))
            return len(finished)

        for n_calls, value in enumerate(interrupted_everywhere(KeyboardInterrupt(), cuda_session, call)):
            assert value in (None, 7)
            assert n_calls % 10 or call() == 7
        assert not session._callers


def test_closing_ends_the_callers_with_their_present_micro_batch(load: Load, expected: Embeddings) -> None:
    encode_until_closed(load("cuda", "fp32", token_budget=60), TEXTS, partial(assert_equal, expected=expected))


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


@pytest.mark.parametrize("closes", [True, False])
def test_a_model_that_is_closed_or_dropped_ends_its_workers_and_gives_pinned_memory_back(
    load: Load, cudart: Cudart, closes: bool
) -> None:
    n_threads = threading.active_count()
    model = load("cuda", "fp32")
    pinned = dict(cudart.pinned)
    assert len(pinned) == 2 * (8 + 3)  # each worker's inputs and outputs
    model.encode(TEXTS)
    assert cudart.pinned == pinned  # the warm-up's were large enough
    assert threading.active_count() == n_threads + 2
    if closes:
        model.close()
    else:
        del model
    gc.collect()
    deadline = time.monotonic() + SECONDS
    while threading.active_count() > n_threads and time.monotonic() < deadline:
        time.sleep(0.01)  # a worker may still drop its last task, which refers to the model
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
    ("provider", "n_devices", "words"),
    [
        ("CPUExecutionProvider", 2, r"no CUDA provider .*CPUExecutionProvider.*bgem3\[gpu\].*device='cpu'"),
        ("CUDAExecutionProvider", None, "counting CUDA devices failed: cudaErrorInsufficientDriver; .*nvidia-smi"),
        ("CUDAExecutionProvider", 0, "it has no CUDA device"),
        ("CUDAExecutionProvider", 2, "end at cuda:1"),
    ],
)
def test_a_device_that_cannot_be_used_says_why(
    demo_artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    cudart: Cudart,
    provider: str,
    n_devices: int | None,
    words: str,
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider])
    cudart.n_devices = n_devices
    with pytest.raises(RuntimeError, match=f"'cuda:2' was asked for, but .*{words}"):
        BGEM3Model.load(demo_artifact, "cuda:2")


def drop_provider(path: Path, n_threads: int, *_: Any, **__: Any) -> Any:
    """Open the graph as ONNX Runtime does where CUDA's libraries are missing: without the provider."""
    return ort.make_session(path, n_threads, {"session.disable_cpu_ep_fallback": "1"}, providers=[])


def run_out_of_memory(*_: Any, **__: Any) -> Any:
    raise RuntimeException("Failed to allocate memory of size 7")


@pytest.mark.parametrize(
    ("open_graph", "kind", "words"),
    [
        (drop_provider, RuntimeError, "'cuda:0' was asked for, but .* did not load its CUDA provider .*cuDNN"),
        (run_out_of_memory, DeviceMemoryError, "cuda:0 has too little free memory for the weights in .*fp16"),
    ],
)
def test_a_session_that_cannot_be_opened_says_why_and_never_takes_the_cpu(
    load: Load, monkeypatch: pytest.MonkeyPatch, open_graph: Any, kind: type[Exception], words: str
) -> None:
    monkeypatch.setattr(cuda_provider, "PROVIDER", "CUDAExecutionProvider")
    monkeypatch.setattr(cuda_provider, "make_session", open_graph)
    with pytest.raises(kind, match=words):
        load("cuda")


def test_a_precision_without_a_cuda_graph_runs_on_the_cpu_unless_cuda_is_asked_for(
    int8_artifact: Path, ran: Ran
) -> None:
    with pytest.raises(ArtifactError, match=r"has no graph for int8 on cuda, it has: .*fp32 on cuda, int8 on cpu"):
        BGEM3Model.load(int8_artifact, "cuda", "int8")
    with BGEM3Model.load(int8_artifact, precision="int8") as model:
        assert model.device == "cpu"
