"""Where a tree is in every frame of a cine, and what of it the frame shows."""

from dataclasses import dataclass, replace

import numpy as np

from cag_utils.phantom.labels import VISIBLE, FrameTruth
from cag_utils.phantom.look import shutter_field
from cag_utils.phantom.motion import beat, breathing, contraction
from cag_utils.phantom.shot import Shot
from cag_utils.phantom.tree import DIGITS, Tree
from cag_utils.phantom.visibility import foreshortening, overlap

PIXEL_DIGITS = 5  # positions are rounded, so that a last bit decides nothing about a frame


@dataclass(frozen=True)
class Pose:
    """Where everything is in each of t frames.

    Attributes:
        points: (t, n, 3) centreline, mm.
        u: (t, n) columns at the start of the pulse, pixels.
        v: (t, n) rows.
        scale: (t, n) pixels per mm.
        du: (t, n) movement within the pulse, pixels.
        dv: (t, n) likewise, rows.
        state: (t,) contraction, 0 to 1.
        breath_mm: (t, 3) shift with breathing.
        clock_s: (t,) seconds of flow since the injection.
    """

    points: np.ndarray
    u: np.ndarray
    v: np.ndarray
    scale: np.ndarray
    du: np.ndarray
    dv: np.ndarray
    state: np.ndarray
    breath_mm: np.ndarray
    clock_s: np.ndarray


def pose_tree(tree: Tree, shot: Shot) -> Pose:
    """Move a tree through a cine and project it.

    Args:
        tree: End-diastolic tree.
        shot: The cine's settings.

    Returns:
        Positions in every frame.
    """
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
        scale=scale,
        du=after_u - u,
        dv=after_v - v,
        state=state,
        breath_mm=breath,
        clock_s=np.round(shot.injection.clock(shot.time_s, shot.rr_s, shot.phase), DIGITS),
    )


def inside_shutters(shot: Shot, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return which picture positions lie in the picture and in the open field.

    Args:
        shot: Its look has the shutters' edges and the field's shape.
        u: (...) columns, pixels.
        v: (...) rows.

    Returns:
        (...) bool: half of the light or more gets there.
    """
    size = shot.arm.size_px
    inside = (u > 0) & (u < size - 1) & (v > 0) & (v < size - 1)
    light = shutter_field(replace(shot.look, shutter_grey=0.0), size)
    row, column = (np.clip(np.rint(w), 0, size - 1).astype(int) for w in (v, u))
    return inside & (light[row, column] >= 0.5)


def frame_truth(tree: Tree, shot: Shot, pose: Pose, contrast: np.ndarray) -> FrameTruth:
    """Measure what each frame shows; shares are weighted by calibre.

    Args:
        tree: The tree; points behind a total occlusion do not count, as nothing reaches them along
            the vessel.
        shot: The cine's settings.
        pose: Positions in every frame.
        contrast: (t, n) subject contrast at every point, as the renderer measures it.

    Returns:
        The truth of every frame.
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
