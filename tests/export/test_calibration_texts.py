"""The built-in texts of the int8 export: many languages and scripts, in two halves that share no text."""

import unicodedata

from bgem3.export.calibration_texts import PASSAGES, SPECIAL, calibration_texts, held_out_pairs

TEXTS = [*(text for pair in PASSAGES.values() for text in pair), *SPECIAL]
HELD_OUT = [text for pair in held_out_pairs() for text in pair]


def test_many_languages_and_scripts_are_in_both_halves_which_share_no_text() -> None:
    calibrated = calibration_texts()
    assert len(PASSAGES) >= 40
    assert all(len(passage) > len(question) for question, passage in PASSAGES.values())
    assert not [text for text in HELD_OUT if any(text in other for other in calibrated)]
    assert {text for pair in PASSAGES.values() for text in pair} <= {*calibrated, *HELD_OUT}
    for texts, n_scripts in ((TEXTS, 15), (calibrated, 10), (HELD_OUT, 10)):
        assert len({unicodedata.name(letter).split()[0] for letter in "".join(texts) if letter.isalpha()}) >= n_scripts


def test_texts_are_distinct_and_normalized_and_go_from_empty_to_long() -> None:
    texts = calibration_texts()
    for listed in (TEXTS, texts):
        assert len(set(listed)) == len(listed)
        assert all(unicodedata.is_normalized("NFC", text) and text == text.strip() for text in listed)
    assert "" in texts
    assert max(map(len, texts)) > 1500
