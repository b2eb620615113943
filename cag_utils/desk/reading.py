"""Texts and what readers say of them: findings to validate, anonymous answers to review."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cag_utils.desk.marks import first_marks
from cag_utils.desk.viewer import Case, Field, Task, Words
from cag_utils.scores.entities import read_entities
from cag_utils.scores.rubric import contradictions
from cag_utils.segments import AHA_SEGMENTS, GRADES, laterality_of

DRAFTS = {"findings_ja": "ja", "findings_en": "en"}
REPORT = {"en": "Pre-procedure report", "ja": "術前レポート"}
ENGLISH = {"en": "Report, English", "ja": "術前レポート（英訳）"}
DRAFT = {"en": "Draft, as it was", "ja": "元の草稿"}
TRUTH = {"en": "Truth", "ja": "正解"}
ANSWER = {"en": "Answer to score", "ja": "採点する回答"}
VERDICTS = [
    ("accept", "a", {"en": "Accept (as it stands here)", "ja": "採用（この文面で）"}),
    ("reject", "r", {"en": "Reject", "ja": "不採用"}),
]
JAPANESE_TEXT = {"en": "Findings, Japanese", "ja": "所見（日本語）"}
ENGLISH_TEXT = {"en": "Findings, English", "ja": "所見（英語）"}
COMMENT = Field("comment", "text", {"en": "Comment", "ja": "コメント"}, "m")
VALIDATION = [
    Field("findings_ja", "text", JAPANESE_TEXT, "e", checked=True),
    Field("findings_en", "text", ENGLISH_TEXT, "f", checked=True),
    COMMENT,
    Field("verdict", "choice", {"en": "Verdict", "ja": "判定"}, options=VERDICTS, saves=True),
]
# The paper's criteria (section 4.4) by the columns of the sheet, with the keys of a left hand.
ERRORS = {
    "laterality_error": ("a", {"en": "Laterality error", "ja": "左右の誤り"}),
    "numbering_error": ("s", {"en": "Vessel numbering error", "ja": "血管番号の誤り"}),
    "treatment_error": ("d", {"en": "Treatment plan error", "ja": "治療方針の誤り"}),
    "logical_error": ("f", {"en": "Logical consistency error", "ja": "論理的整合性の誤り"}),
    "stenosis_error": ("g", {"en": "Stenosis detection error", "ja": "狭窄検出の誤り"}),
}
OVERALL = Field(
    "overall",
    "choice",
    {"en": "Overall score, 0 (worst) to 10 (best)", "ja": "総合点 0（最低）～10（最高）"},
    options=[(str(i), str(i) if i < 10 else "t", {"en": str(i)}) for i in range(11)],
)


def hints(text: str, language: str, laterality: str) -> list[Words]:
    """Say what in a text may be a slip, for whoever is typing it; nothing is ever blocked by it.

    Args:
        laterality: Side of the picture, LCA or RCA; empty where it is not known.

    Returns:
        One hint each, in both languages: a segment that does not exist or is not on this side, a
        percent that is no AHA grade, and what `rubric.contradictions` finds (also in the plan).
    """
    read, told = read_entities(text, language), []
    for one in read.stenoses:
        number, percent = one.segment, one.percent
        if number is not None and number not in AHA_SEGMENTS:
            told.append((f"#{number} is no AHA segment", f"#{number} はAHA分類にありません"))
        elif number and laterality and laterality_of(number) != laterality:
            told.append(
                (f"#{number} is not {laterality}", f"#{number} は{laterality}ではありません")
            )
        if percent not in (None, 0, *GRADES):
            words = (f"{percent} % is no AHA grade", f"{percent}％ はAHAの狭窄度ではありません")
            told.append(words)
    clashes = sorted(contradictions(read)) if read.stenoses or read.cleared else []
    told += [(f"contradiction: {clash}", f"矛盾：{clash}") for clash in clashes]
    return [{"en": en, "ja": ja} for en, ja in told]


def _place(row: Mapping) -> tuple[str, int, int, float]:
    """What a `Case` needs to know of its cine."""
    return row["video_id"], int(row["frame"]), int(row["n_frames"]), float(row["frame_time_ms"])


def validation_task(
    drafts: pd.DataFrame, outputs: Path, folder: Path, seed: int, repeat_share: float
) -> Task:
    """Return the task to accept, edit or reject draft findings.

    Args:
        drafts: Of `find_frames`: `item`, ids, frame, `png` below `outputs`, texts, `laterality`.
        repeat_share: Drafts that come back, 0 to 1/3.
    """
    rows = drafts.set_index("item")

    def show(item: str) -> Case:
        row = rows.loc[item]
        texts = [(REPORT, row["report_ja"], False), (ENGLISH, row["report_en"], True)]
        drafted = {name: row[name] for name in DRAFTS}
        texts += [(DRAFT, text, True) for text in drafted.values() if text]
        return Case(outputs / row["png"], *_place(row), texts, drafted)

    def hint(item: str, field: str, text: str) -> list[Words]:
        return hints(text, DRAFTS[field], rows.loc[item, "laterality"])

    title = {"en": "Validate findings", "ja": "所見の検証"}
    groups = {item: [item] for item in rows.index}
    return Task(title, folder, VALIDATION, lambda: groups, show, seed, repeat_share, hint)


def find_frames(
    findings: pd.DataFrame, reports: pd.DataFrame, frames: pd.DataFrame, pairs: pd.DataFrame
) -> pd.DataFrame:
    """Give each draft of `read_findings` a frame to open at, its report and its side.

    The frame of a whole cine is its surest key frame (notebook 03), or else its middle sampled one.
    Drafts of frames are shown if they are key frames, or sampled ones where a cine has no key
    frame; others, and drafts of cines that were not sampled, are left out.

    Args:
        findings: Of `read_findings`.
        reports: Of `read_reports`.
        frames: Notebook 00's `frames.csv`, `png` below `outputs/<profile>/`.
        pairs: Notebook 03's `pairs.csv`; may be empty.

    Returns:
        `item` (`video_id`, or `video_id/frame` of a draft with a frame), video_id, frame, png, and
        what `validation_task` reads.
    """
    surest = pairs.sort_values("confidence", ascending=False).drop_duplicates("video_id")
    surest = surest.set_index("video_id")[["frame", "laterality"]].to_dict("index")
    chosen = pairs.groupby("video_id")["frame"].agg(set).to_dict()
    sampled = dict(list(frames.sort_values("frame").groupby("video_id")))
    rows = []
    for draft in findings.to_dict("records"):
        video, frame = draft["video_id"], draft["frame"]
        if video not in sampled:
            continue
        of_cine, known = sampled[video].set_index("frame", drop=False), surest.get(video, {})
        item = video if pd.isna(frame) else f"{video}/{frame:04d}"
        if pd.isna(frame):
            frame = known.get("frame", of_cine.index[len(of_cine) // 2])
        elif frame not in chosen.get(video, of_cine.index):
            continue
        shown = of_cine.loc[frame].to_dict()
        rows.append({"item": item, "laterality": known.get("laterality", "")} | draft | shown)
    table = pd.DataFrame(rows)
    return table.merge(reports, on="exam_id", how="left").fillna({"report_ja": "", "report_en": ""})


def validated_findings(
    drafts: pd.DataFrame, marks: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what readers let pass, as `findings.csv`, and every draft read with its verdict.

    Of several readers of one draft the latest counts: he has had the last word.

    Args:
        drafts: Of `find_frames`.

    Returns:
        video, frame (empty for the whole cine), findings_ja, findings_en, validated_by and
        validated_at of accepted and edited drafts; and item, verdict (`accept`, `edit` or
        `reject`), comment, validated_by, validated_at.
    """
    before = drafts.set_index("item")[list(DRAFTS)].to_dict("index")
    passed, verdicts = [], []
    for item, mark in latest(marks).set_index("item").iterrows():
        if item not in before:
            continue
        texts = [mark[name] for name in DRAFTS]
        changed = [text.split() for text in texts] != [x.split() for x in before[item].values()]
        verdict = "edit" if mark["verdict"] == "accept" and changed else mark["verdict"]
        who = (mark["reader"], mark["at"])
        verdicts.append((item, verdict, mark["comment"], *who))
        if verdict != "reject":
            video, _, frame = item.partition("/")
            passed.append((video, frame and str(int(frame)), *texts, *who))
    when = ["validated_by", "validated_at"]
    return (
        pd.DataFrame(passed, columns=["video", "frame", *DRAFTS, *when]),
        pd.DataFrame(verdicts, columns=["item", "verdict", "comment", *when]),
    )


