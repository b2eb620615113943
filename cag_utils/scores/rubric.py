"""The rubric: a program that marks a report by the paper's five error criteria and two of its own.

It compares entities (`cag_utils.scores.entities`) of the output with those of the truth. It is not
a physician and does not imitate one; where a table is filled by it, the table says "rubric".

A criterion is one row of `CRITERIA`: its points add up to the overall score, scaled to 0 to 10:

| criterion | points | an error where | what earns a part |
|---|---|---|---|
| laterality | 2 | the wrong side is named, alone or beside the right one | |
| numbering | 1 | a true lesion has a wrong number or none | true lesions under their number |
| missed | 1 | a true lesion is not named in its artery | true lesions named |
| invented | 1 | a lesion is named where the artery has none left | named lesions that are true |
| treatment | 2 | the plan is not the true plan | |
| logical | 1 | something in the text contradicts itself | |
| stenosis | 2 | the worst grade is two AHA steps off, or the number of significant lesions | |

*A lesion under a wrong number* is a true and a named segment of one artery that have no partner of
their own number (a number in an artery that does not own it is wrong too); lesions of two arteries
are one missed and one invented. Where the picture shows no lesion, the three earn all if the text
says so, else nothing. A worst grade one step off earns 1 and is no error. A text that names no side
earns no points for it, but names no wrong one either: `side_unnamed`. A criterion whose truth is
unknown is left out and the rest scaled to 10. A text from which neither a stenosis, nor its
absence, nor a plan can be read scores 0 with all errors. The points are the study's own: the paper
gives none. (Numbering, missed and invented were one "vessel" criterion of 3 points until the
phantom's version 8.)

Beside the score stand *counts* that add up over cases, of significant lesions: at least 75 %, or
50 % in the left main; a lesion without a grade counts too, since whoever reads "a stenosis in #6"
acts upon it. One segment is one lesion. Mild lesions (25, 50 %) are counted apart.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cag_utils.params import check_choice
from cag_utils.scores.entities import Entities, Stenosis, read_entities
from cag_utils.scores.lexicon import PLANS
from cag_utils.segments import AHA_SEGMENTS, LATERALITIES, artery_of, check_lesion, laterality_of

STEPS = (0, 25, 50, 75, 90, 99, 100)
# worst stated AHA grade -> plans that do not contradict it. Anything goes with `context`.
FITTING_PLANS = {
    0: {"none", "medical"},
    25: {"none", "medical"},
    50: {"none", "medical", "functional"},
    75: {"medical", "functional", "pci", "heart_team"},
    90: {"functional", "pci", "emergency_pci", "heart_team"},
    99: {"pci", "emergency_pci", "heart_team"},
    100: {"cto", "pci", "emergency_pci", "heart_team"},
}
MAIN_STEM_PLANS = {"functional", "pci", "emergency_pci", "heart_team"}  # left main >= 50 %
INTERVENTIONS = {"pci", "emergency_pci", "cto", "heart_team"}


def to_grade(percent: int) -> int:
    """Map a percentage to its AHA step: 0, 25 (1-25), 50 (26-50), 75, 90, 99 (91-99) or 100.

    Raises:
        ValueError: `percent` is not 0 to 100.

    Source:
        AHA grading (Austen 1975): each step covers the values up to and including it.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"a stenosis is 0 to 100 percent, got {percent}")
    return next(step for step in STEPS if percent <= step)


def truth_entities(laterality: str, lesions: Iterable[Mapping], plan: str) -> Entities:
    """Return the entities of a known truth, as `read_entities` reads them from perfect findings.

    Raises:
        ValueError: Unknown laterality (LCA or RCA), a lesion that `check_lesion` refuses, or a plan
            that is no key of `lexicon.PLANS`.
    """
    check_choice("laterality", laterality, LATERALITIES)
    check_choice("plan", plan, PLANS)
    checked = sorted((check_lesion(x) for x in lesions), key=lambda x: (x["segment"], x["percent"]))
    stenoses = tuple(Stenosis(x["artery"], x["segment"], x["percent"]) for x in checked)
    cleared = frozenset() if stenoses else frozenset({laterality})
    return Entities(frozenset({laterality}), stenoses, cleared, (plan,))


