"""The CPU session: one ONNX Runtime session that runs micro-batches, and merges concurrent short requests."""

import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bgem3.runtime.artifact import Artifact, ArtifactError, verify_help
from bgem3.runtime.coalescing import RequestCoalescer
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.custom_ops import library
from bgem3.runtime.encoder_session import CLOSED, Finish
from bgem3.runtime.forks import check_process, leave_to_parent
from bgem3.runtime.heads import Arrays, check_arrays, head_rows, output_shapes, split_arrays
from bgem3.runtime.manifest import GraphEntry, Output
from bgem3.runtime.ort import onnxruntime_errors, open_cpu_session
from bgem3.runtime.packing import PackedBatch, cpu_layout, join

COALESCED_TOKENS = 128  # in a run of several requests; matrix products have most of their rate by then
TOKEN_BUDGET = 1024  # per micro-batch: matrix products reach their full rate well below it, and activations fit a cache
LONGEST_MASKED = 1024  # tokens; attention over longer texts takes no mask, so texts of other lengths cannot join them
MAX_MASKED_SCORES = 1 << 22  # attention scores per head of a padded micro-batch: 16 MiB each
PROBE_SIZE = 64  # terms of the probe's product
EXACT_PRODUCTS = {"session.x64quantprecision": "1"}

logger = logging.getLogger(__name__)


class RunError(RuntimeError):
    """ONNX Runtime failed to run a micro-batch. No signal handler raises this type, so coalescing can trust it."""


class CpuSession:
    """Runs a CPU graph, as an `EncoderSession`.

    The session merges concurrent short requests into one run, which then reads the weights once for all of them: for
    a query, reading the weights is most of the cost. Longer micro-batches run beside each other on the same threads.

    Parameters
    ----------
    artifact, graph : the artifact folder, and one of its graphs for the CPU
    n_threads : compute threads
    token_budget : most tokens in a micro-batch of several texts, None for the default
    kernels : the kernels ("AVX2") that the graph's custom operators take; "none" for a graph over ONNX Runtime's own
    profile : prefix of a file for the time of each operator; :meth:`end_profiling` completes it
    """

    device = "cpu"

    def __init__(
        self,
        artifact: Artifact,
        graph: GraphEntry,
        *,
        n_threads: int,
        token_budget: int | None = None,
        kernels: str = "none",
        profile: Path | None = None,
    ) -> None:
        self.precision = graph.precision
        self.token_budget = token_budget or TOKEN_BUDGET
        self.kernels = kernels
        self._path, self._spec = artifact.folder / graph.file, artifact.spec
        self._process = os.getpid()
        self._session = open_cpu_session(
            self._path, n_threads, profile=profile, **_session_options(artifact, graph, n_threads, kernels)
        )
        self._input_names = [value.name for value in self._session.get_inputs()]
        self._coalesced_tokens = min(COALESCED_TOKENS, self.token_budget)
        # A session of one thread on four CPUs runs the queries of four callers on one CPU each: that is fastest.
        self._coalescer: RequestCoalescer[_Request, Arrays] = RequestCoalescer(
            partial(_may_coalesce, self._coalesced_tokens),
            n_at_once=max(1, available_cpus() // n_threads),
            errors=(RunError, ArtifactError, MemoryError),
        )
        leave_to_parent(self)  # with the arrays of the calls that are running

    def most_padded(self, longest: int) -> int:
        """Return how many texts of different lengths may share a micro-batch.

        ONNX Runtime's attention pads them and stores the scores of padding, too; our own operator does neither.
        """
        if self.kernels != "none":
            return self.token_budget
        return int(MAX_MASKED_SCORES // longest**2) if longest <= LONGEST_MASKED else 1

    def run_all(self, batches: Iterable[PackedBatch], outputs: tuple[Output, ...], finish: Finish) -> None:
        """Encode micro-batches one after another, as :class:`EncoderSession` says."""
        for batch in batches:
            finish(batch, self.run(batch, outputs))

    def run(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        """Encode a micro-batch, together with those of concurrent calls if all are short."""
        if len(batch.token_ids) <= self._coalesced_tokens:
            return self._coalescer((batch, outputs), self._run_coalesced)
        return self._run(batch, outputs)

    def _run_coalesced(self, requests: list["_Request"]) -> list[Arrays]:
        """Encode the micro-batches of several requests in one run; return the outputs of each."""
        if len(requests) == 1:
            return [self._run(*requests[0])]
        batches, (outputs, *_) = zip(*requests, strict=True)
        return split_arrays(self._run(join(batches), outputs), batches)

    def _run(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        feeds = vars(batch) | head_rows(batch.cu_seqlens, outputs)
        if self.kernels == "none":
            feeds |= cpu_layout(batch.cu_seqlens)
        session = self._open_session()
        try:
            values = session.run(list(outputs), {name: feeds[name] for name in self._input_names})
        except onnxruntime_errors() as error:
            raise RunError(
                f"ONNX Runtime failed to run {self._path} ({error}); if memory is short, encode with a lower "
                f"max_length; otherwise {verify_help(self._path)}"
            ) from error
        arrays: Arrays = dict(zip(outputs, values, strict=True))
        check_arrays(arrays, output_shapes(self._spec, len(batch.text_index), len(batch.token_ids)), self._path)
        return arrays

    def end_profiling(self) -> Path:
        """Complete the file with the time of each operator and return its path."""
        return Path(self._open_session().end_profiling())

    def close(self) -> None:
        """Release the session's memory, as soon as the micro-batches that are running have ended."""
        self._session = None

    def _open_session(self) -> Any:
        check_process(self._process)  # again, for a process that was forked while its thread encoded
        session = self._session
        if session is None:
            raise RuntimeError(CLOSED)
        return session


def _session_options(artifact: Artifact, graph: GraphEntry, n_threads: int, kernels: str) -> dict[str, Any]:
    """Return the options of `open_cpu_session` that a graph's operators need."""
    if kernels != "none":
        return {"settings": {"bgem3.kernels": kernels, "bgem3.n_threads": str(n_threads)}, "operators": library()}
    settings = product_settings(artifact.folder / graph.probe) if graph.probe else {}
    # SkipLayerNormalization is several times slower on CPU than the Add and LayerNormalization it replaces.
    return {"settings": settings, "disabled_optimizers": ["SkipLayerNormFusion"]}


_Request = tuple[PackedBatch, tuple[Output, ...]]


def _may_coalesce(most_tokens: int, requests: list[_Request], request: _Request) -> bool:
    """Tell whether a request may join others: it asks for the same heads, and all are short together."""
    n_tokens = sum(len(batch.token_ids) for batch, _ in [*requests, request])
    return n_tokens <= most_tokens and requests[0][1] == request[1]


def product_settings(probe: Path) -> dict[str, str]:
    """Return the session settings that make a graph's integer products right on this CPU.

    On x86 with AVX2 or AVX-512 but no VNNI, ONNX Runtime's uint8 x int8 kernels add pairs of products in 16 bits and
    saturate, silently. The probe computes the largest such sum. Where it comes out wrong, the session must take the
    exact uint8 x uint8 kernels, at about half the speed that VNNI has. ARM's kernels add in 32 bits.
    """
    inputs = {"rows": np.full((1, PROBE_SIZE), 255, np.uint8), "scales": np.ones((1, 1), np.float32)}
    (found,) = open_cpu_session(probe, 1).run(None, inputs)
    if (found == 127 * 127 * PROBE_SIZE).all():
        return {}
    logger.info("this CPU's uint8 x int8 products saturate: taking slower, exact ones; a CPU with VNNI has both")
    return EXACT_PRODUCTS