def latest(marks: pd.DataFrame) -> pd.DataFrame:
    """Return the last of each item's first marks, whoever gave it."""
    return first_marks(marks).sort_values("at").drop_duplicates("item", keep="last")


def review_task(
    sheet: pd.DataFrame, pairs: pd.DataFrame, outputs: Path, folder: Path, seed: int, **options
) -> Task:
    """Return the task to score anonymous answers.

    The desk is given the blinded sheet alone: no key, so that it cannot tell what it does not know.

    Args:
        sheet: Notebook 07's `blank_sheet.csv`: case_id, model (a code), report, ground_truth,
            output and the columns to fill in.
        pairs: Rows of 03's `pairs.csv`: case_id, png, video_id, frame, and of `frames.csv` n_frames
            and frame_time_ms.
        options: `n_cases`, the sheet's first so many (0: all), the same for all readers;
            `repeat_share`; `show_truth`, whether the truth may be opened beside the answer.
    """
    cases = list(dict.fromkeys(sheet["case_id"]))[: options["n_cases"] or None]
    places = pairs.drop_duplicates("case_id").set_index("case_id")
    chosen = sheet[sheet["case_id"].isin(cases)]
    rows = {f"{row.case_id}|{row.model}": row for row in chosen.itertuples()}
    groups = {case: [item for item, row in rows.items() if row.case_id == case] for case in cases}

    def show(item: str) -> Case:
        row = rows[item]
        place = places.loc[row.case_id]
        texts = [(REPORT, str(row.report), False)]
        texts += [(TRUTH, str(row.ground_truth), True)] if options["show_truth"] else []
        texts.append((ANSWER, row.output if isinstance(row.output, str) else "", False))
        return Case(outputs / place["png"], *_place(place), texts)

    flags = [Field(x, "flag", ERRORS[x][1], ERRORS[x][0]) for x in sheet.columns if x in ERRORS]
    fields = [OVERALL, *flags, COMMENT]
    title = {"en": "Review reports", "ja": "レポート評価"}
    return Task(title, folder, fields, lambda: groups, show, seed, options["repeat_share"])


