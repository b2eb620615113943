"""From optical depth to grey levels: beam, scatter, glare, quantum noise, collimator.

Mass attenuation coefficients: NIST tables (Hubbell and Seltzer, NISTIR 5632), in cm^2/g, read
between the listed energies in logarithms. Tube spectrum: Kramers' law behind aluminium and copper;
the detector counts energy and absorbs every energy alike (assumption).
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from cag_utils.phantom.imaging.display import Look, shutter_field, wedge_depth

# fmt: off
_KEV = np.array([20, 30, 33.17, 33.18, 40, 50, 60, 80, 100, 150.0])
_WATER = np.array([0.8096, 0.3756, 0.3360, 0.3358, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505])
_ALUMINIUM = np.array([3.441, 1.128, 0.873, 0.872, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704, 0.1378])
_COPPER = np.array([33.79, 10.92, 8.20, 8.19, 4.862, 2.613, 1.593, 0.7630, 0.4584, 0.2217])
_IODINE = np.array([25.43, 8.561, 6.553, 35.82, 22.10, 12.32, 7.579, 3.510, 1.942, 0.6978])
# fmt: on
ALUMINIUM_MM = 3.0  # fixed filtration of a cine tube; choice
IODINE_G_ML = 0.32  # of contrast medium, usual 300 to 370 mg/ml
_ENERGIES = np.linspace(20, 150, 131)
TABLE_STEP, TABLE_SIZE = 1 / 64, 769  # optical depth 0 to 12

NOISE_BORDER = 96  # the noise picture is larger, so that each frame takes another cut-out
PATIENT_MM = 220.0  # water that hardens the beam as a middling chest does; choice
LAST_CELL = np.float32(TABLE_SIZE - 2)
THIRD, FIFTH, SEVENTH = (np.float32(1 / n) for n in (3, 5, 7))  # of the series of atanh
MIXED = 0.8  # contrast in the mixture with blood at the catheter's tip; choice


@dataclass(frozen=True)
class Detector:
    """The still part of a cine's pictures, at full size."""

    background: np.ndarray  # (H + 2m, W + 2m) float32 grey levels of the chest, with margin
    scatter: np.ndarray  # (H, W) float32 scattered over primary radiation
    noise_sigma: np.ndarray  # (H, W) float32 grey levels
    field: np.ndarray  # (H, W) float32 light that the shutters let through, 0 to 1
    texture: np.ndarray  # (H + 96, W + 96) float32 noise of unit variance
    gain: np.float32  # grey levels a unit of log exposure
    contrast_per_mm: float  # optical depth of a thin layer of the contrast that leaves the catheter
    transmission: np.ndarray  # table of the hardening beam, see transmission_table


def expose(rng: np.random.Generator, depth: np.ndarray, look: Look, margin_px: int) -> Detector:
    """Turn the chest's optical depth into a displayed background and its noise.

    Exposure is primary exp(-depth) plus a smooth scatter and the detector's veiling glare; the
    display is its logarithm with the coarse contrast compressed, as angiography systems do. Quantum
    noise has passed the detector's blur, so its power spectrum is the square of that blur's
    transfer function; read-out noise is white.

    Args:
        depth: (H + 2m, W + 2m) float32 optical depth.
        margin_px: m.

    Raises:
        ValueError: `depth` holds a NaN or infinity.
    """
    if not np.isfinite(depth).all():
        raise ValueError("depth holds NaN or infinity; every ray needs a finite optical depth")
    size = depth.shape[0] - 2 * margin_px
    inner = (slice(margin_px, margin_px + size),) * 2
    if look.wedge:
        depth = depth.copy()
        depth[inner] += wedge_depth(look, size)
    primary = np.exp(depth.mean() - depth)
    scattered = look.scatter * _coarse(primary, 8.0) + look.glare * primary.mean()
    scatter = np.clip(scattered / primary, 0.12, 5).astype(np.float32)
    exposure = primary * (1 + scatter)
    grey = np.log(exposure)
    grey -= look.compression * _coarse(grey, 5.0)
    grey -= grey[inner].mean()
    grey *= min(1.0, look.spread / float(grey[inner].std() + 1e-6))  # automatic windowing
    background = np.clip(look.level + look.gain * grey, 6, 246).astype(np.float32)
    quanta = look.photons * (512 / size) ** 2 * np.clip(exposure[inner], 0.15, 6)
    beam = detected_spectrum(look.kvp, look.copper_mm, PATIENT_MM)
    return Detector(
        background=background,
        scatter=np.ascontiguousarray(scatter[inner]),
        noise_sigma=(look.gain / np.sqrt(quanta)).astype(np.float32),
        field=shutter_field(look, size),
        texture=noise_texture(rng, look, size + NOISE_BORDER),
        gain=np.float32(look.gain),
        contrast_per_mm=MIXED * contrast_per_mm(beam),
        transmission=transmission_table(beam),
    )


