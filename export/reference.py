"""The checkpoint's own outputs in PyTorch, one text at a time; every graph is compared with them."""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from bgem3.export.checkpoint import Checkpoint
from bgem3.runtime.reference import Reference

PARITY_TEXTS = Path(__file__).with_name("parity_texts.json")
SENTENCES: tuple[str, ...] = tuple(json.loads(PARITY_TEXTS.read_text(encoding="utf-8")))
"""Short texts in many scripts."""
VECTORS_PER_TEXT = 64  # multi-vectors stored for a text; they take 8 MB for BGE-M3, where all would take 60


def reference_outputs(
    checkpoint: Checkpoint,
    texts: list[str],
    *,
    vectors_per_text: int | None = VECTORS_PER_TEXT,
    show_progress: bool = False,
) -> Reference:
    """Encode texts with the checkpoint in float32, each alone and without padding.

    A long text is truncated at the model's maximum. ``vectors_per_text`` multi-vectors of each text are kept, evenly
    spaced, or all if it is None. An output without a head stays empty.
    """
    spec = checkpoint.spec
    n_tokens, dense, sparse = [], [], []
    multivector = [np.empty((0, spec.multivector_size), np.float32)]
    multivector_rows = [np.empty(0, np.int64)]
    n_vectors = 0
    for text in tqdm(texts, desc="reference", unit="text", disable=not show_progress):
        token_ids, states = last_states(checkpoint, text)  # (T,), (T, D)
        heads = {name: values.numpy() for name, values in checkpoint.model.heads(states).items()}
        n_tokens.append(len(token_ids))
        dense.append(heads["dense"])
        sparse.append(_lexical_weights(checkpoint, token_ids, heads["sparse"]) if "sparse" in heads else {})
        if "multivector" in heads:
            vectors = heads["multivector"]
            rows = evenly_spaced(len(vectors), vectors_per_text or len(vectors))
            multivector.append(vectors[rows])
            multivector_rows.append(n_vectors + rows)
            n_vectors += len(vectors)
    return Reference(
        texts=texts,
        n_tokens=np.array(n_tokens, np.int32),
        dense=np.stack(dense),
        sparse=_matrix(sparse, spec.vocab_size),
        multivector=np.concatenate(multivector),
        multivector_rows=np.concatenate(multivector_rows),
    )


def last_states(checkpoint: Checkpoint, text: str) -> tuple[list[int], torch.Tensor]:
    """Return a text's token ids and its last hidden states, (T, D) float32."""
    token_ids = checkpoint.token_ids(text, checkpoint.spec.max_length)
    ids = torch.tensor([token_ids])
    with torch.inference_mode():
        output = checkpoint.model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids))
    return token_ids, output.last_hidden_state[0]


def evenly_spaced(n: int, n_chosen: int) -> NDArray[np.int64]:
    """Return up to ``n_chosen`` of the positions 0 to n - 1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, n_chosen).astype(np.int64))


def _lexical_weights(
    checkpoint: Checkpoint, token_ids: list[int], token_weights: NDArray[np.float32]
) -> dict[int, float]:
    """Return the largest positive weight of each token id, without special tokens."""
    spec = checkpoint.spec
    weights: dict[int, float] = {}
    for token_id, weight in zip(token_ids, token_weights.tolist(), strict=True):
        if weight > 0 and token_id not in (spec.cls_id, spec.pad_id, spec.eos_id, spec.unk_id):
            weights[token_id] = max(weight, weights.get(token_id, 0.0))
    return weights


def _matrix(rows: list[dict[int, float]], n_columns: int) -> csr_array:
    indptr = np.cumsum([0] + [len(row) for row in rows])
    indices = [token_id for row in rows for token_id in row]
    values = np.array([weight for row in rows for weight in row.values()], np.float32)
    return csr_array((values, indices, indptr), shape=(len(rows), n_columns))


def parity_texts(checkpoint: Checkpoint) -> list[str]:
    """Return the built-in texts: empty ones, a letter, sentences in many scripts, and long texts up to truncation."""
    block = " ".join(SENTENCES)
    n_block = len(checkpoint.token_ids(block))
    limit = checkpoint.spec.max_length
    lengths = [n for n in (64, 300, 1000) if n < limit]
    long = [" ".join([block] * (n // n_block + 2))[: len(block) * n // n_block] for n in lengths]
    beyond = " ".join([block] * (limit // n_block + 2))
    return ["", " ", "a", *SENTENCES, *long, beyond]
