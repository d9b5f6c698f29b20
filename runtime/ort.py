"""ONNX Runtime: import it, open sessions with the options that all of ours share, and name its errors."""

import os
from pathlib import Path
from typing import Any

from bgem3.runtime.artifact import ArtifactError, verify_help
from bgem3.runtime.forks import leave_to_parent
from bgem3.runtime.graph_file import read_linked

ERRORS_ONLY = 3  # ONNX Runtime's log severity; its warnings are about nothing that a user can change
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def import_onnxruntime() -> Any:
    """Import onnxruntime when it is first needed, or say what to install.

    Its telemetry (from 1.29 on) is off unless ``ORT_DISABLE_TELEMETRY`` says otherwise. Telemetry sends data about the
    model over the network. A forked process lacks its thread, and therefore hangs when it exits.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, on import
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"onnxruntime cannot be imported ({error}); `pip install 'bgem3[cpu]'`, or 'bgem3[gpu]' for CUDA"
        ) from error
    return onnxruntime


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that ONNX Runtime raises when it cannot open or run a graph."""
    state = import_onnxruntime().capi.onnxruntime_pybind11_state
    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))


def open_cpu_session(path: Path, n_threads: int, **options: Any) -> Any:
    """Open a graph on the CPU as :func:`make_session` does; raise ArtifactError if ONNX Runtime cannot open it."""
    try:
        return make_session(path, n_threads, providers=["CPUExecutionProvider"], **options)
    except onnxruntime_errors() as error:
        version = import_onnxruntime().__version__
        raise ArtifactError(f"ONNX Runtime {version} cannot open {path} ({error}); {verify_help(path)}") from None


def make_session(
    path: Path,
    n_threads: int,
    settings: dict[str, str] | None = None,
    operators: Path | None = None,
    profile: Path | None = None,
    **arguments: Any,
) -> Any:
    """Make an ONNX Runtime session.

    Parameters
    ----------
    settings : session config entries
    operators : shared library of custom operators
    profile : prefix of a file for the time of each operator
    arguments : of ``onnxruntime.InferenceSession``
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ArtifactError(f"{path} has a name that is not UTF-8, which ONNX Runtime cannot open; rename it") from None
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it stores a plan for every shape, and nearly every micro-batch has a new one
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
    session = onnxruntime.InferenceSession(linked[0] if linked else path, options, enable_fallback=0, **arguments)
    leave_to_parent(session)
    return session
