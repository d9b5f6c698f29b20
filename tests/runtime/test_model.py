"""Loading and running a model: what it imports, threads, outputs, progress, and arguments out of range."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tqdm

from bgem3.runtime import ArtifactError, BGEM3Model
from bgem3.runtime import model as model_module
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.heads import Arrays
from bgem3.runtime.manifest import Output
from bgem3.runtime.packing import PackedBatch

TEXTS = ["What is BM25?", "Bees make honey of the nectar in flowers.", "", "面包 为什么 会 发 起来？"]


def test_encoding_and_scoring_load_no_heavy_library(random_artifact: Path) -> None:
    code = f"""
import sys, bgem3.runtime
with bgem3.runtime.BGEM3Model.load({str(random_artifact)!r}) as model:
    model.score(["a"], ["b"])
heavy = ("torch", "transformers", "optimum", "onnx", "pyarrow", "matplotlib", "huggingface_hub")
assert not sys.modules.keys() & set(heavy), sys.modules.keys() & set(heavy)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_n_threads_bounds_the_threads_a_model_starts(random_artifact: Path) -> None:
    process = psutil.Process()
    with BGEM3Model.load(random_artifact, "cpu", n_threads=1) as model:
        model.encode(TEXTS)  # starts the tokenizer's own pool, which is shared by all models
        before = process.num_threads()
        for n_threads in (4, 1):
            with BGEM3Model.load(random_artifact, "cpu", n_threads=n_threads) as other:
                other.encode(TEXTS)
                assert process.num_threads() == before + n_threads - 1  # the calling thread is one of them


def test_each_text_takes_one_forward_pass_and_each_distinct_text_of_pairs_is_encoded_once(
    random_model: BGEM3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, n_texts_run = CpuSession.run, []

    def counting(self: CpuSession, batch: PackedBatch, outputs: tuple[Output, ...]) -> Arrays:
        n_texts_run.append(len(batch.text_index))
        return run(self, batch, outputs)

    monkeypatch.setattr(CpuSession, "run", counting)
    random_model.encode(TEXTS)
    assert sum(n_texts_run) == len(TEXTS)
    n_texts_run.clear()
    random_model.score_pairs([(TEXTS[0], TEXTS[1]), (TEXTS[0], TEXTS[2]), (TEXTS[1], TEXTS[0])])
    assert sum(n_texts_run) == 3


def test_truncation_is_reported_per_text_and_keeps_the_last_token_eos(random_model: BGEM3Model) -> None:
    found = random_model.encode(["honey " * 500, "honey honey honey", ""], max_length=5)
    assert found.n_tokens.tolist() == [5, 5, 2]
    assert found.truncated.tolist() == [True, False, False]
    np.testing.assert_allclose(found.dense[0], found.dense[1], atol=1e-5)
    assert random_model.encode(["text", ""], max_length=2).n_tokens.tolist() == [2, 2]


def test_results_have_the_documented_types_and_shapes(random_model: BGEM3Model) -> None:
    found = random_model.encode(TEXTS)
    assert found.dense.dtype == found.sparse.dtype == found.multivector[0].dtype == np.float32
    assert found.dense.shape == (len(TEXTS), random_model.spec.hidden_size)
    assert found.sparse.shape == (len(TEXTS), random_model.spec.vocab_size)
    assert [len(vectors) for vectors in found.multivector] == (found.n_tokens - 1).tolist()
    assert found.n_tokens.dtype == np.int32
    assert found.truncated.dtype == np.bool_
    for vectors in (found.dense, found.multivector.packed):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_progress_bar_is_built_only_if_asked_for(
    random_model: BGEM3Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt can leave a progress bar's lock taken for every thread."""
    random_model.encode(TEXTS, show_progress=True)
    assert "4/4" in capsys.readouterr().err
    monkeypatch.setattr(model_module, "tqdm", None)
    monkeypatch.setattr(tqdm.tqdm, "__new__", None)
    random_model.score(["one"], ["two"])


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"max_length": 1}, ValueError, "max_length must be from 2 .* to 128 tokens.*found 1"),
        ({"max_length": 129}, ValueError, "max_length must be from 2 .* to 128 tokens.*found 129"),
        ({"max_length": True}, TypeError, "max_length must be a whole number.*True"),
        ({"max_length": 3.5}, TypeError, "max_length must be a whole number.*3.5"),
        ({"outputs": ["dens"]}, ValueError, r"outputs must be one or more of .*multivector'\), found \['dens'\]"),
        ({"outputs": []}, ValueError, "outputs must be one or more of"),
        ({"outputs": 3}, ValueError, "outputs must be one or more of"),
    ],
    ids=str,
)
def test_encode_refuses_arguments_out_of_range(
    random_model: BGEM3Model, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    for texts in (["text"], []):
        with pytest.raises(kind, match=words):
            random_model.encode(texts, **arguments)


@pytest.mark.parametrize("weights", [(1, 2), ("a", 1, 1), (0, 0, 0), (float("nan"), 1, 1)], ids=str)
def test_weights_that_give_no_score_are_refused(random_model: BGEM3Model, weights: Any) -> None:
    with pytest.raises(ValueError, match=r"weights must .*found"):
        random_model.score(["a"], ["b"], weights)
    with pytest.raises(ValueError, match=r"weights must .*found"):
        random_model.score_pairs([("a", "b")], weights)


@pytest.mark.parametrize("name", ["dense", "sparse", "multivector"])
def test_reading_an_output_that_was_not_asked_for_says_how_to_ask(random_model: BGEM3Model, name: str) -> None:
    found = random_model.encode(["text"], outputs=("dense",) if name != "dense" else ("sparse",))
    with pytest.raises(AttributeError, match=rf"no '{name}'.*not asked for.*outputs=\('{name}', ...\)"):
        getattr(found, name)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"device": "cuda:x"}, ValueError, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', found 'cuda:x'"),
        ({"device": None}, ValueError, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', found None"),
        ({"n_threads": 0}, ValueError, "n_threads must be a whole number of at least 1 or None, found 0"),
        ({"token_budget": 1.5}, ValueError, "token_budget must be a whole number of at least 1 or None, found 1.5"),
        ({"device_memory_limit": True}, ValueError, "device_memory_limit must be a whole number .*found True"),
        ({"device_memory_limit": 9}, ValueError, "device_memory_limit is for CUDA, .*device='cpu'; leave it out"),
        ({"cuda_graphs": True}, ValueError, "cuda_graphs is for CUDA, found it with device='cpu'; leave it out"),
        ({"precision": 16}, ArtifactError, "no graph for 16 on cpu, it has: fp16 on cpu, fp16 on cuda.*load one of"),
    ],
    ids=str,
)
def test_load_refuses_arguments_that_it_cannot_meet(
    random_artifact: Path, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        BGEM3Model.load(random_artifact, **({"device": "cpu"} | arguments))


def test_without_onnxruntime_the_message_says_what_to_install(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime cannot be imported.*pip install 'bgem3\[cpu\]'"):
        BGEM3Model.load(random_artifact)
