"""PyTorch: transformers' backbone with the trained heads, over padded batches or over packed tokens."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.padded import Feeds, lexical, open_tokenizer, padded_encoder
from benchmarks.peer import TORCH, Encode, Encoded, Peer, Settings, checkpoint_files, require_bf16

TOKEN_BUDGET = 16384  # tokens in a packed micro-batch; more of them fill no GPU better


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
        """Return the tensors of the heads asked for, from last hidden states (..., D).

        Parameters
        ----------
        cls, states, vectors : the states of CLS tokens, of all tokens, and of those that get a vector
        """
        import torch
        from torch.nn.functional import linear, normalize

        compute: dict[str, Callable[[], Any]] = {
            "dense": lambda: normalize(cls, dim=-1),
            "sparse": lambda: torch.relu(linear(states, **self.sparse)).squeeze(-1),
            "multivector": lambda: normalize(linear(vectors, **self.multivector), dim=-1),
        }
        return [compute[name]() for name in outputs]


def open_padded(attention: str, settings: Settings, _: str) -> Encode:
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


def open_packed(settings: Settings, _: str) -> Encode:
    """Open a loop of our own over packed tokens, which computes no padding."""
    packed, tokenizer = PackedModel(settings), open_tokenizer(settings)

    def encode(texts: list[str], outputs: tuple[str, ...], _: int) -> Encoded:
        token_ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        found: dict[int, list[NDArray[Any]]] = {}
        for batch in micro_batches([len(ids) for ids in token_ids]):
            rows = packed([token_ids[text] for text in batch], outputs)
            found |= zip(batch, zip(*rows, strict=True), strict=True)  # type: ignore[arg-type]
        heads = dict(zip(outputs, zip(*(found[i] for i in range(len(texts))), strict=True), strict=True))
        weights = partial(lexical, token_ids, heads.get("sparse"), settings["special_ids"])
        return Encoded(
            dense=np.concatenate(heads["dense"]) if "dense" in heads else None,
            lexical=weights if "sparse" in heads else None,
            multivector=heads.get("multivector"),
        )

    return encode


def micro_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield texts of similar lengths that hold at most TOKEN_BUDGET tokens together, or one longer text."""
    batch: list[int] = []
    n_tokens = 0
    for text in sorted(range(len(lengths)), key=lambda text: lengths[text]):
        if batch and n_tokens + lengths[text] > TOKEN_BUDGET:
            yield batch
            batch, n_tokens = [], 0
        batch.append(text)
        n_tokens += lengths[text]
    yield batch


class PackedModel:
    """The model over the tokens of several texts in a row, without padding.

    Attention is `torch.nn.attention.varlen.varlen_attn` (flash attention) on CUDA, and text by text on CPU.

    Raises
    ------
    ImportError
        On CUDA, if this PyTorch has no `varlen_attn`, which came with 2.10.
    """

    def __init__(self, settings: Settings) -> None:
        import torch

        self._model = model = Model(settings, "sdpa")
        self._pad_id, self._n_heads = settings["pad_id"], settings["n_heads"]
        self._attend: Any = attend_text_by_text
        if model.device.startswith("cuda"):
            from torch.nn.attention.varlen import varlen_attn

            self._attend = varlen_attn
        attentions = [layer.attention.self for layer in model.backbone.encoder.layer]
        projections = [(each.query, each.key, each.value) for each in attentions]
        self._qkv = [
            (torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
            for parts in projections
        ]

    def __call__(self, token_ids: Sequence[list[int]], outputs: tuple[str, ...]) -> list[list[NDArray[np.float32]]]:
        """Return, for each head asked for, one array for each text; they come to the host in one transfer."""
        import torch

        starts = np.cumsum([0, *map(len, token_ids)])
        with torch.inference_mode():
            states = self._states(token_ids, starts)
            is_vector = torch.ones(len(states), dtype=torch.bool, device=states.device)
            is_vector[starts[:-1]] = False
            tensors = self._model.heads(states[starts[:-1]], states, states[is_vector], outputs)
            flat = torch.cat([values.flatten() for values in tensors]).float().cpu().numpy()
        text = np.arange(1, len(token_ids))
        cuts = {"dense": text, "sparse": starts[1:-1], "multivector": starts[1:-1] - text}
        parts = np.split(flat, np.cumsum([values.numel() for values in tensors])[:-1])
        shaped = [part.reshape(values.shape) for part, values in zip(parts, tensors, strict=True)]
        return [np.split(array, cuts[name]) for name, array in zip(outputs, shaped, strict=True)]

    def _states(self, token_ids: Sequence[list[int]], starts: NDArray[np.int64]) -> Any:
        """Return the last hidden states (T, D) of the T tokens of all texts."""
        import torch
        from torch.nn.functional import gelu, linear

        backbone, device = self._model.backbone, self._model.device
        embeddings, lengths = backbone.embeddings, np.diff(starts)
        ids = torch.tensor([token for ids in token_ids for token in ids], device=device)
        places = torch.cat([torch.arange(n) for n in lengths.tolist()]).to(device) + self._pad_id + 1
        cu_seqlens, longest = torch.tensor(starts, dtype=torch.int32, device=device), int(lengths.max())
        states = embeddings.word_embeddings(ids) + embeddings.position_embeddings(places)
        states = embeddings.LayerNorm(states + embeddings.token_type_embeddings.weight[0])
        for layer, (weight, bias) in zip(backbone.encoder.layer, self._qkv, strict=True):
            qkv = linear(states, weight, bias).unflatten(1, (3, self._n_heads, -1))  # (T, 3, heads, D / heads)
            context = self._attend(*qkv.unbind(1), cu_seqlens, cu_seqlens, longest, longest).flatten(1)
            states = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + states)
            states = layer.output.LayerNorm(layer.output.dense(gelu(layer.intermediate.dense(states))) + states)
        return states


def attend_text_by_text(query: Any, key: Any, value: Any, cu_seqlens: Any, *_: Any) -> Any:
    """Attend within each text of packed rows (T, heads, D / heads); called as `varlen_attn` is."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    context = []
    for start, end in pairwise(cu_seqlens.tolist()):
        q, k, v = (rows[start:end].transpose(0, 1)[None] for rows in (query, key, value))  # (1, heads, L, D / heads)
        context.append(scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    return torch.cat(context)


def _peer(name: str, label: str, open_: Callable[[Settings, str], Encode], **options: Any) -> Peer:
    return Peer(
        name=name,
        label=f"PyTorch {label}",
        environment="pytorch",
        packages=TORCH,
        modules=("torch", "transformers", "tokenizers"),
        open=open_,
        files=checkpoint_files,
        **options,
    )


BOTH = ("cpu", "cuda")
PEERS = (
    _peer("torch", "eager", partial(open_padded, "eager"), precisions=("fp32", "bf16"), devices=BOTH),
    _peer("torch-sdpa", "SDPA", partial(open_padded, "sdpa"), precisions=("fp32", "bf16", "fp16"), devices=BOTH),
    _peer("torch-packed", "packed", open_packed, precisions=("fp16",), devices=("cuda",), batch_sizes=(1,)),
)
