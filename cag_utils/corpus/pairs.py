"""Key frames paired with reports and findings, as prompts and answers in two languages."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pandera.pandas as pa

from cag_utils.identity import find_identifying, study_id
from cag_utils.params import check_choice
from cag_utils.segments import is_significant
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

PAIR_COLUMNS = [
    "case_id", "patient_id", "exam_id", "video_id", "frame", "png", "laterality", "confidence",
    "report_ja", "report_en", "findings_ja", "findings_en", "validated_by",
]  # fmt: skip

_TEXT = pa.Check.str_length(min_value=1)
REPORTS = pa.DataFrameSchema(
    {
        "exam": pa.Column(str, pa.Check.str_matches(r"^([0-9.]+|ex-[0-9a-f]{12})$")),
        "report_ja": pa.Column(str, _TEXT),
        "report_en": pa.Column(str, required=False),
    },
    unique=["exam"],
)
FINDINGS = pa.DataFrameSchema(
    {
        "video": pa.Column(str, pa.Check.str_matches(r"^([0-9.]+|vi-[0-9a-f]{12})$")),
        "frame": pa.Column("Int64", pa.Check.ge(0), required=False, nullable=True),
        "findings_ja": pa.Column(str, _TEXT),
        "findings_en": pa.Column(str, required=False),
        "validated_by": pa.Column(str),
    },
    unique=["video", "frame"],
)
RULES = {
    "exam": "must be a StudyInstanceUID (digits and dots) or an exam_id of this study (ex-...)",
    "video": "must be a SOPInstanceUID (digits and dots) or a video_id of this study (vi-...)",
    "frame": "must be a frame number from 0, or empty for the whole cine",
    "report_ja": "must hold the report's text",
    "findings_ja": "must hold the findings' text",
    "validated_by": "must say who validated the findings, or be empty: a draft",
}
TWICE = {
    "exam": "this exam has a report already; keep one row",
    "video": "this frame has findings already; keep one row",
}


def read_reports(path: Path, key: bytes) -> pd.DataFrame:
    """Read `reports.csv` as exam_id, report_ja, report_en (empty text where there is none).

    Raises:
        ValueError: A column is missing, a cell breaks its rule, or an exam has two reports.
    """
    return _read_texts(path, REPORTS, "exam", ["exam_id"], key)


def read_findings(path: Path, key: bytes) -> pd.DataFrame:
    """Read `findings.csv`: validated findings of a cine, or of one of its frames.

    Returns:
        video_id, frame (Int64, missing for a whole cine), findings_ja, findings_en, validated_by
        (a pseudonym, `rd-...`; empty for a draft).

    Raises:
        ValueError: A column is missing, a cell breaks its rule, or a frame has two findings.
    """
    table = _read_texts(path, FINDINGS, "video", ["video_id", "frame"], key)
    by = [who and study_id("reader", who, key) for who in table["validated_by"]]
    return table.assign(validated_by=by)


def flag_identifying(folder: Path) -> pd.DataFrame:
    """Say where the texts of `reports.csv` and `findings.csv` hold what may tell who is meant.

    Returns:
        One row a cell and kind: file, row (as a spreadsheet counts), column, kind; never the text.
    """
    flags = [pd.DataFrame(columns=["file", "row", "column", "kind"])]
    for name, schema, kind in (("reports", REPORTS, "exam"), ("findings", FINDINGS, "video")):
        table = read_table(folder / f"{name}.csv", schema, RULES, TWICE[kind])
        for column in (f"{name}_ja", f"{name}_en"):
            column = column.replace("reports", "report")
            found = find_identifying(table[column])
            flags.append(found.assign(file=f"{name}.csv", column=column))
    return pd.concat(flags, ignore_index=True)


def _read_texts(path: Path, schema, kind: str, keys: list[str], key: bytes) -> pd.DataFrame:
    table = read_table(path, schema, RULES, TWICE[kind])
    ids = {f"{kind}_id": [study_id(kind, uid, key) for uid in table[kind]]}
    table = table.assign(**ids).drop(columns=kind)
    # The schema compares cells as text; 5 and 05, or a UID and its pseudonym, are one thing.
    if (repeated := table.duplicated(keys)).any():
        raise ValueError(f"{path}: row {repeated.idxmax()}: {TWICE[kind]}")
    return table.reset_index(drop=True)


def prompt(laterality: str, report: str, language: str) -> str:
    """Return the one prompt of the study, the same for training and for generation.

    Args:
        laterality: LCA or RCA, as the CNN sees it.

    Raises:
        ValueError: Unknown side or language.

    Source:
        Nakamura et al., CAG-VLM, Figure 3.
    """
    check_choice("language", language, PROMPTS)
    side = SIDES[language][check_choice("laterality", laterality, SIDES[language])]
    return PROMPTS[language].format(side=side, report=report)


def choose_key_frames(
    predicted: pd.DataFrame, per_video: int, min_confidence: float
) -> pd.DataFrame:
    """Keep each cine's frames that the CNN is surest are key frames.

    Frames farther apart in time were tried on the phantom: they show no more of its lesions.

    Args:
        predicted: One row a sampled frame: `video_id`, `frame`, `laterality`, `quality`,
            `p_LCA_better`, `p_RCA_better` and anything else.
        per_video: Most frames a cine.
        min_confidence: Least confidence, 0 to 1. Above 0, a frame must also be predicted `better`,
            and of the side that its cine's frames are for together. 0 asks for nothing (smoke).

    Returns:
        The chosen rows, sorted by `video_id` and `frame`, with `confidence`: the probability of
        the better class of the frame's own side. Of equally sure frames the earlier is kept.

    Source:
        Nakamura et al., CAG-VLM, section 3.1 ("highest-confidence frames").
    """
    is_left = predicted["laterality"] == "LCA"
    confidence = predicted["p_LCA_better"].where(is_left, predicted["p_RCA_better"])
    is_good = confidence >= min_confidence
    if min_confidence > 0:
        together = predicted.groupby("video_id")[["p_LCA_better", "p_RCA_better"]].transform("sum")
        cine_is_left = together["p_LCA_better"] >= together["p_RCA_better"]
        is_good &= (predicted["quality"] == "better") & (is_left == cine_is_left)
    good = predicted.assign(confidence=confidence)[is_good]
    order = good.sort_values(["video_id", "confidence", "frame"], ascending=[True, False, True])
    chosen = order.groupby("video_id").head(per_video)
    return chosen.sort_values(["video_id", "frame"], ignore_index=True)


def pair(
    key_frames: pd.DataFrame,
    reports: pd.DataFrame,
    findings: pd.DataFrame,
    sampled: pd.DataFrame,
    only_validated: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pair key frames with their exam's report and their own findings, else their cine's.

    Args:
        key_frames: From `choose_key_frames`, with `patient_id`, `exam_id`, `png`, `laterality`.
        reports: From `read_reports`.
        findings: From `read_findings`.
        sampled: All frames the key frames were chosen from: `exam_id`, `video_id`.
        only_validated: Whether findings with an empty `validated_by`, drafts, stay outside.

    Returns:
        The pairs (`PAIR_COLUMNS`; `case_id` counts in order of patient, exam, video, frame), and
        what found no partner: columns `what`, `id`, `why`.
    """
    is_draft = (findings["validated_by"] == "") & only_validated
    drafts, findings = findings.loc[is_draft, "video_id"], findings[~is_draft]
    frames = key_frames.astype({"frame": "Int64"})
    frames = frames.merge(reports, on="exam_id", how="left", validate="m:1")
    texts, is_whole = ["findings_ja", "findings_en", "validated_by"], findings["frame"].isna()
    exact, whole = findings[~is_whole], findings[is_whole].drop(columns="frame")
    by_frame = frames.merge(exact, on=["video_id", "frame"], how="left", validate="m:1")
    by_video = frames.merge(whole, on="video_id", how="left", validate="m:1")
    has_own = by_frame["findings_ja"].notna()  # a row counts whole: no language from another row
    frames[texts] = by_frame[texts].where(has_own, by_video[texts])
    complete = frames["report_ja"].notna() & frames["findings_ja"].notna()
    pairs = frames[complete].sort_values(["patient_id", "exam_id", "video_id", "frame"])
    pairs.insert(0, "case_id", [f"case-{i:04d}" for i in range(1, len(pairs) + 1)])
    pairs = pairs.astype({"frame": int}).reset_index(drop=True)
    lost = _without_partner(frames, reports, findings, sampled)
    lost = lost[~lost["id"].isin(drafts)]  # what they lack is a reader
    unread = [("video", name, "findings that nobody has validated") for name in sorted(set(drafts))]
    unread = pd.DataFrame(unread, columns=lost.columns)
    return pairs[PAIR_COLUMNS], pd.concat([lost, unread], ignore_index=True)


