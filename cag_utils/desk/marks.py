"""A reader's marks: an append-only CSV that no killed server and no second window can spoil."""

import csv
import io
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from cag_utils.tables import disarm, rearm

HEAD = ("at", "reader", "item", "repeat", "action", "seconds")
INITIALS = re.compile(r"[A-Za-z0-9]{2,12}")
WAIT_S = 5.0  # a page that is loaded anew: its old kernel needs a moment to end


class SheetInUse(ValueError):
    """Another window holds this reader's sheet, or has marked in it since it was read."""


class MarkLog:
    """One reader's sheet of one desk: rows are only ever added, and each is on the disk at once.

    Args:
        folder: Of the desk's sheets; one file a reader, so that no reader's window opens another's.
        reader: Initials, 2 to 12 letters or digits; capitals and small letters are one reader.
        values: Names of what is marked, columns behind `HEAD`.

    Raises:
        ValueError: The initials are none, or the sheet has other columns.
        SheetInUse: A second window is open on it.
    """

    def __init__(self, folder: Path, reader: str, values: Sequence[str]):
        if not INITIALS.fullmatch(reader):
            raise ValueError(f"initials are 2 to 12 letters or digits, got {reader!r}")
        self.reader, self.columns = reader.upper(), (*HEAD, *values)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = folder / f"{self.reader}.csv"
        self._lock = FileLock(f"{self.path}.lock", thread_local=False)
        self._take(WAIT_S)
        try:
            self._size = self._begin()
        except ValueError:
            self.release()
            raise

    def _take(self, wait_s: float) -> None:
        try:
            self._lock.acquire(timeout=wait_s)
        except Timeout:
            raise SheetInUse(
                f"the sheet of {self.reader} is open in another window: go on there, or close it"
            ) from None

    def _begin(self) -> int:
        """Write the header of a new sheet, or cut off a line that a kill left half written."""
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if not whole:
            whole = (",".join(self.columns) + "\n").encode()
        if (found := tuple(whole.decode().split("\n")[0].split(","))) != self.columns:
            raise ValueError(f"{self.path} has the columns {found}, not {self.columns}")
        if whole != text:
            self._write(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        return len(whole)

    def _write(self, data: bytes, flags: int) -> None:
        handle = os.open(self.path, flags, 0o600)
        try:
            os.write(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)

    def append(
        self, item: str, repeat: int, action: str, seconds: float, values: Mapping[str, object]
    ) -> None:
        """Add a row and wait until it is on the disk.

        Args:
            repeat: 0 the first time, 1 when it is shown again.
            action: `mark`, in the place of an earlier one, or `undo`, which opens the case again.
            seconds: How long the case was looked at.
            values: By the names given at the start; line breaks become blanks.

        Raises:
            SheetInUse: Another window took the sheet while this one slept.
        """
        self._take(0)  # at once, if this window still has it
        if self.path.stat().st_size != self._size:
            self.release()
            raise SheetInUse(f"the sheet of {self.reader} went on in another window: reload this")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        cells = [now, self.reader, item, repeat, action, round(seconds, 1)]
        cells += [values.get(name, "") for name in self.columns[len(HEAD) :]]
        line = io.StringIO()
        plain = [disarm(re.sub(r"\s*[\r\n]+\s*", " ", str(cell)).strip()) for cell in cells]
        csv.writer(line, lineterminator="\n").writerow(plain)
        data = line.getvalue().encode()
        self._write(data, os.O_WRONLY | os.O_APPEND)
        self._size += len(data)

    def release(self) -> None:
        """Let another window have the sheet."""
        self._lock.release(force=True)


def read_marks(path: Path) -> pd.DataFrame:
    """Return the marks that stand, in the order of their last change; all columns are text.

    Of each item and repeat the last row counts, and none if that undid it. A line without an end
    was never acknowledged and is left out. An empty table with `HEAD` if there is no sheet.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1] or ",".join(HEAD) + "\n"
    rows = pd.read_csv(io.StringIO(whole), dtype=str, keep_default_na=False).map(rearm)
    last = rows.drop_duplicates(["item", "repeat"], keep="last")
    return last[last["action"] == "mark"].drop(columns="action").reset_index(drop=True)


def read_all_marks(folder: Path, values: Sequence[str] = ()) -> pd.DataFrame:
    """Return what `read_marks` finds in all readers' sheets of a desk, readers in order of name.

    Args:
        folder: Of the sheets; it need not be there.
        values: Columns of what is marked, for when there is no sheet yet.
    """
    columns = [*(name for name in HEAD if name != "action"), *values]
    sheets = [read_marks(path) for path in sorted(folder.glob("*.csv"))]
    return pd.concat(sheets or [pd.DataFrame(columns=columns, dtype=str)], ignore_index=True)


def first_marks(marks: pd.DataFrame) -> pd.DataFrame:
    """Return the marks of items that were shown for the first time."""
    return marks[marks["repeat"] == "0"]


def reading_order(
    groups: Mapping[str, Sequence[str]], reader: str, seed: int, repeat_share: float
) -> list[tuple[str, int]]:
    """Return a reader's own order of all items, with some that come back.

    Groups (a case with its answers) stay together, in random order within a random order of groups.
    What comes back is drawn from the first third and put anywhere in the last, so that a third of
    the session lies between: too long for remembering an answer.

    Args:
        reader: Initials; another reader, another order.
        repeat_share: Items that come back, 0 to 1/3 of all.

    Returns:
        (item, repeat) with repeat 0, or 1 for an item that comes back.

    Raises:
        ValueError: The share is not 0 to 1/3.
    """
    if not 0 <= repeat_share <= 1 / 3:
        raise ValueError(f"the share that is repeated must be 0 to 1/3, got {repeat_share}")
    rng = np.random.default_rng([seed, zlib.crc32(reader.upper().encode())])
    names = list(groups)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    order = [(groups[n][i], 0) for n in shuffled for i in rng.permutation(len(groups[n]))]
    third = len(order) // 3
    again = rng.choice(third, math.ceil(repeat_share * third * 3), replace=False) if third else []
    for first in again:
        order.insert(int(rng.integers(2 * third, len(order) + 1)), (order[first][0], 1))
    return order
