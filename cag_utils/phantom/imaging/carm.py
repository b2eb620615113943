"""The C-arm: where source and detector stand, and where a point lands on the picture."""

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

# Name, primary angle, secondary angle (degrees), how often. Standard teaching views of each side;
# frequencies: choice.
VIEWS = {
    "LCA": (
        ("RAO CAU", -28, -25, 0.20), ("AP CAU", -3, -30, 0.15), ("LAO CAU", 45, -30, 0.15),
        ("AP CRA", 0, 35, 0.17), ("RAO CRA", -30, 28, 0.14), ("LAO CRA", 40, 25, 0.12),
        ("LAT", 90, 0, 0.07),
    ),
    "RCA": (
        ("LAO", 45, 0, 0.38), ("LAO CRA", 33, 22, 0.17), ("RAO", -30, 0, 0.22),
        ("AP CRA", 0, 30, 0.23),
    ),
}  # fmt: skip
SCATTER_DEG = (6.5, 5.5)  # spread of both angles about a standard view; choice
ODD_DEG = 26.0  # an odd view lies at least this far from every standard one
_ODD_RANGE_DEG = ((-60, 95), (-42, 42))


@dataclass(frozen=True)
class CArm:
    """One position of the C-arm, DICOM's patient-centred conventions."""

    primary_deg: float  # LAO positive, RAO negative (DICOM PositionerPrimaryAngle)
    secondary_deg: float  # CRA positive, CAU negative (DICOM PositionerSecondaryAngle)
    source_detector_mm: float  # SID
    source_isocentre_mm: float  # SOD, taken as the distance to the patient
    pixel_mm: float  # pixel pitch at the detector
    size_px: int  # rows and columns
    isocentre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)  # the arm turns about it
    shift_px: tuple[float, float] = (0.0, 0.0)  # of the isocentre, to the right and down

    @property
    def magnification(self) -> float:
        """Size at the detector over size at the isocentre."""
        return self.source_detector_mm / self.source_isocentre_mm

    @property
    def isocentre_pixel_mm(self) -> float:
        """Pixel size at the isocentre, mm."""
        return self.pixel_mm / self.magnification

    @property
    def axes(self) -> np.ndarray:
        """(3, 3) rows: picture right, picture up, and from the patient to the detector."""
        a, b = np.deg2rad([self.primary_deg, self.secondary_deg])
        to_detector = np.array([np.sin(a) * np.cos(b), np.sin(b), np.cos(a) * np.cos(b)])
        up = np.array([-np.sin(a) * np.sin(b), np.cos(b), -np.cos(a) * np.sin(b)])
        return np.stack([np.cross(up, to_detector), up, to_detector])

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Project points of the patient onto the picture.

        Args:
            points: (..., 3) mm, atlas frame.

        Returns:
            (u, v, scale), each (...): column and row in pixels (0, 0 is the middle of the first
            pixel), and pixels per millimetre at that depth.

        Raises:
            ValueError: A point lies at or behind the X-ray source.
        """
        points = np.asarray(points, float)
        middle = (self.size_px - 1) / 2
        u, v, scale, nearest = _project(
            np.ascontiguousarray(points).reshape(-1, 3), np.array(self.isocentre_mm), self.axes,
            self.source_isocentre_mm, self.source_detector_mm / self.pixel_mm,
            middle + self.shift_px[0], middle + self.shift_px[1],
        )  # fmt: skip
        if nearest <= 0:
            raise ValueError(f"a point lies {-nearest:.0f} mm behind the X-ray source")
        shape = points.shape[:-1]
        return u.reshape(shape), v.reshape(shape), scale.reshape(shape)

    def rays(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source, (3,) mm, and (..., 3) unit rays through (...) columns and rows."""
        right, up, ahead = self.axes
        middle = (self.size_px - 1) / 2
        x = (u - middle - self.shift_px[0]) * self.pixel_mm
        y = (middle + self.shift_px[1] - v) * self.pixel_mm
        ray = x[..., None] * right + y[..., None] * up + self.source_detector_mm * ahead
        source = np.array(self.isocentre_mm) - self.source_isocentre_mm * ahead
        return source, ray / np.linalg.norm(ray, axis=-1, keepdims=True)


