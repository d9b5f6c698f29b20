"""The CPU session: one ONNX Runtime session, which encodes micro-batches, and several callers' short ones together."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bgem3.runtime.artifact import OUTPUTS as OUTPUTS
from bgem3.runtime.artifact import ArtifactError, ModelSpec
from bgem3.runtime.artifact import Output as Output
from bgem3.runtime.coalescing import SharedRuns
from bgem3.runtime.cpus import available_cpus
from bgem3.runtime.custom_ops import NATIVE_GRAPH, best_kernels, library, why_unavailable
from bgem3.runtime.forks import check_process, leave_to_parent
from bgem3.runtime.graph_file import read_linked
from bgem3.runtime.packing import PackedBatch, cpu_layout, join

Arrays = dict[Output, NDArray[np.float32]]
Finish = Callable[[PackedBatch, Arrays], None]

SHARED_TOKENS = 128  # of several callers' micro-batches that run as one; products have most of their rate then
TOKEN_BUDGET = 1024  # GEMMs reach their full rate well below this; activations still fit a large cache
LONGEST_MASKED = 1024  # tokens; longer texts attend without a mask, so none of another length runs with them
MAX_MASKED_SCORES = 1 << 22  # attention scores per head of a padded micro-batch: 16 MiB each
ERRORS_ONLY = 3
CLOSED = "this model is closed; load it again with BGEM3Model.load"
PROBE, PROBE_SIZE = "probe.onnx", 64  # a product of that many terms
EXACT_PRODUCTS = {"session.x64quantprecision": "1"}
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

logger = logging.getLogger(__name__)


class RunError(RuntimeError):
    """ONNX Runtime failed to run a micro-batch; no signal handler raises this, so it tells the two apart."""


class CpuSession:
    """Runs a CPU graph; its methods may be called from many threads at once.

    Short micro-batches, of queries, that several threads bring at once run as one: the weights, most of what a query
    costs, are then read once for all. Longer ones run beside each other, on the same threads.

    Parameters
    ----------
    path : the graph over ONNX Runtime's own operators
    kernels : of our own operators, for the graph beside that one: "auto" takes the fastest that this CPU has, and
        without any runs ``path``; "none" runs ``path``
    profile : prefix of a file that ONNX Runtime writes each operator's time to; None for none

    Attributes
    ----------
    device : "cpu"
    precision : the precision of the stored weights
    token_budget : most tokens in a micro-batch of several texts
    kernels : the kernels taken, or "none"
    """

    device = "cpu"

    def __init__(
        self,
        path: Path,
        precision: str,
        *,
        n_threads: int,
        token_budget: int | None = None,
        kernels: str = "auto",
        profile: Path | None = None,
    ) -> None:
        self.precision = precision
        self._process = os.getpid()
        self.token_budget = token_budget or TOKEN_BUDGET
        self._path, self.kernels = choose_graph(path, kernels)
        if kernels == "auto":
            reason = why_unavailable() or f"the artifact has no {NATIVE_GRAPH}"
            chosen = self.kernels if self.kernels != "none" else f"ONNX Runtime's, since {reason}"
            logger.info("CPU kernels: %s", chosen)
        if self.kernels == "none":
            # SkipLayerNormalization is several times slower on CPU than the Add and LayerNormalization it replaces.
            self._session = open_session(
                path,
                n_threads,
                settings=product_settings(path),
                profile=profile,
                disabled_optimizers=["SkipLayerNormFusion"],
            )
        else:
            settings = {"bgem3.kernels": self.kernels, "bgem3.n_threads": str(n_threads)}
            self._session = open_session(self._path, n_threads, settings=settings, operators=library(), profile=profile)
        self._input_names = [value.name for value in self._session.get_inputs()]
        self._widths = {value.name: tuple(value.shape[1:]) for value in self._session.get_outputs()}
        self._shared_tokens = min(SHARED_TOKENS, self.token_budget)
        # A session of one thread on four CPUs runs the queries of four callers on one each, as fast as they can be.
        n_at_once = max(1, available_cpus() // n_threads)
        self._shared_runs: SharedRuns[_Task, Arrays] = SharedRuns(
            partial(_may_share, self._shared_tokens),
            n_at_once,
            errors=(RunError, ArtifactError, MemoryError),
        )
        leave_to_parent(self)  # with the arrays of calls that run

    def most_padded(self, longest: int) -> int:
        """Return how many texts of several lengths may share a micro-batch.

        ONNX Runtime's attention pads them, and holds all scores where there is padding; our own does neither.
        """
        if self.kernels != "none":
            return self.token_budget
        return int(MAX_MASKED_SCORES // longest**2) if longest <= LONGEST_MASKED else 1

    def run_all(self, batches: Iterable[PackedBatch], outputs: tuple[Output, ...], finish: Finish) -> None:
        """Encode micro-batches and call ``finish`` with each one and its arrays, as :meth:`run` returns them."""
        for batch in batches:
            finish(batch, self.run(batch, outputs))

    def run(self, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        """Encode a micro-batch of B texts and T tokens.

        Returns
        -------
        The requested outputs only: ``dense`` (B, D), ``sparse`` (T,), ``multivector`` (T - B, M), float32.

        Raises
        ------
        RuntimeError
            If the session is closed.
        """
        if len(batch.token_ids) <= self._shared_tokens:
            return self._shared_runs((batch, outputs), self._run_together)
        return self._run(batch, outputs)

    def _run_together(self, tasks: list["_Task"]) -> list[Arrays]:
        """Encode micro-batches as one; return the arrays of each."""
        batches, (outputs, *_) = zip(*tasks, strict=True)
        return split_arrays(self._run(join(batches), outputs), batches) if len(tasks) > 1 else [self._run(*tasks[0])]

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
                f"max_length; otherwise check the folder with `bgem3 verify {self._path.parent.parent}`"
            ) from error
        arrays: Arrays = dict(zip(outputs, values, strict=True))
        n_rows = output_rows(len(batch.text_index), len(batch.token_ids))
        check_arrays(arrays, {name: (n_rows[name], *self._widths[name]) for name in outputs}, self._path)
        return arrays

    def end_profiling(self) -> Path:
        """Return the file that operators' times were written to, which is then whole."""
        return Path(self._open_session().end_profiling())

    def close(self) -> None:
        """Release the session's memory, as soon as the micro-batches that run have ended."""
        self._session = None

    def _open_session(self) -> Any:
        check_process(self._process)  # again, for a process that was forked while its thread encoded
        session = self._session
        if session is None:
            raise RuntimeError(CLOSED)
        return session


