"""What lies in the chest beside the patient: catheter, sternal wires, leads, wires, stents."""

from dataclasses import dataclass

import numpy as np

from cag_utils.phantom.anatomy import atlas
from cag_utils.phantom.anatomy.curves import resample
from cag_utils.phantom.anatomy.tree import Tree
from cag_utils.phantom.streams import Streams

# Attenuation per mm at about 60 keV (NIST): steel about 1, platinum 5 and more; wound and coated
# wires hold less metal than their outline (choice).
STEEL_PER_MM, COIL_PER_MM, CABLE_PER_MM, STENT_PER_MM = 0.9, 2.0, 0.25, 0.28
GUIDE_WIRE_MM = 0.18  # radius of a 0.014 inch wire
TIP_MM = 30.0  # radiopaque coil at a guide wire's end
STENT_WALL_MM = 0.1
STEP_MM = 1.0


@dataclass(frozen=True)
class Hardware:
    """What a patient carries."""

    sternal_wires: int = 0  # loops that close the breast bone after open surgery
    leads: int = 0  # pacemaker or defibrillator leads
    electrodes: int = 0  # ECG electrodes with cables on the skin
    stents: int = 0  # old stents, that many in each side's tree
    seed: int = 0  # of where it lies, so that every cine of a patient shows it in the same place

    @property
    def streams(self) -> Streams:
        """Streams that are the same in every cine, one a device."""
        return Streams((self.seed,))


@dataclass(frozen=True)
class Strand:
    """One wire."""

    points: np.ndarray  # (n, 3) mm at end-diastole
    radius_mm: float  # of the wire
    per_mm: float  # attenuation
    hold: np.ndarray  # (n,) how far each point follows the heart, 0 to 1


def draw_hardware(
    rng: np.random.Generator, surgery: bool | None = None, stented: bool | None = None
) -> Hardware:
    """Draw what a patient carries; frequencies: choice.

    Args:
        surgery: Whether the breast bone was ever opened; None draws it (6 %).
        stented: Whether there is an old stent; None draws it (15 %).
    """
    chance = rng.random(4)
    surgery = chance[0] < 0.06 if surgery is None else surgery
    stented = chance[1] < 0.15 if stented is None else stented
    return Hardware(
        sternal_wires=int(rng.integers(4, 8)) * int(surgery),
        leads=int(rng.integers(1, 3)) * int(chance[2] < 0.06),
        electrodes=int(rng.integers(1, 4)) * int(chance[3] < 0.18),
        stents=int(rng.integers(1, 3)) * int(stented),
        seed=int(rng.integers(2**31)),
    )


def fixed_strands(hardware: Hardware, scale: float) -> list[Strand]:
    """Draw the wires that move with a chest of this scale: sternal loops, cables, electrodes."""
    wires, pads, own = hardware.sternal_wires, hardware.electrodes, hardware.streams
    return [
        *(_sternal_loop(own("sternal wire", i), i, scale) for i in range(wires)),
        *(strand for i in range(pads) for strand in _electrode(own("electrode", i), scale)),
    ]


def _sternal_loop(rng, level: int, scale: float) -> Strand:
    """A loop around the breast bone, 20 mm below the last one, ends twisted in front."""
    turn = np.linspace(0.15, 2 * np.pi - 0.15, 24)
    size = rng.uniform(9, 14), rng.uniform(3, 7), rng.uniform(5, 8)
    sway = turn + rng.normal(0, 0.4)
    loop = np.stack([size[0] * np.sin(turn), size[1] * np.sin(sway), size[2] * np.cos(turn)], 1)
    knot = loop[-1] + np.cumsum(rng.normal([0, 1, 0], [0.8, 0.6, 0.3], (5, 3)), axis=0)
    where = np.array([-16, 40 - 20 * level, 92 * scale]) + rng.normal(0, [1.5, 2.5, 1])
    return _strand(np.vstack([loop, knot]) + where, rng.uniform(0.35, 0.5), STEEL_PER_MM)


def _electrode(rng, scale: float) -> list[Strand]:
    """A cable over the skin of the chest and the disc it ends in."""
    start = np.array(
        [rng.uniform(-120, 120), rng.uniform(-120, 60), rng.choice([-125, 108]) * scale]
    )
    away = rng.normal(0, [1.0, 0.7, 0.0])
    away = away / np.sqrt((away**2).sum())
    along = np.linspace(0, 260, 9)[:, None]
    bend = np.cumsum(rng.normal(0, [7, 7, 0.5], (9, 3)), axis=0)
    cable = _strand(start + away * along + bend, rng.uniform(0.35, 0.8), CABLE_PER_MM)
    spiral = np.linspace(0, 6 * np.pi, 40)[:, None]
    disc = start + spiral / 3.5 * np.hstack([np.cos(spiral), np.sin(spiral), 0 * spiral])
    return [cable, _strand(disc, 1.0, 0.35 * CABLE_PER_MM)]


def lead_strands(hardware: Hardware) -> list[Strand]:
    """Draw pacemaker leads, from the upper vein into the right heart; the tip beats with it."""
    strands = []
    for number in range(hardware.leads):
        rng = hardware.streams("lead", number)
        vein = np.array(
            [[60, 150, 20], [20, 120, 0], [-32, 95, -5], [-46, 40, -8], [-50, 0, -2]], float
        )
        ventricle = [[-40, -45, 18], [-5, -72, 40], [22, -80, 58]]
        atrium = [[-46, -25, 8], [-38, -20, 26], [-36, -4, 30]]
        knots = np.vstack([vein, atrium if number else ventricle]) + rng.normal(0, 4, (8, 3))
        strand = _strand(knots, rng.uniform(0.7, 1.0), 0.35 * STEEL_PER_MM)
        hold = np.clip((np.arange(len(strand.points)) / len(strand.points) - 0.55) / 0.3, 0, 1)
        strands.append(Strand(strand.points, strand.radius_mm, strand.per_mm, hold))
    return strands


