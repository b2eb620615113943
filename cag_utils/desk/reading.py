"""Texts and what readers say of them: findings to validate, anonymous answers to review."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cag_utils.desk.marks import first_marks, read_all_marks
from cag_utils.desk.viewer import Case, Field, Task, Words
from cag_utils.scores.entities import read_entities
from cag_utils.scores.rubric import contradictions
from cag_utils.segments import AHA_SEGMENTS, GRADES, laterality_of

DRAFTS = {"findings_ja": "ja", "findings_en": "en"}
REPORT = {"en": "Pre-procedure report", "ja": "術前レポート"}
VERDICTS = [
    ("accept", "a", {"en": "Accept (as it stands here)", "ja": "採用（この文面で）"}),
    ("reject", "r", {"en": "Reject", "ja": "不採用"}),
]
VALIDATION = [
    Field("findings_ja", "text", {"en": "Findings, Japanese", "ja": "所見（日本語）"}, "e", checked=True),
    Field("findings_en", "text", {"en": "Findings, English", "ja": "所見（英語）"}, "f", checked=True),
    Field("comment", "text", {"en": "Comment", "ja": "コメント"}, "m"),
    Field("verdict", "choice", {"en": "Verdict", "ja": "判定"}, options=VERDICTS, saves=True),
]
# The paper's criteria (section 4.4) by the columns of the sheet, with the keys of a left hand.
ERRORS = {
    "laterality_error": ("a", {"en": "Laterality error", "ja": "左右の誤り"}),
    "vessel_error": ("s", {"en": "Vessel numbering error", "ja": "血管番号の誤り"}),
    "numbering_error": ("s", {"en": "Vessel numbering error", "ja": "血管番号の誤り"}),
    "treatment_error": ("d", {"en": "Treatment plan error", "ja": "治療方針の誤り"}),
    "logical_error": ("f", {"en": "Logical consistency error", "ja": "論理的整合性の誤り"}),
    "stenosis_error": ("g", {"en": "Stenosis detection error", "ja": "狭窄検出の誤り"}),
}
OVERALL = Field(
    "overall",
    "choice",
    {"en": "Overall score, 0 (useless) to 10 (could be sent as it is)", "ja": "総合点 0（使えない）～10（そのまま使える）"},
    options=[(str(i), str(i) if i < 10 else "t", {"en": str(i), "ja": str(i)}) for i in range(11)],
)  # fmt: skip


def hints(text: str, language: str, laterality: str | None) -> list[Words]:
    """Say what in a text may be a slip, for whoever is typing it; nothing is ever blocked by it.

    Args:
        text: Findings.
        language: en or ja, of the text.
        laterality: Side of the picture, LCA or RCA; None where it is not known.

    Returns:
        One hint each, in both languages: a segment that does not exist or is not on this side, a
        percent that is no AHA grade, and what `rubric.contradictions` finds (also in the plan).
    """
    read, found = read_entities(text, language), []
    for one in read.stenoses:
        if one.segment is not None and one.segment not in AHA_SEGMENTS:
            told = (f"#{one.segment} is no AHA segment", f"#{one.segment} はAHA分類にありません")
        elif one.segment and laterality and laterality_of(one.segment) != laterality:
            told = (f"#{one.segment} is not on this side ({laterality})", f"#{one.segment} はこの側（{laterality}）ではありません")
        elif one.percent not in (None, 0, *GRADES):
            told = (f"{one.percent} % is no AHA grade", f"{one.percent}％ はAHAの狭窄度ではありません")
        else:
            continue
        found.append(dict(zip(("en", "ja"), told, strict=True)))
    said = [f"#{one.segment} {one.percent}" for one in read.stenoses]
    clashes = [{"en": f"contradiction: {x}", "ja": f"矛盾：{x}"} for x in sorted(contradictions(read))]
    return found + clashes if text.strip() and (said or read.cleared or read.plans) else found


def validation_task(
    drafts: pd.DataFrame, outputs: Path, folder: Path, seed: int, repeat_share: float
) -> Task:
    """Return the task to accept, edit or reject draft findings.

    Args:
        drafts: Of `find_frames`: `item`, ids, frame, `png` below `outputs`, texts, `laterality`.
        outputs: `outputs/<profile>/`.
        folder: Of the readers' sheets.
        seed: Of the readers' orders.
        repeat_share: Drafts that come back, 0 to 1/3.
    """
    rows = drafts.set_index("item")

    def show(item: str) -> Case:
        row = rows.loc[item]
        texts = [(REPORT, row["report_ja"], False)]
        texts += [({"en": "The same in English", "ja": "英訳"}, row["report_en"], True)] if row["report_en"] else []
        texts += [({"en": f"Draft ({language})", "ja": f"草稿（{language}）"}, row[name], True) for name, language in DRAFTS.items()]
        facts = (row["video_id"], int(row["frame"]), int(row["n_frames"]), float(row["frame_time_ms"]))
        return Case(outputs / row["png"], *facts, texts, {name: row[name] for name in DRAFTS})

    def hint(item: str, field: str, text: str) -> list[Words]:
        side = rows.loc[item, "laterality"]
        return hints(text, DRAFTS[field], side if isinstance(side, str) else None)

    title = {"en": "Validate findings", "ja": "所見の検証"}
    groups = {item: [item] for item in rows.index}
    return Task(title, folder, VALIDATION, lambda: groups, show, seed, repeat_share, hint)


def find_frames(
    findings: pd.DataFrame, reports: pd.DataFrame, frames: pd.DataFrame, pairs: pd.DataFrame
) -> pd.DataFrame:
    """Give each draft of `read_findings` a frame to open at, its report and its side.

    The frame is the draft's own; of a whole cine its surest key frame (notebook 03), or else its
    middle sampled frame. Drafts of cines that were not sampled are left out.

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
    surest = surest.set_index("video_id")[["frame", "laterality"]]
    rows = []
    for draft in findings.itertuples():
        of_cine = frames[frames["video_id"] == draft.video_id].sort_values("frame")
        if of_cine.empty:
            continue
        known = draft.video_id in surest.index
        wanted = surest["frame"][draft.video_id] if known else of_cine["frame"].iloc[len(of_cine) // 2]
        wanted = wanted if pd.isna(draft.frame) else draft.frame
        nearest = of_cine.loc[(of_cine["frame"] - int(wanted)).abs().idxmin()]
        item = draft.video_id + ("" if pd.isna(draft.frame) else f"/{draft.frame:04d}")
        side = surest["laterality"][draft.video_id] if known else None
        rows.append(nearest.to_dict() | draft._asdict() | {"frame": nearest["frame"], "item": item, "laterality": side})
    table = pd.DataFrame(rows).drop(columns="Index", errors="ignore")
    table = table.merge(reports, on="exam_id", how="left") if rows else table
    return table.fillna({name: "" for name in ("report_ja", "report_en", *DRAFTS) if name in table})


def validated_findings(drafts: pd.DataFrame, marks: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what readers let pass, as `findings.csv`, and every draft with its verdict.

    Of several readers of one draft the latest counts: he has had the last word.

    Args:
        drafts: Of `find_frames`.
        marks: All validators' marks.

    Returns:
        video, frame (empty for the whole cine), findings_ja, findings_en, validated_by, validated_at
        of accepted and edited drafts; and item, verdict (`accept`, `edit`, `reject`), comment,
        validated_by, validated_at of all that were read.
    """
    last = first_marks(marks).sort_values("at").drop_duplicates("item", keep="last").set_index("item")
    known = drafts.set_index("item")
    last = last.loc[[item for item in last.index if item in known.index]]
    plain = lambda column: column.str.split().str.join(" ")  # noqa: E731
    changed = pd.Series(False, index=last.index)
    for name in DRAFTS:
        changed |= plain(last[name]) != plain(known.loc[last.index, name])
    verdict = last["verdict"].mask((last["verdict"] == "accept") & changed, "edit")
    told = last.assign(verdict=verdict).rename(columns={"reader": "validated_by", "at": "validated_at"})
    told = told.reset_index()
    passed = told[told["verdict"] != "reject"]
    places = passed["item"].str.partition("/")
    passed = passed.assign(video=places[0], frame=places[2].str.lstrip("0").where(places[2] == "", places[2].map(lambda x: str(int(x)) if x else "")))
    columns = ["video", "frame", *DRAFTS, "validated_by", "validated_at"]
    return passed[columns], told[["item", "verdict", "comment", "validated_by", "validated_at"]]


def review_task(
    sheet: pd.DataFrame, pairs: pd.DataFrame, outputs: Path, folder: Path, seed: int, **options
) -> Task:
    """Return the task to score anonymous answers.

    The desk is given the blinded sheet alone: no key, so that it cannot tell what it does not know.

    Args:
        sheet: Notebook 07's `blank_sheet.csv`: case_id, model (a code), report, ground_truth, output
            and the columns to fill in.
        pairs: Rows of 03's `pairs.csv`: case_id, png, video_id, frame, and of `frames.csv` n_frames
            and frame_time_ms.
        outputs: `outputs/<profile>/`.
        folder: Of the readers' sheets.
        seed: Of the readers' orders.
        options: `n_cases`, the sheet's first so many (0: all), the same for all readers;
            `repeat_share`; `show_truth`, whether the truth may be opened beside the answer.
    """
    cases = list(dict.fromkeys(sheet["case_id"]))[: options["n_cases"] or None]
    places = pairs.drop_duplicates("case_id").set_index("case_id")
    rows = {f"{row.case_id}|{row.model}": row for row in sheet[sheet["case_id"].isin(cases)].itertuples()}
    groups = {case: [item for item, row in rows.items() if row.case_id == case] for case in cases}

    def show(item: str) -> Case:
        row = rows[item]
        place = places.loc[row.case_id]
        texts = [(REPORT, str(row.report), False)]
        texts += [({"en": "Truth", "ja": "正解"}, str(row.ground_truth), True)] if options["show_truth"] else []
        output = row.output if isinstance(row.output, str) else "(no answer)"
        texts += [({"en": "Answer to score", "ja": "採点する回答"}, output, False)]
        facts = (place["video_id"], int(place["frame"]), int(place["n_frames"]), float(place["frame_time_ms"]))
        return Case(outputs / place["png"], *facts, texts)

    flags = [Field(x, "flag", ERRORS[x][1], ERRORS[x][0]) for x in sheet.columns if x in ERRORS]
    fields = [OVERALL, *flags, Field("comment", "text", {"en": "Comment", "ja": "コメント"}, "m")]
    title = {"en": "Review reports", "ja": "レポート評価"}
    return Task(title, folder, fields, lambda: groups, show, seed, options["repeat_share"])


def reader_sheet(marks: pd.DataFrame, groups: Mapping[str, list[str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the sheet that notebook 07 reads, and what is missing in cases that readers began.

    Args:
        marks: All readers' marks, repeats among them.
        groups: Items by case, as the task has them.

    Returns:
        case_id, model (the code), reader, overall, the errors, comment: first marks of whole cases
        (of a case that is read in part, the answers left out would differ between models); and
        reader, case_id, missing (answers).
    """
    first = first_marks(marks)
    first = first[first["item"].isin([item for items in groups.values() for item in items])]
    places = first["item"].str.split("|", expand=True).reindex(columns=[0, 1])
    first = first.assign(case_id=places[0], model=places[1])
    counts = first.groupby(["reader", "case_id"]).size()
    lacks = [(reader, case, len(groups[case]) - n) for (reader, case), n in counts.items()]
    part = pd.DataFrame([x for x in lacks if x[2]], columns=["reader", "case_id", "missing"])
    begun = set(part[["reader", "case_id"]].itertuples(index=False, name=None))
    whole = [place not in begun for place in zip(first["reader"], first["case_id"], strict=True)]
    values = [x for x in first.columns if x == "overall" or x in ERRORS]
    columns = ["case_id", "model", "reader", *values, *(["comment"] if "comment" in first else [])]
    return first.loc[whole, columns].reset_index(drop=True), part


def repeats(marks: pd.DataFrame, measures: list[str]) -> pd.DataFrame:
    """Return what readers gave the same answer twice: reader, item, and each measure's two marks.

    Args:
        marks: All readers' marks.
        measures: Columns of numbers.
    """
    keys = ["reader", "item"]
    once, again = (marks[marks["repeat"] == x].set_index(keys)[measures] for x in "01")
    both = once.join(again, how="inner", lsuffix="_first", rsuffix="_again")
    return both.astype(float).reset_index()


def krippendorff_alpha(ratings: np.ndarray, level: str = "interval") -> float:
    """Return Krippendorff's alpha: 1 less the disagreement seen over that expected by chance.

    Args:
        ratings: (units, readers) numbers, NaN where a reader did not mark; units with fewer than
            two marks say nothing and are left out.
        level: interval (squared distances) or nominal (the same or not).

    Returns:
        1 for no disagreement, 0 for chance; NaN if all marks are alike or none can be compared.

    Raises:
        ValueError: Another level.

    Source:
        Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011 (the general, pairwise form).
    """
    if level not in ("interval", "nominal"):
        raise ValueError(f"level must be interval or nominal, got {level!r}")
    apart = (lambda d: d**2) if level == "interval" else (lambda d: (d != 0).astype(float))
    units = [unit[~np.isnan(unit)] for unit in np.asarray(ratings, float)]
    units = [unit for unit in units if len(unit) > 1]
    if not units:
        return float("nan")
    every = np.concatenate(units)
    seen = sum(apart(u[:, None] - u).sum() / (len(u) - 1) for u in units) / len(every)
    chance = apart(every[:, None] - every).sum() / (len(every) * (len(every) - 1))
    return float(1 - seen / chance) if chance else float("nan")


def all_read(folder: Path, order_of) -> bool:
    """Whether every reader who began has marked all of his order: only then is the code broken.

    Args:
        folder: Of the readers' sheets.
        order_of: Reader to his `reading_order`.
    """
    marks = read_all_marks(folder)
    done = set(zip(marks["reader"], marks["item"], marks["repeat"].astype(int), strict=True))
    readers = sorted(set(marks["reader"]))
    return bool(readers) and all((r, *place) in done for r in readers for place in order_of(r))