def _without_partner(
    frames: pd.DataFrame, reports: pd.DataFrame, findings: pd.DataFrame, sampled: pd.DataFrame
) -> pd.DataFrame:
    """Everything that is in no pair, each with the one reason that tells what to mend."""
    lost: list[tuple[str, str, str]] = []

    def note(what: str, ids: Iterable[str], why: str) -> None:
        lost.extend((what, name, why) for name in sorted(set(ids)))

    unread, unseen = frames["report_ja"].isna(), frames["findings_ja"].isna()
    note("exam", frames.loc[unread, "exam_id"], "key frames but no report")
    bare = frames.loc[unseen, "video_id"]
    elsewhere = bare.isin(findings["video_id"])
    note("video", bare[~elsewhere], "key frames but no findings")
    note("video", bare[elsewhere], "findings of other frames only")
    for what, texts, word in (("exam", reports, "a report"), ("video", findings, "findings")):
        ids = texts[f"{what}_id"]
        is_sampled, is_chosen = (ids.isin(t[f"{what}_id"]) for t in (sampled, frames))
        note(what, ids[~is_sampled], f"{word} but no sampled cine: is the id right?")
        note(what, ids[is_sampled & ~is_chosen], f"{word} but no key frame")
    paired = frames[~unread & ~unseen]
    alone = set(frames.loc[~unread, "exam_id"]) - set(paired["exam_id"])
    note("exam", alone, "a report but no key frame with findings")
    note("video", frames.loc[unread & ~unseen, "video_id"], "findings but no report of the exam")
    silent = sampled["video_id"][~sampled["video_id"].isin(frames["video_id"])]
    note("video", silent[~silent.isin(findings["video_id"])], "no key frame and no findings")
    return pd.DataFrame(lost, columns=["what", "id", "why"])


