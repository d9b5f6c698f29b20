"""FlagEmbedding 1.4.2 and bgem3's drop-in class, run side by side on one checkpoint.

Where FlagEmbedding is at fault, the last tests state both results; see "Differences" in `BGEM3FlagModel`.
"""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from FlagEmbedding import BGEM3FlagModel as Reference

from bgem3.export import export_model
from bgem3.runtime import BGEM3FlagModel, CheckpointError
from bgem3.runtime.artifact import Output
from bgem3.runtime.cpu_session import CpuSession
from bgem3.runtime.packing import PackedBatch
from tests.runtime.flagembedding.comparison import TOLERANCES, assert_same

MAX_LENGTH = 128  # tokens, of both checkpoints
ALL_OUTPUTS = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}

SCRIPTS = {
    "Latin": "All human beings are born free and equal in dignity and rights.",
    "Cyrillic": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Armenian": "Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով։",
    "Hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "Arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "Devanagari": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "Han": "人人生而自由，在尊严和权利上一律平等。",
    "Kana": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "Hangul": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
}
SPECIAL_TOKENS = [
    *("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<mask><pad></s><s><unk>"),
    *("a <mask> b", "water <pad> <pad> fire", "one </s> two", "<s> to begin", "a rare <unk> word", "<MASK> < mask >"),
]
EMOJI_AND_MARKS = [
    *("🎉", "family 👨‍👩‍👧‍👦 and flag 🏳️‍🌈 🇪🇺", "👍🏽 1️⃣ ❤️", "\U000200d0 and \U0001d518\U0001d52b\U0001d526"),
    *("cafe\u0301 and café", "Z\u0351\u0352a\u0310\u0311l\u0334g\u0335o\u0336", "\u0301", "Việt Nam", "ﬁne ＡＢＣ ½ ™"),
    *("שָׁלוֹם and السَّلَامُ", "\u202eright to left\u202c", "abc \u200fאבג\u200e 123"),
]
SPACES_AND_CONTROLS = [
    *("", " ", "   ", "\t\n", "\u3000\u00a0", " leading", "trailing ", "  many   spaces  inside  "),
    *("tab\tand\nnewline\r\nends\n", "nul\x00inside", "\x00", "\x07bell \x1b[0m \x7f", "\ufeffmark \u200bzero \u00ad"),
    *("\ue000 private", "\ufffd", "!?.,;:()[]{}", "a-b_c/d\\e|f", "0123456789 1,234.5 -6e7"),
]
WORD_COUNTS = [1, 2, 3, 10, 62, 125, 126, 127, 500]
TEXTS = [
    *SCRIPTS.values(),
    *(" ".join(["the"] * n_words) for n_words in WORD_COUNTS),  # n_words + 2 tokens
    " ".join(SCRIPTS.values()),
    "x" * 400,
    *SPECIAL_TOKENS,
    *EMOJI_AND_MARKS,
    *SPACES_AND_CONTROLS,
    *SCRIPTS.values(),  # again
]
LONG_TEXT = " ".join(SCRIPTS.values())
PAIRS = [
    *itertools.pairwise(SCRIPTS.values()),
    *((text, text) for text in ("", "the sea", SCRIPTS["Latin"], LONG_TEXT)),
    *(("All beings <mask>", text) for text in SPECIAL_TOKENS),
    *(("", "some text"), ("some text", " "), (LONG_TEXT, "short"), ("short", LONG_TEXT), ("👍🏽", "👍")),
]


@dataclass(frozen=True, kw_only=True)
class Models:
    """FlagEmbedding's model and ours, of one checkpoint and precision, with how far apart they may be."""

    reference: Any
    ours: Any
    embedding_tolerance: float
    score_tolerance: float


def open_both(checkpoint: Path, artifact: Path, precision: str, **settings: Any) -> Models:
    """Open a checkpoint in FlagEmbedding and its artifact in the drop-in class, with the same settings."""
    settings = {"query_max_length": MAX_LENGTH, "passage_max_length": MAX_LENGTH, **settings}
    settings |= {"devices": "cpu", "use_fp16": precision == "fp16"}
    return Models(
        reference=Reference(str(checkpoint), **settings),
        ours=BGEM3FlagModel(artifact, **settings),
        embedding_tolerance=TOLERANCES[precision]["embeddings"],
        score_tolerance=TOLERANCES[precision]["scores"],
    )


