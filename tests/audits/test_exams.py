"""From frames to exams: by hand."""

import json

import pandas as pd
import pytest

from cag_utils.audits.exams import (
    compare_exams,
    exams_of,
    mark_exams,
    merge_findings,
    rank_lesions,
    truth_of_exam,
    worst_of,
    write_exam,
    write_floors,
)
from cag_utils.profiles import load_profile
from cag_utils.scores.entities import read_entities
from cag_utils.scores.measures import by_case

STATS = load_profile("smoke").stats


def lesion(segment, percent):
    return {"segment": segment, "percent": percent}


def exams(*rows):
    """Exams as `exams_of` gives them: truth and sides of each."""
    table = pd.DataFrame(rows, columns=["truth", "sides"])
    names = [f"e{i}" for i in range(len(table))]
    return table.assign(exam_id=names, patient_id=names)


def test_an_exams_frames_come_in_order_with_all_its_sides_lesions():
    rows = [  # case, exam, video, frame, side, shown, the exam's
        ("c1", "e1", "v2", 5, "RCA", [], [lesion(1, 90)]),
        ("c2", "e1", "v1", 9, "LCA", [lesion(6, 75)], [lesion(6, 90), lesion(11, 75)]),
        ("c3", "e1", "v1", 3, "LCA", [lesion(6, 90)], [lesion(6, 90), lesion(11, 75)]),
        ("c4", "e2", "v3", 0, "LCA", [], []),
    ]
    names = ["case_id", "exam_id", "video_id", "frame", "laterality", "truth_lesions"]
    pairs = pd.DataFrame(rows, columns=[*names, "exam_lesions"])
    for name in ("truth_lesions", "exam_lesions"):
        pairs[name] = pairs[name].map(json.dumps)
    cases = pairs[["case_id", "laterality"]].assign(
        patient_id="p", split="test", image=pairs["case_id"] + ".png", report="84M."
    )
    first, second = exams_of(cases, pairs, "en").itertuples()
    assert first.images == ("c3.png", "c2.png", "c1.png") and first.cases == ("c3", "c2", "c1")
    assert first.sides == ("LCA", "RCA") and second.sides == ("LCA",)
    assert first.truth == [lesion(1, 90), lesion(6, 90), lesion(11, 75)]
    assert first.shown == [lesion(6, 90)] and second.truth == second.shown == []
    assert "3 frames" in first.prompt and "left, left, right." in first.prompt
    assert first.prompt.endswith("84M.")
    japanese = exams_of(cases, pairs, "ja")["prompt"][0]
    assert "3枚" in japanese and "左、左、右" in japanese


def test_the_worst_of_a_segment_is_kept():
    found = [lesion(6, 75), lesion(1, 50), lesion(6, 90), lesion(7, None), lesion(6, None)]
    assert worst_of(found) == [lesion(1, 50), lesion(6, 90), lesion(7, 0)]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_what_is_written_of_an_exam_is_read_back(language):
    found = [lesion(1, 90), lesion(6, 75)]
    read = read_entities(write_exam(found, ["LCA", "RCA"], language), language)
    assert {(s.segment, s.percent) for s in read.stenoses} == {(1, 90), (6, 75)}
    one_side = read_entities(write_exam(found[1:], ["LCA", "RCA"], language), language)
    assert one_side.segments == {6} and one_side.cleared == {"RCA"}
    assert read_entities(write_exam([], ["LCA"], language), language).no_stenosis
    assert truth_of_exam(found, ["LCA", "RCA"]).segments == {1, 6}
    healthy = truth_of_exam(found[1:], ["LCA", "RCA"])
    assert healthy.sides == {"LCA", "RCA"} and healthy.cleared == {"RCA"} and not healthy.plans


