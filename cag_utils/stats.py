"""Intervals that respect who the data come from: whole patients are resampled, never frames."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap


class Estimate(NamedTuple):
    """A figure and its interval, `low <= value <= high`."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    data: pd.DataFrame,
    groups: str,
    statistic: Callable[[pd.DataFrame], float],
    n_resamples: int,
    seed: int,
    level: float = 0.95,
) -> Estimate:
    """Estimate a statistic with a percentile bootstrap over groups.

    Frames of one patient resemble each other. Resampling frames would pretend that they are
    independent and give an interval that is too narrow; so patients are drawn with replacement,
    each with all of their frames.

    Args:
        data: One row an observation.
        groups: Column that names the patient or exam.
        statistic: Maps rows to a number; it sees a group's rows as often as the group was drawn.
        n_resamples: Bootstrap samples.
        seed: Of the resampling.
        level: Confidence level, between 0 and 1.

    Returns:
        The statistic of all rows and its interval. With one group there is nothing to resample:
        the interval is the value itself. Where a skewed statistic falls outside its percentile
        interval, the interval is widened to hold it.

    Raises:
        ValueError: `data` is empty, or `groups` has missing values.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 8.
    """
    if data.empty:
        raise ValueError("no rows to bootstrap")
    if data[groups].isna().any():
        raise ValueError(f"{data[groups].isna().sum()} rows have no {groups}: whose are they?")
    value = float(statistic(data))
    rows = [np.asarray(index) for index in data.groupby(groups, sort=True).indices.values()]
    if len(rows) == 1:
        return Estimate(value, value, value)

    def resampled(drawn: np.ndarray) -> float:
        return statistic(data.iloc[np.concatenate([rows[group] for group in drawn])])

    interval = bootstrap(
        (np.arange(len(rows)),),
        resampled,
        vectorized=False,
        n_resamples=n_resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, min(value, float(interval.low)), max(value, float(interval.high)))


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
        ValueError: As `bootstrap_interval`, or a figure is missing on either side.
    """
    if data[[first, second]].isna().any(axis=None):
        raise ValueError(f"a paired difference needs both {first!r} and {second!r} on every row")
    paired = data.assign(_difference=data[first].astype(float) - data[second].astype(float))
    return bootstrap_interval(
        paired, groups, lambda rows: rows["_difference"].mean(), n_resamples, seed, level
    )
