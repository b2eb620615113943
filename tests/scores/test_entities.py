import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.making.captions import PictureFacts, write_caption
from cag_utils.phantom.clinic.findings import PLANS, write_findings
from cag_utils.phantom.clinic.notes import write_report
from cag_utils.phantom.clinic.patients import draw_record
from cag_utils.scores.entities import Entities, read_entities
from cag_utils.scores.rubric import to_grade, truth_entities
from cag_utils.segments import AHA_SEGMENTS, GRADES, LATERALITIES, segments_of

LANGUAGES = ("en", "ja")


def lesions_of(side):
    one = {"segment": st.sampled_from(segments_of(side)), "percent": st.sampled_from(GRADES)}
    return st.lists(st.fixed_dictionaries(one), max_size=5, unique_by=lambda x: x["segment"])


truth_st = st.sampled_from(LATERALITIES).flatmap(
    lambda side: st.tuples(lesions_of(side), st.just(side), st.sampled_from(list(PLANS)))
)


def stenoses(text, language):
    return [s[:3] for s in read_entities(text, language).stenoses]


@settings(deadline=None)
@given(truth_st)
def test_what_is_written_is_read_back_in_both_languages(truth):
    lesions, laterality, plan = truth
    expected = truth_entities(laterality, lesions, plan)
    findings = write_findings(lesions, laterality, plan)
    assert [read_entities(findings[la], la) for la in LANGUAGES] == [expected, expected]
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in findings["ja"])
    assert wide != findings["ja"] and read_entities(wide, "ja") == expected  # full-width characters


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60) | st.text("#LADRCX 0123456789%％番狭窄なし、。.,()-~to", max_size=60))
def test_no_text_breaks_the_reader(text):
    for language in LANGUAGES:
        read = read_entities(text, language)
        assert read.laterality in {None, *LATERALITIES}
        assert all(s.percent is None or 0 <= s.percent <= 100 for s in read.stenoses)
        assert read.plan in {None, *PLANS}


