"""The paper's rule for frames worth a look: extrema of each frame's mean and variance."""

from collections.abc import Iterable

import cv2
import numpy as np
import pandas as pd
from scipy.signal import find_peaks, peak_prominences


def frame_statistics(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return each frame's mean and variance of pixel intensity, one frame in memory at a time.

    Args:
        frames: T frames, each (H, W), uint8 or float.

    Returns:
        Two float64 arrays (T,): mean in grey levels, population variance in grey levels squared.
    """
    pairs = [cv2.meanStdDev(frame) for frame in frames]
    table = np.array([(mean[0, 0], sd[0, 0] ** 2) for mean, sd in pairs]).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def local_extrema(curve: np.ndarray) -> pd.DataFrame:
    """Find the local maxima and minima of a curve.

    A frame is a maximum if the curve falls on both sides of it. A plateau counts once, at its
    middle frame (of two middle frames the earlier). The first and last frame have one side only
    and are never extrema.

    Args:
        curve: (T,), finite.

    Returns:
        One row an extremum, by frame: `frame`, `kind` (max or min), `prominence` (how far the
        curve must fall, or rise, before it can pass the extremum, in units of the curve's SD).

    Raises:
        ValueError: The curve is not one-dimensional and finite.
    """
    curve = np.asarray(curve, dtype=np.float64)
    if curve.ndim != 1 or not np.isfinite(curve).all():
        raise ValueError(f"a curve is (T,) and finite, got shape {curve.shape} with NaN or inf")
    spread = curve.std() if curve.size else 0.0
    found = []
    for kind, signed in (("max", curve), ("min", -curve)):
        frames, _ = find_peaks(signed)
        heights = peak_prominences(signed, frames)[0] / spread if frames.size else []
        found += zip(frames.tolist(), [kind] * frames.size, heights, strict=True)
    columns = list(zip(*sorted(found), strict=True)) or [(), (), ()]
    return pd.DataFrame(
        {
            "frame": np.array(columns[0], dtype=np.int64),
            "kind": list(columns[1]),
            "prominence": np.array(columns[2], dtype=np.float64),
        }
    )


def pick_frames(mean: np.ndarray, variance: np.ndarray, min_gap: int = 5) -> pd.DataFrame:
    """Pick a cine's frames: extrema of either curve, at least `min_gap` frames apart.

    Extrema crowd together, and which ones survive the gap must not depend on where counting
    starts. So the most prominent is taken first, then the next that is far enough from all taken,
    and so on; among equals the earlier frame. The fullest frame of an injection is thus never
    lost to a flicker just before it. (A ripple's maximum and minimum are equally prominent, so a
    film played backwards has the same extrema but need not have the same picks.)

    Args:
        mean: (T,) mean intensity of each frame.
        variance: (T,) variance of each frame.
        min_gap: Least distance between two picks, in frames, at least 1.

    Returns:
        One row a pick, in time order: `frame`, `reason` (e.g. `mean_min`, or several joined by
        `+`), `prominence`. Empty if both curves are monotone or constant: nothing happened in
        such a cine.

    Raises:
        ValueError: The curves differ in length, or `min_gap` is below 1.

    Source:
        Nakamura et al., CAG-VLM, section 3.1; the order and the plateau rule are the study's own.
    """
    if len(mean) != len(variance):
        raise ValueError(f"mean has {len(mean)} frames, variance {len(variance)}: same cine?")
    if min_gap < 1:
        raise ValueError(f"min_gap must be at least 1 frame, got {min_gap}")
    reasons: dict[int, list[str]] = {}
    prominence: dict[int, float] = {}
    for name, curve in (("mean", mean), ("variance", variance)):
        for frame, kind, height in local_extrema(curve).itertuples(index=False):
            reasons.setdefault(frame, []).append(f"{name}_{kind}")
            prominence[frame] = max(height, prominence.get(frame, 0.0))
    taken: list[int] = []
    for frame in sorted(prominence, key=lambda f: (-round(prominence[f], 9), f)):
        if all(abs(frame - other) >= min_gap for other in taken):
            taken.append(frame)
    taken.sort()
    return pd.DataFrame(
        {
            "frame": np.array(taken, dtype=np.int64),
            "reason": ["+".join(reasons[frame]) for frame in taken],
            "prominence": np.array([prominence[frame] for frame in taken], dtype=np.float64),
        }
    )
