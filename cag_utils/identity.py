"""Ids become keyed pseudonyms, links stay private, and texts are searched for who is meant."""

import hmac
import os
import re
import unicodedata
from pathlib import Path

import pandas as pd

from cag_utils.params import check_choice
from cag_utils.study import replacing, root

PREFIXES = {"patient": "pt", "exam": "ex", "video": "vi", "file": "fi", "reader": "rd"}
# What a note should not hold. A date is told from a grade or a ratio by its year.
_YEAR = r"(?:(?:19|20)\d\d|(?:令和|平成|昭和|[RHS])\s?(?:\d{1,2}|元))"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
IDENTIFYING = {
    "date": (
        rf"{_YEAR}\s?[-/.年]\s?\d{{1,2}}\s?[-/.月]\s?\d{{1,2}}",
        r"\b\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)\d\d\b",
        rf"\b\d{{1,2}}(?:st|nd|rd|th)? {_MONTH} \d{{4}}\b",
        rf"\b{_MONTH} \d{{1,2}},? \d{{4}}\b",
    ),
    "phone": (
        r"\b0\d{1,4}-\d{1,4}-\d{3,4}\b",
        r"\b0[789]0\d{8}\b",
        r"\+\d[\d -]{8,14}\d",
        r"(?:TEL|電話)\s?:?\s?\d",
    ),
    "id": (
        r"\b\d{7,}\b",
        r"(?:\bMRN|\bID|番号|カルテ)\s?[:#]?\s?[A-Z]{0,3}-?\d{3,}",
        r"\b(?:\d+\.){5,}\d+\b",
    ),
    "mail": (r"\b[\w.+-]+@[\w-]+\.\w+",),
    "name": (
        r"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof)\.? ?[A-Z][a-z]+",
        r"(?:氏名|患者名|担当医|主治医|術者)\s?:\s?\S",
        r"\b(?:Name|Patient|Operator|Physician)\s?: ?[A-Z]",
        r"(?<![一-龠々])(?!患者|家族|奥|皆|親|先)[一-龠々]{2,4}\s?(?:様|さん|氏|先生|医師)(?![一-龠々])",
        r"\b[A-Z][A-Za-z]+\^[A-Z]",
    ),
}


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


def private_folder(name: str = "") -> Path:
    """Return `data/private/` or a folder in it, mode 700: what links ids to people stays there."""
    folder = root() / "data" / "private"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)  # it may have been made with the user's own mask
    (folder / name).mkdir(exist_ok=True)
    return folder / name


def save_links(name: str, links: pd.DataFrame) -> Path:
    """Write the way back from pseudonyms to files, mode 600, to `data/private/<name>.csv`.

    Args:
        name: File name without suffix; one per cohort and profile.
        links: Pseudonyms and what they stand for.
    """
    path = private_folder() / f"{name}.csv"
    with replacing(path) as part:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            links.to_csv(file, index=False)
    return path


def find_identifying(texts: pd.Series) -> pd.DataFrame:
    """Say which texts hold what looks like a date, phone, id, mail address or name.

    A help for whoever prepares the notes, no proof: it misses names without a title.

    Returns:
        One row a text and kind: `row` (the text's index label), `kind` (a key of `IDENTIFYING`).
        What was found is not repeated.
    """
    plain = texts.fillna("").map(lambda text: unicodedata.normalize("NFKC", text))
    rows = [
        {"row": row, "kind": kind}
        for kind, patterns in IDENTIFYING.items()
        for row in texts.index[plain.str.contains(re.compile("|".join(patterns)))]
    ]
    return pd.DataFrame(rows, columns=["row", "kind"])
