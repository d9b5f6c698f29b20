"""Loading and running a model: what it imports, threads, outputs, progress, and arguments out of range."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bgem3.runtime import ArtifactError, BGEM3FlagModel, BGEM3Model
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.heads import Arrays, Output
from bgem3.runtime.packing import PackedBatch

TEXTS = ["What is BM25?", "Bees make honey of the nectar in flowers.", "", "面包 为什么 会 发 起来？"]


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_encoding_and_scoring_load_no_heavy_library(random_artifact: Path) -> None:
    code = f"""
import sys, bgem3.runtime
heavy = ("torch", "transformers", "optimum", "onnx", "pyarrow", "matplotlib")
print([name for name in (*heavy, "huggingface_hub") if name in sys.modules])
with bgem3.runtime.BGEM3Model.load({str(random_artifact)!r}) as model:
    model.score(["a"], ["b"])
print([name for name in heavy if name in sys.modules])
"""
    assert run_python(code).split("\n") == ["[]", "[]"]


def test_importing_the_runtime_takes_less_than_the_libraries_it_needs() -> None:
    code = """
from time import process_time
start = process_time()
import numpy, onnxruntime, scipy.sparse, tokenizers
libraries = process_time()
import bgem3.runtime
print((process_time() - libraries) / (libraries - start))
"""
    assert min(float(run_python(code)) for _ in range(3)) < 1.0  # it is about a third


def test_n_threads_bounds_the_threads_a_model_starts(random_artifact: Path) -> None:
    process = psutil.Process()
    with BGEM3Model.load(random_artifact, "cpu", n_threads=1) as model:
        model.encode(TEXTS)  # starts the tokenizer's own pool, which is shared by all models
        before = process.num_threads()
        for n_threads in (4, 1):
            with BGEM3Model.load(random_artifact, "cpu", n_threads=n_threads) as other:
                other.encode(TEXTS)
                assert process.num_threads() == before + n_threads - 1  # the calling thread is one of them


def test_auto_says_in_the_log_what_it_chose(random_artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bgem3"), BGEM3Model.load(random_artifact) as model:
        assert (model.device, model.precision) == ("cpu", "fp16")
    assert "running on cpu with fp16 weights" in caplog.text


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
    long, exact = "honey " * 500, "honey honey honey"  # three words, five tokens
    found = random_model.encode([long, exact, ""], max_length=5)
    assert found.n_tokens.tolist() == [5, 5, 2]
    assert found.truncated.tolist() == [True, False, False]
    np.testing.assert_allclose(found.dense[0], found.dense[1], atol=1e-5)
    assert random_model.encode([long]).n_tokens.tolist() == [random_model.spec.max_length]
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
    for row, weights in enumerate(found.lexical_weights):
        tokens = found.sparse[[row]].indices
        assert {int(token): weight for token, weight in weights.items()} == {t: found.sparse[row, t] for t in tokens}


def test_a_progress_bar_is_shown_only_if_asked_for(
    random_model: BGEM3Model, capsys: pytest.CaptureFixture[str]
) -> None:
    random_model.encode(TEXTS, show_progress=True)
    assert "4/4" in capsys.readouterr().err
    random_model.encode(TEXTS)
    assert capsys.readouterr().err == ""


OUTPUTS = r"outputs must be one or more of \('dense', 'sparse', 'multivector'\), found "
WHOLE_NUMBER = "max_length must be a whole number.*"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        *(
            ({"max_length": value}, ValueError, f"max_length must be from 2 .* to 128 tokens.*found {value}")
            for value in (-1, 0, 1, 129)
        ),
        *(({"max_length": value}, TypeError, f"{WHOLE_NUMBER}{value!r}") for value in (True, 3.5, "10")),
        *(
            ({"outputs": value}, ValueError, OUTPUTS + repr(value).replace("[", r"\[").replace("]", r"\]"))
            for value in (["dens"], "colbert", [], None, [["dense"]], 3)
        ),
    ],
    ids=str,
)
def test_encode_refuses_arguments_out_of_range(
    random_model: BGEM3Model, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    for texts in (["text"], []):
        with pytest.raises(kind, match=words):
            random_model.encode(texts, **arguments)


@pytest.mark.parametrize("weights", [None, (1, 2), "123", ("a", 1, 1), (0, 0, 0), (float("nan"), 1, 1)], ids=str)
def test_weights_that_give_no_score_are_refused(random_model: BGEM3Model, weights: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: random_model.score(["a"], ["b"], weights),
        lambda: random_model.score_pairs([("a", "b")], weights),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"weights must .*found"):
            call()


def test_weights_may_be_any_three_numbers(random_model: BGEM3Model) -> None:
    expected = random_model.score(["a"], ["b"], (1, 2, 1)).hybrid
    forms: list[Any] = [[1, 2, 1], np.array([1, 2, 1], np.float32), (0.5, 1.0, 0.5)]
    for weights in forms:
        np.testing.assert_allclose(random_model.score(["a"], ["b"], weights).hybrid, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["dense", "sparse", "multivector", "lexical_weights"])
def test_reading_an_output_that_was_not_asked_for_says_how_to_ask(random_model: BGEM3Model, name: str) -> None:
    output = "sparse" if name == "lexical_weights" else name
    found = random_model.encode(["text"], outputs=("dense",) if output != "dense" else ("sparse",))
    with pytest.raises(AttributeError, match=rf"no '{output}'.*not asked for.*outputs=\('{output}', ...\)"):
        getattr(found, name)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        *(
            ({"device": value}, ValueError, f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', found {value!r}")
            for value in ("gpu", "cuda:x", "cuda:-1", "CPU", "", None, 0)
        ),
        *(
            ({name: value}, ValueError, f"{name} must be a whole number of at least 1 or None, found {value!r}")
            for name, value in (("n_threads", 0), ("n_threads", "2"), ("n_threads", True), ("token_budget", 1.5))
        ),
        (
            {"precision": "int4"},
            ArtifactError,
            "no graph for int4 on cpu, it has: fp16 on cpu, fp16 on cuda, fp32 on cpu.*load one of these, or export",
        ),
        ({"precision": 16}, ArtifactError, "no graph for 16 on cpu, it has: fp16"),
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
    for load in (BGEM3Model.load, BGEM3FlagModel):
        with pytest.raises(ImportError, match=r"onnxruntime cannot be imported.*pip install 'bgem3\[cpu\]'"):
            load(random_artifact)
