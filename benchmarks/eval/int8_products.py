"""Time the operators that an int8 product could be made of, on this CPU.

usage: python -m benchmarks.eval.int8_products

Every variant turns float32 rows (M, K) into float32 products (M, N), of BGE-M3's sizes. The tenth percentile of many
runs counts, in which the variants take turns. Threads do not spin between runs, or one variant would slow the next.
"""

from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from onnx import numpy_helper, parser
from rich.console import Console
from rich.table import Table

from bgem3.runtime.bench import seconds_of
from bgem3.runtime.cpus import available_cpus

SHAPES = ((1024, 3072), (1024, 4096), (4096, 1024))
N_TOKENS = (16, 128, 1024)
BARE = "bare int8 product"
QUANTIZE_ROWS = """
    magnitudes = Abs (rows)
    largest = ReduceMax <keepdims = 0> (magnitudes, axis)
    scales = Mul (largest, step)
    shape = Shape (scales)
    row_zero_points = Expand (zero_points, shape)
    quantized = QuantizeLinear <axis = 0> (rows, scales, row_zero_points)
    row_scales = Unsqueeze (scales, axis)
"""
MULTIPLY = "{} = com.microsoft.MatMulIntegerToFloat ({}, weight, {}, weight_scales, zero_point)\n".format
VARIANTS = {  # the nodes of each graph
    "float32": "product = MatMul (rows, float_weight)",
    BARE: MULTIPLY("product", "rows", "one"),
    "one scale for the tensor": "product = com.microsoft.DynamicQuantizeMatMul (rows, weight, weight_scales)",
    "a scale for each row, in the product": QUANTIZE_ROWS + MULTIPLY("product", "quantized", "row_scales"),
    "a scale for each row, after the product": QUANTIZE_ROWS
    + MULTIPLY("unscaled", "quantized", "one")
    + "product = Mul (unscaled, row_scales)",
    "one fixed scale": "quantized = QuantizeLinear (rows, one, zero_point)\n" + MULTIPLY("product", "quantized", "one"),
}


def main() -> None:
    """Measure, and print a table."""
    sizes = [(m, k, n) for k, n in SHAPES for m in N_TOKENS]
    results = [measure(m, k, n, available_cpus()) for m, k, n in sizes]
    table = Table(f"ms (times the {BARE})", *(f"({m}, {k}) x ({k}, {n})" for m, k, n in sizes))
    for name in VARIANTS:
        table.add_row(name, *(f"{1e3 * found[name]:.2f} ({found[name] / found[BARE]:.2f})" for found in results))
    rates = [2e-9 * m * k * n / found[BARE] for (m, k, n), found in zip(sizes, results, strict=True)]
    table.add_row(f"GFLOP/s of the {BARE}", *(f"{rate:.0f}" for rate in rates))
    Console(width=240).print(table)


def measure(m: int, k: int, n: int, n_threads: int) -> dict[str, float]:
    """Return the seconds of each variant."""
    rng = np.random.default_rng(0)
    rows, integers = rng.standard_normal((m, k), dtype=np.float32), rng.integers(0, 256, (m, k), np.uint8)
    runs = [
        partial(open_variant(name, k, n, n_threads).run, None, {"rows": integers if name == BARE else rows})
        for name in VARIANTS
    ]
    seconds = [[seconds_of(run) for run in runs] for _ in range(max(6, 6000 // m))]
    return dict(zip(VARIANTS, np.percentile(seconds, 10, axis=0).tolist(), strict=True))


def open_variant(name: str, k: int, n: int, n_threads: int) -> Any:
    """Build a variant's graph, and open it."""
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
    kind = "uint8" if name == BARE else "float"
    model = parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 20, "com.microsoft": 1]>
        graph ({kind}[M, {k}] rows) => (float[M, {n}] product) {{ {VARIANTS[name]} }}"""
    )
    used = {value for node in model.graph.node for value in node.input}
    arrays = {key: np.asarray(array) for key, array in constants.items() if key in used}
    model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in arrays.items())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
