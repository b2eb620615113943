"""Why a file or a frame is not used, and what was mended: closed lists, fit for tables."""

from pathlib import Path
from typing import NamedTuple

REASONS = (
    "empty file", "not a regular file", "unreadable file", "closed folder", "link to a folder",
    "not a DICOM file", "passed over", "truncated", "broken header", "not XA", "colour image",
    "3-D reconstruction", "single frame, not a cine", "unsupported transfer syntax",
    "unsupported bit depth", "no pixel data", "only an icon image", "too large", "no picture",
    "pixels are not what the header says", "broken pixel data", "missing frame", "blank frame",
    "the decoder died", "the decoder took too long", "out of memory", "duplicate",
    "not a picture", "burnt-in text", "unexpected error",
)  # fmt: skip
NOTES = (
    "the header's number of frames is wrong", "frames are missing or broken",
    "impossible window ignored", "impossible rescale ignored", "VOI LUT ignored",
    "pixels exceed Bits Stored", "mapped by the cine's own range", "mapped by the window",
    "mapped by the VOI LUT", "mapped by the full range",
    "no transfer syntax, no preamble or no file header", "one UID, several contents",
    "one patient id for several names", "one patient id for all exams",
    "one patient id of several issuers", "one study in two patients", "overlays left out",
)  # fmt: skip


class NotACine(ValueError):
    """The file, or one of its frames, cannot be used.

    `reason` is one of `REASONS`; `note` are words of ours, of closed sets: both may land in
    `outputs/`. `detail`, what a library said, may quote the header or a path (`public_words`).
    """

    def __init__(self, reason: str, note: str = "", detail: object = ""):
        if reason not in REASONS:
            raise ValueError(f"{reason!r} is not in the closed list of reasons")
        super().__init__(f"{reason}: {note}" if note else reason)
        self.reason, self.note = reason, note
        self.detail = " ".join(str(detail).split())[:300]

    def __reduce__(self) -> tuple:
        """Cross from a worker whole."""
        return NotACine, (self.reason, self.note, self.detail)


class Rejected(NamedTuple):
    """A file, or one frame of it, that is not used; the words as in `NotACine`."""

    path: Path
    reason: str
    note: str = ""
    detail: str = ""
    frame: int | None = None  # from 0; None if it is the whole file

    @classmethod
    def of(cls, path: Path, problem: NotACine, frame: int | None = None) -> "Rejected":
        """Bind a problem to its file."""
        return cls(path, problem.reason, problem.note, problem.detail, frame)
