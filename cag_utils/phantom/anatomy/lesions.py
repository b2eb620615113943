"""Stenoses: which segments they hit, what shapes they have, how they narrow a tree."""

from dataclasses import dataclass, replace

import numpy as np

from cag_utils.phantom.anatomy.tree import DIGITS, Tree
from cag_utils.phantom.streams import Streams
from cag_utils.segments import GRADES, artery_of, laterality_of

# Choice, after the usual predilection sites (proximal and mid LAD, mid RCA); small vessels less.
SEGMENT_WEIGHTS = {
    1: 0.09, 2: 0.12, 3: 0.07, 4: 0.04, 5: 0.04, 6: 0.17, 7: 0.15, 8: 0.05, 9: 0.07, 10: 0.03,
    11: 0.09, 12: 0.04, 13: 0.03, 14: 0.02, 15: 0.02,
}  # fmt: skip
GRADE_WEIGHTS = {25: 0.14, 50: 0.20, 75: 0.26, 90: 0.20, 99: 0.12, 100: 0.08}
# Not every heart has these: the side that supplies the posterior wall differs.
ONLY_IN = {4: ("right", "balanced"), 15: ("left",)}
MAX_A_SIDE = 2
NEVER_OCCLUDED = (5,)  # an occluded left main rules out an elective study
# Choice.
KIND_SHARES = {"focal": 0.50, "diffuse": 0.22, "tandem": 0.12, "bifurcation": 0.16}
ECCENTRIC_SHARE, ECCENTRICITY = 0.5, 0.7
COLLATERAL_SHARE = 0.6  # of total occlusions whose bed fills backwards; choice


@dataclass(frozen=True)
class Lesion:
    """One stenosis as it sits in a tree."""

    segment: int  # AHA number
    percent: int  # percent diameter stenosis at its narrowest point
    length_mm: float  # along the vessel, from healthy lumen to healthy lumen
    eccentricity: float  # 0 concentric to 1 one-sided
    index: int  # centreline point of the narrowest lumen
    # lumen diameter there without the lesion, interpolated from its healthy ends
    reference_mm: float
    kind: str = "focal"  # focal, diffuse, tandem or bifurcation
    collateral: bool = False  # whether the bed behind a total occlusion fills backwards

    def as_dict(self) -> dict:
        """What reports and tables carry: segment, percent, artery."""
        return {"segment": self.segment, "percent": self.percent, "artery": artery_of(self.segment)}

    def shape(self) -> dict:
        """What only the truth knows: segment, kind, length_mm, eccentricity, collateral."""
        known = {"segment": self.segment, "kind": self.kind, "length_mm": round(self.length_mm, 1)}
        return known | {"eccentricity": self.eccentricity, "collateral": self.collateral}


def draw_lesions(
    rng: np.random.Generator, count_shares: tuple[float, ...], dominance: str
) -> list[dict]:
    """Draw a patient's lesions: distinct segments that this heart has, at most two a side.

    Args:
        count_shares: Shares of patients with 0, 1, 2 ... lesions.
        dominance: right, balanced or left; decides whether there is a segment 4 or 15.

    Returns:
        Dicts of segment, percent and artery, by segment.

    Raises:
        ValueError: The shares do not add up to 1.
    """
    if abs(sum(count_shares) - 1) > 1e-9:
        raise ValueError(f"count_shares must add up to 1, got {count_shares}")
    streams = Streams(rng)
    wanted = streams("count").choice(len(count_shares), p=count_shares)
    weights = {
        s: w for s, w in SEGMENT_WEIGHTS.items() if dominance in ONLY_IN.get(s, (dominance,))
    }
    shares = np.array(list(weights.values())) / sum(weights.values())
    order = streams("segments").choice(list(weights), len(weights), replace=False, p=shares)
    room = {"LCA": MAX_A_SIDE, "RCA": MAX_A_SIDE}
    chosen = []
    for segment in map(int, order):
        if len(chosen) < wanted and room[laterality_of(segment)]:
            room[laterality_of(segment)] -= 1
            chosen.append(segment)
    return [
        {"segment": s, "percent": _grade(streams("grade", s), s), "artery": artery_of(s)}
        for s in sorted(chosen)
    ]


