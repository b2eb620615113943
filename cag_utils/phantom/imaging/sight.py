"""How well each frame of a cine shows each lesion: what the written rule of `labels` reads."""

import numpy as np

from cag_utils.phantom.anatomy.lesions import Lesion
from cag_utils.phantom.anatomy.tree import Tree
from cag_utils.phantom.imaging.pose import APART_MM, NEAR_MM, WIDE_MM, Pose
from cag_utils.phantom.imaging.shot import Shot
from cag_utils.phantom.labels import VISIBLE, LesionSight


def lesion_sights(
    tree: Tree, shot: Shot, pose: Pose, contrast: np.ndarray, inside: np.ndarray, noise: np.ndarray
) -> tuple[LesionSight, ...]:
    """Measure how t frames show the tree's lesions, one `LesionSight` each, in their order.

    Args:
        contrast: (t, n) subject contrast of the points, log exposure.
        inside: (t, n) bool, the points in the open field.
        noise: (H, W) standard deviation of a pixel's noise, log exposure.
    """
    filled = (contrast >= VISIBLE) & inside
    return tuple(_sight(tree, shot, pose, contrast, filled, inside, noise, x) for x in tree.lesions)


def _sight(tree, shot, pose, contrast, filled, inside, noise, lesion: Lesion) -> LesionSight:
    own = np.flatnonzero(tree.branch == tree.branch[lesion.index])
    is_neck = tree.narrowed[own] >= lesion.percent / 200
    run = own[_run(is_neck, int(np.searchsorted(own, lesion.index)))]
    way_mm = tree.path_mm
    before = own[(own < run[0]) & (way_mm[own] >= way_mm[run[0]] - NEAR_MM)]
    after = own[(own > run[-1]) & (way_mm[own] <= way_mm[run[-1]] + NEAR_MM)]
    if not len(before):  # it begins where its branch does
        before = np.maximum(tree.attached[tree.branch[[lesion.index]]], 0)
    near = own[np.abs(way_mm[own] - way_mm[lesion.index]) <= NEAR_MM]
    neck = np.intersect1d(run, near)
    sides = [contrast[:, side if len(side) else neck] for side in (before, after)]
    closed = lesion.percent == 100  # nothing need flow behind it
    fullness = np.min([np.median(side, axis=1) for side in sides[: 1 if closed else 2]], axis=0)
    at = lesion.index
    width = lesion.reference_mm * pose.scale[:, at]
    lumen = _apparent_lumen(tree, pose, filled, near, at)
    row, column = (np.clip(np.rint(w[:, at]), 0, len(noise) - 1).astype(int)
                   for w in (pose.v, pose.u))  # fmt: skip
    lost = np.clip(width - lumen, 0, width)
    length = np.hypot(np.diff(pose.u[:, neck]), np.diff(pose.v[:, neck])).sum(1)
    moved = np.hypot(pose.du[:, at], pose.dv[:, at])
    # what a round lumen loses of its shadow, summed over the neck, against the noise below it
    shadow = fullness * np.pi / 4 * (1 - (1 - lost / width) ** 2)
    signal = shadow * width * np.sqrt(length / (width + moved)) / noise[row, column]
    return LesionSight(
        lesion=lesion.as_dict(),
        size_px=shot.arm.size_px,
        width_px=np.round(width, 3),
        narrowing_px=np.round(lost, 3),
        filled=np.round(fullness, 4),
        signal=np.round(signal, 2),
        in_field=np.round(inside[:, neck].mean(1), 3),
        covered=np.round(_covered(tree, pose, filled, neck, at), 3),
    )


def _run(flags: np.ndarray, at: int) -> slice:
    """The unbroken run of True around a place, or the place alone."""
    breaks = np.flatnonzero(~flags)
    start = breaks[breaks < at].max(initial=-1) + 1
    return slice(start, max(at + 1, breaks[breaks > at].min(initial=len(flags))))


def _apparent_lumen(tree, pose, filled, near, at) -> np.ndarray:
    """Width of the vessel's outline across its narrowest point, (t,) pixels.

    Seen from the side that is the lumen; the more end on, the more of the filled and wider vessel
    before and behind, within 8 mm, stands in the same place.
    """
    away = np.hypot(pose.u[:, near] - pose.u[:, [at]], pose.v[:, near] - pose.v[:, [at]])
    radius = tree.radius[near] * pose.scale[:, near] * (filled[:, near] | (near == at))
    return 2 * np.sqrt(np.maximum(radius**2 - away**2, 0)).max(axis=1)


def _covered(tree, pose, filled, neck, at) -> np.ndarray:
    """Share of the neck's points, (t,), that lie under another filled vessel.

    As for `pose.overlap`: open main vessels wider than 1 mm, 10 mm or more away in space.
    """
    far = np.linalg.norm(tree.points - tree.points[at], axis=1) >= APART_MM
    other = np.flatnonzero(tree.main & tree.open & (2 * tree.radius >= WIDE_MM) & far)
    found = np.zeros(len(pose.u))
    for i in range(len(found)):
        seen = other[filled[i, other]]
        radius = tree.radius[seen] * pose.scale[i, seen]
        across, down = (w[i, neck][:, None] - w[i, seen] for w in (pose.u, pose.v))
        found[i] = (across**2 + down**2 < radius**2).any(axis=1).mean()
    return found
