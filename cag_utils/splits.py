"""Who goes to train, validation and test: by patient, by exam or by video, as data on disk."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cag_utils.tables import write_table


def split_counts(n_groups: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Turn shares into numbers of groups by the largest remainder, none of them 0 unless asked.

    Args:
        n_groups: Number of groups (patients or videos), at least the number of splits.
        shares: Split name to its share, each in [0, 1], together 1; the result has its order.

    Raises:
        ValueError: Shares are negative or do not add up to 1, or there are too few groups.
    """
    total = sum(shares.values())
    if any(s < 0 for s in shares.values()) or abs(total - 1) > 1e-6:
        raise ValueError(f"shares must be >= 0 and add up to 1, got {dict(shares)} (sum {total:g})")
    wanted = [name for name, share in shares.items() if share > 0]
    if n_groups < len(wanted):
        told = f"{n_groups} groups cannot fill {len(wanted)} splits {wanted}"
        raise ValueError(f"{told}; add patients, split by video, or ask for fewer splits")
    exact = {name: n_groups * share for name, share in shares.items()}
    counts = {name: int(x + 1e-9) for name, x in exact.items()}
    spare = n_groups - sum(counts.values())
    for name in sorted(wanted, key=lambda name: counts[name] - exact[name])[:spare]:
        counts[name] += 1
    for name in wanted:
        if counts[name] == 0:  # nobody would notice a test set that rounds to nobody
            counts[max(wanted, key=counts.__getitem__)] -= 1
            counts[name] = 1
    return counts


def split_groups(
    groups: Iterable[str],
    shares: Mapping[str, float],
    seed: int,
    strata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assign every group, whole, to one split; return the split names by group id, sorted.

    Neither the order nor the number of a group's rows matters.

    Args:
        groups: Group ids, one per row; repeats are the same group (a patient's many frames).
        shares: Split name to its share, together 1, e.g. `{"train": .8, "val": .1, "test": .1}`.
        strata: Group id to stratum (for example the side a video shows), dealt one by one so that
            every split gets its part of each; None shuffles all.

    Raises:
        ValueError: No groups, a missing group id, a group without stratum, or bad shares.

    Source:
        CAG-VLM sections 3.1 and 3.3: CNN split by video, corpus split by patient.
    """
    rows = list(groups)
    if not rows:
        raise ValueError("no groups to split; check the table the ids came from")
    if any(not isinstance(g, str) or not g for g in rows):
        raise ValueError("a group id is missing or not text; fill the id column before splitting")
    unique = sorted(set(rows))
    if strata is not None and (bare := [g for g in unique if g not in strata]):
        raise ValueError(f"{len(bare)} groups have no stratum, first {bare[0]!r}; add them")
    # Not scikit-learn's stratified splits: they refuse a stratum of one and fewer test groups than
    # strata, and A3 deals out one patient's few videos by side.
    order = [unique[i] for i in np.random.default_rng(seed).permutation(len(unique))]
    if strata is not None:
        order.sort(key=lambda g: strata[g])  # stable: stays shuffled inside a stratum
    counts = enumerate(split_counts(len(order), shares).items())
    # Each split's turns, spread evenly over the deck: any stretch of it holds all splits.
    turns = sorted(((i + 0.5) / n, rank, name) for rank, (name, n) in counts for i in range(n))
    return dict(sorted(zip(order, (name for _, _, name in turns), strict=True)))


def assert_disjoint(splits: pd.DataFrame, by: str = "patient_id", verbose: bool = True) -> None:
    """Check that no group sits in two splits, and print how many each split holds.

    Args:
        splits: One row per video or image, with column `split` and the column `by`.
        by: Column whose values must not cross splits: "patient_id", "exam_id" or "video_id".

    Raises:
        ValueError: A column is missing, an id or split is empty, or a group is in two splits.
    """
    if missing := {by, "split"} - set(splits.columns):
        raise ValueError(f"splits table lacks {sorted(missing)}; it has {list(splits.columns)}")
    if splits[[by, "split"]].isna().to_numpy().any():
        raise ValueError(f"splits table has empty {by} or split cells; fill them")
    per_group = splits.groupby(by)["split"].nunique()
    if len(crossing := per_group[per_group > 1].index):
        where = sorted(splits.loc[splits[by] == crossing[0], "split"].unique())
        told = f"{len(crossing)} values of {by} are in more than one split, first {crossing[0]!r}"
        raise ValueError(f"{told} in {where}; split by {by} to keep them together")
    if verbose:
        counts = splits.groupby("split")[by].nunique()
        text = ", ".join(f"{name} {counts[name]}" for name in splits["split"].unique())
        print(f"no {by} is in two splits: {text}")  # noqa: T201  the count is the evidence


def write_splits(splits: pd.DataFrame, path: Path) -> Path:
    """Write patient_id, exam_id, video_id and split to a CSV, one row per video, sorted.

    Raises:
        ValueError: A column is missing or a video is in two splits.
    """
    columns = ["patient_id", "exam_id", "video_id", "split"]
    if missing := set(columns) - set(splits.columns):
        raise ValueError(f"splits table lacks {sorted(missing)}; it needs {columns}")
    assert_disjoint(splits, "video_id", verbose=False)
    rows = splits[columns].drop_duplicates().sort_values(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(rows, path)
    return path


def read_splits(path: Path, by: str) -> pd.DataFrame:
    """Read what `write_splits` wrote, all as text, and print the counts.

    Raises:
        ValueError: A value of the column `by` is in two splits, or a column is missing.
    """
    splits = pd.read_csv(path, dtype=str)
    assert_disjoint(splits, by)
    return splits
