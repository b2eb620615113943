"""The six frame classes: read, settled between readers, merged, and the paper's three F1s."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
from sklearn.metrics import f1_score

from cag_utils.identity import study_id
from cag_utils.tables import read_table

SIX_CLASSES = ("LCA_better", "LCA_bad", "LCA_other", "RCA_better", "RCA_bad", "RCA_other")
SIX = {name: name for name in SIX_CLASSES}
LATERALITY = {name: name[:3] for name in SIX_CLASSES}
QUALITY = {name: name[4:] for name in SIX_CLASSES}
THREE = {name: name if name.endswith("_better") else "others" for name in SIX_CLASSES}
MERGES = {"six_class_f1": SIX, "laterality_f1": LATERALITY, "three_class_f1": THREE}
CAUTION = ("other", "bad", "better")  # most cautious first: settles a tie between readers

FRAME_LABELS = pa.DataFrameSchema(
    {
        "video": pa.Column(str, pa.Check.str_matches(r"^([0-9.]+|vi-[0-9a-f]+)$")),
        "frame": pa.Column(int, pa.Check.ge(0)),
        "reader": pa.Column(str, pa.Check.str_length(min_value=1)),
        "label": pa.Column(str, pa.Check.isin(SIX_CLASSES)),
    },
    unique=["video", "frame", "reader"],
    coerce=True,
)
RULES = {
    "video": "must be a SOPInstanceUID (digits and dots) or a video_id of this study (vi-...)",
    "frame": "must be a whole number, 0 for the first frame",
    "reader": "must name who gave the label",
    "label": f"must be one of {', '.join(SIX_CLASSES)}",
}


def read_frame_labels(path: Path) -> pd.DataFrame:
    """Read `frame_labels.csv` and name the file, row and rule of everything wrong in it.

    Args:
        path: CSV with the columns video, frame, reader, label; more columns are dropped.

    Returns:
        One row per video, frame and reader, in the file's order; `frame` is int.

    Raises:
        ValueError: A column is missing, a cell breaks its rule, or a reader labelled one frame
            twice. Rows are counted as a spreadsheet does: 1 is the header.
    """
    twice = "this reader labelled this frame twice; keep one row"
    return read_table(path, FRAME_LABELS, RULES, twice).reset_index(drop=True)


def settle_readers(labels: pd.DataFrame) -> pd.DataFrame:
    """Turn several readers' labels, of `read_frame_labels`, into one label a frame.

    The rule: first the side most readers gave, then the quality most of those readers gave. On
    a tie in quality the more cautious one (other, then bad, then better), so that no frame
    counts as a key frame against half of its readers. A tie between left and right has no
    cautious answer: the frame is left out, with a warning.

    Returns:
        One row per video and frame, sorted: video, frame, label, n_readers, agreement (share of all
        readers who gave that label, in (0, 1]).
    """
    frame = ["video", "frame"]
    table = labels.groupby([*frame, "label"]).size().rename("votes").reset_index()
    table["side"] = table["label"].map(LATERALITY)
    table["side_votes"] = table.groupby([*frame, "side"])["votes"].transform("sum")
    table["n_readers"] = table.groupby(frame)["votes"].transform("sum")
    table["agreement"] = table["votes"] / table["n_readers"]
    table["caution"] = table["label"].map(QUALITY).map(CAUTION.index)
    best = table[table["side_votes"] == table.groupby(frame)["side_votes"].transform("max")]
    tied = best.groupby(frame)["side"].transform("nunique") > 1
    if n_tied := len(best[tied].drop_duplicates(frame)):
        warnings.warn(f"{n_tied} frames left out: readers tied between LCA and RCA", stacklevel=2)
    rising = [True, True, False, True]
    order = best[~tied].sort_values([*frame, "votes", "caution"], ascending=rising)
    columns = [*frame, "label", "n_readers", "agreement"]
    return order.drop_duplicates(frame)[columns].reset_index(drop=True)


def label_frames(frames: pd.DataFrame, labels: pd.DataFrame, key: bytes) -> pd.DataFrame:
    """Join sampled frames with their labels, through the study's pseudonyms.

    Args:
        labels: Of `settle_readers`; `video` is a SOPInstanceUID, or already a video_id.
        key: The study's pseudonym key, which turns the first into the second.

    Returns:
        The rows of `frames` that have a label, in their order, with the columns of `labels`. Labels
        of frames that were not sampled are dropped.

    Raises:
        ValueError: No frame has a label.
    """
    names = {video: study_id("video", video, key) for video in set(labels["video"])}
    known = labels.assign(video_id=labels["video"].map(names)).drop(columns="video")
    joined = frames.merge(known, on=["video_id", "frame"], how="inner", validate="one_to_one")
    if joined.empty:
        raise ValueError(
            f"none of {len(frames)} sampled frames is among {len(labels)} labelled ones: "
            "are the labels of this archive, and `frame` 0-based?"
        )
    return joined


def merge_probabilities(probabilities: pd.DataFrame, merge: Mapping[str, str]) -> pd.DataFrame:
    """Add up the six classes' probabilities into a merge's coarser classes.

    Args:
        probabilities: (n, 6), columns SIX_CLASSES, rows adding up to 1.
        merge: Six-class label to merged label: one of `MERGES`.

    Returns:
        (n, k) with one column a merged class, in order of first appearance; same index.

    Raises:
        ValueError: A class column is missing.
    """
    if missing := [c for c in SIX_CLASSES if c not in probabilities.columns]:
        raise ValueError(f"probabilities lack {missing}; they need the columns {SIX_CLASSES}")
    sums = {name: 0.0 for name in dict.fromkeys(merge.values())}
    for label, name in merge.items():
        sums[name] = sums[name] + probabilities[label]
    return pd.DataFrame(sums, index=probabilities.index)


def decide(probabilities: pd.DataFrame, merge: Mapping[str, str]) -> np.ndarray:
    """Return the merged class with the largest summed probability, per row.

    Summing first is the better guess: a frame at 0.4 LCA_bad, 0.35 RCA_bad and 0.25 RCA_better
    is more likely right than left, although its likeliest single class is left.

    Returns:
        (n,) merged labels for what `merge_probabilities` takes; ties go to the class named first.
    """
    merged = merge_probabilities(probabilities, merge)
    return np.asarray(merged.columns)[merged.to_numpy().argmax(axis=1)]


def f1_scores(truth: Sequence[str], probabilities: pd.DataFrame) -> dict[str, float]:
    """Compute the paper's three F1s, each averaged over classes weighted by their true counts.

    The paper prints only "F1" for laterality; it is taken as weighted, like its neighbours. It does
    not say how it merged: here `decide` does.

    Args:
        truth: (n,) labels out of SIX_CLASSES.
        probabilities: (n, 6), columns SIX_CLASSES.

    Returns:
        The names of `MERGES` with their F1s, each in [0, 1].

    Raises:
        ValueError: Lengths differ, there are no rows, or a true label is unknown.

    Source:
        CAG-VLM section 4.2: 0.766, 0.959 and 0.925 on its test set.
    """
    known = pd.Series(list(truth), dtype=object)
    if len(known) != len(probabilities) or known.empty:
        raise ValueError(
            f"{len(known)} labels for {len(probabilities)} predictions; need n = n > 0"
        )
    if unknown := sorted(set(known) - set(SIX_CLASSES)):
        raise ValueError(f"unknown labels {unknown}; they must be among {SIX_CLASSES}")
    return {
        name: float(f1_score(known.map(merge), decide(probabilities, merge), average="weighted"))
        for name, merge in MERGES.items()
    }
