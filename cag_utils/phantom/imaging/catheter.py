"""The diagnostic catheter and the contrast that spills back from the ostium."""

import numpy as np

from cag_utils.phantom.anatomy.atlas import RCA_OSTIUM_MM
from cag_utils.phantom.anatomy.curves import resample
from cag_utils.phantom.imaging.ventricle import pigtail_course

OUTER_MM = (0.8, 1.05)  # radius of 5 to 6 French
# Knots from the ostium up the ascending aorta, mm from the ostium of each side: the shapes that
# laboratories use most. The aortic root lies to the right of the left ostium; a Judkins left leans
# on its far wall, an extra back-up lies lower, a Judkins right hangs straight. Choice, by eye.
_SHAPES = {
    "LCA": (
        ((0, 0, 0), (-11, 3, 3), (-27, 10, 7), (-35, 24, 10), (-34, 45, 10)),  # Judkins left
        ((0, 0, 0), (-9, -3, 3), (-24, -4, 7), (-36, 10, 9), (-35, 40, 9)),  # extra back-up
        ((0, 0, 0), (-8, -7, 4), (-19, -12, 7), (-32, 2, 9), (-34, 38, 9)),  # Amplatz left
    ),
    "RCA": (
        ((0, 0, 0), (6, 2, -9), (8, 10, -17), (3, 28, -20), (-6, 52, -20)),  # Judkins right
        ((0, 0, 0), (7, -6, -8), (11, -3, -18), (5, 18, -22), (-5, 48, -21)),  # Amplatz right
    ),
}
_SHAPE_SHARES = {"LCA": (0.65, 0.22, 0.13), "RCA": (0.8, 0.2)}
# The arch and beyond, atlas frame: over to the descending aorta, or out to the right or left arm.
_ARCH = ((-31, 66, 9), (-22, 88, 0))
_WAYS = {
    "femoral": ((0, 97, -25), (20, 84, -58), (23, 40, -80), (20, -30, -84), (16, -140, -86)),
    "right arm": ((-36, 108, 2), (-58, 128, 8), (-95, 138, 0)),
    "left arm": ((2, 104, -20), (22, 118, -30), (58, 136, -12), (100, 140, 0)),
}


def ostium_mm(laterality: str) -> np.ndarray:
    """Return the ostium of one side, (3,) mm."""
    return np.zeros(3) if laterality == "LCA" else RCA_OSTIUM_MM


def tip_mm(laterality: str) -> np.ndarray:
    """Return where the last 3 cm of the usual engaged catheter lie, (3, 3) mm."""
    return ostium_mm(laterality) + np.array(_SHAPES[laterality][0][:3], float)


def draw_catheter(
    rng: np.random.Generator, laterality: str, radial: bool, pigtail: bool = False
) -> np.ndarray:
    """Draw the catheter's course from its tip to the edge of the picture.

    Args:
        rng: Generator; chooses the shape and bends it.
        laterality: LCA or RCA.
        radial: From the arm, mostly the right one, else from the groin.
        pigtail: In the left ventricle instead of an ostium.

    Returns:
        (n, 3) mm, 1.2 mm apart, the tip first.
    """
    shape = int(rng.choice(len(_SHAPES[laterality]), p=_SHAPE_SHARES[laterality]))
    near = np.array(_SHAPES[laterality][shape], float)
    bend = rng.normal(0, 1.8, near.shape) * np.linspace(0, 2, len(near))[:, None]
    near = ostium_mm(laterality) + near * np.exp(rng.normal(0, 0.12)) + bend
    ahead = near[1] - near[0]
    near[0] -= 2 * ahead / np.sqrt((ahead**2).sum())  # engaged by 2 mm
    if pigtail:
        near = np.vstack([pigtail_course(rng), [[-24.0, 25, 9], [-30, 45, 9]]])
    arm = "left arm" if rng.random() < 0.15 else "right arm"
    far = np.vstack([_ARCH, _WAYS[arm if radial else "femoral"]]) + rng.normal(0, 4, 3)
    knots = np.vstack([near, far])
    return resample(np.ascontiguousarray(knots), np.zeros(len(knots)), 1.2)[0]


def follow_ostium(course: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Move the tip with the heart; the shaft stays where the aorta holds it.

    Args:
        course: (n, 3) mm at end-diastole.
        moved: (t, 3) mm, how far the ostium has moved in each frame.

    Returns:
        (t, n, 3) mm.
    """
    grip = np.exp(-np.arange(len(course)) / 30)
    return course[None] + grip[None, :, None] * moved[:, None]


def reflux_discs(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, scale: float, weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw a puff of contrast that spills back into the aortic root.

    Args:
        rng: Generator.
        u: (n,) catheter columns of this frame, the tip first.
        v: (n,) rows.
        scale: Pixels per mm.
        weight: Optical depth of one disc.

    Returns:
        (u, v, radius px, weight), each (14,).
    """
    count = 14
    scatter = rng.normal(0, 2.6, (count, 2)) * scale
    along = np.array([u[9] - u[3], v[9] - v[3]])
    centre = np.array([u[4], v[4]]) + scatter + rng.uniform(0.1, 1.5, (count, 1)) * along
    centre[:, 1] += 0.3 * np.abs(scatter[:, 0])  # contrast is heavy
    return (
        centre[:, 0],
        centre[:, 1],
        rng.uniform(1.6, 4.0, count) * scale,
        np.full(count, weight),
    )
