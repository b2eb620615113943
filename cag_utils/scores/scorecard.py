"""From texts to Table 4: the rubric's marks or a reader's, their summary, tuned against untuned.

A reader scores a blinded sheet (`blank_sheet`), which is read back with every cell checked.
"""

import hashlib
import json
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from cag_utils.backbones import bases_of
from cag_utils.profiles import Stats
from cag_utils.report import MODEL_NAMES, estimate_cell
from cag_utils.scores.entities import Entities, read_entities
from cag_utils.scores.rubric import CRITERIA, score, truth_entities
from cag_utils.stats import UNDEFINED, mean_interval, paired_difference
from cag_utils.tables import read_table

LESION_SHARES = ("lesions_named", "grades_near")
MATCHES = ("segment_match", "laterality_match", "unparseable", *LESION_SHARES)
COMPARED = ("model", "base", "measure", "cases", "difference", "low", "high", "beats_base")
WHOSE = {
    "case_id": "must name a case, e.g. case-0001",
    "model": "must be a model or its blinded code",
    "reader": "must name or number the reader who gave the score",
}
BLIND = re.compile(r"[A-Z]-[0-9a-f]{6}")  # a letter and the sheet it belongs to
# What the reader sees of an item. Not the prompt: few-shot examples would give untuned models away.
SHOWN = ("png", "report", "ground_truth", "output")


