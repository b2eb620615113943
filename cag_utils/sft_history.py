"""A run's log as tables."""

from collections.abc import Mapping, Sequence

import pandas as pd

from cag_utils.answer_scores import SCORES

PREFIX = "eval_answers_"  # of the scores in the Trainer's log


def loss_history(log: Sequence[Mapping]) -> pd.DataFrame:
    """Turn the Trainer's log into one row a measurement.

    Args:
        log: `trainer.state.log_history`.

    Returns:
        step, epoch, split (train or val), loss (mean over answer tokens), learning_rate (train
        rows only). Step 0 is the untouched base on val.
    """
    rows = [
        {
            "step": entry["step"],
            "epoch": entry["epoch"],
            "split": "train" if "loss" in entry else "val",
            "loss": entry.get("loss", entry.get("eval_loss")),
            "learning_rate": entry.get("learning_rate"),
        }
        for entry in log
        if "loss" in entry or "eval_loss" in entry
    ]
    table = pd.DataFrame(rows, columns=["step", "epoch", "split", "loss", "learning_rate"])
    return table.drop_duplicates(["step", "split"])  # a resumed run measures its start twice


def answer_history(log: Sequence[Mapping]) -> pd.DataFrame:
    """Turn the Trainer's log into one row an evaluation by generation.

    Args:
        log: `trainer.state.log_history`.

    Returns:
        step, epoch, and `answer_scores.SCORES`: segment, grade, laterality and plan (shares, 0 to
        1), overall (0 to 10); missing where no truth is known. Empty if no answers were scored.
    """
    rows = [
        {"step": entry["step"], "epoch": entry["epoch"]}
        | {name: entry.get(PREFIX + name) for name in SCORES}
        for entry in log
        if any(key.startswith(PREFIX) for key in entry)
    ]
    table = pd.DataFrame(rows, columns=["step", "epoch", *SCORES])
    return table.drop_duplicates("step")
