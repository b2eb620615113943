import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils import segments
from cag_utils.phantom.clinic import notes
from cag_utils.phantom.clinic.findings import PLANS, decide_plan, decision_table, write_findings
from cag_utils.phantom.clinic.patients import PREVALENCE, Record, draw_record
from cag_utils.scores import lexicon

lesion_st = st.fixed_dictionaries(
    {"segment": st.integers(1, 15), "percent": st.sampled_from(segments.GRADES)}
)
lesions_st = st.lists(lesion_st, max_size=4, unique_by=lambda x: x["segment"])
seed_st = st.integers(0, 2**32 - 1)


def lesion(segment, percent):
    return {"segment": segment, "percent": percent}


def record(indication="effort_angina", risk_factors=(), history=()):
    return Record(70, "M", risk_factors, indication, history, (), 60)


@settings(deadline=None)
@given(lesions_st, st.sampled_from("MF"), seed_st)
def test_a_record_is_consistent(lesions, sex, seed):
    drawn = draw_record(np.random.default_rng(seed), lesions, sex)
    worst = max((x["percent"] for x in lesions), default=0)
    assert 38 <= drawn.age <= 92 and 18 <= drawn.ef <= 78 and drawn.sex == sex
    assert not drawn.acute or worst >= 75
    assert ("troponin_raised" in drawn.tests) == drawn.acute
    assert drawn.indication != "follow_up" or "pci" in drawn.history
    assert "cabg" not in drawn.history or (worst >= 75 and drawn.age >= 50)
    assert "mi" not in drawn.history or worst >= 75 or "pci" in drawn.history


def test_bypass_grafts_belong_to_diseased_patients_of_fifty_and_more():
    rng = np.random.default_rng(6)
    drawn = [draw_record(rng, [lesion(7, 90)], "M") for _ in range(4000)]
    young = [r for r in drawn if r.age < 50]  # some 130: at a share of 0.08, ten would have grafts
    assert len(young) > 80 and not [r for r in young if "cabg" in r.history]
    share = np.mean(["cabg" in r.history for r in drawn if r.age >= 50])
    assert 0.06 < share < 0.10  # standard error 0.004
    healthy = [draw_record(rng, [lesion(7, 50)], "M") for _ in range(2000)]
    assert not [r for r in healthy if "cabg" in r.history]


def test_worse_disease_shows_in_the_record_but_does_not_settle_it():
    shares = {}
    for worst in (25, 90):
        rng = np.random.default_rng(5)
        drawn = [draw_record(rng, [lesion(7, worst)], "M") for _ in range(1500)]
        stable = [r for r in drawn if not r.acute]
        shares[worst] = np.mean(["stress_positive" in r.tests for r in stable])
    # drawn with 0.2 and 0.6; standard error below 0.015
    assert 0.15 < shares[25] < 0.25 and 0.54 < shares[90] < 0.66


def test_risk_factors_appear_as_often_as_they_should_and_do_not_exclude_each_other():
    rng = np.random.default_rng(1)
    drawn = [set(draw_record(rng, [], "M").risk_factors) for _ in range(2000)]
    share = np.mean(["hypertension" in risks for risks in drawn])
    # 2000 draws: standard error 0.011; the cap of five factors removes only a little
    assert abs(share - PREVALENCE["hypertension"]) < 0.04
    assert sum("hemodialysis" in risks for risks in drawn) > 60
    for one, other in (("ckd", "hemodialysis"), ("smoking", "ex_smoking")):
        assert not [risks for risks in drawn if {one, other} <= risks]
    assert max(map(len, drawn)) == 5


@pytest.mark.parametrize("lesions, patient, plan", [
    ([], record(), "none"),
    ([], record("stemi"), "none"),
    ([lesion(6, 25)], record(), "medical"),
    ([lesion(5, 25), lesion(11, 50)], record("stemi"), "medical"),
    ([lesion(7, 75)], record(), "functional"),
    ([lesion(7, 75)], record("stemi"), "functional"),
    ([lesion(7, 90)], record(), "pci"),
    ([lesion(2, 99), lesion(1, 75)], record(), "pci"),
    ([lesion(7, 90)], record("stemi"), "emergency_pci"),
    ([lesion(2, 100)], record("nstemi"), "emergency_pci"),
    ([lesion(5, 90)], record("stemi"), "emergency_pci"),
    ([lesion(2, 100)], record(), "cto"),
    ([lesion(5, 50)], record(), "heart_team"),
    ([lesion(5, 50), lesion(7, 100)], record(), "heart_team"),
    ([lesion(6, 75), lesion(13, 75)], record(), "heart_team"),
    ([lesion(7, 90), lesion(13, 75)], record(), "pci"),  # not the proximal LAD
    ([lesion(6, 90), lesion(13, 50)], record(), "pci"),
    ([lesion(7, 75)], record(history=("cabg",)), "context"),
    ([lesion(5, 50)], record(risk_factors=("hemodialysis",)), "context"),
    ([lesion(2, 100)], record("stemi", history=("cabg",)), "emergency_pci"),
    ([lesion(2, 50)], record(history=("cabg",)), "medical"),
])  # fmt: skip
def test_the_decision_table(lesions, patient, plan):
    assert decide_plan(patient, lesions) == plan
    assert decide_plan(patient, lesions[::-1]) == plan


