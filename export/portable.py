"""The portable graph: the heads over padded texts in standard ONNX operators, traced with optimum.

The weights are traced as inputs of the graph, under their state dict names, so the tracer neither copies nor
serializes them. Afterwards they become initializers, written one by one into an external data file. So memory holds
little more than one copy of the model, and no protobuf message holds a weight.
"""

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from optimum.exporters.onnx.base import OnnxConfig
from optimum.exporters.onnx.convert import export
from optimum.utils import NormalizedTextConfig

from bgem3.export.checkpoint import BGEM3Torch
from bgem3.export.graph import NORM_FLOOR
from bgem3.export.weights import write_weights
from bgem3.runtime.artifact import WEIGHTS_FILE

MODEL_FILE = "model.onnx"
OPSET = 17  # the first with LayerNormalization
AXES = {0: "batch", 1: "sequence"}
DESCRIPTION = (
    "BGE-M3 over padded texts. dense: L2-normalised state of <s>. "
    "sparse: one weight per token, 0 where attention_mask is 0. "
    "multivector: one L2-normalised row per token, zeros where attention_mask is 0; row 0 is <s>, drop it."
)
"""Documentation in the graph; every export writes the same text."""


class PaddedModel(BGEM3Torch):
    """The model over padded texts, with its weights as an argument.

    Its modules are copies, so the original keeps its weights; the tensors themselves are shared. ``weights`` holds them
    by state dict name, linear weights as (in, out) for MatMul.
    """

    def __init__(self, model: BGEM3Torch) -> None:
        copied = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
        super().__init__(copied.backbone, copied.sparse_linear, copied.colbert_linear)
        self.config: Any = self.backbone.config
        self.weights = {name: self._transpose_linear(name, weight) for name, weight in self.state_dict().items()}
        for name in self.weights:
            delattr(*self._locate(name))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, weights: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Compute float32 outputs (B, D), (B, S) and (B, S, M) from int64 inputs (B, S), as `export_portable` says.

        ``weights`` are in the order and layout of ``self.weights``.
        """
        for name, weight in zip(self.weights, weights, strict=True):
            setattr(*self._locate(name), self._transpose_linear(name, weight))
        token_type_ids = torch.zeros_like(input_ids)  # the model's own default would be traced as a constant
        hidden = self.backbone(input_ids, attention_mask, token_type_ids).last_hidden_state  # (B, S, D)
        is_padding = attention_mask == 0
        heads = [_normalize(hidden[:, 0])]
        if self.sparse_linear is not None:
            sparse = torch.relu(self.sparse_linear(hidden))[..., 0]  # (B, S)
            heads.append(sparse.masked_fill(is_padding, 0.0))
        if self.colbert_linear is not None:
            multivector = _normalize(self.colbert_linear(hidden))  # (B, S, M)
            heads.append(multivector.masked_fill(is_padding[..., None], 0.0))
        return tuple(heads)

    def _locate(self, name: str) -> tuple[torch.nn.Module, str]:
        """Return the module that a weight belongs to, and the weight's attribute name there."""
        path, _, attribute = name.rpartition(".")
        return self.get_submodule(path), attribute

    def _transpose_linear(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Transpose a linear layer's weight, and return any other tensor as it is."""
        module, attribute = self._locate(name)
        return weight.t() if isinstance(module, torch.nn.Linear) and attribute == "weight" else weight


class PaddedOnnxConfig(OnnxConfig):  # type: ignore[misc]
    """The names, dynamic axes and example inputs that optimum needs to trace a `PaddedModel`."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig

    def __init__(self, model: PaddedModel) -> None:
        super().__init__(model.config)
        self.weights = model.weights
        self._outputs = model.outputs

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Return the dynamic axes of each input; weights have none."""
        return {"input_ids": AXES, "attention_mask": AXES} | {name: {} for name in self.weights}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Return the dynamic axes of each output."""
        by_output = {"dense": {0: "batch"}, "sparse": AXES, "multivector": AXES}
        return {name: by_output[name] for name in self._outputs}

    def ordered_inputs(self, model: torch.nn.Module) -> dict[str, dict[int, str]]:
        """Return `inputs` unchanged; optimum's method would look for each name among ``forward``'s arguments."""
        return self.inputs

    def generate_dummy_inputs(
        self, framework: str = "pt", **shapes: int
    ) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """Return token ids and a mask, int64 (2, 8), and the weights themselves."""
        input_ids = torch.zeros((2, 8), dtype=torch.int64)
        weights = list(self.weights.values())
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "weights": weights}


def export_portable(model: BGEM3Torch, folder: Path) -> None:
    """Write ``model.onnx`` and its weights file, for any runtime of standard ONNX (opset 17, float32).

    | input or output  | type, shape                  | meaning                                              |
    |------------------|------------------------------|------------------------------------------------------|
    | `input_ids`      | int64 (batch, sequence)      | token ids, with special tokens                       |
    | `attention_mask` | int64 (batch, sequence)      | 1 for the tokens of a text, 0 for padding            |
    | `dense`          | float32 (batch, D)           | L2-normalized state of the first token, ``<s>``      |
    | `sparse`         | float32 (batch, sequence)    | ReLU of the sparse head; 0 at padding                |
    | `multivector`    | float32 (batch, sequence, M) | L2-normalized rows of the colbert head; 0 at padding |

    The caller drops row 0 of `multivector`, ``<s>``, and the sparse weights of special tokens. Position ids follow
    XLM-RoBERTa's rule: a pad id inside a text takes the pad position and is attended to. The graph truncates nothing:
    it fails for a text with more tokens than the model has positions.
    """
    padded = PaddedModel(model)
    traced = _trace(padded)
    folder.mkdir(parents=True, exist_ok=True)
    _attach_weights(traced.graph, padded.weights, folder / WEIGHTS_FILE)
    traced.doc_string = DESCRIPTION
    onnx.save(traced, folder / MODEL_FILE)


def _normalize(rows: torch.Tensor) -> torch.Tensor:
    """Divide each float32 row (..., D) by its L2 norm, or by 1e-12 if that is larger."""
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / norms.clamp_min(NORM_FLOOR)


def _trace(model: PaddedModel) -> onnx.ModelProto:
    """Trace the model with optimum; the graph's inputs include the weights."""
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # a check of padding_idx in torch, the 1.0 in transformers' mask, and torch's TorchScript exporter
        warnings.filterwarnings("ignore", "Converting a tensor to a Python", module="torch.nn.functional")
        warnings.filterwarnings("ignore", "torch.tensor results are registered as constants")
        warnings.simplefilter("ignore", DeprecationWarning)
        path = Path(scratch) / MODEL_FILE
        # optimum's fix of dynamic axes would run the graph, and here every axis has its name already
        export(model, PaddedOnnxConfig(model), path, opset=OPSET, disable_dynamic_axes_fix=True)
        return onnx.load(path)


def _attach_weights(graph: onnx.GraphProto, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Turn the weight inputs that a node reads into initializers, written to ``path``, and drop the others."""
    text_inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(text_inputs)
    names_read = {name for node in graph.node for name in node.input}
    read = ((name, weight.numpy(), np.float32) for name, weight in weights.items() if name in names_read)
    graph.initializer.extend(write_weights(path, read).values())
