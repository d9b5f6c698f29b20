"""The portable artifact: the three heads over padded texts, in standard ONNX operators, traced with optimum.

The weights are traced as *inputs* of the graph, under their state dict names, so the tracer neither copies
nor serialises them. They become initializers afterwards, streamed tensor by tensor into one external data
file: memory stays close to one copy of the model, and no protobuf holds a weight.
"""

import copy
import math
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
from bgem3.export.weights import WeightsFile
from bgem3.runtime.artifact import WEIGHTS_FILE

MODEL_FILE = "model.onnx"
OPSET = 17  # the first with LayerNormalization
MAX_CONSTANT_SIZE = 8  # elements; the tracer's own constants are scalars, axes and shapes
NORM_FLOOR = 1e-12  # torch.nn.functional.normalize's eps
DESCRIPTION = (
    "BGE-M3 over padded texts. dense: L2-normalised state of <s>. "
    "sparse: one weight per token, 0 where attention_mask is 0. "
    "multivector: one L2-normalised row per token, zeros where attention_mask is 0; row 0 is <s>, drop it."
)


class PaddedModel(torch.nn.Module):
    """The backbone and the heads that a checkpoint has over padded texts, with the weights as an argument.

    Shapes: B texts, S tokens of the longest one, D dimensions of a state, M of a multi-vector row.

    Parameters
    ----------
    model : BGEM3Torch
        As `export_portable` takes it. Its modules are copied, its weights are shared; it is left as it was.

    Attributes
    ----------
    outputs : tuple of str
        What it gives, in order: the outputs of ``model``.
    weights : dict of str to torch.Tensor
        By state dict name, in the layout of the graph: those of linear layers are (in, out), for MatMul.
    """

    def __init__(self, model: BGEM3Torch) -> None:
        super().__init__()
        copied = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
        self.outputs = copied.outputs
        self.backbone = copied.backbone
        self.sparse_linear = copied.sparse_linear
        self.colbert_linear = copied.colbert_linear
        self.config: Any = self.backbone.config
        self.weights = {name: self._turn(name, weight) for name, weight in self.state_dict().items()}
        for name in self.weights:
            module, leaf = self._locate(name)
            delattr(module, leaf)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, weights: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Compute the heads that there are.

        Parameters
        ----------
        input_ids : torch.Tensor
            int64 (B, S).
        attention_mask : torch.Tensor
            int64 (B, S), 1 for the tokens of a text and 0 for padding.
        weights : list of torch.Tensor
            float32, in the order and layout of ``self.weights``.

        Returns
        -------
        tuple of torch.Tensor
            ``outputs`` in their order: dense (B, D), sparse (B, S) and multivector (B, S, M), all float32.
        """
        for name, weight in zip(self.weights, weights, strict=True):
            module, leaf = self._locate(name)
            setattr(module, leaf, self._turn(name, weight))
        token_type_ids = torch.zeros_like(input_ids)  # the model's own default would be traced as a constant
        hidden = self.backbone(input_ids, attention_mask, token_type_ids).last_hidden_state  # (B, S, D)
        is_padding = attention_mask == 0
        heads = [_normalise(hidden[:, 0])]
        if self.sparse_linear is not None:
            sparse = torch.relu(self.sparse_linear(hidden))[..., 0]  # (B, S)
            heads.append(sparse.masked_fill(is_padding, 0.0))
        if self.colbert_linear is not None:
            multivector = _normalise(self.colbert_linear(hidden))  # (B, S, M)
            heads.append(multivector.masked_fill(is_padding[..., None], 0.0))
        return tuple(heads)

    def _locate(self, name: str) -> tuple[torch.nn.Module, str]:
        """Return the module that holds a weight, and the weight's name there."""
        path, _, leaf = name.rpartition(".")
        return self.get_submodule(path), leaf

    def _turn(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Turn a linear layer's weight from (out, in) to (in, out) or back; leave any other as it is."""
        module, leaf = self._locate(name)
        return weight.t() if isinstance(module, torch.nn.Linear) and leaf == "weight" else weight


class PaddedOnnxConfig(OnnxConfig):  # type: ignore[misc]
    """What optimum asks about `PaddedModel`: names, dynamic axes and an example."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig

    def __init__(self, model: PaddedModel) -> None:
        super().__init__(model.config)
        self.weights = model.weights
        self._outputs = model.outputs

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Dynamic axes by input; the weights have none."""
        axes = {0: "batch", 1: "sequence"}
        return {"input_ids": axes, "attention_mask": axes} | {name: {} for name in self.weights}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Dynamic axes by output."""
        axes = {0: "batch", 1: "sequence"}
        by_output = {"dense": {0: "batch"}, "sparse": axes, "multivector": axes}
        return {name: by_output[name] for name in self._outputs}

    def ordered_inputs(self, model: torch.nn.Module) -> dict[str, dict[int, str]]:
        """Return `inputs`: by itself, optimum would seek each name among the arguments of ``forward``."""
        return self.inputs

    def generate_dummy_inputs(
        self, framework: str = "pt", **shapes: int
    ) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """Return an example: token ids and mask as int64 (2, 8), and the weights themselves."""
        input_ids = torch.zeros((2, 8), dtype=torch.int64)
        weights = list(self.weights.values())
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "weights": weights}


def export_portable(model: BGEM3Torch, folder: Path) -> None:
    """Write ``model.onnx`` and its ``weights.bin``, for any runtime of standard ONNX (opset 17, float32).

    | input            | type, shape                  | meaning                                              |
    |------------------|------------------------------|------------------------------------------------------|
    | `input_ids`      | int64 (batch, sequence)      | token ids, special tokens included                   |
    | `attention_mask` | int64 (batch, sequence)      | 1 for the tokens of a text, 0 for padding            |

    | output           | type, shape                  | meaning                                              |
    |------------------|------------------------------|------------------------------------------------------|
    | `dense`          | float32 (batch, D)           | L2-normalised state of the first token, ``<s>``      |
    | `sparse`         | float32 (batch, sequence)    | ReLU of the sparse head; 0 at padding                |
    | `multivector`    | float32 (batch, sequence, M) | L2-normalised colbert head, row by row; 0 at padding |

    Row 0 of `multivector` is ``<s>``, for the caller to drop; likewise the sparse weights of special tokens.
    Position ids follow XLM-RoBERTa's rule from `input_ids`: a pad id inside a text takes the pad position and
    is attended to. Nothing is truncated: a text with more tokens than the model has positions for fails.

    Parameters
    ----------
    model : BGEM3Torch
        Traced in evaluation mode, and left as it was.
    folder : pathlib.Path
        Made if missing; files of the same names in it are overwritten.

    Raises
    ------
    RuntimeError
        If the traced graph holds a tensor of the model that is not in its state dict.
    """
    padded = PaddedModel(model)
    traced = _trace(padded)
    _check_constants(traced.graph)
    folder.mkdir(parents=True, exist_ok=True)
    _attach_weights(traced.graph, padded.weights, folder / WEIGHTS_FILE)
    traced.doc_string = DESCRIPTION
    onnx.save(traced, folder / MODEL_FILE)


def _normalise(rows: torch.Tensor) -> torch.Tensor:
    """Divide each row of a float32 (..., D) tensor by its L2 norm, or by 1e-12 if that is larger."""
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / norms.clamp_min(NORM_FLOOR)


def _trace(model: PaddedModel) -> onnx.ModelProto:
    """Trace the model with optimum; its weights are inputs of the graph."""
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # a check of padding_idx in torch; the 1.0 in transformers' mask; torch's TorchScript exporter
        warnings.filterwarnings("ignore", "Converting a tensor to a Python", module="torch.nn.functional")
        warnings.filterwarnings("ignore", "torch.tensor results are registered as constants")
        warnings.simplefilter("ignore", DeprecationWarning)
        path = Path(scratch) / MODEL_FILE
        # optimum's fix of dynamic axes would run the graph; all of ours are named
        export(model, PaddedOnnxConfig(model), path, opset=OPSET, disable_dynamic_axes_fix=True)
        return onnx.load(path)


def _check_constants(graph: onnx.GraphProto) -> None:
    """Raise RuntimeError if a tensor of the model became a constant of the graph."""
    names = [tensor.name for tensor in graph.initializer]
    for node in graph.node:
        names += [node.name for value in node.attribute if math.prod(value.t.dims) > MAX_CONSTANT_SIZE]
    if names:
        raise RuntimeError(
            f"the traced graph holds tensors that are not in the model's state dict: {', '.join(names)}; "
            "register them as parameters or persistent buffers"
        )


def _attach_weights(graph: onnx.GraphProto, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Turn the graph's weight inputs into initializers; those that a node reads are written to ``path``."""
    text_inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(text_inputs)
    names_read = {name for node in graph.node for name in node.input}
    with WeightsFile(path, np.float32) as file:
        for name in [name for name in weights if name in names_read]:
            file.write(name, weights[name].numpy())
            graph.initializer.append(file.initializer(name))
