"""Score sheets for human readers: made blind, read back with every cell checked."""

import string
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from cag_utils.rubric import ERRORS

SCORES = pa.DataFrameSchema(
    {
        "case_id": pa.Column(str, pa.Check.str_length(min_value=1)),
        "model": pa.Column(str, pa.Check.str_length(min_value=1)),
        "reader": pa.Column(str, pa.Check.str_length(min_value=1)),
        "overall": pa.Column(float, pa.Check.in_range(0, 10)),
        # Read as numbers first: a spreadsheet may write 1 as 1.0.
        **{name: pa.Column(float, pa.Check.isin((0, 1))) for name in ERRORS},
    },
    unique=["case_id", "model", "reader"],
    coerce=True,
)
RULES = {
    "case_id": "must name a case, e.g. case-0001",
    "model": "must be a model or its blinded letter",
    "reader": "must name or number the reader who gave the score",
    "overall": "must be a number from 0 to 10",
    **{name: "must be 0 (no error) or 1 (error)" for name in ERRORS},
}
SHOWN = ("png", "prompt", "ground_truth", "output")  # what the reader sees of an item


def blank_sheet(generations: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make an empty, blinded score sheet and the key that unblinds it.

    Cases come in random order, and within each case the models' texts in random order under the
    letters A, B, C ...; a letter stands for another model in the next case, so style gives nothing
    away. Keep the key from the reader until the sheet is complete.

    Args:
        generations: 05's table: case_id, model, output, and what else of `SHOWN` it has.
        seed: Order of cases and letters.

    Returns:
        The sheet (case_id, model as a letter, the item, empty columns for reader, overall and the
        five errors) and the key (case_id, code, model).

    Raises:
        ValueError: A model wrote two texts for one case.
    """
    twice = generations.duplicated(["case_id", "model"])
    if twice.any():
        row = generations[twice].iloc[0]
        raise ValueError(f"{row['model']} has two texts for {row['case_id']}; keep one")
    rng = np.random.default_rng(seed)
    ordered = generations.sort_values(["case_id", "model"])
    cases = {case: part for case, part in ordered.groupby("case_id", sort=False)}
    parts = []
    for case in rng.permutation(list(cases)):
        part = cases[case].iloc[rng.permutation(len(cases[case]))]
        parts.append(part.assign(code=list(string.ascii_uppercase[: len(part)])))
    items = pd.concat(parts, ignore_index=True)
    shown = [name for name in SHOWN if name in items]
    sheet = items[["case_id", "code", *shown]].rename(columns={"code": "model"})
    blank = {name: "" for name in ("reader", "overall", *ERRORS)}
    return sheet.assign(**blank), items[["case_id", "code", "model"]]


def read_sheet(path: Path, key: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read a filled score sheet and name the file, row and rule of everything wrong in it.

    Args:
        path: CSV with case_id, model, reader, overall (0 to 10) and the five errors (0 or 1);
            further columns are dropped. UTF-8, with or without the byte order mark Excel adds.
        key: case_id, code, model as `blank_sheet` made it; None if `model` names models.

    Returns:
        One row a case, model and reader, in the file's order, unblinded.

    Raises:
        ValueError: A column is missing, a cell breaks its rule, a reader scored a text twice, or
            a blinded letter is not in the key. Rows count as in a spreadsheet: 1 is the header.
    """
    raw = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if missing := [name for name in SCORES.columns if name not in raw.columns]:
        raise ValueError(f"{path}: no column {missing}; it has {list(raw.columns)}")
    raw = raw[list(SCORES.columns)].apply(lambda column: column.str.strip())
    try:
        sheet = SCORES.validate(raw, lazy=True)
    except SchemaErrors as errors:
        raise ValueError(f"{path}: " + _explain(errors.failure_cases, raw)) from None
    sheet = sheet.astype({name: int for name in ERRORS})
    return sheet if key is None else _unblind(sheet, key, path)


def _unblind(sheet: pd.DataFrame, key: pd.DataFrame, path: Path) -> pd.DataFrame:
    model_of = key.set_index(["case_id", "code"])["model"].to_dict()
    places = list(zip(sheet["case_id"], sheet["model"], strict=True))
    for row, (case, code) in enumerate(places):
        if (case, code) not in model_of:
            known = sorted(letter for name, letter in model_of if name == case)
            rule = f"the key knows {known}" if known else "the key has no such case"
            raise ValueError(f"{path}: row {row + 2}: model {code!r} of {case}: {rule}")
    return sheet.assign(model=[model_of[place] for place in places])


def _explain(failures: pd.DataFrame, raw: pd.DataFrame) -> str:
    """Say the first bad cell of each column in words, with spreadsheet rows."""
    twice = failures["check"] == "multiple_fields_uniqueness"
    texts = []
    for column, cases in failures[~twice].groupby("column", sort=False):
        row, n_rows = int(cases["index"].min()), cases["index"].nunique()
        value = raw[column][row]
        texts.append(f"row {row + 2}: {column} {value!r} {RULES[column]} ({n_rows} rows in all)")
    if twice.any():
        row = int(failures.loc[twice, "index"].max())
        texts.append(f"row {row + 2}: this reader scored this text twice; keep one row")
    return "; ".join(texts)
