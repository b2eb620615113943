import pytest

from cag_utils.deident import pseudonym
from cag_utils.exam_texts import read_findings, read_reports

KEY = b"secret"
EXAM, VIDEO = pseudonym("exam", "8.0", KEY), pseudonym("video", "9.0", KEY)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_ids_of_this_study_are_read_as_they_are(tmp_path):
    path = write(tmp_path / "r.csv", f"exam,report_ja\n{EXAM},報告\n")
    assert read_reports(path, KEY).loc[0].tolist() == ["報告", "", EXAM]


@pytest.mark.parametrize(
    "text, match",
    [
        ("exam\n8.0\n", r"reports.csv: no column \['report_ja'\]"),
        ("exam,report_ja\n8.0,あ\nYamada,い\n", "row 3: exam 'Yamada' must be a StudyInstanceUID"),
        ("exam,report_ja\n8.0, \n", "row 2: report_ja '' must hold the report's text"),
        ("exam,report_ja\n8.0,あ\n8.0,い\n", "row 3: this exam has a report already"),
        (f"exam,report_ja\n8.0,あ\n{EXAM},い\n", "row 3: this exam has a report already"),
        (f"exam,report_ja\n{VIDEO},あ\n", "must be a StudyInstanceUID"),
    ],
)
def test_a_wrong_report_names_file_row_and_rule(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        read_reports(write(tmp_path / "reports.csv", text), KEY)


@pytest.mark.parametrize(
    "row, match",
    [
        ("9.0,first,あ,,me", "row 2: frame 'first' must be a frame number"),
        ("9.0,1,あ,,", "row 2: validated_by '' must say who"),
        ("9.0,1,あ,,me\n9.0,1,い,,me", "row 3: this frame has findings already"),
        ("9.0,5,あ,,me\n9.0,05,い,,me", "row 3: this frame has findings already"),
        (f"9.0,,あ,,me\n{VIDEO},,い,,me", "row 3: this frame has findings already"),
        (f"{EXAM},1,あ,,me", "must be a SOPInstanceUID"),
    ],
)
def test_wrong_findings_name_file_row_and_rule(tmp_path, row, match):
    head = "video,frame,findings_ja,findings_en,validated_by\n"
    with pytest.raises(ValueError, match=match):
        read_findings(write(tmp_path / "findings.csv", head + row + "\n"), KEY)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="reports.csv is missing"):
        read_reports(tmp_path / "reports.csv", KEY)


def test_findings_of_a_frame_and_of_the_whole_cine_may_stand_together(tmp_path):
    text = "video,frame,findings_ja,validated_by\n9.0,,全体,me\n9.0,12,一枚,me\n"
    table = read_findings(write(tmp_path / "f.csv", text), KEY)
    assert table["frame"].isna().tolist() == [True, False] and table["frame"][1] == 12
    assert set(table["video_id"]) == {VIDEO} and table["findings_en"].tolist() == ["", ""]
