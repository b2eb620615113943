"""Where a tree is in every frame of a cine, and what of it the frame shows."""

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from cag_utils.phantom.anatomy.atlas import HEART_BASE_MM, LONG_AXIS, LONG_AXIS_MM, RCA_OSTIUM_MM
from cag_utils.phantom.anatomy.tree import DIGITS, Tree
from cag_utils.phantom.imaging.display import shutter_field
from cag_utils.phantom.imaging.shot import Shot
from cag_utils.phantom.labels import VISIBLE, FrameTruth

PIXEL_DIGITS = 5  # positions are rounded, so that a last bit decides nothing about a frame


@dataclass(frozen=True)
class Pose:
    """Where everything is in each of t frames."""

    points: np.ndarray  # (t, n, 3) centreline, mm
    u: np.ndarray  # (t, n) columns at the start of the pulse, pixels
    v: np.ndarray  # (t, n) rows
    scale: np.ndarray  # (t, n) pixels per mm
    du: np.ndarray  # (t, n) movement within the pulse, pixels
    dv: np.ndarray  # (t, n) likewise, rows
    state: np.ndarray  # (t,) contraction, 0 to 1
    breath_mm: np.ndarray  # (t, 3) shift with breathing
    clock_s: np.ndarray  # (t,) seconds of flow since the injection


def pose_tree(tree: Tree, shot: Shot) -> Pose:
    """Move an end-diastolic tree through a cine and project it."""
    state = contraction(shot.time_s, shot.rr_s, shot.phase)
    later = contraction(shot.time_s + shot.pulse_s, shot.rr_s, shot.phase)
    breath = breathing(shot.time_s, shot.breath_mm, shot.breath_s, shot.breath_phase)
    points = beat(tree.points, np.concatenate([state, later]))
    points = np.round(points + np.concatenate([breath, breath])[:, None], DIGITS)
    (u, after_u), (v, after_v), (scale, _) = (
        np.split(np.round(w, PIXEL_DIGITS), 2) for w in shot.arm.project(points)
    )
    return Pose(
        points=points[: len(state)],
        u=np.round(u + shot.pan_px[:, :1], PIXEL_DIGITS),
        v=np.round(v + shot.pan_px[:, 1:], PIXEL_DIGITS),
        scale=scale, du=after_u - u, dv=after_v - v, state=state, breath_mm=breath,
        clock_s=np.round(shot.injection.clock(shot.time_s, shot.rr_s, shot.phase), DIGITS),
    )  # fmt: skip


