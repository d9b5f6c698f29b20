"""A tiny checkpoint in BGE-M3's format whose scores make sense without training.

- Hidden dimension 0 carries a token's *rarity*, dimensions 1 and 2 are *markers*, the rest is *content*.
- A token's content is a random direction of its own plus a random direction for each topic it occurs in, so
  a question is close to its passage and, more loosely, to the passage's translations (random indexing).
- `<s>` and `</s>` live in the markers, which the embedding LayerNorm erases: both start as near zero vectors.
- Attention has a constant query and keys that read the rarity: every token receives the text's mean content,
  rare tokens first. For `<s>` that mean is all there is, hence the dense vector.
- The sparse head reads the rarity, the multi-vector head rotates the content.

Rotations and small noise fill every matrix, so that a transposed or forgotten weight changes the output.
In docstrings, V is the number of vocabulary pieces and H the hidden size.

usage: python scripts/make_demo_checkpoint.py OUT_DIR [--seed N]
"""

import argparse
import json
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

Array = NDArray[np.float64]
Weights = dict[str, Array]

HIDDEN, N_HEADS, FFN, N_POSITIONS = 128, 4, 256, 514
RARITY, MARKERS, CONTENT = 0, [1, 2], np.arange(3, HIDDEN)  # indices of hidden dimensions
CONTENT_ONLY = np.diag(np.isin(np.arange(HIDDEN), CONTENT).astype(np.float64))  # projection, (H, H)
RARITY_SCALE = 3.0  # what a rarity of 1 is worth in dimension 0
TOPIC_SHARE = 0.5  # length of a token's topic direction, relative to its own direction
HEAD_SHARPNESS = [1.5, 2.0, 2.5, 3.0]  # per head, log of the attention to rarity 1 relative to rarity 0
MIXING = [0.6, 0.2]  # per layer, how much of the text's mean is added to each token

SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
PUNCTUATION = ".,:;?!。、।؟،"
# First and last: Latin, marks, currencies, Greek and Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana.
ALPHABETS = "!~ ¡ſ Ạỹ ‐‧ ₠₿ Ͱџ את ؀ۿ ँॿ ก๛ 、】 ぁヾ"