@njit(cache=True, nogil=True, error_model="numpy")
def _project(points, isocentre, axes, source_isocentre, enlarge, middle_u, middle_v):
    """Columns, rows and scales of (n, 3) points, and how far from the source the nearest lies."""
    count = len(points)
    u, v, scale, nearest = np.empty(count), np.empty(count), np.empty(count), np.inf
    for n in range(count):
        right = up = depth = 0.0
        for i in range(3):
            away = points[n, i] - isocentre[i]
            right += away * axes[0, i]
            up += away * axes[1, i]
            depth += away * axes[2, i]
        nearest = min(nearest, depth + source_isocentre)
        scale[n] = enlarge / (depth + source_isocentre)
        u[n] = middle_u + right * scale[n]
        v[n] = middle_v - up * scale[n]
    return u, v, scale, nearest


def draw_carm(
    rng: np.random.Generator,
    laterality: str,
    size_px: int,
    view: str | None = None,
    odd: bool = False,
) -> tuple[str, CArm]:
    """Draw a standard view with the scatter of real laboratories, or an odd one.

    Args:
        view: A name of `VIEWS`, or None to draw one.
        odd: Draw angles far from every standard view; the name is then "odd".

    Returns:
        (view name, arm about the origin).

    Raises:
        ValueError: This side has no such view.

    Source:
        Distances: the headers of 45 real XA cines, read once for this study: SID 1090 (1020 to
        1200), SOD 781 (691 to 872) mm, pixel 0.279 mm at 512 px. Scatter of the angles and field of
        view: choice.
    """
    table = {name: (primary, secondary) for name, primary, secondary, _ in VIEWS[laterality]}
    shares = [share for *_, share in VIEWS[laterality]]
    name = view or str(rng.choice(list(table), p=shares))
    if name not in table:
        raise ValueError(f"{laterality} views are {', '.join(table)}; got {name!r}")
    angles = np.array(table[name]) + rng.normal(0, SCATTER_DEG)
    if odd:
        name, angles = "odd", _odd_angles(rng, laterality)
    arm = CArm(
        primary_deg=float(angles[0]),
        secondary_deg=float(angles[1]),
        source_detector_mm=float(np.clip(rng.normal(1090, 55), 1020, 1200)),
        source_isocentre_mm=float(np.clip(rng.normal(781, 45), 691, 872)),
        pixel_mm=float(rng.uniform(132, 192)) / size_px,
        size_px=size_px,
    )
    return name, arm


def _odd_angles(rng, laterality: str) -> np.ndarray:
    """Angles that no teaching view comes near to, degrees."""
    known = np.array([angles[:2] for _, *angles in VIEWS[laterality]], float)
    low, high = np.transpose(_ODD_RANGE_DEG)
    while True:
        angles = rng.uniform(low, high)
        if np.hypot(*(known - angles).T).min() >= ODD_DEG:
            return angles


def aim(arm: CArm, points: np.ndarray, keep: np.ndarray | None = None) -> CArm:
    """Move table and arm so that an artery, (n, 3) mm, fills the picture's middle.

    `keep`, (k, 3) mm, must not fall off the edge, such as the catheter's tip.
    """
    centre = (np.percentile(points, 4, axis=0) + np.percentile(points, 96, axis=0)) / 2
    still = replace(arm, isocentre_mm=tuple(map(float, centre)), shift_px=(0.0, 0.0))
    ends = [np.percentile(w, [2, 98]) for w in still.project(points)[:2]]
    if keep is not None:
        ends = [np.r_[e, w] for e, w in zip(ends, still.project(keep)[:2], strict=True)]
    middle = (arm.size_px - 1) / 2
    return replace(still, shift_px=tuple(float(middle - (e.min() + e.max()) / 2) for e in ends))


def crop(arm: CArm, points: np.ndarray, share: float, towards: int) -> CArm:
    """Shift the table until only a share of an artery is left in the picture.

    Args:
        points: (n, 3) centreline, mm.
        share: Of the points that stay in the picture, 0 to 1.
        towards: 0 off the right edge, 1 off the lower, 2 off the left, 3 off the upper one.

    Raises:
        ValueError: `share` is not 0 to 1 or `towards` not 0 to 3.
    """
    if not 0 <= share <= 1 or towards not in range(4):
        raise ValueError(f"share must be 0 to 1 and towards 0 to 3, got {share} and {towards}")
    at = arm.project(points)[towards % 2]
    shift = list(arm.shift_px)
    if towards < 2:
        shift[towards] += arm.size_px - 1 - float(np.quantile(at, share))
    else:
        shift[towards - 2] -= float(np.quantile(at, 1 - share))
    return replace(arm, shift_px=tuple(shift))
