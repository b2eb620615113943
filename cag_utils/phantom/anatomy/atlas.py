"""Published coronary geometry: where the arteries run and how wide they are. Data only.

Frame of every coordinate: x to the patient's left, y to the head, z to the front, millimetres,
origin in the ostium of the left coronary artery.

Source: mean 3-D course and spread of Dodge et al. 1988 and lumen diameters of Dodge et al. 1992, as
transcribed in the data tables of the public project corsim; the papers themselves were not read.
One row of that transcription (R3d, which should equal RDo) is said to have x and z swapped; it was
not checked.
Offsets, frequencies and calibres of side branches and small twigs are the prototype's choices.
"""

import math
from typing import NamedTuple

import numpy as np

LATERALITIES = ("LCA", "RCA")
DOMINANCES = ("right", "balanced", "left")
# Frequencies 84.2, 4.8 and 10.9 % (n = 12,558 angiograms, Tehran Heart Center).
DOMINANCE_SHARES = (0.842, 0.049, 0.109)
FEMALE_SCALE = 0.91  # women's arteries are 9 % smaller (Dodge 1992, abstract)

HEART_BASE_MM = np.array([4.0, -40.0, 4.0])  # centre of the atrioventricular ring
APEX_MM = np.array([46.0, -79.0, 77.0])
LONG_AXIS_MM = math.dist(APEX_MM, HEART_BASE_MM)
CAVITY_SHARE = 0.42  # of the way from base to apex: the middle of the left ventricle; choice
LONG_AXIS = (APEX_MM - HEART_BASE_MM) / LONG_AXIS_MM
_ACROSS = np.cross(LONG_AXIS, [0, 1.0, 0]) / np.linalg.norm(np.cross(LONG_AXIS, [0, 1.0, 0]))
HEART_AXES = np.stack([LONG_AXIS, _ACROSS, np.cross(LONG_AXIS, _ACROSS)])  # the heart's own frame


def spherical_mm(distance_cm, theta_deg, phi_deg) -> np.ndarray:
    """Turn Dodge's polar coordinates, cm and degrees, into millimetres, (..., 3).

    Azimuth 0 is to the front, positive to the patient's left; elevation positive to the head.
    """
    theta, phi = np.deg2rad(theta_deg), np.deg2rad(phi_deg)
    unit = (np.cos(phi) * np.sin(theta), np.sin(phi), np.cos(phi) * np.cos(theta))
    return 10 * np.asarray(distance_cm, float)[..., None] * np.stack(unit, axis=-1)


RCA_OSTIUM_MM = spherical_mm(3.7, -25, -23)

# A row a landmark: distance cm, theta deg, phi deg | their SD | lumen mm (men, right dominant)
MAIN_COURSE = {
    "LM": np.array([
        [0.0, 80, 4, 0.00, 0, 0, 4.6],
        [0.7, 80, 4, 0.25, 12, 10, 4.5],
        [1.1, 79, 0, 0.35, 12, 10, 4.5],
    ]),
    "LAD": np.array([
        [1.6, 70, -3, 0.5, 10, 9, 3.7],
        [2.3, 63, -5, 0.6, 9, 9, 3.6],
        [3.0, 59, -5, 0.7, 8, 9, 3.5],
        [4.0, 51, -9, 0.8, 7, 9, 2.9],
        [5.3, 44, -12, 0.8, 7, 9, 2.5],
        [6.5, 39, -17, 0.8, 7, 8, 2.3],
        [8.0, 33, -23, 0.9, 8, 7, 2.0],
        [10.1, 30, -32, 0.9, 8, 7, 1.7],
        [11.8, 31, -40, 1.0, 9, 7, 1.4],
        [12.2, 32, -46, 1.0, 9, 7, 1.4],
        [11.8, 33, -49, 0.9, 10, 7, 1.2],
        [11.4, 34, -52, 0.9, 10, 7, 1.0],
    ]),
    "LCX": np.array([
        [1.4, 86, -12, 0.5, 12, 11, 3.4],
        [1.8, 94, -24, 0.6, 14, 11, 3.4],
        [2.2, 102, -31, 0.7, 15, 10, 3.3],
        [2.6, 107, -33, 0.7, 15, 9, 2.8],
        [3.1, 116, -37, 0.8, 16, 9, 2.8],
        [3.6, 120, -41, 0.9, 18, 8, 2.7],
        [4.1, 126, -45, 0.9, 18, 8, 1.9],
        [4.8, 135, -51, 1.0, 19, 8, 1.7],
        [5.4, 141, -56, 1.0, 20, 8, 1.4],
        [5.7, 156, -67, 0.9, 20, 8, 1.3],  # this row and the next: not when right dominant
        [5.9, 166, -71, 0.9, 25, 8, 1.2],
    ]),
    "RCA": np.array([
        [0.0, -71, -22, 0.0, 0, 0, 4.0],
        [0.5, -71, -22, 0.1, 10, 10, 4.0],
        [1.7, -68, -24, 0.4, 12, 10, 3.9],
        [2.6, -66, -30, 0.6, 12, 9, 3.8],
        [3.4, -69, -39, 0.7, 11, 8, 3.5],
        [4.6, -72, -48, 0.7, 11, 8, 3.4],
        [5.6, -77, -55, 0.8, 12, 7, 3.2],
        [6.2, -84, -62, 0.9, 14, 6, 3.2],
        [6.4, -91, -69, 0.9, 20, 5, 3.1],
        [6.6, -120, -78, 0.9, 12, 4, 3.1],  # this row and the next: not when left dominant
        [6.7, 105, -77, 0.9, 12, 4, 3.1],
    ]),
}  # fmt: skip

