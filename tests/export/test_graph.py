"""The CPU graph: its operators, what each head costs, and models of other dimensions."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from bgem3.export import export_model
from bgem3.export.cpu_graph import INPUTS
from bgem3.runtime import BGEM3Model
from bgem3.runtime.artifact import read_artifact
from bgem3.runtime.cpu_session import LONGEST_MASKED, OUTPUTS, Output, head_rows
from bgem3.runtime.packing import cpu_layout, pack
from bgem3.runtime.tokenizer import TextTokenizer

TEXTS = ["What is BM25?", "BM25 is a bag-of-words retrieval function that ranks documents.", ""]


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """List a graph's nodes and those of its branches."""
    branches = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*graph.node, *(node for branch in branches for node in all_nodes(branch))]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_cpu_graph_has_the_operators_it_was_designed_with(random_artifact: Path, precision: str) -> None:
    model = onnx.load(random_artifact / precision / "cpu.onnx", load_external_data=False)
    n_layers = 3
    counts = Counter(node.op_type for node in all_nodes(model.graph))
    assert counts["Gemm"] == 6 * n_layers + 2
    assert counts["LayerNormalization"] == 2 * n_layers + 1
    assert counts["Gelu"] == n_layers
    assert counts["If"] == n_layers
    assert counts["MultiHeadAttention"] == 2 * n_layers
    assert counts["Cast"] == (len(model.graph.initializer) - 5 if precision == "fp16" else 0)
    masked = [node for node in all_nodes(model.graph) if "key_mask" in node.input]
    assert len(masked) == n_layers
    assert {value.name: value.type.tensor_type.elem_type for value in model.graph.input} == {
        name: kind for name, (kind, _) in INPUTS.items()
    }
    assert [value.name for value in model.graph.output] == list(OUTPUTS)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_every_weight_lies_aligned_in_the_one_weights_file(random_artifact: Path, precision: str) -> None:
    model = onnx.load(random_artifact / precision / "cpu.onnx", load_external_data=False)
    stored = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    end = 0
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            assert tensor.ByteSize() < 100, f"{tensor.name} is kept in the graph file"
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert tensor.data_type == stored
        assert where["location"] == "weights.bin"
        assert int(where["offset"]) % 64 == 0
        end = max(end, int(where["offset"]) + int(where["length"]))
    assert end == (random_artifact / precision / "weights.bin").stat().st_size


