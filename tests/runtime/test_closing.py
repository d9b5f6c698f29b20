"""Models that are closed, or dropped, while other threads encode."""

import gc
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.runtime import BGEM3Model
from bgem3.runtime.cpu_session import CLOSED, Arrays, CpuSession
from bgem3.runtime.packing import PackedBatch, pack
from tests.runtime.interrupting import in_thread

SECONDS = 60
is_closed = re.escape("this model is closed; load it again with BGEM3Model.load")
TEXTS = {
    "short, which share runs": [f"text {i}" for i in range(3)],
    "of several micro-batches": [f"text {i} " + "word " * 40 for i in range(60)],
}


def load(folder: Path, token_budget: int = 200) -> BGEM3Model:
    return BGEM3Model.load(folder, "cpu", "fp32", n_threads=2, token_budget=token_budget)


def cpu_session(model: BGEM3Model) -> CpuSession:
    assert isinstance(model._session, CpuSession)
    return model._session


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.01, 0.03])
def test_callers_get_their_embeddings_or_hear_that_the_model_is_closed(
    random_artifact: Path, kind: str, delay: float
) -> None:
    texts = TEXTS[kind]
    with load(random_artifact) as model:
        expected = model.encode(texts)
    model = load(random_artifact)
    n_encoded = [0] * 4

    def encode_until_closed(i: int) -> str:
        while True:
            try:
                found = model.encode(texts)
            except RuntimeError as error:
                return str(error)
            np.testing.assert_array_equal(found.dense, expected.dense)
            np.testing.assert_array_equal(found.multivector.packed, expected.multivector.packed)
            n_encoded[i] += 1

    callers = [in_thread(lambda i=i: encode_until_closed(i)) for i in range(4)]  # type: ignore[misc]
    wait_until(lambda: min(n_encoded) > 0)
    time.sleep(delay)
    closers = [in_thread(model.close) for _ in range(2)]
    for closer in closers:
        closer.result(SECONDS)
    assert [caller.result(SECONDS) for caller in callers] == [CLOSED] * 4


def test_a_call_ends_with_the_micro_batch_during_which_the_model_was_closed(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, n_runs = CpuSession._run, 0
    model = load(random_artifact)

    def run_and_close(self: CpuSession, batch: PackedBatch, outputs: Any) -> Arrays:
        nonlocal n_runs
        n_runs += 1
        arrays = run(self, batch, outputs)
        if n_runs == 2:
            in_thread(model.close).result(SECONDS)
        return arrays

    monkeypatch.setattr(CpuSession, "_run", run_and_close)
    with pytest.raises(RuntimeError, match=is_closed):
        model.encode(TEXTS["of several micro-batches"])
    assert n_runs == 3, "the third found the session closed"
    model = load(random_artifact)
    n_runs = 1
    assert len(model.encode(["the only micro-batch is the last one"])) == 1
    with pytest.raises(RuntimeError, match=is_closed):
        model.encode(["another one"])


def test_a_with_block_that_ends_early_closes_the_model_for_other_threads(random_artifact: Path) -> None:
    texts = TEXTS["of several micro-batches"] * 20
    with load(random_artifact) as model:
        begun = threading.Event()

        def some_texts() -> Iterator[str]:
            begun.set()
            yield from texts

        caller = in_thread(lambda: model.encode(some_texts()))
        assert begun.wait(SECONDS)
    with pytest.raises(RuntimeError, match=is_closed):
        caller.result(SECONDS)


def test_the_sessions_memory_is_released_when_the_last_caller_has_ended(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(random_artifact)
    session = weakref.ref(cpu_session(model)._session)
    begun, may_end, run = threading.Event(), threading.Event(), CpuSession._run

    def held_run(self: CpuSession, batch: PackedBatch, outputs: Any) -> Arrays:
        of_session = self._open_session()
        begun.set()
        assert may_end.wait(SECONDS)
        assert of_session is not None
        return run(self, batch, outputs)

    monkeypatch.setattr(CpuSession, "_run", held_run)
    caller = in_thread(lambda: model.encode(["one text"]))
    assert begun.wait(SECONDS)
    model.close()
    assert session() is not None
    may_end.set()
    error = caller.exception(SECONDS)
    assert isinstance(error, RuntimeError)
    del error, caller
    gc.collect()
    assert session() is None


@pytest.mark.parametrize("method", ["score", "score_pairs", "encode"])
def test_every_method_of_a_closed_model_says_so(random_artifact: Path, method: str) -> None:
    model = load(random_artifact)
    for _ in range(3):
        model.close()
    arguments: dict[str, tuple[Any, ...]] = {
        "score": (["a"], ["b"]),
        "score_pairs": ([("a", "b")],),
        "encode": (["a"],),
    }
    with pytest.raises(RuntimeError, match=is_closed):
        getattr(model, method)(*arguments[method])


def test_a_closed_session_says_so_too(random_artifact: Path) -> None:
    model = load(random_artifact)
    session = cpu_session(model)
    batch = pack(model.tokenizer(["text"], 8), np.arange(1), model.spec.pad_id)
    session.close()
    for call in (lambda: session.run(batch, ("dense",)), session.end_profiling):
        with pytest.raises(RuntimeError, match=is_closed):
            call()
