"""FlagEmbedding and the drop-in class, run side by side on one checkpoint.

Where FlagEmbedding is at fault, the last tests state both results; see "Four differences" in `BGEM3FlagModel`.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from FlagEmbedding import BGEM3FlagModel as Reference

from bgem3.export import export_model
from bgem3.runtime import BGEM3FlagModel, BGEM3Model
from tests.runtime.flagembedding.comparison import (
    ALL_OUTPUTS,
    EMBEDDINGS_TOLERANCE,
    MAX_LENGTH,
    SCORES_TOLERANCE,
    SETTINGS,
    assert_same,
)

SCRIPTS = {
    "Latin": "All human beings are born free and equal in dignity and rights.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "Devanagari": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "Han": "人人生而自由，在尊严和权利上一律平等。",
    "Kana": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
}
SPECIAL_TOKENS = [
    *("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<mask><pad></s><s><unk>"),
    *("a <mask> b", "water <pad> <pad> fire", "one </s> two", "<s> to begin", "a rare <unk> word", "<MASK> < mask >"),
]
ODD_TEXTS = [
    *("family 👨‍👩‍👧‍👦 and flag 🏳️‍🌈 🇪🇺", "👍🏽 1️⃣ ❤️", "\U000200d0 and \U0001d518\U0001d52b\U0001d526"),
    *("cafe\u0301 and café", "Z\u0351\u0352a\u0310\u0311l\u0334g\u0335o\u0336", "ﬁne ＡＢＣ ½ ™", "שָׁלוֹם and السَّلَامُ"),
    *("", " ", "   ", "\t\n", "\u3000\u00a0", " leading", "trailing ", "  many   spaces  inside  "),
    *("tab\tand\nnewline\r\nends\n", "nul\x00inside", "\x07bell \x1b[0m \x7f", "\ufeffmark \u200bzero \u00ad"),
    *("\ue000 private", "\ufffd", "!?.,;:()[]{}", "0123456789 1,234.5 -6e7"),
]
REPEATED = [" ".join(["the"] * n_words) for n_words in (1, 10, 125, 126, 127, 500)]  # n_words + 2 tokens
TEXTS = [*SCRIPTS.values(), *REPEATED, "x" * 400, *SPECIAL_TOKENS, *ODD_TEXTS, *SCRIPTS.values()]
LONG_TEXT = " ".join(SCRIPTS.values())
PAIRS = [
    *itertools.pairwise(SCRIPTS.values()),
    *((text, text) for text in ("", "the sea", LONG_TEXT)),
    *(("All beings <mask>", text) for text in SPECIAL_TOKENS[::3]),
    *(("", "some text"), (LONG_TEXT, "short"), ("short", LONG_TEXT)),
]


class Models(NamedTuple):
    """FlagEmbedding's model and ours, of one checkpoint and precision."""

    reference: Any
    ours: Any


def open_both(checkpoint: Path, artifact: Path, **settings: Any) -> Models:
    """Open a checkpoint in FlagEmbedding and its artifact in the drop-in class, with the same settings."""
    return Models(Reference(str(checkpoint), **SETTINGS | settings), BGEM3FlagModel(artifact, **SETTINGS | settings))


@pytest.fixture(scope="module")
def bge_m3_checkpoint(
    bge_m3_tokenizer: Path, make_random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small random checkpoint with BGE-M3's own tokenizer: 1 layer, 32 wide, 2 heads, 128 tokens."""
    made = make_random_checkpoint(
        bge_m3_tokenizer,
        tmp_path_factory.mktemp("bge_m3"),
        hidden=32,
        layers=1,
        heads=2,
        intermediate=48,
        max_length=MAX_LENGTH,
        weight_std=0.2,
    )
    path = made / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"clean_up_tokenization_spaces": True}), encoding="utf-8")  # as BAAI/bge-m3
    return made


@pytest.fixture(scope="module")
def small_models(reference: Any, ours: BGEM3FlagModel) -> Models:
    """Both models over the demo's tokenizer in fp32."""
    return Models(reference, ours)


