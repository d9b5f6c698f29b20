"""The CUDA session: micro-batches on one device, two in flight, in pinned memory and without host work in between.

What the provider is told, and why:

- every node runs on the device or the session is not made: a CPU that quietly takes over would be found by its speed
- `sdpa_kernel`: flash attention where it exists (float16), memory-efficient attention otherwise (float32), at every
  length; the provider's default keeps the packed form of attention's input off flash below 513 tokens
- strict mode: SkipLayerNormalization takes its statistics in float32; TF32 is off
- the arena grows by what is asked for, not by doubling; a warm-up with the largest micro-batch makes it grow once
- memory patterns are off: they remember a plan for every shape, and every micro-batch has another one

Two worker threads share the session. ONNX Runtime gives each its own CUDA stream, so while one micro-batch computes,
the other is copied to the host and put in its place, and the caller's thread tokenizes and packs those to come.
"""

import contextlib
import ctypes
import logging
import os
import re
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.artifact import ArtifactError, ModelSpec
from bgem3.runtime.cpu_session import (
    CLOSED,
    OUTPUTS,
    Arrays,
    Finish,
    Output,
    check_arrays,
    head_rows,
    import_onnxruntime,
    make_session,
    onnxruntime_errors,
    output_rows,
    output_shapes,
)
from bgem3.runtime.forks import leave_to_parent
from bgem3.runtime.graph_file import GraphFile
from bgem3.runtime.packing import PackedBatch, cuda_layout, pack
from bgem3.runtime.tokenizer import TokenizedTexts
from bgem3.runtime.workers import Task, Workers

PROVIDER = "CUDAExecutionProvider"
MEMORY = "cuda"  # ONNX Runtime's name for where captured graphs keep their inputs and outputs
SETTINGS = {"session.disable_cpu_ep_fallback": "1"}
UNREADABLE = re.compile("INVALID_PROTOBUF|INVALID_GRAPH|NO_SUCHFILE|external data", re.IGNORECASE)
FLASH, EFFICIENT, UNFUSED = 1, 2, 16  # bits of the provider's sdpa_kernel option
TOKEN_BUDGET = 16384  # kernels reach their full rate well below this
N_WORKERS = 2
N_QUEUED = 4  # micro-batches handed to the workers before the caller waits for the first
SLOTS_PER_TOKEN = 2  # a micro-batch's padded layout, which attention's grid and buffers follow, against its budget
SHARE_OF_FREE_MEMORY = 0.8
GRAPH_LENGTHS = (16, 32, 64)  # tokens of the captured graphs; a query takes the shortest that holds it
OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate memory|smaller than requested bytes|ALLOC_FAILED", re.IGNORECASE
)

logger = logging.getLogger(__name__)


class DeviceMemoryError(RuntimeError):
    """The device has too little free memory for the model or for one text."""


