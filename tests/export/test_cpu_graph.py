"""The CPU graph: its weights, how it attends, and the rows that each head costs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from bgem3.runtime import BGEM3Model
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import LONGEST_MASKED
from bgem3.runtime.heads import OUTPUTS, head_rows, output_rows
from bgem3.runtime.manifest import Output
from bgem3.runtime.packing import cpu_layout, pack
from bgem3.runtime.tokenizer import TextTokenizer

TEXTS = ["What is BM25?", "BM25 is a bag-of-words retrieval function that ranks documents.", ""]
LONG = "honey " * LONGEST_MASKED
N_LAYERS = 3


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """List a graph's nodes and those of its branches."""
    branches = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*graph.node, *(node for branch in branches for node in all_nodes(branch))]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_every_weight_lies_aligned_in_the_one_file_that_all_graphs_share(random_artifact: Path, precision: str) -> None:
    stored = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    places = []
    for graph in ("cpu", "cuda", "native"):
        model = onnx.load(random_artifact / precision / f"{graph}.onnx", load_external_data=False)
        external = [tensor for tensor in model.graph.initializer if tensor.external_data]
        assert {tensor.data_type for tensor in external} == {stored}
        assert all(tensor.ByteSize() < 100 for tensor in model.graph.initializer if not tensor.external_data)
        places.append({tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in external})
    assert places[0] == places[1] == places[2]
    assert {place["location"] for place in places[0].values()} == {"weights.bin"}
    assert all(int(place["offset"]) % 64 == 0 for place in places[0].values())
    end = max(int(place["offset"]) + int(place["length"]) for place in places[0].values())
    assert end == (random_artifact / precision / "weights.bin").stat().st_size


def rows_by_node(artifact: Path, outputs: tuple[Output, ...], folder: Path, texts: list[str] = TEXTS) -> dict[str, int]:
    """Profile one run; return the rows of each operator's output, by the name of its node."""
    spec = read_artifact(artifact).spec
    tokenized = TextTokenizer(artifact / "tokenizer.json", spec)(texts, spec.max_length)
    batch = pack(tokenized, np.arange(len(texts)), spec.pad_id)
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


@pytest.fixture(scope="module")
def long_artifact(
    demo_checkpoint: Path,
    make_random_checkpoint: Callable[..., Path],
    export_to_folder: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A small model for texts that are too long to attend with a mask."""
    dimensions = {"hidden": 32, "layers": N_LAYERS, "heads": 2, "intermediate": 32, "max_length": LONGEST_MASKED + 50}
    folder = tmp_path_factory.mktemp("long")
    return export_to_folder(make_random_checkpoint(demo_checkpoint / "tokenizer.json", folder, **dimensions), "fp32")


@pytest.mark.parametrize(
    ("texts", "is_masked"),
    [(TEXTS, True), (TEXTS[:1], True), ([TEXTS[0]] * 3, True), ([LONG], False), ([LONG] * 2, False)],
    ids=["mixed", "one", "equal", "long", "long_equal"],
)
def test_a_texts_length_alone_decides_how_it_attends(
    long_artifact: Path, tmp_path: Path, texts: list[str], is_masked: bool
) -> None:
    ran = rows_by_node(long_artifact, OUTPUTS, tmp_path, texts)
    model = onnx.load(long_artifact / "fp32/cpu.onnx", load_external_data=False)
    attention = {node.name: "key_mask" in node.input for node in all_nodes(model.graph) if "Head" in node.op_type}
    assert [masked for name, masked in attention.items() if name in ran] == [is_masked] * N_LAYERS


def test_long_texts_of_several_lengths_never_share_a_micro_batch(long_artifact: Path) -> None:
    texts = [LONG, "honey " * (LONGEST_MASKED + 20), TEXTS[0], "honey " * (LONGEST_MASKED - 20)]
    with BGEM3Model.load(long_artifact, "cpu", token_budget=8192) as model:
        together = model.encode(texts)
        alone = np.concatenate([model.encode([text]).dense for text in texts])
    assert (together.n_tokens > LONGEST_MASKED).sum() == 2
    np.testing.assert_allclose(together.dense, alone, atol=1e-6)