def test_findings_merge_by_any_or_by_more_than_half_of_the_sides_frames():
    texts = [
        "LAD #6 shows 75% stenosis.",
        "LAD #6 shows 90% stenosis. LCX #11 shows 75% stenosis. LCX #11 shows 75% stenosis.",
        "No significant stenosis in the LCA.",
        "RCA #1 shows 90% stenosis. LAD #7 shows 75% stenosis.",  # one side's frame names both
    ]
    sides = ["LCA", "LCA", "LCA", "RCA"]

    def read(share):
        found = read_entities(merge_findings(texts, sides, "en", share), "en")
        return {s.segment: s.percent for s in found.stenoses}

    assert read(0.0) == {6: 90, 11: 75, 1: 90, 7: 75}
    assert read(0.5) == {6: 90, 1: 90}  # 2 of 3 and 1 of 1; #11 and #7: 1 of 3
    assert read(0.7) == {1: 90}
    stray = merge_findings(["RCA #2 shows 99% stenosis."], ["LCA"], "en", 0.5)
    assert read_entities(stray, "en").segments == {2}  # of a side without a frame: stays said
    assert read_entities(merge_findings(["mumble"], ["RCA"], "en"), "en").cleared == {"RCA"}


TRAIN = exams(
    ([lesion(6, 75), lesion(11, 90)], ("LCA",)),
    ([lesion(6, 75), lesion(7, 25)], ("LCA",)),
    ([lesion(6, 90), lesion(1, 99)], ("LCA", "RCA")),
    ([], ("LCA", "RCA")),
)


def test_the_best_constant_set_and_the_commonest_lesions_by_hand():
    ranked = rank_lesions(TRAIN)
    # #6 in 3 of 4 left exams, #1 in 1 of 2 right ones, #11 in 1 of 4; #7 is mild
    assert ranked["segment"].tolist() == [6, 1, 11] and ranked["percent"].tolist() == [75, 99, 90]
    assert ranked["hits"].tolist() == [3, 1, 1] and ranked["exams"].tolist() == [4, 2, 4]
    # F1 of the first k: 6 / (5 + 4), 8 / (5 + 6), 10 / (5 + 10): two
    said = write_floors(TRAIN, exams(([], ("LCA", "RCA")), ([], ("RCA",))), "en")
    for name in ("constant", "commonest"):
        assert [read_entities(x, "en").segments for x in said[name]] == [{6, 1}, {1}]
    healthy = write_floors(exams(([], ("LCA",))), exams(([], ("LCA",))), "en")
    assert read_entities(healthy["constant"][0], "en").no_stenosis
    fewer = TRAIN.iloc[[2, 3, 3, 3]].assign(sides=[("LCA", "RCA")] * 4)
    # both 1 of 4: 2 / (2 + 4), 4 / (2 + 8): the two are better than one; #1 comes first
    assert read_entities(write_floors(fewer, fewer, "en")["constant"][0], "en").segments == {1, 6}


def test_measures_and_skill_of_exams_by_hand():
    texts = {
        "merged": ["LAD #6 shows 90% stenosis. LAD #7 shows 75% stenosis.", "No stenosis.", "", ""],
        "constant": ["LAD #6 shows 75% stenosis."] * 4,
        "truth": [
            write_exam(x, s, "en") for x, s in zip(TRAIN["truth"], TRAIN["sides"], strict=True)
        ],
    }
    marks = by_case(pd.concat([mark_exams(TRAIN, w, said, "en") for w, said in texts.items()]))
    found = compare_exams(marks, {"merged": ["constant"]}, STATS, seed=0).set_index("way")
    # true lesions 2 + 1 + 2; merged says 2 and hits 1; the constant says 4 and hits 3
    assert found.loc["merged", "lesion_recall"] == pytest.approx(1 / 5)
    assert found.loc["merged", "lesion_precision"] == pytest.approx(1 / 2)
    assert found.loc["merged", "lesion_f1"] == pytest.approx(2 / 7)
    assert found.loc["constant", "lesion_f1"] == pytest.approx(6 / 9)
    assert found.loc["merged", "skill"] == pytest.approx((2 / 7 - 2 / 3) / (1 - 2 / 3))
    assert found.loc["truth", "lesion_f1"] == 1 and pd.isna(found.loc["truth", "skill"])
    assert found.loc["constant", "exams"] == 4