def reader_sheet(
    marks: pd.DataFrame, groups: Mapping[str, list[str]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the sheet that notebook 07 reads, and what is missing in cases that readers began.

    Args:
        marks: All readers' marks, repeats among them.
        groups: Items by case, as the task has them.

    Returns:
        case_id, model (the code), reader, overall, the errors, comment: first marks of whole cases
        (of a case that is read in part, the answers left out would differ between models); and
        reader, case_id, missing (answers).
    """
    case_of = {item: case for case, items in groups.items() for item in items}
    first = first_marks(marks)
    first = first[first["item"].isin(case_of)]
    values = [x for x in first.columns if x == "overall" or x in ERRORS]
    cases = first["item"].map(case_of)
    codes = [item.rpartition("|")[2] for item in first["item"]]
    first = first.assign(case_id=cases, model=codes).astype(dict.fromkeys(values, float))
    counts = first.groupby(["reader", "case_id"]).size().to_dict()
    lacking = {place: len(groups[place[1]]) - n for place, n in counts.items()}
    part = [(*place, n) for place, n in lacking.items() if n]
    places = zip(first["reader"], first["case_id"], strict=True)
    whole = first[np.array([lacking[place] == 0 for place in places], bool)]
    columns = ["case_id", "model", "reader", *values, "comment"]
    told = pd.DataFrame(part, columns=["reader", "case_id", "missing"])
    return whole[columns].reset_index(drop=True), told


def repeats(marks: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    """Return both marks of what readers were shown twice, as if two readers had given them.

    Returns:
        case_id, model (the code), whose (the reader), reader (he, or `<he> again`), measures.
    """
    both = marks[marks.duplicated(["reader", "item"], keep=False)]
    both = both.astype(dict.fromkeys(measures, float))
    cases, codes = ([item.partition("|")[i] for item in both["item"]] for i in (0, 2))
    again = both["reader"] + both["repeat"].map({"0": "", "1": " again"})
    both = both.assign(case_id=cases, model=codes, whose=both["reader"], reader=again)
    return both[["case_id", "model", "whose", "reader", *measures]].reset_index(drop=True)


def break_code(
    filled: pd.DataFrame, key: pd.DataFrame, readings: Mapping[str, float]
) -> pd.DataFrame:
    """Return the sheet with the models' names; only once all who began have read all.

    Args:
        filled: Of `reader_sheet`.
        key: Notebook 07's: case_id, code, model.
        readings: Reader to the share read, of his whole `reading_order`.

    Raises:
        ValueError: There is no reader, or one has not read everything.
    """
    if not readings or min(readings.values()) < 1:
        told = {reader: f"{share:.0%}" for reader, share in readings.items()}
        raise ValueError(f"the code stays closed until everything is read; read so far: {told}")
    names = key.set_index(["case_id", "code"])["model"]
    return filled.assign(
        model=[names[place] for place in zip(filled["case_id"], filled["model"], strict=True)]
    )


def shares_read(marks: pd.DataFrame, order_of: Callable[[str], list]) -> dict[str, float]:
    """Return each reader's share of his own order (repeats among it) that is marked, 0 to 1.

    Args:
        order_of: Reader to his `reading_order`.
    """
    places = zip(marks["reader"], marks["item"], marks["repeat"].astype(int), strict=True)
    done = set(places)
    return {
        reader: float(np.mean([(reader, *place) in done for place in order_of(reader)]))
        for reader in sorted(set(marks["reader"]))
    }