_Task = tuple[PackedBatch, tuple[Output, ...]]


def _may_share(most_tokens: int, tasks: list[_Task], task: _Task) -> bool:
    """Tell whether a micro-batch may run as one with others: for the same heads, and short together."""
    n_tokens = sum(len(batch.token_ids) for batch, _ in [*tasks, task])
    return n_tokens <= most_tokens and tasks[0][1] == task[1]


def choose_graph(path: Path, kernels: str) -> tuple[Path, str]:
    """Return the graph that runs on the CPU with these kernels, and the kernels' name; arguments as of `CpuSession`."""
    native = path.with_name(NATIVE_GRAPH)
    if kernels == "auto":
        kernels = (native.is_file() and best_kernels()) or "none"
    return (path if kernels == "none" else native), kernels


def check_arrays(arrays: Arrays, shapes: dict[Output, tuple[int, ...]], path: Path) -> None:
    """Raise ArtifactError if a graph's outputs have not the shapes that they must have, or are not finite."""
    for name, values in arrays.items():
        if values.shape != shapes[name]:
            raise ArtifactError(
                f"{path} gives {name} of the shape {values.shape}, expected {shapes[name]}; check the folder with "
                f"`bgem3 verify {path.parent.parent}`, or export the checkpoint again"
            )
        if not np.isfinite(values).all():
            raise ArtifactError(
                f"{path} gives {name} values that are NaN or infinite: its weights are damaged, or too large for the "
                "precision that it computes in; load another precision or device='cpu', check the folder with "
                f"`bgem3 verify {path.parent.parent}`, or export the checkpoint again"
            )


def split_arrays(arrays: Arrays, batches: Sequence[PackedBatch]) -> list[Arrays]:
    """Return each micro-batch's part of the arrays of all of them together."""
    n_texts = np.array([len(batch.text_index) for batch in batches])
    n_tokens = np.array([len(batch.token_ids) for batch in batches])
    n_rows = output_rows(n_texts, n_tokens)
    parts = {name: np.split(values, np.cumsum(n_rows[name])[:-1]) for name, values in arrays.items()}
    return [{name: of_batch[i] for name, of_batch in parts.items()} for i in range(len(batches))]


def output_rows(n_texts: Any, n_tokens: Any) -> dict[Output, Any]:
    """Return the rows of each output for B texts of T tokens together; for arrays of both, arrays."""
    return {"dense": n_texts, "sparse": n_tokens, "multivector": n_tokens - n_texts}