def _grade(rng, segment: int) -> int:
    """Draw a grade that this segment may have."""
    weights = np.array([GRADE_WEIGHTS[g] for g in GRADES])
    if segment in NEVER_OCCLUDED:
        weights[GRADES.index(100)] = 0
    return int(rng.choice(GRADES, p=weights / weights.sum()))


def narrow(
    rng: np.random.Generator,
    tree: Tree,
    segment: int,
    percent: int,
    kind: str | None = None,
    eccentricity: float | None = None,
    healthy: Tree | None = None,
) -> tuple[Tree, Lesion]:
    """Put one stenosis into a segment; return the narrowed tree and the lesion.

    The lumen loses exactly `percent` of its reference diameter at the narrowest point and less
    around it. Flow behind it slows (`SLOWING`); behind a total occlusion it stops, and in a share
    of them the bed fills late and backwards through collaterals.

    | kind | length | lumen |
    |---|---|---|
    | focal | 8 to 16 mm | one neck of 3 mm |
    | diffuse | 20 to 40 mm | narrowest over two fifths of the length |
    | tandem | two of 7 to 10 mm | two necks, 12 mm or more apart; the lesser 50 to 85 % as deep |
    | bifurcation | 8 to 14 mm | spans the ostium of a named side branch and narrows both |

    Args:
        rng: Generator; draws whatever is None, site and length.
        percent: 25, 50, 75, 90, 99 or 100.
        kind: One of `KIND_SHARES`; focal where two necks do not fit or no side branch leaves.
        eccentricity: 0 concentric to 1 one-sided.
        healthy: The tree before its other lesions, to which percentages refer.

    Raises:
        ValueError: An unknown grade, kind or eccentricity, or this tree has no such segment.
    """
    where = tree.points_of(segment)
    _check(tree, where, segment, percent, kind, eccentricity)
    healthy = healthy or tree
    streams = Streams(rng)
    drawn = str(streams("kind").choice(list(KIND_SHARES), p=list(KIND_SHARES.values())))
    kind, centre = choose_site(streams("site"), tree, where, kind or drawn)
    if eccentricity is None:
        eccentricity = ECCENTRICITY if streams("one-sided").random() < ECCENTRIC_SHARE else 0.0
    depth, length = draw_depth(streams("depth"), tree, where, centre, kind, percent)
    reference = reference_mm(healthy, centre, depth)
    lumen_mm = (1 - depth) * 2 * healthy.radius + depth * (1 - percent / 100) * reference
    radius = np.round(np.clip(lumen_mm / 2, 0, tree.radius), DIGITS)
    closed = percent == 100
    fed = streams("collateral").random() < COLLATERAL_SHARE or segment == 1
    collateral = bool(fed and closed)
    lesion = Lesion(
        segment, percent, length, float(eccentricity), centre, float(reference[centre]),
        kind, collateral,
    )  # fmt: skip
    beyond = downstream(tree, centre)
    gap = np.where(beyond, tree.path_mm - tree.path_mm[centre], 0.0)
    delay = tree.delay_mm + gap * SLOWING.get(percent, 0.0)
    if closed:
        delay = np.where(beyond, np.inf, delay)
    away = eccentricity * (tree.radius - radius)[:, None] * sideways(streams("away"), tree, centre)
    narrowed = replace(
        tree,
        points=np.round(tree.points + away, DIGITS),
        radius=radius,
        open=tree.open & ~(beyond & closed),
        delay_mm=delay,
        lesions=(*tree.lesions, lesion),
        narrowed=np.maximum(tree.narrowed, depth * percent / 100),
    )
    return (fill_backwards(streams("detour"), narrowed, centre) if collateral else narrowed), lesion


