"""Ids become keyed pseudonyms, links stay private, and texts are searched for who is meant."""

import hmac
import os
from pathlib import Path

import pandas as pd

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
