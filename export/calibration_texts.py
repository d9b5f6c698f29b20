"""Built-in texts in many languages: int8 is calibrated on one half and checked on the other.

calibration_texts.json holds a question and the passage that answers it for each BCP-47 language tag, and texts of
special kinds. All were written for this purpose. Languages that are related, or that share a script, stand side by
side, so the even and the odd places hold the same families.
"""

import json
from pathlib import Path

_TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
PASSAGES: dict[str, tuple[str, str]] = {language: tuple(pair) for language, pair in _TEXTS["passages"].items()}
SPECIAL: tuple[str, ...] = tuple(_TEXTS["special"])


def calibration_texts() -> list[str]:
    """Return the texts of the even places, and longer ones.

    A longer text joins two passages (about 250 tokens), or four or five (480 to 670), each of another language.
    """
    pairs = list(PASSAGES.values())[::2]
    passages = [passage for _, passage in pairs]
    steps = (len(passages) // 2, len(passages) // 4)
    longer = [" ".join(passages[start::step]) for step in steps for start in range(step)]
    return [text for pair in pairs for text in pair] + list(SPECIAL[::2]) + longer


def held_out_pairs() -> list[tuple[str, str]]:
    """Return the (question, passage) pairs of the odd places, which int8 is never calibrated on."""
    return list(PASSAGES.values())[1::2]
