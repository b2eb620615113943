"""The diagnostic catheter and the contrast that spills back from the ostium."""

import numpy as np

from cag_utils.phantom.atlas import RCA_OSTIUM_MM
from cag_utils.phantom.curves import resample

# From the ostium into the aorta, unit-ish direction of the last centimetre.
_EXIT = {"LCA": np.array([-0.8, 0.35, -0.2]), "RCA": np.array([0.25, 0.2, -0.9])}
OUTER_MM = (0.8, 1.05)  # radius of 5 to 6 French


def ostium_mm(laterality: str) -> np.ndarray:
    """Return the ostium of one side, (3,) mm."""
    return np.zeros(3) if laterality == "LCA" else RCA_OSTIUM_MM


def tip_mm(laterality: str) -> np.ndarray:
    """Return where the engaged catheter's last 3 cm lie, (3, 3) mm."""
    bend = np.array([[0, 0, 0], [0, 3, 0], [0, 14.0, 0]])
    return ostium_mm(laterality) + np.array([[0], [12], [24]]) * _EXIT[laterality] + bend


def draw_catheter(rng: np.random.Generator, laterality: str, radial: bool) -> np.ndarray:
    """Draw the catheter's course from the ostium to the edge of the picture.

    Args:
        rng: Generator; bends the aortic part by 4 mm.
        laterality: LCA or RCA.
        radial: From the arm over the arch, else from the groin through the descending aorta.

    Returns:
        (n, 3) mm, 1.2 mm apart, the tip first.
    """
    tip, away = ostium_mm(laterality), _EXIT[laterality]

    def bent(along, offset):
        return tip + away * along + np.array(offset) + rng.normal(0, 4, 3)

    way = [tip - 2 * away, *tip_mm(laterality)[1:], bent(24, (-6, 45, 4))]
    way[2] = way[2] + rng.normal(0, 3, 3)
    if radial:
        way += [bent(18, (-16, 90, 6)), bent(10, (-40, 130, 5))]
    else:
        way += [bent(5, (4, 85, -25))]
        way += [
            tip + np.array(o)
            for o in ((20, 92, -60), (24, 50, -86), (20, -20, -86), (16, -120, -86))
        ]
    knots = np.array(way, float)
    return resample(knots, np.zeros(len(knots)), 1.2)[0]


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
