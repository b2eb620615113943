"""Read the reports and the validated findings that people keep beside their cines."""

from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from cag_utils.deident import study_id
from cag_utils.tables import read_table

_EXAM = pa.Check.str_matches(r"^([0-9.]+|ex-[0-9a-f]{12})$")
_VIDEO = pa.Check.str_matches(r"^([0-9.]+|vi-[0-9a-f]{12})$")
_TEXT = pa.Check.str_length(min_value=1)
REPORTS = pa.DataFrameSchema(
    {
        "exam": pa.Column(str, _EXAM),
        "report_ja": pa.Column(str, _TEXT),
        "report_en": pa.Column(str, required=False),
    },
    unique=["exam"],
)
FINDINGS = pa.DataFrameSchema(
    {
        "video": pa.Column(str, _VIDEO),
        "frame": pa.Column(str, pa.Check.str_matches(r"^[0-9]*$"), required=False),
        "findings_ja": pa.Column(str, _TEXT),
        "findings_en": pa.Column(str, required=False),
        "validated_by": pa.Column(str, _TEXT),
    },
    unique=["video", "frame"],
)
RULES = {
    "exam": "must be a StudyInstanceUID (digits and dots) or an exam_id of this study (ex-...)",
    "video": "must be a SOPInstanceUID (digits and dots) or a video_id of this study (vi-...)",
    "frame": "must be a frame number from 0, or empty for the whole cine",
    "report_ja": "must hold the report's text",
    "findings_ja": "must hold the findings' text",
    "validated_by": "must say who validated the findings",
}
TWICE = {
    "exam_id": "this exam has a report already; keep one row",
    "video_id": "this frame has findings already; keep one row",
}


def read_reports(path: Path, key: bytes) -> pd.DataFrame:
    """Read `reports.csv`: one pre-procedure report an exam.

    Returns:
        exam_id, report_ja, report_en (empty text where the file has none).

    Raises:
        ValueError: A column is missing, a cell breaks its rule, or an exam has two reports.
    """
    table = read_table(path, REPORTS, RULES, TWICE["exam_id"])
    ids = [study_id("exam", uid, key) for uid in table["exam"]]
    table = table.assign(exam_id=ids).drop(columns="exam")
    _refuse_repeats(table, ["exam_id"], path)
    return table


def read_findings(path: Path, key: bytes) -> pd.DataFrame:
    """Read `findings.csv`: validated findings of a cine, or of one of its frames.

    Returns:
        video_id, frame (Int64, missing for the whole cine), findings_ja, findings_en,
        validated_by.

    Raises:
        ValueError: A column is missing, a cell breaks its rule, or a frame has two findings.
    """
    table = read_table(path, FINDINGS, RULES, TWICE["video_id"])
    ids = [study_id("video", uid, key) for uid in table["video"]]
    frame = pd.to_numeric(table["frame"]).astype("Int64")
    table = table.assign(video_id=ids, frame=frame).drop(columns="video")
    _refuse_repeats(table, ["video_id", "frame"], path)
    return table


def _refuse_repeats(table: pd.DataFrame, columns: list[str], path: Path) -> None:
    """Raise ValueError for rows that only differ in how they write an id or a number.

    The schema compares cells as text; 5 and 05, or a UID and its pseudonym, are one thing.
    """
    repeated = table.duplicated(columns)
    if repeated.any():
        raise ValueError(f"{path}: row {int(repeated.argmax()) + 2}: {TWICE[columns[0]]}")