@pytest.fixture(scope="module")
def bge_m3_checkpoint(
    bge_m3_tokenizer: Path, make_random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small random checkpoint with BGE-M3's own tokenizer: 2 layers, 64 wide, 4 heads, 128 tokens."""
    made = make_random_checkpoint(
        bge_m3_tokenizer,
        tmp_path_factory.mktemp("bge_m3"),
        hidden=64,
        layers=2,
        heads=4,
        intermediate=96,
        max_length=MAX_LENGTH,
        weight_std=0.2,
    )
    path = made / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"clean_up_tokenization_spaces": True}), encoding="utf-8")  # as BAAI/bge-m3
    return made


@pytest.fixture(scope="module")
def bge_m3_artifact(bge_m3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with BGE-M3's tokenizer, exported as fp16."""
    folder = tmp_path_factory.mktemp("artifacts") / "bge_m3"
    export_model(bge_m3_checkpoint, folder, ("fp16",))
    return folder


@pytest.fixture(scope="module", params=[("random", "fp32"), ("bge_m3", "fp16")], ids="-".join)
def models(request: pytest.FixtureRequest) -> Models:
    """Both models: with the demo's tokenizer in fp32, with BGE-M3's own in fp16."""
    kind, precision = request.param
    checkpoint, artifact = (request.getfixturevalue(f"{kind}_{what}") for what in ("checkpoint", "artifact"))
    return open_both(checkpoint, artifact, precision)


@pytest.fixture(scope="module")
def small_models(random_checkpoint: Path, random_artifact: Path) -> Models:
    """Both models over the demo's tokenizer in fp32, for what depends on neither."""
    return open_both(random_checkpoint, random_artifact, "fp32")


@pytest.fixture(scope="module")
def encodings(models: Models) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every output for TEXTS, ours and FlagEmbedding's."""
    return models.ours.encode(TEXTS, **ALL_OUTPUTS), models.reference.encode(TEXTS, **ALL_OUTPUTS)


def score_alone(reference: Any, pairs: list[tuple[str, str]], **settings: Any) -> dict[str, list[float]]:
    """Score pairs with FlagEmbedding in batches of one, where there is no padding."""
    alone = [reference.compute_score([pair], **settings) for pair in pairs]
    return {key: [scores[key][0] for scores in alone] for key in alone[0]}


# --- encode


def test_the_texts_are_from_two_tokens_to_the_maximum_and_beyond(models: Models) -> None:
    encoded = models.ours.model.encode(TEXTS, "dense", MAX_LENGTH)
    assert {2, 3, 4, MAX_LENGTH - 1, MAX_LENGTH} <= set(encoded.n_tokens.tolist())
    is_repeated = slice(len(SCRIPTS), len(SCRIPTS) + len(WORD_COUNTS))
    assert encoded.n_tokens[is_repeated].tolist() == [min(n + 2, MAX_LENGTH) for n in WORD_COUNTS]
    assert encoded.truncated[is_repeated].tolist() == [n + 2 > MAX_LENGTH for n in WORD_COUNTS]


def test_all_outputs_equal_flagembeddings_in_keys_order_types_and_values(models: Models, encodings: Any) -> None:
    ours, reference = encodings
    assert_same(ours, reference, models.embedding_tolerance)
    assert {type(weight) for weights in ours["lexical_weights"] for weight in weights.values()} == {np.float32}
    assert {vectors.dtype for vectors in (ours["dense_vecs"], *ours["colbert_vecs"])} == {np.dtype(np.float32)}


def test_the_precisions_differ_by_more_than_the_tolerance(random_artifact: Path) -> None:
    fp32, fp16 = (
        BGEM3FlagModel(random_artifact, use_fp16=use_fp16, devices="cpu").encode(TEXTS, max_length=MAX_LENGTH)
        for use_fp16 in (False, True)
    )
    assert np.abs(fp32["dense_vecs"] - fp16["dense_vecs"]).max() > 2 * TOLERANCES["fp16"]["embeddings"]


@pytest.mark.parametrize("max_length", [2, 3, 17, 127])
def test_texts_cut_at_any_length_equal_flagembeddings(models: Models, max_length: int) -> None:
    texts = [LONG_TEXT, SCRIPTS["Thai"], "the sea", "", "one </s> two"]
    ours, reference = (
        model.encode(texts, max_length=max_length, **ALL_OUTPUTS) for model in (models.ours, models.reference)
    )
    assert_same(ours, reference, models.embedding_tolerance)
    assert len(ours["colbert_vecs"][0]) == max_length - 1


@pytest.mark.parametrize("text", [SCRIPTS["Kana"], "", "<mask>", LONG_TEXT], ids=["kana", "empty", "mask", "long"])
def test_one_text_gives_what_flagembedding_gives_without_the_list(models: Models, text: str) -> None:
    for method in ("encode", "encode_queries", "encode_corpus"):
        ours, reference = (getattr(model, method)(text, **ALL_OUTPUTS) for model in (models.ours, models.reference))
        assert_same(ours, reference, models.embedding_tolerance)
        assert ours["dense_vecs"].ndim == 1


@pytest.mark.parametrize("is_wanted", [flags for flags in itertools.product((True, False), repeat=3) if any(flags)])
def test_outputs_not_asked_for_are_none(small_models: Models, is_wanted: tuple[bool, ...]) -> None:
    wanted = dict(zip(ALL_OUTPUTS, is_wanted, strict=True))
    for texts in (["the sea", "", SCRIPTS["Han"]], "one text"):
        ours, reference = (model.encode(texts, **wanted) for model in (small_models.ours, small_models.reference))
        assert_same(ours, reference, small_models.embedding_tolerance)
        assert [values is not None for values in ours.values()] == list(is_wanted)


@pytest.mark.parametrize("template", ["{}{}", "Instruct: {}\\nQuery: {}", "{1} for {0}"])
def test_instructions_go_before_queries_and_passages_as_in_flagembedding(
    random_checkpoint: Path, random_artifact: Path, template: str
) -> None:
    models = open_both(
        random_checkpoint,
        random_artifact,
        "fp32",
        query_instruction_for_retrieval="find what answers ",
        query_instruction_format=template,
        passage_instruction_for_retrieval="the passage ",
        passage_instruction_format=template,
    )
    found = []
    for method in ("encode", "encode_queries", "encode_corpus"):
        for texts in (["the sea", "", "Почему?"], "one text"):
            ours, reference = (
                getattr(model, method)(texts, **ALL_OUTPUTS) for model in (models.ours, models.reference)
            )
            assert_same(ours, reference, models.embedding_tolerance)
        found.append(ours["dense_vecs"])
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(found, 2))


