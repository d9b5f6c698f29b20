"""Make a tiny checkpoint in BGE-M3's format. Its weights are constructed so that its scores make sense untrained.

- Hidden dimension 0 holds a token's *rarity*, dimensions 1 and 2 hold *markers*, the others hold *content*.
- A token's content is a random direction of its own plus one for each topic that it occurs in. So a question is close
  to its passage and, less so, to the passage's translations (random indexing).
- `<s>` and `</s>` have markers alone. The embedding LayerNorm erases markers, so both start near zero.
- Attention's queries are constant, and its keys read the rarity. So every token receives the text's mean content, in
  which rare tokens weigh most. `<s>` receives nothing else: that is the dense vector.
- The sparse head reads the rarity. The multi-vector head rotates the content.

Rotations and small noise fill every matrix, so that a transposed or forgotten weight changes the output.
In docstrings, V is the number of vocabulary pieces and H the hidden size.
"""

import json
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import XLMRobertaConfig

Array = NDArray[np.float64]
Weights = dict[str, Array]

HIDDEN, N_HEADS, FFN, N_POSITIONS = 128, 4, 256, 514
RARITY, MARKERS, CONTENT = 0, [1, 2], np.arange(3, HIDDEN)  # indices of hidden dimensions
CONTENT_ONLY = np.diag(np.isin(np.arange(HIDDEN), CONTENT).astype(np.float64))  # projection, (H, H)
RARITY_SCALE = 3.0  # value in dimension 0 of a token of rarity 1
TOPIC_SHARE = 0.5  # weight of a topic's direction in a token's content; the token's own direction weighs 1
HEAD_SHARPNESS = [1.5, 2.0, 2.5, 3.0]  # per head, log of the attention to rarity 1 over that to rarity 0
MIXING = [0.6, 0.2]  # per layer, the share of the text's mean that is added to each token

SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
PUNCTUATION = ".,:;?!。、।؟،"
# First and last character: Latin, marks, currencies, Greek and Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana.
ALPHABETS = "!~ ¡ſ Ạỹ ‐‧ ₠₿ Ͱџ את ؀ۿ ँॿ ก๛ 、】 ぁヾ"

