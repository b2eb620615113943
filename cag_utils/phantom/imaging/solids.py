"""How long rays run through simple solids."""

import numpy as np
from numba import njit


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def rays_near(source, rays, centre, reach):
    """Return which rays pass within `reach` mm of a point.

    Args:
        source: (3,) mm.
        rays: (n, 3) unit vectors.
        centre: (3,) mm.
        reach: mm; the source lies farther away than that.

    Returns:
        (k,) rising indices of rays.
    """
    away = source - centre
    limit = (away**2).sum() - reach * reach
    kept, count = np.empty(len(rays), np.int64), 0
    for n in range(len(rays)):
        along = rays[n, 0] * away[0] + rays[n, 1] * away[1] + rays[n, 2] * away[2]
        kept[count] = n
        count += along * along > limit
    return kept[:count]


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def ellipsoid_spans(source, rays, centre, half_axes, turn):
    """Return where rays enter and leave an ellipsoid.

    Args:
        source: (3,) mm.
        rays: (n, 3) unit vectors.
        centre: (3,) mm.
        half_axes: (3,) mm.
        turn: (3, 3) rows are the ellipsoid's own axes.

    Returns:
        ((n,) entry, (n,) exit) mm from the source; equal where the ray misses.
    """
    entry, leave = np.empty(len(rays)), np.empty(len(rays))
    own = turn / half_axes.reshape(3, 1)  # to where the ellipsoid is the unit sphere
    start = (own * (source - centre)).sum(axis=1)
    constant = (start**2).sum() - 1
    for n in range(len(rays)):
        x, y, z = rays[n, 0], rays[n, 1], rays[n, 2]
        square = half = 0.0
        for i in range(3):
            d = own[i, 0] * x + own[i, 1] * y + own[i, 2] * z
            square += d * d
            half += d * start[i]
        inside = half * half - square * constant
        root = np.sqrt(max(inside, 0.0))
        entry[n] = (-half - root) / square if inside > 0 else 0.0
        leave[n] = (-half + root) / square if inside > 0 else 0.0
    return entry, leave


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def box_chords(source, rays, centre, half_mm, turn):
    """Return the length of rays within a box; arguments as for `ellipsoid_spans`."""
    chord = np.zeros(len(rays))
    start = np.empty(3)
    for i in range(3):
        start[i] = ((source - centre) * turn[i]).sum()
    for n in range(len(rays)):
        enter, leave = 0.0, 1e9
        for i in range(3):
            d = rays[n, 0] * turn[i, 0] + rays[n, 1] * turn[i, 1] + rays[n, 2] * turn[i, 2]
            d = d if abs(d) > 1e-9 else 1e-9
            a, b = (-half_mm[i] - start[i]) / d, (half_mm[i] - start[i]) / d
            enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
        chord[n] = max(0.0, leave - enter)
    return chord
