"""From the key frames of an exam to one report of it: in one prompt, or frame by frame and merged.

An exam's truth is `exam_lesions` of its rows in pairs.csv: all lesions of each side of which it has
a key frame, shown there or not. Everything that is marked here is a text, read by the one parser.
"""

import json
from collections.abc import Iterable, Sequence

import pandas as pd

from cag_utils.corpus.pairs import SIDES
from cag_utils.profiles import Stats
from cag_utils.scores.entities import Entities, read_entities
from cag_utils.scores.floors import GAP, state_lesions
from cag_utils.scores.measures import estimate, skill
from cag_utils.scores.rubric import count_lesions, truth_entities
from cag_utils.segments import is_significant, laterality_of

# As `pairs.PROMPTS`, for several pictures; the words are this study's own.
PROMPTS = {
    "en": (
        "These images are {n} frames of one coronary angiography, in this order: {sides}. Based on "
        "all images and the clinical report below, provide one explanation and advice on future "
        "management.\n\n{report}"
    ),
    "ja": (
        "これらの{n}枚の画像は一人の患者の冠動脈造影で、順に{sides}です。すべての画像と以下の臨床レポートに"
        "基づいて、一つの所見の説明と今後の方針についての助言を述べてください。\n\n{report}"
    ),
}
MEASURES = ("lesion_f1", "lesion_recall", "lesion_precision")


def exams_of(examples: pd.DataFrame, pairs: pd.DataFrame, language: str) -> pd.DataFrame:
    """Gather cases into exams, frames in the order of cine and frame.

    Args:
        examples: Of `examples.read_examples`.
        pairs: Notebook 03's pairs.csv, with the phantom's truth.

    Returns:
        By exam_id: patient_id, split, cases (tuple of case_id), images (tuple of paths), sides (the
        distinct ones, sorted), prompt (one for all pictures), truth (all the exam's lesions of
        these sides) and shown (those that a key frame shows), lists of segment and percent.
    """
    joined = examples.merge(
        pairs[["case_id", "exam_id", "video_id", "frame", "truth_lesions", "exam_lesions"]],
        on="case_id", validate="1:1",
    ).sort_values(["exam_id", "video_id", "frame"])  # fmt: skip
    rows = []
    for exam, own in joined.groupby("exam_id"):
        names = [SIDES[language][side] for side in own["laterality"]]
        facts = {"n": len(own), "sides": "、".join(names) if language == "ja" else ", ".join(names)}
        text = PROMPTS[language].format(**facts, report=own["report"].iloc[0])
        row = {"exam_id": exam, "cases": tuple(own["case_id"]), "images": tuple(own["image"])}
        row |= {"sides": tuple(sorted(set(own["laterality"]))), "prompt": text}
        row |= {name: own[name].iloc[0] for name in ("patient_id", "split")}
        for name, column in (("truth", "exam_lesions"), ("shown", "truth_lesions")):
            row[name] = worst_of(x for found in own[column] for x in json.loads(found))
        rows.append(row)
    return pd.DataFrame(rows)


def worst_of(lesions: Iterable[dict]) -> list[dict]:
    """Keep one lesion a segment, the tightest (one without a grade gives way), by segment."""
    worst: dict[int, int] = {}
    for lesion in lesions:
        segment, percent = lesion["segment"], lesion["percent"] or 0
        worst[segment] = max(percent, worst.get(segment, 0))
    return [{"segment": segment, "percent": worst[segment]} for segment in sorted(worst)]


def write_exam(lesions: Sequence[dict], sides: Sequence[str], language: str) -> str:
    """State an exam's lesions side by side, and where a side has none; `read_entities` reads it."""
    parts = []
    for side in sides:
        own = [x for x in lesions if laterality_of(x["segment"]) == side]
        parts.append(state_lesions(own, side, language))
    return GAP[language].join(parts)


def merge_findings(
    texts: Sequence[str], sides: Sequence[str], language: str, share: float = 0.0
) -> str:
    """Merge the findings of single frames into one exam report.

    Args:
        texts: One a frame.
        sides: LCA or RCA, of each frame.
        share: A lesion is kept if more than this share of its side's frames name it, 0 to 1; 0: if
            any does. Its grade is the worst that was named.
    """
    said: list[dict] = []
    frames = pd.Series(list(sides)).value_counts()
    for text in texts:
        found = [x for x in read_entities(text, language).stenoses if x.segment]
        said += worst_of({"segment": x.segment, "percent": x.percent} for x in found)
    times = pd.Series([x["segment"] for x in said], dtype=int).value_counts()
    kept = [
        x
        for x in worst_of(said)
        if times[x["segment"]] > share * frames.get(laterality_of(x["segment"]), 0)
    ]
    stated = {laterality_of(x["segment"]) for x in kept}
    return write_exam(kept, sorted({*sides, *stated}), language)


