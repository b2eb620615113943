import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.phantom.clinic.findings import PLANS, decide_plan, write_findings
from cag_utils.phantom.clinic.patients import Record
from cag_utils.scores.entities import Entities, Stenosis, read_entities
from cag_utils.scores.rubric import (
    CRITERIA,
    contradictions,
    count_lesions,
    score,
    truth_entities,
)
from cag_utils.segments import LATERALITIES
from tests.scores.test_entities import lesions_of

CONTEXT = "Consider treatment plan in context of other angiographic findings and comorbidities."
MEDICAL, FFR, PCI = (PLANS[key][0] for key in ("medical", "functional", "pci"))


def truth(*lesions, plan="context", laterality="LCA"):
    return truth_entities(laterality, [dict(segment=s, percent=p) for s, p in lesions], plan)


def mark(text, wanted, language="en"):
    return score(read_entities(text, language), wanted)


def errors(marks):
    return {name.removesuffix("_error") for name in CRITERIA if marks[name]}


@st.composite
def cases(draw):
    """A patient, a side, its lesions and the plan that the teaching rule gives."""
    side = draw(st.sampled_from(LATERALITIES))
    lesions = draw(lesions_of(side))
    risks = draw(st.sampled_from([(), ("hemodialysis",)]))
    indication = draw(st.sampled_from(["stemi", "effort_angina"]))
    patient = Record(70, "M", risks, indication, (), (), 60)
    return lesions, side, decide_plan(patient, lesions)


FIGURE3 = truth((11, 75))  # the paper's: LCX #11 75 %, plan "in context of"
CLEAN = truth(plan="none", laterality="RCA")
numbers, percents = (st.none() | st.integers(*ends) for ends in ((1, 16), (0, 100)))
arteries = st.sampled_from([None, "RCA", "LM", "LAD", "LCX"])
stenosis_st = st.builds(Stenosis, arteries, numbers, percents)
entities_st = st.builds(
    Entities,
    st.frozensets(st.sampled_from(LATERALITIES)),
    st.lists(stenosis_st, max_size=3, unique=True).map(tuple),
    st.frozensets(st.sampled_from(["LCA", "LAD", "all"]), max_size=2),
    st.lists(st.sampled_from(list(PLANS)), max_size=2, unique=True).map(tuple),
)


@given(entities_st)
def test_whatever_a_reader_validated_is_right_by_itself(own):
    marks = score(own, own)
    assert own.unparseable or (marks["overall"] == 10 and not errors(marks))


@settings(deadline=None)
@given(cases(), st.randoms())
def test_perfect_findings_get_full_marks_in_any_order_of_their_sentences(case, random):
    lesions, side, plan = case
    wanted, texts = truth_entities(side, lesions, plan), write_findings(*case)
    sentences = texts["en"].removesuffix(".").split(". ")
    random.shuffle(sentences)
    assert not contradictions(wanted)
    for text, language in ((texts["ja"], "ja"), (". ".join(sentences) + ".", "en")):
        marks = mark(text, wanted, language)
        assert marks["overall"] == 10 and not errors(marks)
        assert marks["segment_match"] == marks["laterality_match"] == 1 - marks["unparseable"] == 1


@settings(deadline=None)
@given(cases(), cases())
def test_errors_cost_and_swapping_output_and_truth_keeps_what_is_symmetric(one, other):
    (there, back) = (
        mark(write_findings(*said)["en"], truth_entities(side, lesions, plan))
        for said, (lesions, side, plan) in ((one, other), (other, one))
    )
    assert 0 <= there["overall"] <= 10 and all(there[name] in (0, 1) for name in CRITERIA)
    assert there["overall"] < 10 or not errors(there)
    assert there["laterality_match"] == 1 - there["laterality_error"]
    vessels = ("numbering_error", "missed_error", "invented_error")
    assert there["segment_match"] == 1 - max(there[name] for name in vessels)
    for name in (*CRITERIA, "segment_match"):
        other = {"missed_error": "invented_error", "invented_error": "missed_error"}.get(name, name)
        assert there[name] == back[other] or name == "logical_error", name
    for one, other in (("true", "said"), ("said", "true"), ("hit", "hit")):
        assert there[f"lesions_{one}"] == back[f"lesions_{other}"]
        assert there[f"mild_{one}"] == back[f"mild_{other}"]


