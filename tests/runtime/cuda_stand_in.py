"""A stand-in for a CUDA device: the CUDA session's own code runs on ONNX Runtime's CPU provider.

The CUDA graph's packed attention is written in standard operators, and the CUDA runtime's calls are answered here.
"""

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bgem3.runtime import captured_graph, cuda_provider, cuda_runtime, cuda_session, ort
from bgem3.runtime.cuda_session import CudaSession
from bgem3.runtime.packing import PackedBatch
from tests.export.contrib_ops import for_cpu

GIGABYTE = 1 << 30
SUCCESS = 0
INSUFFICIENT_DRIVER = SimpleNamespace(name="cudaErrorInsufficientDriver")


class Cudart:
    """The calls of cuda.bindings.runtime that the session makes, on a machine with two devices."""

    cudaHostAllocPortable = 1  # noqa: N815

    def __init__(self) -> None:
        self.n_devices: int | None = 2
        self.device_id = 0
        self.pinned: dict[int, Any] = {}

    def cudaGetDeviceCount(self) -> tuple[Any, Any]:  # noqa: N802
        return (INSUFFICIENT_DRIVER, None) if self.n_devices is None else (SUCCESS, self.n_devices)

    def cudaGetDevice(self) -> tuple[int, int]:  # noqa: N802
        return SUCCESS, self.device_id

    def cudaSetDevice(self, device_id: int) -> tuple[int]:  # noqa: N802
        assert device_id < 2
        self.device_id = device_id
        return (SUCCESS,)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:  # noqa: N802
        return SUCCESS, 8 * GIGABYTE, 16 * GIGABYTE

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[int, int]:  # noqa: N802
        memory = ctypes.create_string_buffer(size)
        self.pinned[ctypes.addressof(memory)] = memory
        return SUCCESS, ctypes.addressof(memory)

    def cudaFreeHost(self, pointer: int) -> tuple[int]:  # noqa: N802
        del self.pinned[pointer]
        return (SUCCESS,)


class Ran:
    """How the sessions were made, and what they ran."""

    def __init__(self) -> None:
        self.made: list[tuple[dict[str, str], dict[str, Any]]] = []  # session settings, and the provider's options
        self.n_tokens: list[int] = []
        self.threads: set[str] = set()
        self.run_options: list[Any] = []
        self.error: Callable[[int], Exception | None] = lambda n_tokens: None  # given a micro-batch's tokens

    def entries(self, key: str) -> list[str | None]:
        """Return a config entry of every run."""
        return [_entry(options, key) for options in self.run_options]


def _entry(options: Any, key: str) -> str | None:
    try:
        value: str = options.get_run_config_entry(key)
    except RuntimeError:
        return None
    return value


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Cudart:
    stand_in = Cudart()
    monkeypatch.setattr(cuda_runtime, "import_cudart", lambda: stand_in)
    return stand_in


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, cudart: Cudart) -> Ran:
    """Let "cuda" run on the CPU provider, and report what was run."""
    ran = Ran()

    def make_session(path: Path, n_threads: int, settings: dict[str, str], providers: list[Any]) -> Any:
        ran.made.append((settings, providers[0][1]))
        path = for_cpu(path, path.with_name("cuda_on_cpu.onnx"))
        made = ort.make_session(path, n_threads, providers=["CPUExecutionProvider"])
        path.unlink()
        run_with_iobinding = made.run_with_iobinding

        def run_without_options(binding: Any, options: Any) -> None:
            ran.run_options.append(options)
            is_of_gpu = _entry(options, "memory.enable_memory_arena_shrinkage")
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
    for module in (cuda_provider, cuda_runtime):
        monkeypatch.setattr(module, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(cuda_provider, "make_session", make_session)
    monkeypatch.setattr(captured_graph, "MEMORY", "cpu")
    monkeypatch.setattr(cuda_session, "TOKEN_BUDGET", 1024)  # the stand-in for attention stores all scores
    monkeypatch.setattr(cuda_provider, "preload_libraries", lambda: None)
    return ran