def add_truth(pairs: pd.DataFrame, folder: Path, key: bytes) -> pd.DataFrame:
    """Add what only a phantom knows of each pair; lesions are JSON, plans the phantom's keys.

    | columns | truth |
    |---|---|
    | `truth_laterality` | the side injected |
    | `truth_lesions`, `truth_plan` | what this frame shows, and the plan after that alone |
    | `ideal_lesions`, `ideal_plan` | the same, as an ideal reader of 224 pixels grades it |
    | `exam_lesions`, `exam_plan` | what is true of the side, shown or not |

    Args:
        pairs: From `pair`.
        folder: The phantom's, with `truth_videos.csv` and `truth_frames.csv`.

    Raises:
        ValueError: A pair's frame is not in the truth tables.
    """
    videos, frames = (
        pd.read_csv(folder / f"truth_{name}.csv", dtype={"video": str})
        for name in ("videos", "frames")
    )
    truth = frames.merge(videos, on="video", suffixes=("_frame", ""), validate="m:1")
    ids = {uid: study_id("video", uid, key) for uid in truth["video"].unique()}
    truth = truth.assign(video_id=truth["video"].map(ids)).set_index(["video_id", "frame"])
    wanted = pd.MultiIndex.from_frame(pairs[["video_id", "frame"]])
    if lost := len(wanted.difference(truth.index)):
        raise ValueError(f"{folder} lacks the truth of {lost} frames of the corpus: stale phantom?")
    rows = truth.loc[wanted].reset_index(drop=True)
    return pairs.assign(
        truth_laterality=rows["laterality"],
        **rows[["lesions_frame", "plan_frame"]].set_axis(["truth_lesions", "truth_plan"], axis=1),
        **rows[["ideal_lesions", "ideal_plan"]],
        **rows[["lesions", "plan"]].add_prefix("exam_"),
    )


