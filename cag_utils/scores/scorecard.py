"""From marks to Table 4: score all generations, summarise by model, compare tuned with untuned."""

import json
from collections.abc import Iterable, Mapping

import pandas as pd

from cag_utils.backbones import bases_of
from cag_utils.profiles import Stats
from cag_utils.report import MODEL_NAMES, estimate_cell
from cag_utils.scores.entities import Entities, read_entities
from cag_utils.scores.rubric import CRITERIA, score, truth_entities
from cag_utils.stats import Estimate, mean_interval, paired_difference

RUBRIC = "rubric"  # the "reader" of a score that a program gave
LESION_SHARES = ("lesions_named", "grades_near")
MATCHES = ("segment_match", "laterality_match", "unparseable", *LESION_SHARES)
INTERVALS = {
    "overall": "overall",
    "segment": "segment_match",
    **{name: name for name in LESION_SHARES},
}
COMPARED = ("model", "base", "measure", "cases", "difference", "low", "high", "beats_base")


def score_generations(
    generations: pd.DataFrame, pairs: pd.DataFrame, language: str
) -> pd.DataFrame:
    """Mark every generated report by the rubric.

    Args:
        generations: 05's table: case_id, model, output, status. A row whose status is not `ok`
            (empty, refusal) is marked as an empty text: wrong, not left out.
        pairs: 03's table: case_id, patient_id, and truth_laterality, truth_lesions, truth_plan;
            without those (own data) the truth is read from findings_<language>.
        language: en or ja.

    Returns:
        One row a generation: case_id, model, reader, patient_id and the columns of `rubric.score`.

    Raises:
        ValueError: There is nothing to score, or a generated case is not in `pairs`.
    """
    if generations.empty:
        raise ValueError("no generations to score: generations.csv is empty; run notebook 05")
    rows = pairs.drop_duplicates("case_id").set_index("case_id")
    cases = sorted(set(generations["case_id"]))
    if strays := [case for case in cases if case not in rows.index]:
        raise ValueError(f"{len(strays)} generated cases are not in pairs.csv, e.g. {strays[:3]}")
    truths = {case: truth_of(rows.loc[case], language) for case in cases}
    scored = []
    for item in generations.itertuples():
        text = item.output if item.status == "ok" and isinstance(item.output, str) else ""
        head = {"case_id": item.case_id, "model": item.model, "reader": RUBRIC}
        head["patient_id"] = rows["patient_id"][item.case_id]
        scored.append(head | score(read_entities(text, language), truths[item.case_id]))
    marks = pd.DataFrame(scored)
    # Floats, because a criterion whose truth is unknown is missing, not 0.
    return marks.astype({name: float for name in ("overall", *CRITERIA, *MATCHES)})


def truth_of(row: Mapping, language: str) -> Entities:
    """Return the truth of one row of pairs.csv: the phantom's own, else read from its findings.

    Args:
        row: A row of pairs.csv.
        language: en or ja; which findings to read where no truth columns are.
    """
    stated = [row.get(f"truth_{key}") for key in ("laterality", "lesions", "plan")]
    if all(isinstance(value, str) for value in stated):
        laterality, lesions, plan = stated
        return truth_entities(laterality, json.loads(lesions), plan)
    return read_entities(str(row[f"findings_{language}"]), language)


def score_by_sheet(sheet: pd.DataFrame, marks: pd.DataFrame) -> pd.DataFrame:
    """Put readers' scores in the rubric's place; what entities match stays from the program.

    Args:
        sheet: As `review.read_sheet` returns it.
        marks: As `score_generations` returns it, for the same cases and models.

    Returns:
        One row a line of the sheet, with the columns of `marks`.

    Raises:
        ValueError: The sheet scores a text that was never generated.
    """
    kept = ["case_id", "model", "patient_id", *MATCHES]
    joined = sheet.merge(marks[kept], on=["case_id", "model"], how="left", validate="m:1")
    if (stray := joined["patient_id"].isna()).any():
        first = joined[stray].iloc[0]
        raise ValueError(
            f"the sheet scores {stray.sum()} texts that 05 did not generate, e.g. "
            f"{first['model']!r} on {first['case_id']!r}; score the sheet of this run"
        )
    return joined[list(marks.columns)].astype({name: float for name in CRITERIA})


def in_order(models: Iterable[str]) -> list[str]:
    """Return the distinct models in the order of `report.MODEL_NAMES`, others behind by name."""
    found = set(models)
    return [m for m in MODEL_NAMES if m in found] + sorted(found - set(MODEL_NAMES))