# Share of the vessel's length at which each AHA segment ends.
SEGMENT_ENDS = {
    "LM": ((1.0, 5),),
    "LAD": ((0.235, 6), (0.53, 7), (1.0, 8)),
    "LCX": ((0.45, 11), (1.0, 13)),
    "RCA": ((0.33, 1), (0.66, 2), (1.0, 3)),
}


class SideBranch(NamedTuple):
    """A named side branch."""

    name: str  # D1, OM, PD
    parent: str  # vessel it leaves
    at: float  # share of the parent's length
    offsets_mm: tuple[tuple[float, float, float], ...]  # landmarks relative to its origin
    diameters_mm: tuple[float, ...]  # at the origin and at each landmark
    segment: int  # AHA segment
    chance: float = 1.0  # share of hearts that have it
    dominances: tuple[str, ...] = DOMINANCES  # circulations that have it


_SEPTAL = ((-1, -6, 5), (-6.2, -17, 12.4), (-12, -28, 18))
_NOT_LEFT, _NOT_RIGHT = ("right", "balanced"), ("balanced", "left")
SIDE_BRANCHES = {
    "LCA": (
        SideBranch("D1", "LAD", 0.22,
                   ((8, -5, 4.5), (22, -19.8, 12.3), (34, -38, 17), (41, -55, 20)),
                   (2.3, 2.2, 1.8, 1.3, 0.8), 9),
        SideBranch("D2", "LAD", 0.44, ((6.4, -6, 6), (18, -21, 13.5), (25, -36, 18), (29, -50, 20)),
                   (2.1, 1.9, 1.6, 1.1, 0.7), 10),
        SideBranch("D3", "LAD", 0.60, ((4.1, -6.1, 4.8), (14, -19, 11.8), (20, -31, 15)),
                   (1.7, 1.5, 1.1, 0.7), 10, 0.6),
        SideBranch("S1", "LAD", 0.24, _SEPTAL, (1.6, 1.36, 1.04, 0.45), 7),
        SideBranch("S2", "LAD", 0.36, _SEPTAL, (1.3, 1.10, 0.85, 0.45), 7),
        SideBranch("S3", "LAD", 0.52, _SEPTAL, (1.2, 1.02, 0.78, 0.45), 7),
        SideBranch("S4", "LAD", 0.64, _SEPTAL, (1.0, 0.85, 0.65, 0.45), 8),
        SideBranch("OM", "LCX", 0.45, ((9, -6, -2), (20, -19, 1), (27, -36, 7), (29, -54, 15)),
                   (2.6, 2.5, 2.0, 1.5, 0.9), 12),
        SideBranch("RI", "LCX", 0.02, ((13.6, -7, 0.3), (34, -29, 7), (42, -48, 14)),
                   (2.5, 2.3, 1.8, 1.0), 12, 0.35),
        SideBranch("PL", "LCX", 0.72, ((5, -7, -3), (12, -24, -1), (15, -40, 8), (15, -52, 16)),
                   (2.1, 1.9, 1.6, 1.2, 0.7), 14),
        SideBranch("OM2", "LCX", 0.62, ((6, -8, -3), (14, -25, 0), (18, -42, 8)),
                   (2.0, 1.8, 1.4, 0.8), 12, 0.5),
        SideBranch("PL2", "LCX", 0.90, ((2, -7, 0), (6, -20, 6), (8, -30, 16)),
                   (1.7, 1.5, 1.2, 0.7), 14, 1.0, _NOT_RIGHT),
        SideBranch("PDL", "LCX", 0.995, ((-3, -7, 6), (3, -19, 22), (12, -26, 38), (20, -30, 52)),
                   (2.5, 2.3, 1.9, 1.4, 0.8), 15, 1.0, ("left",)),
    ),
    "RCA": (
        SideBranch("CB", "RCA", 0.03, ((-2, 5, 14), (10, 3, 28), (20, -4, 36)),
                   (1.3, 1.2, 0.9, 0.5), 1),
        SideBranch("SN", "RCA", 0.09, ((-3, 9, -14), (2, 15, -30)), (1.2, 1.0, 0.5), 1, 0.6),
        SideBranch("RV1", "RCA", 0.30, ((-2, -13, 17), (6, -25, 33), (18, -34, 44)),
                   (1.5, 1.3, 1.0, 0.5), 1),
        SideBranch("RV2", "RCA", 0.48, ((2, -13, 17), (14, -24, 33)), (1.3, 1.1, 0.6), 2, 0.5),
        SideBranch("AM", "RCA", 0.63, ((9, -11, 20), (30, -19, 36), (52, -22, 42)),
                   (1.7, 1.6, 1.2, 0.6), 2),
        SideBranch("PD", "RCA", 0.995, ((-3, -4, 2), (1, -10, 9), (12, -14, 24), (24, -15, 40),
                   (33, -15, 54)), (2.4, 2.3, 2.0, 1.6, 1.2, 0.7), 4, 1.0, _NOT_LEFT),
        SideBranch("AV", "RCA", 0.999, ((-3, 3, -10), (0, 8, -20), (9, 12, -30)),
                   (2.5, 2.3, 2.1, 1.6), 4, 1.0, ("right",)),
        SideBranch("PL1", "AV", 0.45, ((5, -7, -2), (18, -15, 0), (34, -23, 6), (46, -32, 16)),
                   (1.9, 1.7, 1.5, 1.2, 0.7), 4, 1.0, ("right",)),
        SideBranch("PL2", "AV", 0.97, ((5, -6, -5), (18, -13, -8), (34, -21, -6), (48, -31, 4)),
                   (2.0, 1.8, 1.6, 1.2, 0.7), 4, 1.0, ("right",)),
    ),
}  # fmt: skip


