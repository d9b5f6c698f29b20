"""Our CPU operators, each as a model of one node, and the formulas that they compute."""

import ctypes
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.special import softmax

from bgem3.runtime.custom_ops import library
from tests.kernels.cpu_kernels import supported_kernels

Array = NDArray[Any]

N_EXAMPLES = int(os.environ.get("BGEM3_TEST_EXAMPLES", 20))
examples = settings(max_examples=N_EXAMPLES, deadline=None, derandomize=N_EXAMPLES <= 20)
"""Hypothesis settings: the same few examples in every run, or many random ones."""

LIBRARY = os.environ.get("BGEM3_TEST_LIBRARY") or library()
"""The library under test: the installed one, or a build that `test_builds` makes."""

KERNELS = supported_kernels()
BLOCK = ctypes.c_int32.in_dll(ctypes.CDLL(str(LIBRARY)), "bgem3_block").value if LIBRARY else 0
needs_library = pytest.mark.skipif(not LIBRARY, reason="the operators were not compiled: no C compiler was found")
CONSTANTS = ("weight", "bias", "scales", "smoothing")


def run(
    kind: str,
    inputs: Mapping[str, Array | None],
    kernels: str,
    n_threads: object = 1,
    constants: Sequence[str] = CONSTANTS,
    **attributes: Any,
) -> Array:
    """Run one operator on inputs in the node's order, in which None leaves one out."""
    arrays = {name: array for name, array in inputs.items() if array is not None}
    initializers = [numpy_helper.from_array(arrays[name], name) for name in constants if name in arrays]
    feeds = {name: array for name, array in arrays.items() if name not in constants}
    node = helper.make_node(
        kind, [name if name in arrays else "" for name in inputs], ["y"], domain="bgem3", **attributes
    )
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "operator", declared, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("bgem3", 1)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads if isinstance(n_threads, int) else 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # sanitizers see where each tensor ends
    options.log_severity_level = 4
    options.add_session_config_entry("bgem3.kernels", kernels)
    options.add_session_config_entry("bgem3.n_threads", str(n_threads))
    options.register_custom_ops_library(str(LIBRARY))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run(None, feeds)[0])


def linear(rows: Array, weight: Array, kernels: str, *, gelu: int = 0, n_threads: int = 1, **others: Array) -> Array:
    """Run Linear; int8 weights have scales of 1 if there are no others."""
    if weight.dtype == np.int8:
        others = {"scales": np.ones(weight.shape[1], np.float32)} | others
    names = ("bias", "residual", "scales", "smoothing")
    inputs = {"rows": rows, "weight": weight, **{name: others.get(name) for name in names}}
    return run("Linear", inputs, kernels, n_threads, gelu=gelu)


def attend(qkv: Array, limits: list[int], n_heads: int, kernels: str) -> Array:
    """Run PackedAttention on queries, keys and values side by side, (T, 3 * D)."""
    queries, keys, values = (np.ascontiguousarray(part) for part in np.split(qkv, 3, axis=1))
    inputs = {"queries": queries, "keys": keys, "values": values, "cu_seqlens": np.array(limits, np.int64)}
    return run("PackedAttention", inputs, kernels, n_heads=n_heads)


def quantize(rows: Array) -> tuple[Array, Array]:
    """Quantize rows (T, K) as Linear does; return the levels minus their zero point, and their scales, both (T, K)."""
    starts = np.arange(0, rows.shape[1], BLOCK)
    largest = np.maximum.reduceat(rows, starts, axis=1).clip(min=0)  # (T, n_blocks)
    least = np.minimum.reduceat(rows, starts, axis=1).clip(max=0)
    most = min(64, 65536 // rows.shape[1])
    widest = (largest - least).max(axis=1, keepdims=True)
    unit = np.maximum(widest, np.float32(1e-12)) / np.float32(255) / np.float32(most)  # (T, 1)
    factors = np.ceil((largest - least) / np.float32(255) / unit).clip(1, most).astype(np.float32)
    block_scales = factors * unit
    block_zero_points = np.rint(-least * (1 / block_scales))
    scales, zero_points = (np.repeat(x, BLOCK, axis=1)[:, : rows.shape[1]] for x in (block_scales, block_zero_points))
    return np.clip(np.rint(rows * (1 / scales)) + zero_points, 0, 255) - zero_points, scales


def attention_formula(qkv: Array, limits: list[int], n_heads: int) -> Array:
    """Return softmax attention within each text, in float64."""
    shape = (len(qkv), 3, n_heads, qkv.shape[1] // (3 * n_heads))
    q, k, v = qkv.astype(np.float64).reshape(shape).transpose(1, 2, 0, 3)  # (n_heads, T, size)
    context: Array = np.zeros_like(q)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        for start, stop in itertools.pairwise(limits):
            text = slice(start, stop)
            scores = q[:, text] @ k[:, text].transpose(0, 2, 1) / np.sqrt(q.shape[-1])
            context[:, text] = softmax(scores, axis=-1) @ v[:, text] if stop > start else 0
    return context.transpose(1, 0, 2).reshape(len(qkv), qkv.shape[1] // 3)