def rows_by_node(artifact: Path, outputs: tuple[Output, ...], folder: Path) -> dict[str, list[list[int]]]:
    """Profile one run and return each operator's output shapes, by the name its node has in the graph."""
    read = read_artifact(artifact)
    batch = pack(
        TextTokenizer(artifact / "tokenizer.json", read.spec)(TEXTS, read.spec.max_length), np.arange(len(TEXTS)), 1
    )
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keeps the nodes' names
    session = onnxruntime.InferenceSession(artifact / "fp32/cpu.onnx", options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = vars(batch) | cpu_layout(batch.cu_seqlens) | head_rows(batch.cu_seqlens, outputs)
    session.run(list(outputs), {value.name: feeds[value.name] for value in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    return {
        event["name"].removesuffix("_kernel_time"): [
            shape for value in event["args"]["output_type_shape"] for shape in value.values()
        ]
        for event in kernels
    }


def test_a_head_not_asked_for_works_on_no_rows(random_artifact: Path, tmp_path: Path) -> None:
    n_rows_by_output: dict[str, int] = {}
    for output in OUTPUTS:
        shapes = rows_by_node(random_artifact, (output,), tmp_path)
        for name in OUTPUTS:
            n_rows_by_output[f"{name} when {output} is asked for"] = shapes[name][0][0]
    n_texts = len(TEXTS)
    n_tokens = int(BGEM3Model.load(random_artifact, "cpu").encode(TEXTS).n_tokens.sum())
    expected = {"dense": n_texts, "sparse": n_tokens, "multivector": n_tokens - n_texts}
    for output in OUTPUTS:
        for name in OUTPUTS:
            found = n_rows_by_output[f"{name} when {output} is asked for"]
            assert found == (expected[name] if name == output else 0)


def test_dense_alone_runs_the_last_feed_forward_block_on_cls_rows_only(random_artifact: Path, tmp_path: Path) -> None:
    model = onnx.load(random_artifact / "fp32/cpu.onnx", load_external_data=False)
    gelus = [node.name for node in model.graph.node if node.op_type == "Gelu"]
    alone = rows_by_node(random_artifact, ("dense",), tmp_path)
    together = rows_by_node(random_artifact, OUTPUTS, tmp_path)
    n_tokens = together[gelus[0]][0][0]
    assert [alone[name][0][0] for name in gelus] == [n_tokens, n_tokens, len(TEXTS)]
    assert [together[name][0][0] for name in gelus] == [n_tokens] * 3


@pytest.fixture(scope="module")
def long_artifact(
    demo_checkpoint: Path, make_random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small model of 3 layers that takes texts longer than those that attend with a mask."""
    folder = tmp_path_factory.mktemp("long")
    dimensions = {"hidden": 32, "layers": 3, "heads": 2, "intermediate": 32, "max_length": LONGEST_MASKED + 50}
    checkpoint = make_random_checkpoint(demo_checkpoint / "tokenizer.json", folder / "checkpoint", **dimensions)
    export_model(checkpoint, folder / "artifact", "fp32")
    return folder / "artifact"


LONG = "honey " * LONGEST_MASKED


@pytest.mark.parametrize(
    ("texts", "is_masked"),
    [(TEXTS, True), (TEXTS[:1], True), ([TEXTS[0]] * 3, True), ([LONG], False), ([LONG] * 2, False)],
    ids=["mixed", "one", "equal", "long", "long equal"],
)
def test_a_texts_length_alone_decides_how_it_attends(
    long_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], is_masked: bool
) -> None:
    monkeypatch.setitem(globals(), "TEXTS", texts)
    ran = rows_by_node(long_artifact, OUTPUTS, tmp_path)
    model = onnx.load(long_artifact / "fp32/cpu.onnx", load_external_data=False)
    attention = {node.name: "key_mask" in node.input for node in all_nodes(model.graph) if "Head" in node.op_type}
    assert [masked for name, masked in attention.items() if name in ran] == [is_masked] * 3


def test_long_texts_of_several_lengths_never_share_a_micro_batch(long_artifact: Path) -> None:
    with BGEM3Model.load(long_artifact, "cpu", token_budget=8192) as model:
        texts = [LONG, "honey " * (LONGEST_MASKED + 20), TEXTS[0], "honey " * (LONGEST_MASKED - 20)]
        together = model.encode(texts)
        assert (together.n_tokens > LONGEST_MASKED).sum() == 2
        for i, text in enumerate(texts):
            np.testing.assert_allclose(model.encode([text]).dense[0], together.dense[i], atol=1e-6)


def test_a_model_of_other_dimensions_and_special_ids_exports_with_parity(
    demo_checkpoint: Path, make_random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Nothing of BGE-M3's size is assumed: odd widths, one layer, a narrow colbert head, shuffled special ids."""
    tokenizer = json.loads((demo_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    new_id = {0: 5, 5: 0, 1: 7, 7: 1, 2: 9, 9: 2, 3: 4, 4: 3}
    order = [new_id.get(i, i) for i in range(len(vocabulary))]
    tokenizer["model"]["vocab"] = [vocabulary[i] for i in order]
    tokenizer["model"]["unk_id"] = 4
    for token in tokenizer["added_tokens"]:
        token["id"] = new_id.get(token["id"], token["id"])
    for special in tokenizer["post_processor"]["special_tokens"].values():
        special["ids"] = [new_id[i] for i in special["ids"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    checkpoint = make_random_checkpoint(
        tmp_path / "tokenizer.json",
        tmp_path / "checkpoint",
        hidden=60,
        layers=1,
        heads=5,
        intermediate=84,
        max_length=50,
        weight_std=0.1,
        multivector=24,
    )
    manifest = export_model(checkpoint, tmp_path / "artifact", ("fp32", "fp16"), portable=True)
    spec = manifest["model"]
    assert (spec["cls_id"], spec["pad_id"], spec["eos_id"], spec["unk_id"]) == (5, 7, 9, 4)
    assert (spec["hidden_size"], spec["multivector_size"], spec["max_length"]) == (60, 24, 50)
    assert manifest["parity"]["fp32/cpu.onnx"]["dense_max_difference"] < 1e-6
    assert not any(report["missed"] for report in manifest["parity"].values())
    with BGEM3Model.load(tmp_path / "artifact", "cpu", "fp32") as model:
        assert model.encode(["BM25"]).multivector[0].shape[1] == 24
