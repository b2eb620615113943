"""What people bring: ids become keyed pseudonyms, links stay private, tables are checked."""

import csv
import hmac
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from cag_utils.params import check_choice
from cag_utils.study import root

PREFIXES = {"patient": "pt", "exam": "ex", "video": "vi", "file": "fi"}


def pseudonym(kind: str, value: str, key: bytes) -> str:
    """Return the study's id for one real id: the same value and key always give the same.

    Without the key the id cannot be traced back or guessed from a list of real ids.

    Args:
        kind: `patient`, `exam`, `video` or `file`.
        value: The real id: PatientID, Study or SOP Instance UID, or a path in the archive.
        key: Secret of the study, `study.pseudonym_key(profile)`.

    Returns:
        A prefix and 12 hex digits, e.g. `vi-3f9a2c1b77d0`; any collision among 100,000: 2e-5.

    Raises:
        ValueError: `kind` is unknown, or `value` is empty (two unnamed patients must not merge).
    """
    prefix = PREFIXES[check_choice("kind of id", kind, PREFIXES)]
    if not value:
        raise ValueError(f"an empty {kind} id has no pseudonym: give the file a stand-in id first")
    return f"{prefix}-{hmac.new(key, f'{kind}:{value}'.encode(), 'sha256').hexdigest()[:12]}"


def study_id(kind: str, value: str, key: bytes) -> str:
    """Return the pseudonym of an id in a table, or the id itself if it already is one.

    Raises:
        ValueError: As `pseudonym`.
    """
    is_ours = value.startswith(f"{PREFIXES[check_choice('kind of id', kind, PREFIXES)]}-")
    return value if is_ours else pseudonym(kind, value, key)


def save_links(name: str, links: pd.DataFrame) -> Path:
    """Write the way back from pseudonyms to files, mode 600, to `data/private/<name>.csv`.

    Args:
        name: File name without suffix; one per cohort and profile.
        links: Pseudonyms and what they stand for.
    """
    folder = root() / "data" / "private"  # what links ids to people stays there
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)  # it may have been made with the user's own mask
    path = folder / f"{name}.csv"
    part = path.with_name(f".{name}.{os.getpid()}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
        links.to_csv(file, index=False)
    return part.replace(path)


def read_table(
    path: Path, schema: pa.DataFrameSchema, rules: Mapping[str, str], repeated: str
) -> pd.DataFrame:
    """Read a CSV and check it against its schema.

    Args:
        path: CSV, UTF-8, with or without the byte order mark Excel adds.
        schema: Columns, types and checks; a column that is not required comes back as empty text
            where it is missing. Cells are stripped of blanks around them.
        rules: Column name to its rule in words, to follow the value: `must be ...`.
        repeated: What to say when rows repeat that must not.

    Returns:
        The schema's columns, in its order; further columns of the file are dropped.

    Raises:
        ValueError: A column is missing, a cell breaks its rule, or a row repeats; the message names
            file, row (1 is the header) and rule.
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; README, 'Your own data', shows an example")
    raw = _read_text_cells(path)
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


def _read_text_cells(path: Path) -> pd.DataFrame:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        told = f"row {row} is not UTF-8 (Excel's CP932?); save it as 'CSV UTF-8'"
        raise ValueError(f"{path}: {told}") from None
    header, *rows = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    for number, row in enumerate(rows, 2):
        if len(row) > len(header):
            rule = f"row {number} has {len(row)} cells, the header {len(header)}"
            raise ValueError(f"{path}: {rule}: a comma too many, or a quote too few?")
    whole = [row + [""] * (len(header) - len(row)) for row in rows if row]
    return pd.DataFrame(whole, columns=header, dtype=str).map(rearm)


def disarm(cell: str) -> str:
    """Put an apostrophe before text that a spreadsheet would run as a formula; `rearm` undoes it.

    Source:
        OWASP, CSV Injection: cells that begin with = + - @.
    """
    return f"'{cell}" if re.match(r"'*[=+\-@]", cell) else cell


def rearm(cell: str) -> str:
    """Take off what `disarm` has put on."""
    return cell[1:] if re.match(r"'+[=+\-@]", cell) else cell


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
