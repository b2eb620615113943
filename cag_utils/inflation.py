"""What a leak adds to an F1: two sets of answers compared, with an interval over patients."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cag_utils.labels import MERGES
from cag_utils.profiles import Stats
from cag_utils.stats import Estimate, bootstrap_interval


def weighted_f1(confusion: np.ndarray) -> float:
    """Return the F1 averaged over classes, weighted by their true counts.

    Args:
        confusion: (k, k) counts, row the true class, column the decided one.

    Returns:
        In [0, 1]; NaN without a single frame. Equal to scikit-learn's weighted `f1_score`.
    """
    true, said = confusion.sum(1), confusion.sum(0)
    f1 = 2 * np.diag(confusion) / np.maximum(true + said, 1)
    return float((f1 * true).sum() / true.sum()) if true.sum() else float("nan")


def estimate_f1(answers: pd.DataFrame, name: str, stats: Stats, seed: int) -> Estimate:
    """Estimate a weighted F1 with a bootstrap over patients.

    Args:
        answers: patient_id, label and the column `name`, one row a frame.
        name: One of `MERGES`.
        stats: Number of resamples and level.
        seed: Of the resampling.

    Returns:
        The F1 and its interval.

    Raises:
        ValueError: As `stats.bootstrap_interval`.
    """
    return _bootstrap([answers], name, stats, seed)


def estimate_gain(
    more: pd.DataFrame, less: pd.DataFrame, name: str, stats: Stats, seed: int
) -> Estimate:
    """Estimate by how much one weighted F1 lies above another.

    Patients are drawn once for both: a drawn patient brings the answers of both sides. On the
    same test frames that is a paired comparison. On two test sets that share some patients it
    keeps what they share.

    Args:
        more: As in `estimate_f1`.
        less: Likewise.
        name: One of `MERGES`.
        stats: Number of resamples and level.
        seed: Of the resampling.

    Returns:
        F1 of `more` less F1 of `less`, and its interval. It covers the choice of test patients,
        not the chance in a training.

    Raises:
        ValueError: As `stats.bootstrap_interval`.
    """
    return _bootstrap([more, less], name, stats, seed)


def _bootstrap(sides: Sequence[pd.DataFrame], name: str, stats: Stats, seed: int) -> Estimate:
    """Bootstrap the first F1, less the second if there is one.

    A patient's confusion matrix is all that an F1 needs of them: adding up those of the drawn
    patients is a hundred times as fast as counting their frames anew.
    """
    number = {label: i for i, label in enumerate(dict.fromkeys(MERGES[name].values()))}
    k = len(number)
    counts = []
    for side in sides:
        cell = side["label"].map(MERGES[name]).map(number) * k + side[name].map(number)
        table = pd.crosstab(side["patient_id"], cell)
        counts.append(table.reindex(columns=range(k * k), fill_value=0))
    data = pd.concat(counts, axis=1).fillna(0)
    cells = [f"cell{i}" for i in range(data.shape[1])]
    data = data.set_axis(cells, axis=1).rename_axis("patient_id").reset_index()

    def statistic(rows: pd.DataFrame) -> float:
        matrices = rows[cells].to_numpy().sum(0).reshape(-1, k, k)
        f1s = [weighted_f1(matrix) for matrix in matrices]
        return f1s[0] - sum(f1s[1:])

    return bootstrap_interval(data, "patient_id", statistic, stats.n_resamples, seed, stats.level)


def tabulate_f1(answers: pd.DataFrame, base: str, stats: Stats, seed: int) -> pd.DataFrame:
    """Put the three F1s of each arm beside their gains over one arm.

    Args:
        answers: Of `retraining.run_splits` or `retraining.run_crossover`.
        base: The arm that the others are compared with.
        stats: Number of resamples and level.
        seed: Of the resampling.

    Returns:
        One row an F1 and arm: f1_name, arm, f1, low, high, gain, gain_low, gain_high (0 for the
        base itself), frames, patients.

    Raises:
        ValueError: No answers of the base.
    """
    names = list(answers["arm"].unique())
    if base not in names:
        raise ValueError(f"no answers of {base!r} to compare with; there are {sorted(names)}")
    names.sort(key=lambda arm: arm != base)  # stable: the base first, the others as they come
    arms = {arm: answers[answers["arm"] == arm] for arm in names}
    rows = []
    for name in MERGES:
        for arm, own in arms.items():
            f1 = estimate_f1(own, name, stats, seed)
            gain = estimate_gain(own, arms[base], name, stats, seed)
            numbers = dict(zip(("f1", "low", "high"), f1, strict=True))
            numbers |= dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True))
            sizes = {"frames": len(own), "patients": own["patient_id"].nunique()}
            rows.append({"f1_name": name, "arm": arm} | numbers | sizes)
    return pd.DataFrame(rows)


def tabulate_by_twin(
    answers: pd.DataFrame, twins: pd.DataFrame, base: str, stats: Stats, seed: int
) -> pd.DataFrame:
    """Put the gains of frames with and without a near duplicate in train side by side.

    Args:
        answers: Of `retraining.run_crossover`.
        twins: Of `crossover.flag_twins`.
        base: The arm without a leak.
        stats: Number of resamples and level.
        seed: Of the resampling.

    Returns:
        Rows of `tabulate_f1` for the other arms, with the columns near_duplicate ("yes", "no";
        only one of them if all frames are of one kind) and base_f1, the F1 of the same frames in
        the base arm.

    Raises:
        ValueError: A frame of the answers has no flag.
    """
    parts = []
    for arm in sorted(set(answers["arm"]) - {base}):
        flags = twins[twins["arm"] == arm].set_index(["repeat", "row"])["near"]
        both = answers[answers["arm"].isin([base, arm])].join(flags, on=["repeat", "row"])
        if both["near"].isna().any():
            raise ValueError(f"{both['near'].isna().sum()} answers have no flag in arm {arm!r}")
        for near, rows in both.groupby("near"):
            table = tabulate_f1(rows, base, stats, seed)
            base_f1 = table[table["arm"] == base].set_index("f1_name")["f1"]
            gains = table[table["arm"] == arm].assign(near_duplicate="yes" if near else "no")
            parts.append(gains.assign(base_f1=gains["f1_name"].map(base_f1)))
    return pd.concat(parts, ignore_index=True)
