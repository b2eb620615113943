"""From optical depth to grey levels: scatter, noise, the collimator, the vendor's display curve."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

NOISE_BORDER = 96  # the noise picture is larger, so that each frame takes another cut-out


@dataclass(frozen=True)
class Look:
    """How the laboratory shows its pictures.

    Attributes:
        gain: Grey levels a unit of log exposure.
        level: Mean grey of the background.
        compression: Share of the coarse background contrast that the display takes out.
        photons: Detected quanta a pixel at 512 px.
        scatter: Scattered over primary radiation where the patient is middling.
        grain_px: Correlation of the noise.
        blur_px: Focal spot and detector, at the drawn size.
        shutter_grey: How light the shutters are, share of the picture's grey.
        shutters: (4,) left, right, top and bottom edge of the field, shares of its size.
        shutter_soft: Penumbra, share of the size.
    """

    gain: float
    level: float
    compression: float
    photons: float
    scatter: float
    grain_px: float
    blur_px: float
    shutter_grey: float
    shutters: tuple[float, float, float, float]
    shutter_soft: float


@dataclass(frozen=True)
class Detector:
    """The still part of a cine's pictures, at full size.

    Attributes:
        background: (H + 2m, W + 2m) float32 grey levels of the chest, with margin.
        scatter: (H, W) float32 scattered over primary radiation.
        noise_sigma: (H, W) float32 grey levels.
        field: (H, W) float32 light that the shutters let through, 0 to 1.
        texture: (H + 96, W + 96) float32 noise of unit variance.
        gain: Grey levels a unit of log exposure.
    """

    background: np.ndarray
    scatter: np.ndarray
    noise_sigma: np.ndarray
    field: np.ndarray
    texture: np.ndarray
    gain: np.float32


def draw_look(rng: np.random.Generator, size_px: int) -> Look:
    """Draw a laboratory's look; ranges tuned by eye towards public real cines (prototype)."""
    narrow = rng.random(4) < 0.6
    edges = np.where(narrow, rng.uniform(0, 0.02, 4), rng.uniform(0.02, 0.08, 4))
    return Look(
        gain=rng.uniform(85, 120),
        level=rng.uniform(95, 130),
        compression=rng.uniform(0.55, 0.95),
        photons=rng.uniform(300, 1400),
        scatter=rng.uniform(0.45, 0.9),
        grain_px=rng.uniform(0.5, 0.9) * size_px / 512 + 0.1,
        blur_px=rng.uniform(0.55, 0.95) * size_px / 512 + 0.2,
        shutter_grey=rng.uniform(0, 0.45),
        shutters=tuple(map(float, edges)),
        shutter_soft=rng.uniform(0.004, 0.012),
    )


def expose(rng: np.random.Generator, depth: np.ndarray, look: Look, margin_px: int) -> Detector:
    """Turn the chest's optical depth into a displayed background and its noise.

    Exposure is primary exp(-depth) plus a smooth scatter; the display is its logarithm with the
    coarse contrast compressed, as angiography systems do.

    Args:
        rng: Generator of the noise picture.
        depth: (H + 2m, W + 2m) float32 optical depth.
        look: The laboratory's look.
        margin_px: m.

    Returns:
        Everything that does not change from frame to frame.

    Raises:
        ValueError: `depth` holds a NaN or infinity.
    """
    if not np.isfinite(depth).all():
        raise ValueError("depth holds NaN or infinity; every ray needs a finite optical depth")
    size = depth.shape[0] - 2 * margin_px
    inner = (slice(margin_px, margin_px + size),) * 2
    primary = np.exp(depth.mean() - depth)
    scatter = np.clip(look.scatter * _coarse(primary, 8.0) / primary, 0.12, 5).astype(np.float32)
    exposure = primary * (1 + scatter)
    grey = np.log(exposure)
    grey -= look.compression * _coarse(grey, 5.0)
    grey -= grey[inner].mean()
    grey *= min(1.0, 0.30 / float(grey[inner].std() + 1e-6))  # automatic windowing
    background = np.clip(look.level + look.gain * grey, 6, 246).astype(np.float32)
    quanta = look.photons * (512 / size) ** 2 * np.clip(exposure[inner], 0.15, 6)
    side = size + NOISE_BORDER
    texture = cv2.GaussianBlur(
        rng.standard_normal((side, side), dtype=np.float32), (0, 0), look.grain_px
    )
    return Detector(
        background=background,
        scatter=np.ascontiguousarray(scatter[inner]),
        noise_sigma=(look.gain / np.sqrt(quanta)).astype(np.float32),
        field=shutter_field(look, size),
        texture=texture / texture.std(),
        gain=np.float32(look.gain),
    )


