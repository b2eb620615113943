"""Train the same network again and again, on other rows of one table, and keep its answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cag_utils.checkpoints import load_model, probabilities
from cag_utils.crossover import Training
from cag_utils.labels import MERGES, SIX_CLASSES, decide
from cag_utils.networks import FrameSet, pick_device
from cag_utils.profiles import Cnn
from cag_utils.training import train_cnn

PREDICT_BATCH = 128  # memory only, no influence on the result
IDS = ["patient_id", "video_id", "frame", "label"]


def fit_predict(
    data: FrameSet,
    rows: Mapping[str, np.ndarray],
    cnn: Cnn,
    folder: Path,
    seed: int,
    epochs: int,
) -> pd.DataFrame:
    """Train on some rows of a set and predict others.

    The weights are removed afterwards: an audit makes a dozen of them, and only the answers count.

    Args:
        data: All frames.
        rows: Row numbers under `train`, `val` and `test`.
        cnn: Settings.
        folder: Made; keeps `history.csv`.
        seed: Initial weights, order, augmentation.
        epochs: Passes over the training frames.

    Returns:
        One row a test frame, index `rows["test"]`: for each of `MERGES` a column with the class
        decided for.

    Raises:
        ValueError: A part has no rows.
    """
    if empty := [name for name in ("train", "val", "test") if not len(rows[name])]:
        raise ValueError(f"no frames in {empty}: label more patients or change the shares")
    folder.mkdir(parents=True, exist_ok=True)
    sets = {k: FrameSet(data.pictures[rows[k]], data.targets[rows[k]]) for k in ("train", "val")}
    train_cnn(sets, cnn, folder, seed, epochs)
    device = pick_device()
    model, facts = load_model(folder, device)
    test = data.pictures[rows["test"]]
    found = probabilities(model, facts["model"], test, PREDICT_BATCH, device, facts)
    for name in ("best.safetensors", "model.json"):
        (folder / name).unlink()
    p = pd.DataFrame(np.concatenate(list(found)), columns=list(SIX_CLASSES))
    return pd.DataFrame({name: decide(p, merge) for name, merge in MERGES.items()}, rows["test"])


def run_splits(
    splits: Mapping[str, pd.Series],
    frames: pd.DataFrame,
    data: FrameSet,
    cnn: Cnn,
    folder: Path,
    seed: int,
    epochs: int,
) -> pd.DataFrame:
    """Train once under each split, each with its own test frames.

    Args:
        splits: Name to train, val or test a row of `frames`.
        frames: patient_id, video_id, frame, label.
        data: Their pictures and classes, in the same order.
        cnn: Settings.
        folder: A folder a training is made in it.
        seed: Initial weights, order, augmentation.
        epochs: Passes over the training frames.

    Returns:
        One row a split and test frame: arm (the split's name), row (number in `frames`), the
        columns of `frames` named above, and for each of `MERGES` the class decided for.
    """
    parts = []
    for name, split in splits.items():
        rows = {k: np.flatnonzero(split == k) for k in ("train", "val", "test")}
        said = fit_predict(data, rows, cnn, folder / f"by_{name}", seed, epochs)
        parts.append(said.assign(arm=name))
    return _with_ids(parts, frames)


def run_crossover(
    plan: Sequence[Training],
    frames: pd.DataFrame,
    data: FrameSet,
    cnn: Cnn,
    folder: Path,
    seed: int,
    epochs: int,
) -> pd.DataFrame:
    """Train every network of a plan and collect the answers to each test frame.

    Args:
        plan: Of `crossover.plan_crossover`, one deal or more.
        frames: The table of the plan: patient_id, video_id, frame, label.
        data: Its pictures and classes, in the same order.
        cnn: Settings.
        folder: A folder a training is made in it.
        seed: Initial weights, order, augmentation; the number of the deal is added.
        epochs: Passes over the training frames.

    Returns:
        As `run_splits`, with the column `repeat`; each test frame of a deal has one row in each
        of the arms "patient", "video" and "frame".
    """
    parts = []
    for training in plan:
        test = np.concatenate(list(training.test.values()))
        rows = {"train": training.train, "val": training.val, "test": test}
        said = fit_predict(data, rows, cnn, folder / training.name, seed + training.repeat, epochs)
        arm = np.repeat(list(training.test), [len(part) for part in training.test.values()])
        parts.append(said.assign(arm=arm, repeat=training.repeat))
    return _with_ids(parts, frames)


def _with_ids(parts: Sequence[pd.DataFrame], frames: pd.DataFrame) -> pd.DataFrame:
    answers = pd.concat(parts).rename_axis("row").reset_index()
    ids = frames[IDS].iloc[answers["row"]].reset_index(drop=True)
    return pd.concat([ids, answers], axis=1)