@pytest.mark.parametrize("text, wrong, overall", [
    # laterality: names none (no error, no points), both, or the wrong one
    (f"There is 75% stenosis. {FFR}", {"missed"}, 5),
    (f"LCX #11 75%. RCA is shown too. {FFR}", {"laterality"}, 8),
    (f"RCA #2 shows 75% stenosis. {FFR}", {"laterality", "missed", "invented"}, 5),
    # numbering: the number missing, wrong, or at odds with its artery
    (f"LCX shows 75% stenosis. {FFR}", {"numbering"}, 9),
    (f"LCX #13 shows 75% stenosis. {FFR}", {"numbering"}, 9),
    (f"LAD #11 shows 75% stenosis. {FFR}", {"numbering", "logical"}, 8),
    # another artery: one missed and one invented; one too many: half of the named are true
    (f"LAD #6 shows 75% stenosis. {FFR}", {"missed", "invented"}, 7),
    (f"LCX #11 and #13 show 50% and 75% stenosis. {FFR}", {"invented"}, 9.5),
    # treatment: another plan, or none
    (f"LCX #11 shows 75% stenosis. {PCI}", {"treatment"}, 8),
    ("LCX #11 shows 75% stenosis.", {"treatment"}, 8),
    # stenosis: significance, two steps off, or no grade
    (f"LCX #11 shows 50% stenosis. {FFR}", {"stenosis"}, 8),
    (f"LCX #11 shows 90% stenosis. {FFR}", set(), 9),
    (f"LCX #11 shows 99% stenosis. {FFR}", {"stenosis", "logical"}, 7),
    (f"LCX #11 has a stenosis. {FFR}", {"stenosis"}, 8),
    # nothing wrong, in other words
    ("In segment 11 there is a 70% narrowing; measure iFR.", set(), 10),
])  # fmt: skip
def test_each_error_alone(text, wrong, overall):
    marks = mark(text, truth((11, 75), plan="functional"))
    assert (errors(marks), marks["overall"]) == (wrong, overall)
    assert marks["side_unnamed"] == text.startswith("There is 75%")


@pytest.mark.parametrize("text, wanted, wrong, overall", [
    (f"LCX #11 shows 90% stenosis. {CONTEXT}", FIGURE3, set(), 9),
    # all but the number and a step of the grade
    (f"LCX #12 shows 90% stenosis. {CONTEXT}", FIGURE3, {"numbering"}, 8),
    # 2 side + 1 grade off by a step
    ("LAD septal shows 90% stenosis. Recommend watchful waiting without medical therapy.",
     FIGURE3, {"missed", "invented", "treatment", "logical"}, 3),
    # a second lesion missed: 2 side + 1/2 numbering + 1/2 missed + 1 invented + 2 plan + 1 logic
    ("LAD #6 shows 90% stenosis. Discuss CABG or PCI in the heart team.",
     truth((6, 90), (11, 75), plan="heart_team"), {"missed", "stenosis"}, 7),
    ("RCA #2 shows 75% stenosis. PCI is recommended.",
     CLEAN, {"invented", "stenosis", "treatment"}, 3),
    ("The RCA is normal. No treatment is needed.", CLEAN, set(), 10),
    ("This is the RCA. No treatment is needed.", CLEAN, {"stenosis"}, 5),  # absence is not said
    # right about 25 percent, but names no vessel: 2 + 0 + 1 + 2 + 1
    (f"No significant stenosis in the LCA. {MEDICAL}",
     truth((7, 25), plan="medical"), {"missed"}, 6),
])  # fmt: skip
def test_the_papers_figure_3_and_more_lesions_and_fewer(text, wanted, wrong, overall):
    marks = mark(text, wanted)
    assert (errors(marks), marks["overall"]) == (wrong, overall)
    assert marks["segment_match"] == (overall > 8)


@pytest.mark.parametrize("text", ["", "Sorry, I am not trained to answer this question.", "LCA."])
def test_what_cannot_be_read_is_wrong_on_everything(text):
    marks = mark(text, FIGURE3)
    assert marks["overall"] == 0 and errors(marks) == {c.word for c in CRITERIA.values()}
    assert (marks["segment_match"], marks["laterality_match"], marks["unparseable"]) == (0, 0, 1)