def cases_of(generations: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of 03's `pairs` that 05's `generations` are about, by `case_id`.

    Raises:
        ValueError: There is nothing to score, or a generated case is not in `pairs`.
    """
    if generations.empty:
        raise ValueError("no generations to score: generations.csv is empty; run notebook 05")
    rows = pairs.drop_duplicates("case_id").set_index("case_id")
    cases = sorted(set(generations["case_id"]))
    if strays := [case for case in cases if case not in rows.index]:
        raise ValueError(f"{len(strays)} generated cases are not in pairs.csv, e.g. {strays[:3]}")
    return rows.loc[cases]


def score_generations(
    generations: pd.DataFrame, pairs: pd.DataFrame, language: str
) -> pd.DataFrame:
    """Mark every generated report by the rubric.

    Args:
        generations: 05's table: case_id, model, output, status. A row whose status is not `ok`
            (empty, refusal) is marked as an empty text: wrong, not left out.
        pairs: 03's table: case_id, patient_id, and what `truth_of` reads.
        language: en or ja.

    Returns:
        One row a generation: case_id, model, reader ("rubric"), patient_id and what `rubric.score`
        returns.

    Raises:
        ValueError: As `cases_of`.
    """
    rows = cases_of(generations, pairs)
    truths = {case: truth_of(row, language) for case, row in rows.iterrows()}
    scored = []
    for item in generations.itertuples():
        text = item.output if item.status == "ok" and isinstance(item.output, str) else ""
        head = {"case_id": item.case_id, "model": item.model, "reader": "rubric"}
        head["patient_id"] = rows["patient_id"][item.case_id]
        scored.append(head | score(read_entities(text, language), truths[item.case_id]))
    marks = pd.DataFrame(scored)
    # Floats, because a criterion whose truth is unknown is missing, not 0.
    return marks.astype({name: float for name in ("overall", *CRITERIA, *MATCHES)})


def truth_of(row: Mapping, language: str) -> Entities:
    """Return the truth of a row of pairs.csv: its `truth_*`, or read from its findings."""
    stated = [row.get(f"truth_{key}") for key in ("laterality", "lesions", "plan")]
    if all(isinstance(value, str) for value in stated):
        laterality, lesions, plan = stated
        return truth_entities(laterality, json.loads(lesions), plan)
    return read_entities(str(row[f"findings_{language}"]), language)


def score_by_sheet(sheet: pd.DataFrame, marks: pd.DataFrame) -> pd.DataFrame:
    """Put a sheet's scores in the place of `marks`; what entities match stays from the program.

    Returns:
        One row a line of the sheet, with the columns of `marks`.

    Raises:
        ValueError: The sheet scores a text that was never generated.
    """
    kept = ["case_id", "model", "patient_id", *MATCHES]
    joined = sheet.merge(marks[kept], on=["case_id", "model"], how="left", validate="m:1")
    if (stray := joined["patient_id"].isna()).any():
        first = joined[stray].iloc[0]
        example = f"{first['model']!r} on {first['case_id']!r}; score the sheet of this run"
        told = f"the sheet scores {stray.sum()} texts that 05 did not generate"
        raise ValueError(f"{told}, e.g. {example}")
    return joined[list(marks.columns)].astype({name: float for name in CRITERIA})


def in_order(models: Iterable[str]) -> list[str]:
    """Return the distinct models in the order of `report.MODEL_NAMES`, others behind by name."""
    found = set(models)
    return [m for m in MODEL_NAMES if m in found] + sorted(found - set(MODEL_NAMES))


def summarise_marks(scores: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Return Table 4 in numbers: one row a model, of `scores` by case, model and reader.

    Returns:
        model, cases, mean, sd, the error counts (missing where no truth was known); for overall,
        segment and `LESION_SHARES` the estimate with `_low` and `_high` (NaN where own findings
        name no vessel); `<error>_rate`, laterality and `unparseable_rate`.
    """
    rows = []
    for model in in_order(scores["model"]):
        part = scores[scores["model"] == model]
        row = {"model": model, "cases": part["case_id"].nunique()}
        row |= {"mean": part["overall"].mean(), "sd": part["overall"].std()}
        row |= {name: part[name].sum(min_count=1) for name in CRITERIA}
        for column in ("overall", "segment_match", *LESION_SHARES):
            known, name = part.dropna(subset=column), column.removesuffix("_match")
            draws = (stats.n_resamples, seed, stats.level)
            found = UNDEFINED if known.empty else mean_interval(known, "patient_id", column, *draws)
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
    """Compare each tuned model with its untuned base, case by case, readers averaged.

    Where its own base was not run, the registry says whose stands in (`Backbone.stand_in`).

    Returns:
        `COMPARED`, one row a tuned model whose base was run and a measure (overall, each criterion
        as the share without that error, and what entities match); `difference` is tuned - base,
        and it `beats_base` if `low` is above 0.
    """
    case = ["patient_id", "case_id"]
    right = {f"{criterion.word}_right": 1 - scores[name] for name, criterion in CRITERIA.items()}
    gains = ["overall", *right, "segment_match", *LESION_SHARES]
    scores = scores.assign(**right)
    wide = {name: scores.pivot_table(name, case, "model", aggfunc="mean") for name in gains}
    rows = []
    models = set(scores["model"])
    for tuned in (m for m in MODEL_NAMES if m.endswith("_lora") and m in models):
        candidates = [f"{name}_base" for name in bases_of(tuned.removesuffix("_lora"))]
        base = next((name for name in candidates if name in models), None)
        for measure in gains if base else ():
            both = wide[measure].reindex(columns=[tuned, base]).dropna().reset_index()
            if both.empty:
                continue
            draws = (stats.n_resamples, seed, stats.level)
            found = paired_difference(both, "patient_id", tuned, base, *draws)
            rows.append((tuned, base, measure, len(both), *found, found.low > 0))
    return pd.DataFrame(rows, columns=list(COMPARED))


def flat_metrics(summary: pd.DataFrame, compared: pd.DataFrame) -> dict[str, float | int | None]:
    """Return the figures of both tables under keys such as `gemma3_lora.segment_accuracy`."""
    renamed = {"cases": "n", "mean": "overall_mean", "sd": "overall_sd"}
    renamed |= {"overall_low": "overall_mean_low", "overall_high": "overall_mean_high"}
    renamed |= {f"segment{end}": f"segment_accuracy{end}" for end in ("", "_low", "_high")}
    renamed |= {"laterality": "laterality_accuracy"}
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


def blank_sheet(generations: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make an empty, blinded score sheet and the key, kept from the reader, that unblinds it.

    Cases come in random order, and within each the models' texts in random order under the letters
    A, B, C ...; a letter stands for another model in the next case. It carries the sheet's own
    number, so that the key of another run is refused instead of naming the wrong models.

    Args:
        generations: 05's table: case_id, model, output, and what else of `SHOWN` it has.
        seed: Order of cases and letters.

    Returns:
        The sheet (case_id, model as a code such as `B-3f09c1`, the item, empty columns for reader,
        overall and the errors) and the key (case_id, code, model).

    Raises:
        ValueError: A model wrote two texts for one case.
    """
    twice = generations.duplicated(["case_id", "model"])
    if twice.any():
        row = generations[twice].iloc[0]
        raise ValueError(f"{row['model']} has two texts for {row['case_id']}; keep one")
    rng = np.random.default_rng(seed)
    ordered = generations.sort_values(["case_id", "model"])
    content = ordered[["case_id", "model", "output"]].to_csv(index=False) + str(seed)
    number = hashlib.sha256(content.encode()).hexdigest()[:6]
    cases = {case: part for case, part in ordered.groupby("case_id", sort=False)}
    parts = []
    for case in rng.permutation(list(cases)):
        part = cases[case].iloc[rng.permutation(len(cases[case]))]
        codes = [f"{letter}-{number}" for letter in string.ascii_uppercase[: len(part)]]
        parts.append(part.assign(code=codes))
    items = pd.concat(parts, ignore_index=True)
    shown = [name for name in SHOWN if name in items]
    sheet = items[["case_id", "code", *shown]].rename(columns={"code": "model"})
    blank = dict.fromkeys(("reader", "overall", *CRITERIA), "")
    return sheet.assign(**blank), items[["case_id", "code", "model"]]


def read_sheet(path: Path, key: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read a filled score sheet and name the file, row and rule of everything wrong in it.

    Args:
        path: CSV with case_id, model, reader, overall (0 to 10) and the errors (0 or 1).
        key: From `blank_sheet`, or several in one table; for blinded codes in `model`.

    Returns:
        One row a case, model and reader, in the file's order, unblinded.

    Raises:
        ValueError: As `read_table`, or a blinded code is not in the key.
        FileNotFoundError: There is no such file.
    """
    columns = {name: pa.Column(str, pa.Check.str_length(min_value=1)) for name in WHOSE}
    columns |= {"overall": pa.Column(float, pa.Check.in_range(0, 10))}
    # Floats: a spreadsheet may write 1 as 1.0.
    columns |= dict.fromkeys(CRITERIA, pa.Column(float, pa.Check.isin((0, 1))))
    schema = pa.DataFrameSchema(columns, unique=list(WHOSE), coerce=True)
    rules = WHOSE | {"overall": "must be a number from 0 to 10"}
    rules |= dict.fromkeys(CRITERIA, "must be 0 (no error) or 1 (error)")
    sheet = read_table(path, schema, rules, "this reader scored this text twice; keep one row")
    model_of = {} if key is None else key.set_index(["case_id", "code"])["model"].to_dict()
    places = list(zip(sheet["case_id"], sheet["model"], strict=True))
    for row, (case, code) in zip(sheet.index, places, strict=True):
        if BLIND.fullmatch(code) and (case, code) not in model_of:
            known = sorted(letter for name, letter in model_of if name == case)
            rule = f"the key knows {known}" if known else "the key has no such case"
            place = f"{path}: row {row}: model {code!r} of {case}"
            raise ValueError(f"{place}: {rule}; use the key of this sheet")
    models = [model_of.get(place, place[1]) for place in places]
    return sheet.astype(dict.fromkeys(CRITERIA, int)).assign(model=models).reset_index(drop=True)
