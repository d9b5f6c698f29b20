"""`python -m benchmarks gpu`: its steps, tried on the CPU where they can be."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, kernels
from bgem3.runtime import BGEM3Model

LINE = "\x1b[36mOperator={} Node=/0 DataType=fp16 SdpaKernel={}\x1b[0m\n"


def test_flop_equal_a_count_by_hand(random_model: BGEM3Model) -> None:
    spec = replace(random_model.spec, n_layers=2, hidden_size=2, intermediate_size=3, multivector_size=5)
    projections, feed_forward = 4 * (2 * 2), 2 * (2 * 3)  # multiply-adds per token and layer
    attention = (2 + 2) * 2 + (3 + 3) * 3  # two products per pair of tokens, of width 2: texts of 2 and of 3 tokens
    layers = 2 * (2 * (projections + feed_forward) * 5 + 2 * 2 * attention)
    heads = 2 * 2 * 5 + 2 * (2 * 5) * 3  # sparse on 5 tokens, multi-vector on those that are not CLS
    assert gpu.encoder_flop(np.array([2, 3]), spec) == layers + heads


class PrintingModel:
    """Prints what ONNX Runtime prints, past Python's standard output."""

    def __enter__(self) -> "PrintingModel":
        assert os.environ[kernels.ATTENTION_LOG] == "1"
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def encode(self, texts: list[str]) -> None:
        os.write(1, b"".join(text.encode() for text in texts))


def test_attention_kernels_are_read_from_what_onnxruntime_prints() -> None:
    packed = LINE.format("PackedMultiHeadAttention", "FLASH_ATTENTION")
    load: Any = PrintingModel
    found = kernels.attention_kernels(load, {16: [packed, packed], 512: [LINE.format("MultiHeadAttention", "MATH")]})
    assert found["16"] == {"PackedMultiHeadAttention fp16 FLASH_ATTENTION": 2}
    assert found["512"] == {"MultiHeadAttention fp16 MATH": 1}
    with pytest.raises(RuntimeError, match="did not name its attention kernels"):
        kernels.attention_kernels(load, {16: [packed], 128: ["nothing"]})
    assert kernels.ATTENTION_LOG not in os.environ


def test_every_step_is_reported_and_a_failed_one_is_the_exit_status(
    random_artifact: Path, random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "cuda.json"
    command = [str(random_artifact), "--checkpoint", str(random_checkpoint), "--device", "cpu", "--quick"]
    command += ["--output", str(output), "--steps"]
    assert gpu.main([*command, "threads", "query", "memory"]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["threads"]["max_difference"] <= gpu.MAX_DIFFERENCE
    assert {name for name, found in report["query"].items() if "1 x 16 tokens" in found} == {"bgem3", *gpu.TORCH}
    assert set(report["memory"]["growth_mib"]) == {"peak_resident"}
    assert "PyTorch SDPA" in capsys.readouterr().out
    assert gpu.main([*command, "kernels"]) == 1
    assert "FAILED kernels: ValueError: only a CUDA device" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_found_out_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no CUDA provider .*use device='cpu'"):
        gpu.main(["--output", str(tmp_path / "new" / "cuda.json")])
    assert list(tmp_path.iterdir()) == []
