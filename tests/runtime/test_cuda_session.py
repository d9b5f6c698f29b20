"""The CUDA session without a CUDA device.

The session's own code runs on ONNX Runtime's CPU provider: over a copy of the CUDA graph whose packed attention is
written in standard operators, with the CUDA runtime's calls answered by a stand-in. What only a device can show is
in test_gpu.py.
"""

import ctypes
import gc
import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from bgem3.export.reference import SENTENCES
from bgem3.runtime import ArtifactError, BGEM3Model, DeviceMemoryError, workers
from bgem3.runtime import cpu_session as session
from bgem3.runtime import cuda_session as cuda
from bgem3.runtime import model as model_module
from bgem3.runtime.cpu_session import CLOSED, OUTPUTS, Output
from bgem3.runtime.cuda_session import CudaSession
from bgem3.runtime.packing import PackedBatch
from bgem3.scoring import Embeddings
from tests.export.contrib_ops import for_cpu
from tests.runtime.interrupting import in_thread, interrupted_after

TEXTS = ["", *SENTENCES, *(" ".join(SENTENCES[:n]) for n in range(2, 12)), "What is BM25?"]
GIGABYTE = 1 << 30


class Cudart:
    """The calls of cuda.bindings.runtime that the session makes, on a machine with two devices."""

    cudaHostAllocPortable = 1  # noqa: N815

    cudaError_t = IntEnum("cudaError_t", {"cudaSuccess": 0, "cudaErrorInsufficientDriver": 35})  # noqa: N815

    def __init__(self) -> None:
        self.free = 8 * GIGABYTE
        self.n_devices: int | None = 2
        self.device_id = 0
        self.pinned: dict[int, Any] = {}

    def cudaGetDeviceCount(self) -> tuple[Any, Any]:  # noqa: N802
        if self.n_devices is None:
            return self.cudaError_t.cudaErrorInsufficientDriver, None
        return self.cudaError_t.cudaSuccess, self.n_devices

    def cudaGetDevice(self) -> tuple[Any, int]:  # noqa: N802
        return self.cudaError_t.cudaSuccess, self.device_id

    def cudaSetDevice(self, device_id: int) -> tuple[Any]:  # noqa: N802
        assert device_id < 2
        self.device_id = device_id
        return (self.cudaError_t.cudaSuccess,)

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:  # noqa: N802
        return self.cudaError_t.cudaSuccess, self.free, 16 * GIGABYTE

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, int]:  # noqa: N802
        memory = ctypes.create_string_buffer(size)
        self.pinned[ctypes.addressof(memory)] = memory
        return self.cudaError_t.cudaSuccess, ctypes.addressof(memory)

    def cudaFreeHost(self, pointer: int) -> tuple[Any]:  # noqa: N802
        del self.pinned[pointer]
        return (self.cudaError_t.cudaSuccess,)


class Ran:
    """What the sessions were made with, and what they ran."""

    def __init__(self) -> None:
        self.provider_options: list[dict[str, Any]] = []
        self.settings: list[dict[str, str]] = []
        self.n_tokens: list[int] = []
        self.threads: set[str] = set()
        self.run_options: list[Any] = []
        self.error: Callable[[int], Exception | None] = lambda n_tokens: None  # given a micro-batch's tokens


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Cudart:
    stand_in = Cudart()
    monkeypatch.setattr(cuda, "import_cudart", lambda: stand_in)
    return stand_in


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, cudart: Cudart) -> Ran:
    """Let "cuda" run on the CPU provider, and report what was run."""
    ran = Ran()

    def make_session(path: Path, n_threads: int, settings: dict[str, str], providers: list[Any]) -> Any:
        ran.settings.append(settings)
        ran.provider_options.append(providers[0][1])
        path = for_cpu(path, path.with_name("cuda_on_cpu.onnx"))
        made = session.make_session(path, n_threads, providers=["CPUExecutionProvider"])
        path.unlink()
        run_with_iobinding = made.run_with_iobinding

        def run_without_options(binding: Any, options: Any) -> None:
            ran.run_options.append(options)
            is_of_gpu = entry(options, "memory.enable_memory_arena_shrinkage")
            run_with_iobinding(binding, None if is_of_gpu else options)

        made.run_with_iobinding = run_without_options
        return made

    run = CudaSession._run

    def counted_run(self: CudaSession, batch: PackedBatch, outputs: Any) -> Any:
        ran.n_tokens.append(len(batch.token_ids))
        ran.threads.add(threading.current_thread().name)
        error = ran.error(len(batch.token_ids))
        if error:
            raise error
        return run(self, batch, outputs)

    monkeypatch.setattr(CudaSession, "_run", counted_run)
    monkeypatch.setattr(cuda, "make_session", make_session)
    monkeypatch.setattr(cuda, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(cuda, "MEMORY", "cpu")
    monkeypatch.setattr(cuda, "TOKEN_BUDGET", 1024)  # the stand-in for attention holds all scores
    monkeypatch.setattr(cuda, "preload_libraries", lambda: None)
    return ran


@pytest.fixture(scope="module")
def expected(demo_artifact: Path) -> Embeddings:
    """The texts on CPU."""
    return BGEM3Model.load(demo_artifact, "cpu", "fp32").encode(TEXTS)


def assert_equal(found: Embeddings, expected: Embeddings, tolerance: float) -> None:
    assert found.n_tokens.tolist() == expected.n_tokens.tolist()
    np.testing.assert_allclose(found.dense, expected.dense, atol=tolerance)
    np.testing.assert_allclose(found.multivector.packed, expected.multivector.packed, atol=tolerance)
    assert abs(found.sparse - expected.sparse).max() <= 4 * tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 3e-3)])