# A blank line between topics, one `question | passage` a line, `/` between words written without spaces.
CORPUS = """
What is BGE M3? | BGE M3 is an embedding model supporting dense retrieval, lexical matching and \
multi-vector interaction.

What is BM25? | BM25 is a bag-of-words retrieval function that ranks a set of documents based on the \
query terms appearing in each document

What makes bread rise? | Yeast makes bread rise: it eats the sugar in the flour and fills the dough with gas.
Was lässt das Brot aufgehen? | Die Hefe lässt das Brot aufgehen, weil sie den Zucker in Gas verwandelt.
Почему поднимается хлеб? | Хлеб поднимается, потому что дрожжи превращают сахар в газ.
Τι κάνει το ψωμί να φουσκώνει; | Η μαγιά κάνει το ψωμί να φουσκώνει, γιατί τρώει τη ζάχαρη του αλευριού.
ما الذي يجعل الخبز ينتفخ؟ | الخميرة تجعل الخبز ينتفخ لأنها تحول السكر في الدقيق إلى غاز.
आटा क्यों फूलता है? | ख़मीर आटे में गैस बनाता है, इसलिए आटा फूलता है।
อะไร/ทำให้/ขนมปัง/ฟู? | ยีสต์/ทำให้/ขนมปัง/ฟู/เพราะ/เปลี่ยน/น้ำตาล/เป็น/ก๊าซ
面包/为什么/会/发/起来？ | 酵母/把/面粉/里/的/糖/变成/气体，所以/面包/会/发/起来。
パン/は/なぜ/膨らむ/の？ | 酵母/が/小麦粉/の/糖/を/ガス/に/変える/ので、パン/は/膨らむ。
빵은 왜 부풀어요? | 효모가 밀가루의 당을 가스로 바꾸기 때문에 빵은 부풀어요.

What causes the tides in the sea? | The pull of the moon causes the tides: each day it lifts the sea twice.
Was verursacht die Gezeiten? | Die Anziehung des Mondes verursacht die Gezeiten, weil sie das Meer anhebt.
Почему бывают приливы? | Приливы бывают, потому что Луна притягивает воду в море.
Τι προκαλεί την παλίρροια; | Η σελήνη προκαλεί την παλίρροια, γιατί έλκει το νερό της θάλασσας.
ما الذي يجعل البحر يرتفع؟ | القمر يجعل البحر يرتفع لأنه يجذب الماء إليه مرتين في اليوم.
समुद्र में ज्वार क्यों आता है? | चाँद पानी को खींचता है, इसलिए समुद्र में ज्वार आता है।
อะไร/ทำให้/น้ำ/ทะเล/ขึ้น? | ดวงจันทร์/ทำให้/น้ำ/ทะเล/ขึ้น/เพราะ/มี/แรงดึงดูด
海水/为什么/会/涨潮？ | 月亮/的/引力/吸引/海水，所以/海水/会/涨潮。
潮/は/なぜ/満ちる/の？ | 月/が/海/の/水/を/引く/ので、潮/は/満ちる。
밀물은 왜 생겨요? | 달이 바다의 물을 끌어당기기 때문에 밀물은 생겨요.

What do bees make of nectar? | Bees make honey of the nectar in flowers, and it is a food for each winter.
Was machen Bienen aus Nektar? | Bienen machen aus Nektar den Honig, weil sie das Futter in der Kälte brauchen.
Почему пчёлы делают мёд? | Пчёлы делают мёд, потому что зимой в поле нет цветов.
Τι κάνει η μέλισσα με το νέκταρ; | Η μέλισσα κάνει το νέκταρ μέλι, γιατί το χρειάζεται τον χειμώνα.
ما الذي يصنع العسل؟ | النحل يصنع العسل من رحيق الأزهار لأنه طعامه في الشتاء.
मधुमक्खियाँ शहद क्यों बनाती हैं? | सर्दी में फूल नहीं होते, इसलिए मधुमक्खियाँ शहद बनाती हैं।
อะไร/ทำให้/ผึ้ง/มี/น้ำผึ้ง? | น้ำหวาน/จาก/ดอกไม้/ทำให้/ผึ้ง/มี/น้ำผึ้ง
蜜蜂/为什么/会/酿/蜂蜜？ | 冬天/没有/花，所以/蜜蜂/会/把/花/的/蜜/酿/成/蜂蜜。
蜂/は/なぜ/蜜/を/集める/の？ | 冬/に/花/が/ない/ので、蜂/は/蜜/を/集める。
벌은 왜 꿀을 모아요? | 겨울에는 꽃이 없기 때문에 벌은 꿀을 모아요.
"""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """An entry of the vocabulary."""

    text: str  # with `▁` where it starts a word
    score: float  # log probability in the Unigram tokenizer
    rarity: float = 0.0  # from 0 (common) to 1 (rare), below 0 for what never gets a lexical weight
    topics: tuple[int, ...] = ()  # where it occurs


def demo_pairs() -> list[list[tuple[str, str]]]:
    """Return the built-in (question, passage) pairs, a list of translations per topic."""
    topics = CORPUS.replace("/", "").strip().split("\n\n")
    pairs = [[line.partition(" | ") for line in topic.splitlines()] for topic in topics]
    return [[(question, passage) for question, _, passage in topic] for topic in pairs]


def _split_words(line: str) -> list[str]:
    """Split a line into words, with `▁` in front where the language writes spaces, and punctuation marks."""
    start = "" if "/" in line else "▁"
    tokens = re.findall(rf"[^\s/|{PUNCTUATION}]+|[{PUNCTUATION}]", unicodedata.normalize("NFKC", line))
    return [token if token in PUNCTUATION else start + token for token in tokens]


def _word_pieces() -> list[Piece]:
    """Return the words and punctuation marks of the corpus, rare if they occur in few of its lines."""
    topics_of: dict[str, list[int]] = {}  # one entry for each line
    for number, topic in enumerate(CORPUS.strip().split("\n\n")):
        for line in topic.splitlines():
            for word in dict.fromkeys(_split_words(line)):
                topics_of.setdefault(word, []).append(number)
    pieces = []
    for word, topics in topics_of.items():
        score = math.log(len(topics) / len(topics_of))
        rarity = -0.3 if word in PUNCTUATION else max(0.0, 1 - math.log(len(topics), 3))
        pieces.append(Piece(text=word, score=score, rarity=rarity, topics=tuple(sorted(set(topics)))))
    return pieces