CORPUS = Path(__file__).with_name("demo_corpus.txt").read_text(encoding="utf-8")
"""One `question | passage` on a line, blank lines between topics, `/` between words written without spaces."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """An entry of the vocabulary."""

    text: str  # with `▁` where it starts a word
    score: float  # log probability in the Unigram tokenizer
    rarity: float = 0.0  # 0 (common) to 1 (rare); below 0, the piece never gets a lexical weight
    topics: tuple[int, ...] = ()  # numbers of the topics it occurs in


def demo_pairs() -> list[list[tuple[str, str]]]:
    """Return the (question, passage) pairs: for each topic, a list of translations."""
    topics = CORPUS.replace("/", "").strip().split("\n\n")
    pairs = [[line.partition(" | ") for line in topic.splitlines()] for topic in topics]
    return [[(question, passage) for question, _, passage in topic] for topic in pairs]


def _word_pieces() -> list[Piece]:
    """Return the words and punctuation marks of the corpus; `▁` precedes words of languages that write spaces."""
    topics_of: dict[str, list[int]] = {}  # for each word, the topic of each line with it
    for number, topic in enumerate(CORPUS.strip().split("\n\n")):
        for line in topic.splitlines():
            start = "" if "/" in line else "▁"
            tokens = re.findall(rf"[^\s/|{PUNCTUATION}]+|[{PUNCTUATION}]", unicodedata.normalize("NFKC", line))
            for token in dict.fromkeys(tokens):
                topics_of.setdefault(token if token in PUNCTUATION else start + token, []).append(number)
    pieces = []
    for word, topics in topics_of.items():
        score = math.log(len(topics) / len(topics_of))
        rarity = -0.3 if word in PUNCTUATION else max(0.0, 1 - math.log(len(topics), 3))
        pieces.append(Piece(text=word, score=score, rarity=rarity, topics=tuple(sorted(set(topics)))))
    return pieces


def _character_pieces() -> list[Piece]:
    """Return single characters: whole alphabets, and all other characters of the corpus."""
    characters = set(unicodedata.normalize("NFKC", CORPUS)) - {" "}
    for first_and_last in ALPHABETS.split():
        first, last = map(ord, first_and_last)
        characters.update(map(chr, range(first, last + 1)))
    kept = [c for c in sorted(characters) if c.isprintable() and unicodedata.is_normalized("NFKC", c)]
    return [Piece(text=character, score=-14.0, rarity=0.2) for character in kept]


def build_vocabulary() -> list[Piece]:
    """Return the vocabulary in the order of its ids, special tokens included."""
    specials = [Piece(text=token, score=0.0) for token in SPECIAL_TOKENS.values()]
    pieces: dict[str, Piece] = {}
    for piece in [Piece(text="▁", score=-4.0, rarity=-0.3), *_word_pieces(), *_character_pieces()]:
        pieces.setdefault(piece.text, piece)  # a word of one character is a word
    return [*specials, *pieces.values(), Piece(text="<mask>", score=0.0)]


def build_tokenizer(vocabulary: list[Piece]) -> Tokenizer:
    """Return an XLM-RoBERTa style tokenizer over the vocabulary."""
    unk_id = list(SPECIAL_TOKENS).index("unk_token")
    tokenizer = Tokenizer(models.Unigram([(piece.text, piece.score) for piece in vocabulary], unk_id, False))
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), one_space])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    specials = [AddedToken(token, normalized=False) for token in SPECIAL_TOKENS.values()]
    tokenizer.add_special_tokens([*specials, AddedToken("<mask>", lstrip=True, normalized=False)])
    return tokenizer


def _token_embeddings(rng: np.random.Generator, vocabulary: list[Piece]) -> Array:
    """Return the word embeddings, float64 (V, H); words that differ only in case share a direction."""
    topics = rng.normal(size=(len(demo_pairs()), len(CONTENT)))
    own: dict[str, Array] = {}
    embeddings = np.zeros((len(vocabulary), HIDDEN))
    for row, piece in zip(embeddings, vocabulary, strict=True):
        direction = own.setdefault(piece.text.strip("▁").casefold(), rng.normal(size=len(CONTENT)))
        content = direction + TOPIC_SHARE * piece.rarity * topics[list(piece.topics)].sum(axis=0)
        row[CONTENT] = content / content.std()
        row[RARITY] = RARITY_SCALE * piece.rarity
    embeddings[:3] = 0.0  # <s>, <pad>, </s>
    embeddings[:3, MARKERS] = [40.0, -40.0]
    return embeddings


def _linear(rng: np.random.Generator, prefix: str, weight: Array, bias: Array | float = 0.0) -> Weights:
    """Return a linear layer with a little noise: weight (out, in) and bias (out,), float64."""
    noisy_weight = weight + rng.normal(scale=0.01, size=weight.shape)
    return {f"{prefix}weight": noisy_weight, f"{prefix}bias": bias + rng.normal(scale=0.01, size=len(weight))}


def _layer_norm(rng: np.random.Generator, prefix: str) -> Weights:
    """Return a LayerNorm: scale (H,) near 1 and shift (H,) near 0, float64."""
    scale = 1 + rng.normal(scale=0.02, size=HIDDEN)
    return {f"{prefix}weight": scale, f"{prefix}bias": rng.normal(scale=0.01, size=HIDDEN)}


def _rotation(rng: np.random.Generator) -> Array:
    """Return a random orthogonal matrix, float64 (H, H)."""
    return np.asarray(np.linalg.qr(rng.normal(size=(HIDDEN, HIDDEN))).Q)


def _attention(rng: np.random.Generator, prefix: str, mixing: float) -> Weights:
    """Return weights that add `mixing` times the text's mean content, in which rare tokens weigh most."""
    head_size = HIDDEN // N_HEADS
    query = rng.choice([-1.0, 1.0], size=HIDDEN)  # (H,)
    key = np.zeros((HIDDEN, HIDDEN))
    key[:, RARITY] = query * np.repeat(HEAD_SHARPNESS, head_size) / (RARITY_SCALE * math.sqrt(head_size))
    value = _rotation(rng) @ CONTENT_ONLY
    return {
        **_linear(rng, f"{prefix}self.query.", np.zeros((HIDDEN, HIDDEN)), query),
        **_linear(rng, f"{prefix}self.key.", key),
        **_linear(rng, f"{prefix}self.value.", value),
        **_linear(rng, f"{prefix}output.dense.", mixing * value.T),
        **_layer_norm(rng, f"{prefix}output.LayerNorm."),
    }