class CudaSession:
    """Runs a CUDA graph; its methods may be called from many threads at once.

    Attributes
    ----------
    device : "cuda:N"
    precision : the precision of the stored weights, in which it computes
    token_budget : most tokens in a micro-batch of several texts; falls when the device runs out of memory
    """

    def __init__(
        self,
        path: Path,
        precision: str,
        spec: ModelSpec,
        *,
        device_id: int = 0,
        token_budget: int | None = None,
        memory_limit: int | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.device = f"cuda:{device_id}"
        self.precision = precision
        self._path = path
        self._spec = spec
        self._device_id = device_id
        self._cudart = import_cudart()
        self._errors: tuple[type[Exception], ...] = (RuntimeError, *onnxruntime_errors())  # runs raise the first
        self._session = self._open(path, memory_limit, cuda_graphs)
        self._input_names = [value.name for value in self._session.get_inputs()]
        given = {value.name for value in self._session.get_outputs()}
        self._outputs = tuple(name for name in OUTPUTS if name in given)
        self._graphs: dict[tuple[int, tuple[Output, ...]], _CapturedGraph] | None = {} if cuda_graphs else None
        self._n_workers = 1 if cuda_graphs else N_WORKERS  # a session that captures may be run from one thread only
        self._workers = Workers(self._n_workers, self.device)
        self._worker = _Worker()
        self._bindings: list[Any] = []  # of all workers, so that a forked process does not destroy them
        leave_to_parent(self)
        self._callers: set[int] = set()  # threads within run_all
        self._is_closed = False
        self._running = threading.Semaphore(self._n_workers)  # all of it taken: nothing else runs
        self._alone = threading.Lock()
        fitting = self._fitting_tokens(path, memory_limit)
        self.token_budget = token_budget or max(1, min(TOKEN_BUDGET, fitting))
        try:
            self._warm_up()
        except BaseException:
            self.close()
            raise

    def most_padded(self, longest: int) -> int:
        """Return how many texts may share a micro-batch whose padded layout is large."""
        return SLOTS_PER_TOKEN * self.token_budget // longest

    def run_all(self, batches: Iterable[PackedBatch], outputs: tuple[Output, ...], finish: Finish) -> None:
        """Encode micro-batches and call ``finish`` with each one and its arrays, in a worker's thread.

        The arrays are the requested outputs only: ``dense`` (B, D), ``sparse`` (T,), ``multivector`` (T - B, M),
        float32. They lie in memory that the next micro-batch reuses: ``finish`` copies what it keeps. It may be
        called with a part of a micro-batch, where the device's memory did not suffice for the whole.

        Raises
        ------
        DeviceMemoryError
            If the device's memory does not suffice for one text alone.
        RuntimeError
            If the session is closed, or if this thread is within this method already.
        """
        caller = threading.get_ident()
        if caller in self._callers:
            raise RuntimeError(
                "encode was called while the same thread is within encode, from a signal handler or a finalizer; set a "
                "flag there, and encode when the first call has returned"
            )
        tasks: deque[Task] = deque()
        try:
            try:
                self._callers.add(caller)
                for batch in batches:
                    tasks.append(Task(partial(self._encode, batch, outputs, finish)))
                    self._workers.submit(tasks[-1])
                    if len(tasks) > N_QUEUED:
                        self._workers.wait(tasks[0])
                        tasks.popleft()
                while tasks:
                    self._workers.wait(tasks[0])
                    tasks.popleft()
            finally:
                self._callers.discard(caller)
        finally:  # once more, for an interrupt within the first; no micro-batch is still running when this returns
            self._callers.discard(caller)
            self._workers.cancel(tasks)

    def close(self) -> None:
        """Release the device's memory, once the micro-batches that run have ended; those that wait raise.

        From a signal handler that interrupts :meth:`run_all`, return at once: the interrupted call ends first.
        """
        self._is_closed = True
        is_caller = threading.get_ident() in self._callers
        self._workers.close(waits=not is_caller)
        if not is_caller:
            self._session = self._graphs = None
            self._bindings.clear()
            self._worker = _Worker()

    def _encode(self, batch: PackedBatch, outputs: tuple[Output, ...], finish: Finish) -> None:
        """Encode a micro-batch, or, where the device's memory does not suffice, its halves."""
        if self._is_closed:
            raise RuntimeError(CLOSED)
        n_texts, n_tokens = len(batch.text_index), len(batch.token_ids)
        if n_texts == 1 or n_tokens <= self.token_budget:
            with self._running:
                arrays = self._run_in_memory(batch, outputs)
            if arrays is None and n_texts == 1:
                arrays = self._run_alone(batch, outputs)
            if arrays is not None:
                check_arrays(arrays, output_shapes(self._spec, n_texts, n_tokens), self._path)
                finish(batch, arrays)
                return
            self._lower_budget(n_tokens)
        half = n_texts // 2
        self._encode(batch.texts(0, half), outputs, finish)
        self._encode(batch.texts(half, n_texts), outputs, finish)

    def _run_in_memory(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays | None:
        """Run a micro-batch, or return None if the device's memory does not suffice."""
        try:
            return self._run(batch, outputs)
        except self._errors as error:
            if not OUT_OF_MEMORY.search(str(error)):
                raise
        self._worker.releases_memory = True
        return None

    def _run_alone(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        """Run one text while no other worker holds memory; raise if that does not suffice either."""
        with self._alone, contextlib.ExitStack() as stack:
            for _ in range(self._n_workers):
                stack.enter_context(self._running)
            arrays = self._run_in_memory(batch, outputs)
        if arrays is None:
            raise DeviceMemoryError(
                f"{self._memory_state()} on one text of {len(batch.token_ids)} tokens; encode with a lower max_length, "
                "give the model more of the device's memory, or load it with device='cpu'"
            )
        return arrays

    def _lower_budget(self, n_tokens: int) -> None:
        """Learn from a micro-batch that was too large."""
        self.token_budget = max(1, min(self.token_budget, n_tokens // 2))
        state = self._memory_state()
        logger.warning("%s; micro-batches hold at most %d tokens from here on", state, self.token_budget)

    def _memory_state(self) -> str:
        free, total = device_memory(self._cudart, self._device_id)
        return f"{self.device} ran out of memory ({free / 1e9:.2f} of {total / 1e9:.2f} GB free)"

    def _run(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        n_texts, n_tokens = len(batch.text_index), len(batch.token_ids)
        if self._graphs is not None and n_texts == 1 and n_tokens <= GRAPH_LENGTHS[-1]:
            return self._replay(batch, outputs)
        binding = self._worker_binding()
        feeds = packed_feeds(batch, outputs)
        for name in self._input_names:
            staged = self._pinned(name, feeds[name].shape, feeds[name].dtype)
            staged[...] = feeds[name]
            binding.bind_cpu_input(name, staged)
        arrays: Arrays = {}
        shapes = output_shapes(self._spec, n_texts, n_tokens)
        for name in outputs:
            arrays[name] = self._pinned(name, shapes[name], np.float32)
            binding.bind_output(name, "cpu", 0, np.float32, shapes[name], arrays[name].ctypes.data)
        self._session.run_with_iobinding(binding, self._run_options())
        return arrays

    def _replay(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        """Run one short text through the captured graph of its length, capturing it on first use."""
        assert self._graphs is not None
        n_tokens = len(batch.token_ids)
        length = next(length for length in GRAPH_LENGTHS if n_tokens <= length)
        feeds = fixed_length_feeds(batch, outputs, length, self._spec.pad_id)
        feeds = {name: feeds[name] for name in self._input_names}
        graph = self._graphs.get((length, outputs))
        if graph is None:
            shapes = output_shapes(self._spec, 1, length)
            graph = _CapturedGraph(self._session, len(self._graphs), self._device_id, feeds, outputs, shapes)
            self._graphs[length, outputs] = graph
        arrays = graph.run(feeds)
        n_rows = output_rows(1, n_tokens)
        return {name: arrays[name][: n_rows[name]] for name in outputs}

    def _worker_binding(self) -> Any:
        """Return this worker's binding, with nothing bound as output."""
        worker = self._worker
        if worker.binding is None:
            worker.binding = self._session.io_binding()
            self._bindings.append(worker.binding)
        worker.binding.clear_binding_outputs()
        return worker.binding

    def _pinned(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return this worker's pinned memory for an input or output."""
        buffers = self._worker.buffers
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if name not in buffers or buffers[name].size < size:
            buffers[name] = _PinnedBuffer(self._cudart, self._device_id, 1 << max(16, (size - 1).bit_length()))
        array: NDArray[Any] = buffers[name].array[:size].view(dtype).reshape(shape)
        return array

    def _run_options(self) -> Any:
        """Return options for a run without capture; the first after running out of memory gives memory back."""
        options = import_onnxruntime().RunOptions()
        if self._graphs is not None:
            options.add_run_config_entry("gpu_graph_id", "-1")
        elif self._worker.releases_memory:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", f"gpu:{self._device_id}")
            self._worker.releases_memory = False
        return options

    def _open(self, path: Path, memory_limit: int | None, cuda_graphs: bool) -> Any:
        options = provider_options(self._device_id, memory_limit, cuda_graphs)
        preload_libraries()
        try:
            session = make_session(path, 1, SETTINGS, providers=[(PROVIDER, options)])
        except self._errors as error:
            if OUT_OF_MEMORY.search(str(error)):
                raise DeviceMemoryError(
                    f"{self.device} has too little free memory for the weights in {path.parent} ({error}); free some, "
                    "raise the memory limit, or load the model with device='cpu'"
                ) from None
            if not UNREADABLE.search(str(error)):
                raise RuntimeError(f"{_not_loaded(self.device)}; its error: {error}") from None
            raise ArtifactError(
                f"ONNX Runtime cannot read {path} ({error}); check the folder with "
                f"`bgem3 verify {path.parent.parent}`, or export the checkpoint again"
            ) from None
        if PROVIDER not in session.get_providers():
            raise RuntimeError(_not_loaded(self.device))
        return session

    def _fitting_tokens(self, path: Path, memory_limit: int | None) -> int:
        """Return how many tokens each worker's micro-batch may hold in the memory that the weights leave free."""
        free, _ = device_memory(self._cudart, self._device_id)
        if memory_limit is not None:
            weights = sum((path.parent / name).stat().st_size for name in GraphFile(path).locations)
            free = min(free, memory_limit - weights)
        return int(SHARE_OF_FREE_MEMORY * free / self._n_workers / bytes_per_token(self._spec, self.precision))

    def _warm_up(self) -> None:
        """Run the largest micro-batch there may be on every worker, and capture the graphs there are.

        Libraries load, the arena grows once, and no capture meets other work on the device later, which would fail it.
        """
        length = max(2, min(512, self._spec.max_length // SLOTS_PER_TOKEN, self.token_budget))
        lengths = np.full(max(1, self.token_budget // length + 1 - SLOTS_PER_TOKEN), length)
        lengths[0] *= SLOTS_PER_TOKEN  # the padded layout is as large as it may be
        self.run_all([self._filler(lengths)] * self._n_workers, self._outputs, _discard)
        if self._graphs is not None:
            for outputs in (self._outputs, OUTPUTS[:1]):
                queries = [np.array([min(length, self._spec.max_length)]) for length in GRAPH_LENGTHS]
                self.run_all([self._filler(query) for query in queries], outputs, _discard)

    def _filler(self, lengths: NDArray[np.int64]) -> PackedBatch:
        """Make a micro-batch of texts of these lengths."""
        texts = TokenizedTexts(
            token_ids=np.full(lengths.sum(), self._spec.eos_id),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            truncated=np.zeros(len(lengths), np.bool_),
        )
        return pack(texts, np.arange(len(lengths)), self._spec.pad_id)


class _Worker(threading.local):
    """What each worker's thread has of its own; ``releases_memory`` asks its next run to give memory back."""

    def __init__(self) -> None:
        self.binding: Any = None
        self.buffers: dict[str, _PinnedBuffer] = {}
        self.releases_memory = False


class _CapturedGraph:
    """A CUDA graph of one shape: device memory that stays where it is, and a run that replays all kernels at once."""

    def __init__(
        self,
        session: Any,
        number: int,
        device_id: int,
        feeds: dict[str, NDArray[Any]],
        outputs: tuple[Output, ...],
        shapes: dict[Output, tuple[int, ...]],
    ) -> None:
        runtime = import_onnxruntime()
        self._session = session
        self._binding = session.io_binding()
        self._options = runtime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number + 1))  # 0 is the provider's own default
        self._inputs, self._outputs = {}, {}
        for name, values in feeds.items():
            self._inputs[name] = runtime.OrtValue.ortvalue_from_shape_and_type(
                values.shape, values.dtype, MEMORY, device_id
            )
            self._binding.bind_ortvalue_input(name, self._inputs[name])
        for output in outputs:
            self._outputs[output] = runtime.OrtValue.ortvalue_from_shape_and_type(
                shapes[output], np.float32, MEMORY, device_id
            )
            self._binding.bind_ortvalue_output(output, self._outputs[output])

    def run(self, feeds: dict[str, NDArray[Any]]) -> Arrays:
        """Copy the inputs to the device, run (the first time: capture), and copy the outputs back."""
        for name, values in feeds.items():
            self._inputs[name].update_inplace(values)
        self._session.run_with_iobinding(self._binding, self._options)
        return {name: value.numpy() for name, value in self._outputs.items()}


def _discard(batch: PackedBatch, arrays: Arrays) -> None:
    """Finish a micro-batch of the warm-up."""


class _PinnedBuffer:
    """Page-locked host memory, which the device reads and writes without a copy in between.

    Attributes
    ----------
    size : bytes
    array : (size,) uint8 array over the memory; not to be used after the buffer is gone
    """

    def __init__(self, cudart: Any, device_id: int, size: int) -> None:
        self.size = size
        choose_device(cudart, device_id)  # or else this thread would take memory on device 0 as well
        pointer = checked(cudart, cudart.cudaHostAlloc(size, cudart.cudaHostAllocPortable), f"pinning {size} bytes")
        weakref.finalize(self, _free_pinned, cudart, pointer, os.getpid())
        self.array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(pointer)))


def _free_pinned(cudart: Any, pointer: int, process: int) -> None:
    """Give pinned memory back; a forked process leaves it to its parent, since CUDA does not work there."""
    if os.getpid() == process:
        cudart.cudaFreeHost(pointer)


def provider_options(device_id: int, memory_limit: int | None = None, cuda_graphs: bool = False) -> dict[str, Any]:
    """Return what the CUDA provider is told; this module's docstring says why."""
    limit = {} if memory_limit is None else {"gpu_mem_limit": memory_limit}
    return {
        "device_id": device_id,
        "arena_extend_strategy": "kSameAsRequested",
        "sdpa_kernel": FLASH | EFFICIENT | UNFUSED,
        "enable_skip_layer_norm_strict_mode": 1,
        "use_tf32": 0,
        "enable_cuda_graph": int(cuda_graphs),
        **limit,
    }


def packed_feeds(batch: PackedBatch, outputs: tuple[Output, ...]) -> dict[str, NDArray[Any]]:
    """Return a graph's inputs for a micro-batch; a graph without a head takes no rows for it."""
    return {
        "token_ids": batch.token_ids,
        "position_ids": batch.position_ids,
        **cuda_layout(batch.cu_seqlens),
        **_device_rows(batch.cu_seqlens, outputs),
    }


def fixed_length_feeds(
    batch: PackedBatch, outputs: tuple[Output, ...], length: int, pad_id: int
) -> dict[str, NDArray[Any]]:
    """Return the graph's inputs for one text, lengthened to ``length`` by a second text of padding.

    Texts do not see each other, so the first one's values stay as they are, whatever the second one's length; the
    shapes depend on ``length`` and ``outputs`` alone.
    """
    n_tokens = len(batch.token_ids)
    padding = np.full(length - n_tokens, pad_id)
    return {
        "token_ids": np.concatenate([batch.token_ids, padding]),
        "position_ids": np.concatenate([batch.position_ids, padding]),
        **cuda_layout(np.array([0, n_tokens, length]), n_slots=length),
        **_device_rows(np.array([0, length]), outputs),
    }


def _device_rows(cu_seqlens: NDArray[np.int64], outputs: tuple[Output, ...]) -> dict[str, NDArray[np.int64]]:
    """List the tokens each head reads, and one for a head that is off: no kernel meets an empty tensor."""
    rows = head_rows(cu_seqlens, outputs)
    return {name: tokens if len(tokens) else np.zeros(1, np.int64) for name, tokens in rows.items()}


def bytes_per_token(spec: ModelSpec, precision: str) -> int:
    """Estimate the device memory a token of a micro-batch takes at most.

    A layer holds at once states, context, joined queries, keys and values, and those split, which attention keeps in
    the padded layout, or else states and twice the feed-forward block's inner width; the heads end in float32 vectors
    and their sums. Two more of the states' width are spare.
    """
    item_size = {"fp16": 2, "fp32": 4}[precision]
    width, inner = spec.hidden_size, spec.intermediate_size
    attention = (2 + 3 + 3 * SLOTS_PER_TOKEN) * width
    return item_size * (2 * width + max(attention, width + 2 * inner)) + 4 * 4 * spec.multivector_size


def why_unavailable(device_id: int = 0) -> str | None:
    """Say why a CUDA device cannot be used, or return None if it seems it can."""
    providers = import_onnxruntime().get_available_providers()
    if PROVIDER not in providers:
        return f"the installed ONNX Runtime has no CUDA provider (it has: {', '.join(providers)})"
    try:
        cudart = import_cudart()
        n_devices = checked(cudart, cudart.cudaGetDeviceCount(), "counting CUDA devices")
    except (ImportError, RuntimeError) as error:
        return str(error)
    if device_id >= n_devices:
        return f"the CUDA devices of this machine end at cuda:{n_devices - 1}" if n_devices else "it has no CUDA device"
    return None


def device_memory(cudart: Any, device_id: int) -> tuple[int, int]:
    """Return a device's free and total memory in bytes."""
    before = checked(cudart, cudart.cudaGetDevice(), "asking for the current device")
    choose_device(cudart, device_id)
    free, total = checked(cudart, cudart.cudaMemGetInfo(), f"reading the free memory of cuda:{device_id}")
    choose_device(cudart, before)  # it is the calling thread's, for other libraries too
    return free, total


def choose_device(cudart: Any, device_id: int) -> None:
    """Make a device this thread's own."""
    checked(cudart, cudart.cudaSetDevice(device_id), f"choosing cuda:{device_id}")


def checked(cudart: Any, result: tuple[Any, ...], action: str) -> Any:
    """Return the value of a CUDA runtime call, or raise RuntimeError naming the error."""
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        raise RuntimeError(f"{action} failed: {error.name}")
    return values[0] if len(values) == 1 else tuple(values)


def import_cudart() -> Any:
    """Import the CUDA runtime's bindings when they are first needed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise ImportError(f"cuda-bindings cannot be imported ({error})") from error
    return runtime


def preload_libraries() -> None:
    """Load the CUDA libraries that pip installed, where ONNX Runtime would not find them."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it could not load
        import_onnxruntime().preload_dlls()


def _not_loaded(device: str) -> str:
    return (
        f"device {device!r} was asked for, but ONNX Runtime did not load its CUDA provider for every part of the "
        "graph; most often a CUDA or cuDNN library is missing or of another major version (ONNX Runtime says more "
        "above): `pip install 'bgem3[gpu]'` brings the right ones, or use device='cpu'"
    )
