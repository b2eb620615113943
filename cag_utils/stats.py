"""Intervals and tests that respect who the data come from: whole patients count, never frames.

Tests are scipy's and statsmodels'. They take rows to be independent, and pictures of one exam are
not: so each is given one number an exam (`groups`) and model, and every p-value names its test.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import friedmanchisquare, wilcoxon
from sklearn.metrics import confusion_matrix
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.contingency_tables import cochrans_q, mcnemar
from statsmodels.stats.multitest import multipletests


class Estimate(NamedTuple):
    """A figure and its interval, `low <= value <= high`; all NaN where it is undefined."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(*[float("nan")] * 3)
TESTED = ["measure", "test", "first", "second", "exams", "difference", "statistic", "p"]


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


def mean_interval(data: pd.DataFrame, groups: str, column: str, *draws: float) -> Estimate:
    """Estimate the mean over rows of `column`, `groups` naming the patient or exam of each row.

    `draws` are the last arguments of `cluster_bootstrap`: resamples, seed and level.

    Raises:
        ValueError: As `cluster_bootstrap`, or a number is missing.
    """
    x = data[column].to_numpy(float)
    if np.isnan(x).any():
        raise ValueError(f"{np.isnan(x).sum()} rows have no {column}: a mean would hide them")
    pairs = np.column_stack([x, np.ones_like(x)])
    mean = lambda sums: sums[..., 0] / sums[..., 1]  # noqa: E731
    return cluster_bootstrap(data[groups], pairs, mean, *draws)[0]


def paired_difference(
    data: pd.DataFrame, groups: str, first: str, second: str, *draws: float
) -> Estimate:
    """Estimate the mean over rows (cases) of `first - second`, two models' figures of the case.

    The other arguments are those of `mean_interval`. An interval clear of 0 tells the two apart.

    Raises:
        ValueError: As `cluster_bootstrap`, or a figure is missing on either side.
    """
    name = f"{first} - {second}"
    paired = data.assign(**{name: data[first].astype(float) - data[second].astype(float)})
    return mean_interval(paired, groups, name, *draws)