def inside_shutters(shot: Shot, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return which (...) columns and rows lie in the picture and get half the light or more."""
    size = shot.arm.size_px
    inside = (u > 0) & (u < size - 1) & (v > 0) & (v < size - 1)
    light = shutter_field(replace(shot.look, shutter_grey=0.0), size)
    row, column = (np.clip(np.rint(w), 0, size - 1).astype(int) for w in (v, u))
    return inside & (light[row, column] >= 0.5)


def frame_truth(tree: Tree, shot: Shot, pose: Pose, contrast: np.ndarray) -> FrameTruth:
    """Measure what each frame shows; shares are weighted by calibre.

    Points behind a total occlusion do not count, as nothing reaches them along the vessel.
    `contrast` is the (t, n) subject contrast at every point, as the renderer measures it.
    """
    weight = np.where(tree.main & tree.open, tree.radius, 0.0)
    weight = weight / weight.sum()
    inside = inside_shutters(shot, pose.u, pose.v)
    moved = np.hypot(pose.du, pose.dv)[:, tree.main]
    seen = (contrast >= VISIBLE) & inside
    return FrameTruth(
        opacified=(seen * weight).sum(1),
        contrast=(contrast * inside * weight).sum(1),
        in_field=(inside * weight).sum(1),
        blur_mm=np.median(moved, axis=1) * shot.arm.isocentre_pixel_mm,
        foreshortening=foreshortening(tree, pose.points, pose.u, pose.v, pose.scale),
        overlap=overlap(tree, pose.u, pose.v, pose.scale, inside),
        standard_view=shot.standard,
        seen=seen,
    )


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
    """Return which share of the main tree another of its vessels covers, (t,) by calibre, 0 to 1.

    Two pieces of vessel cover each other where their outlines meet in the picture although they
    lie 10 mm or more apart in space, so that neighbours at a fork do not count. Arguments as for
    `foreshortening`; only points `inside` the open field count, (t, n) bool. `wanted` are the
    frames to look at; None looks at up to 8 and interpolates between them.
    """
    count = len(u)
    if wanted is None:
        wanted = np.unique(np.linspace(0, count - 1, min(count, FRAMES)).astype(int))
    at = _sample(tree)
    if len(at) < 2:
        return np.zeros(count)
    gap = sum((w[:, None] - w[None]) ** 2 for w in tree.points[at].T)
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


# Share of the RR interval, and contraction there: 0 end-diastole, 1 end-systole, with diastasis and
# atrial kick. Shape: choice.
_PHASE = (0, 0.05, 0.15, 0.25, 0.34, 0.42, 0.50, 0.58, 0.70, 0.86, 0.94, 1.0)
_CONTRACTION = (0, 0.06, 0.45, 0.85, 1.0, 0.92, 0.60, 0.28, 0.16, 0.14, 0.03, 0)
GRID = 13  # contraction states that are computed; those between are interpolated


def contraction(time_s: np.ndarray, rr_s: float, phase: float = 0.0) -> np.ndarray:
    """Return how far the heart has contracted, 0 (end-diastole) to 1 (end-systole), (...).

    Args:
        time_s: (...) seconds.
        rr_s: Seconds a beat.
        phase: Share of a beat already over at time 0.

    Raises:
        ValueError: `rr_s` is not above 0.
    """
    if rr_s <= 0:
        raise ValueError(f"a beat must last more than 0 s, got {rr_s}")
    return np.interp(np.mod(np.asarray(time_s) / rr_s + phase, 1.0), _PHASE, _CONTRACTION)


def contract(points: np.ndarray, state: float) -> np.ndarray:
    """Move heart points, (n, 3) mm, from end-diastole to a state of contraction, 0 to 1.

    The base descends by up to 13.5 % of the long axis, walls come in by 10 to 15 %, the apex twists
    by 13 degrees against the base; the aortic root with its ostia moves about two thirds as far.

    Source:
        Sizes of the three motions: prototype's choice, order of magnitude from textbooks.
    """
    from_base = points - HEART_BASE_MM
    along = (from_base * LONG_AXIS).sum(1)
    out = from_base - along[:, None] * LONG_AXIS
    height = along / LONG_AXIS_MM
    low = np.clip(height, 0, 1)
    right = np.clip(-out[:, 0] / 45.0, 0, 1)  # the RCA's groove swings most
    near = np.minimum((points**2).sum(1), ((points - RCA_OSTIUM_MM) ** 2).sum(1))
    held = np.exp(-near / (2 * 12.0**2))
    twist = np.deg2rad(state * (-4 + 13 * low)) * (1 - held)
    turned = out * np.cos(twist)[:, None] + np.cross(LONG_AXIS, out) * np.sin(twist)[:, None]
    shrink = 1 - state * (0.10 + 0.05 * low) * (1 - 0.8 * held)
    up = 1 - np.clip(height, -0.2, 1)
    descent = state * 0.135 * up * (1 + 0.55 * right) * (1 - 0.35 * held)
    raised = ((height + descent) * LONG_AXIS_MM)[:, None] * LONG_AXIS
    return HEART_BASE_MM + turned * shrink[:, None] + raised


def beat(points: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Return (n, 3) points at (t,) states of contraction, (t, n, 3) mm, fast.

    Within 0.1 mm of `contract` between the 13 computed states.
    """
    if len(states) < GRID:
        return np.stack([contract(points, float(state)) for state in states])
    grid = np.stack([contract(points, state) for state in np.linspace(0, 1, GRID)])
    at = np.asarray(states) * (GRID - 1)
    cell = np.minimum(at.astype(int), GRID - 2)
    return _between(grid, cell, at - cell)


@njit(cache=True, nogil=True)
def _between(grid, cell, share):
    """Read (k, n, 3) points at k's positions `cell` + `share`, both (t,): (t, n, 3)."""
    found = np.empty((len(cell), *grid.shape[1:]))
    for t in range(len(cell)):
        early, late, into = grid[cell[t]], grid[cell[t] + 1], found[t]
        for n in range(len(into)):
            for i in range(3):
                into[n, i] = early[n, i] * (1 - share[t]) + late[n, i] * share[t]
    return found


def breathing(time_s: np.ndarray, depth_mm: float, period_s: float, phase: float) -> np.ndarray:
    """Return the heart's shift with breathing, (t, 3) mm: down, and a quarter as much to the front.

    Args:
        time_s: (t,) seconds.
        depth_mm: Half the caudal excursion; 0 for a held breath.
        phase: Radians.

    Source:
        Excursion 4.9 +- 1.9 mm caudal (Shechter et al. 2004, IEEE Trans Med Imaging 23:1046).
    """
    wave = depth_mm * np.sin(2 * np.pi * np.asarray(time_s) / period_s + phase)
    return np.stack([0 * wave, -wave, 0.25 * wave], axis=1)