def _coarse(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Keep only what is smooth over about a tenth of the picture."""
    small = cv2.resize(picture, (72, 72), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma)
    return cv2.resize(small, picture.shape[::-1], interpolation=cv2.INTER_CUBIC)


def shutter_field(look: Look, size_px: int) -> np.ndarray:
    """Return the light that the collimator's four shutters let through.

    Returns:
        (H, W) float32, 1 in the open field, `shutter_grey` behind the shutters.
    """
    at = np.arange(size_px, dtype=np.float32) / size_px
    soft = look.shutter_soft

    def opening(low, high):
        inside = np.clip((at - low) / soft, -30, 30), np.clip((1 - high - at) / soft, -30, 30)
        return 1 / (1 + np.exp(-inside[0])) / (1 + np.exp(-inside[1]))

    left, right, top, bottom = look.shutters
    light = opening(top, bottom)[:, None] * opening(left, right)[None]
    return (light * (1 - look.shutter_grey) + look.shutter_grey).astype(np.float32)


@njit(cache=True, fastmath=True, nogil=True)
def compose(
    out, background, shift_u, shift_v, depth, spans, scatter, gain, blush, blush_share, texture,
    texture_v, texture_u, noise_sigma, field,
):  # fmt: skip
    """Write one frame: shifted background, contrast under scatter, noise, shutters.

    Args:
        out: (H, W) uint8, written.
        background: (H + 2m, W + 2m) grey levels.
        shift_u: Column of the background that comes first, pixels; need not be whole.
        shift_v: Row likewise.
        depth: (H, W) optical depth of contrast and catheter.
        spans: (H, 2) columns where `depth` is not zero.
        scatter: (H, W) scattered over primary radiation.
        gain: Grey levels a unit of log exposure.
        blush: (H, W) grey levels of a full myocardial blush.
        blush_share: 0 to 1.
        texture: Noise of unit variance.
        texture_v: Row of the noise cut-out.
        texture_u: Column of the noise cut-out.
        noise_sigma: (H, W) grey levels.
        field: (H, W) light through the shutters.
    """
    height, width = out.shape
    first_v, first_u = int(math.floor(shift_v)), int(math.floor(shift_u))
    f_v, f_u = np.float32(shift_v - first_v), np.float32(shift_u - first_u)
    g_v, g_u = np.float32(1) - f_v, np.float32(1) - f_u
    blended, row = np.empty(width + 1, np.float32), np.empty(width, np.float32)
    share, one, half = np.float32(blush_share), np.float32(1), np.float32(0.5)
    for y in range(height):
        above = background[y + first_v, first_u : first_u + width + 1]
        below = background[y + first_v + 1, first_u : first_u + width + 1]
        grain = texture[y + texture_v, texture_u : texture_u + width]
        sigma, light, tint, target = noise_sigma[y], field[y], blush[y], out[y]
        for x in range(width + 1):
            blended[x] = g_v * above[x] + f_v * below[x]
        for x in range(width):
            row[x] = g_u * blended[x] + f_u * blended[x + 1] + sigma[x] * grain[x] - share * tint[x]
        for x in range(spans[y, 0], spans[y, 1] + 1):
            d = depth[y, x]
            if d > np.float32(2e-3):
                s = scatter[y, x]
                row[x] += gain * np.float32(math.log((math.exp(-d) + s) / (one + s)))
        for x in range(width):
            grey = row[x] * light[x] + half
            target[x] = np.uint8(min(max(grey, np.float32(0)), np.float32(255.4)))