def truth_of(row: Mapping, language: str) -> Entities:
    """Return the truth of a row of pairs.csv: its `truth_*`, or read from its findings."""
    stated = [row.get(f"truth_{key}") for key in ("laterality", "lesions", "plan")]
    if all(isinstance(value, str) for value in stated):
        laterality, lesions, plan = stated
        return truth_entities(laterality, json.loads(lesions), plan)
    return read_entities(str(row[f"findings_{language}"]), language)


def score(output: Entities, truth: Entities) -> dict[str, float | str | None]:
    """Mark what a model's text states against the truth.

    Returns:
        `overall` (0 to 10), the errors of `CRITERIA`, `segment_match`, `laterality_match`,
        `side_unnamed`, `unparseable`, `plan_right` and `healthy_right` (0 or 1); `logical_rules`,
        the names of the contradictions; and the counts of `count_lesions`. What the truth does not
        tell (own findings without side, stenosis or plan) is None, never 0; `healthy_right` is None
        too where the truth has a significant lesion.
    """
    errors, earned, points = {}, 0.0, 0.0
    for name, criterion in CRITERIA.items():
        wrong = criterion.wrong(output, truth)
        errors[name] = None if wrong is None else int(wrong or output.unparseable)
        if wrong is not None:
            points += criterion.points
            part = criterion.partial
            earned += part(output, truth, wrong) if part else criterion.points * (not wrong)
    told, counts = _says_where(truth), count_lesions(output, truth)
    healthy = told and not counts["lesions_true"]
    spoken = bool(output.stenoses or output.cleared)
    right_side = int(output.sides == truth.sides and not output.unparseable)
    return {
        "overall": 0.0 if output.unparseable else round(10 * earned / points, 2),
        **errors,
        "segment_match": int(_segments_match(output, truth)) if told else None,
        "laterality_match": right_side if truth.laterality else None,
        "side_unnamed": int(not output.sides),
        "unparseable": int(output.unparseable),
        "plan_right": None if errors["treatment_error"] is None else 1 - errors["treatment_error"],
        "healthy_right": int(spoken and not counts["lesions_said"]) if healthy else None,
        "logical_rules": "; ".join(broken_rules(output, truth)),
    } | (counts if told else dict.fromkeys(counts))


def count_lesions(output: Entities, truth: Entities) -> dict[str, int]:
    """Count true, named and found lesions, by distinct AHA segment; sums over cases make an F1.

    Returns:
        `lesions_true`, `lesions_said`, `lesions_hit`: significant ones of the truth, of the text,
        of both (a lesion named without a number is said and never hit); `mild_true`, `mild_said`,
        `mild_hit`; `hits_graded`, the hits whose true grade is known, and `grades_near`, how many
        of these have a stated grade at most one AHA step off.
    """
    counts = {}
    for kind, wanted in (("lesions", _serious), ("mild", _mild)):
        true, said = wanted(truth), wanted(output)
        counts |= {f"{kind}_true": len(true), f"{kind}_said": len(said)}
        counts[f"{kind}_hit"] = len(true & said & AHA_SEGMENTS.keys())
    near = []
    for segment in _serious(truth) & _serious(output) & AHA_SEGMENTS.keys():
        true, said = (
            [s.percent for s in e.stenoses if s.segment == segment and s.percent]
            for e in (truth, output)
        )
        if true:
            near.append(any(_grades_apart(one, max(true)) <= 1 for one in said))
    return counts | {"hits_graded": len(near), "grades_near": sum(near)}


def contradictions(entities: Entities) -> frozenset[str]:
    """Return what in a text contradicts itself: a short phrase each, by `CONTRADICTIONS`."""
    return frozenset(phrase for rule in CONTRADICTIONS.values() for phrase in rule(entities))


def broken_rules(output: Entities, truth: Entities) -> list[str]:
    """Return the names of `CONTRADICTIONS` that fire on the text and not on the truth.

    What the truth itself says so (serial lesions of one segment) is no contradiction.
    """
    return [name for name, rule in CONTRADICTIONS.items() if rule(output) - rule(truth)]


def states_significant(stenosis: Stenosis) -> bool:
    """Tell whether a lesion counts: at least 75 %, 50 % in the left main, or without a grade."""
    return stenosis.percent is None or _significant(stenosis)


