import json

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cag_utils.corpus import pairs as corpus
from cag_utils.corpus.examples import plain_text
from cag_utils.corpus.pairs import choose_key_frames, pair, prompt, read_findings, read_reports
from cag_utils.identity import pseudonym

KEY = b"secret"
VIDEOS = [pseudonym("video", f"9.{i}", KEY) for i in range(4)]
EXAMS = [pseudonym("exam", f"8.{i}", KEY) for i in range(4)]
HEAD = "video,frame,findings_ja,findings_en,validated_by\n"


def predicted():
    rows = [(0, 10, 0.9), (0, 20, 0.9), (0, 30, 0.95), (1, 5, 0.4), (1, 15, 0.1), (2, 7, 0.8)]
    table = pd.DataFrame(rows, columns=["n", "frame", "p_LCA_better"])
    return table.assign(
        video_id=[VIDEOS[n] for n in table["n"]],
        exam_id=[EXAMS[n] for n in table["n"]],
        patient_id=[f"pt-{n}" for n in table["n"]],
        **{"png": "x.png", "laterality": "LCA", "quality": "better", "p_RCA_better": 0.05},
    )


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_the_prompt_is_the_papers_and_refuses_what_it_does_not_know():
    got = prompt("LCA", "84-year-old male.", "en")
    assert got == (
        "This image is a left coronary angiogram. Based on the image and the clinical report "
        "below, provide an explanation and advice on future management.\n\n84-year-old male."
    )
    assert prompt("RCA", "84歳男性", "ja").startswith("この画像は右冠動脈造影です。")
    for side, language in (("LAD", "en"), ("LCA", "fr")):
        with pytest.raises(ValueError, match="unknown"):
            prompt(side, "", language)


def test_the_surest_key_frames_win_and_the_earlier_of_equals():
    got = choose_key_frames(predicted(), per_video=2, min_confidence=0.5)
    chosen = list(zip(got["video_id"], got["frame"], strict=True))
    assert chosen == sorted([(VIDEOS[0], 10), (VIDEOS[0], 30), (VIDEOS[2], 7)])
    # the confidence is the own side's, and only `better` counts, unless nothing is asked
    table = predicted().head(1).assign(laterality="RCA")
    assert choose_key_frames(table, 1, 0.0)["confidence"].tolist() == [0.05]
    table = predicted().head(1).assign(quality="bad", p_LCA_better=0.3)
    assert choose_key_frames(table, 1, 0.2).empty
    assert len(choose_key_frames(table, 1, 0.0)) == 1
    # nor is a frame of the other side than its cine a key frame
    table = predicted().head(3)  # three frames of one cine: the first alone says right
    table.loc[0, ["laterality", "p_LCA_better", "p_RCA_better"]] = ["RCA", 0.02, 0.97]
    got = choose_key_frames(table, per_video=3, min_confidence=0.5)
    assert got["frame"].tolist() == [20, 30] and set(got["laterality"]) == {"LCA"}


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.floats(0, 1))
def test_choice_never_breaks_its_limits(per_video, least):
    got = choose_key_frames(predicted(), per_video, least)
    assert (got["confidence"] >= least).all()
    assert got.groupby("video_id").size().max() <= per_video if len(got) else True


@pytest.fixture
def tables(tmp_path):
    reports = "exam,report_ja,report_en\n8.0,報告0,report 0\n8.1,報告1,\n8.3,報告3,report 3\n"
    findings = HEAD + "9.0,,全体,whole,truth\n9.0,30,一枚,one,truth\n9.2,,他,other,truth\n"
    reports = read_reports(write(tmp_path / "reports.csv", reports), KEY)
    return reports, read_findings(write(tmp_path / "findings.csv", findings), KEY)


def test_pairs_join_report_and_findings_and_the_frame_comes_before_the_cine(tables):
    pairs, unpaired = pair(choose_key_frames(predicted(), 2, 0.5), *tables, predicted())
    assert pairs["case_id"].tolist() == ["case-0001", "case-0002"]
    assert pairs["frame"].tolist() == [10, 30]
    assert pairs["findings_en"].tolist() == ["whole", "one"]
    assert pairs["report_ja"].tolist() == ["報告0", "報告0"]
    why = dict(zip(unpaired["id"], unpaired["why"], strict=True))
    assert why == {
        EXAMS[2]: "key frames but no report",
        EXAMS[1]: "a report but no key frame",
        EXAMS[3]: "a report but no sampled cine: is the id right?",
        VIDEOS[1]: "no key frame and no findings",
        VIDEOS[2]: "findings but no report of the exam",
    }
    # every frame and text is in a pair or listed
    chosen = choose_key_frames(predicted(), 4, 0.0)
    pairs, unpaired = pair(chosen, *tables, predicted())
    named = set(unpaired["id"]) | set(pairs["video_id"]) | set(pairs["exam_id"])
    assert set(tables[0]["exam_id"]) | set(tables[1]["video_id"]) <= named
    assert all(row.video_id in named or row.exam_id in named for row in predicted().itertuples())
    assert unpaired["id"].is_unique


