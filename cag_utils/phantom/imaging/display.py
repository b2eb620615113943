"""How a laboratory's pictures look: dose, beam, collimator, and the vendor's display."""

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

# flat panels, collimators with rounded and with cut corners, image intensifiers
FIELDS = ("box", "rounded", "cut", "round")
CUT_CORNER, ROUND_CORNER = 0.10, 0.05  # of the size; choice
CURVE_LEVELS = np.arange(256, dtype=np.float32) / 255
OPEN = np.clip(np.arange(256) / 40, 0, 1)  # what is black stays black whatever the exposure


@dataclass(frozen=True)
class Look:
    """How the laboratory shows its pictures."""

    kvp: float  # tube voltage, kV
    copper_mm: float  # added filtration
    gain: float  # grey levels a unit of log exposure
    level: float  # mean grey of the background
    compression: float  # share of the coarse background contrast that the display takes out
    spread: float  # largest standard deviation of the background, in log exposure
    photons: float  # detected quanta a pixel at 512 px
    electronic: float  # share of the noise variance that is white read-out noise
    scatter: float  # scattered over primary radiation where the patient is middling
    glare: float  # veiling glare of the detector, share of the mean exposure
    grain_px: float  # detector's own blur, which colours the quantum noise
    blur_px: float  # focal spot and detector, at the drawn size
    sharpen: float  # strength of the vendor's edge enhancement; 0 is none
    sharpen_px: float  # its radius
    curve: float  # exponent of the display curve; 1 is logarithmic exposure as it is
    field: str  # one of FIELDS
    shutter_grey: float  # how light the shutters are, share of the picture's grey
    shutters: tuple[float, float, float, float]  # left, right, top, bottom; shares
    shutter_soft: float  # penumbra, share of the size
    flicker: float  # spread of the automatic exposure's error from frame to frame, grey levels
    wedge: float  # optical depth of a half-transparent filter over one side; 0 is none
    wedge_at: tuple[float, float, float]  # angle rad, distance from the middle, softness


def draw_look(rng: np.random.Generator, size_px: int) -> Look:
    """Draw a laboratory's look.

    Source:
        kVp of 45 real XA headers, 87 (81 to 105); all else chosen by eye, wider than public
        pictures, so that no vendor's look is a surprise. Noise, grain, blur, sharpening and
        shutters were then moved with appendix A1's table of differences in sight.
    """
    unit = size_px / 512
    return Look(
        kvp=float(np.clip(rng.normal(88, 6), 81, 105)),
        copper_mm=float(rng.choice([0.0, 0.1, 0.3])),
        gain=rng.uniform(95, 165),
        level=rng.uniform(85, 150),
        compression=rng.uniform(0.35, 0.95),
        spread=rng.uniform(0.18, 0.42),
        photons=float(np.exp(rng.uniform(np.log(190), np.log(900)))),
        electronic=rng.uniform(0.03, 0.38),
        scatter=rng.uniform(0.45, 0.9),
        glare=rng.uniform(0.02, 0.12),
        grain_px=rng.uniform(0.33, 0.72) * unit + 0.06,
        blur_px=rng.uniform(0.35, 0.75) * unit + 0.12,
        sharpen=rng.uniform(0.15, 0.85) * (rng.random() < 0.6),
        sharpen_px=rng.uniform(1.2, 7.0) * unit,
        curve=float(np.exp(rng.normal(0, 0.22))),
        field=str(rng.choice(FIELDS, p=[0.62, 0.22, 0.12, 0.04])),
        shutter_grey=rng.uniform(0, 0.45) * (rng.random() < 0.7),
        shutters=_shutters(rng),
        shutter_soft=float(np.exp(rng.uniform(np.log(0.0015), np.log(0.012)))),
        flicker=rng.uniform(0.0, 1.2),
        wedge=rng.uniform(0.2, 0.8) * (rng.random() < 0.25),
        wedge_at=(rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.45), rng.uniform(0.01, 0.05)),
    )


def _shutters(rng) -> tuple[float, float, float, float]:
    """Edges of the field: wide open, a little closed, or closed from above and below."""
    narrow = rng.random(4) < 0.75
    edges = np.where(narrow, rng.uniform(-0.02, 0.006, 4), rng.uniform(0.006, 0.06, 4))
    if rng.random() < 0.12:
        edges[2:] = rng.uniform(0.05, 0.13)
    return tuple(map(float, edges))


def shutter_field(look: Look, size_px: int) -> np.ndarray:
    """Return the collimator's light, (H, W) float32, 1 in the field, `shutter_grey` beside it."""
    left, right, top, bottom = look.shutters
    at = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    soft = look.shutter_soft
    if look.field == "box":
        across, down = (
            _opening(at - low, soft) * _opening(1 - high - at, soft)
            for low, high in ((left, right), (top, bottom))
        )
        light = down[:, None] * across[None]
    else:
        light = _opening(_round_distance(look, at), soft)
    return (light * (1 - look.shutter_grey) + look.shutter_grey).astype(np.float32)


