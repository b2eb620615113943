"""What moves: the beating heart, the breathing chest, the table."""

import numpy as np
from numba import njit

from cag_utils.phantom.anatomy.atlas import HEART_BASE_MM, LONG_AXIS, LONG_AXIS_MM, RCA_OSTIUM_MM

# Share of the RR interval, and contraction there: 0 end-diastole, 1 end-systole, with diastasis and
# atrial kick. Shape: choice.
_PHASE = (0, 0.05, 0.15, 0.25, 0.34, 0.42, 0.50, 0.58, 0.70, 0.86, 0.94, 1.0)
_CONTRACTION = (0, 0.06, 0.45, 0.85, 1.0, 0.92, 0.60, 0.28, 0.16, 0.14, 0.03, 0)
GRID = 13  # contraction states that are computed; those between are interpolated


def contraction(time_s: np.ndarray, rr_s: float, phase: float = 0.0) -> np.ndarray:
    """Return how far the heart has contracted.

    Args:
        time_s: (...) seconds.
        rr_s: Seconds a beat.
        phase: Share of a beat already over at time 0.

    Returns:
        (...) 0 (end-diastole) to 1 (end-systole), periodic in `rr_s`.

    Raises:
        ValueError: `rr_s` is not above 0.
    """
    if rr_s <= 0:
        raise ValueError(f"a beat must last more than 0 s, got {rr_s}")
    return np.interp(np.mod(np.asarray(time_s) / rr_s + phase, 1.0), _PHASE, _CONTRACTION)


def contract(points: np.ndarray, state: float) -> np.ndarray:
    """Move heart points from end-diastole to a state of contraction.

    The base descends by up to 13.5 % of the long axis, walls come in by 10 to 15 %, the apex twists
    by 13 degrees against the base; the aortic root with its ostia moves about two thirds as far.

    Args:
        points: (n, 3) mm at end-diastole.
        state: 0 to 1.

    Returns:
        (n, 3) mm; unchanged for state 0.

    Source:
        Sizes of the three motions: prototype's choice, order of magnitude from textbooks.
    """
    from_base = points - HEART_BASE_MM
    along = (from_base * LONG_AXIS).sum(1)
    out = from_base - along[:, None] * LONG_AXIS
    height = along / LONG_AXIS_MM
    low = np.clip(height, 0, 1)
    right = np.clip(-out[:, 0] / 45.0, 0, 1)  # the RCA's groove swings most
    near = np.minimum((points**2).sum(1), ((points - RCA_OSTIUM_MM) ** 2).sum(1))
    held = np.exp(-near / (2 * 12.0**2))
    twist = np.deg2rad(state * (-4 + 13 * low)) * (1 - held)
    turned = out * np.cos(twist)[:, None] + np.cross(LONG_AXIS, out) * np.sin(twist)[:, None]
    shrink = 1 - state * (0.10 + 0.05 * low) * (1 - 0.8 * held)
    descent = (
        state * 0.135 * (1 - np.clip(height, -0.2, 1)) * (1 + 0.55 * right) * (1 - 0.35 * held)
    )
    return (
        HEART_BASE_MM
        + turned * shrink[:, None]
        + ((height + descent) * LONG_AXIS_MM)[:, None] * LONG_AXIS
    )


def beat(points: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Return points at many states of contraction, fast.

    Args:
        points: (n, 3) mm at end-diastole.
        states: (t,) 0 to 1.

    Returns:
        (t, n, 3) mm; within 0.1 mm of `contract` between the 13 computed states.
    """
    if len(states) < GRID:
        return np.stack([contract(points, float(state)) for state in states])
    grid = np.stack([contract(points, state) for state in np.linspace(0, 1, GRID)])
    at = np.asarray(states) * (GRID - 1)
    cell = np.minimum(at.astype(int), GRID - 2)
    return _between(grid, cell, at - cell)


@njit(cache=True, nogil=True)
def _between(grid, cell, share):
    """Read (k, n, 3) points at k's positions `cell` + `share`, both (t,): (t, n, 3)."""
    found = np.empty((len(cell), *grid.shape[1:]))
    for t in range(len(cell)):
        early, late, into = grid[cell[t]], grid[cell[t] + 1], found[t]
        for n in range(len(into)):
            for i in range(3):
                into[n, i] = early[n, i] * (1 - share[t]) + late[n, i] * share[t]
    return found


def breathing(time_s: np.ndarray, depth_mm: float, period_s: float, phase: float) -> np.ndarray:
    """Return the heart's shift with breathing.

    Args:
        time_s: (t,) seconds.
        depth_mm: Half the caudal excursion; 0 for a held breath.
        period_s: Seconds a breath.
        phase: Radians.

    Returns:
        (t, 3) mm: to the feet and a quarter as much to the front.

    Source:
        Excursion 4.9 +- 1.9 mm caudal (Shechter et al. 2004, IEEE Trans Med Imaging 23:1046).
    """
    wave = depth_mm * np.sin(2 * np.pi * np.asarray(time_s) / period_s + phase)
    return np.stack([0 * wave, -wave, 0.25 * wave], axis=1)


def panning(
    n_frames: int, start: float, travel_px: tuple[float, float], limit_px: float
) -> np.ndarray:
    """Return a table pan: nothing until `start`, then off, faster and faster.

    Args:
        n_frames: Frames of the cine.
        start: Share of the cine after which the table moves.
        travel_px: Right and down, at the end.
        limit_px: No larger shift than this either way.

    Returns:
        (n_frames, 2) pixels.
    """
    progress = np.clip((np.arange(n_frames) / n_frames - start) / 0.35, 0, 1) ** 1.3
    return np.clip(progress[:, None] * np.asarray(travel_px), -limit_px, limit_px)
