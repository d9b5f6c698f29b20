"""Loading and running a model: threads, devices, progress, and what importing costs."""

import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from bgem3.runtime import BGEM3Model
from bgem3.runtime.cpu_session import CpuSession

TEXTS = ["What is BM25?", "Bees make honey of the nectar in flowers.", "", "面包 为什么 会 发 起来？"]


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_runtime_loads_no_torch_transformers_optimum_or_onnx() -> None:
    heavy = "('torch', 'transformers', 'optimum', 'onnx', 'huggingface_hub')"
    assert run_python(f"import bgem3.runtime, sys; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_encoding_and_scoring_load_no_torch_either(random_artifact: Path) -> None:
    code = f"""
import sys
from bgem3.runtime import BGEM3Model
with BGEM3Model.load({str(random_artifact)!r}) as model:
    model.score(["a"], ["b"])
print([m for m in ("torch", "transformers", "optimum", "onnx") if m in sys.modules])
"""
    assert run_python(code).strip() == "[]"


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


def test_many_threads_get_the_same_results_as_one(random_model: BGEM3Model) -> None:
    alone = [random_model.encode([text] * 3) for text in TEXTS]
    start = threading.Barrier(8)

    def encode(i: int) -> list[np.ndarray]:
        start.wait()
        return [random_model.encode([text] * 3, max_length=20 + i).dense for text in TEXTS for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(encode, range(8)):
            for i, dense in enumerate(found):
                np.testing.assert_allclose(dense, alone[i // 5].dense, atol=1e-5)


def test_n_threads_bounds_the_threads_a_model_starts(random_artifact: Path) -> None:
    process = psutil.Process()
    with BGEM3Model.load(random_artifact, "cpu", n_threads=1) as model:
        model.encode(TEXTS)  # starts the tokenizer's own pool, which is shared by all models
        before = process.num_threads()
        with BGEM3Model.load(random_artifact, "cpu", n_threads=4) as wider:
            wider.encode(TEXTS)
            assert process.num_threads() == before + 3  # the calling thread is the fourth
        with BGEM3Model.load(random_artifact, "cpu", n_threads=1) as narrow:
            narrow.encode(TEXTS)
            assert process.num_threads() <= before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU affinity")
def test_the_default_thread_count_is_the_cpus_the_process_may_use() -> None:
    code = """
import os
from bgem3.runtime.cpus import available_cpus
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
print(available_cpus())
"""
    assert run_python(code).strip() == "1"


def test_auto_says_in_the_log_what_it_chose(random_artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bgem3"), BGEM3Model.load(random_artifact) as model:
        assert (model.device, model.precision) == ("cpu", "fp16")
    assert "running on cpu with fp16 weights" in caplog.text


def test_each_text_takes_one_forward_pass_and_each_distinct_text_of_pairs_is_encoded_once(
    random_model: BGEM3Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_texts_run = []
    run = CpuSession.run

    def counting(self: CpuSession, batch, outputs):  # type: ignore[no-untyped-def]
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


def test_results_have_the_documented_types_and_shapes(random_model: BGEM3Model) -> None:
    found = random_model.encode(TEXTS)
    assert found.dense.dtype == found.sparse.dtype == found.multivector[0].dtype == np.float32
    assert found.dense.shape == (len(TEXTS), random_model.spec.hidden_size)
    assert found.sparse.shape == (len(TEXTS), random_model.spec.vocab_size)
    assert [len(vectors) for vectors in found.multivector] == (found.n_tokens - 1).tolist()
    assert found.n_tokens.dtype == np.int32
    assert found.truncated.dtype == np.bool_
    np.testing.assert_allclose(np.linalg.norm(found.dense, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.multivector.packed, axis=1), 1, atol=1e-5)
    for row, weights in enumerate(found.lexical_weights):
        assert {int(token): weight for token, weight in weights.items()} == {
            int(token): found.sparse[row, token] for token in found.sparse[[row]].indices
        }


def test_a_progress_bar_is_shown_only_if_asked_for(
    random_model: BGEM3Model, capsys: pytest.CaptureFixture[str]
) -> None:
    random_model.encode(TEXTS, show_progress=True)
    assert "4/4" in capsys.readouterr().err
    random_model.encode(TEXTS)
    assert capsys.readouterr().err == ""


def test_closing_gives_the_memory_back(random_artifact: Path) -> None:
    model = BGEM3Model.load(random_artifact, "cpu")
    before = psutil.Process().num_threads()
    model.close()
    time.sleep(0.1)
    assert psutil.Process().num_threads() <= before
    model.close()  # twice is harmless
    with pytest.raises(RuntimeError, match="closed"):
        model.encode(TEXTS)