def _character_pieces() -> list[Piece]:
    """Return single characters: whole alphabets, and whatever else the corpus is written with."""
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
    """Return the word embeddings, float64 (V, H); spellings that differ in case only share a direction."""
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
    """Return a linear layer, float64 (out, in) and (out,), with a little noise."""
    noisy_weight = weight + rng.normal(scale=0.01, size=weight.shape)
    return {f"{prefix}weight": noisy_weight, f"{prefix}bias": bias + rng.normal(scale=0.01, size=len(weight))}


def _layer_norm(rng: np.random.Generator, prefix: str) -> Weights:
    """Return a LayerNorm's scale and shift, float64 (H,) each, near 1 and near 0."""
    scale = 1 + rng.normal(scale=0.02, size=HIDDEN)
    return {f"{prefix}weight": scale, f"{prefix}bias": rng.normal(scale=0.01, size=HIDDEN)}


def _rotation(rng: np.random.Generator) -> Array:
    """Return a random orthogonal matrix, float64 (H, H)."""
    return np.asarray(np.linalg.qr(rng.normal(size=(HIDDEN, HIDDEN))).Q)


def _attention(rng: np.random.Generator, prefix: str, mixing: float) -> Weights:
    """Return the weights that add `mixing` times the mean content of the text, rare tokens first."""
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
    """Return an encoder layer: attention, then a feed-forward network that only ripples its input."""
    return {
        **_attention(rng, f"{prefix}attention.", mixing),
        **_linear(rng, f"{prefix}intermediate.dense.", rng.normal(scale=0.1, size=(FFN, HIDDEN))),
        **_linear(rng, f"{prefix}output.dense.", CONTENT_ONLY @ rng.normal(scale=0.01, size=(HIDDEN, FFN))),
        **_layer_norm(rng, f"{prefix}output.LayerNorm."),
    }


def _backbone(rng: np.random.Generator, vocabulary: list[Piece]) -> Weights:
    """Return the weights of an XLMRobertaModel, by name; like BGE-M3's, they include an unused pooler."""
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


def _write_heads(folder: Path, rng: np.random.Generator) -> None:
    """Write the sparse head, which reads the rarity, and the multi-vector head, which rotates the content."""
    reads_rarity = rng.normal(scale=0.001, size=(1, HIDDEN))
    reads_rarity[0, RARITY] = 0.3 / RARITY_SCALE
    sparse = {"weight": reads_rarity, "bias": np.array([0.05])}
    colbert = _linear(rng, "", _rotation(rng) @ CONTENT_ONLY)
    for name, head in (("sparse", sparse), ("colbert", colbert)):
        tensors = {key: torch.tensor(value, dtype=torch.float32) for key, value in head.items()}
        torch.save(tensors, folder / f"{name}_linear.pt")


def _write_json(path: Path, **content: object) -> None:
    """Write the keyword arguments as a JSON object."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_configs(folder: Path, n_pieces: int) -> None:
    """Write config.json and tokenizer_config.json for a vocabulary of `n_pieces`."""
    _write_json(
        folder / "config.json",
        architectures=["XLMRobertaModel"],
        model_type="xlm-roberta",
        hidden_size=HIDDEN,
        num_hidden_layers=len(MIXING),
        num_attention_heads=N_HEADS,
        intermediate_size=FFN,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        max_position_embeddings=N_POSITIONS,
        type_vocab_size=1,
        vocab_size=n_pieces,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        torch_dtype="float32",
    )
    names = {**SPECIAL_TOKENS, "cls_token": "<s>", "sep_token": "</s>"}
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": False, "special": True}
    _write_json(
        folder / "tokenizer_config.json",
        tokenizer_class="XLMRobertaTokenizer",
        model_max_length=N_POSITIONS - 2,
        mask_token=mask,
        **names,
    )


def make_demo_checkpoint(folder: str | Path, *, seed: int = 0) -> Path:
    """Write the demo checkpoint.

    Parameters
    ----------
    folder : str or Path
        Where to write; made if missing, files of the same names are replaced.
    seed : int
        Decides every random number; the same seed gives the same bytes.

    Returns
    -------
    Path
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    vocabulary = build_vocabulary()
    weights = {name: value.astype(np.float32) for name, value in _backbone(rng, vocabulary).items()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    _write_heads(folder, rng)
    _write_configs(folder, len(vocabulary))
    build_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    return folder


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make a tiny checkpoint in BGE-M3's format.")
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(make_demo_checkpoint(arguments.folder, seed=arguments.seed))


if __name__ == "__main__":
    main()
