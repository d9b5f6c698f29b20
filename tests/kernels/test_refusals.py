"""Nodes, options and versions of ONNX Runtime that the operators refuse, and with which message."""

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.kernels.operators import CONSTANTS, LIBRARY, Array, needs_library, run

pytestmark = needs_library

LINEAR_INPUTS: dict[str, Array | None] = {
    "rows": np.ones((2, 8), np.float32),
    "weight": np.ones((8, 3), np.int8),
    "bias": np.ones(3, np.float32),
    "residual": np.ones((2, 3), np.float32),
    "scales": np.ones(3, np.float32),
    "smoothing": np.ones(8, np.float32),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": np.ones((2, 9), np.float32)}, r"rows have shape \(2, 9\), expected \(T, 8\)"),
        ({"rows": np.ones((), np.float32)}, "rows have 0 dimensions"),
        ({"rows": np.ones((2, 8))}, "(?i)type"),
        ({"weight": None}, "marked single but has an empty string"),
        ({"weight": np.ones((8193, 1), np.int8)}, "K from 1 to 8192"),
        ({"weight": np.ones((0, 3), np.int8), "rows": np.ones((2, 0), np.float32)}, r"\(0, 3\), expected \(K, N\)"),
        ({"weight": np.ones((8, 0), np.int8), "scales": np.ones(0, np.float32)}, "N from 1 to"),
        ({"bias": np.array([1, np.nan, 1], np.float32)}, "value 1 of bias is -?nan, expected a finite one"),
        ({"residual": np.ones((2, 4), np.float32)}, r"residual has shape \(2, 4\), expected the output's, \(2, 3\)"),
        ({"scales": None}, "no scales"),
        ({"scales": np.ones(4, np.float32)}, "scales has"),
        ({"smoothing": np.ones(9, np.float32)}, "smoothing has"),
        ({"gelu": 2}, "gelu is 2, expected 0 or 1"),
        ({"gelu": None}, "no whole number as its attribute gelu"),
    ],
)
def test_a_product_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    attributes = {"gelu": changes.pop("gelu", 0)}
    with pytest.raises(Exception, match=message):
        run("Linear", LINEAR_INPUTS | changes, "portable", **attributes)


@pytest.mark.parametrize("computed", CONSTANTS)
def test_a_weight_or_bias_that_is_not_constant_is_refused(computed: str) -> None:
    constants = [name for name in CONSTANTS if name != computed]
    with pytest.raises(Exception, match=f"{computed} is an input or computed, expected a constant"):
        run("Linear", LINEAR_INPUTS, "portable", constants=constants, gelu=0)


STATES = np.ones((4, 8), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 0}, "n_heads is 0, expected 1 or more"),
        ({"n_heads": 3}, "3 heads share 8 dimensions"),
        ({name: np.ones((4, 258), np.float32) for name in ("queries", "keys", "values")}, "from 1 to 128"),
        ({name: np.ones((2, 4, 4), np.float32) for name in ("queries", "keys", "values")}, "queries have 3 dimensions"),
        ({"keys": np.ones((3, 8), np.float32)}, r"keys have shape \(3, 8\) and queries shape \(4, 8\)"),
        ({"cu_seqlens": np.array([0, 4], np.int32)}, "(?i)type"),
        ({"cu_seqlens": np.array([0])}, "runs from 0 to 0, expected from 0 to the number of tokens, 4"),
        ({"cu_seqlens": np.array([1, 4])}, "runs from 1 to 4"),
        ({"cu_seqlens": np.array([0, 6, 4])}, "descends from 6 to 4 at index 2"),
        ({"cu_seqlens": np.array([0, 2**62, -(2**62), 4])}, "descends"),
    ],
)
def test_attention_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    attributes = {"n_heads": changes.pop("n_heads", 2)}
    inputs = {"queries": STATES, "keys": STATES, "values": STATES, "cu_seqlens": np.array([0, 4])}
    with pytest.raises(Exception, match=message):
        run("PackedAttention", inputs | changes, "portable", **attributes)


@pytest.mark.parametrize("name", ["", "portable ", "p" * 32, "p" * 8000])
def test_kernels_that_the_cpu_lacks_are_refused(name: str) -> None:
    with pytest.raises(Exception, match=r'this CPU has: .*"portable"|bgem3.kernels has \d+ characters'):
        run("Linear", LINEAR_INPUTS, name, gelu=0)


@pytest.mark.parametrize("n_threads", ["", "0", "-1", "1.5", "4 threads", "65537", str(2**32 + 1), "9" * 25])
def test_a_number_of_threads_that_is_none_is_refused(n_threads: str) -> None:
    with pytest.raises(Exception, match=r"bgem3\.n_threads is .*a whole number from 1 to 65536"):
        run("Linear", LINEAR_INPUTS, "portable", n_threads, gelu=0)


def test_an_onnxruntime_that_is_too_old_is_refused() -> None:
    messages = []
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda code, message: messages.append(message.decode())
    )
    functions = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))
    get_functions = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(functions) if version == 1 else None
    )
    base = (ctypes.c_void_p * 2)(ctypes.cast(get_functions, ctypes.c_void_p), None)
    ctypes.CDLL(str(LIBRARY)).RegisterCustomOps(None, base)
    assert messages == ["bgem3's operators need ONNX Runtime 1.22 or newer; install a newer one"]
