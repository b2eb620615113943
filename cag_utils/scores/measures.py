"""Figures of answers as ratios of sums over cases, with intervals that resample whole patients.

A mean is a sum over a count, an F1 is twice the hits over true and said lesions: both come from
sums that any set of cases has. So one bootstrap serves a model's figure, the difference of two
models on the same cases, and the skill of one between a floor and a ceiling.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cag_utils.profiles import Stats
from cag_utils.scores.rubric import CRITERIA
from cag_utils.stats import UNDEFINED, Estimate, cluster_bootstrap


@dataclass(frozen=True)
class Measure:
    """One figure: the sum of a column over the sum of others, or over the cases that have it."""

    title: str  # in tables and figures
    top: str  # column of `rubric.score`
    bottom: tuple[str, ...] = ()  # columns that are added; none: one a case whose `top` is known
    times: float = 1.0  # of the upper sum
    flipped: bool = False  # one minus it: the share without an error

    def sums(self, rows: pd.DataFrame) -> np.ndarray:
        """Return what each of n rows adds to the upper and the lower sum: (n, 2); unknown: 0."""
        top = rows[self.top].astype(float)
        below = rows[list(self.bottom)].fillna(0).sum(axis=1) if self.bottom else top.notna()
        above = self.times * top.fillna(0)
        return np.column_stack([below - above if self.flipped else above, below]).astype(float)


def measures() -> dict[str, Measure]:
    """Return every measure by its key: the lesions' first, the criteria's `<word>_right` last."""
    both = ("lesions_true", "lesions_said")
    found = {
        "lesion_f1": Measure("Lesion F1", "lesions_hit", both, times=2),
        "lesion_precision": Measure("Precision", "lesions_hit", ("lesions_said",)),
        "lesion_recall": Measure("Recall", "lesions_hit", ("lesions_true",)),
        "grades_near": Measure("Grade within a step", "grades_near", ("hits_graded",)),
        "healthy_right": Measure("Healthy right", "healthy_right"),
        "plan_right": Measure("Plan right", "plan_right"),
        "mild_f1": Measure("Mild F1", "mild_hit", ("mild_true", "mild_said"), times=2),
        "overall": Measure("Overall", "overall"),
        "segment_accuracy": Measure("Segments right", "segment_match"),
        "laterality_accuracy": Measure("Side right", "laterality_match"),
    }
    right = {
        f"{criterion.word}_right": Measure(f"No {criterion.word} error", name, flipped=True)
        for name, criterion in CRITERIA.items()
    }
    return found | right


def by_case(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return each model's marks by `case_id`, the readers of a text averaged."""
    numbers = list(scores.select_dtypes("number").columns)
    keys = ["model", "case_id", "patient_id"]
    table = scores.groupby(keys, sort=False)[numbers].mean().reset_index()
    return {model: part.set_index("case_id") for model, part in table.groupby("model")}


def estimate(
    marks: Mapping[str, pd.DataFrame],
    models: Sequence[str],
    names: Sequence[str],
    figure: Callable[..., np.ndarray],
    stats: Stats,
    seed: int,
) -> list[Estimate]:
    """Estimate a figure of some models' measures on the cases that all of them answered.

    Args:
        marks: From `by_case`.
        models: The m models.
        names: The k measures.
        figure: From m arrays (..., k), one a model, to one (..., f), e.g. `np.subtract`.

    Returns:
        The f estimates, undefined where no case is shared or there is nothing to divide by.
    """
    each = [marks[model] for model in models]
    shared = sorted(set.intersection(*(set(part.index) for part in each)))
    each, known = [part.loc[shared] for part in each], measures()

    def statistic(sums: np.ndarray) -> np.ndarray:
        ratios = sums[..., 0] / sums[..., 1]
        return figure(*(ratios[..., i, :] for i in range(len(models))))

    if not shared:
        return [UNDEFINED] * statistic(np.ones((len(models), len(names), 2))).size
    values = [[known[name].sums(part) for name in names] for part in each]
    sums = np.moveaxis(np.asarray(values), 2, 0)  # cases, models, measures, upper and lower
    return cluster_bootstrap(each[0]["patient_id"], sums, statistic, *stats.draws(seed))


def skill(model: np.ndarray, ceiling: np.ndarray, *floors: np.ndarray) -> np.ndarray:
    """Return (score - best floor) / (ceiling - best floor): 0 is guessing, 1 is perfect.

    The best floor is the best on the same cases, in each resample anew. Arrays of one shape; NaN
    where the ceiling is no higher than the floor.
    """
    best = np.max(floors, axis=0)
    room = np.asarray(ceiling - best, float)
    return (model - best) / np.where(room > 0, room, np.nan)
