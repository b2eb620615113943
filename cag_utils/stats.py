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

    Frames of one patient resemble each other: resampling them would give an interval that is too
    narrow, so patients are drawn with replacement, each with all of their frames. A mean, an F1 and
    a calibration error need only the sums over a patient's frames: one matrix product.

    Args:
        groups: (n,) the patient or exam of each row.
        values: (n, ...) what adds up of each row: a number and a one for a mean, a cell of a
            confusion matrix for an F1.
        statistic: Sums (...) to one or m figures; all resamples at once, (r, ...) to (r[, m]).
        n_resamples: Bootstrap samples, 1 or more.
        seed: Of the resampling.
        level: Confidence level, between 0 and 1.

    Returns:
        An estimate for each of the m figures. Resamples in which one is undefined (no lesion was
        drawn, say) are left out of its interval; undefined for all rows or in every resample, it is
        NaN. With one group the interval is the value. One that misses its value is widened to it.

    Raises:
        ValueError: There is no row, or a row has no group.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 8.
    """
    codes, names = pd.factorize(np.asarray(groups, dtype=object), sort=True)
    if not len(codes):
        raise ValueError("no rows to bootstrap")
    if (codes < 0).any():
        raise ValueError(f"{(codes < 0).sum()} rows have no group (patient, exam): whose are they?")
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
    data: pd.DataFrame, groups: str, column: str, n_resamples: int, seed: int, level: float = 0.95
) -> Estimate:
    """Estimate the mean over rows of `column`, `groups` naming the patient or exam of each row.

    The other arguments are those of `cluster_bootstrap`.

    Raises:
        ValueError: As `cluster_bootstrap`, or a number is missing.
    """
    x = data[column].to_numpy(float)
    if np.isnan(x).any():
        raise ValueError(f"{np.isnan(x).sum()} rows have no {column}: a mean would hide them")
    pairs = np.column_stack([x, np.ones_like(x)])
    mean = lambda sums: sums[..., 0] / sums[..., 1]  # noqa: E731
    return cluster_bootstrap(data[groups], pairs, mean, n_resamples, seed, level)[0]


def paired_difference(
    data: pd.DataFrame, groups: str, first: str, second: str, n_resamples: int, seed: int,
    level: float = 0.95,
) -> Estimate:  # fmt: skip
    """Estimate the mean over rows (cases) of `first - second`, two models' figures of the case.

    The other arguments are those of `mean_interval`. An interval clear of 0 tells the two apart.

    Raises:
        ValueError: As `cluster_bootstrap`, or a figure is missing on either side.
    """
    name = f"{first} - {second}"
    paired = data.assign(**{name: data[first].astype(float) - data[second].astype(float)})
    return mean_interval(paired, groups, name, n_resamples, seed, level)


def _percentiles(value: float, samples: np.ndarray, level: float) -> Estimate:
    """Return a figure and its samples' percentile interval, widened to hold the figure."""
    defined = samples[np.isfinite(samples)]
    if not np.isfinite(value) or not len(defined):
        return UNDEFINED
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), min(float(value), float(low)), max(float(value), float(high)))
