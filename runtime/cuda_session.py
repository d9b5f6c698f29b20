"""The CUDA session: micro-batches on one device, two at a time, in pinned memory.

Two worker threads share the session, and ONNX Runtime gives each its own CUDA stream. While one micro-batch computes,
the other's arrays are copied, and the caller's thread tokenizes and packs the next ones.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.artifact import Artifact
from bgem3.runtime.captured_graph import NO_CAPTURE, CapturedGraph
from bgem3.runtime.cuda_feeds import fixed_length_feeds, packed_feeds
from bgem3.runtime.cuda_provider import DeviceMemoryError, cuda_errors, is_out_of_memory, open_cuda_session
from bgem3.runtime.cuda_runtime import PinnedBuffers, device_memory
from bgem3.runtime.encoder_session import CLOSED, Finish
from bgem3.runtime.forks import leave_to_parent
from bgem3.runtime.heads import Arrays, check_arrays, output_rows, output_shapes
from bgem3.runtime.manifest import OUTPUTS, GraphEntry, Output
from bgem3.runtime.ort import import_onnxruntime
from bgem3.runtime.packing import PackedBatch, pack
from bgem3.runtime.tokenizer import TokenizedTexts
from bgem3.runtime.workers import Task, Workers

TOKEN_BUDGET = 16384  # per micro-batch; kernels reach their full rate well below it
GRAPH_LENGTHS = (16, 32, 64)  # tokens of the captured graphs; a text takes the shortest that holds it
N_WORKERS = 2
N_QUEUED = 4  # micro-batches that wait for the workers before the caller waits for the first; bounds the host's memory
SLOTS_PER_TOKEN = 2  # bounds the slots of a padded micro-batch, which attention's buffers follow, by its token budget

logger = logging.getLogger(__name__)


class CudaSession:
    """Runs a CUDA graph, as an `EncoderSession`.

    Parameters
    ----------
    artifact, graph : the artifact folder, and one of its graphs for CUDA
    device_id : N of "cuda:N"
    token_budget : most tokens in a micro-batch of several texts; it falls when the device runs out of memory
    memory_limit : most bytes of the device's memory, None for what is free
    cuda_graphs : capture the kernels of short single texts in CUDA graphs
    """

    def __init__(
        self,
        artifact: Artifact,
        graph: GraphEntry,
        *,
        device_id: int = 0,
        token_budget: int | None = None,
        memory_limit: int | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.device = f"cuda:{device_id}"
        self.precision = graph.precision
        self.token_budget = token_budget or TOKEN_BUDGET
        self._path, self._spec, self._device_id = artifact.folder / graph.file, artifact.spec, device_id
        self._session = open_cuda_session(self._path, device_id, memory_limit, cuda_graphs)
        self._input_names = [value.name for value in self._session.get_inputs()]
        given = {value.name for value in self._session.get_outputs()}
        self._outputs = tuple(name for name in OUTPUTS if name in given)
        self._graphs: dict[tuple[int, tuple[Output, ...]], CapturedGraph] | None = {} if cuda_graphs else None
        self._n_workers = 1 if cuda_graphs else N_WORKERS  # a session that captures may be run from one thread only
        self._workers = Workers(self._n_workers, self.device)
        self._worker = _Worker(device_id)
        self._bindings: list[Any] = []  # of all workers, so that a forked process does not destroy them
        leave_to_parent(self)
        self._running = threading.Semaphore(self._n_workers)  # one permit for each run; all of them for a run alone
        self._alone = threading.Lock()  # or else two workers could wait for each other's permit
        self._callers: set[int] = set()  # threads within run_all
        self._is_closed = False
        try:
            self._warm_up()
        except BaseException:
            self.close()
            raise

    def most_padded(self, longest: int) -> int:
        """Return how many texts of different lengths may share a micro-batch, whose padded layout is bounded."""
        return SLOTS_PER_TOKEN * self.token_budget // longest

    def run_all(self, batches: Iterable[PackedBatch], outputs: tuple[Output, ...], finish: Finish) -> None:
        """Encode micro-batches, and call ``finish`` in the workers' threads, as :class:`EncoderSession` says.

        Where the device's memory does not suffice for a micro-batch, ``finish`` gets it in parts. If it does not
        suffice for one text alone, raise DeviceMemoryError. Within this method, a thread cannot call it again.
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
        """Release the device's memory when the running micro-batches have ended; waiting ones raise RuntimeError.

        Called from a signal handler that interrupts :meth:`run_all`, this returns at once: the call ends first.
        """
        self._is_closed = True
        is_caller = threading.get_ident() in self._callers
        self._workers.close(waits=not is_caller)
        if not is_caller:
            self._session = self._graphs = None
            self._bindings.clear()
            self._worker = _Worker(self._device_id)

    def _encode(self, batch: PackedBatch, outputs: tuple[Output, ...], finish: Finish) -> None:
        """Encode a micro-batch, or its halves if the device's memory does not suffice."""
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
            self.token_budget = max(1, min(self.token_budget, n_tokens // 2))
            state = self._memory_state()
            logger.warning("%s; micro-batches hold at most %d tokens from here on", state, self.token_budget)
        half = n_texts // 2
        self._encode(batch.texts(0, half), outputs, finish)
        self._encode(batch.texts(half, n_texts), outputs, finish)

    def _run_in_memory(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays | None:
        """Run a micro-batch, or return None if the device's memory does not suffice."""
        try:
            return self._run(batch, outputs)
        except cuda_errors() as error:
            if not is_out_of_memory(error):
                raise
        self._worker.releases_memory = True
        return None

    def _run_alone(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        """Run one text while no other worker runs; raise DeviceMemoryError if the memory does not suffice either."""
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

    def _memory_state(self) -> str:
        free, total = device_memory(self._device_id)
        return f"{self.device} ran out of memory ({free / 1e9:.2f} of {total / 1e9:.2f} GB free)"

    def _run(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        n_texts, n_tokens = len(batch.text_index), len(batch.token_ids)
        if self._graphs is not None and n_texts == 1 and n_tokens <= GRAPH_LENGTHS[-1]:
            return self._replay(batch, outputs)
        worker = self._worker
        if worker.binding is None:
            worker.binding = self._session.io_binding()
            self._bindings.append(worker.binding)
        worker.binding.clear_binding_outputs()
        feeds = packed_feeds(batch, outputs)
        for name in self._input_names:
            staged = worker.buffers.array(name, feeds[name].shape, feeds[name].dtype)
            staged[...] = feeds[name]
            worker.binding.bind_cpu_input(name, staged)
        arrays: Arrays = {}
        shapes = output_shapes(self._spec, n_texts, n_tokens)
        for name in outputs:
            arrays[name] = worker.buffers.array(name, shapes[name], np.float32)
            worker.binding.bind_output(name, "cpu", 0, np.float32, shapes[name], arrays[name].ctypes.data)
        self._session.run_with_iobinding(worker.binding, self._run_options())
        return arrays

    def _replay(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        """Run one short text through the captured graph of its length; capture the graph on first use."""
        assert self._graphs is not None
        n_tokens = len(batch.token_ids)
        length = next(length for length in GRAPH_LENGTHS if n_tokens <= length)
        feeds = fixed_length_feeds(batch, outputs, length, self._spec.pad_id)
        feeds = {name: feeds[name] for name in self._input_names}
        graph = self._graphs.get((length, outputs))
        if graph is None:
            shapes = output_shapes(self._spec, 1, length)
            shapes = {name: shapes[name] for name in outputs}
            graph = CapturedGraph(self._session, len(self._graphs) + 1, self._device_id, feeds, shapes)
            self._graphs[length, outputs] = graph
        arrays = graph.run(feeds)
        n_rows = output_rows(1, n_tokens)
        return {name: arrays[name][: n_rows[name]] for name in outputs}

    def _run_options(self) -> Any:
        """Return the options of a run without capture; the first run after running out of memory shrinks the arena."""
        options = import_onnxruntime().RunOptions()
        if self._graphs is not None:
            options.add_run_config_entry("gpu_graph_id", NO_CAPTURE)
        elif self._worker.releases_memory:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", f"gpu:{self._device_id}")
            self._worker.releases_memory = False
        return options

    def _warm_up(self) -> None:
        """Run the largest micro-batch on every worker, and capture the CUDA graphs if there are any.

        Libraries load, the arena grows once, and the token budget falls to what the device's memory holds. No capture
        meets other work on the device later, which would make it fail.
        """
        length = max(2, min(512, self._spec.max_length // SLOTS_PER_TOKEN, self.token_budget))
        lengths = np.full(max(1, self.token_budget // length + 1 - SLOTS_PER_TOKEN), length)
        lengths[0] *= SLOTS_PER_TOKEN  # the padded layout is as large as it may be
        runs = [([lengths] * self._n_workers, self._outputs)]
        if self._graphs is not None:
            short = [np.array([min(length, self._spec.max_length)]) for length in GRAPH_LENGTHS]
            runs += [(short, self._outputs), (short, OUTPUTS[:1])]
        for of_batches, outputs in runs:
            self.run_all([self._filler(of_batch) for of_batch in of_batches], outputs, lambda batch, arrays: None)

    def _filler(self, lengths: NDArray[np.int64]) -> PackedBatch:
        """Make a micro-batch of texts of these lengths."""
        texts = TokenizedTexts(
            token_ids=np.full(lengths.sum(), self._spec.eos_id),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            truncated=np.zeros(len(lengths), np.bool_),
        )
        return pack(texts, np.arange(len(lengths)), self._spec.pad_id)


class _Worker(threading.local):
    """The objects of each worker's own thread; ``releases_memory`` asks its next run to give memory back."""

    def __init__(self, device_id: int) -> None:
        self.binding: Any = None
        self.buffers = PinnedBuffers(device_id)
        self.releases_memory = False
