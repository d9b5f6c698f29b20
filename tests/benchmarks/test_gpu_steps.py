"""`python -m benchmarks gpu`: its steps, tried on the CPU where they can be."""

import json
import os
import re
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, kernels
from bgem3.runtime import BGEM3Model

LINE = b"\x1b[36mOperator=MultiHeadAttention Node=/0 DataType=fp16 SdpaKernel=FLASH_ATTENTION\x1b[0m\n"


def test_flop_equal_a_count_by_hand(random_model: BGEM3Model) -> None:
    spec = replace(random_model.spec, n_layers=2, hidden_size=2, intermediate_size=3, multivector_size=5)
    projections, feed_forward = 4 * (2 * 2), 2 * (2 * 3)  # multiply-adds per token and layer
    attention = (2 + 2) * 2 + (3 + 3) * 3  # two products per pair of tokens, of width 2: texts of 2 and of 3 tokens
    layers = 2 * (2 * (projections + feed_forward) * 5 + 2 * 2 * attention)
    heads = 2 * 2 * 5 + 2 * (2 * 5) * 3  # sparse on 5 tokens, multi-vector on all but each text's CLS
    assert gpu.encoder_flop(np.array([2, 3]), spec) == layers + heads


def test_attention_kernels_are_read_from_what_onnxruntime_prints() -> None:
    model = SimpleNamespace(encode=lambda texts: os.write(1, LINE * len(texts)))  # past Python's standard output
    load: Any = partial(nullcontext, model)
    found = kernels.attention_kernels(load, {16: ["one", "two"]})
    assert found == {"16": {"MultiHeadAttention fp16 FLASH_ATTENTION": 2}}
    with pytest.raises(RuntimeError, match="did not name its attention kernels"):
        kernels.attention_kernels(load, {16: []})
    assert kernels.ATTENTION_LOG not in os.environ


def test_every_step_is_reported_and_a_failed_one_is_the_exit_status(
    random_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "cuda.json"
    command = [str(random_artifact), "--device", "cpu", "--quick", "--output", str(output), "--steps"]
    assert gpu.main([*command, "query", "memory"]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["query"]["bgem3"]["1 x 16 tokens"]["tflop_per_s"] > 0
    assert "PyTorch needs the checkpoint" in report["query"]["PyTorch SDPA"]["error"]
    assert set(report["memory"]["growth_mib"]) == {"peak_resident"}
    assert "Measured: query, memory." in capsys.readouterr().out
    monkeypatch.setattr(gpu.Probe, "query", lambda _: 1 / 0)
    assert gpu.main([*command, "query"]) == 1
    assert "FAILED query: ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"no CUDA provider .*use device='cpu'"),
        (["--device", "cpu", "--steps", "kernels"], "matrix_rate, attention_kernels, kernels need a CUDA device"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_made(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--output", str(tmp_path / "new" / "cuda.json"), *options])
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert list(tmp_path.iterdir()) == []
