"""Trainings that differ in nothing but what they know of the patients they are tested on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from cag_utils.duplicates import find_nearest
from cag_utils.labels import LATERALITY
from cag_utils.splits import split_counts, split_groups

TESTED_SHARE = 0.4  # of a patient's videos; choice: a video split leaves more siblings in train


class Training(NamedTuple):
    """One network of the crossover. All arrays hold row numbers of the frames table.

    Attributes:
        name: Folder name, e.g. `repeat0_fold1_a_video`.
        repeat: Which deal of the patients, from 0.
        train: Frames it learns from.
        val: Frames of patients who are in no other part, which pick the checkpoint.
        test: Test frames by arm. "patient": nothing of the patient is in `train`; "video": other
            videos of the patient are; "frame": other frames of the same videos are.
    """

    name: str
    repeat: int
    train: np.ndarray
    val: np.ndarray
    test: dict[str, np.ndarray]


def plan_crossover(
    frames: pd.DataFrame, n_folds: int, val_share: float, seed: int, repeat: int = 0
) -> list[Training]:
    """Plan trainings that differ only in what they know of the test patients.

    Validation patients are set apart. The others are dealt into `n_folds` pairs of groups, a and
    b, and each patient's videos into *tested* and *lent*. Of a tested video every other frame is
    tested, the rest are *spare*. In each fold four networks learn from all patients of the other
    folds, and in addition from equally many frames:

    - lent by a, or lent by b: tested on a and on b, once with and once without the leak of a split
      by video;
    - spare of a, or spare of b, filled up with lent ones: tested on the same group, with the leak
      of a split by frame.

    So each test frame is answered in three ways, by networks that saw as many frames of as many
    patients. Patients with a single video have nothing to lend: they only ever train.

    Args:
        frames: patient_id, video_id, frame, label; row numbers count from 0 whatever the index.
        n_folds: Pairs of groups, 2 or more.
        val_share: Share of the patients set apart for validation.
        seed: Of the deal; `repeat` is added.
        repeat: Number of this deal.

    Returns:
        4 * `n_folds` trainings.

    Raises:
        ValueError: `n_folds` is below 2, too few patients have two videos, or too few videos two
            frames.
    """
    if n_folds < 2:
        raise ValueError(f"n_folds must be 2 or more, got {n_folds}: one fold trains on no others")
    seed += repeat
    role = _deal_patients(frames, n_folds, val_share, seed)
    part = _deal_frames(frames, seed)
    val = np.flatnonzero(role == "val")
    rng, plan = np.random.default_rng(seed), []
    for fold in range(n_folds):
        groups = {side: role == f"{fold}{side}" for side in "ab"}
        others = np.flatnonzero((role != "val") & ~groups["a"] & ~groups["b"])
        parts = {
            (name, side): rng.permutation(np.flatnonzero(own & (part == name)))
            for name in ("tested", "lent", "spare")
            for side, own in groups.items()
        }
        extra, tested = _share_out(frames, parts)
        for (side, arm), rows in extra.items():
            other = "b" if side == "a" else "a"
            test = {arm: tested[side]} | ({"patient": tested[other]} if arm == "video" else {})
            name = f"repeat{repeat}_fold{fold}_{side}_{arm}"
            train = np.sort(np.concatenate([others, rows]))
            plan.append(Training(name, repeat, train, val, test))
    return plan


def _share_out(
    frames: pd.DataFrame, parts: dict[tuple[str, str], np.ndarray]
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    """Return what each side and arm adds to train, equally many frames, and each side's test."""
    n_extra = min(len(parts["lent", side]) for side in "ab")
    extra, tested = {}, {}
    for side in "ab":
        lent, near = parts["lent", side][:n_extra], parts["spare", side][:n_extra]
        extra[side, "video"] = lent
        extra[side, "frame"] = np.concatenate([near, lent[: n_extra - len(near)]])
        tested[side] = _keep_known(frames, parts["tested", side], lent, near)
    return extra, tested


def _keep_known(
    frames: pd.DataFrame, tested: np.ndarray, lent: np.ndarray, spare: np.ndarray
) -> np.ndarray:
    """Keep test frames whose patient did lend and whose video did spare a frame.

    A video with a single frame, or a patient whose few lent frames were not drawn, would be as
    unknown in the leaky arms as in the other.
    """
    patient, video = (frames[column].to_numpy() for column in ("patient_id", "video_id"))
    known = np.isin(patient[tested], patient[lent]) & np.isin(video[tested], video[spare])
    if not known.any():
        raise ValueError("no test frame is left: too few frames a video, or too few patients")
    return np.sort(tested[known])