def _strand(knots: np.ndarray, radius_mm: float, per_mm: float) -> Strand:
    """A smooth wire through knots that the heart does not move."""
    points = resample(np.ascontiguousarray(knots, float), np.zeros(len(knots)), STEP_MM)[0]
    return Strand(points, float(radius_mm), per_mm, np.zeros(len(points)))


def guide_wire(rng: np.random.Generator, tree: Tree) -> np.ndarray:
    """Choose a guide wire's way down a main vessel.

    Returns:
        (k,) indices of centreline points from the ostium on, before any total occlusion.
    """
    mains = [b for b, name in enumerate(tree.names) if name in ("LAD", "LCX", "RCA")]
    branch = int(rng.choice(mains))
    way = np.flatnonzero(tree.branch == branch)
    if tree.attached[branch] >= 0:
        stem = np.flatnonzero(tree.branch == tree.branch[tree.attached[branch]])
        way = np.r_[stem[stem <= tree.attached[branch]], way]
    way = way[tree.open[way]]
    return way[: max(8, int(len(way) * rng.uniform(0.6, 0.95)))]


def stent_pieces(hardware: Hardware, tree: Tree) -> list[np.ndarray]:
    """Choose where old stents lie; one that would not fit is left out.

    Returns:
        For each stent the indices of its centreline points, 12 to 30 mm of a main vessel.
    """
    mains = [b for b, name in enumerate(tree.names) if name in ("LAD", "LCX", "RCA")]
    pieces = []
    for number in range(hardware.stents):
        rng = hardware.streams("stent", tree.laterality, number)
        way = np.flatnonzero(tree.branch == int(rng.choice(mains)))
        way = way[tree.radius[way] > 0.9]
        length, share = rng.uniform(12, 30), rng.uniform(0.05, 0.6)
        if not len(way):
            continue
        inside = tree.path_mm[way] - tree.path_mm[way[int(share * len(way))]]
        piece = way[(inside >= 0) & (inside <= length)]
        if len(piece) >= 6:
            pieces.append(piece)
    return pieces


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
    return np.zeros(3) if laterality == "LCA" else atlas.RCA_OSTIUM_MM


def tip_mm(laterality: str) -> np.ndarray:
    """Return where the last 3 cm of the usual engaged catheter lie, (3, 3) mm."""
    return ostium_mm(laterality) + np.array(_SHAPES[laterality][0][:3], float)


def draw_catheter(
    rng: np.random.Generator, laterality: str, radial: bool, kind: str = ""
) -> np.ndarray:
    """Draw the catheter's course from its tip to the picture's edge, (n, 3) mm, 1.2 mm apart.

    Args:
        rng: Generator; chooses the shape and bends it.
        radial: From the arm, mostly the right one, else from the groin.
        kind: Of cine; a ventriculogram's and an aortogram's pigtail lies in no ostium.
    """
    shape = int(rng.choice(len(_SHAPES[laterality]), p=_SHAPE_SHARES[laterality]))
    near = np.array(_SHAPES[laterality][shape], float)
    bend = rng.normal(0, 1.8, near.shape) * np.linspace(0, 2, len(near))[:, None]
    near = ostium_mm(laterality) + near * np.exp(rng.normal(0, 0.12)) + bend
    ahead = near[1] - near[0]
    near[0] -= 2 * ahead / np.sqrt((ahead**2).sum())  # engaged by 2 mm
    if kind in _CURLED:
        near = np.vstack([_pigtail_course(rng, kind), [[-24.0, 25, 9], [-30, 45, 9]]])
    arm = "left arm" if rng.random() < 0.15 else "right arm"
    far = np.vstack([_ARCH, _WAYS[arm if radial else "femoral"]]) + rng.normal(0, 4, 3)
    knots = np.vstack([near, far])
    return resample(np.ascontiguousarray(knots), np.zeros(len(knots)), 1.2)[0]


def follow_ostium(course: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Move the tip with the heart; the shaft stays where the aorta holds it.

    A (n, 3) course and (t, 3) ways that the ostium has gone, mm, give (t, n, 3) mm.
    """
    grip = np.exp(-np.arange(len(course)) / 30)
    return course[None] + grip[None, :, None] * moved[:, None]


def reflux_discs(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, scale: float, weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw a puff of contrast that spills back into the aortic root.

    Args:
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
    return *centre.T, rng.uniform(1.6, 4.0, count) * scale, np.full(count, weight)


VALVE_MM = np.array([-12.0, -12, 8])  # the aortic valve
_CURLED = {
    "ventriculogram": atlas.HEART_BASE_MM
    + atlas.CAVITY_SHARE * atlas.LONG_AXIS_MM * atlas.LONG_AXIS,
    "aortogram": VALVE_MM + [-2, 14, 3],
}  # where a pigtail's curl lies, mm


def _pigtail_course(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Knots of a pigtail catheter in the ventricle or above the valve, tip first, (k, 3) mm."""
    middle = _CURLED[kind]
    turn = np.linspace(0, 1.7 * np.pi, 9)[:, None]
    curl = 6.0 * (np.cos(turn) * atlas.LONG_AXIS + np.sin(turn) * np.array([0, 1.0, 0]))
    down = [0.5 * (middle + VALVE_MM), VALVE_MM] if kind == "ventriculogram" else [middle]
    return np.vstack([middle + curl, *down]) + rng.normal(0, 2, 3)