@pytest.fixture(scope="module", params=["demo", "bge_m3"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Both models: with the demo's tokenizer in fp32, with BGE-M3's own in fp16."""
    if request.param == "demo":
        small: Models = request.getfixturevalue("small_models")
        return small
    checkpoint, folder = request.getfixturevalue("bge_m3_checkpoint"), tmp_path_factory.mktemp("bge_m3") / "artifact"
    export_model(checkpoint, folder, ("fp16",))
    return open_both(checkpoint, folder, use_fp16=True)


@pytest.fixture(scope="module")
def encodings(models: Models) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every output for TEXTS, ours and FlagEmbedding's."""
    return models.ours.encode(TEXTS, **ALL_OUTPUTS), models.reference.encode(TEXTS, **ALL_OUTPUTS)


def score_alone(reference: Any, pairs: list[tuple[str, str]], **settings: Any) -> dict[str, list[float]]:
    """Score pairs with FlagEmbedding in batches of one, where there is no padding."""
    alone = [reference.compute_score([pair], **settings) for pair in pairs]
    return {key: [scores[key][0] for scores in alone] for key in alone[0]}


# --- encode


def test_all_outputs_equal_flagembeddings_in_keys_order_types_and_values(models: Models, encodings: Any) -> None:
    n_tokens = models.ours.model.encode(TEXTS, "dense", MAX_LENGTH).n_tokens.tolist()
    assert {2, 3, MAX_LENGTH - 1, MAX_LENGTH} <= set(n_tokens), "the texts lack a length"
    ours, reference = encodings
    assert_same(ours, reference, EMBEDDINGS_TOLERANCE)
    assert {type(weight) for weights in ours["lexical_weights"] for weight in weights.values()} == {np.float32}
    assert {vectors.dtype for vectors in (ours["dense_vecs"], *ours["colbert_vecs"])} == {np.dtype(np.float32)}


@pytest.mark.parametrize("max_length", [2, 17])
def test_texts_cut_at_any_length_equal_flagembeddings(models: Models, max_length: int) -> None:
    texts = [LONG_TEXT, SCRIPTS["Thai"], "the sea", "", "one </s> two"]
    ours, reference = (
        model.encode(texts, max_length=max_length, **ALL_OUTPUTS) for model in (models.ours, models.reference)
    )
    assert_same(ours, reference, EMBEDDINGS_TOLERANCE)
    assert len(ours["colbert_vecs"][0]) == max_length - 1


@pytest.mark.parametrize("is_wanted", [(True, True, True), (True, False, False), (False, True, True)], ids=str)
def test_outputs_not_asked_for_are_none(small_models: Models, is_wanted: tuple[bool, ...]) -> None:
    wanted = dict(zip(ALL_OUTPUTS, is_wanted, strict=True))
    for texts in (["the sea", "", SCRIPTS["Han"]], "one text", ""):
        ours, reference = (model.encode(texts, **wanted) for model in (small_models.ours, small_models.reference))
        assert_same(ours, reference, EMBEDDINGS_TOLERANCE)
        assert [values is not None for values in ours.values()] == list(is_wanted)


def test_the_constructors_settings_are_the_defaults_of_every_call(
    random_checkpoint: Path, random_artifact: Path
) -> None:
    models = open_both(
        random_checkpoint,
        random_artifact,
        use_fp16=True,
        query_instruction_for_retrieval="find what answers ",
        query_instruction_format="Instruct: {}\\nQuery: {}",
        passage_instruction_for_retrieval="the passage ",
        passage_instruction_format="{1} for {0}",
        query_max_length=20,
        passage_max_length=30,
        truncate_dim=32,
        **ALL_OUTPUTS,
    )
    found = []
    for method in ("encode", "encode_queries", "encode_corpus"):
        for texts in ([LONG_TEXT, "", "Почему?"], "one text"):
            ours, reference = (getattr(model, method)(texts) for model in (models.ours, models.reference))
            assert_same(ours, reference, EMBEDDINGS_TOLERANCE)
        found.append(ours["dense_vecs"])
    assert {vectors.shape for vectors in found} == {(32,)}
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(found, 2))
    pairs = [(LONG_TEXT, LONG_TEXT), ("short", LONG_TEXT)]  # scores are of whole vectors
    assert_same(models.ours.compute_score(pairs), score_alone(models.reference, pairs), SCORES_TOLERANCE)


def test_texts_in_batches_of_any_size_equal_flagembeddings(small_models: Models) -> None:
    texts = TEXTS[::3]
    for batch_size in (7, len(texts)):  # both show progress bars
        ours, reference = (
            model.encode(texts, batch_size, MAX_LENGTH, True, True, True)
            for model in (small_models.ours, small_models.reference)
        )
        assert_same(ours, reference, EMBEDDINGS_TOLERANCE)


# --- compute_score


@pytest.mark.parametrize("weights", [None, (0, 0, 1), np.array([1, -1, 3])], ids=str)
def test_the_five_scores_of_pairs_equal_flagembeddings(models: Models, weights: Any) -> None:
    ours = models.ours.compute_score(PAIRS, weights_for_different_modes=weights)
    reference = score_alone(models.reference, PAIRS, weights_for_different_modes=weights)
    assert_same(ours, reference, SCORES_TOLERANCE)
    assert list(ours) == ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]
    is_nan = np.isnan(ours["sparse+dense"])
    assert is_nan.all() if str(weights) == "(0, 0, 1)" else not is_nan.any()


