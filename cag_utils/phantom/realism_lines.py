"""Dark lines of a picture without any mask: how wide, how deep, how sharp they are.

The same settings serve phantom and real pictures, so that whatever the method gets wrong it gets
wrong on both. Ridges are vessels for the most part; catheter and rib edges are among them.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.ndimage import map_coordinates

RIDGE_SIGMAS_PX = (1.5, 2.5, 4.0, 6.0)  # widths of about 3 to 17 px; choice
RIDGE_SHARE = 0.006  # strongest ridge pixels, share of the open field, whatever their contrast
SHORTEST_PX = 25  # shorter ridges are noise; choice
BORDER_PX = 12  # ridges this near the shutters may be the shutters' own; choice
MOST_POINTS = 400  # measured a picture, evenly spread over the ridges; choice, for speed
REACH_PX, STEP_PX, ALONG_PX = 24.0, 0.5, 2  # profile half length, spacing, averaging along the line
SHOULDER = 0.3  # share of the depth by which a profile must fall to have had its shoulder
BEYOND_PX, HALO_PX = (8, 14), (2, 5)  # from the edge: background, and where enhancement overshoots


@dataclass(frozen=True)
class Lines:
    """The strongest dark lines of one picture, each entry one point of a line.

    Attributes:
        width_px: (n,) full width at half depth.
        depth: (n,) grey levels from the background beside the line to its middle.
        edge_px: (n,) way from 20 to 80 % of the depth, mean of both edges.
        overshoot: (n,) how much lighter 2 to 5 px outside the edge is than further out, share of
            the depth; above 0 where edges are enhanced.
        row: (n,) rows of the points.
        column: (n,) columns.
    """

    width_px: np.ndarray
    depth: np.ndarray
    edge_px: np.ndarray
    overshoot: np.ndarray
    row: np.ndarray
    column: np.ndarray


def dark_lines(picture: np.ndarray, field: np.ndarray) -> Lines:
    """Find the strongest dark lines and measure across each of their points.

    Ridges are maxima, across themselves, of the larger eigenvalue of the Hessian at four scales.
    The strongest 0.6 % of the open field's pixels are kept, however weak, in runs of 25 px or more.

    Args:
        picture: (H, W) uint8.
        field: (H, W) bool, from `open_field`.

    Returns:
        The lines' points; empty where there is no line.

    Source:
        Scale-normalised ridges: Lindeberg, IJCV 30(2), 1998.
    """
    strength, across_v, across_u = _ridges(picture.astype(np.float32))
    kernel = np.ones((2 * BORDER_PX + 1,) * 2)
    inner = cv2.erode(np.pad(field, 1).astype(np.uint8), kernel)[1:-1, 1:-1] > 0
    strength[~inner] = 0
    weakest = np.sort(strength, axis=None)[-1 - int(RIDGE_SHARE * field.sum())]
    chosen = strength > max(1e-3, float(weakest))
    _, parts, facts, _ = cv2.connectedComponentsWithStats(chosen.astype(np.uint8), connectivity=8)
    long = facts[:, cv2.CC_STAT_AREA] >= SHORTEST_PX
    long[0] = False
    row, column = np.nonzero(long[parts])
    spread = np.linspace(0, len(row) - 1, min(len(row), MOST_POINTS)).astype(int)
    at = row, column = row[spread], column[spread]
    found = _profiles(picture, row, column, across_v[at], across_u[at])
    return _across(found, row, column)


def _ridges(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strength of dark ridges where they are maximal, 0 elsewhere, and the way across them."""
    best = [np.zeros_like(picture) for _ in range(3)]
    for sigma in RIDGE_SIGMAS_PX:
        smooth = cv2.GaussianBlur(picture, (0, 0), sigma)
        vv, uu, uv = (
            cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=3, scale=0.25) * sigma**2
            for order in ((0, 2), (2, 0), (1, 1))
        )
        angle = 0.5 * np.arctan2(2 * uv, uu - vv)
        value = (uu + vv) / 2 + np.hypot((uu - vv) / 2, uv)
        stronger = value > best[0]
        for target, new in zip(best, (value, np.sin(angle), np.cos(angle)), strict=True):
            target[stronger] = new[stronger]
    strength, across_v, across_u = best
    v, u = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    sides = [cv2.remap(strength, u + w * across_u, v + w * across_v, cv2.INTER_LINEAR)
             for w in (-1, 1)]  # fmt: skip
    strength = np.where((strength >= sides[0]) & (strength > sides[1]), strength, 0)
    return strength, across_v, across_u