def test_findings_follow_the_papers_format():
    assert write_findings([lesion(11, 75)], "LCA", "context") == {
        "en": "LCX #11 shows 75% stenosis. Consider treatment plan in context of other "
        "angiographic findings and comorbidities.",
        "ja": "LCX #11に75%の狭窄が確認できます。他のアンギオ画像や、合併症を考慮して、"
        "治療方針を検討してください。",
    }
    total = write_findings([lesion(2, 100)], "RCA", "cto")
    assert total["en"].startswith("RCA #2 shows 100% stenosis (total occlusion). ")
    assert total["ja"].startswith("RCA #2に100%の狭窄（完全閉塞）が確認できます。")
    clean = write_findings([], "RCA", "none")
    assert clean["en"].startswith("No significant stenosis in the RCA. ")
    assert clean["ja"].startswith("RCAに有意狭窄は認めません。")
    both = write_findings([lesion(11, 90), lesion(5, 50)], "LCA", "heart_team")  # by number
    assert both["en"].startswith("LM #5 shows 50% stenosis. LCX #11 shows 90% stenosis. ")
    assert both["ja"].startswith("LMT #5に50%の狭窄が確認できます。LCX #11に90%の狭窄が")


def test_phrases_cover_what_a_record_may_hold():
    assert set(notes.phrases().risk_factors) == set(PREVALENCE)
    rng = np.random.default_rng(3)
    kinds = [(percent, sex) for percent in segments.GRADES for sex in "MF"] * 200
    drawn = [draw_record(rng, [lesion(1, percent)], sex) for percent, sex in kinds]
    assert {r.indication for r in drawn} == set(notes.phrases().indications)
    assert {test for r in drawn for test in r.tests} == set(notes.phrases().tests)
    assert {drug for r in drawn for drug in r.drugs} == set(notes.phrases().drugs)
    assert {event for r in drawn for event in r.history} == set(notes.phrases().histories)
    assert {r.details["stress_kind"] for r in drawn} == set(notes.phrases().stress_tests)
    assert {r.details["surgery"] for r in drawn} == set(notes.phrases().surgeries)


def test_the_printed_decision_table_is_cited_and_marked_as_a_teaching_rule():
    table = decision_table()
    assert set(PLANS) == set(lexicon.PLANS) == set(lexicon.PLAN_PRIORITY)  # written and read
    assert set(table["plan"]) == set(PLANS) and table["plan"].is_unique
    assert table["note"].str.contains("Teaching rule").all()
    assert table["note"].str.contains("not a treatment recommendation").all()
    # body, year and class of each statement
    assert table["guideline"].str.contains(r"^(?:ESC|ACC)\S* 20\d\d .*\(class [I123]").all()


def test_segments_hand_worked():
    owners = [segments.artery_of(n) for n in (1, 4, 5, 6, 10, 11, 15)]
    assert owners == ["RCA", "RCA", "LM", "LAD", "LAD", "LCX", "LCX"]
    assert len(segments.AHA_SEGMENTS) == 15
    assert [segments.laterality_of(n) for n in (4, 5, 15)] == ["RCA", "LCA", "LCA"]
    assert segments.segments_of("RCA") == (1, 2, 3, 4)
    assert segments.segments_of("LCA") == tuple(range(5, 16))
    assert {s.artery for s in segments.AHA_SEGMENTS.values()} == set(segments.ARTERIES)
    arcade = "1 2 3 4 16 16a 16b 16c 5 6 7 8 9 9a 10 10a 11 12 12a 12b 13 14 14a 14b 15".split()
    labels = [label for s in segments.AHA_SEGMENTS.values() for label in s.syntax]
    assert sorted(labels) == sorted(arcade)


FOREIGN = [lesion(2, 75) | {"artery": "LAD"}]


@pytest.mark.parametrize("call, match", [
    (lambda: write_findings([], "left", "none"), "LCA or RCA .* got 'left'"),
    (lambda: write_findings([], "LCA", "pray"), "got 'LCA' and 'pray'"),
    (lambda: write_findings([lesion(2, 75)], "LCA", "pci"), "injection of the LCA does not show"),
    (lambda: write_findings([lesion(2, 80)], "RCA", "pci"), "stenosis grades are .* got 80"),
    (lambda: write_findings([{"segment": 2}], "RCA", "pci"), r"lacks \['percent'\]"),
    (lambda: write_findings(FOREIGN, "RCA", "pci"), "#2 belongs to the RCA, not 'LAD'"),
    (lambda: draw_record(np.random.default_rng(0), [], "X"), "sex must be M or F, got 'X'"),
    (lambda: draw_record(np.random.default_rng(0), [lesion(1, 80)], "M"), "grades"),
    (lambda: decide_plan(record(), [lesion(1, 0)]), "grades"),
    (lambda: segments.artery_of(0), "numbered 1 to 15, got 0"),
    (lambda: segments.laterality_of(16), "numbered 1 to 15, got 16"),
    (lambda: segments.segments_of("left"), "must be LCA or RCA, got 'left'"),
    (lambda: segments.check_lesion({"percent": 75}), r"lacks \['segment'\]"),
])  # fmt: skip
def test_what_cannot_be_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
