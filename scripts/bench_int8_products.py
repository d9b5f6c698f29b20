"""Which operators should an int8 product be made of? Milliseconds on this CPU, beside the bare product.

usage: python scripts/bench_int8_products.py [--threads N] [--tokens N ...]

Every variant turns float32 rows (M, K) into float32 products (M, N) with BGE-M3's dimensions; threads do not spin
between runs, so that variants do not slow each other, and the tenth percentile of many interleaved runs is reported.
"""

import argparse
import os
import time
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

SHAPES = ((1024, 3072), (1024, 4096), (4096, 1024))
ROW_SCALES = [
    ("Abs", ["rows"], "magnitudes", {}),
    ("ReduceMax", ["magnitudes", "axis"], "largest", {"keepdims": 0}),
    ("Mul", ["largest", "step"], "scales", {}),
    ("Shape", ["scales"], "shape", {}),
    ("Expand", ["zero_points", "shape"], "row_zero_points", {}),
    ("QuantizeLinear", ["rows", "scales", "row_zero_points"], "quantized", {"axis": 0}),
    ("Unsqueeze", ["scales", "axis"], "row_scales", {}),
]
QUANTIZED = ["quantized", "weight"]
VARIANTS: dict[str, list[tuple[str, list[str], str, dict[str, Any]]]] = {
    "float32": [("MatMul", ["rows", "float_weight"], "product", {})],
    "bare int8 product": [
        ("MatMulIntegerToFloat", ["rows", "weight", "one", "weight_scales", "zero_point"], "product", {}),
    ],
    "one scale for the tensor (DynamicQuantizeMatMul)": [
        ("DynamicQuantizeMatMul", ["rows", "weight", "weight_scales"], "product", {}),
    ],
    "a scale for each row, in the product": [
        *ROW_SCALES,
        ("MatMulIntegerToFloat", [*QUANTIZED, "row_scales", "weight_scales", "zero_point"], "product", {}),
    ],
    "a scale for each row, after the product": [
        *ROW_SCALES,
        ("MatMulIntegerToFloat", [*QUANTIZED, "one", "weight_scales", "zero_point"], "unscaled", {}),
        ("Mul", ["unscaled", "row_scales"], "product", {}),
    ],
    "one fixed scale (static)": [
        ("QuantizeLinear", ["rows", "one", "zero_point"], "quantized", {}),
        ("MatMulIntegerToFloat", [*QUANTIZED, "one", "weight_scales", "zero_point"], "product", {}),
    ],
}
CONTRIB = {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="Which operators should an int8 product be made of?")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128, 1024])
    arguments = parser.parse_args()
    cells = [(m, k, n) for k, n in SHAPES for m in arguments.tokens]
    results = [measure(m, k, n, arguments.threads) for m, k, n in cells]
    table = Table("ms (against the bare int8 product)", *(f"({m}, {k}) x ({k}, {n})" for m, k, n in cells))
    for name in VARIANTS:
        ratios = [
            f"{seconds[name] * 1e3:.2f} ({seconds[name] / seconds['bare int8 product']:.2f})" for seconds in results
        ]
        table.add_row(name, *ratios)
    rates = [2e-9 * m * k * n / seconds["bare int8 product"] for (m, k, n), seconds in zip(cells, results, strict=True)]
    table.add_row("GFLOP/s of the bare int8 product", *(f"{rate:.0f}" for rate in rates))
    Console(width=240).print(table)


def measure(m: int, k: int, n: int, n_threads: int) -> dict[str, float]:
    """Return seconds by variant."""
    rng = np.random.default_rng(0)
    sessions = {name: make_session(name, k, n, n_threads) for name in VARIANTS}
    rows = rng.standard_normal((m, k), dtype=np.float32)
    feeds = {name: {"rows": rows} for name in VARIANTS}
    feeds["bare int8 product"] = {"rows": rng.integers(0, 256, (m, k), np.uint8)}
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(max(6, 6000 // m)):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, feeds[name])
            times[name].append(time.perf_counter() - start)
    return {name: float(np.percentile(seconds, 10)) for name, seconds in times.items()}


def make_session(name: str, k: int, n: int, n_threads: int) -> Any:
    """Build one variant's graph and open it."""
    rng = np.random.default_rng(1)
    constants = {
        "float_weight": rng.standard_normal((k, n), dtype=np.float32),
        "weight": rng.integers(-127, 128, (k, n)).astype(np.int8),
        "weight_scales": np.ones(n, np.float32),
        "one": np.float32(1),
        "step": np.float32(1 / 127),
        "axis": np.array([1]),
        "zero_point": np.uint8(128),
        "zero_points": np.array([128], np.uint8),
    }
    nodes = [
        helper.make_node(kind, inputs, [output], domain="com.microsoft" if kind in CONTRIB else "", **settings)
        for kind, inputs, output, settings in VARIANTS[name]
    ]
    used = {value for node in nodes for value in node.input}
    kind = TensorProto.UINT8 if name == "bare int8 product" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("rows", kind, None)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), key) for key, array in constants.items() if key in used],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