@pytest.mark.parametrize("options", [{}, {"token_budget": 100}, {"cuda_graphs": True}], ids=str)
def test_the_session_gives_what_the_cpu_gives(
    demo_artifact: Path, ran: Ran, expected: Embeddings, options: dict[str, Any], precision: str, tolerance: float
) -> None:
    with BGEM3Model.load(demo_artifact, "cuda:1", precision, **options) as model:
        assert (model.device, model.precision) == ("cuda:1", precision)
        assert_equal(model.encode(TEXTS), expected, tolerance)
        for i in (0, 1, len(TEXTS) - 1):
            one = BGEM3Model.load(demo_artifact, "cpu", "fp32").encode([TEXTS[i]])
            assert_equal(model.encode([TEXTS[i]]), one, tolerance)


@pytest.mark.parametrize("outputs", [("dense",), ("sparse",), ("dense", "multivector")])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_only_the_heads_asked_for_are_returned(
    demo_artifact: Path, ran: Ran, expected: Embeddings, outputs: tuple[Output, ...], cuda_graphs: bool
) -> None:
    with BGEM3Model.load(demo_artifact, "cuda", "fp32", cuda_graphs=cuda_graphs) as model:
        for texts in (TEXTS, TEXTS[1:2]):
            found = model.encode(texts, outputs)
            rows = slice(1, 2) if len(texts) == 1 else slice(None)
            assert found.outputs == outputs
            if "dense" in outputs:
                np.testing.assert_allclose(found.dense, expected.dense[rows], atol=1e-5)
            if "sparse" in outputs:
                assert abs(found.sparse - expected.sparse[rows]).max() <= 1e-5
            if "multivector" in outputs:
                vectors = np.concatenate(list(expected.multivector)[rows])
                np.testing.assert_allclose(found.multivector.packed, vectors, atol=1e-5)


def test_the_provider_is_told_what_the_graph_relies_on(demo_artifact: Path, ran: Ran) -> None:
    BGEM3Model.load(demo_artifact, "cuda:1", device_memory_limit=3 * GIGABYTE).close()
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


def test_two_workers_share_the_session_and_a_capturing_one_has_a_single_worker(demo_artifact: Path, ran: Ran) -> None:
    for cuda_graphs, n_threads in ((False, 2), (True, 1)):
        ran.threads.clear()
        with BGEM3Model.load(demo_artifact, "cuda", token_budget=60, cuda_graphs=cuda_graphs) as model:
            model.encode(TEXTS)
        assert len(ran.threads) == n_threads
        assert all(name.startswith("cuda:0") for name in ran.threads)


def test_micro_batches_run_the_largest_first_when_the_model_is_loaded(demo_artifact: Path, ran: Ran) -> None:
    with BGEM3Model.load(demo_artifact, "cuda", token_budget=2000):
        assert ran.n_tokens == [1792, 1792]  # texts of 256 tokens, one of them twice as long, on both workers


def test_the_token_budget_follows_the_free_memory(demo_artifact: Path, ran: Ran, cudart: Cudart) -> None:
    spec = BGEM3Model.load(demo_artifact, "cpu").spec
    budgets = []
    for free in (8 * GIGABYTE, 4_000_000, 1_000_000):
        cudart.free = free
        with BGEM3Model.load(demo_artifact, "cuda") as model:
            budgets.append(session_of(model).token_budget)
    of_free = [int(0.8 * free / 2 / cuda.bytes_per_token(spec, "fp16")) for free in (4_000_000, 1_000_000)]
    assert budgets == [cuda.TOKEN_BUDGET, *of_free]
    limit = (demo_artifact / "fp16/weights.bin").stat().st_size + 500_000
    with BGEM3Model.load(demo_artifact, "cuda", device_memory_limit=limit) as model:
        assert session_of(model).token_budget == of_free[1] // 2


