"""The kernels of our CPU operators that this machine can run, whether or not `best_kernels` would choose them."""

import onnxruntime

from bgem3.runtime.custom_ops import library


def supported_kernels() -> list[str]:
    """Return the names of all kernels that this CPU runs, with "portable" first; none if the library was not built."""
    return [name for name in ("portable", "AVX2", "AVX-512 VNNI") if library() is not None and is_supported(name)]


def is_supported(name: str) -> bool:
    """Return whether this CPU runs these kernels, as the library says. Every CPU runs "portable"."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("bgem3.kernels", name)
    options.add_session_config_entry("bgem3.n_threads", "1")
    try:
        options.register_custom_ops_library(str(library()))
    except Exception as error:  # ONNX Runtime's, of several types
        if name == "portable" or "this CPU" not in str(error):
            raise
        return False
    return True
