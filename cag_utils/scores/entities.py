"""Read what a report states: side, stenoses with segment and grade, absence, plan. EN and JA.

Rule-based on purpose: the reader of a model's output must not be a model. It reads the study's
format exactly and free text with the usual spellings, whose vocabulary is in `lexicon`.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cag_utils.params import check_choice
from cag_utils.scores import lexicon
from cag_utils.segments import AHA_SEGMENTS, artery_of, laterality_of


class Stenosis(NamedTuple):
    """One stated stenosis; None is what the text does not say."""

    artery: str | None  # RCA, LM, LAD or LCX as named; from the segment if none is named
    segment: int | None  # AHA number as stated: one above 15 is kept, to be judged wrong
    percent: int | None  # 0 to 100 as stated; of words: mild 25, moderate 50, severe 90, ...


@dataclass(frozen=True)
class Entities:
    """What a text states."""

    sides: frozenset[str] = frozenset()  # LCA, RCA: named as such, or by artery or segment
    stenoses: tuple[Stenosis, ...] = ()  # distinct, by AHA number, unknown segments last
    cleared: frozenset[str] = frozenset()  # where none is: sides, arteries, `#6`, or `all`
    plans: tuple[str, ...] = ()  # keys of `lexicon.PLANS`, distinct, as they appear

    @property
    def laterality(self) -> str | None:
        """The one side the text names; None if it names none or both."""
        return next(iter(self.sides)) if len(self.sides) == 1 else None

    @property
    def segments(self) -> frozenset[int]:
        """AHA numbers of the stated stenoses."""
        return frozenset(s.segment for s in self.stenoses if s.segment is not None)

    @property
    def worst_percent(self) -> int | None:
        """Highest stated grade; 0 where only absence is stated; None where nothing is."""
        stated = [s.percent for s in self.stenoses if s.percent is not None]
        return max(stated) if stated else (0 if self.no_stenosis else None)

    @property
    def no_stenosis(self) -> bool:
        """The text says that there is no (significant) stenosis, and states none."""
        return bool(self.cleared) and not self.stenoses

    @property
    def plan(self) -> str | None:
        """The plan that decides what is done next (`lexicon.PLAN_PRIORITY`), or None."""
        return min(self.plans, key=lexicon.PLAN_PRIORITY.index, default=None)

    @property
    def unparseable(self) -> bool:
        """Nothing of use was read: no stenosis, no absence and no plan."""
        return not (self.stenoses or self.cleared or self.plans)


def read_entities(text: str, language: str) -> Entities:
    """Read what a findings text states.

    Args:
        text: Free text; may be empty.
        language: en or ja. `ja` also understands English, which Japanese notes mix in.

    Raises:
        ValueError: `language` is neither en nor ja.
    """
    check_choice("language", language, ("en", "ja"))
    sentences = [s for s in lexicon.SENTENCE.split(_normalise(text)) if s.strip()]
    read = [_read_sentence(sentence, language) for sentence in sentences]
    places = [_find_places(s, language) for s in sentences]
    stenoses = _located([found for found, _ in read], places)
    plans = [plan for s in sentences for plan in _plans(s, language)]
    shown = [s for s in sentences if not lexicon.NOT_IMAGED[language].search(s)]
    sides = {_side(place) for s in shown for place in _find_places(s, language)}
    return Entities(
        sides=frozenset(sides - {None}),
        stenoses=_distinct(stenoses),
        cleared=frozenset(scope for _, cleared in read for scope in cleared),
        plans=tuple(dict.fromkeys(plans)),
    )


class _Mark(NamedTuple):
    """A place (artery or segment) or a grade in a clause; `whole` may only introduce a segment."""

    start: int
    end: int
    artery: str | None = None  # RCA, LM, LAD, LCX, or LCA where only the left side is named
    segment: int | None = None  # AHA number as stated
    percent: int | None = None  # None for a place
    whole: bool = False  # an artery or side without a segment


def _normalise(text: str) -> str:
    """Return the text with plain digits and signs, in lower case, without Markdown."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("–", "-").replace("—", ", ")
    plain = plain.replace("〜", "~").replace("♯", "#")
    plain = re.sub(r"^\s*(?:#{1,6}\s+|[-*•]\s+|\d{1,2}[.)]\s+)", "", plain, flags=re.MULTILINE)
    return re.sub(r"[*`_]+", "", plain)