def _encoder_layer(rng: np.random.Generator, prefix: str, mixing: float) -> Weights:
    """Return an encoder layer: attention, and a feed-forward network that changes its input little."""
    return {
        **_attention(rng, f"{prefix}attention.", mixing),
        **_linear(rng, f"{prefix}intermediate.dense.", rng.normal(scale=0.1, size=(FFN, HIDDEN))),
        **_linear(rng, f"{prefix}output.dense.", CONTENT_ONLY @ rng.normal(scale=0.01, size=(HIDDEN, FFN))),
        **_layer_norm(rng, f"{prefix}output.LayerNorm."),
    }


def _backbone(rng: np.random.Generator, vocabulary: list[Piece]) -> Weights:
    """Return the weights of an XLMRobertaModel by name, with an unused pooler as BGE-M3 has."""
    weights = {
        "embeddings.word_embeddings.weight": _token_embeddings(rng, vocabulary),
        "embeddings.position_embeddings.weight": rng.normal(scale=0.03, size=(N_POSITIONS, HIDDEN)),
        "embeddings.token_type_embeddings.weight": rng.normal(scale=0.03, size=(1, HIDDEN)),
        **_layer_norm(rng, "embeddings.LayerNorm."),
        **_linear(rng, "pooler.dense.", np.zeros((HIDDEN, HIDDEN))),
    }
    for part in ("weight", "bias"):
        weights[f"embeddings.LayerNorm.{part}"][MARKERS] = 0.0
    for number, mixing in enumerate(MIXING):
        weights |= _encoder_layer(rng, f"encoder.layer.{number}.", mixing)
    return weights


def _heads(rng: np.random.Generator) -> dict[str, Weights]:
    """Return the weights of the sparse and the multi-vector head."""
    reads_rarity = rng.normal(scale=0.001, size=(1, HIDDEN))
    reads_rarity[0, RARITY] = 0.3 / RARITY_SCALE
    sparse = {"weight": reads_rarity, "bias": np.array([0.05])}
    return {"sparse_linear": sparse, "colbert_linear": _linear(rng, "", _rotation(rng) @ CONTENT_ONLY)}


def make_demo_checkpoint(folder: str | Path) -> Path:
    """Write the demo checkpoint into a folder, which is made if missing; return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    vocabulary = build_vocabulary()
    weights = {name: value.astype(np.float32) for name, value in _backbone(rng, vocabulary).items()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    for name, head in _heads(rng).items():
        tensors = {key: torch.tensor(value, dtype=torch.float32) for key, value in head.items()}
        torch.save(tensors, folder / f"{name}.pt")
    build_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    config = make_config(HIDDEN, len(MIXING), N_HEADS, FFN, N_POSITIONS - 2, vocab_size=len(vocabulary))
    config.save_pretrained(folder)
    write_tokenizer_config(folder, N_POSITIONS - 2)
    return folder


def make_config(
    hidden: int, layers: int, heads: int, intermediate: int, max_length: int, *, pad_token_id: int = 1, **others: Any
) -> XLMRobertaConfig:
    """Return a backbone's configuration, with XLM-RoBERTa's values where none are given."""
    return XLMRobertaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=max_length + pad_token_id + 1,
        pad_token_id=pad_token_id,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **others,
    )


def write_tokenizer_config(folder: Path, max_length: int) -> None:
    """Write the tokenizer_config.json of a tokenizer in BGE-M3's form."""
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": False, "special": True}
    names = {**SPECIAL_TOKENS, "cls_token": "<s>", "sep_token": "</s>", "mask_token": mask}
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": max_length, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
