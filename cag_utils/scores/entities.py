"""Read what a report states: side, stenoses with segment and grade, absence, plan. EN and JA.

Rule-based on purpose: the reader of a model's output must not be a model. It reads the study's
format exactly and free text with the usual spellings, whose vocabulary is in `lexicon`. Each
sentence is cut into clauses; a clause holds places and grades and is of one kind (a finding, an
absence, a vessel that is not shown, ...). What cannot be read is reported in `unread`.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cag_utils.params import check_choice
from cag_utils.scores import lexicon
from cag_utils.segments import AHA_SEGMENTS, artery_of, laterality_of


class Stenosis(NamedTuple):
    """One stated stenosis; None is what the text does not say."""

    artery: str | None  # RCA, LM, LAD or LCX as named; from the segment if none is named
    segment: int | None  # AHA number as stated: one above 15 is kept, to be judged wrong
    percent: int | None  # 0 to 100 as stated; of words: mild 25, moderate 50, severe 90, ...
    branch: str | None = None  # of vessels that share a number: PD or AV (#4), OM1, OM2, HL (#12)


@dataclass(frozen=True)
class Entities:
    """What a text states."""

    sides: frozenset[str] = frozenset()  # LCA, RCA: named as such, or by artery or segment
    stenoses: tuple[Stenosis, ...] = ()  # distinct, by AHA number, unknown segments last
    cleared: frozenset[str] = frozenset()  # where none is: sides, arteries, `#6`, or `all`
    plans: tuple[str, ...] = ()  # keys of `lexicon.PLANS`, distinct, as they appear
    unread: tuple[str, ...] = ()  # sentences that speak of a stenosis and were not read in full

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
    said, owner = [], None
    for text_of_one in filter(str.strip, lexicon.SENTENCE.split(_normalise(text))):
        said.append(_read_sentence(text_of_one.strip(), language, owner))
        named = [p.artery for p in said[-1].places if p.artery in lexicon.PART_OF]
        owner = named[-1] if named else None
    _lend_places(said)
    sides = {_side(place) for one in said for place in one.places}
    return Entities(
        sides=frozenset(sides - {None}),
        stenoses=_distinct([stenosis for one in said for stenosis in one.stenoses]),
        cleared=frozenset(scope for one in said for scope in one.cleared),
        plans=tuple(dict.fromkeys(plan for one in said for plan in one.plans)),
        unread=tuple(dict.fromkeys(one.text for one in said if one.unread)),
    )


SAYING = ("found", "absent", "unseen", "unjudged")  # kinds of clauses that speak of places


class _Mark(NamedTuple):
    """A place (artery or segment) or a grade in a sentence."""

    start: int
    end: int
    artery: str | None = None  # RCA, LM, LAD, LCX, or LCA where only the left side is named
    segment: int | None = None  # AHA number as stated
    percent: int | None = None  # None for a place
    whole: bool = False  # an artery or side without a segment: may only introduce one
    name: str = ""  # key of `lexicon.PLACE_OF`
    by_part: bool = False  # the segment comes from a word such as "proximal"
    word: bool = False  # the grade comes from a word such as "severe"


@dataclass
class _Clause:
    """A part of a sentence that says one kind of thing of its places."""

    start: int
    end: int
    kind: str = ""  # found, absent, unseen, history, ... (`lexicon.KINDS`); "" says nothing
    hard: bool = False  # what comes before cannot belong to it
    listed: bool = False  # nothing but places
    stenosis: bool = False  # may speak of one
    key: int = 0  # where the word stands that decides the kind
    elsewhere: bool = False  # "no other stenosis"
    places: list[_Mark] = field(default_factory=list)
    grades: list[_Mark] = field(default_factory=list)


@dataclass
class _Sentence:
    """What one sentence states."""

    text: str
    places: list[_Mark] = field(default_factory=list)  # that the picture shows
    stenoses: list[Stenosis] = field(default_factory=list)
    cleared: set[str] = field(default_factory=set)
    plans: list[str] = field(default_factory=list)
    unread: bool = False


def _normalise(text: str) -> str:
    """Return the text with plain digits and signs, in lower case, without Markdown."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("—", ", ")
    plain = re.sub(r"[\u2010-\u2013\u2212]", "-", plain)
    plain = plain.replace("〜", "~").replace("♯", "#").replace("’", "'")
    plain = re.sub(
        r"^\s*(?:#{1,6}\s+(?!\d)|[-*•]\s+|\d{1,2}[.)]\s+)", "", plain, flags=re.MULTILINE
    )
    return re.sub(r"[*`_]+|[ ]+(?= )", "", plain)


