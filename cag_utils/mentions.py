"""Find the places and grades that a clause mentions, with where they stand."""

import re
import unicodedata
from typing import NamedTuple

from cag_utils import lexicon


class Mark(NamedTuple):
    """Something found in a clause: a place (artery or segment) or a grade.

    Attributes:
        start: First character.
        end: One past the last character.
        artery: RCA, LM, LAD, LCX, or LCA where only the left side is named.
        segment: AHA number as stated.
        percent: 0 to 100; None for a place.
        whole: The place is a whole artery or side, and may only introduce a segment.
    """

    start: int
    end: int
    artery: str | None = None
    segment: int | None = None
    percent: int | None = None
    whole: bool = False


def normalise(text: str) -> str:
    """Return the text with plain digits and signs, in lower case, without Markdown."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("–", "-").replace("—", ", ")
    plain = plain.replace("〜", "~").replace("♯", "#")
    plain = re.sub(r"^\s*(?:#{1,6}\s+|[-*•]\s+|\d{1,2}[.)]\s+)", "", plain, flags=re.MULTILINE)
    return re.sub(r"[*`_]+", "", plain)


def find_places(clause: str, language: str) -> list[Mark]:
    """Return the arteries and segments of a clause, left to right.

    Args:
        clause: Normalised text.
        language: en or ja.

    Returns:
        One mark a place; an artery and its segment number become one.
    """
    named = [_named_place(m) for m in lexicon.PLACE[language].finditer(clause)]
    numbers = [n for m in lexicon.NUMBER[language].finditer(clause) for n in _numbered(m)]
    for place in named:
        bare = lexicon.BARE_NUMBER.match(clause, place.end)
        if bare and place.artery in lexicon.PART_OF:
            numbers.append(Mark(bare.start(), bare.end(), segment=int(bare[1])))
    merged, used = [], set()
    for number in sorted(set(numbers), key=order):
        owner = _owner(clause, number, named)
        used |= {owner} if owner else set()
        merged.append(number._replace(artery=owner.artery if owner else None))
    return sorted([place for place in named if place not in used] + merged, key=order)


def _owner(clause: str, number: Mark, named: list[Mark]) -> Mark | None:
    """Return the artery a segment number belongs to: "LCX (#11", "segment 7 of the LAD"."""
    ahead = [p for p in named if p.end <= number.start]
    if ahead and lexicon.GAP_BEFORE_NUMBER.fullmatch(clause[ahead[-1].end : number.start]):
        return ahead[-1]
    behind = [p for p in named if p.start >= number.end]
    if behind and lexicon.GAP_AFTER_NUMBER.fullmatch(clause[number.end : behind[0].start]):
        return behind[0]
    return None


def _named_place(match: re.Match) -> Mark:
    name = next(key for key in lexicon.PLACE_OF if match[key.replace(" ", "_")])
    artery, segment = lexicon.PLACE_OF[name]
    part = f"{match['before'] or ''}{match['after'] or ''}"
    if segment is None and part and artery in lexicon.PART_OF and name == artery.lower():
        which = next(i for i, words in enumerate(lexicon.PARTS) if any(w in part for w in words))
        segment = lexicon.PART_OF[artery][which]
    whole = segment is None and name == artery.lower()  # not a diagonal or septal branch
    return Mark(match.start(), match.end(), artery, segment, whole=whole)


def _numbered(match: re.Match) -> list[Mark]:
    digits = next(filter(None, match.groups()))
    return [Mark(match.start(), match.end(), segment=int(n)) for n in re.findall(r"\d+", digits)]


def find_grades(clause: str, language: str) -> list[Mark]:
    """Return percentages, or words for a grade where no percentage stands.

    Args:
        clause: Normalised text.
        language: en or ja.

    Returns:
        One mark a grade. Ejection fractions and upper bounds ("less than 50%") are left out.
    """
    marks = [
        Mark(m.start(), m.end(), percent=int(m[1]))
        for m in lexicon.PERCENT[language].finditer(clause)
        if int(m[1]) <= 100
        and not lexicon.NOT_STENOSIS_BEFORE.search(clause[: m.start()])
        and not lexicon.NOT_STENOSIS_AFTER.match(clause[m.end() :])
    ]
    if not marks and not lexicon.STENOSIS[language].search(clause):
        return []
    if not marks:
        return _graded_words(clause, language, lexicon.GRADE_WORDS)
    occluded = _graded_words(clause, language, (99, 100))
    return marks + [word for word in occluded if word.percent not in {m.percent for m in marks}]


def _graded_words(clause: str, language: str, grades) -> list[Mark]:
    marks, taken = [], []
    for grade in grades:
        if grade == 75 and marks:  # "significant" says less than any other word
            break
        for m in lexicon.GRADE_WORDS[grade][language].finditer(clause):
            if not any(m.start() < end and start < m.end() for start, end in taken):
                marks.append(Mark(m.start(), m.end(), percent=grade))
                taken.append(m.span())
    return marks


def order(mark: Mark) -> tuple[int, int]:
    """Sort key: where a mark stands; segments of one list by number."""
    return mark.start, mark.segment or 0