def entry(options: Any, key: str) -> str | None:
    """Read a run's config entry."""
    try:
        value: str = options.get_run_config_entry(key)
    except RuntimeError:
        return None
    return value


def session_of(model: BGEM3Model) -> CudaSession:
    assert isinstance(model._session, CudaSession)
    return model._session


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error in execution: Failed to allocate memory for requested buffer of size 1024"),
        RuntimeException("Available memory of 1024 is smaller than requested bytes of 4096"),
        RuntimeException("CUDA failure 2: out of memory ; GPU=0"),
        RuntimeException("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
    ids=str,
)
def test_out_of_memory_halves_the_micro_batch_and_the_budget(
    demo_artifact: Path, ran: Ran, expected: Embeddings, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    with BGEM3Model.load(demo_artifact, "cuda", "fp32") as model:
        ran.n_tokens.clear()
        ran.error = lambda n_tokens: error if n_tokens > 600 else None
        with caplog.at_level(logging.WARNING):
            assert_equal(model.encode(TEXTS), expected, 1e-5)
        budget = session_of(model).token_budget
        assert budget <= 1200
        assert f"at most {budget} tokens" in caplog.text
        shrunk = [entry(options, "memory.enable_memory_arena_shrinkage") for options in ran.run_options]
        assert "gpu:0" in shrunk
        ran.n_tokens.clear()
        assert_equal(model.encode(TEXTS), expected, 1e-5)
        assert max(ran.n_tokens) <= 1200  # the lesson is kept


def test_out_of_memory_on_one_text_names_its_length(demo_artifact: Path, ran: Ran) -> None:
    with BGEM3Model.load(demo_artifact, "cuda") as model:
        ran.error = lambda n_tokens: RuntimeError("Failed to allocate memory") if n_tokens > 100 else None
        words = r"cuda:0 ran out of memory \(8.59 of 17.18 GB free\) on one text of 203 tokens; .*max_length"
        with pytest.raises(DeviceMemoryError, match=words):
            model.encode([*TEXTS[:5], "honey " * 200])
        ran.error = lambda n_tokens: None
        assert len(model.encode(TEXTS[:3])) == 3  # the model is still of use


def test_no_other_error_is_retried(demo_artifact: Path, ran: Ran) -> None:
    with BGEM3Model.load(demo_artifact, "cuda") as model:
        ran.n_tokens.clear()
        ran.error = lambda n_tokens: RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        with pytest.raises(RuntimeError, match="illegal"):
            model.encode(TEXTS[:3])
        assert len(ran.n_tokens) == 1


def test_an_error_stops_the_micro_batches_that_wait(demo_artifact: Path, ran: Ran) -> None:
    with BGEM3Model.load(demo_artifact, "cuda", token_budget=60) as model:
        ran.n_tokens.clear()
        ran.error = lambda n_tokens: RuntimeException("broken")
        with pytest.raises(RuntimeException, match="broken"):
            model.encode(TEXTS * 20)
        n_ran = len(ran.n_tokens)
        assert n_ran <= cuda.N_QUEUED + 1
        ran.error = lambda n_tokens: None
        model.encode(TEXTS[:1])
        assert len(ran.n_tokens) == n_ran + 1


def test_weights_that_do_not_fit_the_device_are_told_from_a_damaged_file(
    demo_artifact: Path, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeException("Failed to allocate memory of size 7")

    monkeypatch.setattr(cuda, "make_session", fail)
    with pytest.raises(DeviceMemoryError, match=r"cuda:0 has too little free memory for the weights in .*fp16"):
        BGEM3Model.load(demo_artifact, "cuda")


def test_pinned_memory_is_reused_and_given_back(demo_artifact: Path, ran: Ran, cudart: Cudart) -> None:
    with BGEM3Model.load(demo_artifact, "cuda") as model:
        pinned = dict(cudart.pinned)
        assert len(pinned) == 2 * (8 + 3)  # each worker's inputs and outputs
        model.encode(TEXTS)
        assert cudart.pinned == pinned  # the warm-up's were large enough
    gc.collect()
    assert not cudart.pinned


def test_many_callers_at_once_get_their_own_texts_embeddings(
    demo_artifact: Path, ran: Ran, expected: Embeddings
) -> None:
    with BGEM3Model.load(demo_artifact, "cuda", "fp32", token_budget=100) as model, ThreadPoolExecutor(8) as callers:
        for i, found in enumerate(callers.map(lambda i: model.encode(TEXTS[i:]), range(16))):
            np.testing.assert_allclose(found.dense, expected.dense[i:], atol=1e-5)


def test_interrupted_callers_leave_the_workers_to_the_others(
    demo_artifact: Path, ran: Ran, expected: Embeddings
) -> None:
    n_interrupts, ended = [0] * 4, threading.Event()
    may_interrupt = [SimpleQueue[None]() for _ in n_interrupts]

    def encode_always(i: int) -> None:
        while not ended.is_set():
            try:
                may_interrupt[i].put(None)
                while not ended.is_set():
                    assert_equal(model.encode(TEXTS[i:]), expected_from[i], 1e-5)
            except KeyboardInterrupt:  # noqa: PERF203
                n_interrupts[i] += 1
        assert_equal(model.encode(TEXTS[i:]), expected_from[i], 1e-5)

    with BGEM3Model.load(demo_artifact, "cuda", "fp32", token_budget=100) as model:
        expected_from = [model.encode(TEXTS[i:]) for i in range(4)]
        callers = [threading.Thread(target=encode_always, args=(i,), daemon=True) for i in range(4)]
        for caller in callers:
            caller.start()
        for number in range(40):
            i = number % 4
            may_interrupt[i].get(timeout=60)
            time.sleep(0.0003 * (number % 7))
            identifier = ctypes.c_ulong(callers[i].ident or 0)
            assert ctypes.pythonapi.PyThreadState_SetAsyncExc(identifier, ctypes.py_object(KeyboardInterrupt)) == 1
        for queue in may_interrupt:
            queue.get(timeout=60)
        ended.set()
        for caller in callers:
            caller.join(60)
        assert not any(caller.is_alive() for caller in callers)
        assert n_interrupts == [10] * 4
        assert not session_of(model)._callers


def test_an_interrupt_at_any_step_of_a_call_leaves_the_workers_to_the_others(demo_artifact: Path, ran: Ran) -> None:
    with BGEM3Model.load(demo_artifact, "cuda", "fp32", token_budget=40) as model:
        session, batch = session_of(model), session_of(model)._filler(np.array([16]))

        def call() -> int:
            finished: list[int] = []
            session.run_all([batch] * 7, OUTPUTS, lambda batch, arrays: finished.append(len(arrays["dense"])))
            return len(finished)

        for n_steps in range(1, 5000):
            value, has_so_many_steps = interrupted_after(n_steps, KeyboardInterrupt(), (cuda, workers), call)
            assert call() == 7, n_steps
            if not has_so_many_steps:
                assert value == 7
                break
        assert 100 < n_steps < 4999


@pytest.mark.parametrize("token_budget", [60, 2000])
def test_closing_ends_the_callers_with_their_present_micro_batch(
    demo_artifact: Path, ran: Ran, expected: Embeddings, token_budget: int
) -> None:
    model = BGEM3Model.load(demo_artifact, "cuda", "fp32", token_budget=token_budget)
    n_encoded = [0] * 4

    def encode_until_closed(i: int) -> str:
        while True:
            try:
                assert_equal(model.encode(TEXTS), expected, 1e-5)
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


def test_a_handler_that_interrupts_encode_may_close_the_model_but_not_encode(
    demo_artifact: Path, ran: Ran, cudart: Cudart
) -> None:
    model = BGEM3Model.load(demo_artifact, "cuda", "fp32")
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


def test_a_model_that_nobody_holds_ends_its_workers(demo_artifact: Path, ran: Ran, cudart: Cudart) -> None:
    n_threads = threading.active_count()
    model = BGEM3Model.load(demo_artifact, "cuda", "fp32")
    model.encode(TEXTS)
    assert threading.active_count() == n_threads + 2
    del model
    gc.collect()
    assert threading.active_count() == n_threads
    assert not cudart.pinned


def test_texts_of_many_chunks_come_back_in_order(
    demo_artifact: Path, ran: Ran, expected: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "CHARACTERS_PER_CHUNK", 100)
    with BGEM3Model.load(demo_artifact, "cuda", "fp32", token_budget=100) as model:
        assert_equal(model.encode(TEXTS), expected, 1e-5)


def test_captured_graphs_are_kept_by_length_and_heads(demo_artifact: Path, ran: Ran) -> None:
    with BGEM3Model.load(demo_artifact, "cuda", cuda_graphs=True) as model:
        ran.run_options.clear()
        for outputs in (("dense",), OUTPUTS):
            for text in ("What is BM25?", "What is BGE M3?", "honey " * 20):
                model.encode([text], outputs)
        model.encode(["honey " * 70])
        model.encode(TEXTS[:2])
        numbers = [entry(options, "gpu_graph_id") for options in ran.run_options]
        assert numbers == ["4", "4", "5", "1", "1", "2", "-1", "-1"]  # all were captured on loading


def test_auto_takes_the_device_that_there_is_and_says_so(
    demo_artifact: Path, ran: Ran, cudart: Cudart, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), BGEM3Model.load(demo_artifact) as model:
        assert model.device == "cuda:0"
    cudart.n_devices = None
    with caplog.at_level(logging.INFO), BGEM3Model.load(demo_artifact) as model:
        assert model.device == "cpu"
    reason = "counting CUDA devices failed: cudaErrorInsufficientDriver"
    assert [record.message for record in caplog.records if record.name == "bgem3.runtime.device"] == [
        "device 'auto': running on cuda:0 with fp16 weights",
        f"device 'auto': running on cpu with fp16 weights, since {reason}",
    ]


def test_a_missing_provider_is_named(demo_artifact: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"'cuda' was asked for, but .* no CUDA provider .*bgem3\[gpu\].*device='cpu'"
    ):
        BGEM3Model.load(demo_artifact, "cuda")


def with_cuda_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )


def test_missing_bindings_are_named(demo_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_cuda_provider(monkeypatch)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(RuntimeError, match=r"cuda-bindings cannot be imported .*bgem3\[gpu\]"):
        BGEM3Model.load(demo_artifact, "cuda")


def test_a_missing_driver_is_named(demo_artifact: Path, monkeypatch: pytest.MonkeyPatch, cudart: Cudart) -> None:
    with_cuda_provider(monkeypatch)
    cudart.n_devices = None
    with pytest.raises(RuntimeError, match=r"counting CUDA devices failed: cudaErrorInsufficientDriver; .*nvidia-smi"):
        BGEM3Model.load(demo_artifact, "cuda")


@pytest.mark.parametrize(("n_devices", "words"), [(0, "it has no CUDA device"), (2, "end at cuda:1")])
def test_a_device_that_is_not_there_is_named(
    demo_artifact: Path, monkeypatch: pytest.MonkeyPatch, cudart: Cudart, n_devices: int, words: str
) -> None:
    with_cuda_provider(monkeypatch)
    cudart.n_devices = n_devices
    with pytest.raises(RuntimeError, match=f"'cuda:2' was asked for, but .*{words}"):
        BGEM3Model.load(demo_artifact, "cuda:2")


def test_a_cuda_library_that_does_not_load_is_an_error_and_never_the_cpu(
    demo_artifact: Path, monkeypatch: pytest.MonkeyPatch, cudart: Cudart
) -> None:
    """Without CUDA's libraries ONNX Runtime drops the provider: the real one here does, having none."""
    with_cuda_provider(monkeypatch)
    make_session = session.make_session

    def without_provider(*arguments: Any, providers: list[Any]) -> Any:
        return make_session(*arguments, providers=[])

    monkeypatch.setattr(cuda, "make_session", without_provider)
    with pytest.raises(RuntimeError, match=r"'cuda:0' was asked for, but .* did not load its CUDA provider .*cuDNN"):
        BGEM3Model.load(demo_artifact, "cuda")


def test_a_session_that_kept_only_the_cpu_provider_is_refused(
    demo_artifact: Path, monkeypatch: pytest.MonkeyPatch, cudart: Cudart
) -> None:
    with_cuda_provider(monkeypatch)
    monkeypatch.setattr(
        cuda, "make_session", lambda *_, **__: SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    )
    with pytest.raises(RuntimeError, match="did not load its CUDA provider"):
        BGEM3Model.load(demo_artifact, "cuda")


@pytest.mark.parametrize("option", [{"cuda_graphs": True}, {"device_memory_limit": GIGABYTE}], ids=str)
def test_options_of_cuda_are_refused_on_cpu(demo_artifact: Path, option: dict[str, Any]) -> None:
    name = next(iter(option))
    with pytest.raises(ValueError, match=f"{name} is for CUDA, found it with device='cpu'; leave it out"):
        BGEM3Model.load(demo_artifact, "cpu", **option)


def test_an_artifact_without_cuda_graphs_says_what_it_has(demo_artifact: Path, ran: Ran, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(demo_artifact, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["graphs"] = [graph for graph in manifest["graphs"] if graph["device"] == "cpu"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="has no graph for any precision on cuda, it has: fp16 on cpu, fp32 on cpu"):
        BGEM3Model.load(folder, "cuda")
    with BGEM3Model.load(folder) as model:
        assert model.device == "cpu"