def test_scores_that_padding_does_not_change_equal_flagembeddings_in_one_batch(models: Models) -> None:
    ours, reference = (model.compute_score(PAIRS) for model in (models.ours, models.reference))
    for key in ("sparse", "dense", "sparse+dense"):
        assert_same(ours[key], reference[key], SCORES_TOLERANCE)


def test_queries_and_passages_may_be_cut_at_different_lengths(models: Models) -> None:
    pairs = [(LONG_TEXT, LONG_TEXT), (SCRIPTS["Greek"], LONG_TEXT), (LONG_TEXT, "the sea"), ("", LONG_TEXT)]
    lengths = {"max_query_length": 20, "max_passage_length": 7}
    ours, reference = models.ours.compute_score(pairs, **lengths), score_alone(models.reference, pairs, **lengths)
    assert_same(ours, reference, SCORES_TOLERANCE)


def test_one_pair_gives_floats_and_no_pairs_an_empty_list(models: Models) -> None:
    for pair in (("the sea", SCRIPTS["Latin"]), ["", ""]):
        ours, reference = models.ours.compute_score(pair), models.reference.compute_score(pair)
        assert_same(ours, reference, SCORES_TOLERANCE)
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
        assert_same(ours, reference, SCORES_TOLERANCE)
    ours, reference = (
        model.compute_lexical_matching_score(side["lexical_weights"][:20], side["lexical_weights"][10:])
        for model, side in both
    )
    assert_same(ours, reference, SCORES_TOLERANCE)


def test_lexical_weights_that_are_not_two_dicts_or_two_lists_raise_in_both(small_models: Models) -> None:
    wrong: Any
    for wrong in (({"5": 1.0}, [{"5": 1.0}]), (({"5": 1.0},), ({"5": 1.0},)), ("5", "5")):
        for model, words in ((small_models.reference, "is not correct"), (small_models.ours, "two dicts or two lists")):
            with pytest.raises(ValueError, match=words):
                model.compute_lexical_matching_score(*wrong)


def test_token_ids_become_tokens_as_in_flagembedding(models: Models, encodings: Any) -> None:
    weights = encodings[1]["lexical_weights"]
    n_ids = models.ours.model.spec.vocab_size
    many_ids = [{str(token_id): 1.0} for token_id in (*range(0, n_ids, max(1, n_ids // 5000)), n_ids - 1)]
    asked: Any
    for asked in (many_ids, weights, weights[:1], weights[0], {}, [], [{}, {"5": 0.5}]):
        assert_same(models.ours.convert_id_to_token(asked), models.reference.convert_id_to_token(asked), 0.0)


# --- where FlagEmbedding is at fault


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
    demo_checkpoint: Path, demo_artifact: Path
) -> None:
    models = open_both(demo_checkpoint, demo_artifact)
    pairs = [("What is BGE M3?", "moon"), ("What is BGE M3?", "The pull of the moon causes the tides.")]
    query, short = models.reference.encode(pairs[0], **ALL_OUTPUTS)["colbert_vecs"]
    best = (query @ short.T).max(axis=1)  # (query tokens,)
    alone = score_alone(models.reference, pairs)["colbert"]
    batched = models.reference.compute_score(pairs)["colbert"]
    assert alone[0] == pytest.approx(best.mean(), rel=0, abs=SCORES_TOLERANCE)
    assert batched[0] == pytest.approx(np.maximum(best, 0.0).mean(), rel=0, abs=SCORES_TOLERANCE)
    assert batched[0] > alone[0] + 0.01
    assert_same(models.ours.compute_score(pairs)["colbert"], alone, SCORES_TOLERANCE)


def test_each_distinct_text_of_pairs_is_encoded_once(small_models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, encoded = BGEM3Model.encode, []

    def recording(self: BGEM3Model, texts: list[str], *options: Any) -> Any:
        encoded.extend(texts)
        return encode(self, texts, *options)

    monkeypatch.setattr(BGEM3Model, "encode", recording)
    pairs = list(itertools.product(["the sea", "moon"], ["a", "b", "c"]))
    for passage_length in (MAX_LENGTH, MAX_LENGTH - 1):  # as long as queries, or not
        encoded.clear()
        small_models.ours.compute_score(pairs, max_passage_length=passage_length)
        assert sorted(encoded) == ["a", "b", "c", "moon", "the sea"]
