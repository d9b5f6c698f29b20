"""The checkpoint's own outputs in PyTorch, one text at a time: what every artifact is compared with."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from tqdm import tqdm

from bgem3.export.checkpoint import Checkpoint
from bgem3.runtime.reference import Reference

VECTORS_PER_TEXT = 64  # multi-vectors kept per text, evenly spaced: 8 MB for BGE-M3, not 60


def reference_outputs(
    checkpoint: Checkpoint,
    texts: list[str],
    *,
    vectors_per_text: int | None = VECTORS_PER_TEXT,
    show_progress: bool = False,
) -> Reference:
    """Encode texts with the checkpoint in float32, each alone and without padding; None keeps all multi-vectors.

    An output that the checkpoint has no head for is empty.
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
            n_kept = len(vectors) if vectors_per_text is None else vectors_per_text
            rows = np.unique(np.linspace(0, len(vectors) - 1, n_kept).astype(np.int64))
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
    """Return the token ids of one text, and its last hidden states, (T, D) float32."""
    token_ids = checkpoint.token_ids(text, checkpoint.spec.max_length)
    ids = torch.tensor([token_ids])
    with torch.inference_mode():
        output = checkpoint.model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids))
    return token_ids, output.last_hidden_state[0]


def _lexical_weights(
    checkpoint: Checkpoint, token_ids: list[int], token_weights: NDArray[np.float32]
) -> dict[int, float]:
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


SENTENCES = (
    "What is BGE M3?",
    "BM25 is a bag-of-words retrieval function that ranks documents by the query terms they contain.",
    "Der schnelle Zug fährt über die Brücke, während es regnet.",
    "El mercado abre temprano y cierra cuando cae la noche.",
    "La bibliothèque prête des livres à tous les élèves du quartier.",
    "Поезд прибывает на вокзал ровно в полночь.",
    "Η θάλασσα ήταν ήρεμη εκείνο το πρωί.",
    "تفتح المكتبة أبوابها في الصباح الباكر كل يوم.",
    "הספרייה פתוחה לקהל גם בערב.",
    "नदी के किनारे एक छोटा सा गाँव बसा है।",
    "ฝนตกหนักมาตั้งแต่เช้าวันนี้",
    "图书馆每天早上八点开门，晚上九点关门。",
    "図書館は朝八時に開き、夜九時に閉まります。",
    "도서관은 아침 여덟 시에 문을 엽니다.",
    "Thư viện mở cửa từ sáng sớm đến tối muộn.",
    "ნაპირზე ძველი ნავი დგას.",
    "The same word, the same word, the same word.",
    "price: 1,234.56 € (−7 %) at 09:30; e-mail a.b+c@example.org",
    "A <mask> in the text, a </s> too, and <pad> and <unk>.",
    "naïve café\u0301 — 👩‍🚀🚀 ﬁne ①",
)


def parity_texts(checkpoint: Checkpoint) -> list[str]:
    """Return the built-in texts: empty, one character, many scripts, and long ones up to truncation."""
    block = " ".join(SENTENCES)
    n_block = len(checkpoint.token_ids(block))
    limit = checkpoint.spec.max_length
    lengths = [n for n in (64, 300, 1000) if n < limit]
    long = [" ".join([block] * (n // n_block + 2))[: len(block) * n // n_block] for n in lengths]
    beyond = " ".join([block] * (limit // n_block + 2))
    return ["", " ", "a", *SENTENCES, *long, beyond]