def test_the_constructors_settings_are_the_defaults_of_every_call(
    random_checkpoint: Path, random_artifact: Path
) -> None:
    models = open_both(
        random_checkpoint, random_artifact, "fp32", query_max_length=5, passage_max_length=9, **ALL_OUTPUTS
    )
    for method in ("encode", "encode_queries", "encode_corpus"):
        ours, reference = (getattr(model, method)([LONG_TEXT, "short"]) for model in (models.ours, models.reference))
        assert_same(ours, reference, models.embedding_tolerance)
        assert len(ours["colbert_vecs"][0]) == (4 if method == "encode_queries" else 8)
    pairs = [(LONG_TEXT, LONG_TEXT), ("short", LONG_TEXT)]
    assert_same(models.ours.compute_score(pairs), score_alone(models.reference, pairs), models.score_tolerance)


@pytest.mark.parametrize("truncate_dim", [1, 32])
def test_truncated_dimensions_equal_flagembeddings(
    random_checkpoint: Path, random_artifact: Path, truncate_dim: int
) -> None:
    models = open_both(random_checkpoint, random_artifact, "fp16", truncate_dim=truncate_dim)
    for texts in (TEXTS[::5], "one text"):
        ours, reference = (model.encode(texts, **ALL_OUTPUTS) for model in (models.ours, models.reference))
        assert_same(ours, reference, models.embedding_tolerance)
        assert ours["dense_vecs"].shape[-1] == truncate_dim
    ours, reference = models.ours.compute_score(PAIRS[:4]), score_alone(models.reference, PAIRS[:4])
    assert_same(ours, reference, models.score_tolerance)  # of whole vectors


def test_texts_in_batches_of_any_size_equal_flagembeddings(small_models: Models) -> None:
    texts = TEXTS[::3]
    for batch_size in (7, len(texts)):  # both show progress bars
        ours, reference = (
            model.encode(texts, batch_size, MAX_LENGTH, True, True, True)
            for model in (small_models.ours, small_models.reference)
        )
        assert_same(ours, reference, small_models.embedding_tolerance)


# --- compute_score


@pytest.mark.parametrize("weights", [None, np.array([0.4, 0.2, 0.4]), (0, 0, 1), [1, -1, 3]], ids=str)
def test_the_five_scores_of_pairs_equal_flagembeddings(models: Models, weights: Any) -> None:
    ours = models.ours.compute_score(PAIRS, weights_for_different_modes=weights)
    reference = score_alone(models.reference, PAIRS, weights_for_different_modes=weights)
    assert_same(ours, reference, models.score_tolerance)
    assert list(ours) == ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]
    is_nan = np.isnan(ours["sparse+dense"])
    assert is_nan.all() if str(weights) == "(0, 0, 1)" else not is_nan.any()


