"""The shape of a narrowing: where it sits in its segment, and how deep it is along the vessel."""

import numpy as np

from cag_utils.phantom.tree import Tree

# mm, from healthy lumen to healthy lumen; over 20 mm is diffuse in the usual classification, the
# rest is choice.
LENGTHS_MM = {"focal": (8, 16), "diffuse": (20, 40), "tandem": (7, 10), "bifurcation": (8, 14)}
NECK_MM = 1.5  # half a neck's length; a point-sized one would be invisible
SECOND_NECK = (0.5, 0.85)  # depth of a tandem's lesser neck, share of the worse one's; choice
REFERENCE_MM = 12.0  # healthy vessel on either side that a reference is interpolated from; choice


def choose_site(
    rng: np.random.Generator, tree: Tree, where: np.ndarray, kind: str
) -> tuple[str, int]:
    """Return the kind that fits into a segment, and the narrowest point.

    Args:
        rng: Generator.
        tree: The tree.
        where: (k,) indices of the segment's points, k >= 6.
        kind: focal, diffuse, tandem or bifurcation.

    Returns:
        (kind, index): focal instead of a tandem in under 24 mm, or of a bifurcation where no
        reportable branch leaves; the worse neck of a tandem is the distal one.
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
        rng: Generator; draws lengths.
        tree: The tree of n points.
        where: (k,) indices of the segment's points.
        centre: The narrowest point.
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
        centre: The narrowest point.
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
