"""The built-in texts of the int8 export: many languages and scripts, in two halves that share no text."""

import unicodedata

from bgem3.export.calibration_texts import PASSAGES, SPECIAL, calibration_texts, held_out_pairs

TEXTS = [*(text for pair in PASSAGES.values() for text in pair), *SPECIAL]


def scripts_of(texts: list[str]) -> set[str]:
    return {unicodedata.name(letter).split()[0] for text in texts for letter in text if letter.isalpha()}


def test_at_least_40_languages_have_a_question_and_a_longer_passage() -> None:
    assert len(PASSAGES) >= 40
    assert [tag for tag, (question, passage) in PASSAGES.items() if len(passage) <= len(question)] == []


def test_the_halves_share_no_text_and_together_hold_every_pair() -> None:
    calibrated, held_out = calibration_texts(), held_out_pairs()
    assert [passage for _, passage in held_out if any(passage in text for text in calibrated)] == []
    assert [question for question, _ in held_out if any(question in text for text in calibrated)] == []
    calibrated_pairs = [pair for pair in PASSAGES.values() if set(pair) <= set(calibrated)]
    assert sorted(calibrated_pairs + held_out) == sorted(PASSAGES.values())
    assert abs(len(calibrated_pairs) - len(held_out)) <= 1


def test_every_text_is_nfc_and_stripped_and_encodes_as_utf_8() -> None:
    texts = [*TEXTS, *calibration_texts()]
    assert [text for text in texts if not unicodedata.is_normalized("NFC", text)] == []
    assert [text for text in texts if text != text.strip()] == []
    assert all(text.encode("utf-8").decode("utf-8") == text for text in texts)  # a lone surrogate raises


def test_no_text_occurs_twice() -> None:
    assert len(set(TEXTS)) == len(TEXTS)
    assert len(set(calibration_texts())) == len(calibration_texts())


def test_at_least_15_scripts_occur_and_each_half_has_10() -> None:
    held_out = [text for pair in held_out_pairs() for text in pair]
    assert len(scripts_of(TEXTS)) >= 15
    assert len(scripts_of(calibration_texts())) >= 10
    assert len(scripts_of(held_out)) >= 10


def test_calibration_sees_the_empty_text_and_one_of_over_1500_characters() -> None:
    texts = calibration_texts()
    assert "" in texts
    assert max(map(len, texts)) > 1500
