"""The key frame a cine: which one the network picks, and how far it is from a good one."""

from pathlib import Path

import numpy as np
import pandas as pd

from cag_utils.identity import study_id
from cag_utils.pairs import choose_key_frames
from cag_utils.profiles import Stats
from cag_utils.stats import Estimate, mean_interval

FILLING = "filling"


def read_filling(truth_frames: Path, key: bytes) -> pd.DataFrame:
    """Read how well the vessels of each phantom frame are filled.

    Args:
        truth_frames: The phantom's `truth_frames.csv`.
        key: Secret of the pseudonyms.

    Returns:
        video_id, frame, contrast and filling: the opacified share of the tree times its contrast,
        this study's own measure of a phantom's best frame; no reader ever gave it.
    """
    truth = pd.read_csv(truth_frames, dtype={"video": str})
    names = {video: study_id("video", video, key) for video in set(truth["video"])}
    truth["video_id"] = truth["video"].map(names)
    truth[FILLING] = truth["opacified"] * truth["contrast"]
    return truth[["video_id", "frame", "contrast", FILLING]]


def pick_firsts(seen: pd.DataFrame, min_confidence: float) -> pd.DataFrame:
    """Pick each cine's surest key frame by notebook 03's rule, and compare with the labels.

    Args:
        seen: One row a sampled, labelled frame: patient_id, video_id, frame, label, frame_time_ms,
            and the columns of `keyframes.describe`. With a column `filling` (phantom only) the best
            frame is known as well.
        min_confidence: See `corpus.choose_key_frames`.

    Returns:
        One row a cine: patient_id, video_id, frame_time_ms, n_sampled, n_better, picked (frame,
        NaN if none), label (of the picked), confidence, is_better (picked one labelled `better`),
        nearest (the nearest `better` frame among the sampled), best (of the `better` ones the best
        filled, the first of equals), and their distances from the picked one, frames_to_nearest
        and frames_to_best. NaN where there is nothing to tell.

    Raises:
        ValueError: There are no frames.
    """
    if seen.empty:
        raise ValueError("no frames to pick from")
    chosen = choose_key_frames(seen, 1, min_confidence).set_index("video_id")
    rows = []
    for video, own in seen.groupby("video_id"):
        better = own[own["label"].str.endswith("_better")]
        row = {"patient_id": own["patient_id"].iloc[0], "video_id": video}
        row |= {"frame_time_ms": own["frame_time_ms"].iloc[0], "n_sampled": len(own)}
        row |= {"n_better": len(better), "best": _best(better)}
        picked = chosen.loc[video] if video in chosen.index else None
        rows.append(row | _compare(picked, better["frame"].to_numpy(float), row["best"]))
    return pd.DataFrame(rows)


def _best(better: pd.DataFrame) -> float:
    """The best filled frame; NaN without a better one or without the phantom's truth."""
    if better.empty or FILLING not in better or better[FILLING].isna().all():
        return float("nan")
    order = better.sort_values([FILLING, "frame"], ascending=[False, True])
    return float(order["frame"].iloc[0])


def _compare(picked: pd.Series | None, better: np.ndarray, best: float) -> dict[str, object]:
    """A cine's pick beside its better frames."""
    if picked is None:
        names = ("picked", "confidence", "nearest", "frames_to_nearest", "frames_to_best")
        return dict.fromkeys(names, float("nan")) | {"label": None, "is_better": False}
    frame = float(picked["frame"])
    nearest = better[np.abs(better - frame).argmin()] if len(better) else float("nan")
    return {
        "picked": frame,
        "label": picked["label"],
        "confidence": float(picked["confidence"]),
        "is_better": picked["label"].endswith("_better"),
        "nearest": nearest,
        "frames_to_nearest": abs(frame - nearest),
        "frames_to_best": abs(frame - best),
    }


def summarise_picks(picks: pd.DataFrame, stats: Stats, seed: int) -> pd.DataFrame:
    """Turn the picks into shares with intervals by patient.

    Args:
        picks: Of `pick_firsts`.
        stats: Number of resamples and level.
        seed: Of the resampling.

    Returns:
        One row a share: name, share, low, high, cines (it is a share of), chance: the same for a
        frame drawn evenly from each cine's sampled ones, NaN where that makes no sense. Shares of
        no cine are NaN.
    """
    has_pick, has_better = picks["picked"].notna(), picks["n_better"] > 0
    table = picks.assign(
        none=~has_pick,
        near=picks["frames_to_nearest"] <= 5,
        near_best=picks["frames_to_best"] <= 5,
        chance=picks["n_better"] / picks["n_sampled"],
    )
    shares = {
        "pick is better, of cines with a pick": (has_pick, "is_better"),
        "pick is better, of those with a better frame": (has_pick & has_better, "is_better"),
        "pick within 5 frames of a better one": (has_pick & has_better, "near"),
        "pick within 5 frames of the best": (has_pick & picks["best"].notna(), "near_best"),
        "no pick, of cines without a better frame": (~has_better, "none"),
        "no pick, of cines with a better frame": (has_better, "none"),
    }
    rows = []
    for name, (of, column) in shares.items():
        own = table[of]
        estimate = _share(own, column, stats, seed)
        chance = own["chance"].mean() if column == "is_better" else float("nan")
        rows.append((name, *estimate, len(own), chance))
    return pd.DataFrame(rows, columns=["name", "share", "low", "high", "cines", "chance"])


def _share(rows: pd.DataFrame, column: str, stats: Stats, seed: int) -> Estimate:
    if rows.empty:
        return Estimate(*[float("nan")] * 3)
    return mean_interval(rows, "patient_id", column, stats.n_resamples, seed, stats.level)


def measure_distances(picks: pd.DataFrame) -> pd.DataFrame:
    """Tabulate how far picks are from the nearest and from the best `better` frame.

    Args:
        picks: Of `pick_firsts`.

    Returns:
        One row each for nearest and best (the latter only if a best one is known): to, cines,
        median_frames, p90_frames, median_s, p90_s. Seconds are NaN where no header has a time.
    """
    rows = []
    for to in ("nearest", "best"):
        own = picks.dropna(subset=f"frames_to_{to}")
        if own.empty and to == "best":
            continue
        frames = own[f"frames_to_{to}"]
        seconds = frames * own["frame_time_ms"] / 1000
        numbers = [x.quantile(q) for x in (frames, seconds) for q in (0.5, 0.9)]
        rows.append((to, len(own), *numbers))
    columns = ["to", "cines", "median_frames", "p90_frames", "median_s", "p90_s"]
    return pd.DataFrame(rows, columns=columns)