def test_findings_count_whole_for_no_other_frame_and_else_are_listed(tables):
    reports, findings = tables
    chosen = choose_key_frames(predicted(), 1, 0.0)  # videos 0, 1 and 2
    chosen = chosen[chosen["video_id"] != VIDEOS[2]]
    strange = findings.tail(1).assign(video_id=VIDEOS[3])
    _, unpaired = pair(chosen, reports, pd.concat([findings, strange]), predicted())
    why = dict(zip(unpaired["id"], unpaired["why"], strict=True))
    assert why[VIDEOS[1]] == "key frames but no findings"
    assert why[VIDEOS[2]] == "findings but no key frame"
    assert why[VIDEOS[3]] == "findings but no sampled cine: is the id right?"
    only_one_frame = findings[findings["frame"] == 30]
    chosen = predicted()[lambda t: t["frame"] == 20].assign(confidence=0.9)
    pairs, unpaired = pair(chosen, reports, only_one_frame, predicted())
    assert pairs.empty
    assert dict(unpaired[["id", "why"]].to_numpy())[VIDEOS[0]] == "findings of other frames only"
    # an empty translation must not be filled from the findings of the whole cine
    findings = findings.assign(findings_en=findings["findings_en"].replace("one", ""))
    pairs, _ = pair(choose_key_frames(predicted(), 2, 0.5), reports, findings, predicted())
    assert pairs.set_index("frame")["findings_en"].to_dict() == {10: "whole", 30: ""}


def test_drafts_stay_outside_and_are_counted_unless_the_profile_lets_them_in(tables):
    reports, findings = tables
    drafts = findings.assign(validated_by=["", *findings["validated_by"].iloc[1:]])
    chosen = choose_key_frames(predicted(), 2, 0.5)
    pairs, unpaired = pair(chosen, reports, drafts, predicted())
    why = unpaired.set_index("id")["why"]
    assert why[drafts["video_id"][0]] == "findings that nobody has validated"
    assert (pairs["validated_by"] != "").all() and unpaired["id"].is_unique
    with_drafts, _ = pair(chosen, reports, drafts, predicted(), only_validated=False)
    assert len(with_drafts) > len(pairs) and (with_drafts["validated_by"] == "").any()


LESIONS = [{"segment": n, "percent": p, "artery": a} for n, p, a in
           ((6, 50, "LAD"), (11, 75, "LCX"), (2, 90, "RCA"))]  # fmt: skip


@pytest.fixture
def truth(tmp_path):
    """Of exam 8.0: its LCA cine shows segment 11 in frame 30; nothing shows segment 2."""
    lca, one = json.dumps(LESIONS[:2]), json.dumps(LESIONS[1:2])
    tables = {
        "exams": pd.DataFrame({"exam": ["8.0", "8.1"], "lesions": [json.dumps(LESIONS)] * 2}),
        "videos": pd.DataFrame({"video": ["9.0"], "exam": "8.0", "laterality": "LCA",
                                "lesions": lca, "plan": "functional"}),
        "frames": pd.DataFrame({
            "video": "9.0", "frame": [10, 30], "lesions": ["[]", one], "plan": ["none", "pci"],
            "ideal_lesions": ["[]", "[]"], "ideal_plan": "none"}),
        "lesions": pd.DataFrame({"video": "9.0", "frame": [10, 30], "segment": 11,
                                 "visible": [False, True]}),
    }  # fmt: skip
    for name, table in tables.items():
        table.to_csv(tmp_path / f"truth_{name}.csv", index=False)
    return tmp_path