def output_shapes(spec: ModelSpec, n_texts: int, n_tokens: int) -> dict[Output, tuple[int, ...]]:
    """Return the shape of each output for B texts of T tokens together."""
    width: dict[Output, tuple[int, ...]] = {
        "dense": (spec.hidden_size,),
        "sparse": (),
        "multivector": (spec.multivector_size,),
    }
    return {name: (n, *width[name]) for name, n in output_rows(n_texts, n_tokens).items()}


def product_settings(path: Path) -> dict[str, str]:
    """Return what a graph's session must be told for its integer products to be right on this CPU.

    On x86 with AVX2 or AVX-512 but no VNNI, ONNX Runtime's uint8 x int8 kernels add pairs of products in 16 bits and
    saturate, silently. The probe beside an int8 graph is the largest such sum; where it comes out wrong, the session is
    told to take the exact uint8 x uint8 kernels, at about half the speed that VNNI has. ARM's kernels add in 32 bits.
    """
    probe = path.with_name(PROBE)
    if not probe.is_file():
        return {}
    session = open_session(probe, 1)
    (found,) = session.run(
        None, {"rows": np.full((1, PROBE_SIZE), 255, np.uint8), "scales": np.ones((1, 1), np.float32)}
    )
    if (found == 127 * 127 * PROBE_SIZE).all():
        return {}
    logger.info("this CPU's uint8 x int8 products saturate: taking slower, exact ones; a CPU with VNNI has both")
    return EXACT_PRODUCTS


def head_rows(cu_seqlens: NDArray[np.int64], outputs: tuple[Output, ...]) -> dict[str, NDArray[np.int64]]:
    """List the tokens each head reads; an empty list switches the head off."""
    none, tokens, cls = np.empty(0, np.int64), np.arange(cu_seqlens[-1]), cu_seqlens[:-1]
    is_dense_alone = outputs == ("dense",)
    return {
        "state_rows": cls if is_dense_alone else tokens,
        "dense_rows": none if "dense" not in outputs else np.arange(len(cls)) if is_dense_alone else cls,
        "sparse_rows": tokens if "sparse" in outputs else none,
        "multivector_rows": np.delete(tokens, cls) if "multivector" in outputs else none,
    }


def open_session(path: Path, n_threads: int, **arguments: Any) -> Any:
    """Open a graph on the CPU provider; ArtifactError if ONNX Runtime cannot."""
    try:
        return make_session(path, n_threads, providers=["CPUExecutionProvider"], **arguments)
    except onnxruntime_errors() as error:
        raise ArtifactError(
            f"ONNX Runtime {import_onnxruntime().__version__} cannot open {path} ({error}); check the folder with "
            f"`bgem3 verify {path.parent.parent}`, or export the checkpoint again"
        ) from None


def make_session(
    path: Path,
    n_threads: int,
    settings: dict[str, str] | None = None,
    operators: Path | None = None,
    profile: Path | None = None,
    **arguments: Any,
) -> Any:
    """Make an ONNX Runtime session, with config entries, a library of operators and arguments of InferenceSession."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ArtifactError(f"{path} has a name that is not UTF-8, which ONNX Runtime cannot open; rename it") from None
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it keeps a plan for every shape, and every micro-batch has another one
    options.log_severity_level = ERRORS_ONLY
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if operators is not None:
        options.register_custom_ops_library(str(operators))
    linked = read_linked(path)
    if linked:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(linked[1]))
    session = runtime.InferenceSession(linked[0] if linked else path, options, enable_fallback=0, **arguments)
    leave_to_parent(session)
    return session


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions with which ONNX Runtime says that it cannot make or run a session."""
    state = import_onnxruntime().capi.onnxruntime_pybind11_state
    names = (
        "Fail",
        "InvalidGraph",
        "InvalidProtobuf",
        "InvalidArgument",
        "NotImplemented",
        "RuntimeException",
        "EPFail",
        "NoSuchFile",
        "NoModel",
        "EngineError",
    )
    return tuple(getattr(state, name) for name in names)


def import_onnxruntime() -> Any:
    """Import onnxruntime when it is first needed, or say what to install.

    Its telemetry (from 1.29 on) is off unless ``ORT_DISABLE_TELEMETRY`` says otherwise: it sends data about the model
    over the network, and its thread, which a forked process lacks, makes that process hang when it exits.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, on import
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"onnxruntime cannot be imported ({error}); `pip install 'bgem3[cpu]'`, or 'bgem3[gpu]' for CUDA"
        ) from error
    return onnxruntime
