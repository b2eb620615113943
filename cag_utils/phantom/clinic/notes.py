"""Write a phantom patient's pre-procedure note: sentences from patterns, typed as on a ward."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import yaml

from cag_utils.params import check_choice
from cag_utils.phantom.clinic.patients import SEXES, Record

Pair = tuple[str, str]  # English, Japanese
LANGUAGES = ("en", "ja")
WORDS_LOW, WORDS_HIGH = 25, 60  # English words of a report; choice
WORDS_USUAL = 42  # beyond this nothing optional is added; choice, as every token costs training
COMPLAINT_SHARE = 0.35  # of patients with symptoms are introduced by their complaint; choice
BRIEF_SHARE = 0.6  # of lists behind a colon use abbreviations; choice
MIXED_SHARE = 0.3  # of those mix them with words; choice
SEPARATORS = {"en": (", ", "/", ", "), "ja": ("、", ",", "/", "・")}  # of abbreviated lists


@functools.cache
def phrases() -> SimpleNamespace:
    """Return the sentence patterns of `phrases.yaml`, lists as tuples, a table an attribute."""

    def fixed(x):
        if isinstance(x, dict):
            return {key: fixed(value) for key, value in x.items()}
        return tuple(map(fixed, x)) if isinstance(x, list) else x

    text = Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8")
    return SimpleNamespace(**fixed(yaml.safe_load(text)))


class Sentence(NamedTuple):
    """One sentence in both languages."""

    pattern: Pair  # the pair of templates it was filled from
    en: str  # english
    ja: str  # japanese


def write_report(rng: np.random.Generator, record: Record) -> dict[str, str]:
    """Write the pre-procedure report: history and indication, no finding, no date, no name.

    Args:
        rng: Generator; picks patterns, the same in both languages, and each language's typing.
        record: From `draw_record`.

    Returns:
        `{"ja": ..., "en": ...}`, sentence by sentence the same; 25 to 60 English words before
        careless typing glues some of them.

    Raises:
        ValueError: The record lacks a detail that a sentence quotes.
    """
    sentences = write_sentences(rng, record)
    return {la: type_note(rng, [getattr(s, la) for s in sentences], la) for la in ("ja", "en")}


def write_sentences(rng: np.random.Generator, record: Record) -> list[Sentence]:
    """Return the sentences of a report in their order, before they are typed.

    Who, why, history and the first test are always told; further tests, drugs, the request and
    small talk as far as the drawn length goes.

    Raises:
        ValueError: The record lacks a detail that a sentence quotes.
    """
    values = {language: _values(record, i) for i, language in enumerate(LANGUAGES)}
    needed = _introduction(rng, record)
    if record.history:
        needed += [_pick(rng, phrases().histories[key]) for key in record.history]
    else:
        needed.append(_pick(rng, phrases().no_history))
    tests = [_pick(rng, phrases().tests[key]) for key in record.tests]
    drugs = phrases().medications if record.drugs else phrases().no_medications
    extras = [_pick(rng, phrases().requests), _pick(rng, drugs), *tests[1:]]
    order = rng.permutation(len(extras))
    fillers = [phrases().fillers[i] for i in rng.permutation(len(phrases().fillers))]
    told = [_fill(rng, pair, values, record) for pair in needed + tests[:1]]
    wanted = int(rng.integers(WORDS_LOW, WORDS_USUAL))
    return _lengthen(
        told, [(int(i), _fill(rng, extras[i], values, record)) for i in order], fillers, wanted
    )


def _lengthen(
    told: list[Sentence], extras: list[tuple[int, Sentence]], fillers: list, wanted: int
) -> list[Sentence]:
    """Add drawn sentences until the note is long enough; the request, number 0, comes last."""
    chosen: list[tuple[int, Sentence]] = []
    count = sum(_words(s) for s in told)
    for place, sentence in [*extras, *((99, Sentence(p, *p)) for p in fillers)]:
        if count < wanted and count + _words(sentence) <= WORDS_HIGH:
            chosen.append((place or 1000, sentence))
            count += _words(sentence)
    chosen.sort(key=lambda item: item[0])
    return told + [sentence for _, sentence in chosen]


def _introduction(rng, record: Record) -> list[Pair]:
    """Who comes and why, in one of two orders."""
    has_risks = bool(record.risk_factors)
    if record.indication in phrases().complaints and rng.random() < COMPLAINT_SHARE:
        apart = phrases().risks_apart if has_risks else phrases().no_risks_apart
        return [_pick(rng, phrases().openings_with_complaint), _pick(rng, apart)]
    openings = phrases().openings if has_risks else phrases().openings_without_risks
    return [_pick(rng, openings), _pick(rng, phrases().indications[record.indication])]


def _fill(rng, pair: Pair, values: Mapping[str, Mapping], record: Record) -> Sentence:
    """Fill a pattern in both languages; each may abbreviate a list in its own way."""
    filled = []
    for i, (language, text) in enumerate(zip(LANGUAGES, pair, strict=True)):
        slots = dict(values[language])
        if "risks}" in text.lower():
            slots["risks"] = _risk_list(rng, record, i, brief="：" in pair[1])
        slots |= {key.capitalize(): _capital(slots[key]) for key in _CAPITALISED if key in slots}
        try:
            filled.append(text.format(**slots))
        except KeyError as error:
            raise ValueError(
                f"{text!r} quotes {error}, which this record's details lack: use draw_record"
            ) from error
    return Sentence(pair, *filled)


_CAPITALISED = ("sex", "an", "risks", "complaint", "stress", "surgery")


def _values(record: Record, i: int) -> dict[str, object]:
    """What the slots of one language hold: numbers, and words in that language."""
    details = record.details
    values = {
        **details, "age": record.age, "an": "an" if str(record.age).startswith("8") else "a",
        "sex": SEXES[record.sex][i], "letter": record.sex, "ef": record.ef,
        "drugs": _listed([phrases().drugs[key][i] for key in record.drugs], i),
    }  # fmt: skip
    for event in record.history:
        if f"{event}_months" in details:
            values[f"{event}_ago"] = _span(details[f"{event}_months"], i)
    if "stress_kind" in details:
        values["stress"] = phrases().stress_tests[details["stress_kind"]][i]
    if "surgery" in details:
        values["surgery"] = phrases().surgeries[details["surgery"]][i]
    if details and record.indication in phrases().complaints:
        values["complaint"] = phrases().complaints[record.indication][i].format(**values)
    return values


def _risk_list(rng, record: Record, i: int, brief: bool) -> str:
    brief = brief and rng.random() < BRIEF_SHARE
    mixed = brief and rng.random() < MIXED_SHARE
    names = []
    for key in record.risk_factors:
        short = brief and not (mixed and rng.random() < 0.5)
        spellings = phrases().risk_factors[key][short][i]
        names.append(spellings[int(rng.integers(len(spellings)))])
    if not brief:
        return _listed(names, i)
    separators = SEPARATORS[LANGUAGES[i]]
    return separators[int(rng.integers(len(separators)))].join(names)


def _listed(names: list[str], i: int) -> str:
    if i == 1:
        return "、".join(names)
    return " and ".join(", ".join(names).rsplit(", ", 1))


def _span(months: int, i: int) -> str:
    """How long ago, in whole years where they fit."""
    number, unit = (months // 12, "years") if months >= 24 else (months, "months")
    return f"{number} {unit}" if i == 0 else f"{number}{'年' if unit == 'years' else 'か月'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(sentence: Sentence) -> int:
    return len(sentence.en.split())


def _pick(rng, options: tuple) -> Pair:
    return options[int(rng.integers(len(options)))]


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
    "wide_digits": 0.12, "wide_letters": 0.03, "latin_commas": 0.12, "wide_stops": 0.06,
    "narrow_signs": 0.3, "wide_percent": 0.12, "tight_units": 0.12,
}  # fmt: skip
_WIDE_DIGITS = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(ord("0"), ord("9") + 1)})
_WIDE_LETTERS = str.maketrans(
    {chr(c): chr(c + 0xFEE0) for c in range(ord("A"), ord("z") + 1) if chr(c).isalpha()}
)


def type_note(rng: np.random.Generator, sentences: list[str], language: str) -> str:
    """Type sentences into one note as hospital notes look: some clean, most a little careless.

    Args:
        sentences: Each with its full stop; not empty.

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