def rank_correlation(
    data: pd.DataFrame, groups: str, first: str, second: str, *draws: float, within: str = ""
) -> Estimate:
    """Estimate Spearman's correlation of two columns over rows, -1 to 1, with a clustered interval.

    Ranks are those of all rows, in every resample: the correlation is then one of sums. With a
    column `within` (the model), ranks are taken, as shares, inside each of its values, so that a
    metric gains nothing by telling good models from bad ones. The other arguments are those of
    `mean_interval`; rows that lack either number are left out.
    """
    known = data.dropna(subset=[first, second])
    if known.empty:
        return UNDEFINED
    part = known[within] if within else np.zeros(len(known))
    x, y = (known.groupby(part)[name].rank(pct=True).to_numpy() for name in (first, second))
    if within:
        x, y = (v - pd.Series(v).groupby(part.to_numpy()).transform("mean") for v in (x, y))

    def correlation(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = np.moveaxis(sums, -1, 0)
        spread = np.sqrt(np.maximum((n * sxx - sx**2) * (n * syy - sy**2), 0))
        return np.where(spread > 1e-9, (n * sxy - sx * sy) / spread, np.nan)

    values = np.column_stack([np.ones(len(known)), x, y, x * x, y * y, x * y])
    return cluster_bootstrap(known[groups], values, correlation, *draws)[0]


def compare_models(
    data: pd.DataFrame, groups: str, measure: str, models: Sequence[str], flags: bool = False
) -> pd.DataFrame:
    """Test whether models differ: all of them (three or more), then each two.

    Scores go to Friedman's test and Wilcoxon's signed ranks, errors to Cochran's Q and the exact
    test of McNemar. An exam's rows are averaged; exams that lack a model are left out.

    Args:
        data: Rows by `groups` and `model`, any number a pair, with the column `measure`.
        groups: Column of the exam.
        measure: A number or, with `flags`, an error of 0 or 1.
        flags: An exam counts as wrong if half of its rows or more are.

    Returns:
        `TESTED`: one row for all models (`first` is "all") and one for each pair; `difference` is
        the mean over exams of first - second, p is two-sided. Models that never differ have p 1.

    Source:
        Demsar, JMLR 7, 2006, sections 3.1.3 and 3.2.2; Cochran, Biometrika 37, 1950.
    """
    wide = data.pivot_table(measure, groups, "model").reindex(columns=list(models)).dropna()
    names = ("Cochran's Q", "McNemar, exact") if flags else ("Friedman", "Wilcoxon signed-rank")
    wide = (wide >= 0.5).astype(int) if flags else wide
    cases = [("all", "", names[0], wide)] if len(models) > 2 else []
    cases += [(*pair, names[1], wide[list(pair)]) for pair in combinations(models, 2)]
    rows = []
    for first, second, name, part in cases if len(wide) else ():
        gap = (part[first] - part[second]).mean() if second else np.nan
        p = (0.0, 1.0)
        if not part.eq(part.iloc[:, 0], axis=0).all(axis=None):
            found = TESTS[name](part.to_numpy())
            p = found.statistic, found.pvalue
        rows.append((measure, name, first, second, len(wide), gap, *p))
    return pd.DataFrame(rows, columns=TESTED)


# Name to a test of (exams, models) numbers; its result has `statistic` and `pvalue`.
TESTS: dict[str, Callable[[np.ndarray], Any]] = {
    "Friedman": lambda scores: friedmanchisquare(*scores.T),
    "Wilcoxon signed-rank": lambda scores: wilcoxon(*scores.T),
    "Cochran's Q": cochrans_q,
    "McNemar, exact": lambda wrong: mcnemar(confusion_matrix(*wrong.T, labels=[0, 1]), exact=True),
}


def mixed_model(
    data: pd.DataFrame, groups: str, measure: str, models: Sequence[str], level: float = 0.95
) -> pd.DataFrame:
    """Fit `measure ~ model` with the exam as a random intercept: every row counts, none twice.

    The arguments are those of `compare_models`; the first model is the reference.

    Returns:
        `TESTED` and `low`, `high`, `exam_share` (the exam's part of the variance that models do not
        explain, 0 to 1): a row for each model but the first; `difference` is it - the reference.
        Empty where the measure or the exams do not vary.

    Source:
        Laird and Ware, Biometrics 38, 1982; statsmodels' MixedLM, restricted likelihood, Wald's z.
    """
    known = data[data["model"].isin(models)].dropna(subset=[measure])
    columns = [*TESTED, "low", "high", "exam_share"]
    if (
        set(models) - set(known["model"])
        or known[groups].nunique() < 3
        or known[measure].nunique() < 2
    ):
        return pd.DataFrame(columns=columns)
    others = list(models[1:])
    design = np.column_stack([known["model"] == model for model in others]).astype(float)
    exog = pd.DataFrame(design, columns=others).assign(mean=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of 0 lies on the boundary: still an answer
        fit = MixedLM(known[measure].to_numpy(float), exog, known[groups].to_numpy()).fit(reml=True)
    between = float(fit.cov_re.iloc[0, 0])
    ends = fit.conf_int(alpha=1 - level)
    name, n = "Wald z, mixed model, exam at random", known[groups].nunique()
    rows = [
        (measure, name, model, models[0], n, fit.params[model], fit.tvalues[model])
        + (fit.pvalues[model], *ends.loc[model], between / (between + fit.scale))
        for model in others
    ]
    return pd.DataFrame(rows, columns=columns)


def holm(tests: pd.DataFrame, family: Sequence[str] = ()) -> pd.DataFrame:
    """Add `p_holm`: Holm's correction of `p` over all rows, or inside each family of them.

    Args:
        tests: With `p`, 0 to 1; one that is missing stays so and is not counted.
        family: Columns whose equal values make a family.

    Source:
        Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    adjusted, known = pd.Series(np.nan, index=tests.index), tests.dropna(subset=["p"])
    for _, part in known.groupby(list(family) or np.zeros(len(known))):
        adjusted[part.index] = multipletests(part["p"], method="holm")[1]
    return tests.assign(p_holm=adjusted)


def agreement(
    data: pd.DataFrame, groups: str, measures: Iterable[str], *draws: float
) -> pd.DataFrame:
    """Say how well readers agree who marked the same texts: rows by case_id, model and reader.

    `measures` are scores, or errors of 0 and 1; the other arguments are those of `mean_interval`.

    Returns:
        measure, statistic, readers, texts, value, low, high: for each pair of readers Cohen's kappa
        with quadratic weights (for 0 and 1: plain kappa), and over all of them ICC(2,1), of the
        texts that these readers marked, and Krippendorff's alpha (squared distances), of those that
        two or more did. Empty with one reader.

    Source:
        Fleiss and Cohen, Educational and Psychological Measurement 33, 1973; Shrout and Fleiss,
        Psychological Bulletin 86, 1979, ICC(2,1); Krippendorff, Computing Krippendorff's
        Alpha-Reliability, 2011.
    """
    rows = []
    for measure in measures:
        wide = data.pivot_table(measure, [groups, "case_id", "model"], "reader")
        pairs, all_ = list(combinations(wide.columns, 2)), tuple(wide.columns)
        wanted = [("kappa, quadratic weights", pair, 2, _kappa) for pair in pairs]
        wanted += [("ICC(2,1)", all_, len(all_), _icc)] if pairs else []
        wanted += [("Krippendorff's alpha", all_, 2, _alpha)] if pairs else []
        for name, readers, needed, statistic in wanted:
            both = wide[list(readers)].dropna(thresh=needed)
            found = UNDEFINED
            if len(both) > 1:
                values = _moments(both.to_numpy(float))
                exams = both.index.get_level_values(groups)
                [found] = cluster_bootstrap(exams, values, statistic, *draws)
            rows.append((measure, name, " and ".join(map(str, readers)), len(both), *found))
    columns = ["measure", "statistic", "readers", "texts", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _moments(marks: np.ndarray) -> np.ndarray:
    """Return what adds up of (n, k) marks, NaN where there is none.

    That is 1, each reader's, squared sum, sum of squares, number of marks, and their mean square
    apart times that number.
    """
    m, total, squares = (~np.isnan(marks)).sum(1), np.nansum(marks, 1), np.nansum(marks**2, 1)
    apart = 2 * (m * squares - total**2) / (m - 1)
    each = np.nan_to_num(marks)
    return np.column_stack([np.ones(len(marks)), each, total**2, squares, m, apart])


def _kappa(sums: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights of two readers: 1 - mean square apart / by chance."""
    n, first, second, total2, squares, *_ = np.moveaxis(sums, -1, 0)
    # (a - b)^2 = 2 (a^2 + b^2) - (a + b)^2; of any a with any b: a^2 + b^2 - 2 mean a mean b
    apart = (2 * squares - total2) / n
    return 1 - apart / (squares / n - 2 * first * second / n**2)


def _icc(sums: np.ndarray) -> np.ndarray:
    """Shrout and Fleiss' ICC(2,1) from the mean squares of texts, readers and the rest."""
    n, readers, total2, squares = sums[..., 0], sums[..., 1:-4], sums[..., -4], sums[..., -3]
    k = readers.shape[-1]
    centre = readers.sum(-1) ** 2 / (n * k)
    of_texts, of_readers = total2 / k - centre, (readers**2).sum(-1) / n - centre
    rest = (squares - centre - of_texts - of_readers) / ((n - 1) * (k - 1))
    texts, judges = of_texts / (n - 1), of_readers / (k - 1)
    return (texts - rest) / (texts + (k - 1) * rest + k * (judges - rest) / n)


def _alpha(sums: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha: 1 - mean square apart inside texts / between any two marks."""
    total, squares = sums[..., 1:-4].sum(-1), sums[..., -3]
    m, apart = sums[..., -2], sums[..., -1]
    return 1 - apart / m / (2 * (m * squares - total**2) / (m * (m - 1)))


def _percentiles(value: float, samples: np.ndarray, level: float) -> Estimate:
    """Return a figure and its samples' percentile interval, widened to hold the figure."""
    defined = samples[np.isfinite(samples)]
    if not np.isfinite(value) or not len(defined):
        return UNDEFINED
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), min(float(value), float(low)), max(float(value), float(high)))