@pytest.mark.parametrize("text, expected", [
    ("LAD #11 75%.", {"LAD #11"}),
    ("LAD #6 75%. LAD #6 90%.", {"two grades for #6"}),
    ("RCA #4PD 75%. RCA #4AV 90%.", set()),  # two vessels of one number
    ("LAD #6 75%. RCA #2 90%.", {"stenoses on both sides"}),
    ("No stenosis in the LCA. LAD #6 90%.", {"90% where stenosis is denied"}),
    ("No significant stenosis. LAD #6 50%.", set()),  # 50 % is not significant
    ("No significant stenosis in the LAD. LCX #11 90%.", set()),
    ("LAD #6 90%. No revascularization is needed.", {"none for 90%"}),
    ("LAD #6 25%. Emergency PCI.", {"emergency_pci for 25%"}),
    ("LAD #6 75%. Evaluate viability before CTO-PCI.", {"cto for 75%"}),
    ("LM #5 50%. Optimal medical therapy.", {"medical for 50%"}),
    ("LAD #6 50%. Optimal medical therapy.", set()),
    ("LAD #6 75%. Optimal medical therapy.", set()),  # not the rule's plan, but no nonsense
    ("LAD #6 90%. Optimal medical therapy.", {"medical for 90%"}),
    ("No stenosis. PCI is recommended.", {"pci for 0%"}),
    ("LAD #6 75%. No PCI is needed. CABG is needed.", {"none against heart_team"}),
    (f"LAD #6 90%. {CONTEXT}", set()),
    ("LAD is normal. PCI is recommended.", set()),  # the LCX may need it
    ("PCI is recommended.", set()),
])  # fmt: skip
def test_contradictions(text, expected):
    own = read_entities(text, "en")
    assert contradictions(own) == expected
    assert len(score(own, Entities())["logical_rules"].split("; ")) == max(len(expected), 1)
    marks = score(own, own)  # what the truth says too is no contradiction
    assert marks["overall"] == 10 and marks["logical_error"] == 0


def counts(text, wanted):
    """True, said and hit of significant lesions, then of mild ones; graded hits, and near ones."""
    marks = mark(text, wanted)
    names = [f"{kind}_{what}" for kind in ("lesions", "mild") for what in ("true", "said", "hit")]
    return [marks[name] for name in (*names, "hits_graded", "grades_near")]


@pytest.mark.parametrize("text, lesions, expected", [
    ("LAD #6 75%. LCX #11 100%.", [(6, 90), (11, 50)], [1, 2, 1, 1, 0, 0, 1, 1]),
    ("LCX #11 25%. LCX #13 90%.", [(6, 90), (11, 50)], [1, 1, 0, 1, 1, 1, 0, 0]),
    ("LAD #6 100%.", [(6, 75), (6, 90), (6, 50)], [1, 1, 1, 0, 0, 0, 1, 0]),  # its worst counts
    ("LM #5 50%. LAD #6 50%.", [(5, 75), (6, 25)], [1, 1, 1, 1, 1, 1, 1, 1]),  # left main from 50 %
    ("There is a stenosis in LAD #7.", [(7, 90)], [1, 1, 1, 0, 0, 0, 1, 0]),  # ungraded: acted upon
    ("The LAD shows 90% stenosis. #16 90%.", [(7, 90)], [1, 2, 0, 0, 0, 0, 0, 0]),
    ("Sorry.", [(6, 90), (11, 50)], [1, 0, 0, 1, 0, 0, 0, 0]),
    ("No significant stenosis in the LCA.", [], [0] * 8),
])  # fmt: skip
def test_the_counts_of_lesions_by_hand(text, lesions, expected):
    assert counts(text, truth(*lesions)) == expected


@pytest.mark.parametrize("text, lesions, right", [
    ("No significant stenosis in the LCA.", [], 1),
    ("LAD #6 shows 50% stenosis.", [], 1),  # mild is not significant
    ("No significant stenosis in the LCA.", [(7, 25)], 1),
    ("LAD #6 shows 75% stenosis.", [], 0),
    ("PCI is recommended.", [], 0),  # nothing is called healthy
    ("No significant stenosis in the LCA.", [(5, 50)], None),
])  # fmt: skip
def test_healthy_pictures_called_healthy(text, lesions, right):
    assert mark(text, truth(*lesions))["healthy_right"] == right


def test_unknown_truth_is_missing_and_never_counted_as_right():
    own = read_entities("LCX #11 75%.", "en")  # no plan in the validated findings
    marks = mark(f"LCX #12 shows 75% stenosis. {PCI}", own)
    assert marks["treatment_error"] is None
    assert marks["overall"] == 8.75  # (2 side + 0 + 1 + 1 vessels + 2 grade + 1 logic) of 8
    unread = mark(f"LCX #11 shows 75% stenosis. {PCI}", Entities())
    missing = {k for k, v in unread.items() if v is None}
    matches = {"segment_match", "laterality_match", "plan_right", "healthy_right"}
    matches |= set(count_lesions(own, own))
    assert missing == set(CRITERIA) - {"logical_error"} | matches
    empty = mark("", own)
    assert empty["treatment_error"] is None and empty["stenosis_error"] == 1


@pytest.mark.parametrize("arguments, match", [
    (("left", [], "none"), "unknown laterality 'left'"),
    (("LCA", [], "surgery"), "unknown plan 'surgery'"),
    (("LCA", [{"segment": 6, "percent": 80}], "pci"), "grades are .* got 80"),
])  # fmt: skip
def test_refuses_a_malformed_truth(arguments, match):
    with pytest.raises(ValueError, match=match):
        truth_entities(*arguments)
