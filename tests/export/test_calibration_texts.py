"""The built-in texts of the int8 export: many languages and scripts, in two halves that share no text."""

import unicodedata

from bgem3.export.calibration_texts import PASSAGES, calibration_texts, held_out_pairs


def test_many_languages_scripts_and_lengths_are_in_both_halves_which_share_no_text() -> None:
    calibrated, held_out = calibration_texts(), [text for pair in held_out_pairs() for text in pair]
    assert len(PASSAGES) >= 40
    assert {text for pair in PASSAGES.values() for text in pair} <= {*calibrated, *held_out}
    assert not [text for text in held_out if any(text in other for other in calibrated)]
    assert "" in calibrated
    assert max(map(len, calibrated)) > 1500
    for texts in (calibrated, held_out):
        assert len(set(texts)) == len(texts)
        assert len({unicodedata.name(letter).split()[0] for letter in "".join(texts) if letter.isalpha()}) >= 10
