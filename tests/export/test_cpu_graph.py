"""The CPU graph: how it attends, and the rows that each head costs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from bgem3.runtime import BGEM3Model
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import LONGEST_MASKED
from bgem3.runtime.device import open_encoder
from bgem3.runtime.heads import head_rows, output_rows
from bgem3.runtime.manifest import OUTPUTS, Output
from bgem3.runtime.packing import cpu_layout, pack
from bgem3.runtime.tokenizer import TextTokenizer

TEXTS = ["What is BM25?", "BM25 is a bag-of-words retrieval function that ranks documents.", ""]


def rows_by_node(artifact: Path, outputs: tuple[Output, ...], folder: Path) -> dict[str, int]:
    """Profile one run; return the rows of each operator's output, by the name of its node."""
    spec = read_artifact(artifact).spec
    tokenized = TextTokenizer(artifact / "tokenizer.json", spec)(TEXTS, spec.max_length)
    batch = pack(tokenized, np.arange(len(TEXTS)), spec.pad_id)
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keeps the nodes' names
    session = onnxruntime.InferenceSession(artifact / "fp32/cpu.onnx", options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = vars(batch) | cpu_layout(batch.cu_seqlens) | head_rows(batch.cu_seqlens, outputs)
    session.run(list(outputs), {value.name: feeds[value.name] for value in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = {e["name"].removesuffix("_kernel_time"): e["args"] for e in events if e["name"].endswith("_kernel_time")}
    shapes = {name: next(iter(arguments["output_type_shape"][0].values())) for name, arguments in kernels.items()}
    return {name: shape[0] if shape else 1 for name, shape in shapes.items()}


def test_heads_cost_only_the_rows_asked_for(random_artifact: Path, random_model: BGEM3Model, tmp_path: Path) -> None:
    model = onnx.load(random_artifact / "fp32/cpu.onnx", load_external_data=False)
    gelus = [node.name for node in model.graph.node if node.op_type == "Gelu"]
    n_tokens = int(random_model.encode(TEXTS).n_tokens.sum())
    n_rows = output_rows(len(TEXTS), n_tokens)
    for output in OUTPUTS:
        ran = rows_by_node(random_artifact, (output,), tmp_path)
        assert {name: ran[name] for name in OUTPUTS} == dict.fromkeys(OUTPUTS, 0) | {output: n_rows[output]}
        last = len(TEXTS) if output == "dense" else n_tokens  # the CLS states are enough for dense vectors
        assert [ran[name] for name in gelus] == [n_tokens, n_tokens, last]


def test_long_texts_have_the_same_bits_alone_and_beside_texts_of_other_lengths(
    demo_checkpoint: Path,
    make_random_checkpoint: Callable[..., Path],
    export_to_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    dimensions = {"hidden": 32, "layers": 3, "heads": 2, "intermediate": 32, "max_length": LONGEST_MASKED + 50}
    checkpoint = make_random_checkpoint(demo_checkpoint / "tokenizer.json", tmp_path, **dimensions)
    artifact = read_artifact(export_to_folder(checkpoint, "fp32"))
    texts = ["honey " * (LONGEST_MASKED + n) for n in (0, 20, -20)] + TEXTS
    with BGEM3Model(artifact, open_encoder(artifact, device="cpu", token_budget=8192, kernels="none")) as model:
        together = model.encode(texts)
        alone = np.concatenate([model.encode([text]).dense for text in texts])
    assert (together.n_tokens > LONGEST_MASKED).sum() == 2
    np.testing.assert_array_equal(together.dense, alone)
