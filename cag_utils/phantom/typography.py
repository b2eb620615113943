"""The hand that types a hospital note: widths, spaces, stops and line breaks, never the content.

NFKC normalisation and folded white space give the clean text back, up to commas and full stops.
Every share is a choice.
"""

import re

import numpy as np

from cag_utils.params import check_choice

TIDY_SHARE = 0.35  # of notes are typed cleanly
BREAK_SHARE = 0.08  # of joints between two sentences are a line break
SPACE_SHARE = 0.08  # ... carry one space too many
GLUE_SHARE = 0.06  # ... lack their space (English)
LOWER_SHARE = 0.15  # of English sentences start small in an untidy note
STRAY_SHARE = 0.05  # of sentences end with a doubled stop
OPEN_END_SHARE = 0.25  # of untidy notes lack the last stop
# habit -> share of untidy notes that have it throughout
ENGLISH_HABITS = {"tight_commas": 0.15, "yo": 0.15}
JAPANESE_HABITS = {
    "wide_digits": 0.12,
    "wide_letters": 0.03,
    "latin_commas": 0.12,
    "wide_stops": 0.06,
    "narrow_signs": 0.3,
    "wide_percent": 0.12,
    "tight_units": 0.12,
}
_WIDE_DIGITS = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(ord("0"), ord("9") + 1)})
_WIDE_LETTERS = str.maketrans(
    {chr(c): chr(c + 0xFEE0) for c in range(ord("A"), ord("z") + 1) if chr(c).isalpha()}
)


def type_note(rng: np.random.Generator, sentences: list[str], language: str) -> str:
    """Type sentences into one note as hospital notes look: some clean, most a little careless.

    Args:
        rng: Generator.
        sentences: Each with its full stop; not empty.
        language: en or ja.

    Returns:
        The note, without blank lines. English stays ASCII.

    Raises:
        ValueError: Unknown language, or no sentence.
    """
    check_choice("language", language, ("en", "ja"))
    if not sentences:
        raise ValueError("a note needs at least one sentence, got none")
    if rng.random() < TIDY_SHARE:
        return (" " if language == "en" else "").join(sentences)
    if language == "en":
        return _type_english(rng, sentences)
    return _type_japanese(rng, sentences)


def _type_english(rng, sentences: list[str]) -> str:
    habits = _draw_habits(rng, ENGLISH_HABITS)
    typed = []
    for sentence in sentences:
        # "Chest" may start small, "CABG" and "BP" may not
        starts_word = sentence[0].isupper() and sentence[1:2].islower()
        if starts_word and rng.random() < LOWER_SHARE and not sentence.startswith("LV"):
            sentence = sentence[0].lower() + sentence[1:]
        if "tight_commas" in habits:
            sentence = re.sub(r", (?=[A-Za-z])", ",", sentence)
        if "yo" in habits:
            sentence = re.sub(r"(\d+)(?:-year-old| y/o)\b", r"\1 yo", sentence)
        typed.append(sentence)
    return _finish(rng, typed, ".", " ", "  ")


def _type_japanese(rng, sentences: list[str]) -> str:
    habits = _draw_habits(rng, JAPANESE_HABITS)
    wide_space = rng.random() < 0.5
    note = _finish(rng, sentences, "。", "", "　" if wide_space else " ")
    if "tight_units" in habits:
        note = re.sub(r"(?<=[A-Za-z]) (?=\d)", "", note)
    if "latin_commas" in habits:
        note = note.replace("、", ", " if "narrow_signs" in habits else "，")
    if "narrow_signs" in habits:
        note = note.replace("：", ": ").replace("（", "(").replace("）", ")")
    if "wide_digits" in habits:
        note = note.translate(_WIDE_DIGITS)
    if "wide_letters" in habits:
        note = note.translate(_WIDE_LETTERS)
    if "wide_percent" in habits:
        note = note.replace("%", "％")
    if "wide_stops" in habits:  # the space keeps "280．68歳" from becoming one number
        note = re.sub(r"。(?=[^\n。])", "． ", note)
    return note.rstrip(" ")


def _draw_habits(rng, shares: dict[str, float]) -> set[str]:
    return {habit for habit, share in shares.items() if rng.random() < share}


def _finish(rng, sentences: list[str], stop: str, space: str, wide: str) -> str:
    """Join sentences with stray stops and uneven joints."""
    note = ""
    for i, sentence in enumerate(sentences):
        if rng.random() < STRAY_SHARE:
            sentence += stop
        if i:
            note += _joint(rng, note, sentence, space, wide)
        note += sentence
    return note.rstrip(stop) if rng.random() < OPEN_END_SHARE else note


def _joint(rng, before: str, after: str, space: str, wide: str) -> str:
    draw = rng.random()
    if draw < BREAK_SHARE:
        return "\n"
    if draw < BREAK_SHARE + SPACE_SHARE:
        return wide
    # Without a space a stop between digits would join two numbers.
    words = before[-2:-1].isalpha() and after[0].isalpha()
    if draw < BREAK_SHARE + SPACE_SHARE + GLUE_SHARE and words:
        return ""
    return space
