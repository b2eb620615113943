"""How a cine moves in numbers: its mean grey level, its filling, its noise; phantom or real alike.

The mean of a real cine swings with heart, breath and the machine's exposure control, often more
than with contrast. So filling is read from the black-hat curve, which sees only what is dark and
narrower than a vessel's widest: bones and lungs that move leave it nearly alone.
"""

import cv2
import numpy as np

from cag_utils.cine_stills import flat_patches, open_field
from cag_utils.phantom.realism import noise_power

EARLY_S = 0.25  # of a cine, surely before contrast; choice
SMOOTH_S, BEAT_S = 0.2, 0.9  # running means: against noise; about one beat; choices
WIDEST_PX = 17  # of a dark structure that the black hat keeps; choice, 4 mm at 0.23 mm a pixel


def measure_cine(frames: np.ndarray, frame_rate: float) -> dict[str, float]:
    """Measure one cine.

    Args:
        frames: (t, H, W) uint8, at least 1.5 s of them, no contrast in the first 0.25 s.
        frame_rate: Frames a second, above 0.

    Returns:
        By name:

        | measure | unit |
        |---|---|
        | mean_swing | grey levels, 5th to 95th percentile of the mean curve |
        | beat_swing | the same of what a 0.9 s running mean leaves of it |
        | fill | grey levels the black-hat curve gains from the start to its fullest |
        | half_fill_s | seconds from the first frame to half of that |
        | fill_s | seconds from 20 to 80 % of it |
        | late_share | share of it that is left in the last 0.2 s |
        | cine_noise | grey levels, from differences of early frames |
        | cine_fine_noise | its power at 0.3 to 0.5 cycles a pixel over that at 0.1 to 0.2 |

    Raises:
        ValueError: There are too few frames, or the frame rate is not above 0.
    """
    if frame_rate <= 0 or len(frames) < 1.5 * frame_rate:
        raise ValueError(f"a cine needs 1.5 s, got {len(frames)} frames at {frame_rate} a second")
    field = open_field(np.median(frames[:: max(1, len(frames) // 15)], axis=0).astype(np.uint8))
    early = max(3, round(EARLY_S * frame_rate))
    mean = mean_curve(frames, field)
    wobble = mean - _running_mean(mean, round(BEAT_S * frame_rate))
    patches = difference_noise(frames[:early], field)
    frequency, power = noise_power(patches)
    coarse = power[(frequency >= 0.1) & (frequency <= 0.2)].mean()
    return {
        "mean_swing": float(np.ptp(np.percentile(mean, [5, 95]))),
        "beat_swing": float(np.ptp(np.percentile(wobble, [5, 95]))),
        **filling(fill_curve(frames, field), frame_rate),
        "cine_noise": float(np.median(patches.std(axis=(1, 2)))),
        "cine_fine_noise": float(power[frequency >= 0.3].mean() / coarse),
    }


def mean_curve(frames: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Return the (t,) mean grey levels of a cine's frames (t, H, W) in the open field (H, W)."""
    return np.array([frame[field].mean(dtype=float) for frame in frames])


def fill_curve(frames: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Return how much narrow darkness each frame holds: the mean black hat in the open field.

    Args:
        frames: (t, H, W) uint8.
        field: (H, W) bool.

    Returns:
        (t,) grey levels; contrast adds to what noise, catheter and ribs hold anyway.

    Source:
        Black hat: closing minus picture, Meyer 1979.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (WIDEST_PX, WIDEST_PX))
    hats = (cv2.morphologyEx(f, cv2.MORPH_BLACKHAT, disc) for f in frames)
    return np.array([hat[field].mean(dtype=float) for hat in hats])


def filling(curve: np.ndarray, frame_rate: float) -> dict[str, float]:
    """Read depth and pace of the filling off a curve.

    Args:
        curve: (t,) from `fill_curve`, rising with contrast.
        frame_rate: Frames a second.

    Returns:
        fill, half_fill_s, fill_s and late_share, as in `measure_cine`; the last three are missing
        where the curve never rises.
    """
    smooth = _running_mean(curve, max(1, round(SMOOTH_S * frame_rate)))
    before = float(np.median(curve[: max(3, round(EARLY_S * frame_rate))]))
    fullest = int(np.argmax(smooth))
    gain = float(smooth[fullest]) - before
    if gain <= 0 or fullest == 0:
        return {"fill": gain, "half_fill_s": np.nan, "fill_s": np.nan, "late_share": np.nan}
    at = [_last_rise(smooth[: fullest + 1], before + share * gain) for share in (0.2, 0.5, 0.8)]
    return {
        "fill": gain,
        "half_fill_s": at[1] / frame_rate,
        "fill_s": (at[2] - at[0]) / frame_rate,
        "late_share": (float(smooth[-1]) - before) / gain,
    }


def difference_noise(frames: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Cut flat patches out of neighbouring frames' differences, divided by the square root of 2.

    What stands still cancels out, so what is left in the flattest patches is one frame's noise.

    Args:
        frames: (t, H, W) uint8, at least two, best before any contrast.
        field: (H, W) bool.

    Returns:
        (n, 32, 32) grey levels about 0.

    Raises:
        ValueError: There are fewer than two frames, or no patch fits into the field.
    """
    if len(frames) < 2:
        raise ValueError(f"a difference needs two frames, got {len(frames)}")
    field = field & (frames > 5).all(axis=0) & (frames < 250).all(axis=0)  # clipping hides noise
    steps = np.diff(frames.astype(np.float32), axis=0) / np.sqrt(2)
    return np.concatenate([flat_patches(step, field) for step in steps])


def _running_mean(curve: np.ndarray, width: int) -> np.ndarray:
    """Centred running mean over an odd number of frames, fewer at the ends."""
    half = width // 2
    return np.array([curve[max(0, i - half) : i + half + 1].mean() for i in range(len(curve))])


def _last_rise(curve: np.ndarray, level: float) -> float:
    """Index, interpolated, at which a curve that ends above a level last comes up through it."""
    below = np.flatnonzero(curve < level)
    if not len(below):
        return 0.0
    i = below[-1]
    return float(i + (level - curve[i]) / (curve[i + 1] - curve[i]))