def _deal_patients(frames: pd.DataFrame, n_folds: int, val_share: float, seed: int) -> np.ndarray:
    """Return each row's role: "val", a fold and side such as "0a", or "rest"."""
    n_videos = frames.groupby("patient_id")["video_id"].nunique()
    n_val = split_counts(len(n_videos), {"rest": 1 - val_share, "val": val_share})["val"]
    order = np.random.default_rng(seed).permutation(n_videos.index)
    lenders = [patient for patient in order[n_val:] if n_videos[patient] > 1]
    names = [f"{fold}{side}" for fold in range(n_folds) for side in "ab"]
    if len(lenders) < len(names):
        raise ValueError(
            f"{len(lenders)} patients outside validation have two videos or more, and {n_folds} "
            f"folds need {len(names)}; add patients or lower n_folds"
        )
    strata = {patient: f"{n_videos[patient]:06d}" for patient in lenders}
    groups = split_groups(lenders, dict.fromkeys(names, 1 / len(names)), seed, strata)
    roles = dict.fromkeys(order[:n_val], "val") | groups
    return frames["patient_id"].map(roles).fillna("rest").to_numpy(str)


def _deal_frames(frames: pd.DataFrame, seed: int) -> np.ndarray:
    """Return each row's part: tested and spare take turns in tested videos, the rest is lent.

    A patient's videos are dealt left and right alike; a lone video is lent.
    """
    side = frames["label"].map(LATERALITY)
    of_video = side.groupby(frames["video_id"]).agg(lambda labels: labels.mode()[0])
    shares = {"lent": 1 - TESTED_SHARE, "tested": TESTED_SHARE}
    dealt: dict[str, str] = {}
    for _, videos in frames.groupby("patient_id")["video_id"]:
        strata = {video: of_video[video] for video in videos.unique()}
        if len(strata) > 1:
            dealt |= split_groups(strata, shares, seed, strata)
    part = frames["video_id"].map(dealt).fillna("lent").to_numpy(object)
    turn = frames.groupby("video_id")["frame"].rank().to_numpy() % 2
    return np.where((part == "tested") & (turn == 0), "spare", part)


def describe_plan(plan: Sequence[Training], frames: pd.DataFrame) -> pd.DataFrame:
    """Count what each training holds, and check that no leak is there but the one meant.

    Args:
        plan: Of `plan_crossover`.
        frames: The table it was planned on.

    Returns:
        One row a training: training, train frames, train patients, val frames, and for each arm
        the number of test frames.

    Raises:
        ValueError: A tested frame is in train, a tested patient is in val, or a network knows
            more or less of the tested patients than its arm says.
    """
    rows = []
    for t in plan:
        train, val = frames.iloc[t.train], frames.iloc[t.val]
        for arm, test in ((arm, frames.iloc[rows]) for arm, rows in t.test.items()):
            known = {k: test[k].isin(train[k]) for k in ("patient_id", "video_id")}
            meant = known["patient_id"].all() if arm != "patient" else not known["patient_id"].any()
            wrong = {"video": known["video_id"].any(), "frame": not known["video_id"].all()}
            if not meant or wrong.get(arm) or test["patient_id"].isin(val["patient_id"]).any():
                raise ValueError(f"{t.name}: what it knows of its test patients is not {arm!r}")
            if len(np.intersect1d(t.test[arm], t.train)):
                raise ValueError(f"{t.name} trains on frames that it is tested on")
        row = {"training": t.name, "train frames": len(train)}
        row |= {"train patients": train["patient_id"].nunique(), "val frames": len(val)}
        rows.append(row | {f"tested: {arm}": len(test) for arm, test in t.test.items()})
    return pd.DataFrame(rows)


def flag_twins(
    plan: Sequence[Training], features: np.ndarray, metric: str, limit: float
) -> pd.DataFrame:
    """Say of each test frame and arm whether its network saw a near duplicate.

    Args:
        plan: Of `plan_crossover`.
        features: (n, d), see `duplicates.find_nearest`.
        metric: "hamming" or "cosine".
        limit: Of `duplicates.chance_threshold`.

    Returns:
        One row a deal, arm and test frame: repeat, arm, row, near.
    """
    parts = []
    for t in plan:
        for arm, rows in t.test.items():
            distance, _ = find_nearest(features[rows], features[t.train], metric)
            flags = {"repeat": t.repeat, "arm": arm, "row": rows, "near": distance < limit}
            parts.append(pd.DataFrame(flags))
    return pd.concat(parts, ignore_index=True)
