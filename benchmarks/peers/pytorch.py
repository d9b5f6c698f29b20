"""PyTorch: transformers' backbone with the trained heads, over padded batches; on CUDA also over packed tokens."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.padded import Feeds, lexical, open_tokenizer, padded_encoder
from benchmarks.peer import TORCH, Encode, Encoded, Peer, Settings, checkpoint_files, require_bf16


class Model:
    """The backbone and the heads' weights on one device in one dtype."""

    def __init__(self, settings: Settings, attention: str) -> None:
        import torch
        from transformers import XLMRobertaModel

        require_bf16(settings)
        torch.set_num_threads(settings["threads"])
        self.device, checkpoint = settings["device"], Path(settings["checkpoint"])
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[settings["precision"]]
        backbone = XLMRobertaModel.from_pretrained(
            checkpoint, attn_implementation=attention, dtype=dtype, add_pooling_layer=False
        )
        self.backbone: Any = backbone.to(self.device).eval()
        states = [
            torch.load(checkpoint / f"{name}.pt", weights_only=True, map_location=self.device)
            for name in ("sparse_linear", "colbert_linear")
        ]
        self.sparse, self.multivector = ({key: value.to(dtype) for key, value in state.items()} for state in states)

    def heads(self, cls: Any, states: Any, vectors: Any, outputs: Sequence[str]) -> list[Any]:
        """Return the outputs of some heads, from last hidden states (..., D).

        Parameters
        ----------
        cls, states, vectors : the states of CLS tokens, of all tokens, and of tokens with a multi-vector
        """
        import torch
        from torch.nn.functional import linear, normalize

        compute: dict[str, Callable[[], Any]] = {
            "dense": lambda: normalize(cls, dim=-1),
            "sparse": lambda: torch.relu(linear(states, **self.sparse)).squeeze(-1),
            "multivector": lambda: normalize(linear(vectors, **self.multivector), dim=-1),
        }
        return [compute[name]() for name in outputs]


def open_padded(attention: str, settings: Settings) -> Encode:
    """Open transformers' model with one kind of attention."""
    import torch

    model = Model(settings, attention)

    def forward(batches: Iterable[Feeds], outputs: tuple[str, ...]) -> Iterator[list[NDArray[Any]]]:
        for feeds in batches:
            with torch.inference_mode():
                tensors = {name: torch.from_numpy(array).to(model.device) for name, array in feeds.items()}
                hidden = model.backbone(**tensors)[0]
                found = model.heads(hidden[:, 0], hidden, hidden, outputs)
                yield [values.float().cpu().numpy() for values in found]

    return padded_encoder(settings, forward)


def open_packed(settings: Settings) -> Encode:
    """Open an encoder that packs the tokens of all texts, and so computes no padding.

    Attention is `torch.nn.attention.varlen.varlen_attn` (flash attention; PyTorch 2.10 or newer) on CUDA, and text by
    text on CPU.
    """
    import torch
    from torch.nn.functional import gelu, linear

    model, tokenizer = Model(settings, "sdpa"), open_tokenizer(settings)
    device, embeddings, layers = model.device, model.backbone.embeddings, model.backbone.encoder.layer
    attend: Any = attend_text_by_text
    if device.startswith("cuda"):
        from torch.nn.attention.varlen import varlen_attn as attend
    projections = [
        (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value) for layer in layers
    ]
    weights = [torch.cat([part.weight for part in parts]) for parts in projections]
    biases = [torch.cat([part.bias for part in parts]) for parts in projections]

    def last_states(token_ids: list[list[int]], starts: NDArray[np.int64]) -> Any:
        """Return the last hidden states (T, D) of the T tokens of all texts."""
        ids = torch.tensor([token for ids in token_ids for token in ids], device=device)
        places = torch.cat([torch.arange(len(ids)) for ids in token_ids]).to(device) + settings["pad_id"] + 1
        cu_seqlens, longest = torch.tensor(starts, dtype=torch.int32, device=device), max(map(len, token_ids))
        states = embeddings.word_embeddings(ids) + embeddings.position_embeddings(places)
        states = embeddings.LayerNorm(states + embeddings.token_type_embeddings.weight[0])
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            qkv = linear(states, weight, bias).unflatten(1, (3, settings["n_heads"], -1))  # (T, 3, heads, D / heads)
            context = attend(*qkv.unbind(1), cu_seqlens, cu_seqlens, longest, longest).flatten(1)
            states = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + states)
            states = layer.output.LayerNorm(layer.output.dense(gelu(layer.intermediate.dense(states))) + states)
        return states

    def encode(texts: list[str], outputs: tuple[str, ...], _: int) -> Encoded:
        token_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        starts = np.cumsum([0, *map(len, token_ids)])
        with torch.inference_mode():
            states = last_states(token_ids, starts)
            is_vector = torch.ones(len(states), dtype=torch.bool, device=device)
            is_vector[starts[:-1]] = False
            tensors = model.heads(states[starts[:-1]], states, states[is_vector], outputs)
        heads = {name: values.float().cpu().numpy() for name, values in zip(outputs, tensors, strict=True)}
        sparse = np.split(heads["sparse"], starts[1:-1]) if "sparse" in heads else None
        vectors = starts[1:-1] - np.arange(1, len(texts))
        return Encoded(
            dense=heads.get("dense"),
            lexical=partial(lexical, token_ids, sparse, settings["special_ids"]) if sparse else None,
            multivector=np.split(heads["multivector"], vectors) if "multivector" in heads else None,
        )

    return encode


def attend_text_by_text(query: Any, key: Any, value: Any, cu_seqlens: Any, *_: Any) -> Any:
    """Attend within each text of packed rows (T, heads, D / heads); called as `varlen_attn` is."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    lengths = cu_seqlens.diff().tolist()
    texts = zip(*(rows.transpose(0, 1).split(lengths, dim=1) for rows in (query, key, value)), strict=True)
    return torch.cat([scaled_dot_product_attention(*text) for text in texts], dim=1).transpose(0, 1)


PEERS = tuple(
    Peer(
        name=name,
        label=label,
        environment="pytorch",
        packages=TORCH,
        modules=("torch", "transformers", "tokenizers"),
        precisions=("fp32", "bf16"),
        open=partial(open_padded, attention),
        files=checkpoint_files,
    )
    for name, label, attention in (("torch", "PyTorch eager", "eager"), ("torch-sdpa", "PyTorch SDPA", "sdpa"))
)
