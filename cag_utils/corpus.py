"""Key frames paired with reports and findings, as prompts and answers in two languages."""

import json
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from cag_utils.deident import study_id
from cag_utils.params import check_choice
from cag_utils.tables import read_table

# The paper's Figure 3 prints the English prompt; the Japanese one is this study's translation.
PROMPTS = {
    "en": (
        "This image is a {side} coronary angiogram. Based on the image and the clinical report "
        "below, provide an explanation and advice on future management.\n\n{report}"
    ),
    "ja": (
        "この画像は{side}冠動脈造影です。画像と以下の臨床レポートに基づいて、所見の説明と今後の方針に"
        "ついての助言を述べてください。\n\n{report}"
    ),
}
SIDES = {"en": {"LCA": "left", "RCA": "right"}, "ja": {"LCA": "左", "RCA": "右"}}

_UID = pa.Check.str_matches(r"^([0-9.]+|(ex|vi)-[0-9a-f]{12})$")
_TEXT = pa.Check.str_length(min_value=1)
REPORTS = pa.DataFrameSchema(
    {
        "exam": pa.Column(str, _UID),
        "report_ja": pa.Column(str, _TEXT),
        "report_en": pa.Column(str, required=False),
    },
    unique=["exam"],
)
FINDINGS = pa.DataFrameSchema(
    {
        "video": pa.Column(str, _UID),
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
PAIR_COLUMNS = [
    "case_id", "patient_id", "exam_id", "video_id", "frame", "png", "laterality", "confidence",
    "report_ja", "report_en", "findings_ja", "findings_en", "validated_by",
]  # fmt: skip


def prompt(laterality: str, report: str, language: str) -> str:
    """Return the one prompt of the study, the same for training and for generation.

    Args:
        laterality: LCA or RCA, as the CNN sees it.
        report: The pre-procedure report.
        language: en or ja.

    Raises:
        ValueError: Unknown side or language.

    Source:
        Nakamura et al., CAG-VLM, Figure 3.
    """
    check_choice("language", language, PROMPTS)
    side = SIDES[language][check_choice("laterality", laterality, SIDES[language])]
    return PROMPTS[language].format(side=side, report=report)


def read_reports(path: Path, key: bytes) -> pd.DataFrame:
    """Read `reports.csv`: one pre-procedure report an exam.

    Returns:
        exam_id, report_ja, report_en (empty text where the file has none).

    Raises:
        ValueError: A column is missing, a cell breaks its rule, or an exam has two reports.
    """
    table = read_table(path, REPORTS, RULES, "this exam has a report already; keep one row")
    ids = [study_id("exam", uid, key) for uid in table["exam"]]
    return table.assign(exam_id=ids).drop(columns="exam")


def read_findings(path: Path, key: bytes) -> pd.DataFrame:
    """Read `findings.csv`: validated findings of a cine, or of one of its frames.

    Returns:
        video_id, frame (Int64, missing for the whole cine), findings_ja, findings_en,
        validated_by.

    Raises:
        ValueError: A column is missing, a cell breaks its rule, or a frame has two findings.
    """
    table = read_table(path, FINDINGS, RULES, "this frame has findings already; keep one row")
    ids = [study_id("video", uid, key) for uid in table["video"]]
    frame = pd.to_numeric(table["frame"]).astype("Int64")
    return table.assign(video_id=ids, frame=frame).drop(columns="video")


def choose_key_frames(
    predicted: pd.DataFrame, per_video: int, min_confidence: float
) -> pd.DataFrame:
    """Keep each cine's frames that the CNN is surest are key frames.

    Args:
        predicted: One row a sampled frame: `video_id`, `frame`, `laterality`, `p_LCA_better`,
            `p_RCA_better` and anything else.
        per_video: Most frames a cine.
        min_confidence: Least confidence, 0 to 1.

    Returns:
        The chosen rows, sorted by `video_id` and `frame`, with `confidence`: the probability of
        the better class of the frame's own side. Of two equally sure frames the earlier is kept.
    """
    is_left = predicted["laterality"] == "LCA"
    confidence = predicted["p_LCA_better"].where(is_left, predicted["p_RCA_better"])
    good = predicted.assign(confidence=confidence)[confidence >= min_confidence]
    order = good.sort_values(["video_id", "confidence", "frame"], ascending=[True, False, True])
    chosen = order.groupby("video_id").head(per_video)
    return chosen.sort_values(["video_id", "frame"], ignore_index=True)


def pair(
    key_frames: pd.DataFrame, reports: pd.DataFrame, findings: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pair key frames with their exam's report and their own findings.

    Findings of the very frame count before findings of the whole cine.

    Args:
        key_frames: From `choose_key_frames`, with `patient_id`, `exam_id`, `png`, `laterality`.
        reports: From `read_reports`.
        findings: From `read_findings`.

    Returns:
        The pairs (`PAIR_COLUMNS`; `case_id` counts in order of patient, exam, video, frame), and
        what found no partner: columns `what`, `id`, `why`.
    """
    frames = key_frames.merge(reports, on="exam_id", how="left")
    exact = findings.dropna(subset="frame")
    whole = findings[findings["frame"].isna()].drop(columns="frame")
    frames = frames.astype({"frame": "Int64"})
    by_frame = frames.merge(exact, on=["video_id", "frame"], how="left")
    by_video = frames.merge(whole, on="video_id", how="left")
    texts = ["findings_ja", "findings_en", "validated_by"]
    frames[texts] = by_frame[texts].fillna(by_video[texts])
    complete = frames["report_ja"].notna() & frames["findings_ja"].notna()
    pairs = frames[complete].sort_values(["patient_id", "exam_id", "video_id", "frame"])
    pairs.insert(0, "case_id", [f"case-{i:04d}" for i in range(1, len(pairs) + 1)])
    pairs = pairs.astype({"frame": int}).reset_index(drop=True)
    return pairs[PAIR_COLUMNS], _without_partner(frames, reports, findings)


def _without_partner(
    frames: pd.DataFrame, reports: pd.DataFrame, findings: pd.DataFrame
) -> pd.DataFrame:
    def rows(what: str, ids: pd.Series, why: str) -> list[dict]:
        return [{"what": what, "id": name, "why": why} for name in sorted(set(ids))]

    unread = frames.loc[frames["report_ja"].isna(), "exam_id"]
    unseen = frames.loc[frames["findings_ja"].isna(), "video_id"]
    idle = reports.loc[~reports["exam_id"].isin(frames["exam_id"]), "exam_id"]
    dark = findings.loc[~findings["video_id"].isin(frames["video_id"]), "video_id"]
    lost = rows("exam", unread, "key frames but no report")
    lost += rows("video", unseen, "key frames but no findings")
    lost += rows("exam", idle, "a report but no key frame")
    lost += rows("video", dark, "findings but no key frame")
    return pd.DataFrame(lost, columns=["what", "id", "why"])


def add_truth(pairs: pd.DataFrame, truth_videos: Path, key: bytes) -> pd.DataFrame:
    """Add what only a phantom knows: true side, lesions and plan of each cine.

    Args:
        pairs: From `pair`.
        truth_videos: The phantom's `truth_videos.csv`.
        key: Secret of the pseudonyms.

    Returns:
        The pairs with `truth_laterality`, `truth_lesions` (JSON list) and `truth_plan`.

    Raises:
        ValueError: A pair's cine is not in the truth table.
    """
    truth = pd.read_csv(truth_videos, dtype={"video": str})
    ids = [study_id("video", uid, key) for uid in truth["video"]]
    truth = truth.assign(video_id=ids).set_index("video_id")
    if lost := set(pairs["video_id"]) - set(truth.index):
        raise ValueError(f"{truth_videos} lacks {len(lost)} cines of the corpus: stale phantom?")
    rows = truth.loc[pairs["video_id"]].reset_index(drop=True)
    for lesions in rows["lesions"]:
        json.loads(lesions)
    return pairs.assign(
        truth_laterality=rows["laterality"], truth_lesions=rows["lesions"], truth_plan=rows["plan"]
    )


def save_dataset(pairs: pd.DataFrame, outputs: Path, folder: Path) -> dict[str, int]:
    """Write the corpus as a Hugging Face dataset: pictures, prompts and answers, by split.

    Args:
        pairs: With `split`; `png` is relative to `outputs`.
        outputs: `outputs/<profile>/`.
        folder: Where to save; load it with `datasets.load_from_disk`.

    Returns:
        Rows per split.
    """
    import datasets

    datasets.disable_progress_bars()
    table = pairs[["case_id", "patient_id", "exam_id", "video_id", "frame", "laterality"]].copy()
    table.insert(0, "image", [str(outputs / png) for png in pairs["png"]])
    for language in PROMPTS:
        texts = zip(pairs["laterality"], pairs[f"report_{language}"], strict=True)
        table[f"prompt_{language}"] = [prompt(side, text, language) for side, text in texts]
        table[f"completion_{language}"] = pairs[f"findings_{language}"].to_numpy()
    splits = {
        name: datasets.Dataset.from_pandas(rows, preserve_index=False).cast_column(
            "image", datasets.Image(mode="L")
        )
        for name, rows in table.groupby(pairs["split"], sort=False)
    }
    datasets.DatasetDict(splits).save_to_disk(folder)
    return {name: len(rows) for name, rows in splits.items()}