def summarise_marks(scores: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Return Table 4 in numbers: one row a model.

    Args:
        scores: One row a case, model and reader.
        stats: Resamples and level of the intervals.
        seed: Of the bootstrap, by patient.

    Returns:
        model, cases, mean, sd, the error counts (missing where no truth was known), and
        for overall, segment and the two shares of lesions (`lesions_named`, and `grades_near`) the
        estimate with `_low` and `_high`, laterality, the error rates (`<error>_rate`) and
        `unparseable_rate`.
    """
    rows = []
    for model in in_order(scores["model"]):
        part = scores[scores["model"] == model]
        row = {"model": model, "cases": part["case_id"].nunique()}
        row |= {"mean": part["overall"].mean(), "sd": part["overall"].std()}
        row |= {name: part[name].sum(min_count=1) for name in CRITERIA}
        for name, column in INTERVALS.items():
            found = _interval(part, column, stats, seed)
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        row |= {f"{name}_rate": part[name].mean() for name in CRITERIA}
        row |= {"laterality": part["laterality_match"].mean()}
        rows.append(row | {"unparseable_rate": part["unparseable"].mean()})
    return pd.DataFrame(rows)


def table4(summary: pd.DataFrame) -> pd.DataFrame:
    """Lay the summary out as the paper's Table 4, with what the paper does not print behind it."""
    shown = summary[["model", "cases", "mean", "sd", *CRITERIA]].copy()
    shown["model"] = [MODEL_NAMES.get(model, model) for model in shown["model"]]
    shown[list(CRITERIA)] = shown[list(CRITERIA)].astype("Int64")  # counts; <NA> where not judged
    cells = zip(summary["segment"], summary["segment_low"], summary["segment_high"], strict=True)
    shown["segment_match"] = [
        "–" if pd.isna(cell[0]) else estimate_cell(*cell, digits=2) for cell in cells
    ]
    return shown.assign(unparseable_rate=summary["unparseable_rate"])


def against_base(scores: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Compare each tuned model with its untuned base, case by case.

    Where its own base was not run, the registry says whose stands in (`Backbone.stand_in`).

    Args:
        scores: One row a case, model and reader; readers of one text are averaged.
        stats: Resamples and level of the intervals.
        seed: Of the bootstrap, by patient.

    Returns:
        One row a tuned model whose base was run and a measure (the overall mark, each criterion as
        the share without that error, and what entities match): model, base, measure, cases,
        difference (tuned - base), low, high, beats_base (low > 0).
    """
    case = ["patient_id", "case_id"]
    right = {f"{criterion.word}_right": 1 - scores[name] for name, criterion in CRITERIA.items()}
    gains = ["overall", *right, "segment_match", *LESION_SHARES]
    scores = scores.assign(**right)
    wide = {name: scores.pivot_table(name, case, "model", aggfunc="mean") for name in gains}
    rows = []
    for tuned, base in _tuned_and_base(set(scores["model"])):
        for measure in gains:
            both = wide[measure].reindex(columns=[tuned, base]).dropna().reset_index()
            if both.empty:
                continue
            found = paired_difference(
                both, "patient_id", tuned, base, stats.n_resamples, seed, stats.level
            )
            head = {"model": tuned, "base": base, "measure": measure, "cases": len(both)}
            interval = {"difference": found.value, "low": found.low, "high": found.high}
            rows.append(head | interval | {"beats_base": found.low > 0})
    return pd.DataFrame(rows, columns=list(COMPARED))


def _tuned_and_base(models: set[str]) -> list[tuple[str, str]]:
    """Pair each tuned model with its base, or with the one that stands in for it."""
    pairs = []
    for tuned in (m for m in MODEL_NAMES if m.endswith("_lora") and m in models):
        candidates = [f"{name}_base" for name in bases_of(tuned.removesuffix("_lora"))]
        pairs += [(tuned, base) for base in candidates if base in models][:1]
    return pairs


def flat_metrics(summary: pd.DataFrame, compared: pd.DataFrame) -> dict[str, float | int | None]:
    """Return the figures of both tables under keys such as `gemma3_lora.segment_accuracy`."""
    renamed = {
        "cases": "n",
        "mean": "overall_mean",
        "overall_low": "overall_mean_low",
        "overall_high": "overall_mean_high",
        "sd": "overall_sd",
        "segment": "segment_accuracy",
        "segment_low": "segment_accuracy_low",
        "segment_high": "segment_accuracy_high",
        "laterality": "laterality_accuracy",
    }
    kept = [*renamed, *(f"{name}_rate" for name in CRITERIA), "unparseable_rate"]
    kept += [f"{name}{end}" for name in LESION_SHARES for end in ("", "_low", "_high")]
    figures = {}
    for row in summary.to_dict("records"):
        figures |= {f"{row['model']}.{renamed.get(name, name)}": row[name] for name in kept}
    for row in compared.to_dict("records"):
        stem = f"{row['model']}.{row['measure'].removesuffix('_match')}_gain"
        figures |= {stem: row["difference"], f"{stem}_low": row["low"], f"{stem}_high": row["high"]}
        figures[f"{stem}_clear"] = int(row["beats_base"])
    return {name: None if pd.isna(value) else value for name, value in figures.items()}


def _interval(part: pd.DataFrame, column: str, stats: Stats, seed: int) -> Estimate:
    known = part.dropna(subset=column)
    if known.empty:  # own findings that name no vessel: nothing to be right about
        return Estimate(float("nan"), float("nan"), float("nan"))
    return mean_interval(known, "patient_id", column, stats.n_resamples, seed, stats.level)
