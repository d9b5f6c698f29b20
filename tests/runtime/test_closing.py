"""Models that are closed, or dropped, while other threads encode."""

import gc
import re
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bgem3.runtime import BGEM3FlagModel, BGEM3Model
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.encoder_session import CLOSED
from bgem3.runtime.heads import Arrays
from bgem3.runtime.packing import PackedBatch
from tests.runtime.interrupting import in_thread

SECONDS = 60
is_closed = re.escape("this model is closed; load it again with BGEM3Model.load")
SHORT = [f"text {i}" for i in range(3)]  # which are coalesced
LONG = [f"text {i} " + "word " * 40 for i in range(60)]  # several micro-batches


def load(folder: Path) -> BGEM3Model:
    return BGEM3Model.load(folder, "cpu", "fp32", n_threads=2, token_budget=200)


@pytest.mark.parametrize("texts", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.03])
def test_callers_get_their_embeddings_or_hear_that_the_model_is_closed(
    random_artifact: Path, texts: list[str], delay: float
) -> None:
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
    deadline = time.monotonic() + SECONDS
    while min(n_encoded) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    for closer in [in_thread(model.close) for _ in range(2)]:
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
        model.encode(LONG)
    assert n_runs == 3, "the third found the session closed"
    model = load(random_artifact)
    n_runs = 1
    assert len(model.encode(["the only micro-batch is the last one"])) == 1


def test_the_sessions_memory_is_released_when_the_last_caller_has_ended(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(random_artifact)
    assert isinstance(model._session, CpuSession)
    session = weakref.ref(model._session._session)
    n_threads = psutil.Process().num_threads()
    begun, may_end, run = threading.Event(), threading.Event(), CpuSession._run

    def delayed_run(self: CpuSession, batch: PackedBatch, outputs: Any) -> Arrays:
        used = self._open_session()
        begun.set()
        assert may_end.wait(SECONDS)
        assert used is not None
        return run(self, batch, outputs)

    monkeypatch.setattr(CpuSession, "_run", delayed_run)
    caller = in_thread(lambda: model.encode(["one text"]))
    assert begun.wait(SECONDS)
    model.close()
    assert session() is not None
    may_end.set()
    assert isinstance(caller.exception(SECONDS), RuntimeError)
    del caller
    gc.collect()
    assert session() is None
    time.sleep(0.1)
    assert psutil.Process().num_threads() < n_threads


def test_every_method_of_a_closed_model_says_so(random_artifact: Path) -> None:
    flag = BGEM3FlagModel(random_artifact, devices="cpu")
    with load(random_artifact) as model:
        session = model._session
    for _ in range(2):
        model.close()
        flag.close()
    assert isinstance(session, CpuSession)
    calls: list[Callable[[], object]] = [
        lambda: model.encode(["a"]),
        lambda: model.encode([]),
        lambda: model.score(["a"], ["b"]),
        lambda: model.score_pairs([("a", "b")]),
        lambda: flag.encode("a"),
        lambda: flag.compute_score(("a", "b")),
        session.end_profiling,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="model is closed; load it again"):
            call()
