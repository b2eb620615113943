"""Tables that people bring: read however a spreadsheet saved them, checked cell by cell.

What is unambiguous is read (CP932, UTF-16, semicolons, blank rows, full-width digits, `31.0`); the
rest is one error that names file, row, column, rule and remedy. It never quotes a cell: errors
stand in executed notebooks, and a cell may name a patient.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import pandera.pandas as pa
from pandas.api.types import is_numeric_dtype
from pandera.errors import SchemaErrors

from cag_utils.study import replacing

REMEDY = "save it as 'CSV UTF-8' (or .xlsx) with the header in row 1"
FORMULA = re.compile(r"'*[=+\-@\t\r]")
# What a spreadsheet writes for a whole number in a column that has blanks.
WHOLE = r"^(\d+)\.0+$"


def read_table(
    path: Path,
    schema: pa.DataFrameSchema,
    rules: Mapping[str, str],
    repeated: str,
    also: Mapping[str, str] = MappingProxyType({}),
) -> pd.DataFrame:
    """Read a table and check it against its schema.

    Args:
        path: A CSV in UTF-8, UTF-16 or CP932 (Excel in Japan), with commas, semicolons or tabs, or
            an Excel workbook (its first sheet). Where `x.csv` is missing, `x.xlsx` is read.
        schema: Columns, types and checks; a column that is not required comes back as empty text
            where it is missing, or as NA if it is nullable. Blanks around cells go; cells of
            columns with another check than a length also lose their full width.
        rules: Column name to its rule in words, `must be ...`.
        repeated: What to say when rows repeat that must not.
        also: Other names that a column may have in the file, each with the schema's.

    Returns:
        The schema's columns, in its order, each row under its number in the spreadsheet; further
        columns and blank rows are dropped.

    Raises:
        ValueError: The text cannot be read, a column is missing, a cell breaks its rule, or a row
            repeats; the message names file, row (1 is the header), column and rule.
        FileNotFoundError: There is no such file.
    """
    path = _existing(path)
    raw = _with_header(path, _cells(path), schema, also)
    numbers = [name for name, c in schema.columns.items() if is_numeric_dtype(c.dtype.type)]
    problems = []
    for name, column in schema.columns.items():
        if name in numbers or any(check.name != "str_length" for check in column.checks):
            raw[name] = [unicodedata.normalize("NFKC", cell).strip() for cell in raw[name]]
        if name in numbers:
            raw[name], bad = _numbers(raw[name], column)
            problems += [(row, name) for row in raw.index[bad]]
    sound = raw.drop(index={row for row, _ in problems})
    try:
        # each column in its own type, so that one bad cell does not turn its column into text
        typed = sound.astype({name: c.dtype.type for name, c in schema.columns.items()})
        table = schema.validate(typed, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases
        twice = cases["check"] == "multiple_fields_uniqueness"
        found = cases[~twice].drop_duplicates(["index", "column"])
        problems += list(found[["index", "column"]].itertuples(index=False, name=None))
        problems += [(int(cases.loc[twice, "index"].max()), "")] if twice.any() else []
    if problems:
        raise ValueError(f"{path}: {_in_words(problems, rules, repeated)}")
    return table


def _existing(path: Path) -> Path:
    """The file itself, or the workbook that stands in for a missing CSV."""
    for found in (Path(path), Path(path).with_suffix(".xlsx")):
        if found.is_file():
            return found
    raise FileNotFoundError(f"{path} is missing; README, 'Your own data', shows an example")


def _cells(path: Path) -> list[list[str]]:
    """Every row of the file, header and blank ones included, as texts."""
    data = path.read_bytes()
    if not data.strip(b"\0 \r\n\t,;\xef\xbb\xbf"):
        raise ValueError(f"{path} is empty; README, 'Your own data', shows an example")
    if data[:4] == b"PK\3\4":
        sheet = pd.read_excel(io.BytesIO(data), header=None, dtype=object, engine="openpyxl")
        return [["" if pd.isna(cell) else str(cell) for cell in row] for row in sheet.to_numpy()]
    if data[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        raise ValueError(f"{path} is an old Excel workbook (.xls): {REMEDY}")
    text = _decoded(path, data)
    first = next(line for line in text.splitlines() if line.strip())
    delimiter = max(",;\t", key=first.count)
    rows = []
    try:
        # strict: lenient readers join rows over an open quote, or keep half of a cell
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            rows.append(row)
    except csv.Error:
        rule = "a quotation mark inside a cell must be doubled, and each opened one closed"
        raise ValueError(f"{path}: row {len(rows) + 1}: {rule}; {REMEDY}") from None
    return rows


def _decoded(path: Path, data: bytes) -> str:
    """The text in UTF-8, UTF-16 or CP932; no guess where none of them is clearly meant."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    if b"\0" in data[:2]:
        return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-16-be")
    with suppress(UnicodeDecodeError):
        return data.decode("utf-8-sig")
    text = ""
    with suppress(UnicodeDecodeError):
        text = data.decode("cp932")
    # Western text read as CP932 turns each accent and its neighbour into one lone character
    foreign = re.findall(r"[^\x00-\x7f]+", text)
    if 2 * sum(len(run) for run in foreign if len(run) > 1) <= len("".join(foreign)):
        raise ValueError(f"{path} is neither UTF-8 nor UTF-16 nor Japanese CP932: {REMEDY}")
    return text


