"""Does a confidence mean what it says: reliability by bins, ECE, and a temperature."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from cag_utils.labels import SIX_CLASSES
from cag_utils.profiles import Stats
from cag_utils.stats import Estimate
from cag_utils.strata import bracket, draw_weights

N_BINS = 15  # as Guo et al.
LEAST_P = 1e-12  # a probability of 0 has no logarithm


class Reliability(NamedTuple):
    """How often a network is right at each confidence.

    Attributes:
        bins: One row a bin that holds frames: from_confidence, to_confidence, n, confidence (mean),
            right (share), low, high (its interval, NaN where no resample fills the bin).
        ece: Expected calibration error and its interval, 0 to 1.
    """

    bins: pd.DataFrame
    ece: Estimate


def reliability(
    confidence: Sequence[float],
    right: Sequence[bool],
    patients: Sequence[str],
    stats: Stats,
    seed: int,
    n_bins: int = N_BINS,
) -> Reliability:
    """Compare confidence with the share of right answers.

    ECE is top-label and of equal width: the bins cut 0 to 1 evenly (the upper edge belongs to a
    bin), and the gaps between mean confidence and share right are averaged, weighted by frames.
    Chance alone makes it larger than 0, and a bootstrap adds chance: it leans upwards.

    Args:
        confidence: (n,) probability of the answer given, 0 to 1.
        right: (n,) whether the answer was right.
        patients: (n,) patient of each frame; patients are resampled, not frames.
        stats: Number of resamples and level.
        seed: Of the resampling.
        n_bins: Bins of equal width.

    Returns:
        The bins and the ECE.

    Raises:
        ValueError: There are no frames, lengths differ, or a confidence lies outside 0 to 1.

    Source:
        Naeini et al., AAAI 2015; Guo et al., ICML 2017, equation 3.
    """
    p, hit = np.asarray(confidence, float), np.asarray(right, float)
    if not len(p) or not len(p) == len(hit) == len(patients):
        raise ValueError(f"{len(p)} confidences, {len(hit)} answers, {len(patients)} patients")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a confidence must lie between 0 and 1; logits are none")
    codes, weights = draw_weights(patients, stats.n_resamples, seed)
    where = np.clip(np.ceil(p * n_bins).astype(int) - 1, 0, n_bins - 1)
    sums = np.zeros((3, codes.max() + 1, n_bins))  # frames, confidence, right
    for total, values in zip(sums, (np.ones_like(p), p, hit), strict=True):
        np.add.at(total, (codes, where), values)
    n, said, true = sums.sum(1)
    drawn = weights @ sums
    gaps = bracket(_ece(n, said, true), _ece(*drawn), stats.level)
    rows = []
    for i in np.flatnonzero(n):
        with np.errstate(invalid="ignore"):
            share = bracket(true[i] / n[i], drawn[2, :, i] / drawn[0, :, i], stats.level)
        edges = (i / n_bins, (i + 1) / n_bins)
        rows.append((*edges, int(n[i]), said[i] / n[i], *share))
    columns = ["from_confidence", "to_confidence", "n", "confidence", "right", "low", "high"]
    return Reliability(pd.DataFrame(rows, columns=columns), gaps)


def _ece(n: np.ndarray, said: np.ndarray, right: np.ndarray) -> np.ndarray:
    """ECE of sums a bin, (..., bins)."""
    return np.abs(said - right).sum(-1) / n.sum(-1)


def read_temperature(predictions_val: Path) -> float | None:
    """Fit a temperature on notebook 01's validation predictions, if it wrote any.

    Args:
        predictions_val: CSV with label and `p_<class>`.

    Returns:
        The temperature; None if the file is not there.
    """
    if not predictions_val.exists():
        return None
    table = pd.read_csv(predictions_val)
    truth = table["label"].map(SIX_CLASSES.index).to_numpy()
    return fit_temperature(table[[f"p_{c}" for c in SIX_CLASSES]].to_numpy(), truth)


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Find the temperature that makes the true classes likeliest, on frames kept for it.

    Args:
        probabilities: (n, k) of the validation frames, rows adding up to 1.
        truth: (n,) int, the true class's column.

    Returns:
        Temperature, 0.05 to 20: above 1 for a network that is too sure.

    Raises:
        ValueError: There are no frames, or lengths differ.

    Source:
        Guo et al., ICML 2017, section 4.2.
    """
    if not len(probabilities) or len(probabilities) != len(truth):
        raise ValueError(
            f"{len(probabilities)} predictions for {len(truth)} labels; need n = n > 0"
        )
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        warmed = apply_temperature(probabilities, np.exp(log_temperature))
        return -np.log(np.maximum(warmed[rows, truth], LEAST_P)).mean()

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.05, 20]), method="bounded").x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Divide log-probabilities by a temperature and normalise again; the likeliest class stays.

    Args:
        probabilities: (n, k), rows adding up to 1.
        temperature: Above 0; 1 changes nothing.

    Returns:
        (n, k) float64, rows adding up to 1.

    Raises:
        ValueError: The temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"a temperature must be above 0, got {temperature}")
    logs = np.log(np.maximum(np.asarray(probabilities, float), LEAST_P)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
