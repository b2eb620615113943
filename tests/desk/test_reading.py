"""Findings that readers let pass, sheets of whole cases, and how far marks can be trusted."""

import pandas as pd
import pytest

from cag_utils.desk import reading
from cag_utils.desk.marks import HEAD

COLUMNS = [name for name in HEAD if name != "action"]


@pytest.mark.parametrize("text, language, side, words", [
    ("RCA #2 shows 75% stenosis. Consider PCI.", "en", "RCA", []),
    ("RCA #2 shows 75% stenosis. Consider PCI.", "en", "LCA", ["#2 is not LCA"]),
    ("RCA #2に75%の狭窄が確認できます。PCIを検討してください。", "ja", "RCA", []),
    ("RCA #2に60%の狭窄が確認できます。", "ja", "RCA", ["60 % is no AHA grade"]),
    ("RCA #17 shows 75% stenosis.", "en", "", ["#17 is no AHA segment"]),
    ("LCX #2 shows 75% stenosis.", "en", "", ["contradiction: LCX #2"]),
    ("LAD #6 shows 90% stenosis. No revascularization is needed.", "en", "LCA", ["none for 90%"]),
    ("", "en", "RCA", []),
])  # fmt: skip
def test_hints_point_at_slips_in_both_languages_and_at_nothing_else(text, language, side, words):
    found = reading.hints(text, language, side)
    assert len(found) == len(words)
    assert all(any(word in hint["en"] for hint in found) for word in words)
    assert all(set(hint) == {"en", "ja"} for hint in found)


def drafts():
    findings = pd.DataFrame(
        {
            "video_id": ["vi-a", "vi-b", "vi-b", "vi-c"],
            "frame": pd.array([None, 7, 30, None], "Int64"),
            "findings_ja": ["甲", "乙", "丙", "丁"], "findings_en": ["a", "b", "", "d"],
        }
    )  # fmt: skip
    frames = pd.DataFrame(
        {
            "exam_id": "ex-1", "video_id": ["vi-a"] * 3 + ["vi-b"] * 2, "frame": [2, 12, 22, 7, 30],
            "png": [f"{i}.png" for i in range(5)], "n_frames": 40, "frame_time_ms": 66.7,
        }
    )  # fmt: skip
    reports = pd.DataFrame({"exam_id": ["ex-1"], "report_ja": ["報"], "report_en": ["r"]})
    pairs = pd.DataFrame(
        {"video_id": ["vi-a"] * 2, "frame": [22, 2], "laterality": "RCA", "confidence": [0.9, 0.8]}
    )
    return reading.find_frames(findings, reports, frames, pairs)


def test_drafts_open_at_their_own_frame_else_the_surest_else_the_middle():
    found = drafts().set_index("item")
    assert list(found.index) == ["vi-a", "vi-b/0007", "vi-b/0030"]  # vi-c was not sampled
    assert found["frame"].tolist() == [22, 7, 30] and found["png"]["vi-a"] == "2.png"
    assert found["laterality"].tolist() == ["RCA", "", ""] and set(found["report_en"]) == {"r"}
    task = reading.validation_task(drafts(), pd.io.common.Path("out"), None, 0, 0.0)
    case = task.show("vi-b/0007")
    assert (case.video_id, case.frame, case.start["findings_ja"]) == ("vi-b", 7, "乙")
    assert task.hints("vi-a", "findings_en", "LAD #6 shows 75% stenosis.")[0]["en"]


