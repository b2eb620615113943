"""From texts to Table 4: marks of the rubric or of readers, with floors, skill and bases beside.

A reader scores a blinded sheet (`blank_sheet`), which is read back with every cell checked.
"""

import hashlib
import itertools
import re
import string
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from cag_utils.backbones import bases_of
from cag_utils.params import check_choice
from cag_utils.profiles import Stats
from cag_utils.report import estimate_cell
from cag_utils.scores.entities import read_entities
from cag_utils.scores.floors import (
    AT,
    CEILING,
    ZERO_SHOT,
    floors_of,
    in_order,
    is_bound,
    is_floor,
    name_of,
)
from cag_utils.scores.measures import by_case, estimate, measures, skill
from cag_utils.scores.rubric import CONTRADICTIONS, CRITERIA, score, truth_of
from cag_utils.stats import Estimate, agreement
from cag_utils.tables import read_table

ENDS = ("", "_low", "_high")
MEAN = "mean"  # stands in the column `reader` for all of them together
COMPARED = (
    "model", "base", "measure", "cases", "tuned", "untuned", "floor", "difference", "low", "high",
    "beats_base",
)  # fmt: skip
SKILLS = ("model", "measure", "score", "best_floor", "floor", "ceiling", "skill", "low", "high")
LOOKS = ("model", "asked", "difference", "low", "high")
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
        generations: 05's table: case_id, model, output, status. A row that is neither `ok`
            nor `cut` (empty, refusal) is marked as an empty text: wrong, not left out.
        pairs: 03's table: case_id, patient_id, and what `truth_of` reads.

    Returns:
        One row a generation: case_id, model, reader ("rubric"), patient_id and what `rubric.score`
        returns.

    Raises:
        ValueError: As `cases_of`.
    """
    rows = cases_of(generations, pairs)
    truths = {case: truth_of(row, language) for case, row in rows.iterrows()}
    read = cache(lambda text: read_entities(text, language))  # models repeat each other
    mark = cache(score)
    scored = []
    for item in generations.itertuples():
        said = item.status in ("ok", "cut") and isinstance(item.output, str)
        head = {"case_id": item.case_id, "model": item.model, "reader": "rubric"}
        head["patient_id"] = rows["patient_id"][item.case_id]
        scored.append(head | mark(read(item.output if said else ""), truths[item.case_id]))
    marks = pd.DataFrame(scored)
    # Floats, because a criterion whose truth is unknown is missing, not 0.
    numbers = marks.columns.difference([*WHOSE, "patient_id", "logical_rules"])
    return marks.astype(dict.fromkeys(numbers, float))


def score_by_sheet(sheet: pd.DataFrame, marks: pd.DataFrame) -> pd.DataFrame:
    """Put a sheet's scores in the place of `marks`; what it has not stays from the program.

    Returns:
        One row a line of the sheet, with the columns of `marks`.

    Raises:
        ValueError: The sheet scores a text that was never generated.
    """
    kept = marks.drop(columns=["reader", "overall", *on_sheet()])
    joined = sheet.merge(kept, on=["case_id", "model"], how="left", validate="m:1")
    if (stray := joined["patient_id"].isna()).any():
        first = joined[stray].iloc[0]
        example = f"{first['model']!r} on {first['case_id']!r}; score the sheet of this run"
        told = f"the sheet scores {stray.sum()} texts that 05 did not generate"
        raise ValueError(f"{told}, e.g. {example}")
    return joined[list(marks.columns)].astype(dict.fromkeys(on_sheet(), float))


def on_sheet() -> list[str]:
    """Return the columns of the errors that readers tick: the paper's."""
    return [name for name, criterion in CRITERIA.items() if criterion.on_sheet]


