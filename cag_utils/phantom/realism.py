"""What a picture looks like, in numbers that need no mask: measured alike on phantom and real ones.

Every measure is a plain method whose settings are the same for both sides, so that its bias is too.
A real still has no vessel mask: its vessels are its strongest dark lines (`realism_lines`). Nothing
here is fitted to, or tuned on, a real picture.
"""

import cv2
import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance

from cag_utils.cine_stills import flat_patches, open_field
from cag_utils.phantom.realism_lines import SHORTEST_PX, dark_lines

IQR_OVER_SIGMA = 1.349  # of a normal distribution
BANDS_PX = ((1, 2), (2, 4), (4, 8), (8, 16), (16, 32))  # band-pass Gaussians' sigmas


def grey_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the 1-D Wasserstein distance of two sets of grey levels: the work to turn one into
    the other, grey levels.

    Args:
        first: Grey levels 0 to 255, any shape.
        second: Likewise.

    Raises:
        ValueError: One is empty.
    """  # noqa: D205
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

    Args:
        picture: (H, W) uint8.

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
    inside = picture[field]
    patches = flat_patches(picture, field)
    sigma = float(np.median(patches.std(axis=(1, 2))))
    at, power = noise_power(patches)
    fine = power[at >= 0.3].mean() / power[(at >= 0.1) & (at <= 0.2)].mean()
    facts = {
        "mean_grey": inside.mean(),
        "grey_sd": inside.std(),
        "shutter_share": 1 - field.mean(),
        "noise_sigma": sigma,
        "fine_noise": fine,
    }
    facts |= _bands(picture, field) | _line_facts(picture, field, sigma)
    return {name: float(value) for name, value in facts.items()}


def _bands(picture: np.ndarray, field: np.ndarray) -> dict[str, float]:
    """Strength of structures by size; shutters are filled with the field's mean first."""
    filled = np.where(field, picture, picture[field].mean()).astype(np.float32)
    facts = {}
    for fine, coarse in BANDS_PX:
        band = cv2.GaussianBlur(filled, (0, 0), fine) - cv2.GaussianBlur(filled, (0, 0), coarse)
        inner = cv2.erode(np.pad(field, 1).astype(np.uint8), np.ones((4 * fine + 1,) * 2))
        inner = inner[1:-1, 1:-1] > 0
        facts[f"band_{fine}"] = band[inner].std() if inner.any() else np.nan
    return facts


def _line_facts(picture: np.ndarray, field: np.ndarray, sigma: float) -> dict[str, float]:
    """Medians over a picture's lines."""
    lines = dark_lines(picture, field)
    if len(lines.depth) < SHORTEST_PX:
        names = ("line_width_px", "line_depth", "line_cnr", "line_edge_px", "overshoot",
                 "thin_line_px", "wide_line_px")  # fmt: skip
        return dict.fromkeys(names, np.nan)
    depth = np.median(lines.depth)
    return {
        "line_width_px": np.median(lines.width_px),
        "line_depth": depth,
        "line_cnr": depth / sigma if sigma else np.nan,
        "line_edge_px": np.median(lines.edge_px),
        "overshoot": np.median(lines.overshoot),
        "thin_line_px": np.percentile(lines.width_px, 10),
        "wide_line_px": np.percentile(lines.width_px, 90),
    }


def compare_measures(real: pd.DataFrame, phantom: pd.DataFrame) -> pd.DataFrame:
    """Put real and phantom measures side by side.

    Args:
        real: One row a picture (or cine), one column a measure.
        phantom: Likewise.

    Returns:
        Columns measure, real, real_low, real_high (median and quartiles), n_real, phantom,
        phantom_low, phantom_high, n_phantom, difference and unit: the medians' difference in units
        of the real spread (interquartile range over 1.349, a normal distribution's standard
        deviation), or of the phantom's where only one real one was measured; missing where that
        spread is zero. The largest come first.

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
            row |= {
                side: middle,
                f"{side}_low": low,
                f"{side}_high": high,
                f"n_{side}": len(values),
            }
        unit = "real" if row["n_real"] > 1 else "phantom"
        spread = (row[f"{unit}_high"] - row[f"{unit}_low"]) / IQR_OVER_SIGMA
        gap = row["phantom"] - row["real"]
        row["difference"] = gap / spread if spread > 0 else np.nan
        rows.append(row | {"unit": f"{unit} spread"})
    return pd.DataFrame(rows).sort_values(
        "difference", key=np.abs, ascending=False, ignore_index=True
    )
