"""The fifteen AHA segments as Japanese reports number them, and the grades they carry."""

from collections.abc import Mapping
from typing import NamedTuple

GRADES = (25, 50, 75, 90, 99, 100)  # percent diameter stenosis, AHA reporting steps; 100 = occluded
ARTERIES = ("RCA", "LM", "LAD", "LCX")
LATERALITIES = ("LCA", "RCA")


class Segment(NamedTuple):
    """One AHA segment."""

    number: int  # 1 to 15
    artery: str  # one of ARTERIES
    name_en: str  # as an English report writes it
    name_ja: str
    syntax: tuple[str, ...]  # the SYNTAX-score labels (ARCADE's) that fall into this segment


# Source: AHA reporting system (Austen 1975), numbering #1 to #15 as used in Japan; SYNTAX labels as
# ARCADE uses them. SYNTAX splits AHA #4 into 4 (PDA) and 16, 16a-c (posterolateral), and has no
# right/left twin for it.
AHA_SEGMENTS: dict[int, Segment] = {
    row[0]: Segment(*row)
    for row in (
        (1, "RCA", "proximal RCA", "右冠動脈近位部", ("1",)),
        (2, "RCA", "mid RCA", "右冠動脈中部", ("2",)),
        (3, "RCA", "distal RCA", "右冠動脈遠位部", ("3",)),
        (4, "RCA", "distal RCA branches", "右冠動脈末梢", ("4", "16", "16a", "16b", "16c")),
        (5, "LM", "left main", "左冠動脈主幹部", ("5",)),
        (6, "LAD", "proximal LAD", "左前下行枝近位部", ("6",)),
        (7, "LAD", "mid LAD", "左前下行枝中部", ("7",)),
        (8, "LAD", "distal LAD", "左前下行枝遠位部", ("8",)),
        (9, "LAD", "first diagonal", "第一対角枝", ("9", "9a")),
        (10, "LAD", "second diagonal", "第二対角枝", ("10", "10a")),
        (11, "LCX", "proximal LCX", "左回旋枝近位部", ("11",)),
        (12, "LCX", "obtuse marginal", "鈍角枝", ("12", "12a", "12b")),
        (13, "LCX", "distal LCX", "左回旋枝遠位部", ("13",)),
        (14, "LCX", "posterolateral branch", "後側壁枝", ("14", "14a", "14b")),
        (15, "LCX", "left posterior descending", "左後下行枝", ("15",)),
    )
}


def artery_of(segment: int) -> str:
    """Return the artery of an AHA segment; ValueError for a number that is not 1 to 15."""
    if segment not in AHA_SEGMENTS:
        raise ValueError(f"AHA segments are numbered 1 to 15, got {segment!r}")
    return AHA_SEGMENTS[segment].artery


def laterality_of(segment: int) -> str:
    """Return the side whose injection shows an AHA segment: RCA for 1-4, LCA for 5-15."""
    return "RCA" if artery_of(segment) == "RCA" else "LCA"


def segments_of(laterality: str) -> tuple[int, ...]:
    """Return the AHA segments that an injection of this side shows; ValueError for no side."""
    if laterality not in LATERALITIES:
        raise ValueError(f"laterality must be LCA or RCA, got {laterality!r}")
    return tuple(n for n in AHA_SEGMENTS if laterality_of(n) == laterality)


def is_significant(segment: int, percent: int) -> bool:
    """Say whether a stenosis is 75 % or tighter, in the left main (AHA 5) 50 %."""
    return percent >= (50 if segment == 5 else 75)


def check_lesion(lesion: Mapping) -> dict:
    """Return a lesion as a plain dict, checked.

    Args:
        lesion: `segment` (AHA 1-15), `percent` (one of `GRADES`), and optionally `artery`, which
            must agree with the segment; further keys are kept out.

    Returns:
        `{"segment": int, "percent": int, "artery": str}`.

    Raises:
        ValueError: A key is missing, the grade is unknown, or the artery contradicts the segment.
    """
    if missing := {"segment", "percent"} - set(lesion):
        raise ValueError(f"lesion {dict(lesion)} lacks {sorted(missing)}")
    segment, percent = int(lesion["segment"]), int(lesion["percent"])
    artery = artery_of(segment)
    if percent not in GRADES:
        raise ValueError(f"stenosis grades are {GRADES} percent, got {lesion['percent']!r}")
    if lesion.get("artery", artery) != artery:
        raise ValueError(f"AHA #{segment} belongs to the {artery}, not {lesion['artery']!r}")
    return {"segment": segment, "percent": percent, "artery": artery}
