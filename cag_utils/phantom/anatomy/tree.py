"""A coronary tree as flat arrays: what the renderer draws and the truth is read from."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from cag_utils.phantom.anatomy.curves import turned

# SYNTAX-score labels of named branches, as ARCADE uses them; all other points take their AHA
# number, which SYNTAX shares from 1 to 15.
SYNTAX_BRANCHES = {
    "D1": "9", "D2": "10", "D3": "10a", "RI": "12", "OM": "12a", "OM2": "12b", "PL": "14",
    "PL2": "14a", "PDL": "15", "PD": "4",
}  # fmt: skip
SYNTAX_RIGHT = {"AV": "16", "PL1": "16a", "PL2": "16b"}
DIGITS = 8  # of a millimetre: coordinates are rounded, so that a last bit decides nothing later
TWIG_ORDER = 5  # orders from here on are twigs, too small to report on


@dataclass(frozen=True)
class Tree:
    """One side's coronary tree as flat arrays over its n centreline points."""

    laterality: str  # LCA or RCA
    dominance: str  # right, balanced or left
    points: np.ndarray  # (n, 3) mm, end-diastole, in the atlas frame
    radius: np.ndarray  # (n,) lumen radius, mm
    segment: np.ndarray  # (n,) AHA number
    order: np.ndarray  # (n,) 0 main vessel, 1 side branch, from TWIG_ORDER twigs
    branch: np.ndarray  # (n,) index into names
    path_mm: np.ndarray  # (n,) way from the ostium along the vessels
    main: np.ndarray  # (n,) main vessels and named side branches wide enough to grade when healthy
    open: np.ndarray  # (n,) False where a total occlusion keeps contrast from coming along
    names: tuple[str, ...]  # of each branch
    attached: np.ndarray  # of each branch, the index of the point it leaves from; -1 at the ostium
    # (n,) extra way that contrast seems to go: slowed flow behind a stenosis, or a detour through
    # collaterals; infinite where none arrives, 0 when healthy
    delay_mm: np.ndarray | None = None
    lesions: tuple = ()  # the narrowings put into the tree so far
    narrowed: np.ndarray | None = None  # (n,) share of the diameter that lesions take, 0 to 1

    def __post_init__(self):
        for name in ("delay_mm", "narrowed"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros(len(self.points)))

    @property
    def syntax(self) -> np.ndarray:
        """(n,) SYNTAX-score label of every point, such as 6, 12a or 16b; str."""
        known = SYNTAX_BRANCHES | (SYNTAX_RIGHT if self.laterality == "RCA" else {})
        own = np.array([known.get(name, "") for name in self.names])[self.branch]
        above = self.branch.copy()  # twigs are named after the branch that bears them
        for branch, attached in enumerate(self.attached):
            if self.names[branch] == "twig":
                above[self.branch == branch] = above[attached]
        inherited = np.array([known.get(name, "") for name in self.names])[above]
        label = np.where(own != "", own, inherited)
        return np.where(label != "", label, self.segment.astype(str))

    def placed(self, size: float, turn_deg: tuple[float, float, float]) -> "Tree":
        """Return the tree of a larger or smaller heart (calibres stay) that lies otherwise.

        Args:
            size: Multiplies every length along the vessels, above 0.
            turn_deg: About the patient's left, head and front axes, around the ostium.

        Raises:
            ValueError: `size` is not above 0.
        """
        if size <= 0:
            raise ValueError(f"size must be above 0, got {size}")
        turn = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
        ostium = self.points[0]
        points = ostium + size * turned(self.points - ostium, turn)
        return replace(
            self, points=np.round(points, DIGITS), path_mm=np.round(size * self.path_mm, DIGITS)
        )

    @property
    def links(self) -> np.ndarray:
        """(m,) indices of points that are joined to the next point."""
        return np.flatnonzero(self.branch[:-1] == self.branch[1:])

    def points_of(self, segment: int) -> np.ndarray:
        """Return the indices of a segment's points on its main vessel, else its widest branch."""
        found = np.flatnonzero((self.segment == segment) & (self.order <= 1))
        found = found[self.order[found] == self.order[found].min(initial=1)]
        if not len(found):
            return found
        owners = self.branch[found]
        size = {b: self.radius[found[owners == b]].sum() for b in np.unique(owners)}
        return found[owners == max(size, key=size.get)]