def lesions_shown(pairs: pd.DataFrame, folder: Path, key: bytes) -> pd.DataFrame:
    """Say of each significant lesion of the corpus' exams how many key frames show it.

    Args:
        pairs: From `add_truth`, with any further column of the exam, such as `split`.
        folder: The phantom's, with `truth_exams.csv`, `truth_videos.csv` and `truth_lesions.csv`.

    Returns:
        `exam_id`, `segment`, `percent`, `shown` (key frames that show it, 0 or more) and
        `any_frame` (whether a frame of the exam's cines does), one row a lesion, other side
        included.
    """
    exams = pd.read_csv(folder / "truth_exams.csv", dtype={"exam": str})
    exams["exam_id"] = [study_id("exam", uid, key) for uid in exams["exam"]]
    sights = pd.read_csv(folder / "truth_lesions.csv", dtype={"video": str})
    videos = pd.read_csv(folder / "truth_videos.csv", dtype=str).set_index("video")
    sights["exam"] = sights["video"].map(videos["exam"])
    seen = set(zip(*sights.loc[sights["visible"], ["exam", "segment"]].T.to_numpy(), strict=True))
    in_pairs = {
        exam: [x["segment"] for text in own for x in json.loads(text)]
        for exam, own in pairs.groupby("exam_id")["truth_lesions"]
    }
    rows = [
        (exam.exam_id, x["segment"], x["percent"],
         in_pairs[exam.exam_id].count(x["segment"]), (exam.exam, x["segment"]) in seen)
        for exam in exams[exams["exam_id"].isin(in_pairs)].itertuples()
        for x in json.loads(exam.lesions) if is_significant(x["segment"], x["percent"])
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["exam_id", "segment", "percent", "shown", "any_frame"])


def save_dataset(pairs: pd.DataFrame, outputs: Path, folder: Path) -> dict[str, int]:
    """Write the corpus as a Hugging Face dataset by split; return the number of rows of each.

    Args:
        pairs: With `split`; `png` is relative to `outputs`.
        folder: Gets pictures, prompts and answers; load it with `datasets.load_from_disk`.
    """
    import datasets

    datasets.disable_progress_bars()
    table = pairs[["case_id", "patient_id", "exam_id", "video_id", "frame", "laterality"]].copy()
    table.insert(0, "image", [str(outputs / png) for png in pairs["png"]])
    for language in PROMPTS:
        texts = zip(pairs["laterality"], pairs[f"report_{language}"], strict=True)
        table[f"prompt_{language}"] = [prompt(side, text, language) for side, text in texts]
        table[f"completion_{language}"] = pairs[f"findings_{language}"].to_numpy()
    grouped = table.groupby(pairs["split"], sort=False)
    found = {k: datasets.Dataset.from_pandas(rows, preserve_index=False) for k, rows in grouped}
    splits = datasets.DatasetDict(found).cast_column("image", datasets.Image(mode="L"))
    splits.save_to_disk(folder)
    return splits.num_rows