def noise_texture(rng: np.random.Generator, look: Look, side_px: int) -> np.ndarray:
    """Draw (side_px, side_px) float32 detector noise of mean about 0 and variance about 1.

    The look supplies the detector's blur and the share of read-out noise.
    """
    white = rng.standard_normal((side_px, side_px), dtype=np.float32)
    quantum = cv2.GaussianBlur(white, (0, 0), look.grain_px)
    quantum *= np.float32(np.sqrt(1 - look.electronic)) / quantum.std()
    if not look.electronic:
        return quantum
    shift = side_px // 2, side_px // 3  # far from its own quantum noise, and cheaper than new draws
    return quantum + np.float32(np.sqrt(look.electronic)) * np.roll(white, shift, axis=(0, 1))


def _coarse(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Keep only what is smooth over about a tenth of the picture."""
    small = cv2.resize(picture, (72, 72), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma)
    return cv2.resize(small, picture.shape[::-1], interpolation=cv2.INTER_CUBIC)


@njit(cache=True, nogil=True, error_model="numpy")  # strict: labels rest on it
def subject_contrast(depth, scatter, transmission):
    """Return by how much contrast dims the detector, scatter included: what a reader sees as dark.

    Args:
        depth: (n,) float32 optical depth of contrast, 0 or more.
        scatter: (n,) float32 scattered over primary radiation there.
        transmission: (769,) float32, from `transmission_table`.

    Returns:
        (n,) float32 natural logarithm of the exposure beside over that behind the contrast, 0 or
        more; the display shows `gain` times as many grey levels, before its curve.
    """
    found = np.zeros(len(depth), np.float32)
    for i in range(len(depth)):
        if depth[i] != 0:
            found[i] = -_log_exposure(depth[i], scatter[i], transmission)
    return found


@njit(cache=True, nogil=True, error_model="numpy")  # strict: labels rest on it
def contrast_at(depth, scatter, transmission, u, v):
    """Return the (n,) subject contrast at picture positions; beside the picture the edge counts.

    Args:
        depth: (H, W) float32 optical depth of contrast.
        scatter: (H, W) float32 scattered over primary radiation.
        transmission: (769,) float32, from `transmission_table`.
        u: (n,) columns, pixels.
        v: (n,) rows.
    """
    height, width = depth.shape
    there, veil = np.empty(len(u), np.float32), np.empty(len(u), np.float32)
    for i in range(len(u)):
        x = int(min(max(np.rint(u[i]), 0), width - 1))
        y = int(min(max(np.rint(v[i]), 0), height - 1))
        there[i], veil[i] = depth[y, x], scatter[y, x]
    return subject_contrast(there, veil, transmission)


@njit(cache=True, nogil=True, error_model="numpy")  # strict: labels rest on it
def _log_exposure(depth, scatter, transmission):
    """Logarithm of the share of the exposure that is left behind an optical depth."""
    at = min(depth * np.float32(1 / TABLE_STEP), np.float32(TABLE_SIZE - 2))
    cell = int(at)
    f = at - np.float32(cell)
    through = (np.float32(1) - f) * transmission[cell] + f * transmission[cell + 1]
    return np.float32(math.log((through + scatter) / (np.float32(1) + scatter)))


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def _soften(depth, spans, y, taps, column, line):
    """Blur one row into `line` where there is something; return from which column to which."""
    height, width = depth.shape
    reach = len(taps) // 2
    first, last = width, -1
    for row in range(max(0, y - reach), min(height, y + reach + 1)):
        first, last = min(first, spans[row, 0]), max(last, spans[row, 1])
    if last < first:
        return 0, 0
    left, right = max(0, first - reach), min(width, last + 1 + reach)
    beside, soft = column[left : right + 2 * reach], line[left:right]
    beside[:] = 0  # the picture's column 0 is the buffer's column `reach`
    below = column[first + reach : last + 1 + reach]
    for j in range(len(taps)):
        row = abs(y + j - reach)  # mirrored at the picture's edges
        above, tap = depth[min(row, 2 * height - 2 - row), first : last + 1], taps[j]
        for x in range(len(below)):
            below[x] += tap * above[x]
    if first == 0:
        column[:reach] = column[reach + 1 : 2 * reach + 1][::-1]
    if last == width - 1:
        column[width + reach : width + 2 * reach] = column[width - 1 : width + reach - 1][::-1]
    soft[:] = 0
    for j in range(len(taps)):
        tap, shifted = taps[j], beside[j : j + len(soft)]
        for x in range(len(soft)):
            soft[x] += tap * shifted[x]
    return left, right


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def _dim(row, depth, scatter, gain, transmission):
    """Darken a row by what lies in the beam: `_log_exposure` in whole vectors; spoils `depth`."""
    one, through = np.float32(1), depth
    for x in range(len(row)):
        at = min(max(depth[x], np.float32(0)) * np.float32(1 / TABLE_STEP), LAST_CELL)
        cell = np.intp(at)
        f = at - np.float32(cell)
        through[x] = (one - f) * transmission[cell] + f * transmission[cell + 1]
    for x in range(len(row)):
        left = np.sqrt(np.sqrt((through[x] + scatter[x]) / (one + scatter[x])))
        z = (left - one) / (left + one)  # 2 atanh(z) is the logarithm of a fourth root
        z2 = z * z
        row[x] += gain * np.float32(8) * z * (one + z2 * (THIRD + z2 * (FIFTH + z2 * SEVENTH)))


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def compose(
    out, background, shift_u, shift_v, depth, spans, scatter, gain, transmission, veil, texture,
    texture_v, texture_u, noise_sigma, field, taps,
):  # fmt: skip
    """Write one frame: shifted background, blurred contrast under scatter, noise, shutters.

    Args:
        out: (H, W) float32 grey levels from 0 to 255, written.
        background: (H + 2m, W + 2m) grey levels.
        shift_u: Column of the background that comes first, pixels; need not be whole.
        shift_v: Row likewise.
        depth: (H, W) optical depth of contrast and catheter.
        spans: (H, 2) columns where `depth` is not zero.
        scatter: (H, W) scattered over primary radiation, 0.1 or more.
        gain: Grey levels a unit of log exposure.
        transmission: (769,) float32, from `transmission_table`.
        veil: (k, W) float32 grey levels to add, smooth: every H / k th row.
        texture: Noise of unit variance.
        texture_v: Row of its cut-out.
        texture_u: Column of its cut-out.
        noise_sigma: (H, W) grey levels.
        field: (H, W) light through the shutters.
        taps: (2 r + 1,) float32, the blur of focal spot and detector along a row or column.
    """
    height, width = out.shape
    first_v, first_u = int(math.floor(shift_v)), int(math.floor(shift_u))
    f_v, f_u = np.float32(shift_v - first_v), np.float32(shift_u - first_u)
    g_v, g_u = np.float32(1) - f_v, np.float32(1) - f_u
    blended, row = np.empty(width + 1, np.float32), np.empty(width, np.float32)
    column, soft = np.empty(width + len(taps), np.float32), np.empty(width, np.float32)
    last = len(veil) - 1
    for y in range(height):
        above = background[y + first_v, first_u : first_u + width + 1]
        below = background[y + first_v + 1, first_u : first_u + width + 1]
        grain = texture[y + texture_v, texture_u : texture_u + width]
        sigma, light, target = noise_sigma[y], field[y], out[y]
        at = max(0.0, (y + 0.5) * len(veil) / height - 0.5)
        upper, lower = veil[min(int(at), last)], veil[min(int(at) + 1, last)]
        low = np.float32(at - int(at))
        high = np.float32(1) - low
        for x in range(width + 1):
            blended[x] = g_v * above[x] + f_v * below[x]
        for x in range(width):
            row[x] = g_u * blended[x] + f_u * blended[x + 1] + sigma[x] * grain[x]
            row[x] += high * upper[x] + low * lower[x]
        left, right = _soften(depth, spans, y, taps, column, soft)
        if right > left:
            across = scatter[y, left:right]
            _dim(row[left:right], soft[left:right], across, gain, transmission)
        for x in range(width):
            target[x] = min(max(row[x] * light[x], np.float32(0)), np.float32(255))


def _per_cm(table: np.ndarray, density: float) -> np.ndarray:
    """Attenuation per cm at every energy."""
    return density * np.exp(np.interp(np.log(_ENERGIES), np.log(_KEV), np.log(table)))


def detected_spectrum(kvp: float, copper_mm: float, water_mm: float) -> np.ndarray:
    """Return how much each energy contributes to the detector's signal.

    Args:
        kvp: Tube voltage, 40 to 150 kV.
        copper_mm: Added filtration.
        water_mm: Patient in the beam.

    Returns:
        (131,) weights at 20, 21 ... 150 keV, adding up to 1.

    Raises:
        ValueError: A value lies outside its range.
    """
    if not 40 <= kvp <= 150 or copper_mm < 0 or water_mm < 0:
        raise ValueError(
            f"need kvp 40 to 150, copper_mm and water_mm >= 0, got {kvp}, {copper_mm}, {water_mm}"
        )
    tube = np.maximum(kvp - _ENERGIES, 0)  # Kramers: photons ~ (E0 - E) / E, times E for energy
    depth = (
        0.1 * ALUMINIUM_MM * _per_cm(_ALUMINIUM, 2.699)
        + 0.1 * copper_mm * _per_cm(_COPPER, 8.96)
        + 0.1 * water_mm * _per_cm(_WATER, 1.0)
    )
    weights = tube * np.exp(-(depth - depth.min()))
    return weights / weights.sum()


def contrast_per_mm(weights: np.ndarray, iodine_g_ml: float = IODINE_G_ML) -> float:
    """Return the attenuation of a thin layer of undiluted contrast, per mm, above blood's."""
    return float(0.1 * (weights * _per_cm(_IODINE, iodine_g_ml)).sum())


def transmission_table(weights: np.ndarray) -> np.ndarray:
    """Tabulate how much of a beam (from `detected_spectrum`) a contrast-filled path lets through.

    The beam hardens: thick contrast takes out less than its first millimetre promises.

    Returns:
        (769,) float32 transmission at optical depths 0, 1/64 ... 12, where the optical depth is the
        thin layer's attenuation per mm times mm; 1 at 0, with slope -1 there.
    """
    iodine = _per_cm(_IODINE, 1.0)
    relative = iodine / (weights * iodine).sum()
    depth = TABLE_STEP * np.arange(TABLE_SIZE)
    return (np.exp(-depth[:, None] * relative[None]) * weights).sum(1).astype(np.float32)
