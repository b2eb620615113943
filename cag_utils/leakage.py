"""Splits that leak: exams on both sides of a split, ours and the paper's."""

from collections.abc import Mapping

import pandas as pd

from cag_utils.profiles import Cnn
from cag_utils.splits import split_groups


def count_shared_cases(splits: pd.DataFrame) -> pd.DataFrame:
    """Count the exams of each split and how many of them are also in train.

    Args:
        splits: One row a frame or video: exam_id and split (train, val, test).

    Returns:
        One row a split in that order: split, cases, also_in_train.
    """
    exams = splits.groupby("split")["exam_id"].agg(set)
    rows = [
        {"split": name, "cases": len(exams[name]), "also_in_train": len(exams[name] & trained)}
        for trained in [exams["train"]]
        for name in ("train", "val", "test")
    ]
    return pd.DataFrame(rows)


def least_shared_cases(cases: Mapping[str, int], n_exams: int) -> dict[str, int]:
    """Return how many of each split's exams must also be in train, knowing only the counts.

    Two sets of exams drawn from `n_exams` share at least the sum of their sizes less `n_exams`.

    Args:
        cases: Split name to number of exams, with the key "train".
        n_exams: Exams there are in all.

    Returns:
        Split name to the least number of shared exams.

    Raises:
        ValueError: A split has more exams than there are.
    """
    if max(cases.values()) > n_exams:
        raise ValueError(f"a split of {max(cases.values())} exams out of {n_exams}")
    shared = {name: max(0, cases["train"] + n - n_exams) for name, n in cases.items()}
    return shared | {"train": cases["train"]}


def tabulate_cases(
    frames: pd.DataFrame,
    splits: Mapping[str, pd.Series],
    paper_cases: Mapping[str, int],
    paper_exams: int,
) -> pd.DataFrame:
    """Put the exams that cross our splits beside those that must cross the paper's.

    Args:
        frames: exam_id, one row a frame.
        splits: What was kept together (patient, video, frame) to train, val or test a row.
        paper_cases: Cases of the paper's train, val and test.
        paper_exams: Exams the paper had in all.

    Returns:
        One row a split by one rule: split by, split, cases, also in train. The paper's last
        column is the least that its counts allow.
    """
    least = least_shared_cases(paper_cases, paper_exams)
    paper = {"split": list(least), "cases": [paper_cases[k] for k in least]}
    parts = [pd.DataFrame(paper | {"also_in_train": list(least.values())})]
    parts += [count_shared_cases(frames.assign(split=split)) for split in splits.values()]
    names = ["video (paper; at least)", *splits]
    table = pd.concat(parts, keys=names, names=["split by", None]).reset_index(level=0)
    return table.rename(columns={"also_in_train": "also in train"}).reset_index(drop=True)


def split_rows(frames: pd.DataFrame, by: str, cnn: Cnn, seed: int) -> pd.Series:
    """Split as notebook 01 does, or frame by frame.

    Args:
        frames: patient_id, video_id, frame.
        by: Kept together: "patient", "video" or "frame".
        cnn: Its validation and test shares.
        seed: Of the split.

    Returns:
        train, val or test a row; same index.

    Raises:
        ValueError: As `splits.split_groups`.
    """
    frame = frames["video_id"] + "/" + frames["frame"].astype(str)
    groups = frame if by == "frame" else frames[f"{by}_id"]
    shares = {"train": 1 - cnn.val_share - cnn.test_share, "val": cnn.val_share}
    return groups.map(split_groups(groups, shares | {"test": cnn.test_share}, seed))