def summarise_marks(scores: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Return Table 4 in numbers: one row a model and reader, and with several readers their mean.

    Args:
        scores: By case, model and reader.

    Returns:
        model, reader, cases, sd, the error counts (missing where no truth was known; of several
        readers the mean count, so that cases are counted once) and `<error>_rate`; each of
        `measures()` with `_low` and `_high` (NaN where undefined); the rates of `unparseable`
        and `side_unnamed`.
    """
    readers = sorted(scores["reader"].unique())
    groups = [(r, by_case(scores[scores["reader"] == r])) for r in readers]
    if len(readers) > 1:
        groups.append((MEAN, by_case(scores)))
    rows = []
    for model in in_order(scores["model"]):
        for reader, marks in groups:
            if model not in marks:
                continue
            part = marks[model]
            row = {
                "model": model,
                "reader": reader,
                "cases": len(part),
                "sd": part["overall"].std(),
            }
            row |= {name: part[name].sum(min_count=1) for name in CRITERIA}
            row |= {f"{name}_rate": part[name].mean() for name in CRITERIA}
            row |= {f"{name}_rate": part[name].mean() for name in ("unparseable", "side_unnamed")}
            found = estimate(marks, [model], list(measures()), lambda own: own, stats, seed)
            for name, interval in zip(measures(), found, strict=True):
                row |= {name + end: x for end, x in zip(ENDS, interval, strict=True)}
            rows.append(row)
    return pd.DataFrame(rows)


def skills(
    scores: pd.DataFrame, stats: Stats, seed: int, program: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the skill of every model in the primary measure and overall, readers averaged.

    Args:
        scores: By case, model and reader.
        program: The rubric's marks of all answers. Lesions are read by the program whoever scores,
            so that the primary measure keeps floors that are not on a reader's sheet.

    Returns:
        `SKILLS`: score, floor and ceiling on the cases that the model, its floors and the truth
        share; the best floor's name; the skill with its interval. No rows without floor or truth.
    """
    check_choice("stats.primary", stats.primary, measures())
    figure = lambda *x: np.concatenate([skill(*x), *x], axis=-1)  # noqa: E731
    marks = {"overall": by_case(scores)}
    marks = {stats.primary: marks["overall"] if program is None else by_case(program)} | marks
    rows = []
    for model, name in itertools.product(in_order(scores["model"]), marks):
        floors = floors_of(model, marks[name])
        if not floors or CEILING not in marks[name]:
            continue
        those = [model, CEILING, *floors]
        found = np.array(estimate(marks[name], those, [name], figure, stats, seed))
        own, ceiling, *under = found[1:, 0]
        best = int(np.argmax(under))
        shown = (own, floors[best], under[best], ceiling)
        rows.append((model, name, *shown, *found[0]))
    return pd.DataFrame(rows, columns=list(SKILLS))


def looks_at_picture(scores: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Compare each tuned model with itself before a blank or another patient's picture.

    Returns:
        `LOOKS`, in the primary measure on the same cases: true picture minus the other, readers
        averaged.
    """
    rows, marks, models = [], by_case(scores), set(scores["model"])
    for model in in_order(models):
        for asked in ("blank", "other"):
            if (blind := f"{model}{AT}{asked}") in models:
                pair = [model, blind]
                [found] = estimate(marks, pair, [stats.primary], np.subtract, stats, seed)
                rows.append((model, asked, *found))
    return pd.DataFrame(rows, columns=list(LOOKS))


def looks_verdicts(looks: pd.DataFrame) -> dict[str, str]:
    """Return each model of `looks_at_picture` with what its intervals say.

    It "looks" if all of them lie above 0; it "does not look" if one does not reach above 0, since
    that picture served as well as the true one; else it is "unclear".
    """
    ends = looks.groupby("model", sort=False).agg({"low": "min", "high": "min"})
    return {
        model: "looks" if low > 0 else "does not look" if high <= 0 else "unclear"
        for model, low, high in ends.itertuples()
    }


def choose_bases(marks: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Choose, for each untuned model, the prompt with which it scores more on validation cases.

    By the overall score, which sees a whole answer; of equals the few-shot prompt is kept.

    Args:
        marks: Of validation cases: models `<name>_base` (few-shot) and `<name>_base@zero`.

    Returns:
        base, model (how it was asked), cases, overall, lesion_f1, chosen.
    """
    names = ["base", "model", "cases", "overall", "lesion_f1"]
    if marks.empty:
        return pd.DataFrame(columns=[*names, "chosen"])
    found = summarise_marks(marks, stats, seed)
    found = found.assign(base=found["model"].str.partition(AT)[0])[names]
    best = found.groupby("base")["overall"].idxmax()
    return found.assign(chosen=found.index.isin(best))


def against_base(
    scores: pd.DataFrame, stats: Stats, seed: int, chosen: Iterable[str] = ()
) -> pd.DataFrame:
    """Compare each tuned model with its untuned base, case by case, readers averaged.

    Where its own base was not run, the registry says whose stands in (`Backbone.stand_in`).

    Args:
        scores: By case, model and reader.
        chosen: The bases as they are best asked, of `choose_bases`; else few-shot.

    Returns:
        `COMPARED`, one row a tuned model whose base was run and a measure; `difference` is tuned -
        untuned, and it `beats_base` if `low` is above 0; `floor` is the tuned model's best one.
    """
    models, rows, marks = set(scores["model"]), [], by_case(scores)
    zero = {name.partition(AT)[0] for name in chosen if name.endswith(AT + ZERO_SHOT)}
    for tuned in (m for m in in_order(models) if m.endswith("_lora")):
        candidates = [f"{name}_base" for name in bases_of(tuned.removesuffix("_lora"))]
        asked = [name + (AT + ZERO_SHOT) * (name in zero) for name in candidates]
        base = next((name for name in asked if name in models), None)
        if not base:
            continue
        names, both = list(measures()), set(marks[tuned].index) & set(marks[base].index)
        beside = lambda own, other: np.concatenate([own, other, own - other], -1)  # noqa: E731
        found = estimate(marks, [tuned, base], names, beside, stats, seed)
        under = [tuned, *floors_of(tuned, marks)]  # some cases may lack one: not paired with these
        best = lambda own, *floors: np.fmax.reduce([np.nan * own, *floors])  # noqa: E731
        floors = estimate(marks, under, names, best, stats, seed)
        table = zip(names, *np.reshape(found, (3, -1, 3)), floors, strict=True)
        for name, own, other, gain, floor in table:
            if not np.isnan(gain[0]):
                shown = own[0], other[0], floor.value, *gain, gain[1] > 0
                rows.append((tuned, base, name, len(both), *shown))
    return pd.DataFrame(rows, columns=list(COMPARED))


def table4(summary: pd.DataFrame, skill_of: pd.DataFrame, looks: pd.DataFrame) -> pd.DataFrame:
    """Lay the summary out as the paper's Table 4, with what the paper does not print behind it.

    The arguments are what `summarise_marks`, `skills` and `looks_at_picture` return. Floors and
    ceilings follow the models, marked in `kind`.
    """
    shown = summary[["model", "reader", "cases", "overall", "sd", *CRITERIA]].copy()
    shown = shown.rename(columns={"overall": "mean"})
    counts = shown[list(CRITERIA)]
    if (counts.dropna() % 1 == 0).all(axis=None):  # means of several readers need not be whole
        shown[list(CRITERIA)] = counts.astype("Int64")
    overall = skill_of[skill_of["measure"] == "overall"].set_index("model")
    shown["skill"] = [_cell(overall, m, ("skill", "low", "high")) for m in summary["model"]]
    shown["unparseable_rate"] = summary["unparseable_rate"]
    shown["looks"] = summary["model"].map(looks_verdicts(looks)).fillna("–")
    return _named(shown)


def lesion_table(summary: pd.DataFrame, skill_of: pd.DataFrame, primary: str) -> pd.DataFrame:
    """Lay out the primary measure, its skill, and what stands beside it, with intervals."""
    names = ["lesion_f1", "lesion_precision", "lesion_recall", "grades_near", "healthy_right"]
    names = dict.fromkeys([primary, *names, "plan_right", "mild_f1"])
    own = skill_of[skill_of["measure"] == primary].set_index("model")
    shown = summary[["model", "reader", "cases"]].copy()
    shown["skill"] = [_cell(own, m, ("skill", "low", "high")) for m in summary["model"]]
    for name in names:
        shown[name] = [_cell(summary, i, [name + end for end in ENDS]) for i in summary.index]
    return _named(shown)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Put names in the place of keys, and what a row is before them."""
    kinds = [
        "model" if not is_bound(m) else "floor" if is_floor(m) else "ceiling"
        for m in table["model"]
    ]
    table.insert(0, "kind", kinds)
    return table.assign(model=[name_of(model) for model in table["model"]])


def _cell(table: pd.DataFrame, row: object, columns: Iterable[str]) -> str:
    """Format an estimate with its interval; a dash where there is none."""
    if row not in table.index or table.loc[row, list(columns)].isna().any():
        return "–"
    return estimate_cell(*Estimate(*table.loc[row, list(columns)]), digits=2)


def flat_metrics(
    summary: pd.DataFrame, skill_of: pd.DataFrame, looks: pd.DataFrame, compared: pd.DataFrame
) -> dict[str, float | int | str | None]:
    """Return the figures of all tables under keys such as `gemma3_lora.lesion_f1`.

    Of several readers it is their mean. The first measure of `skill_of` is the primary one: its
    skill is `<model>.skill`, that of the overall score `<model>.skill_overall`. Figures of floors
    and ceilings stand under `floor.<name>.<measure>` too.
    """
    kept = summary.drop_duplicates("model", keep="last").drop(columns=["reader", *CRITERIA])
    figures: dict[str, float | int | str | None] = {}
    for row in kept.to_dict("records"):
        head = row.pop("model")
        figures |= {f"{head}.n": row.pop("cases"), f"{head}.overall_sd": row.pop("sd")}
        figures |= {f"{head}.overall_mean{end}": row[f"overall{end}"] for end in ENDS}
        figures |= {f"{head}.{name}": value for name, value in row.items()}
        if is_bound(head):
            figures |= {f"floor.{head}.{name}": row[name] for name in measures()}
    for row in skill_of.to_dict("records"):
        name = "skill" if row["measure"] == skill_of["measure"].iloc[0] else "skill_overall"
        values = zip(ENDS, (row["skill"], row["low"], row["high"]), strict=True)
        figures |= {f"{row['model']}.{name}{end}": value for end, value in values}
        figures[f"{row['model']}.{name}_floor"] = row["best_floor"]
    figures |= {f"{model}.looks": verdict for model, verdict in looks_verdicts(looks).items()}
    for row in looks.to_dict("records"):
        values = zip(ENDS, (row["difference"], row["low"], row["high"]), strict=True)
        figures |= {f"{row['model']}.{row['asked']}_drop{end}": value for end, value in values}
    for row in compared.to_dict("records"):
        stem = f"{row['model']}.{row['measure']}_gain"
        figures |= {stem: row["difference"], f"{stem}_low": row["low"], f"{stem}_high": row["high"]}
        figures |= {f"{stem}_clear": int(row["beats_base"]), f"{row['model']}.base": row["base"]}
    return {name: None if pd.isna(value) else value for name, value in figures.items()}


def rubric_against_readers(
    sheet: pd.DataFrame, marks: pd.DataFrame, stats: Stats, seed: int
) -> pd.DataFrame:
    """Say how far the rubric can stand for readers: how they agree on the score and each error.

    Args:
        sheet: Readers' marks by case, model (or its code) and reader, with patient_id.

    Returns:
        reader, measure, texts, value, low, high (kappa with quadratic weights), and `marked` and
        `by_rubric`, the means of both; of an error, how often it is ticked. Of several readers
        `MEAN` stands last: their mean score, and the errors that most of them tick.
    """
    names, where = ["overall", *on_sheet()], ["patient_id", "case_id", "model"]
    parts = dict(list(sheet.groupby("reader")))
    if len(parts) > 1:
        pooled = sheet.groupby(where, as_index=False)[names].mean()
        parts[MEAN] = pooled.assign(**{name: (pooled[name] > 0.5) * 1.0 for name in on_sheet()})
    rows = []
    for reader, own in parts.items():
        program = own[where].merge(marks[["case_id", "model", *names]], on=where[1:])
        both = pd.concat([own.assign(reader="marked"), program.assign(reader="by_rubric")])
        found = agreement(both, "patient_id", names, *stats.draws(seed))
        found = found[found["statistic"].str.startswith("kappa")]
        means = both.groupby("reader")[names].mean().T
        rows.append(found.merge(means, left_on="measure", right_index=True).assign(reader=reader))
    columns = ["reader", "measure", "texts", *Estimate._fields, "marked", "by_rubric"]
    return pd.concat(rows or [pd.DataFrame(columns=columns)], ignore_index=True)[columns]


def rule_rates(scores: pd.DataFrame) -> pd.DataFrame:
    """Say how often each rule fires: a row a rule, a column a model, shares of cases.

    Rules are the errors of `CRITERIA`, each contradiction that makes a logical error, a text that
    names no side, and one that cannot be read.
    """
    each = {name: scores[name] for name in (*CRITERIA, "side_unnamed", "unparseable")}
    for name in CONTRADICTIONS:
        each[f"logical: {name}"] = scores["logical_rules"].str.contains(name, regex=False)
    rates = pd.DataFrame(each).astype(float).groupby(scores["model"]).mean()
    return rates.loc[in_order(rates.index)].T.rename_axis("rule").rename_axis(columns=None)


def blank_sheet(generations: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make an empty, blinded score sheet and the key, kept from the reader, that unblinds it.

    Cases come in random order, and within each the models' texts in random order under the letters
    A, B, C ...; a letter stands for another model in the next case. It carries the sheet's own
    number, so that the key of another run is refused instead of naming the wrong models.

    Args:
        generations: 05's table: case_id, model, output, and what else of `SHOWN` it has.

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
    blank = dict.fromkeys(("reader", "overall", *on_sheet()), "")
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
    columns |= dict.fromkeys(on_sheet(), pa.Column(float, pa.Check.isin((0, 1))))
    schema = pa.DataFrameSchema(columns, unique=list(WHOSE), coerce=True)
    rules = WHOSE | {"overall": "must be a number from 0 to 10"}
    rules |= dict.fromkeys(on_sheet(), "must be 0 (no error) or 1 (error)")
    twice = "this reader scored this text twice; keep one row"
    # the paper's Table 4 calls the numbering error "vessel"
    sheet = read_table(path, schema, rules, twice, also={"vessel_error": "numbering_error"})
    model_of = {} if key is None else key.set_index(["case_id", "code"])["model"].to_dict()
    places = list(zip(sheet["case_id"], sheet["model"], strict=True))
    for row, (case, code) in zip(sheet.index, places, strict=True):
        if BLIND.fullmatch(code) and (case, code) not in model_of:
            known = sorted(letter for name, letter in model_of if name == case)
            rule = f"the key knows {known}" if known else "the key has no such case"
            place = f"{path}: row {row}: model {code!r} of {case}"
            raise ValueError(f"{place}: {rule}; use the key of this sheet")
    models = [model_of.get(place, place[1]) for place in places]
    marks = dict.fromkeys(on_sheet(), int)
    return sheet.astype(marks).assign(model=models).reset_index(drop=True)