def test_scores_that_padding_does_not_change_equal_flagembeddings_in_one_batch(models: Models) -> None:
    ours, reference = (model.compute_score(PAIRS) for model in (models.ours, models.reference))
    for key in ("sparse", "dense", "sparse+dense"):
        assert_same(ours[key], reference[key], models.score_tolerance)


@pytest.mark.parametrize(("query_length", "passage_length"), [(2, 128), (20, 7), (7, 7)])
def test_queries_and_passages_may_be_cut_at_different_lengths(
    models: Models, query_length: int, passage_length: int
) -> None:
    pairs = [(LONG_TEXT, LONG_TEXT), (SCRIPTS["Greek"], LONG_TEXT), (LONG_TEXT, "the sea"), ("", LONG_TEXT)]
    lengths = {"max_query_length": query_length, "max_passage_length": passage_length}
    ours, reference = models.ours.compute_score(pairs, **lengths), score_alone(models.reference, pairs, **lengths)
    assert_same(ours, reference, models.score_tolerance)


def test_one_pair_gives_floats_and_no_pairs_an_empty_list(models: Models) -> None:
    for pair in (("the sea", SCRIPTS["Latin"]), ["", ""]):
        ours, reference = models.ours.compute_score(pair), models.reference.compute_score(pair)
        assert_same(ours, reference, models.score_tolerance)
        assert {type(score) for score in ours.values()} == {float}
    assert models.ours.compute_score([]) == models.reference.compute_score([]) == []


# --- the smaller methods


def test_lexical_and_colbert_scores_equal_flagembeddings(models: Models, encodings: Any) -> None:
    both = list(zip((models.ours, models.reference), encodings, strict=True))
    for i, j in itertools.product(range(0, len(TEXTS), 9), range(0, len(TEXTS), 5)):
        ours, reference = (
            [
                model.compute_lexical_matching_score(side["lexical_weights"][i], side["lexical_weights"][j]),
                model.colbert_score(side["colbert_vecs"][i], side["colbert_vecs"][j]).item(),
            ]
            for model, side in both
        )
        assert_same(ours, reference, models.score_tolerance)
    ours, reference = (
        model.compute_lexical_matching_score(side["lexical_weights"][:20], side["lexical_weights"][10:])
        for model, side in both
    )
    assert_same(ours, reference, models.score_tolerance)


@pytest.mark.parametrize("wrong", [({"5": 1.0}, [{"5": 1.0}]), (({"5": 1.0},), ({"5": 1.0},)), ("5", "5")])
def test_lexical_weights_that_are_not_two_dicts_or_two_lists_raise_in_both(small_models: Models, wrong: Any) -> None:
    for model, words in ((small_models.reference, "is not correct"), (small_models.ours, "two dicts or two lists")):
        with pytest.raises(ValueError, match=words):
            model.compute_lexical_matching_score(*wrong)


def test_token_ids_become_tokens_as_in_flagembedding(models: Models, encodings: Any) -> None:
    weights = encodings[1]["lexical_weights"]
    asked: Any
    for asked in (weights, weights[:2], weights[:1], weights[0], {}, [], [{}, {"5": 0.5}]):
        assert_same(models.ours.convert_id_to_token(asked), models.reference.convert_id_to_token(asked), 0.0)


def test_every_token_id_becomes_flagembeddings_token(models: Models) -> None:
    every_id = [{str(token_id): 1.0} for token_id in range(models.ours.model.spec.vocab_size)]
    ours, reference = (model.convert_id_to_token(every_id) for model in (models.ours, models.reference))
    assert ours == reference
    assert {"<s>": 1.0} in ours[:1]
    assert {"<mask>": 1.0} in ours[-1:]


# --- where FlagEmbedding is at fault


@pytest.mark.parametrize("head", ["sparse_linear.pt", "colbert_linear.pt"])
def test_a_missing_head_is_random_in_flagembedding_and_an_error_here(
    random_checkpoint: Path, tmp_path: Path, head: str
) -> None:
    checkpoint = shutil.copytree(random_checkpoint, tmp_path / "checkpoint")
    (checkpoint / head).unlink()

    def encode(seed: int) -> Any:
        torch.manual_seed(seed)  # some heads give no token of a text a weight, and then two are alike
        return Reference(str(checkpoint), devices="cpu", use_fp16=False).encode("the sea", **ALL_OUTPUTS)

    first, second = encode(1), encode(2)
    assert np.array_equal(first["dense_vecs"], second["dense_vecs"])
    assert first["lexical_weights"] != second["lexical_weights"]
    assert np.abs(first["colbert_vecs"] - second["colbert_vecs"]).max() > 0.01
    with pytest.raises(CheckpointError, match=head):
        BGEM3FlagModel(checkpoint, devices="cpu", cache_dir=tmp_path / "cache")