def _read_sentence(text: str, language: str, owner: str | None) -> _Sentence:
    """Read one sentence; `owner` is the artery that the sentence before spoke of last."""
    said = _Sentence(text, plans=list(_plans(text, language)))
    if lexicon.NONE_AT_ALL.match(text):
        said.cleared.add("all")
        return said
    shown = lexicon.ASIDE.sub(lambda m: " " * len(m[0]), text)
    clauses = _clauses(shown, language, owner)
    findings = [c for c in clauses if c.kind == "found"]
    for clause in clauses:
        if clause.kind in ("", *SAYING) and clause.kind != "unseen":
            said.places += clause.places
        if clause.kind == "absent" and not clause.elsewhere:
            # "#6 75%, no stenosis": elsewhere
            everywhere = set() if findings or lexicon.OTHER_FIELD.search(text) else {"all"}
            said.cleared |= {_scope(p) for p in _specific(clause.places)} or everywhere
        said.unread |= clause.kind == "graft" or (clause.kind == "unjudged" and clause.stenosis)
    marked = [c for c in findings if c.places or c.grades]
    said.unread |= bool(findings) and not marked and not said.plans
    for places, grades in _together(marked):
        stenoses, in_full = _pair(places, grades)
        said.stenoses += stenoses
        said.unread |= not in_full
    said.cleared |= {_scope(s) for s in said.stenoses if s.percent == 0}
    said.stenoses = [s for s in said.stenoses if s.percent != 0]
    if not (said.stenoses or said.plans or any(c.kind == "absent" for c in clauses)):
        said.unread |= bool(lexicon.VAGUE[language].search(shown))
    if lexicon.HYPOTHETICAL.search(text):
        said.stenoses = [s for s in said.stenoses if s.artery or s.segment]
    return said


def _clauses(text: str, language: str, owner: str | None) -> list[_Clause]:
    """Cut a sentence into clauses, each with its marks, its kind, and the places listed before."""
    places = _find_places(text, language, owner)
    grades = _find_grades(text, language, places)
    cut = []
    for start, end, hard in _spans(text, language, places, grades):
        clause = _Clause(start, end, hard=hard)
        clause.places = [p for p in places if start <= p.start < end]
        clause.grades = [g for g in grades if start <= g.start < end]
        clause.listed = _is_list(text, clause)
        _judge(clause, text, language)
        cut.append(clause)
    if any(lexicon.EXCEPT[language].search(text[c.start : c.end]) for c in cut):
        for clause in cut:
            clause.elsewhere = True
    return list(_gathered(cut))


