"""The left ventricle filled with contrast: a ventriculogram, which shows no coronary artery."""

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
DILUTION = 0.12  # contrast in the ventricle's blood, share of what leaves the catheter
CELLS = 96
# Soft tissue at about 0.02 per mm, and a third of the cavity's chord that is gone: 0.0065 a mm.
EJECTED_PER_MM = 0.0065


def cavity_depth(arm: CArm, state: float, shift_mm: np.ndarray) -> np.ndarray:
    """Return how far rays run through the cavity, (size_px, size_px) float32 mm.

    At a state of contraction, 0 to 1, and a (3,) shift with breathing, mm.
    """
    chord = _coarse_cavity(arm, state, shift_mm)
    return cv2.resize(chord, (arm.size_px, arm.size_px), interpolation=cv2.INTER_LINEAR)


def _coarse_cavity(arm: CArm, state: float, shift_mm: np.ndarray) -> np.ndarray:
    """`cavity_depth` on a grid of 96 x 96 rays."""
    edge = (np.arange(CELLS) + 0.5) / CELLS * arm.size_px - 0.5
    source, rays = arm.rays(*np.meshgrid(edge, edge))
    # the base comes down, the apex stays
    share = atlas.CAVITY_SHARE + state * SHORTENING[0] * HALF_AXES_MM[0] / atlas.LONG_AXIS_MM
    centre = atlas.HEART_BASE_MM + share * atlas.LONG_AXIS_MM * atlas.LONG_AXIS + shift_mm
    half_axes = HALF_AXES_MM * (1 - state * SHORTENING)
    entry, leave = ellipsoid_spans(source, rays.reshape(-1, 3), centre, half_axes, atlas.HEART_AXES)
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
