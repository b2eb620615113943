"""The left ventricle or the aorta filled with contrast: cines that show no coronary artery."""

import cv2
import numpy as np

from cag_utils.phantom.anatomy import atlas
from cag_utils.phantom.imaging.carm import CArm
from cag_utils.phantom.imaging.chest import ellipsoid_spans
from cag_utils.phantom.imaging.detector import Detector

# Cavity at end-diastole, half axes along and across; it loses 22 % of its length and 38 % of its
# width in systole, an ejection fraction of about 0.7. Choice, order of magnitude from textbooks.
HALF_AXES_MM = np.array([40.0, 24.0, 24.0])
SHORTENING = np.array([0.22, 0.38, 0.38])
DILUTION, AORTA_DILUTION = 0.12, 0.15  # contrast in the blood, share of what leaves the catheter
CELLS = 96
# Centre line and radius, mm, from the sinuses over the arch to the descending aorta, atlas frame:
# the root lies between both ostia, 34 mm wide. Choice, order of magnitude from textbooks.
AORTA_MM = np.array([
    [-11, -8, 15, 17], [-15, 6, 15, 16], [-21, 24, 13, 15], [-29, 50, 10, 14.5], [-29, 72, 4, 14],
    [-18, 92, -12, 13.5], [-2, 96, -34, 13], [8, 78, -60, 12], [10, 30, -72, 11.5],
    [8, -60, -73, 11],
])  # fmt: skip
BALL_MM = 4.0  # from one to the next of the balls that the aorta is made of
# Soft tissue at about 0.02 per mm, and a third of the cavity's chord that is gone: 0.0065 a mm.
EJECTED_PER_MM = 0.0065


def flood_depth(
    kind: str, arm: CArm, state: float, shift_mm: np.ndarray
) -> tuple[float, np.ndarray]:
    """Return the dilution of a ventriculogram's or aortogram's contrast, and the way through it.

    State and shift as `cavity_depth` has them; the way is (size_px, size_px) float32 mm.
    """
    if kind == "ventriculogram":
        return DILUTION, cavity_depth(arm, state, shift_mm)
    return AORTA_DILUTION, aorta_depth(arm, shift_mm)


def aorta_depth(arm: CArm, shift_mm: np.ndarray) -> np.ndarray:
    """Return how far rays run through the aorta, (size_px, size_px) float32 mm.

    A row of balls: where rays cross several, the longest way counts.
    """
    along = np.r_[0, np.hypot.reduce(np.diff(AORTA_MM[:, :3], axis=0), axis=1).cumsum()]
    at = np.arange(0, along[-1], BALL_MM)
    x, y, z, radius = (np.interp(at, along, column) for column in AORTA_MM.T)
    source, rays = _coarse_rays(arm)
    chord = np.zeros(len(rays))
    for centre, r in zip(np.stack([x, y, z], 1) + shift_mm, radius, strict=True):
        entry, leave = ellipsoid_spans(source, rays, centre, np.full(3, r), np.eye(3))
        chord = np.maximum(chord, leave - entry)
    return _to_picture(chord, arm)


def cavity_depth(arm: CArm, state: float, shift_mm: np.ndarray) -> np.ndarray:
    """Return how far rays run through the cavity, (size_px, size_px) float32 mm.

    At a state of contraction, 0 to 1, and a (3,) shift with breathing, mm.
    """
    return _to_picture(_coarse_cavity(arm, state, shift_mm), arm)


def _coarse_rays(arm: CArm) -> tuple[np.ndarray, np.ndarray]:
    """The source, (3,) mm, and a grid of 96 x 96 rays, (9216, 3)."""
    edge = (np.arange(CELLS) + 0.5) / CELLS * arm.size_px - 0.5
    source, rays = arm.rays(*np.meshgrid(edge, edge))
    return source, rays.reshape(-1, 3)


def _to_picture(chord: np.ndarray, arm: CArm) -> np.ndarray:
    chord = chord.reshape(CELLS, CELLS).astype(np.float32)
    return cv2.resize(chord, (arm.size_px, arm.size_px), interpolation=cv2.INTER_LINEAR)


def _coarse_cavity(arm: CArm, state: float, shift_mm: np.ndarray) -> np.ndarray:
    """`cavity_depth` on a grid of 96 x 96 rays."""
    source, rays = _coarse_rays(arm)
    # the base comes down, the apex stays
    share = atlas.CAVITY_SHARE + state * SHORTENING[0] * HALF_AXES_MM[0] / atlas.LONG_AXIS_MM
    centre = atlas.HEART_BASE_MM + share * atlas.LONG_AXIS_MM * atlas.LONG_AXIS + shift_mm
    half_axes = HALF_AXES_MM * (1 - state * SHORTENING)
    entry, leave = ellipsoid_spans(source, rays, centre, half_axes, atlas.HEART_AXES)
    return (leave - entry).reshape(CELLS, CELLS).astype(np.float32)


def heart_swell(arm: CArm, detector: Detector) -> np.ndarray:
    """Return how much lighter the heart's shadow is at the end of systole.

    The heart ejects about a tenth of its volume, so rays through its middle have less to cross.

    Returns:
        (96, size_px) float32 grey levels, 0 and more: smooth, so that few rows do.
    """
    relaxed = _coarse_cavity(arm, 0.0, np.zeros(3))
    soft = cv2.GaussianBlur(relaxed, (0, 0), 0.03 * CELLS)  # thin at its rim
    scatter = cv2.resize(detector.scatter, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    swell = detector.gain * EJECTED_PER_MM * soft / (1 + scatter)
    return cv2.resize(swell, (arm.size_px, CELLS), interpolation=cv2.INTER_LINEAR)