def _spans(text, language, places, grades) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end, whether a semicolon stands before) of each clause."""
    marks = places + grades
    bare = [g for g in grades if not lexicon.BOUND_BEFORE.search(text[: g.start])]
    cuts = [
        (m.start(), m[0] in ";" and bool(m[0]))
        for m in lexicon.CLAUSE[language].finditer(text)
        if not any(p.start < m.start() < p.end for p in marks)
        and text.count("(", 0, m.start()) <= text.count(")", 0, m.start())
    ]
    for m in lexicon.ABSENCE[language].finditer(text):  # "#6 90% LCX normal", "LM normal LAD 75%"
        before = [p.start for p in places if p.start <= m.start()]
        if before and any(g.end <= before[-1] for g in bare):
            cuts.append((before[-1], False))
        after = [p.start for p in places if p.start >= m.end()]
        if after and any(g.start > after[0] for g in bare):
            between = text[m.end() : after[0]]
            if not re.search(r"(?:in|of|for|at|the) $", between):
                cuts.append((after[0], False))
    cuts = [(0, True), *sorted(set(cuts)), (len(text), True)]
    for (start, hard), (end, _) in itertools.pairwise(cuts):
        if start < end:
            yield start, end, hard


def _is_list(text: str, clause: _Clause) -> bool:
    """Say whether a clause holds nothing but places."""
    at, rest = clause.start, ""
    for place in clause.places:
        rest += text[at : place.start] + " "
        at = max(at, place.end)
    return bool(lexicon.LIST.fullmatch(rest + text[at : clause.end]))


def _judge(clause: _Clause, text: str, language: str) -> None:
    """Decide of which kind a clause is."""
    part = text[clause.start : clause.end]
    noun = bool(lexicon.STENOSIS[language].search(part))
    clause.stenosis = noun or bool(clause.places)
    clause.elsewhere = bool(lexicon.ELSEWHERE[language].search(part))
    percents = any(not g.word for g in clause.grades)
    for kind, words in lexicon.KINDS.items():
        unfit = {"graft": not (noun or clause.grades or "patent" in part), "slight": percents}
        unfit["treated"] = not clause.grades
        if unfit.get(kind, kind in ("unseen", "history") and bool(clause.grades)):
            continue
        if found := words[language].search(part):
            clause.kind, clause.key = kind, clause.start + found.start()
            break
    else:
        spoken = noun and not lexicon.HYPOTHETICAL.search(part)
        clause.kind = "found" if clause.grades or spoken else ""
    clause.kind = "absent" if clause.kind == "slight" else clause.kind
    if clause.kind == "if":
        clause.grades = []
    if clause.kind == "collateral":
        clause.places = list(_fed(clause, text)) if clause.grades else []
        clause.kind = "found" if clause.places else "collateral"


def _fed(clause: _Clause, text: str) -> Iterator[_Mark]:
    """Yield the places of a clause about collaterals that are no donor: "from the LAD"."""
    donates = len(clause.places) > 1 and lexicon.DONATES.search(text, clause.start, clause.end)
    for place in clause.places[bool(donates) :]:
        given = lexicon.DONOR_BEFORE.search(text[clause.start : place.start])
        given = given or lexicon.DONOR_AFTER.match(text[place.end :])
        if not given and not place.start < clause.key < clause.grades[0].start:
            yield place


def _gathered(cut: list[_Clause]) -> Iterator[_Clause]:
    """Give places that stand alone to the clause that speaks of them: "LAD, LCX: no stenosis".

    They belong to what follows, or after "no stenosis in the LAD" to what was said before.
    """
    waiting: list[_Clause] = []
    last = None
    for clause in cut:
        if clause.hard and clause.places:
            yield from waiting
            waiting, last = [], None
        if clause.kind:
            for one in waiting:
                if clause.kind in SAYING and (one.listed or not clause.places):
                    clause.places = one.places + clause.places
                else:
                    yield one
            waiting, last = [], clause
            yield clause
        elif (
            clause.listed
            and last
            and last.kind != "found"
            and any(p.start > last.key for p in last.places)
        ):
            last.places += clause.places
        else:
            waiting.append(clause)
    for one in waiting:
        more = one.listed or any(p.by_part for p in one.places)  # "75%, located proximally"
        if last and last.kind == "found" and (more or not last.places):
            last.places += one.places
        else:
            yield one


def _together(findings: list[_Clause]) -> list[tuple[list[_Mark], list[_Mark]]]:
    """Return which places and grades are paired with each other.

    Clause by clause where each names a place; else ("#6 and #7: 75%, 90%") all of the sentence.
    """
    if all(c.places for c in findings):
        return [(c.places, c.grades) for c in findings]
    return [([p for c in findings for p in c.places], [g for c in findings for g in c.grades])]


def _find_places(text: str, language: str, owner: str | None) -> list[_Mark]:
    """Return the places of a sentence, left to right; an artery and its segment become one."""
    named = [place for m in lexicon.PLACE[language].finditer(text) for place in _named_places(m)]
    numbers = [
        _Mark(m.start(), m.end(), segment=segment)
        for m in lexicon.NUMBER[language].finditer(text)
        for segment in _listed(next(filter(None, m.groups())))
    ]
    for place in named:
        bare = lexicon.BARE_NUMBER.match(text, place.end)
        if bare and place.whole and place.artery in lexicon.PART_OF:
            numbers.append(_Mark(bare.start(), bare.end(), segment=int(bare[1])))
    owners = {number: _owner(text, number, named) for number in sorted(set(numbers), key=_order)}
    merged = [_owned(number, whose) for number, whose in owners.items()]
    taken = {(p.start, p.end) for p in owners.values() if p}
    alone = [p for p in named if (p.start, p.end) not in taken]
    places = sorted(alone + merged, key=_order)
    places = [_of_either(text, _landmark(text, p), places, owner) for p in places]
    return sorted(places + list(_parts(text, language, places, owner)), key=_order)


def _named_places(match: re.Match) -> list[_Mark]:
    """Return a named artery or branch, or the segments that its parts ("mid to distal") mean."""
    name = next(key for key in lexicon.PLACE_OF if match[key.replace(" ", "_")])
    artery, segment = lexicon.PLACE_OF[name]
    whole = segment is None and name == artery.lower()  # not a diagonal or septal branch
    mark = _Mark(match.start(), match.end(), artery, segment, whole=whole, name=name)
    part = match["before"] or match["after"]
    if part and whole and artery in lexicon.PART_OF:
        return [mark._replace(segment=s, whole=False, by_part=True) for s in _of_part(artery, part)]
    return [mark]


def _of_part(artery: str, part: str) -> list[int | None]:
    """Return the AHA segments of a part of an artery: "proximal", "mid to distal"."""
    which = [
        i
        for word in re.findall(rf"{lexicon.POSITION}", part)
        for i, beginnings in enumerate(lexicon.PARTS)
        if word.startswith(beginnings)
    ]
    if len(which) == 2 and re.search(r"to|~|-|から", part):
        which = range(min(which), max(which) + 1)
    return list(dict.fromkeys(lexicon.PART_OF[artery][i] for i in which))


def _listed(numbers: str) -> list[int]:
    """Return the segments of "6, 7", "6-8" (with 7) or "7-9" (a bifurcation: these two)."""
    listed = [int(digits) for digits in re.findall(r"\d+", numbers)]
    for m in lexicon.SPAN.finditer(numbers):
        first, last = int(m[1]), int(m[2])
        if last < first and "-" in m[0]:  # "#12-1" is its first branch
            listed.remove(last)
        course = next((c for c in lexicon.COURSES if {first, last} <= set(c)), ())
        listed += [segment for segment in course if first < segment < last]
    return sorted(set(listed))


def _owner(text: str, number: _Mark, named: list[_Mark]) -> _Mark | None:
    """Return the artery a segment number belongs to: "LCX (#11", "segment 7 of the LAD"."""
    ahead = [p for p in named if p.end <= number.start]
    if ahead and lexicon.GAP_BEFORE_NUMBER.fullmatch(text[ahead[-1].end : number.start]):
        return ahead[-1]
    behind = [p for p in named if p.start >= number.end]
    if behind and lexicon.GAP_AFTER_NUMBER.fullmatch(text[number.end : behind[0].start]):
        return behind[0]
    return None


def _owned(number: _Mark, owner: _Mark | None) -> _Mark:
    """Join a number and its artery; beside the number, the name of a branch tells no artery."""
    if owner is None:
        return number
    artery = owner.artery if owner.whole or owner.by_part or owner.segment is None else None
    if owner.segment == number.segment:
        artery = owner.artery
    start, end = min(number.start, owner.start), max(number.end, owner.end)
    return number._replace(start=start, end=end, artery=artery, name=owner.name)


def _of_either(text: str, place: _Mark, places: list[_Mark], owner: str | None) -> _Mark:
    """Give a branch that two arteries have ("PL") to the one it is named with."""
    segments = lexicon.OF_EITHER.get(place.name, {})
    if not segments or not place.artery:
        return place
    behind = [p for p in places if p.start >= place.end and p.artery in segments]
    ahead = [p for p in places if p.end <= place.start and p.artery in lexicon.PART_OF]
    artery = ahead[-1].artery if ahead else owner
    if behind and lexicon.OF_ARTERY.fullmatch(text[place.end : behind[0].start]):
        artery = behind[0].artery
    if artery in segments and place.segment in (*segments.values(), None):
        return place._replace(artery=artery, segment=segments[artery])
    return place


def _landmark(text: str, place: _Mark) -> _Mark:
    """Make a branch that only tells where a lesion lies ("just after D1") its artery."""
    if place.name in ("", *lexicon.STEMS):
        return place
    before = lexicon.LANDMARK_BEFORE.search(text[: place.start])
    if before or lexicon.LANDMARK_AFTER.match(text[place.end :]):
        return place._replace(segment=None, whole=True, name="")
    return place


def _parts(text: str, language: str, places: list[_Mark], owner: str | None) -> Iterator[_Mark]:
    """Yield what stands away from its artery: "the LAD has 90% in its mid portion"."""
    for m in lexicon.PART[language].finditer(text):
        if any(p.start < m.end() and m.start() < p.end for p in places):
            continue
        ahead = [p for p in places if p.end <= m.start()]
        behind = [p for p in places if p.start >= m.end()]
        if behind and lexicon.OF_ARTERY.fullmatch(text[m.end() : behind[0].start]):
            continue  # "proximal #6": the number says more
        if not ahead:
            named = [p.artery for p in behind if p.whole]
            artery = named[0] if named else owner if not behind else None
        elif ahead[-1].whole or ahead[-1].by_part:
            artery = ahead[-1].artery
        else:  # "#6 90%, distal 50%" is another place, "#6 distal" is not
            apart = re.search(r"[,;、]", text[ahead[-1].end : m.start()])
            stem = _stenosis(ahead[-1], None).artery if not ahead[-1].name else None
            artery = stem if apart else None
        if artery in lexicon.PART_OF:
            for segment in _of_part(artery, m[0]):
                yield _Mark(m.start(), m.end(), artery, segment, by_part=True)


def _find_grades(text: str, language: str, places: list[_Mark]) -> list[_Mark]:
    """Return percentages (no ejection fractions or upper bounds) and words for a grade."""
    marks = [
        _Mark(m.start(), m.end(), percent=max(int(m[3]), int(m[1] or 0)))
        for m in lexicon.PERCENT[language].finditer(text)
        if not lexicon.NOT_STENOSIS_BEFORE.search(text[: m.start()])
        and not lexicon.NOT_STENOSIS_AFTER.match(text[m.end() :])
    ]
    if not marks:
        found = (lexicon.UNSIGNED.match(text, p.end) for p in places if p.segment)
        marks = [_Mark(m.start(1), m.end(), percent=int(m[1])) for m in found if m]
    if places or lexicon.STENOSIS[language].search(text):
        marks += _graded_words(text, language)
    return sorted(marks, key=_order)


def _graded_words(text: str, language: str) -> list[_Mark]:
    """Return the words for a grade; of "mild to moderate" the higher one."""
    marks = []
    for grade, words in lexicon.GRADE_WORDS.items():
        for m in words[language].finditer(text):
            if not any(m.start() < mark.end and mark.start < m.end() for mark in marks):
                marks.append(_Mark(m.start(), m.end(), percent=grade, word=True))
    joined = []
    for mark in sorted(marks, key=_order):
        if joined and lexicon.TO_GRADE.fullmatch(text[joined[-1].end : mark.start]):
            low = joined.pop()
            mark = mark._replace(start=low.start, percent=max(low.percent, mark.percent))
        joined.append(mark)
    return joined


def _order(mark: _Mark) -> tuple[int, int]:
    """Sort by where a mark stands; segments of one list by number."""
    return mark.start, mark.segment or 0


def _side(place: _Mark) -> str | None:
    if place.artery:
        return "RCA" if place.artery == "RCA" else "LCA"
    return laterality_of(place.segment) if place.segment in AHA_SEGMENTS else None


def _scope(place: _Mark | Stenosis) -> str:
    return f"#{place.segment}" if place.segment else place.artery or "all"


def _lend_places(said: list[_Sentence]) -> None:
    """Give a grade that stands alone ("Stenosis: 75%.") the place of the sentence beside it.

    Only a sentence that states nothing of its place lends it. What is still in doubt is unread.
    """
    free = [[] if one.stenoses or one.cleared else one.places for one in said]
    for i, one in enumerate(said):
        beside = (free[i - 1] if i else []) + (free[i + 1] if i + 1 < len(said) else [])
        if beside:
            one.stenoses = [
                s if s.artery or s.segment else _stenosis(beside[0], s.percent)
                for s in one.stenoses
            ]
        one.unread |= any(_in_doubt(stenosis) for stenosis in one.stenoses)


def _in_doubt(stenosis: Stenosis) -> bool:
    """Without a place or a grade, or a number that this artery does not have."""
    if stenosis.segment is not None:
        known = stenosis.segment in AHA_SEGMENTS
        if not known or artery_of(stenosis.segment) != stenosis.artery:
            return True
    return stenosis.percent is None or stenosis.artery is None


def _pair(places: list[_Mark], grades: list[_Mark]) -> tuple[list[Stenosis], bool]:
    """Pair places with grades, in the order in which they stand; say whether none was left.

    "#6 75%, #7 90%" puts the grade behind, "75% in #6 and 90% in #7" before the place; "#6 and #7
    show 75%" gives both the same. A word gives way to what says it again, and more exactly.
    """
    places = _specific(places)
    valid = used = [g for g in grades if g.percent <= 100]
    if len(used) != len(places):
        stronger = [g for g in used if not g.word] or [g for g in used if g.percent != 75]
        used = stronger or used  # "significant" says less than any other word
    if not used:
        return [_stenosis(place, None) for place in places], len(valid) == len(grades)
    if not places:
        return [Stenosis(None, None, g.percent) for g in used], True
    pairs, paired = [], 0
    for where, percents in _runs(sorted(places + used, key=_order)):
        if len(where) == len(percents):
            pairs += [_stenosis(w, g.percent) for w, g in zip(where, percents, strict=True)]
        elif 1 in (len(where), len(percents)):
            pairs += [_stenosis(w, g.percent) for w in where for g in percents]
        else:
            continue
        paired += len(percents)
    return pairs, paired == len(used) and len(valid) == len(grades)


def _specific(places: list[_Mark]) -> list[_Mark]:
    """Drop an artery or side that only introduces a segment: "the LAD shows 75% in #7"."""
    arteries = {_stenosis(p, None).artery for p in places if not p.whole}
    kept = [p for p in places if not p.whole or p.artery not in arteries]
    if any(_side(p) == "LCA" and p.artery != "LCA" for p in kept):
        kept = [p for p in kept if p.artery != "LCA"]
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
    branch = lexicon.BRANCHES.get(place.name) if place.segment in lexicon.SHARED else None
    return Stenosis(artery, place.segment, percent, branch)


def _plans(sentence: str, language: str) -> Iterator[str]:
    """Yield the plan of each part of a sentence; past procedures and measurements are no plan."""
    for part in lexicon.MEASURED.sub("", sentence).split(";"):
        if (none := lexicon.PLANS["none"][language]).search(part):
            yield "none"
            part = none.sub(" ", part)
        if lexicon.HISTORY.search(part):
            pieces = re.split(r"[,、]", part) if lexicon.ADVICE.search(part) else []
            told = (p for p in pieces if lexicon.ADVICE.search(p) or not lexicon.HISTORY.search(p))
            part = ",".join(told)
        plans = (plan for plan, words in lexicon.PLANS.items() if words[language].search(part))
        yield from itertools.islice(plans, 1)


def _distinct(stenoses: list[Stenosis]) -> tuple[Stenosis, ...]:
    """Drop repeats, and vaguer mentions of a stenosis that is stated in full elsewhere."""
    unique = set(stenoses)

    def vaguer(s: Stenosis, other: Stenosis) -> bool:
        return all(said is None or said == full for said, full in zip(s, other, strict=True))

    vague = {s for s in unique if any(vaguer(s, other) for other in unique - {s})}
    return tuple(sorted(unique - vague, key=lambda s: (s.segment or 99, s.percent or 0, str(s))))
