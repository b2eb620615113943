"""How many exams and readers a comparison of two models needs: closed form and simulation.

Both models answer the same cases, so what counts is the spread of the *difference* by exam. One
reader's difference has a part that is true of the two answers and a part that is the reader's own:
more readers shrink the second, more exams both. A lasting taste for one model is in neither.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon
from statsmodels.stats.power import TTestPower

MOST_EXAMS = 100_000  # beyond that "more than can be had" is the answer


@dataclass(frozen=True)
class Design:
    """What is assumed of the marks that somebody would give."""

    gap: float  # mean difference of the two models, points
    case_sd: float  # of one reader's difference on a case, points
    agreement: float  # share of its variance that readers share, 0 to 1
    cases: float  # cases an exam
    exam_share: float  # variance of the shared part's exam means, share of its cases' variance


class Measured(NamedTuple):
    """What marks at hand say of the spread of two models' difference."""

    rho: float  # correlation of the two models' marks of a case, by one reader
    case_sd: float  # of one reader's difference on a case, points
    agreement: float  # share of its variance that readers share, 0 to 1; NaN of one reader
    exam_share: float  # as `Design.exam_share`


def measure_pairs(marks: pd.DataFrame) -> Measured:
    """Return the parts of the variance of two models' difference, of the cases all readers marked.

    A case's part and a reader's own are those of ICC(3,1), consistency: a reader's mean difference,
    his lasting taste, is in neither. Of one reader all of the spread passes as the case's.

    Args:
        marks: One row a case and reader: patient_id, case_id, reader, first and second (the two
            models' marks).

    Raises:
        ValueError: A model's marks do not vary, or the two never differ.

    Source:
        Shrout and Fleiss, Psychological Bulletin 86, 1979.
    """
    gaps = marks.assign(gap=marks["first"] - marks["second"])
    gaps = gaps.pivot_table("gap", ["patient_id", "case_id"], "reader").dropna()
    n, readers = gaps.shape
    centred = gaps - gaps.mean()
    case_sd = float(((centred**2).sum() / (n - 1)).mean() ** 0.5)
    if not case_sd > 0 or not marks[["first", "second"]].std().min() > 0:
        raise ValueError("the two models' marks do not vary: name two whose do (first, second)")
    shared, own, cases = case_sd**2, 0.0, centred.mean(axis=1)
    if readers > 1:
        own = (centred.sub(cases, axis=0) ** 2).to_numpy().sum() / ((n - 1) * (readers - 1))
        shared = max(case_sd**2 - own, 0.0)
    exams = cases.groupby("patient_id").agg(["mean", "size"])
    noise = own / readers * (1 / exams["size"]).mean()
    share = np.clip((exams["mean"].var() - noise) / shared, 0, 1) if shared else 0.0
    rho = np.mean([x["first"].corr(x["second"]) for _, x in marks.groupby("reader")])
    agreement = shared / case_sd**2 if readers > 1 else float("nan")
    return Measured(float(rho), case_sd, agreement, float(share))


def difference_sd(first: float, second: float, rho: float) -> float:
    """Return the SD of the difference of two marks of these SDs that correlate with rho."""
    return (first**2 + second**2 - 2 * rho * first * second) ** 0.5


def exam_sd(design: Design, readers: int) -> float:
    """Return the SD over exams of the mean difference that `readers` find, points."""
    own = (1 - design.agreement) / (readers * design.cases)
    return design.case_sd * (design.agreement * design.exam_share + own) ** 0.5


def power_of(design: Design, exams: int, readers: int, alpha: float = 0.05) -> float:
    """Return the chance that a paired t-test over exam means finds the gap, two-sided, 0 to 1."""
    size = design.gap / exam_sd(design, readers)
    return float(TTestPower().power(size, exams, alpha))


def exams_needed(
    design: Design, readers: int, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Return how many exams give that power, None beyond `MOST_EXAMS`."""
    if power_of(design, MOST_EXAMS, readers, alpha) < power:
        return None
    size = design.gap / exam_sd(design, readers)
    return int(np.ceil(TTestPower().solve_power(size, None, alpha, power)))


def simulate_power(
    marks: pd.DataFrame,
    design: Design,
    exams: int,
    readers: int,
    rng: np.random.Generator,
    n_trials: int = 500,
    alpha: float = 0.05,
) -> float:
    """Return the share of imagined studies whose Wilcoxon test over exams finds the gap.

    Exams of `marks` are drawn whole, with their own clumped differences, scaled to the design's
    spread and with a sign by chance, as two models of one worth could be exchanged; each reader
    adds an error of their own to each case; the gap is added to all.

    Args:
        marks: As in `measure_pairs`; of several readers their means are drawn.
        exams: In each study, 2 or more.
        rng: Of exams, signs and readers' errors.
    """
    gaps = (marks["first"] - marks["second"]).astype(float)
    by_exam = gaps.groupby(marks["patient_id"]).mean().to_numpy()
    spread = design.case_sd * (design.agreement * design.exam_share) ** 0.5
    shared = (by_exam - by_exam.mean()) * spread / by_exam.std(ddof=1)
    error = design.case_sd * ((1 - design.agreement) / (readers * design.cases)) ** 0.5
    drawn = rng.choice(shared, (n_trials, exams)) * rng.choice((-1, 1), (n_trials, exams))
    found = design.gap + drawn + rng.normal(0, error, (n_trials, exams))
    p = wilcoxon(found, axis=1).pvalue
    return float(((p < alpha) & (found.mean(1) > 0)).mean())
