"""Smooth, wavy curves in space: the shape of a vessel between its landmarks."""

import numpy as np
from numba import njit


def turned(points: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return (..., 3) points in a frame of (3, 3) rows, the same bits on every machine.

    Without BLAS, whose last bit depends on the processor.
    """
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack([x * axis[0] + y * axis[1] + z * axis[2] for axis in axes], axis=-1)


@njit(cache=True)
def march_epicardium(start, direction, jitter, wander, inward, step_mm, base, axis, axis_mm):
    """Walk over the heart's surface, keeping the distance to its long axis.

    Args:
        start: (3,) mm.
        direction: (3,) first heading, any length.
        jitter: (steps, 3) standard normals that turn the heading.
        wander: How strongly they do.
        inward: Millimetres a millimetre that the path sinks into the muscle (septals).
        base: (3,) centre of the valve plane, mm.
        axis: (3,) unit vector from base to apex, `axis_mm` long.

    Returns:
        (steps + 1, 3) mm.
    """
    path = np.empty((len(jitter) + 1, 3))
    path[0] = start
    heading = direction / np.sqrt((direction**2).sum())
    reach = 0.0
    drift = np.zeros(3)
    for i in range(len(jitter)):
        drift = 0.6 * drift + 0.8 * jitter[i]
        heading = heading + wander * 0.5 * drift
        along = ((path[i] - base) * axis).sum()
        out = path[i] - base - along * axis
        radius = np.sqrt((out**2).sum()) + 1e-6
        out = out / radius
        height = min(max(along / axis_mm, 0.0), 1.1)
        narrowing = max(0.25, np.sqrt(max(1e-3, 1 - 0.93 * height * height)))
        if i == 0:
            reach = radius / narrowing
        wanted = reach * narrowing - inward * i * step_mm
        pull = min(max((wanted - radius) / 12, -0.6), 0.6)
        heading = heading - (heading * out).sum() * out + pull * out
        heading = heading / np.sqrt((heading**2).sum())
        path[i + 1] = path[i] + step_mm * heading
    return path


@njit(cache=True)
def resample(knots, values, step_mm):
    """Run a cubic through landmarks and read it at even chord length.

    Args:
        knots: (k, 3) landmarks, mm, k >= 2.
        values: (k,) a quantity along them, interpolated linearly.

    Returns:
        ((n, 3) points, (n,) values), n >= 6.
    """
    k = len(knots)
    chord = np.zeros(k)
    for i in range(1, k):
        chord[i] = chord[i - 1] + np.sqrt(((knots[i] - knots[i - 1]) ** 2).sum())
    slope = _slopes(knots, chord)
    n = max(6, int(chord[-1] / step_mm + 1e-6))  # a chord of whole steps has as many everywhere
    points, read = np.empty((n, 3)), np.empty(n)
    cell = 0
    for j in range(n):
        at = chord[-1] * j / (n - 1)
        while cell < k - 2 and at >= chord[cell + 1]:
            cell += 1
        width = chord[cell + 1] - chord[cell]
        x = (at - chord[cell]) / width
        x2, x3 = x * x, x * x * x
        points[j] = (
            (2 * x3 - 3 * x2 + 1) * knots[cell]
            + (x3 - 2 * x2 + x) * width * slope[cell]
            + (3 * x2 - 2 * x3) * knots[cell + 1]
            + (x3 - x2) * width * slope[cell + 1]
        )
        read[j] = values[cell] + x * (values[cell + 1] - values[cell])
    return points, read


@njit(cache=True)
def _slopes(knots, chord):
    """Second-order slopes at uneven knots, one-sided at the ends."""
    k = len(knots)
    slope = np.empty_like(knots)
    slope[0] = (knots[1] - knots[0]) / (chord[1] - chord[0])
    slope[-1] = (knots[-1] - knots[-2]) / (chord[-1] - chord[-2])
    for i in range(1, k - 1):
        before, after = chord[i] - chord[i - 1], chord[i + 1] - chord[i]
        left = (knots[i] - knots[i - 1]) / before
        right = (knots[i + 1] - knots[i]) / after
        slope[i] = (left * after + right * before) / (before + after)
    return slope


@njit(cache=True)
def waves(normals, n):
    """Stretch (k, 3) standard normals, k >= 2, into n points through them, flat at each of them."""
    line = np.empty((n, normals.shape[1]))
    last = len(normals) - 1
    for i in range(n):
        x = last * i / max(n - 1, 1)
        cell = min(int(x), last - 1)
        u = x - cell
        u = u * u * (3 - 2 * u)
        line[i] = normals[cell] * (1 - u) + normals[cell + 1] * u
    return line


@njit(cache=True)
def smooth(points, sigma):
    """Smooth (n, 3) points by a Gaussian of `sigma` samples, ends held by point reflection.

    A straight, evenly spaced line comes back unchanged.
    """
    n, half = len(points), int(3 * sigma) + 1
    weight = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    weight /= weight.sum()
    out = np.zeros_like(points)
    for i in range(n):
        for j in range(-half, half + 1):
            at = i + j
            if at < 0:
                value = 2 * points[0] - points[min(-at, n - 1)]
            elif at >= n:
                value = 2 * points[-1] - points[max(2 * n - 2 - at, 0)]
            else:
                value = points[at]
            out[i] += weight[j + half] * value
    return out


@njit(cache=True)
def vessel(knots, diameters, step_mm, amplitude_mm, long_waves, short_waves, calibre_waves, sigma):
    """Shape one vessel: landmarks, tortuosity and calibre noise in one pass.

    Args:
        knots: (k, 3) landmarks, mm; the first one is kept exactly.
        diameters: (k,) lumen diameters, mm.
        amplitude_mm: Size of the tortuosity; it fades in over the first third.
        long_waves: (a, 3) standard normals, one about every 16 mm.
        short_waves: (b, 3) likewise, one about every 6 mm.
        calibre_waves: (c, 3) likewise, for the 3 % calibre noise.
        sigma: Smoothing, in samples.

    Returns:
        ((n, 3) points mm, (n,) diameters mm, (n,) arc length from the origin mm).
    """
    points, width = resample(knots, diameters, step_mm)
    n = len(points)
    bends = waves(long_waves, n) + 0.35 * waves(short_waves, n)
    for i in range(n):
        points[i] += amplitude_mm * min(1.0, 3.0 * i / (n - 1)) * bends[i]
    points = smooth(points, sigma)
    points -= points[0] - knots[0]
    width *= np.exp(0.03 * waves(calibre_waves, n)[:, 0])
    arc = np.zeros(n)
    for i in range(1, n):
        arc[i] = arc[i - 1] + np.sqrt(((points[i] - points[i - 1]) ** 2).sum())
    return points, width, arc


@njit(cache=True)
def branching(tangent, out, side, angle_rad, sink):
    """Return the (3,) heading of a twig that leaves its parent, about unit length.

    Args:
        tangent: (3,) along the parent, any length.
        out: (3,) from the heart's axis to the site, square to the axis.
        side: +1 or -1, which flank it leaves from.
        angle_rad: Angle to the parent.
        sink: How much it dives into the muscle.
    """
    ahead = tangent / np.sqrt((tangent**2).sum())
    normal = out / (np.sqrt((out**2).sum()) + 1e-6)
    flank = np.array([
        normal[1] * ahead[2] - normal[2] * ahead[1],
        normal[2] * ahead[0] - normal[0] * ahead[2],
        normal[0] * ahead[1] - normal[1] * ahead[0],
    ])  # fmt: skip
    return np.cos(angle_rad) * ahead + np.sin(angle_rad) * side * flank - sink * normal
