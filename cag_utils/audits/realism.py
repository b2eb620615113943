"""What a picture looks like, in numbers that need no mask: measured alike on phantom and real ones.

Every measure is a plain method whose settings are the same for both sides, so that its bias is too.
A real still has no vessel mask: its vessels are its strongest dark lines (`dark_lines`). Nothing
here is fitted to, or tuned on, a real picture. A `picture` is (H, W) uint8 and its `field` (H, W)
bool from `open_field`; `frames` are (t, H, W) uint8 at `frame_rate` a second.
"""

import cv2
import numpy as np
import pandas as pd
from scipy.ndimage import map_coordinates
from scipy.stats import wasserstein_distance

from cag_utils.cines.stills import flat_patches, open_field

IQR_OVER_SIGMA = 1.349  # of a normal distribution
BANDS_PX = ((1, 2), (2, 4), (4, 8), (8, 16), (16, 32))  # band-pass Gaussians' sigmas
RIDGE_SIGMAS_PX = (1.5, 2.5, 4.0, 6.0)  # widths of about 3 to 17 px; choice
RIDGE_SHARE = 0.006  # strongest ridge pixels, share of the open field, whatever their contrast
SHORTEST_PX = 25  # shorter ridges are noise; choice
BORDER_PX = 12  # ridges this near the shutters may be the shutters' own; choice
MOST_POINTS = 400  # measured a picture, evenly spread over the ridges; choice, for speed
REACH_PX, STEP_PX, ALONG_PX = 24.0, 0.5, 2  # profile half length, spacing, averaging along the line
SHOULDER = 0.3  # share of the depth by which a profile must fall to have had its shoulder
BEYOND_PX, HALO_PX = (8, 14), (2, 5)  # from the edge: background, and where enhancement overshoots
EARLY_S = 0.25  # of a cine, surely before contrast; choice
SMOOTH_S, BEAT_S = 0.2, 0.9  # running means: against noise; about one beat; choices
WIDEST_PX = 17  # of a dark structure that the black hat keeps; choice, 4 mm at 0.23 mm a pixel


