"""The bolus: when contrast reaches a point of the tree, and how much of it is there."""

from dataclasses import dataclass

import numpy as np

from cag_utils.phantom.anatomy.tree import TWIG_ORDER, Tree

NEVER = 1e6  # seconds; a delay that no cine reaches
# mm/s along the vessel, so that healthy trees fill in about Gibson's TIMI frame counts (LAD 36.2,
# LCX 22.2, RCA 20.4 at 30 frames/s; Gibson et al. 1996, Circulation 93:879).
SPEED_MM_S = {"LCA": 142.0, "RCA": 192.0}
RISE_S, WASHOUT_S = 0.16, 0.55  # time to half strength, time constant at the tip; choice
# Choice: wash-out takes longer the farther the bolus has spread, in steps of 30 mm; what comes
# through collaterals is diluted and has no sharp front.
DISPERSION_S_PER_MM, STEP_MM = 0.002, 30.0
COLLATERAL_STRENGTH, COLLATERAL_RISE_S, COLLATERAL_WASHOUT_S = 0.45, 0.40, 1.0
_TABLE_S = np.linspace(-0.5, 8.0, 2048)


@dataclass(frozen=True)
class Injection:
    """One hand injection."""

    start_s: float  # from the first frame; NEVER if nothing is injected
    duration_s: float  # how long undiluted contrast enters
    strength: float  # 1 is undiluted contrast without streaming loss
    speed_mm_s: float  # mean speed of the front
    pulsatility: float  # half swing of the flow over a beat, share of the mean

    def clock(self, time_s: np.ndarray, rr_s: float, phase: float) -> np.ndarray:
        """Return seconds of mean flow since the injection began.

        Coronary flow pulses (the left side fills in diastole), so contrast moves in steps.

        Args:
            time_s: (t,) frame times from 0, even.

        Returns:
            (t,) seconds, rising; far below 0 if nothing is injected.
        """
        if self.start_s >= NEVER:
            return np.full(len(time_s), -NEVER)
        fine = np.arange(0.0, max(float(time_s[-1]), self.start_s) + 0.02, 0.01)
        flow = 1 + self.pulsatility * np.cos(2 * np.pi * (fine / rr_s + phase - 0.72))
        volume = np.concatenate([[0.0], np.cumsum(np.maximum(flow[:-1], 0.05)) * 0.01])
        begin = np.interp(self.start_s, fine, volume)
        return np.interp(time_s, fine, volume) - begin


def inlet(since_s: np.ndarray, duration_s: float, rise_s: float = RISE_S,
          washout_s: float = WASHOUT_S) -> np.ndarray:  # fmt: skip
    """Return the concentration at the catheter's tip.

    Args:
        since_s: (...) seconds since the injection began.
        rise_s: Time to half strength.
        washout_s: Time constant of the fall after the end.

    Returns:
        (...) 0 to 1: a smooth rise, a plateau, an exponential wash-out.

    Raises:
        ValueError: A time constant or the duration is not above 0.
    """
    if min(duration_s, rise_s, washout_s) <= 0:
        raise ValueError(f"durations must be above 0 s, got {duration_s}, {rise_s}, {washout_s}")
    rise = 1 / (1 + np.exp(-np.clip((since_s - rise_s) / (rise_s / 3.2), -30, 30)))
    return rise * np.exp(-np.maximum(0, since_s - duration_s) / washout_s)


def inlet_table(duration_s: float, **shape: float) -> tuple[np.ndarray, float, float]:
    """Tabulate `inlet` for the renderer: (values, first second, seconds a cell)."""
    return inlet(_TABLE_S, duration_s, **shape), _TABLE_S[0], _TABLE_S[1] - _TABLE_S[0]


def arrival_s(tree: Tree, speed_mm_s: float) -> np.ndarray:
    """Return when the front reaches each centreline point, (n,) seconds after the injection began.

    It grows along every open vessel; thin vessels lag. The tree's `delay_mm` slows points behind a
    tight stenosis, sends collaterals round and keeps contrast out where nothing arrives.

    Raises:
        ValueError: The speed is not above 0.
    """
    if speed_mm_s <= 0:
        raise ValueError(f"speed_mm_s must be above 0, got {speed_mm_s}")
    lag = np.where(tree.order >= TWIG_ORDER, 1.25, 1.0)
    reached = np.isfinite(tree.delay_mm)
    way_mm = tree.path_mm + np.where(reached, tree.delay_mm, 0.0)
    return np.where(reached, way_mm / speed_mm_s * lag, NEVER)


@dataclass(frozen=True)
class Bed:
    """Points whose contrast rises and falls alike, once it has arrived."""

    points: np.ndarray  # (n,) bool
    strength: float  # share of the injection's strength
    table: tuple[np.ndarray, float, float]  # from inlet_table


def beds(tree: Tree, duration_s: float) -> list[Bed]:
    """Split a tree by how a bolus of so many seconds, above 0, has changed on its way.

    Returns:
        Every point that contrast reaches, in exactly one bed: open ones in steps of 30 mm, as
        wash-out disperses; those filled through collaterals in a bed of their own, if any.
    """
    cell = (tree.path_mm // STEP_MM).astype(int)
    found = []
    for step in np.unique(cell[tree.open]):
        washout = WASHOUT_S + DISPERSION_S_PER_MM * STEP_MM * (step + 0.5)
        table = inlet_table(duration_s, washout_s=washout)
        found.append(Bed(tree.open & (cell == step), 1.0, table))
    backwards = ~tree.open & np.isfinite(tree.delay_mm)
    if backwards.any():
        shape = {"rise_s": COLLATERAL_RISE_S, "washout_s": COLLATERAL_WASHOUT_S}
        found.append(Bed(backwards, COLLATERAL_STRENGTH, inlet_table(duration_s, **shape)))
    return found


def concentration(clock_s: np.ndarray, tree: Tree, injection: Injection) -> np.ndarray:
    """Return how much contrast is at each point in each frame; what the renderer draws.

    Args:
        clock_s: (t,) from `Injection.clock`.

    Returns:
        (t, n) share of undiluted contrast, 0 to `strength`.
    """
    filled = np.zeros((len(clock_s), len(tree.points)))
    arrival = arrival_s(tree, injection.speed_mm_s)
    for bed in beds(tree, injection.duration_s):
        values, first, cell = bed.table
        table_s = first + cell * np.arange(len(values))
        since = clock_s[:, None] - arrival[None, bed.points]
        share = np.interp(since, table_s, values, left=0.0)
        filled[:, bed.points] = injection.strength * bed.strength * share
    return filled
