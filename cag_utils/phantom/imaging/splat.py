"""Draw tubes as thick as they are: anti-aliased discs along a centreline, summed.

A disc carries the arc length it stands for. Summed along a tube of radius r, the discs that cover
a pixel at distance x from the axis add up to 2 sqrt(r^2 - x^2), the exact thickness of the tube;
foreshortened, to that over the cosine of its slant.

What is drawn here decides what a frame is said to show, so every operation is IEEE's own, in the
order written (no fastmath): the same bits on every processor.
"""

import math

import numpy as np
from numba import njit

SMALLEST_PX = 0.75  # narrower discs are drawn this wide and accordingly fainter
LANES = 8  # pixels that a processor adds at once


@njit(cache=True, nogil=True, error_model="numpy")
def _disc(image, spans, u, v, radius, weight):
    """Add one flat disc with a one-pixel soft rim; widen the touched row spans."""
    height, width = image.shape
    if radius < SMALLEST_PX:
        weight *= radius * radius / (SMALLEST_PX * SMALLEST_PX + 1 / 12)  # the rim's share
        radius = SMALLEST_PX
    outer = radius + 0.5
    top, bottom = max(0, math.ceil(v - outer)), min(height - 1, math.floor(v + outer))
    left, right = max(0, math.ceil(u - outer)), min(width - 1, math.floor(u + outer))
    if left > right or top > bottom:
        return
    # Whole vectors: no branch and no edge a pixel is cheaper than fewer pixels.
    cells = (right - left) // LANES * LANES + LANES
    if left + cells > width:
        cells = right - left + 1
    rim, full, across = np.float32(outer), np.float32(weight), np.float32(left - u)
    for y in range(top, bottom + 1):
        spans[y, 0], spans[y, 1] = min(spans[y, 0], left), max(spans[y, 1], right)
        down = np.float32(y - v)
        line, square = image[y, left : left + cells], down * down
        for i in range(cells):
            beside = across + np.float32(i)
            cover = rim - np.sqrt(beside * beside + square)
            line[i] += full * min(max(cover, np.float32(0)), np.float32(1))


@njit(cache=True, nogil=True, error_model="numpy")
def _read(table, at):
    """Interpolate a table at a position of 0 or more; its last value holds beyond its end."""
    i = int(at)
    if i >= table.size - 1:
        return table[table.size - 1]
    return table[i] + (at - i) * (table[i + 1] - table[i])


@njit(cache=True, nogil=True, error_model="numpy")
def draw_discs(image, spans, u, v, radius_px, weight):
    """Add discs one by one to a picture, in place.

    Args:
        image: (H, W) float32.
        spans: (H, 2) int64 first and last touched column of each row.
        u: (n,) columns, pixels.
        v: (n,) rows, pixels.
        radius_px: (n,) pixels.
        weight: (n,) height of each disc.
    """
    for i in range(u.size):
        if weight[i] != 0.0:
            _disc(image, spans, u[i], v[i], radius_px[i], weight[i])


@njit(cache=True, nogil=True, error_model="numpy")
def draw_tubes(
    image, spans, u, v, scale, du, dv, points, radius, arrival, links, steps, clock, table, first,
    cell, attenuation, exposures,
):  # fmt: skip
    """Add every vessel link at its present concentration.

    Args:
        image: (H, W) float32 optical depth, changed in place.
        spans: (H, 2) int64 touched columns, changed in place.
        u: (n,) columns of the centreline points, pixels.
        v: (n,) rows.
        scale: (n,) pixels per mm at each point's depth.
        du: (n,) movement during the X-ray pulse, pixels.
        dv: (n,) likewise, rows.
        points: (n, 3) mm.
        radius: (n,) mm.
        arrival: (n,) seconds until contrast reaches a point.
        links: (m,) indices of points joined to the next one.
        steps: (m,) discs a link.
        clock: Seconds since the injection began.
        table: Concentration against seconds since arrival.
        first: Second of the table's first cell.
        cell: Seconds a cell.
        attenuation: Optical depth per mm of undiluted contrast.
        exposures: Moments within the pulse that are drawn; 1 for none but the first.
    """
    for k in range(links.size):
        a = links[k]
        b = a + 1
        gap = 0.0
        for axis in range(3):
            gap += (points[a, axis] - points[b, axis]) ** 2
        piece = math.sqrt(gap) / steps[k] * attenuation / exposures
        for j in range(steps[k]):
            f = (j + 0.5) / steps[k]
            g = 1 - f
            at = (clock - (g * arrival[a] + f * arrival[b]) - first) / cell
            if at <= 0:
                continue
            share = _read(table, at)
            if share < 2e-3:
                continue
            size = g * radius[a] * scale[a] + f * radius[b] * scale[b]
            x, y = g * u[a] + f * u[b], g * v[a] + f * v[b]
            dx, dy = g * du[a] + f * du[b], g * dv[a] + f * dv[b]
            for e in range(exposures):
                t = (e + 0.5) / exposures if exposures > 1 else 0.0
                _disc(image, spans, x + t * dx, y + t * dy, size, piece * share)


@njit(cache=True, nogil=True)
def wipe(image, spans):
    """Empty a picture where it was drawn on, and its spans, in place."""
    for y in range(len(image)):
        image[y, spans[y, 0] : spans[y, 1] + 1] = 0
        spans[y, 0], spans[y, 1] = image.shape[1], -1


def link_steps(points: np.ndarray, radius: np.ndarray, links: np.ndarray, pixel_mm: float):
    """Return how many discs each link needs to look smooth, (m,) int64, at least 1.

    A disc every 0.6 radii or 0.8 pixels, whichever is larger; arguments as for `draw_tubes`.
    """
    length = np.linalg.norm(points[links + 1] - points[links], axis=1)
    width = 0.5 * (radius[links] + radius[links + 1])
    return np.maximum(1, np.ceil(length / np.maximum(0.6 * width, 0.8 * pixel_mm))).astype(np.int64)
