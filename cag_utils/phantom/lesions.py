"""Stenoses: which segments they hit, and how they narrow a tree."""

from dataclasses import dataclass, replace

import numpy as np

from cag_utils.phantom.tree import Tree
from cag_utils.segments import GRADES, artery_of, laterality_of

# Choice, after the usual predilection sites (proximal and mid LAD, mid RCA). Segments 4, 10, 14
# and 15 are left out for now: small, and not in every heart.
SEGMENT_WEIGHTS = {
    1: 0.10, 2: 0.13, 3: 0.08, 5: 0.04, 6: 0.18, 7: 0.16, 8: 0.05, 9: 0.08,
    11: 0.10, 12: 0.05, 13: 0.03,
}  # fmt: skip
GRADE_WEIGHTS = {25: 0.14, 50: 0.20, 75: 0.26, 90: 0.20, 99: 0.12, 100: 0.08}
MAX_A_SIDE = 2
# An occluded left main rules out an elective study; behind an occluded proximal RCA nothing would
# be seen, as there is no collateral filling yet.
NEVER_OCCLUDED = (1, 5)


@dataclass(frozen=True)
class Lesion:
    """One stenosis as it sits in a tree.

    Attributes:
        segment: AHA number.
        percent: Percent diameter stenosis at its narrowest point.
        length_mm: Along the vessel.
        eccentricity: 0 concentric to 1 one-sided.
        index: Centreline point of the narrowest lumen.
        reference_mm: Healthy lumen diameter there.
    """

    segment: int
    percent: int
    length_mm: float
    eccentricity: float
    index: int
    reference_mm: float

    @property
    def artery(self) -> str:
        """RCA, LM, LAD or LCX."""
        return artery_of(self.segment)

    def as_dict(self) -> dict:
        """What reports and tables carry: segment, percent, artery."""
        return {"segment": self.segment, "percent": self.percent, "artery": self.artery}


def draw_lesions(rng: np.random.Generator, count_shares: tuple[float, ...]) -> list[dict]:
    """Draw a patient's lesions: distinct segments, at most two a side.

    Args:
        rng: Generator.
        count_shares: Shares of patients with 0, 1, 2 ... lesions; must add up to 1.

    Returns:
        Dicts of segment, percent and artery, by segment.

    Raises:
        ValueError: The shares do not add up to 1.
    """
    if abs(sum(count_shares) - 1) > 1e-9:
        raise ValueError(f"count_shares must add up to 1, got {count_shares}")
    wanted = rng.choice(len(count_shares), p=count_shares)
    segments = list(SEGMENT_WEIGHTS)
    order = rng.choice(segments, len(segments), replace=False, p=list(SEGMENT_WEIGHTS.values()))
    room = {"LCA": MAX_A_SIDE, "RCA": MAX_A_SIDE}
    chosen = []
    for segment in map(int, order):
        if len(chosen) < wanted and room[laterality_of(segment)]:
            room[laterality_of(segment)] -= 1
            chosen.append(segment)
    return [
        {"segment": s, "percent": _grade(rng, s), "artery": artery_of(s)} for s in sorted(chosen)
    ]


def _grade(rng, segment: int) -> int:
    """Draw a grade that this segment may have."""
    weights = np.array([GRADE_WEIGHTS[g] for g in GRADES])
    if segment in NEVER_OCCLUDED:
        weights[GRADES.index(100)] = 0
    return int(rng.choice(GRADES, p=weights / weights.sum()))


def narrow(rng: np.random.Generator, tree: Tree, segment: int, percent: int) -> tuple[Tree, Lesion]:
    """Put one stenosis into the middle part of a segment.

    The radius falls by exactly `percent` at one point and less around it; contrast does not pass a
    total occlusion (no collateral filling).

    Args:
        rng: Generator; draws site, length (8 to 22 mm) and eccentricity.
        tree: The tree; not changed.
        segment: AHA number.
        percent: 25, 50, 75, 90, 99 or 100.

    Returns:
        The narrowed tree and the lesion.

    Raises:
        ValueError: The grade is none of the six, or this tree has no such segment.
    """
    if percent not in GRADES:
        raise ValueError(f"stenosis grades are {GRADES} percent, got {percent}")
    where = tree.points_of(segment)
    if len(where) < 6:
        raise ValueError(
            f"the {tree.dominance} dominant {tree.laterality} has no segment {segment}"
        )
    centre = int(where[int(len(where) * rng.uniform(0.35, 0.65))])
    length, eccentricity = rng.uniform(8, 22), rng.choice([0.0, 0.7])
    same = tree.branch == tree.branch[centre]
    away = np.where(same, np.abs(tree.path_mm - tree.path_mm[centre]), np.inf)
    depth = _profile(away, length)
    lost = tree.radius * depth * percent / 100
    lesion = Lesion(
        segment, percent, float(length), float(eccentricity), centre, 2 * float(tree.radius[centre])
    )
    moved = tree.points + eccentricity * lost[:, None] * _sideways(rng, tree, centre)
    beyond = downstream(tree, centre) if percent == 100 else np.zeros(len(away), bool)
    return replace(tree, points=moved, radius=tree.radius - lost, open=tree.open & ~beyond), lesion


def _profile(away_mm: np.ndarray, length_mm: float) -> np.ndarray:
    """Depth of the narrowing, 1 at the centre to 0 at half the length; long ones have a plateau."""
    near = np.minimum(away_mm, length_mm / 2)
    wave = np.maximum(0.5 * (1 + np.cos(2 * np.pi * near / length_mm)), 0) ** 0.7
    flat = 0.2 * length_mm if length_mm > 14 else 1.5  # mm; a point-sized neck would be invisible
    return np.where(away_mm < flat, 1.0, wave)


def _sideways(rng, tree: Tree, index: int) -> np.ndarray:
    """A unit vector across the vessel."""
    ahead = tree.points[min(index + 1, len(tree.points) - 1)] - tree.points[index - 1]
    ahead = ahead / np.linalg.norm(ahead)
    across = rng.standard_normal(3)
    across = across - (across @ ahead) * ahead
    return across / np.linalg.norm(across)


def downstream(tree: Tree, index: int) -> np.ndarray:
    """Return which points are fed through one centreline point.

    Args:
        tree: The tree.
        index: Centreline point.

    Returns:
        (n,) bool: points after it on its branch, and every branch that leaves from one of them.
    """
    fed = (tree.branch == tree.branch[index]) & (np.arange(len(tree.branch)) > index)
    for branch, attached in enumerate(tree.attached):  # parents come before their branches
        if attached >= 0 and fed[attached]:
            fed |= tree.branch == branch
    return fed
