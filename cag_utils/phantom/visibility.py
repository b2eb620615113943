"""How well a view shows a tree: vessels that cross each other, lesions that point at the tube."""

import numpy as np

from cag_utils.phantom.tree import Tree

TIGHT = 50  # percent; milder lesions do not count, as no reader would look for another view
NEAR_MM = 8.0  # neighbourhood of a lesion, each way along the vessel
# Choice: overlap is looked for every 3 mm of vessels wider than 1 mm, in at most 8 frames (it
# changes slowly over a beat), between pieces at least 10 mm apart in space.
STRIDE_MM, WIDE_MM, FRAMES, APART_MM = 3.0, 1.0, 8, 10.0


def foreshortening(tree: Tree, points: np.ndarray, u: np.ndarray, v: np.ndarray,
                   scale: np.ndarray) -> np.ndarray:  # fmt: skip
    """Return how much shorter than they are the lesions' pieces of vessel look.

    Args:
        tree: The tree of n points; its lesions of 50 % and more count.
        points: (t, n, 3) mm.
        u: (t, n) columns, pixels.
        v: (t, n) rows.
        scale: (t, n) pixels per mm.

    Returns:
        (t,) 1 - projected over true length within 8 mm of the lesion, of the worst one: 0 seen
        from the side, 1 end on; 0 without such lesions.
    """
    worst = np.zeros(len(points))
    for lesion in tree.lesions:
        if lesion.percent < TIGHT:
            continue
        own = tree.branch == tree.branch[lesion.index]
        near = own & (np.abs(tree.path_mm - tree.path_mm[lesion.index]) <= NEAR_MM)
        at = np.flatnonzero(near)
        true = np.linalg.norm(np.diff(points[:, at], axis=1), axis=2).sum(1)
        middle = 0.5 * (scale[:, at[1:]] + scale[:, at[:-1]])
        seen = (np.hypot(np.diff(u[:, at]), np.diff(v[:, at])) / middle).sum(1)
        worst = np.maximum(worst, 1 - seen / true)
    return worst


def overlap(tree: Tree, u: np.ndarray, v: np.ndarray, scale: np.ndarray, inside: np.ndarray,
            wanted: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """Return which share of the main tree another of its vessels covers.

    Two pieces of vessel cover each other where their outlines meet in the picture although they
    lie 10 mm or more apart in space, so that neighbours at a fork do not count.

    Args:
        tree: The tree of n points.
        u: (t, n) columns, pixels.
        v: (t, n) rows.
        scale: (t, n) pixels per mm.
        inside: (t, n) bool, in the open field; only such points count.
        wanted: Frames to look at; None looks at up to 8 and interpolates between them.

    Returns:
        (t,) share by calibre, 0 to 1; 0 where nothing is in the field.
    """
    count = len(u)
    if wanted is None:
        wanted = np.unique(np.linspace(0, count - 1, min(count, FRAMES)).astype(int))
    at = _sample(tree)
    if len(at) < 2:
        return np.zeros(count)
    gap = _pairwise(*tree.points[at].T)
    one, other = np.nonzero(np.triu(gap >= APART_MM**2))
    found = [_share(tree.radius[at], *(w[t, at] for w in (u, v, scale, inside)), one, other)
             for t in wanted]  # fmt: skip
    return np.interp(np.arange(count), wanted, found)


def _sample(tree: Tree) -> np.ndarray:
    """Points of wide open main vessels, one about every 3 mm."""
    wide = tree.main & tree.open & (2 * tree.radius >= WIDE_MM)
    cell = np.floor(tree.path_mm / STRIDE_MM)
    first = np.r_[True, (np.diff(cell) != 0) | (np.diff(tree.branch) != 0)]
    return np.flatnonzero(wide & first)


def _pairwise(*columns: np.ndarray) -> np.ndarray:
    """Squared distances between all points, (k, k)."""
    return sum((w[:, None] - w[None]) ** 2 for w in columns)


def _share(radius, u, v, scale, inside, one, other) -> float:
    """Share of one frame, given the pairs that can cover each other."""
    weight = radius * inside
    if not weight.sum():
        return 0.0
    wide = radius * scale
    squared = (u[one] - u[other]) ** 2 + (v[one] - v[other]) ** 2
    meet = (squared < (wide[one] + wide[other]) ** 2) & inside[one] & inside[other]
    covered = np.zeros(len(radius), bool)
    covered[one[meet]] = covered[other[meet]] = True
    return float((weight * covered).sum() / weight.sum())