class Twigs(NamedTuple):
    """A crop of small branches along one vessel: mean number, diameter and length ranges in mm."""

    parent: str
    mean_count: float
    diameters_mm: tuple[float, float]
    lengths_mm: tuple[float, float]
    septal: bool = False


TWIGS = {
    "LCA": (
        Twigs("LAD", 16, (0.45, 1.0), (8, 32)),
        Twigs("LAD", 9, (0.50, 0.95), (8, 36), septal=True),
        Twigs("LCX", 11, (0.50, 1.1), (8, 34)),
        Twigs("OM", 8, (0.45, 0.9), (8, 32)),
        Twigs("OM2", 5, (0.45, 0.8), (8, 28)),
        Twigs("D1", 8, (0.45, 0.9), (8, 32)),
        Twigs("D2", 6, (0.45, 0.8), (8, 32)),
        Twigs("PL", 6, (0.45, 0.8), (8, 32)),
    ),
    "RCA": (
        Twigs("RCA", 11, (0.45, 1.1), (8, 34)),
        Twigs("AM", 5, (0.45, 0.8), (8, 32)),
        Twigs("AV", 5, (0.45, 0.9), (8, 32)),
        Twigs("PL1", 4, (0.45, 0.8), (8, 28)),
        Twigs("PL2", 6, (0.45, 0.8), (8, 32)),
        Twigs("PD", 8, (0.45, 0.8), (8, 20), septal=True),
        Twigs("PD", 4, (0.45, 0.8), (8, 26)),
    ),
}