def _check(tree: Tree, where: np.ndarray, segment, percent, kind, eccentricity) -> None:
    """Refuse lesions that cannot be."""
    if percent not in GRADES:
        raise ValueError(f"stenosis grades are {GRADES} percent, got {percent}")
    if kind not in (None, *KIND_SHARES):
        raise ValueError(f"a lesion is one of {tuple(KIND_SHARES)}, got {kind!r}")
    if eccentricity is not None and not 0 <= eccentricity <= 1:
        raise ValueError(f"eccentricity must be 0 to 1, got {eccentricity}")
    if len(where) < 6:
        raise ValueError(
            f"the {tree.dominance} dominant {tree.laterality} has no segment {segment}"
        )


# mm, from healthy lumen to healthy lumen; over 20 mm is diffuse in the usual classification, the
# rest is choice.
LENGTHS_MM = {"focal": (8, 16), "diffuse": (20, 40), "tandem": (7, 10), "bifurcation": (8, 14)}
NECK_MM = 1.5  # half a neck's length; a point-sized one would be invisible
SECOND_NECK = (0.5, 0.85)  # depth of a tandem's lesser neck, share of the worse one's; choice
REFERENCE_MM = 12.0  # healthy vessel on either side that a reference is interpolated from; choice


def choose_site(
    rng: np.random.Generator, tree: Tree, where: np.ndarray, kind: str
) -> tuple[str, int]:
    """Return the kind that fits into a segment's points (6 or more), and the narrowest one.

    Focal instead of a tandem in under 24 mm, or of a bifurcation where no reportable branch leaves;
    the worse neck of a tandem is the distal one.
    """
    middle = int(where[int(len(where) * rng.uniform(0.35, 0.65))])
    if kind == "bifurcation":
        sites = _ostia(tree, where)
        return (kind, int(rng.choice(sites))) if len(sites) else ("focal", middle)
    if kind == "tandem":
        if np.ptp(tree.path_mm[where]) < 24:
            return "focal", middle
        return kind, int(where[int(len(where) * rng.uniform(0.68, 0.78))])
    return kind, middle


def _ostia(tree: Tree, where: np.ndarray) -> np.ndarray:
    """Points of a segment just before a reportable branch leaves it."""
    first = np.searchsorted(tree.branch, np.arange(len(tree.names)))
    named = tree.order[first] <= 1
    at = np.unique(tree.attached[named & (tree.attached >= 0)]) - 1
    return at[np.isin(at, where[2:])]


def draw_depth(
    rng: np.random.Generator, tree: Tree, where: np.ndarray, centre: int, kind: str, percent: int
) -> tuple[np.ndarray, float]:
    """Draw how a lesion's depth runs along the vessels.

    Args:
        where: (k,) indices of the segment's points.
        kind: focal, diffuse, tandem or bifurcation.
        percent: At the narrowest point; a tandem's lesser neck stays below 77 %.

    Returns:
        ((n,) depth, 1 at `centre` to 0, and the whole length in mm).
    """
    length = float(rng.uniform(*LENGTHS_MM[kind]))
    away = _away(tree, centre, with_branches=kind == "bifurcation")
    if kind == "diffuse":
        path = tree.path_mm[where] - tree.path_mm[centre]
        length = min(length, 2 * max(4.0, float(min(-path[0], path[-1]))))
        return _profile(away, length, max(NECK_MM, 0.2 * length)), length
    depth = _profile(away, length, NECK_MM)
    if kind != "tandem":
        return depth, length
    apart = float(rng.uniform(12, 0.5 * np.ptp(tree.path_mm[where])))
    target = tree.path_mm[centre] - apart
    second = int(where[np.argmin(np.abs(tree.path_mm[where] - target))])
    lesser = rng.uniform(*SECOND_NECK) * min(1.0, 90 / percent)  # only one neck can be tight
    also = lesser * _profile(_away(tree, second), length, NECK_MM)
    return np.maximum(depth, also), length + apart


