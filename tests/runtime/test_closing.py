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
from tests.runtime.interrupting import encode_until_closed, in_thread

SECONDS = 60
SHORT = [f"text {i}" for i in range(3)]  # which are coalesced
LONG = [f"text {i} " + "word " * 40 for i in range(40)]  # several micro-batches


def load(folder: Path) -> BGEM3Model:
    return BGEM3Model.load(folder, "cpu", "fp32", n_threads=2, token_budget=200)


@pytest.mark.parametrize("texts", [SHORT, LONG], ids=["short", "long"])
def test_callers_get_their_embeddings_or_hear_that_the_model_is_closed(random_artifact: Path, texts: list[str]) -> None:
    model = load(random_artifact)
    expected = model.encode(texts)
    encode_until_closed(model, texts, lambda found: np.testing.assert_array_equal(found.dense, expected.dense))


def test_a_call_returns_if_the_model_was_closed_during_its_last_micro_batch(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = CpuSession._run, load(random_artifact)

    def run_and_close(self: CpuSession, batch: PackedBatch, outputs: Any) -> Arrays:
        arrays = run(self, batch, outputs)
        in_thread(model.close).result(SECONDS)
        return arrays

    monkeypatch.setattr(CpuSession, "_run", run_and_close)
    assert len(model.encode(["one text"])) == 1
    model = load(random_artifact)
    with pytest.raises(RuntimeError, match=re.escape(CLOSED)):
        model.encode(LONG)


def test_the_sessions_memory_is_released_when_the_last_caller_has_ended(
    random_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(random_artifact)
    assert isinstance(model._session, CpuSession)
    session = weakref.ref(model._session._session)
    n_threads = psutil.Process().num_threads()
    begun, may_end = threading.Event(), threading.Event()

    def wait(self: CpuSession, batch: PackedBatch, outputs: Any) -> Arrays:
        used = self._open_session()
        begun.set()
        assert may_end.wait(SECONDS)
        raise RuntimeError(f"ended {used}")

    monkeypatch.setattr(CpuSession, "_run", wait)
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
    model = load(random_artifact)
    for _ in range(2):
        model.close()
        flag.close()
    calls: list[Callable[[], object]] = [
        lambda: model.encode([]),
        lambda: model.score_pairs([("a", "b")]),
        lambda: flag.encode("a"),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=re.escape(CLOSED)):
            call()