def _two_grades(entities: Entities) -> set[str]:
    """Two grades for one vessel; #4PD and #4AV are two vessels of one number."""
    graded = {s for s in entities.stenoses if s.segment and s.percent}
    vessels = [vessel for vessel, _ in {((s.segment, s.branch), s.percent) for s in graded}]
    return {f"two grades for #{vessel[0]}" for vessel in vessels if vessels.count(vessel) > 1}


def _both_sides(entities: Entities) -> set[str]:
    sides = {_side(s) for s in entities.stenoses} - {None}
    return {"stenoses on both sides"} if len(sides) > 1 else set()


def _denied(entities: Entities) -> set[str]:
    return {
        f"{s.percent}% where stenosis is denied"
        for s in entities.stenoses
        if _significant(s) and entities.cleared & {"all", _side(s), s.artery, f"#{s.segment}"}
    }


def _lesion_match(output: Entities, truth: Entities) -> tuple[set, set, set, int]:
    """Match named to true lesions: number by number, and what is left over artery by artery.

    Returns:
        The true places and the named ones (AHA segment, or artery without number), the places that
        are in both, and how many true lesions stand under a wrong number or none.
    """
    true, said = ({s.segment or s.artery for s in e.stenoses} - {None} for e in (truth, output))
    left, right = ([_artery(place) for place in a - b] for a, b in ((true, said), (said, true)))
    misnumbered = sum(min(left.count(artery), right.count(artery)) for artery in set(left))
    return true, said, true & said, misnumbered


def _numbering_wrong(output: Entities, truth: Entities) -> bool | None:
    if not _says_where(truth):
        return None
    misplaced = any(_wrong_artery(s) for s in set(output.stenoses) - set(truth.stenoses))
    return misplaced or _lesion_match(output, truth)[3] > 0


def _missed(output: Entities, truth: Entities) -> bool | None:
    true, _, both, misnumbered = _lesion_match(output, truth)
    return len(true) > len(both) + misnumbered if _says_where(truth) else None


def _invented(output: Entities, truth: Entities) -> bool | None:
    _, said, both, misnumbered = _lesion_match(output, truth)
    return len(said) > len(both) + misnumbered if _says_where(truth) else None


def _lesion_points(output: Entities, truth: Entities, of: str) -> float:
    """Here alone errors earn something: the share of the lesions that are right."""
    if not truth.stenoses or not output.stenoses:
        return float(output.no_stenosis and truth.no_stenosis)
    true, said, both, misnumbered = _lesion_match(output, truth)
    named = len(both) + misnumbered
    right, among = {
        "numbering": (len(both) * (not _numbering_wrong(output, truth)), true),
        "missed": (named, true),
        "invented": (named, said),
    }[of]
    return right / len(among) if among else 0.0


def _grade_wrong(output: Entities, truth: Entities) -> bool | None:
    """Wrong number of significant stenoses, or a worst grade more than one AHA step away."""
    if truth.worst_percent is None:
        return None
    ungraded = any(s.percent is None for s in set(output.stenoses) - set(truth.stenoses))
    if output.worst_percent is None or ungraded:
        return True
    counts = [sum(map(_significant, e.stenoses)) for e in (output, truth)]
    return counts[0] != counts[1] or _grades_apart(output.worst_percent, truth.worst_percent) > 1


def _grade_points(output: Entities, truth: Entities, wrong: bool) -> float:
    return 0.0 if wrong else 2.0 - _grades_apart(output.worst_percent, truth.worst_percent)


def _says_where(truth: Entities) -> bool:
    return truth.no_stenosis or any(s.segment or s.artery for s in truth.stenoses)


def _segments_match(output: Entities, truth: Entities) -> bool:
    """Same AHA numbers, and numbers wherever the truth has them; absence for a clean picture."""
    if not truth.stenoses:
        return output.no_stenosis
    there, here = ({s.segment or s.artery for s in e.stenoses} for e in (output, truth))
    return there == here


def _serious(entities: Entities) -> set[int | str]:
    """Places of significant lesions: AHA segments, or what is known of a place without one."""
    found = filter(states_significant, entities.stenoses)
    return {s.segment or s.artery or "somewhere" for s in found}


def _mild(entities: Entities) -> set[int | str]:
    """Places of lesions below that, but for segments that have a significant one too."""
    found = {s.segment or s.artery or "somewhere" for s in entities.stenoses if s.percent}
    return found - _serious(entities)