def reference_mm(healthy: Tree, centre: int, depth: np.ndarray) -> np.ndarray:
    """Interpolate the diameter that the vessel would have, as quantitative angiography does.

    Args:
        healthy: The tree of n points without its lesions.
        depth: (n,) from `draw_depth`.

    Returns:
        (n,) mm: on the lesion's vessel a straight line through the healthy 12 mm on either side;
        elsewhere, or where fewer than 4 mm are left on a side, the healthy diameter itself.
    """
    width = 2 * healthy.radius
    own = np.flatnonzero(healthy.branch == healthy.branch[centre])
    path = healthy.path_mm[own]
    sick = path[depth[own] > 0]
    before = (path < sick[0]) & (path >= sick[0] - REFERENCE_MM)
    after = (path > sick[-1]) & (path <= sick[-1] + REFERENCE_MM)
    if min(np.ptp(path[side]) if side.any() else 0 for side in (before, after)) < 4:
        return width
    ends = before | after
    x, y = path[ends], width[own][ends]
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    line = y.mean() + slope * (path - x.mean())
    reference = width.copy()
    reference[own] = np.where(depth[own] > 0, line, width[own])
    return reference


def _away(tree: Tree, centre: int, with_branches: bool = False) -> np.ndarray:
    """Way along the vessels to a point; infinite on other branches, unless they leave nearby."""
    own = tree.branch == tree.branch[centre]
    away = np.where(own, np.abs(tree.path_mm - tree.path_mm[centre]), np.inf)
    if with_branches:
        for branch, attached in enumerate(tree.attached):
            if attached >= 0 and own[attached]:
                child = tree.branch == branch
                away[child] = away[attached] + tree.path_mm[child] - tree.path_mm[attached]
    return away


def _profile(away_mm: np.ndarray, length_mm: float, flat_mm: float) -> np.ndarray:
    """Depth of the narrowing: 1 over the neck, falling to 0 at half the length."""
    half = length_mm / 2
    share = np.clip((np.minimum(away_mm, half) - flat_mm) / (half - flat_mm), 0, 1)
    return 0.5 * (1 + np.cos(np.pi * share))


def sideways(rng: np.random.Generator, tree: Tree, index: int) -> np.ndarray:
    """Return a random unit vector across the vessel at a point, (3,)."""
    ahead = tree.points[min(index + 1, len(tree.points) - 1)] - tree.points[max(index - 1, 0)]
    ahead = ahead / np.sqrt((ahead**2).sum())
    across = rng.standard_normal(3)
    across = across - (across * ahead).sum() * ahead
    return across / np.sqrt((across**2).sum())


# Extra way behind a stenosis, per mm: at 90 % contrast takes 1.5 times as long, at 99 % 3.5 times
# (TIMI 2, seen as filling that is clearly late); none up to 75 %. Choice.
SLOWING = {90: 0.5, 99: 2.5}
DETOUR_MM = (20.0, 80.0)  # through collaterals, in mm of normal flow; choice
BACKWARDS = 1.5  # mm of normal flow for a mm filled backwards; choice


def downstream(tree: Tree, index: int) -> np.ndarray:
    """Return which points are fed through one centreline point, (n,) bool.

    Those after it on its branch, and every branch that leaves from one of them.
    """
    fed = (tree.branch == tree.branch[index]) & (np.arange(len(tree.branch)) > index)
    for branch, attached in enumerate(tree.attached):  # parents come before their branches
        if attached >= 0 and fed[attached]:
            fed |= tree.branch == branch
    return fed


def fill_backwards(rng: np.random.Generator, tree: Tree, index: int) -> Tree:
    """Let the bed behind an occlusion fill from its far end, by collaterals of the same side.

    Contrast first runs to the ends of the open main vessels (at least as far as the bed's own end
    is), then takes a drawn detour, enters the bed at its far end and runs back to the occlusion at
    point `index`: `delay_mm` is finite there, and `open` stays False.
    """
    bed = downstream(tree, index)
    if not bed.any():  # the lesion sits at the very end of its vessel
        return tree
    donors = tree.main & tree.open
    far = tree.path_mm[bed].max()
    source = max(far, float((tree.path_mm + tree.delay_mm)[donors].max()))
    back = BACKWARDS * (far - tree.path_mm)
    way = source + rng.uniform(*DETOUR_MM) + back
    return replace(tree, delay_mm=np.where(bed, way - tree.path_mm, tree.delay_mm))