def test_an_empty_list_raises_in_flagembedding_and_gives_empty_results_here(small_models: Models) -> None:
    with pytest.raises(IndexError, match="list index out of range"):
        small_models.reference.encode([], **ALL_OUTPUTS)
    ours = small_models.ours.encode([], **ALL_OUTPUTS)
    assert ours["dense_vecs"].shape == (0, small_models.ours.model.spec.hidden_size)
    assert ours["dense_vecs"].dtype == np.float32
    assert ours["lexical_weights"] == []
    assert ours["colbert_vecs"] == []


def test_more_tokens_than_the_model_takes_break_flagembeddings_model_and_raise_here(small_models: Models) -> None:
    with pytest.raises(IndexError, match="index out of range in self"):
        small_models.reference.encode([LONG_TEXT], max_length=MAX_LENGTH + 1)
    with pytest.raises(ValueError, match=f"max_length must be from 2 .* to {MAX_LENGTH} tokens"):
        small_models.ours.encode([LONG_TEXT], max_length=MAX_LENGTH + 1)


def test_padding_raises_a_short_passages_multi_vector_score_in_flagembedding_and_not_here(
    demo_checkpoint: Path, tmp_path: Path
) -> None:
    export_model(demo_checkpoint, tmp_path / "artifact", ("fp32",))
    models = open_both(demo_checkpoint, tmp_path / "artifact", "fp32")
    query, short, long = "What is BGE M3?", "moon", "The pull of the moon causes the tides."
    query_vectors, passage_vectors = models.reference.encode([query, short], **ALL_OUTPUTS)["colbert_vecs"]
    best = (query_vectors @ passage_vectors.T).max(axis=1)  # (Q,)
    assert best.min() < -0.05  # less like every vector of the passage than like a padding vector of zeros

    alone = models.reference.compute_score([(query, short)])["colbert"][0]
    batched = models.reference.compute_score([(query, short), (query, long)])["colbert"][0]
    assert alone == pytest.approx(best.mean(), rel=0, abs=models.score_tolerance)
    assert batched == pytest.approx(np.maximum(best, 0.0).mean(), rel=0, abs=models.score_tolerance)
    assert batched > alone + 0.01

    for pairs in ([(query, short)], [(query, short), (query, long)]):
        ours = models.ours.compute_score(pairs)
        assert_same(ours["colbert"], score_alone(models.reference, pairs)["colbert"], models.score_tolerance)


class TokenCounter:
    """Counts the tokens of each forward pass of both models, padding left out."""

    def __init__(self, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours: list[int] = []
        self.reference: list[int] = []
        run, encoder = CpuSession.run, models.reference.model.model
        forward = encoder.forward

        def counted_run(session: CpuSession, batch: PackedBatch, outputs: tuple[Output, ...]) -> Any:
            self.ours.append(len(batch.token_ids))
            return run(session, batch, outputs)

        def counted_forward(*args: Any, **features: Any) -> Any:
            self.reference.append(int(features["attention_mask"].sum()))
            return forward(*args, **features)

        monkeypatch.setattr(CpuSession, "run", counted_run)
        monkeypatch.setattr(encoder, "forward", counted_forward)


def test_flagembedding_runs_batches_and_texts_again_and_we_run_each_text_once(
    small_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, passages = ["the sea", SCRIPTS["Han"]], [SCRIPTS["Latin"], SCRIPTS["Greek"], "moon"]
    pairs = list(itertools.product(queries, passages))
    n_query_tokens, n_passage_tokens = (
        int(small_models.ours.model.encode(texts, "dense").n_tokens.sum()) for texts in (queries, passages)
    )
    counter = TokenCounter(small_models, monkeypatch)
    for model in (small_models.ours, small_models.reference):
        model.encode(passages, **ALL_OUTPUTS)
    assert (sum(counter.ours), counter.reference) == (n_passage_tokens, [n_passage_tokens, n_passage_tokens])
    for passage_length in (MAX_LENGTH, MAX_LENGTH - 1):  # as long as queries, or not
        counter.ours.clear()
        counter.reference.clear()
        for model in (small_models.ours, small_models.reference):
            model.compute_score(pairs, max_passage_length=passage_length)
        assert counter.reference == [len(passages) * n_query_tokens, len(queries) * n_passage_tokens]
        assert sum(counter.ours) == n_query_tokens + n_passage_tokens
