"""The rubric: a program that marks a report by the paper's five error criteria.

It compares entities (`cag_utils.scores.entities`) of the output with those of the truth. It is not
a physician and does not imitate one; where a table is filled by it, the table says "rubric".

A criterion is one row of `CRITERIA`: its points add up to the overall score, scaled to 0 to 10:

| criterion | points | rule |
|---|---|---|
| laterality | 2 | the text names the right side, and only that |
| vessel | 3 | 1 if the diseased arteries are right, plus 2 x Jaccard index of the AHA numbers |
| treatment | 2 | the plan is the true plan |
| logical | 1 | nothing in the text contradicts itself |
| stenosis | 2 | 2 if the worst grade is right; 1 if off by one AHA step, not an error; else 0 |

A criterion whose truth is unknown is left out and the rest scaled to 10. A text from which neither
a stenosis, nor its absence, nor a plan can be read scores 0 with all errors. The points are the
study's own: the paper gives none.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cag_utils.params import check_choice
from cag_utils.scores.entities import Entities, Stenosis
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


def score(output: Entities, truth: Entities) -> dict[str, float | None]:
    """Mark what a model's text states against the truth.

    Returns:
        `overall` (0 to 10), the errors of `CRITERIA`, `segment_match`, `laterality_match` and
        `unparseable` (0 or 1); of the truth's lesions `lesions_named`, the share whose segment is
        named, and `grades_near`, the share of the graded ones named at most one AHA step off. What
        the truth does not tell (own findings without side, stenosis or plan) is None, never 0.
    """
    errors, earned, points = {}, 0.0, 0.0
    for name, criterion in CRITERIA.items():
        wrong = criterion.wrong(output, truth)
        errors[name] = None if wrong is None else int(wrong or output.unparseable)
        if wrong is not None:
            points += criterion.points
            part = criterion.partial
            earned += part(output, truth, wrong) if part else criterion.points * (not wrong)
    side_error = errors["laterality_error"]
    return {
        "overall": 0.0 if output.unparseable else round(10 * earned / points, 2),
        **errors,
        "segment_match": int(_segments_match(output, truth)) if _says_where(truth) else None,
        "laterality_match": None if side_error is None else 1 - side_error,
        "unparseable": int(output.unparseable),
    } | _lesion_shares(output, truth)


def contradictions(entities: Entities) -> frozenset[str]:
    """Return what in a text contradicts itself.

    Five kinds, one short phrase each: an artery that does not own the segment number; two grades
    for one segment; stenoses on both sides of one picture; a significant stenosis where the text
    denies any; a plan that does not fit the worst grade stated, or excludes another plan stated.
    """
    found = {f"{s.artery} #{s.segment}" for s in entities.stenoses if _wrong_artery(s)}
    graded = {(s.segment, s.percent) for s in entities.stenoses if s.segment and s.percent}
    numbers = [segment for segment, _ in graded]
    found |= {f"two grades for #{n}" for n in numbers if numbers.count(n) > 1}
    if len({_side(s) for s in entities.stenoses} - {None}) > 1:
        found.add("stenoses on both sides")
    found |= {
        f"{s.percent}% where stenosis is denied"
        for s in entities.stenoses
        if _significant(s) and entities.cleared & {"all", _side(s), s.artery, f"#{s.segment}"}
    }
    return frozenset(found | _plan_conflicts(entities))


def _vessel_wrong(output: Entities, truth: Entities) -> bool | None:
    if not _says_where(truth):
        return None
    misplaced = any(_wrong_artery(s) for s in set(output.stenoses) - set(truth.stenoses))
    return misplaced or not _segments_match(output, truth)


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


def _vessel_points(output: Entities, truth: Entities, wrong: bool) -> float:
    """Here alone errors earn something: 1 for the arteries, up to 2 for shared numbers."""
    if not wrong or not truth.stenoses or not output.stenoses:
        return 0.0 if wrong else 3.0
    arteries = {s.artery for s in output.stenoses} == {s.artery for s in truth.stenoses}
    union = output.segments | truth.segments
    shared = len(output.segments & truth.segments) / len(union) if union else 0.0
    return arteries + 2.0 * shared


def _says_where(truth: Entities) -> bool:
    return bool(truth.stenoses or truth.cleared)


def _segments_match(output: Entities, truth: Entities) -> bool:
    """Same AHA numbers, and numbers wherever the truth has them; absence for a clean picture."""
    if not truth.stenoses:
        return output.no_stenosis
    there, here = ({s.segment or s.artery for s in e.stenoses} for e in (output, truth))
    return there == here


def _lesion_shares(output: Entities, truth: Entities) -> dict[str, float | None]:
    """Of the lesions that the truth places in a segment: how many are named, and graded well."""
    true = [s for s in truth.stenoses if s.segment]
    if not true:
        return {"lesions_named": None, "grades_near": None}
    near = []
    for one in (s for s in true if s.percent is not None):
        said = [x.percent for x in output.stenoses if x.segment == one.segment and x.percent]
        near.append(any(_grades_apart(percent, one.percent) <= 1 for percent in said))
    return {
        "lesions_named": sum(s.segment in output.segments for s in true) / len(true),
        "grades_near": sum(near) / len(near) if near else None,
    }


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


def _side(stenosis: Stenosis) -> str | None:
    if stenosis.segment in AHA_SEGMENTS:
        return laterality_of(stenosis.segment)
    return {None: None, "RCA": "RCA"}.get(stenosis.artery, "LCA")


@dataclass(frozen=True)
class Criterion:
    """One error that a reader may tick, and what being without it is worth."""

    word: str  # what figures and claims call it
    points: float  # its weight in the overall score
    # Output and truth to whether the error is there; None where the truth does not say.
    wrong: Callable[[Entities, Entities], bool | None]
    # Output, truth and that answer to the points earned; None is all or nothing.
    partial: Callable[[Entities, Entities, bool], float] | None = None


# By the name of its column: on a reader's sheet, in every table here and in the paper's Table 4.
CRITERIA: dict[str, Criterion] = {
    "laterality_error": Criterion(
        "laterality", 2, lambda out, true: true.laterality and out.laterality != true.laterality
    ),
    "vessel_error": Criterion("vessel", 3, _vessel_wrong, _vessel_points),
    "treatment_error": Criterion(
        "treatment", 2, lambda out, true: true.plan and out.plan != true.plan
    ),
    # What the truth itself says so (serial lesions of one segment) is no contradiction.
    "logical_error": Criterion(
        "logical", 1, lambda out, true: bool(contradictions(out) - contradictions(true))
    ),
    "stenosis_error": Criterion("stenosis", 2, _grade_wrong, _grade_points),
}
