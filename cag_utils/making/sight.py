"""What a trained tower sees: its reading of pictures, and figures of it on held-out ones."""

import math

import numpy as np
import pandas as pd
import torch

from cag_utils.making.stills import N_SEGMENTS, Stills, patch_labels
from cag_utils.making.tower import NARROWED, DenseTask, to_pixels
from cag_utils.segments import AHA_SEGMENTS, GRADES, is_significant


@torch.no_grad()
def look(task: DenseTask, images: np.ndarray) -> dict[str, np.ndarray]:
    """Let a trained network read pictures, (N, S, S) uint8.

    Returns:
        Of each picture: `segment` (N, P) of each patch, `octaves` (N, P) of the lumen, `place` (N,)
        the most suspect patch, P for none, and `chance` (N, 15, 7) of each segment's grades.
    """
    rows, device = [], next(task.parameters()).device
    for start in range(0, len(images), 64):
        tokens = task.read(to_pixels(images[start : start + 64]).to(device))
        suspect = task.narrowing(tokens)[..., 0]
        suspect = torch.cat([suspect, task.nowhere.expand(len(suspect), 1)], 1).argmax(1)
        octaves, chance = task.lumen(tokens)[..., 0], task.chances(tokens)
        rows.append([task.segment(tokens).argmax(-1), octaves, suspect, chance])
    columns = (torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True))
    return dict(zip(("segment", "octaves", "place", "chance"), columns, strict=True))


def score_tower(task: DenseTask, stills: Stills) -> dict[str, float]:
    """Measure a trained network on held-out stills.

    Returns:
        `patch_accuracy` (segment of vessel patches), `laterality_accuracy`, `width_error` (mean
        absolute, octaves, over vessel patches), `place_accuracy` (pictures with a plain lesion
        whose most suspect patch holds one), `segment_accuracy` (pictures with a lesion whose
        likeliest narrowed segment is a true one), `grade_accuracy` (of those named right, the
        exact grade), `grade_within_one` (one step off or exact), `lesion_f1` (segments called
        narrowed), `significant_f1` (likewise of significant ones) and `healthy_accuracy` (pictures
        without a lesion called so). Shares, 0 to 1.
    """
    seen = look(task, stills.images)
    patch = seen["segment"]
    truth = patch_labels(stills, np.arange(len(stills)), math.isqrt(patch.shape[1]))
    vessel, narrowed = truth["segment"] > 0, truth["narrowed"] >= NARROWED
    octaves = np.log2(np.maximum(truth["width_px"], 0.25))
    found = np.take_along_axis(np.pad(narrowed, ((0, 0), (0, 1))), seen["place"][:, None], 1)[:, 0]
    patch_is_lca = (patch >= 5).sum(1) > ((patch >= 1) & (patch <= 4)).sum(1)
    return {
        "patch_accuracy": float((patch == truth["segment"])[vessel].mean()),
        "laterality_accuracy": float((patch_is_lca == stills.lca).mean()),
        "width_error": float(np.abs(seen["octaves"] - octaves)[vessel].mean()),
        "place_accuracy": float(found[narrowed.any(1)].mean()),
        "significant_f1": _f1(significant_chance(seen["chance"]) > 0.5, significant(stills.grades)),
    } | _lesion_scores(seen["chance"], stills.grades)


IS_SIGNIFICANT = np.array(
    [[is_significant(segment, percent) for percent in GRADES] for segment in AHA_SEGMENTS]
)


def significant(grades: np.ndarray) -> np.ndarray:
    """Return which segments hold a significant lesion, (N, 15) bool, of (N, 15) grades from 0."""
    table = np.pad(IS_SIGNIFICANT, ((0, 0), (1, 0)))
    return table[np.arange(N_SEGMENTS), grades]


def significant_chance(chance: np.ndarray) -> np.ndarray:
    """Return the chance of a significant lesion, (N, 15), of (N, 15, 7) chances of grades."""
    return (chance[..., 1:] * IS_SIGNIFICANT).sum(-1)


def _f1(said: np.ndarray, true: np.ndarray) -> float:
    return float(2 * (said & true).sum() / max(1, said.sum() + true.sum()))


def best_threshold(chance: np.ndarray, true: np.ndarray) -> float:
    """Return the threshold, 0.05 to 0.95, at which F1 is highest on these pictures."""
    return max(np.arange(1, 20) / 20, key=lambda limit: _f1(chance > limit, true))


def score_by_part(said: np.ndarray, grades: np.ndarray) -> pd.DataFrame:
    """Say how well significant lesions are named: all, by segment, by grade.

    Args:
        said: (N, 15) bool, segments called significantly narrowed.
        grades: (N, 15) true ones, from 0.

    Returns:
        `part`, `f1` (by grade the share that is named, as nothing is named at a grade) and `n`.
    """
    true = significant(grades)
    rows = [("all", _f1(said, true), true.sum())]
    for i in np.flatnonzero(true.any(0)):
        rows.append((f"#{i + 1}", _f1(said[:, i], true[:, i]), true[:, i].sum()))
    for k in np.unique(grades[true]):
        own = true & (grades == k)
        rows.append((f"{GRADES[k - 1]} %", said[own].mean(), own.sum()))
    return pd.DataFrame(rows, columns=["part", "f1", "n"])


def _lesion_scores(chance: np.ndarray, grades: np.ndarray) -> dict[str, float]:
    """Compare (N, 15, 7) probabilities with (N, 15) grades."""
    ill = (grades > 0).any(1)
    rows = np.flatnonzero(ill)
    likeliest = (1 - chance[rows, :, 0]).argmax(1)
    right = grades[rows, likeliest] > 0
    named = chance[rows, likeliest, 1:].argmax(1) + 1
    true = grades[rows, likeliest].astype(int)
    called = chance[..., 0] < 0.5
    hits = (called & (grades > 0)).sum()
    return {
        "segment_accuracy": float(right.mean()),
        "grade_accuracy": float((named == true)[right].mean()),
        "grade_within_one": float((np.abs(named - true) <= 1)[right].mean()),
        "lesion_f1": float(2 * hits / max(1, called.sum() + (grades > 0).sum())),
        "healthy_accuracy": float((~called[~ill].any(1)).mean()) if (~ill).any() else float("nan"),
    }
