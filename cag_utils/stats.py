"""Intervals that respect who the data come from: whole patients are resampled, never frames."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd


class Estimate(NamedTuple):
    """A figure and its interval, `low <= value <= high`; all NaN where it is undefined."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(*[float("nan")] * 3)


def cluster_bootstrap(
    groups: Sequence[str],
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    n_resamples: int,
    seed: int,
    level: float = 0.95,
) -> list[Estimate]:
    """Estimate statistics of sums with a percentile bootstrap over groups.

    Frames of one patient resemble each other. Resampling frames would pretend that they are
    independent and give an interval that is too narrow; so patients are drawn with replacement,
    each with all of their frames. A mean, an F1 and a calibration error need nothing of a patient
    but the sums over their frames, and sums of drawn patients are one matrix product.

    Args:
        groups: (n,) the patient or exam of each row.
        values: (n, ...) what adds up of each row: a number and a one for a mean, a cell of a
            confusion matrix for an F1.
        statistic: Sums (...) to one or m figures, and for all resamples at once (r, ...) to (r,) or
            (r, m).
        n_resamples: Bootstrap samples, 1 or more.
        seed: Of the resampling.
        level: Confidence level, between 0 and 1.

    Returns:
        An estimate for each of the m figures. A resample on which a figure is undefined (no lesion
        was drawn, say) is left out of its interval; a figure that is undefined for all rows, or in
        every resample, is NaN. With one group there is nothing to resample: the interval is the
        value itself. Where a skewed figure falls outside its interval, that is widened to hold it.

    Raises:
        ValueError: There is no row, a row has no group, or `n_resamples` or `level` is out of
            range.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 8.
    """
    codes, names = pd.factorize(np.asarray(groups, dtype=object), sort=True)
    if not len(codes):
        raise ValueError("no rows to bootstrap")
    if (codes < 0).any():
        raise ValueError(f"{(codes < 0).sum()} rows have no group (patient, exam): whose are they?")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be 1 or more, got {n_resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    values = np.asarray(values, float)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, codes, values)
    drawn = np.random.default_rng(seed).integers(len(names), size=(n_resamples, len(names)))
    times = np.zeros((n_resamples, len(names)))
    np.add.at(times, (np.arange(n_resamples)[:, None], drawn), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = np.atleast_1d(statistic(sums.sum(0)))
        samples = np.asarray(statistic(np.tensordot(times, sums, 1))).reshape(n_resamples, -1)
    return [_percentiles(*pair, level) for pair in zip(figures, samples.T, strict=True)]


def mean_interval(
    data: pd.DataFrame,
    groups: str,
    column: str,
    n_resamples: int,
    seed: int,
    level: float = 0.95,
) -> Estimate:
    """Estimate a column's mean with `cluster_bootstrap`.

    Args:
        data: One row an observation.
        groups: Column that names the patient or exam.
        column: Numbers, none missing.
        n_resamples: Bootstrap samples, 1 or more.
        seed: Of the resampling.
        level: Confidence level, between 0 and 1.

    Returns:
        The mean over rows and its interval.

    Raises:
        ValueError: As `cluster_bootstrap`, or a number is missing.
    """
    x = data[column].to_numpy(float)
    if np.isnan(x).any():
        raise ValueError(f"{np.isnan(x).sum()} rows have no {column}: a mean would hide them")
    pairs = np.column_stack([x, np.ones_like(x)])
    [found] = cluster_bootstrap(
        data[groups], pairs, lambda sums: sums[..., 0] / sums[..., 1], n_resamples, seed, level
    )
    return found


def paired_difference(
    data: pd.DataFrame,
    groups: str,
    first: str,
    second: str,
    n_resamples: int,
    seed: int,
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean of `first - second` over rows that hold both, by group.

    Args:
        data: One row a case, with both columns.
        groups: Column that names the patient or exam.
        first: Column of one model's figures.
        second: Column of the other's, on the same cases.
        n_resamples: Bootstrap samples.
        seed: Of the resampling.
        level: Confidence level.

    Returns:
        The mean difference and its interval; an interval clear of 0 tells the two apart.

    Raises:
        ValueError: As `cluster_bootstrap`, or a figure is missing on either side.
    """
    if data[[first, second]].isna().any(axis=None):
        raise ValueError(f"a paired difference needs both {first!r} and {second!r} on every row")
    paired = data.assign(_difference=data[first].astype(float) - data[second].astype(float))
    return mean_interval(paired, groups, "_difference", n_resamples, seed, level)


def _percentiles(value: float, samples: np.ndarray, level: float) -> Estimate:
    """Return a figure and its samples' percentile interval, widened to hold the figure."""
    defined = samples[np.isfinite(samples)]
    if not np.isfinite(value) or not len(defined):
        return UNDEFINED
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), min(float(value), float(low)), max(float(value), float(high)))