def _opening(inside: np.ndarray, soft: float) -> np.ndarray:
    """A shutter's penumbra: 0 well behind it, 1 well inside the field."""
    return 1 / (1 + np.exp(-np.clip(inside / soft, -30, 30)))


def _round_distance(look: Look, at: np.ndarray) -> np.ndarray:
    """Distance inwards from the edge of a field with rounded corners, shares of the size."""
    left, right, top, bottom = look.shutters
    middle = (left + 1 - right) / 2, (top + 1 - bottom) / 2
    half = np.array([(1 - left - right) / 2, (1 - top - bottom) / 2], np.float32)
    corner = float(half.min()) if look.field == "round" else ROUND_CORNER
    if look.field == "round":  # the intensifier's disc reaches into the picture's corners
        half, corner = half * 1.12, corner * 1.12
    beyond = [np.abs(at - m) - h for m, h in zip(middle, half, strict=True)]
    across, down = beyond[0][None], beyond[1][:, None]
    if look.field == "cut":
        return -np.maximum(np.maximum(across, down), (across + down + CUT_CORNER) / np.sqrt(2))
    outside = np.hypot(np.maximum(across + corner, 0), np.maximum(down + corner, 0))
    return corner - outside - np.minimum(np.maximum(across, down) + corner, 0)


def wedge_depth(look: Look, size_px: int) -> np.ndarray:
    """Return the optical depth of the half-transparent wedge filter, (H, W) float32."""
    angle, distance, soft = look.wedge_at
    at = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px - 0.5
    along = np.cos(angle) * at[None] + np.sin(angle) * at[:, None] - distance
    return np.float32(look.wedge) * _opening(along, soft).astype(np.float32)


class Display:
    """The vendor's last steps: edge enhancement, then the display curve.

    Grey levels are whole numbers only at the very end, as in a detector of many bits: a level that
    is rounded before it is enhanced would be several levels off where processors differ by little.
    """

    def __init__(self, look: Look):
        self.look = look
        self.curve = (255 * CURVE_LEVELS**look.curve).astype(np.float32)

    def finish(self, frame: np.ndarray, out: np.ndarray, error: float = 0.0) -> None:
        """Enhance edges, apply the curve and the automatic exposure's error.

        Args:
            frame: (H, W) float32 grey levels, 0 to 255. Enhancement adds `sharpen` times what a
                Gaussian takes away, so a shutter's edge gets the bright rim of real ones.
            out: (H, W) uint8, written.
            error: Grey levels by which the exposure is off.
        """
        soft = frame
        if self.look.sharpen > 0:
            shrink = max(k for k in (1, 2, 4) if k == 1 or self.look.sharpen_px >= 0.9 * k)
            if shrink == 1 or frame.shape[0] % shrink or frame.shape[1] % shrink:
                soft = cv2.GaussianBlur(frame, (0, 0), self.look.sharpen_px)
            else:
                soft = _wide_blur(frame, self.look.sharpen_px, shrink)
        table = np.clip(self.curve + error * OPEN, 0, 255).astype(np.float32)
        _show(frame, soft, np.float32(self.look.sharpen), np.append(table, table[-1]), out)


def _wide_blur(frame: np.ndarray, sigma: float, shrink: int) -> np.ndarray:
    """A wide Gaussian's blur on a coarse grid: (H / shrink, W) float32; `_show` reads between."""
    height, width = frame.shape
    coarse = cv2.resize(frame, (width // shrink, height // shrink), interpolation=cv2.INTER_AREA)
    own = (shrink**2 - 1) / 4  # variance of the means and of the interpolation between them
    coarse = cv2.GaussianBlur(coarse, (0, 0), np.sqrt(sigma**2 - own) / shrink)
    return cv2.resize(coarse, (width, len(coarse)), interpolation=cv2.INTER_LINEAR)


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def _show(frame, soft, strength, curve, out):
    """Add to a picture what its blurred copy of as many or fewer rows takes away; the curve."""
    height, width = frame.shape
    last, half = len(soft) - 1, np.float32(0.5)
    more, top = np.float32(1) + strength, np.float32(255)
    for y in range(height):
        at = max(0.0, (y + 0.5) * len(soft) / height - 0.5)
        upper, lower = soft[min(int(at), last)], soft[min(int(at) + 1, last)]
        low = np.float32(at - int(at)) * strength
        high, row, target = strength - low, frame[y], out[y]
        for x in range(width):
            grey = min(max(more * row[x] - high * upper[x] - low * lower[x], np.float32(0)), top)
            cell = np.intp(grey)
            f = grey - np.float32(cell)
            target[x] = np.uint8(curve[cell] + f * (curve[cell + 1] - curve[cell]) + half)