def _grades_apart(one: int, other: int) -> int:
    return abs(STEPS.index(to_grade(one)) - STEPS.index(to_grade(other)))


def _plan_conflicts(entities: Entities) -> set[str]:
    plans = set(entities.plans) - {"context"}
    excluding = plans & INTERVENTIONS
    found = {f"none against {plan}" for plan in excluding} if "none" in plans else set()
    worst = entities.worst_percent
    if entities.plan in (None, "context") or worst is None:
        return found
    fitting = FITTING_PLANS[to_grade(worst)]
    if any(_main_stem(s) and _significant(s) for s in entities.stenoses):
        fitting = MAIN_STEM_PLANS | ({"cto"} if worst == 100 else set())
    elif worst < 50 and not entities.stenoses and entities.cleared - {"all", *LATERALITIES}:
        return found  # only some vessels are called clean; the rest may well need a plan
    return found | (set() if entities.plan in fitting else {f"{entities.plan} for {worst}%"})


def _significant(stenosis: Stenosis) -> bool:
    """At least 75 %, or 50 % in the left main (the usual Japanese threshold)."""
    grade = to_grade(stenosis.percent or 0)
    return grade >= 75 or (grade >= 50 and _main_stem(stenosis))


def _main_stem(stenosis: Stenosis) -> bool:
    return stenosis.artery == "LM" or stenosis.segment == 5


def _wrong_artery(stenosis: Stenosis) -> bool:
    known = stenosis.artery is not None and stenosis.segment in AHA_SEGMENTS
    return known and artery_of(stenosis.segment) != stenosis.artery


def _artery(place: int | str) -> str:
    return artery_of(place) if place in AHA_SEGMENTS else str(place)


def _side(stenosis: Stenosis) -> str | None:
    if stenosis.segment in AHA_SEGMENTS:
        return laterality_of(stenosis.segment)
    return {None: None, "RCA": "RCA"}.get(stenosis.artery, "LCA")


# By name, for the table of what fires how often: entities to short phrases.
CONTRADICTIONS: dict[str, Callable[[Entities], set[str]]] = {
    "number of another artery": lambda e: {
        f"{s.artery} #{s.segment}" for s in e.stenoses if _wrong_artery(s)
    },
    "two grades for one segment": _two_grades,
    "stenoses on both sides": _both_sides,
    "significant where denied": _denied,
    "plan against grade or plan": _plan_conflicts,
}


@dataclass(frozen=True)
class Criterion:
    """One error that a reader may tick, and what being without it is worth."""

    word: str  # what figures and claims call it
    points: float  # its weight in the overall score
    # Output and truth to whether the error is there; None where the truth does not say.
    wrong: Callable[[Entities, Entities], bool | None]
    # Output, truth and that answer to the points earned; None is all or nothing.
    partial: Callable[[Entities, Entities, bool], float] | None = None
    on_sheet: bool = True  # whether readers tick it; False: the rubric alone


# By the name of its column: on a reader's sheet, in every table here and in the paper's Table 4
# (4.3: laterality, vessel numbering, treatment plan, logical consistency, stenosis detection).
CRITERIA: dict[str, Criterion] = {
    "laterality_error": Criterion(
        "laterality",
        2,
        lambda out, true: bool(out.sides - true.sides) if true.laterality else None,
        lambda out, true, _: 2.0 * (out.sides == true.sides),
    ),
    "numbering_error": Criterion(
        "numbering",
        1,
        _numbering_wrong,
        lambda out, true, _: _lesion_points(out, true, "numbering"),
    ),
    "missed_error": Criterion(
        "missed", 1, _missed, lambda out, true, _: _lesion_points(out, true, "missed"), False
    ),
    "invented_error": Criterion(
        "invented", 1, _invented, lambda out, true, _: _lesion_points(out, true, "invented"), False
    ),
    "treatment_error": Criterion(
        "treatment", 2, lambda out, true: out.plan != true.plan if true.plan else None
    ),
    "logical_error": Criterion("logical", 1, lambda out, true: bool(broken_rules(out, true))),
    "stenosis_error": Criterion("stenosis", 2, _grade_wrong, _grade_points),
}