def _with_header(
    path: Path, rows: list[list[str]], schema: pa.DataFrameSchema, also: Mapping[str, str]
) -> pd.DataFrame:
    """The schema's columns as texts, each row under its number in the spreadsheet."""

    def read(row: list[str]) -> list[str]:
        names = [unicodedata.normalize("NFKC", cell).strip().lower() for cell in row]
        return [also.get(name, name) for name in names]

    start = next(i for i, row in enumerate(rows) if any(map(str.strip, row)))
    required = {name for name, column in schema.columns.items() if column.required}
    names = read(rows[start])
    if missing := sorted(required - set(names)):
        later = (i + 1 for i, row in enumerate(rows) if required <= set(read(row)))
        where = next(later, None)
        help_ = f"delete the rows above row {where}, the header" if where else "row 1 is the header"
        raise ValueError(f"{path}: row {start + 1}: no column {missing}; {help_}")
    if double := sorted({n for n in names if n in schema.columns and names.count(n) > 1}):
        raise ValueError(f"{path}: row {start + 1}: column {double} stands twice; keep one")
    kept = {}
    for number, row in enumerate(rows[start + 1 :], start + 2):
        cells = [rearm(cell.strip()) for cell in row]
        if any(cells[len(names) :]):
            rule = "it has more cells than the header; a cell that holds a comma needs quotes"
            raise ValueError(f"{path}: row {number}: {rule}")
        if any(cells):
            kept[number] = dict(zip(names, cells, strict=False))
    frame = pd.DataFrame.from_dict(kept, orient="index", dtype=str)
    return frame.reindex(columns=list(schema.columns)).fillna("")


def _numbers(cells: pd.Series, column: pa.Column) -> tuple[pd.Series, pd.Series]:
    """A column's numbers, and which of its cells are none."""
    numbers = pd.to_numeric(cells.str.replace(WHOLE, r"\1", regex=True), errors="coerce")
    bad = numbers.isna() & ~((cells == "") & bool(column.nullable))
    if "int" in str(column.dtype).lower():
        bad |= numbers.notna() & (numbers % 1 != 0)
    return numbers, bad


def _in_words(problems: Iterable[tuple[int, str]], rules: Mapping[str, str], repeated: str) -> str:
    """The first bad row of each column with its rule, and how many there are."""
    rows = pd.DataFrame(problems, columns=["row", "column"]).groupby("column", sort=False)["row"]
    texts = []
    for column, found in rows:
        count = found.nunique()
        many = f" ({count} rows in all)" if count > 1 else ""
        words = f"{column} {rules[column]}" if column else repeated
        texts.append(f"row {found.min()}: {words}{many}")
    return "; ".join(texts)


def write_table(table: pd.DataFrame | pd.Series, path: Path, index: bool = False, **how) -> None:
    """Write a CSV that holds no spreadsheet's formula; on an error the old file stays whole."""
    with replacing(path) as part:
        _each_text(table, disarm).to_csv(part, index=index, **how)


def load_table(path: Path, **how) -> pd.DataFrame:
    """Read what `write_table` has written; `how` as `pandas.read_csv`."""
    return _each_text(pd.read_csv(path, **how), rearm)


def _each_text(table: pd.DataFrame | pd.Series, change: Callable[[str], str]) -> pd.DataFrame:
    table = pd.DataFrame(table)
    texts = table.select_dtypes(include=["object", "string"])
    changed = texts.map(lambda cell: change(cell) if isinstance(cell, str) else cell)
    return table.assign(**changed)


def disarm(cell: str) -> str:
    """Put an apostrophe before text that a spreadsheet would run as a formula; `rearm` undoes it.

    Source:
        OWASP, CSV Injection: cells that begin with = + - @, tab or carriage return.
    """
    return f"'{cell}" if FORMULA.match(cell) else cell


def rearm(cell: str) -> str:
    """Take off what `disarm` has put on."""
    return cell[1:] if cell[:1] == "'" and FORMULA.match(cell) else cell