def _find_places(clause: str, language: str) -> list[_Mark]:
    """Return the places of a clause, left to right; an artery and its segment become one."""
    named = [_named_place(m) for m in lexicon.PLACE[language].finditer(clause)]
    numbers = [
        _Mark(m.start(), m.end(), segment=int(digits))
        for m in lexicon.NUMBER[language].finditer(clause)
        for digits in re.findall(r"\d+", next(filter(None, m.groups())))
    ]
    for place in named:
        bare = lexicon.BARE_NUMBER.match(clause, place.end)
        if bare and place.artery in lexicon.PART_OF:
            numbers.append(_Mark(bare.start(), bare.end(), segment=int(bare[1])))
    owners = {number: _owner(clause, number, named) for number in sorted(set(numbers), key=_order)}
    merged = [n._replace(artery=owner.artery if owner else None) for n, owner in owners.items()]
    alone = [place for place in named if place not in owners.values()]
    return sorted(alone + merged, key=_order)


def _owner(clause: str, number: _Mark, named: list[_Mark]) -> _Mark | None:
    """Return the artery a segment number belongs to: "LCX (#11", "segment 7 of the LAD"."""
    ahead = [p for p in named if p.end <= number.start]
    if ahead and lexicon.GAP_BEFORE_NUMBER.fullmatch(clause[ahead[-1].end : number.start]):
        return ahead[-1]
    behind = [p for p in named if p.start >= number.end]
    if behind and lexicon.GAP_AFTER_NUMBER.fullmatch(clause[number.end : behind[0].start]):
        return behind[0]
    return None


def _named_place(match: re.Match) -> _Mark:
    name = next(key for key in lexicon.PLACE_OF if match[key.replace(" ", "_")])
    artery, segment = lexicon.PLACE_OF[name]
    part = f"{match['before'] or ''}{match['after'] or ''}"
    if segment is None and part and artery in lexicon.PART_OF and name == artery.lower():
        which = next(i for i, words in enumerate(lexicon.PARTS) if any(w in part for w in words))
        segment = lexicon.PART_OF[artery][which]
    whole = segment is None and name == artery.lower()  # not a diagonal or septal branch
    return _Mark(match.start(), match.end(), artery, segment, whole=whole)


def _find_grades(clause: str, language: str) -> list[_Mark]:
    """Return percentages (no ejection fractions or upper bounds), or words where none stands."""
    marks = [
        _Mark(m.start(), m.end(), percent=int(m[1]))
        for m in lexicon.PERCENT[language].finditer(clause)
        if int(m[1]) <= 100
        and not lexicon.NOT_STENOSIS_BEFORE.search(clause[: m.start()])
        and not lexicon.NOT_STENOSIS_AFTER.match(clause[m.end() :])
    ]
    if not marks:
        stated = lexicon.STENOSIS[language].search(clause)
        return _graded_words(clause, language, lexicon.GRADE_WORDS) if stated else []
    occluded = _graded_words(clause, language, (99, 100))
    return marks + [word for word in occluded if word.percent not in {m.percent for m in marks}]


def _graded_words(clause: str, language: str, grades) -> list[_Mark]:
    marks, taken = [], []
    for grade in grades:
        if grade == 75 and marks:  # "significant" says less than any other word
            break
        for m in lexicon.GRADE_WORDS[grade][language].finditer(clause):
            if not any(m.start() < end and start < m.end() for start, end in taken):
                marks.append(_Mark(m.start(), m.end(), percent=grade))
                taken.append(m.span())
    return marks


def _order(mark: _Mark) -> tuple[int, int]:
    """Sort by where a mark stands; segments of one list by number."""
    return mark.start, mark.segment or 0


def _side(place: _Mark) -> str | None:
    if place.artery:
        return "RCA" if place.artery == "RCA" else "LCA"
    return laterality_of(place.segment) if place.segment in AHA_SEGMENTS else None


def _read_sentence(sentence: str, language: str) -> tuple[list[Stenosis], set[str]]:
    """Return the stenoses a sentence states and the places it clears."""
    if lexicon.NONE_AT_ALL.match(sentence):
        return [], {"all"}
    if not lexicon.ABSENCE[language].search(sentence):
        return _stenoses(sentence, language), set()
    stenoses, cleared, denied = [], set(), False
    for clause in filter(str.strip, lexicon.CLAUSE[language].split(sentence)):
        absent = bool(lexicon.ABSENCE[language].search(clause))
        elsewhere = bool(lexicon.ELSEWHERE[language].search(clause))
        found = [] if absent else _stenoses(clause, language)
        stenoses += found
        denied |= absent and not elsewhere
        if not found:
            places = _find_places(clause, language)
            cleared |= {f"#{p.segment}" if p.segment else str(p.artery) for p in places}
    return stenoses, (cleared or {"all"}) if denied else set()


