"""The same checkpoint run by PyTorch over packed tokens, so that no work is padding; measured beside the CUDA graphs.

All three heads in one pass; a batch's outputs come to the host in one transfer. It does a little less than bgem3: a
token's weights are not merged over its occurrences.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import gelu, linear, normalize, relu, scaled_dot_product_attention

from bgem3.export.checkpoint import BGEM3Torch, Checkpoint
from bgem3.runtime.heads import OUTPUTS, Output
from bgem3.runtime.packing import PackedBatch, pack, plan_batches
from bgem3.runtime.tokenizer import TextTokenizer

TOKEN_BUDGET = 16384  # of a packed micro-batch
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Outputs for N texts, in the order they were given; None where not asked for.

    Attributes
    ----------
    dense : (N, D) float array
    lexical : every token's weight, N float arrays (tokens_i,), special tokens included
    multivector : N float arrays (tokens_i - 1, M)
    """

    dense: NDArray[np.floating] | None = None
    lexical: Sequence[Any] | None = None
    multivector: Sequence[NDArray[np.floating]] | None = None


class TorchPacked:
    """A short encoder of our own over packed tokens; outputs are float32.

    Attention is `torch.nn.attention.varlen.varlen_attn` on CUDA, which is flash attention, and
    `scaled_dot_product_attention` text by text on CPU.

    Parameters
    ----------
    checkpoint : from `bgem3.export.checkpoint.load_checkpoint`; it is copied, not changed
    device, dtype : where it runs and what it computes in
    token_budget : most tokens in one micro-batch; a longer text runs alone

    Raises
    ------
    ImportError, ValueError
        On CUDA, if this PyTorch has no attention over packed tokens, or ``dtype`` is not a half precision.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: str, dtype: torch.dtype, token_budget: int = TOKEN_BUDGET
    ) -> None:
        self._attend = _import_varlen(dtype) if device.startswith("cuda") else _attend_text_by_text
        self._model = _placed(checkpoint.model, device, dtype)
        self._spec = checkpoint.spec
        self._tokenize = TextTokenizer(checkpoint.folder / "tokenizer.json", checkpoint.spec)
        self._token_budget = token_budget
        self._layers: list[Any] = list(self._model.backbone.encoder.layer)
        self._qkv = [_fused_qkv(layer.attention.self) for layer in self._layers]

    def __call__(self, texts: list[str], outputs: Sequence[Output] = OUTPUTS) -> Encoded:
        """Encode texts under the token budget."""
        tokens = self._tokenize(texts, self._spec.max_length)
        found: dict[Output, dict[int, Any]] = {name: {} for name in outputs}
        with torch.inference_mode():
            for index in plan_batches(tokens.lengths, self._token_budget, lambda longest: len(texts)):
                batch = pack(tokens, index, self._spec.pad_id)
                for name, values in _heads(self._model, self._states(batch), batch.cu_seqlens, outputs).items():
                    found[name] |= zip(batch.text_index.tolist(), values, strict=True)
        in_order = {name: [values for _, values in sorted(by_text.items())] for name, by_text in found.items()}
        dense = np.concatenate(in_order["dense"]) if "dense" in outputs else None
        return Encoded(dense=dense, lexical=in_order.get("sparse"), multivector=in_order.get("multivector"))

    def _states(self, batch: PackedBatch) -> torch.Tensor:
        """Return the last hidden states of the tokens, (T, D)."""
        embeddings: Any = self._model.backbone.embeddings
        device = self._model.backbone.device
        cu_seqlens = batch.cu_seqlens.astype(np.int32)
        ids, place, cu = (_on(device, values) for values in (batch.token_ids, batch.position_ids, cu_seqlens))
        longest = int(np.diff(cu_seqlens).max())
        states: torch.Tensor = embeddings.LayerNorm(
            embeddings.word_embeddings(ids)
            + embeddings.position_embeddings(place)
            + embeddings.token_type_embeddings.weight[0]
        )
        for layer, (weight, bias) in zip(self._layers, self._qkv, strict=True):
            qkv = linear(states, weight, bias).unflatten(1, (3, self._spec.n_heads, -1))  # (T, 3, heads, D / heads)
            context = self._attend(*qkv.unbind(1), cu, cu, longest, longest).flatten(1)
            attention, output = layer.attention.output, layer.output
            states = attention.LayerNorm(attention.dense(context) + states)
            states = output.LayerNorm(output.dense(gelu(layer.intermediate.dense(states))) + states)
        return states


def _heads(
    model: BGEM3Torch, states: torch.Tensor, cu_seqlens: NDArray[np.int64], outputs: Sequence[Output]
) -> dict[Output, list[NDArray[np.float32]]]:
    """Compute heads from (T, D) states and bring them to the host together; per head, an array for each text."""
    cls, text = cu_seqlens[:-1], np.arange(1, len(cu_seqlens) - 1)
    heads: dict[Output, torch.Tensor] = {}
    if "dense" in outputs:
        heads["dense"] = normalize(states[_on(states.device, cls)], dim=-1)  # (B, D)
    if "sparse" in outputs and model.sparse_linear is not None:
        heads["sparse"] = relu(model.sparse_linear(states)).squeeze(-1)  # (T,)
    if "multivector" in outputs and model.colbert_linear is not None:
        rows = _on(states.device, np.delete(np.arange(len(states)), cls))
        heads["multivector"] = normalize(model.colbert_linear(states[rows]), dim=-1)  # (T - B, M)
    starts = {"dense": text, "sparse": cu_seqlens[1:-1], "multivector": cu_seqlens[1:-1] - text}
    flat = torch.cat([values.flatten() for values in heads.values()]).cpu().float().numpy()
    parts = np.split(flat, np.cumsum([values.numel() for values in heads.values()])[:-1])
    return {
        name: np.split(part.reshape(values.shape), starts[name])
        for (name, values), part in zip(heads.items(), parts, strict=True)
    }


def _placed(model: BGEM3Torch, device: str, dtype: torch.dtype) -> BGEM3Torch:
    """Return a copy of the model on the device, or the model itself if it is there in that dtype already."""
    parameter = next(model.parameters())
    if (parameter.device, parameter.dtype) == (torch.device(device), dtype):
        return model
    return copy.deepcopy(model).to(device=device, dtype=dtype)


def _on(device: torch.device, values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(values).to(device)


def _fused_qkv(attention: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight (3 D, D) and bias (3 D,) of the three projections in one."""
    projections = (attention.query, attention.key, attention.value)
    return torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections])


def _import_varlen(dtype: torch.dtype) -> Any:
    """Return PyTorch's attention over packed tokens."""
    if dtype not in HALF:
        raise ValueError(f"attention over packed tokens takes half precision on CUDA, found {dtype}; use fp16")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise ImportError(
            f"torch {torch.__version__} has no attention over packed tokens (torch.nn.attention.varlen); "
            "install torch 2.10 or newer"
        ) from error
    return varlen_attn


def _attend_text_by_text(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, *_: Any
) -> torch.Tensor:
    """Attend within each text of packed (T, heads, D / heads) rows; called as `varlen_attn` is."""
    context = []
    for start, end in pairwise(cu_seqlens.tolist()):
        q, k, v = (rows[start:end].transpose(0, 1)[None] for rows in (query, key, value))  # (1, heads, L, D / heads)
        context.append(scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    return torch.cat(context)