def test_only_what_was_accepted_passes_and_a_changed_word_makes_it_edited():
    rows = [
        ("2026-01-02", "AB", "vi-a", "0", "9", "甲", "a ", "", "accept"),
        ("2026-01-01", "CD", "vi-a", "0", "9", "甲", "a", "", "reject"),  # AB had the last word
        ("2026-01-03", "AB", "vi-b/0007", "0", "9", "乙", "B", "", "accept"),
        ("2026-01-04", "AB", "vi-b/0030", "0", "9", "丙", "", "no", "reject"),
        ("2026-01-05", "AB", "vi-b/0007", "1", "9", "乙", "x", "", "reject"),  # came back
        ("2026-01-05", "AB", "vi-z", "0", "9", "", "", "", "accept"),  # of another run
    ]
    marks = pd.DataFrame(rows, columns=[*COLUMNS, *reading.DRAFTS, "comment", "verdict"])
    passed, verdicts = reading.validated_findings(drafts(), marks)
    assert passed.to_numpy().tolist() == [
        ["vi-a", "", "甲", "a ", "AB", "2026-01-02"], ["vi-b", "7", "乙", "B", "AB", "2026-01-03"],
    ]  # fmt: skip
    assert verdicts["verdict"].tolist() == ["accept", "edit", "reject"]
    assert reading.validated_findings(drafts(), marks[:0])[0].empty


GROUPS = {f"case-{i}": [f"case-{i}|{letter}-0a0a0a" for letter in "AB"] for i in range(3)}


def review(*rows):
    """Marks from `reader item score`, `*` for what came back; every second answer has an error."""
    table = [row.split() for row in rows]
    return pd.DataFrame(
        {
            "at": "t", "reader": [x[0] for x in table],
            "item": [f"case-{x[1][0]}|{x[1][1]}-0a0a0a" for x in table],
            "repeat": [str(int(x[1].endswith("*"))) for x in table], "seconds": "1",
            "overall": [x[2] for x in table],
            "laterality_error": [str(i % 2) for i in range(len(table))], "comment": "",
        }
    )  # fmt: skip


MARKED = review("AB 0A 5", "AB 0B 7", "AB 1A 3", "CD 0A 6", "CD 0B 8", "AB 0A* 9", "CD 2B 1")


def test_the_sheet_holds_whole_cases_alone_and_says_what_is_missing():
    sheet, part = reading.reader_sheet(MARKED, GROUPS)
    assert sheet[["case_id", "model", "reader", "overall"]].to_numpy().tolist() == [
        ["case-0", "A-0a0a0a", "AB", 5], ["case-0", "B-0a0a0a", "AB", 7],
        ["case-0", "A-0a0a0a", "CD", 6], ["case-0", "B-0a0a0a", "CD", 8],
    ]  # fmt: skip
    assert part.to_numpy().tolist() == [["AB", "case-1", 1], ["CD", "case-2", 1]]
    empty, nothing = reading.reader_sheet(MARKED[:0], GROUPS)
    assert empty.empty and nothing.empty and list(empty) == list(sheet)
    assert reading.repeats(MARKED[:0], ["overall"]).empty
    twice = reading.repeats(MARKED, ["overall"])
    assert twice.to_numpy().tolist() == [
        ["case-0", "A-0a0a0a", "AB", "AB", 5], ["case-0", "A-0a0a0a", "AB", "AB again", 9],
    ]  # fmt: skip


def test_the_code_is_broken_only_when_all_who_began_have_read_all():
    key = pd.DataFrame({"case_id": "case-0", "code": ["A-0a0a0a", "B-0a0a0a"], "model": ["x", "y"]})
    order = [(item, 0) for items in GROUPS.values() for item in items] + [("case-0|A-0a0a0a", 1)]
    sheet, _ = reading.reader_sheet(MARKED, GROUPS)
    shares = reading.shares_read(MARKED, lambda reader: order)
    assert shares == {"AB": 4 / 7, "CD": 3 / 7}
    for some in (shares, {"AB": 1.0, "CD": 0.9}, {}):
        with pytest.raises(ValueError, match="stays closed"):
            reading.break_code(sheet, key, some)
    named = reading.break_code(sheet, key, {"AB": 1.0, "CD": 1.0})
    assert named["model"].tolist() == ["x", "y", "x", "y"]
