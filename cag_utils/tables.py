"""Read a table that people made, and name file, row and rule of everything wrong in it."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors


def read_table(
    path: Path, schema: pa.DataFrameSchema, rules: Mapping[str, str], repeated: str
) -> pd.DataFrame:
    """Read a CSV and check it against its schema.

    Args:
        path: CSV, UTF-8, with or without the byte order mark Excel adds.
        schema: Columns, types and checks; a column that is not required may be missing, and comes
            back as empty text. Cells are stripped of blanks around them.
        rules: Column name to its rule in words, to follow the value: `must be ...`.
        repeated: What to say when rows repeat that must not.

    Returns:
        The schema's columns, in its order; further columns of the file are dropped.

    Raises:
        ValueError: A column is missing, a cell breaks its rule, or a row repeats. Rows are counted
            as a spreadsheet does: 1 is the header.
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; README, 'Your own data', shows an example")
    raw = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    required = [name for name, column in schema.columns.items() if column.required]
    if missing := [name for name in required if name not in raw.columns]:
        raise ValueError(f"{path}: no column {missing}; it has {list(raw.columns)}")
    raw = raw.reindex(columns=list(schema.columns), fill_value="")
    raw = raw.apply(lambda column: column.str.strip())
    try:
        return schema.validate(raw, lazy=True)
    except SchemaErrors as errors:
        problems = _explain(errors.failure_cases, raw, rules, repeated)
        raise ValueError(f"{path}: {problems}") from None


def _explain(
    failures: pd.DataFrame, raw: pd.DataFrame, rules: Mapping[str, str], repeated: str
) -> str:
    """Say the first bad cell of each column in words, with spreadsheet rows."""
    twice = failures["check"] == "multiple_fields_uniqueness"
    texts = []
    for column, cases in failures[~twice].groupby("column", sort=False):
        row, n_rows = int(cases["index"].min()), cases["index"].nunique()
        value = raw[column][row]
        texts.append(f"row {row + 2}: {column} {value!r} {rules[column]} ({n_rows} rows in all)")
    if twice.any():
        row = int(failures.loc[twice, "index"].max())
        texts.append(f"row {row + 2}: {repeated}")
    return "; ".join(texts)