def _profiles(picture, row, column, across_v, across_u) -> np.ndarray:
    """(n, 97) grey levels across each point, averaged over five pixels along the line."""
    away = np.arange(-REACH_PX, REACH_PX + STEP_PX / 2, STEP_PX)
    along = np.arange(-ALONG_PX, ALONG_PX + 1)[:, None, None]
    v = row[:, None] + across_v[:, None] * away + along * across_u[:, None]
    u = column[:, None] + across_u[:, None] * away - along * across_v[:, None]
    return map_coordinates(picture.astype(np.float32), [v, u], order=3, mode="nearest").mean(axis=0)


def _across(profiles: np.ndarray, row: np.ndarray, column: np.ndarray) -> Lines:
    """Width, depth, edge and overshoot of each profile; points without two edges are left out."""
    facts = np.full((len(profiles), 4), np.nan)
    for i, profile in enumerate(profiles):
        facts[i] = _measure(profile)
    good = np.isfinite(facts).all(axis=1)
    return Lines(*facts[good].T, row[good], column[good])


def _measure(profile: np.ndarray) -> tuple[float, float, float, float]:
    """Measure one profile: (width, depth, edge, overshoot), NaN where it has no two edges."""
    middle = len(profile) // 2
    low = middle - 4 + int(np.argmin(profile[middle - 4 : middle + 5]))
    sides = profile[low::-1], profile[low:]
    floor = float(profile[low])
    fall = max(1e-6, SHOULDER * float(np.median(profile) - floor))
    tops = [_shoulder(side, fall) for side in sides]
    halves = [_reach(side, (floor + top) / 2) for side, top in zip(sides, tops, strict=True)]
    half = sum(halves) / 2
    beyond = [_mean(side, half + BEYOND_PX[0], half + BEYOND_PX[1]) for side in sides]
    depth = sum(beyond) / 2 - floor
    edges = [[_reach(side, floor + share * (level - floor)) for share in (0.2, 0.5, 0.8)]
             for side, level in zip(sides, beyond, strict=True)]  # fmt: skip
    if not depth > 0:  # also where a profile ends before its background begins
        return (np.nan,) * 4
    near = (
        sum(
            _mean(side, e[1] + HALO_PX[0], e[1] + HALO_PX[1])
            for side, e in zip(sides, edges, strict=True)
        )
        / 2
    )
    edge = (edges[0][2] - edges[0][0] + edges[1][2] - edges[1][0]) / 2
    return edges[0][1] + edges[1][1], depth, edge, (near - floor - depth) / depth


def _shoulder(side: np.ndarray, fall: float) -> float:
    """Highest grey level going outwards before the profile falls again by more than noise does."""
    top = np.maximum.accumulate(side)
    fallen = np.flatnonzero(top - side > fall)
    return float(top[fallen[0]] if len(fallen) else top[-1])


def _reach(side: np.ndarray, level: float) -> float:
    """Pixels outwards until a profile first comes up to a level; NaN if it never does."""
    above = np.flatnonzero(side >= level)
    if not len(above) or above[0] == 0:
        return np.nan
    i = above[0]
    return STEP_PX * (i - (side[i] - level) / (side[i] - side[i - 1]))


def _mean(side: np.ndarray, first_px: float, last_px: float) -> float:
    """Mean of a profile between two distances; NaN if one is unknown or it is too short."""
    if not (np.isfinite(first_px) and last_px / STEP_PX < len(side)):
        return np.nan
    return float(side[int(first_px / STEP_PX) : int(last_px / STEP_PX) + 1].mean())
