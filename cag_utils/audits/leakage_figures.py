"""Figures of the leakage audit: distances, look-alikes, gains."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

from cag_utils.audits.leakage import RELATIONS
from cag_utils.keyframes.labels import MERGES

AXIS = {"hash": "Bits that differ, of 64", "embedding": "Cosine distance of embeddings"}


def draw_distances(
    kin: Mapping[str, pd.DataFrame], limits: Mapping[str, float]
) -> tuple[plt.Figure, pd.DataFrame]:
    """Draw how near frames' nearest relatives are, one panel a fingerprint.

    Args:
        kin: Fingerprint ("hash", "embedding") to the table of `leakage.nearest_by_relation`.
        limits: Fingerprint to its limit, a dotted line.

    Returns:
        The figure and the distances drawn: nearest, distance, fingerprint.
    """
    fig, axes = plt.subplots(1, len(kin), figsize=(6.9, 2.6), layout="constrained", sharey=True)
    colours = dict(zip(RELATIONS, sns.color_palette("colorblind"), strict=False))
    tidy = []
    for ax, (kind, table) in zip(axes, kin.items(), strict=True):
        long = table.melt(var_name="nearest", value_name="distance").dropna()
        sns.ecdfplot(long, x="distance", hue="nearest", palette=colours, ax=ax, legend=False)
        ax.axvline(limits[kind], color="0.4", linestyle=":")
        ax.set(xlabel=AXIS[kind], ylabel="Share of frames")
        tidy.append(long.assign(fingerprint=kind))
    lines = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    lines.append(Line2D([], [], color="0.4", linestyle=":", label="limit"))
    fig.legend(handles=lines, loc="outside upper center", ncol=5, fontsize=7)
    return fig, pd.concat(tidy)


def draw_pairs(
    twins: pd.DataFrame, frames: pd.DataFrame, folder: Path, title: str, count: int = 6
) -> tuple[plt.Figure, pd.DataFrame]:
    """Draw the closest pairs of a test and a training frame, one pair a patient.

    Args:
        twins: Of `leakage.find_twins`, searched within patients.
        frames: patient_id, video_id, frame, label, png (relative to `folder`).
        folder: Run folder of notebook 00.
        title: Of the figure; says what the pictures are.
        count: Pairs at most.

    Returns:
        The figure and the pairs drawn: patient_id, distance, and video_id, frame and label of
        either side. Without a pair the figure is empty.
    """
    columns = ["patient_id", "video_id", "frame", "label", "png"]
    sides = [frames.iloc[twins[k]][columns].reset_index(drop=True) for k in ("row", "twin")]
    pairs = sides[0].join(sides[1], lsuffix="_test", rsuffix="_train")
    pairs["distance"] = twins["distance"].to_numpy()
    shown = pairs.sort_values("distance").drop_duplicates("patient_id_test").head(count)
    fig, axes = plt.subplots(2, count, figsize=(1.15 * count, 2.9), layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for column, (_, pair) in zip(axes.T, shown.iterrows(), strict=False):
        for ax, side in zip(column, ("test", "train"), strict=True):
            ax.imshow(plt.imread(folder / pair[f"png_{side}"]), cmap="gray", vmin=0, vmax=1)
            ax.set_title(f"{side}: {pair[f'label_{side}']}", fontsize=6)
        column[1].text(
            0.5, -0.1, f"distance {pair['distance']:.3f}", fontsize=6, ha="center", va="top",
            transform=column[1].transAxes,
        )  # fmt: skip
    fig.suptitle(title, fontsize=8)
    kept = shown.rename(columns={"patient_id_test": "patient_id"})
    return fig, kept.drop(columns=["patient_id_train", "png_test", "png_train"])


def draw_gains(
    resplit: pd.DataFrame, fair: pd.DataFrame, deals: pd.DataFrame
) -> tuple[plt.Figure, pd.DataFrame]:
    """Draw gains in F1 over the patient split with their intervals, one panel an F1.

    Args:
        resplit: Of `leakage.tabulate_f1`, a new split each with its own test frames.
        fair: Likewise, of the same test frames.
        deals: As `fair`, deal by deal, with the column repeat: small upright strokes.

    Returns:
        The figure and what was drawn.
    """
    named = {"new split": resplit, "same frames": fair, "one deal": deals}
    drawn = pd.concat([table.assign(design=name) for name, table in named.items()])
    drawn = drawn[drawn["arm"] != "patient"]
    drawn["where"] = drawn["design"].replace("one deal", "same frames") + ", " + drawn["arm"]
    fig, axes = plt.subplots(1, len(MERGES), figsize=(6.9, 2.1), layout="constrained", sharey=True)
    for ax, name in zip(axes, MERGES, strict=True):
        own = drawn[drawn["f1_name"] == name]
        whole, single = own[own["design"] != "one deal"], own[own["design"] == "one deal"]
        span = [whole["gain"] - whole["gain_low"], whole["gain_high"] - whole["gain"]]
        ax.errorbar(whole["gain"], whole["where"], xerr=span, fmt="o", markersize=4, capsize=2)
        ax.plot(single["gain"], single["where"], "|", color="0.2", markersize=12)
        ax.axvline(0, color="0.4", linewidth=0.8)
        ax.set(title=name.replace("_f1", " F1").replace("_", "-"), ylim=(-0.5, len(whole) - 0.5))
    axes[1].set(xlabel="Gain in weighted F1 over the patient split")
    return fig, drawn