@pytest.mark.parametrize("text, expected", [
    ("LCX segment 11: 75% stenosis", [("LCX", 11, 75)]),
    ("LCx seg. 11 with a 75% stenosis", [("LCX", 11, 75)]),
    ("75% stenosis of segment 7 of the LAD", [("LAD", 7, 75)]),
    ("The left circumflex artery (#13) has 90% narrowing", [("LCX", 13, 90)]),
    ("LAD shows 75% stenosis in #7.", [("LAD", 7, 75)]),
    ("LCX11 75%", [("LCX", 11, 75)]),
    ("**LAD #6**: 90 %", [("LAD", 6, 90)]),
    ("#6 75%, #7 90%", [("LAD", 6, 75), ("LAD", 7, 90)]),
    ("75% in #6 and 90% in #11", [("LAD", 6, 75), ("LCX", 11, 90)]),
    ("LAD #6 and #7 show 75% stenosis", [("LAD", 6, 75), ("LAD", 7, 75)]),
    ("#6 and #11: 75% and 90% stenosis", [("LAD", 6, 75), ("LCX", 11, 90)]),
    ("LAD #6-7 75%", [("LAD", 6, 75), ("LAD", 7, 75)]),
    ("LAD #6 has a 75-90% stenosis", [("LAD", 6, 90)]),
    ("The proximal LAD has 90% stenosis", [("LAD", 6, 90)]),
    ("mid right coronary artery: severe stenosis", [("RCA", 2, 90)]),
    ("Stenosis of the distal circumflex, 75%", [("LCX", 13, 75)]),
    ("The left main shows moderate stenosis", [("LM", 5, 50)]),
    ("First diagonal 75%", [("LAD", 9, 75)]),
    ("Total occlusion of RCA #2", [("RCA", 2, 100)]),
    ("RCA #2 is a CTO", [("RCA", 2, 100)]),
    ("LAD #7 subtotal occlusion, 99%", [("LAD", 7, 99)]),
    ("Mild stenosis in LAD #8", [("LAD", 8, 25)]),
    ("Significant stenosis in LAD #8", [("LAD", 8, 75)]),
    ("Significant, severe stenosis in LAD #8", [("LAD", 8, 90)]),
    ("LAD septal shows 90% stenosis", [("LAD", None, 90)]),
    ("LAD #11 shows 75% stenosis", [("LAD", 11, 75)]),  # kept as said, to be judged wrong
    ("RCA #16 99%", [("RCA", 16, 99)]),
    ("A lesion is seen in LCX #11.", [("LCX", 11, None)]),
    ("Location: LCX #11\nStenosis: 75%", [("LCX", 11, 75)]),
    ("There is a 75% stenosis.", [(None, None, 75)]),
    ("LVEF 55%. RCA #3 90%, EF 40%.", [("RCA", 3, 90)]),
    ("If stenosis exceeds 70%, consider PCI.", []),
    # vague mentions are folded into the full one
    ("LCX has a stenosis. LCX #11 shows 75% stenosis. There is 75% narrowing.", [("LCX", 11, 75)]),
    ("LAD #6 75% 150%", [("LAD", 6, 75)]),
    ("1. LAD #6: 75%\n2. LCX #11: 90%", [("LAD", 6, 75), ("LCX", 11, 90)]),
    ("LAD shows 3 lesions", [("LAD", None, None)]),  # three lesions, not segment 3
    ("PCI to LAD #6 is recommended", []),  # a plan names a place but states no stenosis
    ("左回旋枝１１番に７５％の狭窄を認めます", [("LCX", 11, 75)]),
    ("#6、#7に75%狭窄", [("LAD", 6, 75), ("LAD", 7, 75)]),
    ("前下行枝近位部に90%狭窄、対角枝に75%狭窄", [("LAD", None, 75), ("LAD", 6, 90)]),
    ("右冠動脈＃２に完全閉塞を認める", [("RCA", 2, 100)]),
    ("RCA #1で閉塞しています", [("RCA", 1, 100)]),
    ("左冠動脈主幹部に50%狭窄", [("LM", 5, 50)]),
    ("LMTに高度狭窄", [("LM", 5, 90)]),
    ("LAD中部に中等度狭窄", [("LAD", 7, 50)]),
    ("LCX #13に99%の亜完全閉塞", [("LCX", 13, 99)]),
    ("セグメント11に75パーセントの狭窄", [("LCX", 11, 75)]),
    ("鈍角枝に75%狭窄", [("LCX", 12, 75)]),
    ("3枝病変が疑われ、LAD #6に90%狭窄", [("LAD", 6, 90)]),
])  # fmt: skip
def test_stenoses_as_models_write_them(text, expected):
    language = "en" if text.isascii() else "ja"
    assert sorted(stenoses(text, language), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("text, language, cleared, beside", [
    ("No significant stenosis in the RCA.", "en", {"RCA"}, []),
    ("There is no evidence of obstructive coronary disease.", "en", {"all"}, []),
    ("The coronary arteries appear normal.", "en", {"all"}, []),
    ("None. Advice: follow-up.", "en", {"all"}, []),
    ("なし。", "ja", {"all"}, []),
    ("LAD and LCX are free of significant stenosis.", "en", {"LAD", "LCX"}, []),
    ("Stenosis is not seen in LAD #6.", "en", {"#6"}, []),
    ("The image does not show any significant narrowing.", "en", {"all"}, []),
    ("LAD has less than 50% stenosis.", "en", {"LAD"}, []),
    ("LCAに有意狭窄は認めません。", "ja", {"LCA"}, []),
    ("冠動脈に有意な狭窄はありません。", "ja", {"all"}, []),
    ("狭窄病変なし。", "ja", {"all"}, []),
    ("LCA: LM normal, LAD: #6 90%, #7 n.p.", "en", {"#5", "#7"}, [("LAD", 6, 90)]),
    ("#7の75%以外に有意狭窄(-)", "ja", set(), [("LAD", 7, 75)]),
    ("LAD #7 75%, no PCI for this lesion.", "en", set(), [("LAD", 7, 75)]),
    ("右冠動脈は正常です。", "ja", {"RCA"}, []),
    ("#7に狭窄を認めない", "ja", {"#7"}, []),
    ("RCA中部に50%未満の狭窄", "ja", {"#2"}, []),
    ("LCX #11 75%. No other significant stenosis.", "en", set(), [("LCX", 11, 75)]),
    ("No stenosis in the LAD, but LCX #11 90%.", "en", {"LAD"}, [("LCX", 11, 90)]),
    ("LADには狭窄を認めず、LCX #11に90%狭窄", "ja", {"LAD"}, [("LCX", 11, 90)]),
    ("LCX #11に75%の狭窄を認め、他に異常なし。", "ja", set(), [("LCX", 11, 75)]),
])  # fmt: skip
def test_absence_also_beside_a_stenosis(text, language, cleared, beside):
    read = read_entities(text, language)
    assert read.cleared == cleared and [s[:3] for s in read.stenoses] == beside
    assert read.no_stenosis == (not beside) == (read.worst_percent == 0)


@pytest.mark.parametrize("la, text", [("en", "90% stenosis of the {}"), ("ja", "{}に90%の狭窄")])
def test_every_segment_is_known_by_name(la, text):
    for segment in AHA_SEGMENTS.values():
        told = text.format(getattr(segment, f"name_{la}"))
        assert stenoses(told, la) == [(segment.artery, segment.number, 90)], told


@settings(deadline=None, max_examples=60)
@given(truth_st, st.sampled_from(LANGUAGES), st.integers(0, 2**32 - 1))
def test_the_untuned_twins_own_words_are_read_as_well(truth, language, seed):
    lesions, laterality, plan = truth
    rng = np.random.default_rng(seed)
    report = write_report(rng, draw_record(rng, lesions, "M"))
    scene = PictureFacts(laterality, tuple(lesions), "LAO cranial", report, plan)
    _, answer = write_caption(rng, scene, language, "referral")
    read, wanted = read_entities(answer, language), truth_entities(laterality, lesions, plan)
    assert read.stenoses == wanted.stenoses and read.no_stenosis == wanted.no_stenosis, answer
    assert read.plan is None  # a twin was raised without plans


@pytest.mark.parametrize("text, language, told", [
    ("This image is a left coronary angiogram.", "en", "LCA"),
    ("RCA is shown.", "en", "RCA"),
    ("#12", "en", "LCA"),
    ("segment 3", "en", "RCA"),
    ("回旋枝", "ja", "LCA"),
    ("右冠動脈造影です。", "ja", "RCA"),
    ("The RCA is not visualized. LAD #6 90%.", "en", "LCA"),
    ("Recommend watchful waiting without medical therapy.", "en", "none"),
    ("PCI is not indicated.", "en", "none"),
    ("No intervention is required.", "en", "none"),
    ("Treat with a statin and follow-up.", "en", "medical"),
    ("FFR measurement, then PCI if positive.", "en", "functional"),
    # the plan that decides wins, whatever the order
    ("Optimal medical therapy. FFR should be measured. Weigh comorbidities.", "en", "functional"),
    ("Weigh comorbidities. FFR should be measured. Optimal medical therapy.", "en", "functional"),
    ("Assess the functional significance.", "en", "functional"),
    ("Percutaneous coronary intervention should be performed.", "en", "pci"),
    ("PCI is recommended. Continue statins.", "en", "pci"),
    ("Urgent PCI is required.", "en", "emergency_pci"),
    ("CABG should be considered.", "en", "heart_team"),
    ("Consider PCI for the CTO after viability testing.", "en", "cto"),
    ("Decide in the context of comorbidities.", "en", "context"),
    ("s/p CABG 5 years ago.", "en", None),  # a history is no plan
    ("PCIは不要です。", "ja", "none"),
    ("内服治療と経過観察。", "ja", "medical"),
    ("虚血評価を行ってください。", "ja", "functional"),
    ("経皮的冠動脈インターベンションを勧めます。", "ja", "pci"),
    ("直ちに血行再建を行う。", "ja", "emergency_pci"),
    ("バイパス術を検討。", "ja", "heart_team"),
    ("PCI後。", "ja", None),
    ("経過は良好です。", "ja", None),
])  # fmt: skip
def test_laterality_or_else_the_plan(text, language, told):
    read = read_entities(text, language)
    assert told == (read.laterality if told in LATERALITIES else read.plan)
    for two_or_none in ("LAD #6 90%. RCA #2 75%.", "PCI is recommended.", ""):
        assert read_entities(two_or_none, "en").laterality is None


def test_refusals_and_nothing_are_unparseable_and_only_japanese_mixes_in_english():
    sorry = "Sorry, as a base VLM I am not trained to answer this question."
    for text in ("", "   ", sorry, "狭"):
        read = read_entities(text, "ja")
        assert read == Entities() and read.unparseable and read.worst_percent is None
    assert stenoses("LCX #11 shows 75% stenosis", "ja") == [("LCX", 11, 75)]
    assert read_entities("左回旋枝に高度狭窄", "en").unparseable


@pytest.mark.parametrize("text, language", [
    ("There is a 75% stenosis.", "en"),  # where?
    ("LAD #7に狭窄を認める。", "ja"),  # how much?
    ("LAD #11 75%.", "en"), ("RCA #16 99%.", "en"), ("LAD #7 150%.", "en"),
    ("#6, #7: 75%, 90%, 50%.", "en"),  # which of them?
    ("SVG-RCA 90%.", "en"),  # a graft is no segment
    ("Stenosis of the LMT cannot be excluded.", "en"), ("LCX #11は評価困難。", "ja"),
    ("Severe triple vessel disease.", "en"),
])  # fmt: skip
def test_what_cannot_be_read_is_told_and_never_guessed(text, language):
    assert len(read_entities(f"{text} PCI.", language).unread) == 1
    assert (
        read_entities(f"RCA #2 90%. {text}", language).unread
        == read_entities(text, language).unread
    )
    assert not read_entities("LAD #7 90%. No other stenosis. PCI is recommended.", language).unread


def test_vessels_that_share_a_number_are_told_apart_and_a_side_that_is_not_named_is_not_wrong():
    two = read_entities("#4PD 75%, #4AV 90%. OM1 50%、OM2 99%.", "ja").stenoses
    assert [(s.segment, s.branch, s.percent) for s in two] == [
        (4, "PD", 75), (4, "AV", 90), (12, "OM1", 50), (12, "OM2", 99),
    ]  # fmt: skip
    assert stenoses("RCA #4 75%. RCA #4PD 75%.", "en") == [("RCA", 4, 75)]  # said twice
    sides = [read_entities(text, "en").sides for text in ("75% stenosis.", "LAD.", "LAD, RCA.")]
    assert sides == [frozenset(), frozenset({"LCA"}), frozenset({"LCA", "RCA"})]


def test_grades_cover_the_values_up_to_their_own_and_what_cannot_be_read_is_refused():
    steps = {0: 0, 1: 25, 25: 25, 26: 50, 70: 75, 80: 90, 90: 90, 95: 99, 100: 100}
    assert {percent: to_grade(percent) for percent in steps} == steps
    with pytest.raises(ValueError, match=r"unknown language 'jp' \(known: en, ja\)"):
        read_entities("LAD", "jp")
    with pytest.raises(ValueError, match="0 to 100 percent, got 101"):
        to_grade(101)