def rank_lesions(exams: pd.DataFrame) -> pd.DataFrame:
    """Rank the significant segments of training exams by how many of the side's exams have them.

    Returns:
        segment, side, hits (exams that have it), exams (of its side), percent (its commonest
        grade), by falling hits / exams, then segment.
    """
    lesions = [x for truth in exams["truth"] for x in truth]
    lesions = [x for x in lesions if is_significant(x["segment"], x["percent"])]
    n_exams = pd.Series([side for own in exams["sides"] for side in own]).value_counts()
    table = pd.DataFrame(lesions, columns=["segment", "percent"])
    ranked = table.groupby("segment")["percent"].agg(hits="size", percent=lambda x: x.mode()[0])
    ranked = ranked.reset_index()
    ranked["side"] = ranked["segment"].map(laterality_of)
    ranked["exams"] = ranked["side"].map(n_exams)
    order = (ranked["hits"] / ranked["exams"]).sort_values(ascending=False, kind="stable").index
    return ranked.loc[order].reset_index(drop=True)


def write_floors(train: pd.DataFrame, exams: pd.DataFrame, language: str) -> dict[str, list[str]]:
    """Write, for each exam, what can be said blind, from what training exams have.

    Returns:
        `constant`: the segments that, named in every exam of their side, give the highest lesion F1
        in the training exams (the first k of `rank_lesions`, since each adds its hits above and its
        side's exams below the line); `commonest`: the commonest lesion of each side.
    """
    ranked = rank_lesions(train)
    f1 = 2 * ranked["hits"].cumsum() / (ranked["hits"].sum() + ranked["exams"].cumsum())
    constant = ranked.head(int(f1.to_numpy().argmax()) + 1 if len(f1) else 0)
    said = {"constant": constant, "commonest": ranked.drop_duplicates("side")}
    return {
        name: [
            write_exam(
                table.loc[table["side"].isin(sides), ["segment", "percent"]].to_dict("records"),
                sides, language,
            )
            for sides in exams["sides"]
        ]
        for name, table in said.items()
    }  # fmt: skip


def mark_exams(
    exams: pd.DataFrame, model: str, texts: Sequence[str], language: str
) -> pd.DataFrame:
    """Count each exam's true, named and found lesions, in the table that `measures.by_case` reads.

    A text that says nothing names no lesion. One row an exam: case_id (the exam's), patient_id,
    model, and `rubric.count_lesions`.
    """
    rows = []
    for exam, text in zip(exams.itertuples(), texts, strict=True):
        counts = count_lesions(read_entities(text, language), truth_of_exam(exam.truth, exam.sides))
        ids = {"case_id": exam.exam_id, "patient_id": exam.patient_id, "model": model}
        rows.append(ids | counts)
    return pd.DataFrame(rows)


def truth_of_exam(lesions: Sequence[dict], sides: Sequence[str]) -> Entities:
    """Return an exam's lesions as `read_entities` reads them; of the plan nothing is said."""
    per_side = [
        truth_entities(side, [x for x in lesions if laterality_of(x["segment"]) == side], "none")
        for side in sides
    ]
    stenoses = tuple(s for one in per_side for s in one.stenoses)
    cleared = frozenset(c for one in per_side for c in one.cleared)
    return Entities(frozenset(sides), stenoses, cleared)


def compare_exams(
    marks: dict[str, pd.DataFrame], floors: dict[str, Sequence[str]], stats: Stats, seed: int
) -> pd.DataFrame:
    """Estimate each way's measures, and its skill between its best floor and the truth.

    Args:
        marks: Of `measures.by_case`; holds `truth`.
        floors: The names of each way's floors; a way without any has no skill.
        stats: Resamples and level; patients, and so whole exams, are resampled.

    Returns:
        One row a way: way, exams, each of `MEASURES` and `skill` (in lesion F1), with its ends
        in `_low` and `_high`.
    """
    rows = []
    for way in marks:
        row: dict[str, object] = {"way": way, "exams": len(marks[way])}
        found = estimate(marks, [way], MEASURES, lambda own: own, stats, seed)
        under = [way, "truth", *floors.get(way, ())]
        found += estimate(marks, under, MEASURES[:1], skill, stats, seed) if under[2:] else []
        for name, interval in zip([*MEASURES, "skill"], found, strict=False):
            row |= {name + end: x for end, x in zip(("", "_low", "_high"), interval, strict=True)}
        rows.append(row)
    return pd.DataFrame(rows)