def grey_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the 1-D Wasserstein distance, in grey levels, of two sets of levels 0 to 255.

    Raises:
        ValueError: One is empty.
    """
    if not np.size(first) or not np.size(second):
        raise ValueError("a histogram needs at least one grey level")
    counts = [np.bincount(np.asarray(w, np.uint8).ravel(), minlength=256) for w in (first, second)]
    return float(wasserstein_distance(np.arange(256), np.arange(256), *counts))


def noise_power(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the radial noise power spectrum of detrended patches.

    Args:
        patches: (n, N, N) grey levels about 0, n at least 1.

    Returns:
        ((N/2 - 1,) cycles a pixel, from 2/N to 1/2, and (N/2 - 1,) power, grey levels squared times
        pixels squared): white noise of variance s has power s at every frequency.

    Raises:
        ValueError: The patches are not square, or there is none.

    Source:
        IEC 62220-1-1 (detrend, average the squared transforms of many patches); the Hann window is
        a choice, against what leaks from the patch's edges.
    """
    if patches.ndim != 3 or patches.shape[1] != patches.shape[2] or not len(patches):
        raise ValueError(f"patches must be (n, N, N) with n >= 1, got {patches.shape}")
    n_px = patches.shape[1]
    window = np.hanning(n_px + 2)[1:-1]
    window = window[:, None] * window
    power = (np.abs(np.fft.fft2(patches * window)) ** 2).mean(axis=0) / (window**2).sum()
    at = np.fft.fftfreq(n_px)
    ring = np.rint(np.hypot(at[:, None], at) * n_px).astype(int)
    rings = np.arange(2, n_px // 2 + 1)
    return rings / n_px, np.array([power[ring == k].mean() for k in rings])


def measure_picture(picture: np.ndarray) -> dict[str, float]:
    """Measure one picture.

    Returns:
        By name, NaN where a picture has too few lines:

        | measure | unit |
        |---|---|
        | mean_grey, grey_sd | grey levels in the open field |
        | shutter_share | dark share of the picture, 0 to 1 |
        | noise_sigma | grey levels, flat patches |
        | fine_noise | noise power at 0.3 to 0.5 cycles a pixel over that at 0.1 to 0.2 |
        | band_1 ... band_16 | standard deviation between Gaussians of 1 and 2 ... 16 and 32 px |
        | line_width_px, line_depth, line_cnr, line_edge_px, overshoot | medians over its lines |
        | thin_line_px, wide_line_px | 10th and 90th percentile of the lines' widths |

    Raises:
        ValueError: It is no 8-bit picture, or has no open field to speak of.
    """
    field = open_field(picture)
    sigma, fine_noise = _noise(flat_patches(picture, field))
    inside = picture[field]
    facts = {"mean_grey": inside.mean(), "grey_sd": inside.std(), "shutter_share": 1 - field.mean()}
    facts |= {"noise_sigma": sigma, "fine_noise": fine_noise}
    filled = np.where(field, picture, inside.mean()).astype(np.float32)  # the shutters too
    for fine, coarse in BANDS_PX:
        band = cv2.GaussianBlur(filled, (0, 0), fine) - cv2.GaussianBlur(filled, (0, 0), coarse)
        inner = _shrink(field, 2 * fine)
        facts[f"band_{fine}"] = band[inner].std() if inner.any() else np.nan
    lines = dark_lines(picture, field)
    if len(lines) < SHORTEST_PX:
        lines = lines.iloc[:0]
    middle = lines.median()
    facts |= {"line_width_px": middle["width_px"], "line_depth": middle["depth"]}
    facts["line_cnr"] = middle["depth"] / sigma if sigma else np.nan
    facts |= {"line_edge_px": middle["edge_px"], "overshoot": middle["overshoot"]}
    facts["thin_line_px"], facts["wide_line_px"] = lines["width_px"].quantile([0.1, 0.9])
    return {name: float(value) for name, value in facts.items()}


def _noise(patches: np.ndarray) -> tuple[float, float]:
    """Standard deviation, and power at 0.3 to 0.5 cycles a pixel over that at 0.1 to 0.2."""
    at, power = noise_power(patches)
    coarse = power[(at >= 0.1) & (at <= 0.2)].mean()
    return float(np.median(patches.std(axis=(1, 2)))), float(power[at >= 0.3].mean() / coarse)


def _shrink(field: np.ndarray, margin_px: int) -> np.ndarray:
    """The part of the open field that is farther than this from its edge."""
    kernel = np.ones((2 * margin_px + 1,) * 2)
    return cv2.erode(np.pad(field, 1).astype(np.uint8), kernel)[1:-1, 1:-1] > 0


def compare_measures(real: pd.DataFrame, phantom: pd.DataFrame) -> pd.DataFrame:
    """Put real and phantom measures side by side.

    Args:
        real: One row a picture (or cine), one column a measure.

    Returns:
        Columns measure, real, real_low, real_high (median and quartiles), n_real, the same of the
        phantom, difference and unit: the medians' difference in units of the real spread
        (interquartile range over 1.349, a normal distribution's standard deviation), or of the
        phantom's where only one real one was measured; missing where it is zero. Largest first.

    Raises:
        ValueError: The two share no measure, or one of them has no row.
    """
    shared = [name for name in real if name in phantom]
    if not shared or real.empty or phantom.empty:
        raise ValueError("nothing to compare: both sides need rows and at least one shared measure")
    rows = []
    for name in shared:
        row = {"measure": name}
        for side, table in (("real", real), ("phantom", phantom)):
            values = table[name].dropna()
            low, middle, high = values.quantile([0.25, 0.5, 0.75])
            row |= {side: middle, f"{side}_low": low, f"{side}_high": high}
            row[f"n_{side}"] = len(values)
        unit = "real" if row["n_real"] > 1 else "phantom"
        spread = (row[f"{unit}_high"] - row[f"{unit}_low"]) / IQR_OVER_SIGMA
        gap = row["phantom"] - row["real"]
        row["difference"] = gap / spread if spread > 0 else np.nan
        rows.append(row | {"unit": f"{unit} spread"})
    order = {"key": np.abs, "ascending": False, "ignore_index": True}
    return pd.DataFrame(rows).sort_values("difference", **order)


def dark_lines(picture: np.ndarray, field: np.ndarray) -> pd.DataFrame:
    """Find the strongest dark lines and measure across each of their points.

    Ridges are maxima, across themselves, of the larger eigenvalue of the Hessian at four scales.
    The strongest 0.6 % of the open field's pixels are kept, however weak, in runs of 25 px or more.

    Returns:
        One row a point: width_px (full width at half depth), depth (grey levels from the background
        beside the line to its middle), edge_px (way from 20 to 80 % of the depth, mean of both
        edges), overshoot (how much lighter 2 to 5 px outside the edge is than further out, share of
        the depth; above 0 where edges are enhanced), row and column. No row where there is no line.

    Source:
        Scale-normalised ridges: Lindeberg, IJCV 30(2), 1998.
    """
    strength, across_v, across_u = _ridges(picture.astype(np.float32))
    strength[~_shrink(field, BORDER_PX)] = 0
    weakest = np.sort(strength, axis=None)[-1 - int(RIDGE_SHARE * field.sum())]
    chosen = strength > max(1e-3, float(weakest))
    _, parts, facts, _ = cv2.connectedComponentsWithStats(chosen.astype(np.uint8), connectivity=8)
    long = facts[:, cv2.CC_STAT_AREA] >= SHORTEST_PX
    long[0] = False
    row, column = np.nonzero(long[parts])
    spread = np.linspace(0, len(row) - 1, min(len(row), MOST_POINTS)).astype(int)
    at = row, column = row[spread], column[spread]
    profiles = _profiles(picture, row, column, across_v[at], across_u[at])
    names = ["width_px", "depth", "edge_px", "overshoot"]
    found = pd.DataFrame(map(_measure, profiles), columns=names, dtype=float)
    return found.assign(row=row, column=column).dropna(ignore_index=True)


def _ridges(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strength of dark ridges where they are maximal, 0 elsewhere, and the way across them."""
    best = [np.zeros_like(picture) for _ in range(3)]
    for sigma in RIDGE_SIGMAS_PX:
        smooth = cv2.GaussianBlur(picture, (0, 0), sigma)
        vv, uu, uv = (
            cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=3, scale=0.25) * sigma**2
            for order in ((0, 2), (2, 0), (1, 1))
        )
        angle = 0.5 * np.arctan2(2 * uv, uu - vv)
        value = (uu + vv) / 2 + np.hypot((uu - vv) / 2, uv)
        stronger = value > best[0]
        for target, new in zip(best, (value, np.sin(angle), np.cos(angle)), strict=True):
            target[stronger] = new[stronger]
    strength, across_v, across_u = best
    v, u = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    before, after = (
        cv2.remap(strength, u + way * across_u, v + way * across_v, cv2.INTER_LINEAR)
        for way in (-1, 1)
    )
    strength = np.where((strength >= before) & (strength > after), strength, 0)
    return strength, across_v, across_u


def _profiles(picture, row, column, across_v, across_u) -> np.ndarray:
    """(n, 97) grey levels across each point, averaged over five pixels along the line."""
    away = np.arange(-REACH_PX, REACH_PX + STEP_PX / 2, STEP_PX)
    along = np.arange(-ALONG_PX, ALONG_PX + 1)[:, None, None]
    v = row[:, None] + across_v[:, None] * away + along * across_u[:, None]
    u = column[:, None] + across_u[:, None] * away - along * across_v[:, None]
    return map_coordinates(picture.astype(np.float32), [v, u], order=3, mode="nearest").mean(axis=0)


def _measure(profile: np.ndarray) -> tuple[float, float, float, float]:
    """Measure one profile: (width, depth, edge, overshoot), NaN where it has no two edges."""
    middle = len(profile) // 2
    low = middle - 4 + int(np.argmin(profile[middle - 4 : middle + 5]))
    sides = profile[low::-1], profile[low:]
    floor = float(profile[low])
    fall = max(1e-6, SHOULDER * float(np.median(profile) - floor))
    half = sum(_reach(side, (floor + _shoulder(side, fall)) / 2) for side in sides) / 2
    beyond = [_mean(side, half, BEYOND_PX) for side in sides]
    depth = sum(beyond) / 2 - floor
    if not depth > 0:  # also where a profile ends before its background begins
        return (np.nan,) * 4
    edges = [
        [_reach(side, floor + share * (level - floor)) for share in (0.2, 0.5, 0.8)]
        for side, level in zip(sides, beyond, strict=True)
    ]
    near = sum(_mean(side, at[1], HALO_PX) for side, at in zip(sides, edges, strict=True)) / 2
    edge = (edges[0][2] - edges[0][0] + edges[1][2] - edges[1][0]) / 2
    return edges[0][1] + edges[1][1], depth, edge, (near - floor - depth) / depth


def _shoulder(side: np.ndarray, fall: float) -> float:
    """Highest grey level going outwards before the profile falls again by more than noise does."""
    top = np.maximum.accumulate(side)
    fallen = np.flatnonzero(top - side > fall)
    return float(top[fallen[0]] if len(fallen) else top[-1])


def _reach(side: np.ndarray, level: float) -> float:
    """Pixels outwards until a profile first comes up to a level; NaN if it never does."""
    above = np.flatnonzero(side >= level)
    if not len(above) or above[0] == 0:
        return np.nan
    i = above[0]
    return STEP_PX * (i - (side[i] - level) / (side[i] - side[i - 1]))


def _mean(side: np.ndarray, edge_px: float, beyond_px: tuple[int, int]) -> float:
    """Mean of a profile between two ways from its edge; NaN if it has none or is too short."""
    first_px, last_px = edge_px + beyond_px[0], edge_px + beyond_px[1]
    if not (np.isfinite(first_px) and last_px / STEP_PX < len(side)):
        return np.nan
    return float(side[int(first_px / STEP_PX) : int(last_px / STEP_PX) + 1].mean())


def measure_cine(frames: np.ndarray, frame_rate: float) -> dict[str, float]:
    """Measure one cine.

    Args:
        frames: At least 1.5 s of them, no contrast in the first 0.25 s.
        frame_rate: Above 0.

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
    mean = mean_curve(frames, field)
    wobble = mean - _running_mean(mean, BEAT_S * frame_rate)
    curves = {"mean_swing": mean, "beat_swing": wobble}
    facts = {name: float(np.ptp(np.percentile(w, [5, 95]))) for name, w in curves.items()}
    facts |= filling(fill_curve(frames, field), frame_rate)
    early = max(3, round(EARLY_S * frame_rate))
    sigma, fine = _noise(difference_noise(frames[:early], field))
    return facts | {"cine_noise": sigma, "cine_fine_noise": fine}


def mean_curve(frames: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Return the (t,) mean grey levels of a cine's frames in the open field."""
    return np.array([frame[field].mean(dtype=float) for frame in frames])


def fill_curve(frames: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Return how much narrow darkness each frame holds: the mean black hat in the open field.

    (t,) grey levels; contrast adds to what noise, catheter and ribs hold anyway.

    Source:
        Black hat: closing minus picture, Meyer 1979.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (WIDEST_PX, WIDEST_PX))
    return mean_curve([cv2.morphologyEx(f, cv2.MORPH_BLACKHAT, disc) for f in frames], field)


def filling(curve: np.ndarray, frame_rate: float) -> dict[str, float]:
    """Read depth and pace of the filling off a curve.

    Args:
        curve: (t,) from `fill_curve`, rising with contrast.

    Returns:
        fill, half_fill_s, fill_s, late_share of `measure_cine`; only fill if it never rises.
    """
    smooth = _running_mean(curve, SMOOTH_S * frame_rate)
    before = float(np.median(curve[: max(3, round(EARLY_S * frame_rate))]))
    fullest = int(np.argmax(smooth))
    gain = float(smooth[fullest]) - before
    if gain <= 0 or fullest == 0:
        return {"fill": gain, "half_fill_s": np.nan, "fill_s": np.nan, "late_share": np.nan}
    at = [_last_rise(smooth[: fullest + 1], before + share * gain) for share in (0.2, 0.5, 0.8)]
    pace = {"half_fill_s": at[1] / frame_rate, "fill_s": (at[2] - at[0]) / frame_rate}
    return {"fill": gain} | pace | {"late_share": (float(smooth[-1]) - before) / gain}


def difference_noise(frames: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Cut flat patches out of neighbouring frames' differences, divided by the square root of 2.

    What stands still cancels out, so what is left in the flattest patches is one frame's noise, if
    the frames, two or more, lie before any contrast: (n, 32, 32) grey levels about 0.

    Raises:
        ValueError: There are fewer than two frames, or no patch fits into the field.
    """
    if len(frames) < 2:
        raise ValueError(f"a difference needs two frames, got {len(frames)}")
    field = field & (frames > 5).all(axis=0) & (frames < 250).all(axis=0)  # clipping hides noise
    steps = np.diff(frames.astype(np.float32), axis=0) / np.sqrt(2)
    return np.concatenate([flat_patches(step, field) for step in steps])


def _running_mean(curve: np.ndarray, width: float) -> np.ndarray:
    """Centred running mean over an odd number of frames, fewer at the ends."""
    half = round(width) // 2
    return np.array([curve[max(0, i - half) : i + half + 1].mean() for i in range(len(curve))])


def _last_rise(curve: np.ndarray, level: float) -> float:
    """Index, interpolated, at which a curve that ends above a level last comes up through it."""
    below = np.flatnonzero(curve < level)
    if not len(below):
        return 0.0
    i = below[-1]
    return float(i + (level - curve[i]) / (curve[i + 1] - curve[i]))