def test_truth_is_joined_by_frame_and_the_exams_lesions_are_counted(tables, truth):
    pairs, _ = pair(choose_key_frames(predicted(), 2, 0.5), *tables, predicted())
    got = corpus.add_truth(pairs, truth, KEY)
    assert got["truth_laterality"].tolist() == ["LCA", "LCA"]
    assert got["truth_lesions"].map(json.loads).tolist() == [[], LESIONS[1:2]]
    assert got["exam_lesions"].map(json.loads).tolist() == [LESIONS[:2]] * 2
    assert got["truth_plan"].tolist() == ["none", "pci"]
    assert set(got["exam_plan"]) == {"functional"} and set(got["ideal_plan"]) == {"none"}
    shown = corpus.lesions_shown(got, truth, KEY)
    # 50 % of the LAD is not significant; the right side has no cine at all
    assert shown.to_numpy().tolist() == [[EXAMS[0], 11, 75, 1, True], [EXAMS[0], 2, 90, 0, False]]
    with pytest.raises(ValueError, match="lacks the truth of 1 frames"):
        corpus.add_truth(pairs.assign(frame=[10, 31]), truth, KEY)


def test_the_dataset_holds_pictures_and_texts(tables, tmp_path):
    pairs, _ = pair(choose_key_frames(predicted(), 2, 0.5), *tables, predicted())
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "x.png")
    counts = corpus.save_dataset(pairs.assign(split=["train", "test"]), tmp_path, tmp_path / "d")
    assert counts == {"train": 1, "test": 1}
    (tmp_path / "x.png").unlink()  # the dataset holds the pictures, not their paths
    row = datasets.load_from_disk(tmp_path / "d")["test"][0]
    assert row["completion_ja"] == "一枚" and row["prompt_en"].endswith("report 0")
    assert np.asarray(row["image"]).tolist() == [[77] * 8] * 8


@pytest.mark.parametrize(
    "read, text, match",
    [
        (read_reports, "exam\n8.0\n", r"own.csv: row 1: no column \['report_ja'\]"),
        (read_reports, "exam,report_ja\n8.0,あ\nYamada,い\n",
         "row 3: exam must be a StudyInstanceUID"),
        (read_reports, "exam,report_ja\n8.0, \n", "row 2: report_ja must hold the report's"),
        (read_reports, "exam,report_ja\n8.0,あ\n8.0,い\n", "row 3: this exam has a report"),
        (read_reports, f"exam,report_ja\n8.0,あ\n{EXAMS[0]},い\n", "row 3: this exam has a report"),
        (read_reports, f"exam,report_ja\n{VIDEOS[0]},あ\n", "must be a StudyInstanceUID"),
        (read_findings, HEAD + "9.0,first,あ,,me", "row 2: frame must be a frame number"),
        (read_findings, HEAD + "9.0,1,,,me", "row 2: findings_ja must hold the findings'"),
        (read_findings, HEAD + "9.0,1,あ,,me\n9.0,1,い,,me", "row 3: this frame has findings"),
        (read_findings, HEAD + "9.0,5,あ,,me\n9.0,05,い,,me", "row 3: this frame has findings"),
        (read_findings, HEAD + f"9.0,,あ,,me\n{VIDEOS[0]},,い,,me", "row 3: this frame has"),
        (read_findings, HEAD + f"{EXAMS[0]},1,あ,,me", "must be a SOPInstanceUID"),
    ],
)  # fmt: skip
def test_a_wrong_row_names_file_row_and_rule(tmp_path, read, text, match):
    with pytest.raises(ValueError, match=match):
        read(write(tmp_path / "own.csv", text), KEY)


def test_a_missing_table_is_named_and_what_may_stand_in_one_is_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="reports.csv is missing"):
        read_reports(tmp_path / "reports.csv", KEY)
    path = write(tmp_path / "r.csv", f"exam,report_ja\n{EXAMS[0]},報告\n")
    assert read_reports(path, KEY).loc[0].tolist() == ["報告", "", EXAMS[0]]
    text = "video,frame,findings_ja,validated_by\n9.0,,全体,me\n9.0,12,一枚,me\n"
    table = read_findings(write(tmp_path / "f.csv", text), KEY)
    assert table["frame"].isna().tolist() == [True, False] and table["frame"][1] == 12
    assert set(table["video_id"]) == {VIDEOS[0]} and table["findings_en"].tolist() == ["", ""]


def test_what_a_tokenizer_would_take_for_its_own_is_no_longer_that():
    note = "LAD 90% <image> <eos></s><|im_end|><start_of_turn>user EF<40, 3 < 5 > 2 <loc0001>"
    want = "LAD 90% ‹image› ‹eos›‹/s›‹|im_end|›‹start_of_turn›user EF<40, 3 < 5 > 2 ‹loc0001›"
    assert plain_text(note) == want