def _located(read: list[list[Stenosis]], places: list[list[_Mark]]) -> list[Stenosis]:
    """Give a grade that stands alone ("Stenosis: 75%.") the place of the sentence beside it."""
    located = []
    for i, found in enumerate(read):
        beside = (places[i - 1] if i else []) + (places[i + 1] if i + 1 < len(places) else [])
        for stenosis in found:
            alone = stenosis.artery is None and stenosis.segment is None
            located.append(_stenosis(beside[0], stenosis.percent) if alone and beside else stenosis)
    return located


def _stenoses(clause: str, language: str) -> list[Stenosis]:
    """Pair the places of a clause with its grades, in the order in which they stand.

    "#6 75%, #7 90%" puts the grade behind, "75% in #6 and 90% in #7" before the place; "#6 and #7
    show 75%" gives both the same.
    """
    listed = lexicon.LISTED.findall(clause)
    if listed and not lexicon.PERCENT[language].search(clause):
        found = ((lexicon.SEGMENT_OF[name], lexicon.LISTED_GRADES[word]) for name, word in listed)
        return [Stenosis(artery_of(segment), segment, percent) for segment, percent in found]
    places, grades = _find_places(clause, language), _find_grades(clause, language)
    if not grades:
        stated = lexicon.STENOSIS[language].search(clause)
        return [_stenosis(place, None) for place in places] if stated else []
    if not places:
        if_so = lexicon.HYPOTHETICAL.search(clause)
        return [] if if_so else [Stenosis(None, None, grade.percent) for grade in grades]
    pairs = []
    for where, percents in _runs(sorted(_specific(places) + grades, key=_order)):
        if len(where) == len(percents):
            pairs += [_stenosis(w, p.percent) for w, p in zip(where, percents, strict=True)]
        else:
            pairs += [_stenosis(w, p.percent) for w in where for p in percents]
    return pairs


def _specific(places: list[_Mark]) -> list[_Mark]:
    """Drop an artery or side that only introduces a segment: "the LAD shows 75% in #7"."""
    arteries = {_stenosis(p, None).artery for p in places if p.segment}
    kept = [p for p in places if not p.whole or p.artery not in (arteries | {"LCA"})]
    return kept or places


def _runs(marks: list[_Mark]) -> Iterator[tuple[list[_Mark], list[_Mark]]]:
    """Cut a clause's marks into (places, grades) groups; a leading kind opens each group."""
    group = ([], [])
    for mark in marks:
        if (mark.percent is None) == (marks[0].percent is None) and all(group):
            yield group
            group = ([], [])
        group[mark.percent is not None].append(mark)
    if all(group):
        yield group


def _stenosis(place: _Mark, percent: int | None) -> Stenosis:
    artery = None if place.artery == "LCA" else place.artery  # a side, not an artery
    if artery is None and place.segment in AHA_SEGMENTS:
        artery = artery_of(place.segment)
    return Stenosis(artery, place.segment, percent)


def _plans(sentence: str, language: str) -> Iterator[str]:
    """Yield the plan of each part of a sentence; past procedures are no plan."""
    for part in sentence.split(";"):
        if lexicon.HISTORY.search(part) and not lexicon.ADVICE.search(part):
            continue
        plans = (plan for plan, words in lexicon.PLANS.items() if words[language].search(part))
        yield from itertools.islice(plans, 1)


def _distinct(stenoses: list[Stenosis]) -> tuple[Stenosis, ...]:
    """Drop repeats, and vaguer mentions of a stenosis that is stated in full elsewhere."""
    unique = set(stenoses)

    def vaguer(s: Stenosis, other: Stenosis) -> bool:
        return all(said is None or said == full for said, full in zip(s, other, strict=True))

    vague = {s for s in unique if any(vaguer(s, other) for other in unique - {s})}
    return tuple(sorted(unique - vague, key=lambda s: (s.segment or 99, s.percent or 0, str(s))))
