"""Score sheets for human readers: made blind, read back with every cell checked."""

import hashlib
import re
import string
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from cag_utils.identity import read_table
from cag_utils.scores.rubric import CRITERIA

WHOSE = {
    "case_id": "must name a case, e.g. case-0001",
    "model": "must be a model or its blinded code",
    "reader": "must name or number the reader who gave the score",
}
BLIND = re.compile(r"[A-Z]-[0-9a-f]{6}")  # a letter and the sheet it belongs to
# What the reader sees of an item. Not the prompt: few-shot examples would give untuned models away.
SHOWN = ("png", "report", "ground_truth", "output")


def blank_sheet(generations: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make an empty, blinded score sheet and the key that unblinds it.

    Cases come in random order, and within each case the models' texts in random order under the
    letters A, B, C ...; a letter stands for another model in the next case, so style gives nothing
    away. The letter carries the sheet's own number, so that the key of another run is refused
    instead of naming the wrong models. Keep the key from the reader until the sheet is complete.

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
    blank = {name: "" for name in ("reader", "overall", *CRITERIA)}
    return sheet.assign(**blank), items[["case_id", "code", "model"]]


def read_sheet(path: Path, key: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read a filled score sheet and name the file, row and rule of everything wrong in it.

    Args:
        path: CSV with case_id, model, reader, overall (0 to 10) and the errors (0 or 1);
            further columns are dropped. UTF-8, with or without the byte order mark Excel adds.
        key: case_id, code, model as `blank_sheet` made it, or several keys in one table. Only
            needed where `model` holds blinded codes.

    Returns:
        One row a case, model and reader, in the file's order, unblinded.

    Raises:
        ValueError: A column is missing, a cell breaks its rule, a reader scored a text twice, or
            a blinded code is not in the key. Rows count as in a spreadsheet: 1 is the header.
        FileNotFoundError: There is no such file.
    """
    error = pa.Column(float, pa.Check.isin((0, 1)))  # a spreadsheet may write 1 as 1.0
    schema = pa.DataFrameSchema(
        {name: pa.Column(str, pa.Check.str_length(min_value=1)) for name in WHOSE}
        | {"overall": pa.Column(float, pa.Check.in_range(0, 10))}
        | dict.fromkeys(CRITERIA, error),
        unique=list(WHOSE),
        coerce=True,
    )
    rules = WHOSE | {"overall": "must be a number from 0 to 10"}
    rules |= dict.fromkeys(CRITERIA, "must be 0 (no error) or 1 (error)")
    sheet = read_table(path, schema, rules, "this reader scored this text twice; keep one row")
    return _unblind(sheet.astype(dict.fromkeys(CRITERIA, int)), key, path)


def _unblind(sheet: pd.DataFrame, key: pd.DataFrame | None, path: Path) -> pd.DataFrame:
    model_of = {} if key is None else key.set_index(["case_id", "code"])["model"].to_dict()
    places = list(zip(sheet["case_id"], sheet["model"], strict=True))
    for row, (case, code) in enumerate(places):
        if BLIND.fullmatch(code) and (case, code) not in model_of:
            known = sorted(letter for name, letter in model_of if name == case)
            rule = f"the key knows {known}" if known else "the key has no such case"
            place = f"{path}: row {row + 2}: model {code!r} of {case}"
            raise ValueError(f"{place}: {rule}; use the key of this sheet")
    return sheet.assign(model=[model_of.get(place, place[1]) for place in places])
