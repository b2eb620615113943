"""A coronary tree as flat arrays: what the renderer draws and the truth is read from."""

from dataclasses import dataclass

import numpy as np

TWIG_ORDER = 5  # orders from here on are twigs, too small to report on


@dataclass(frozen=True)
class Tree:
    """One side's coronary tree as flat arrays over its n centreline points.

    Attributes:
        laterality: LCA or RCA.
        dominance: right, balanced or left.
        points: (n, 3) mm, end-diastole, in the atlas frame.
        radius: (n,) lumen radius, mm.
        segment: (n,) AHA number.
        order: (n,) 0 main vessel, 1 side branch, from `TWIG_ORDER` twigs.
        branch: (n,) index into `names`.
        path_mm: (n,) way from the ostium along the vessels.
        main: (n,) main vessels and named side branches wide enough to grade when healthy.
        open: (n,) False where a total occlusion keeps contrast out.
        names: Of each branch.
        attached: Of each branch, the index of the point it leaves from; -1 at the ostium.
    """

    laterality: str
    dominance: str
    points: np.ndarray
    radius: np.ndarray
    segment: np.ndarray
    order: np.ndarray
    branch: np.ndarray
    path_mm: np.ndarray
    main: np.ndarray
    open: np.ndarray
    names: tuple[str, ...]
    attached: np.ndarray

    @property
    def links(self) -> np.ndarray:
        """(m,) indices of points that are joined to the next point."""
        return np.flatnonzero(self.branch[:-1] == self.branch[1:])

    def points_of(self, segment: int) -> np.ndarray:
        """Return the indices of a segment's points on its widest reportable branch, or none."""
        found = np.flatnonzero((self.segment == segment) & (self.order <= 1))
        if not len(found):
            return found
        owners = self.branch[found]
        size = {b: self.radius[found[owners == b]].sum() for b in np.unique(owners)}
        return found[owners == max(size, key=size.get)]
