"""Figures of notebook 02: confusion, calibration, mistakes, groups, maps, the key frame a cine."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cag_utils.keyframes.evaluation import Reliability
from cag_utils.keyframes.labels import LATERALITY, SIX_CLASSES

WIDTH = 6.9  # inches, print
F1_COLOURS = {"six_class_f1": "#0072B2", "laterality_f1": "#D55E00"}
F1_NAMES = {"six_class_f1": "six classes", "laterality_f1": "side"}
FEWEST = 10  # frames for a dot in the reliability diagram: fewer say nothing; choice
PICKED, BEST = "#D55E00", "#009E73"
WRONG_SIDE, WRONG_QUALITY = "#D55E00", "#0072B2"  # as the F1s: sides orange, six classes blue


def draw_confusion(matrix: np.ndarray) -> tuple[plt.Figure, pd.DataFrame]:
    """Draw a six-class confusion matrix, (6, 6) with a row a true class.

    Returns:
        The figure, and its cells: true, predicted, n, row_percent (NaN without a true frame).
    """
    n_true = matrix.sum(axis=1, keepdims=True)
    percent = np.divide(100 * matrix, n_true, out=np.full(matrix.shape, np.nan), where=n_true > 0)
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.3), sharey=True, layout="constrained")
    for ax, values, words in zip(axes, (matrix, percent), ("frames", "% of row"), strict=True):
        ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        for (i, j), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else f"{value:.0f}"
            dark = np.nan_to_num(percent[i, j]) > 55
            ax.text(j, i, text, ha="center", va="center", size=7, color="w" if dark else "k")
        ax.set_xticks(range(6), SIX_CLASSES, rotation=60, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(6), SIX_CLASSES)
        ax.set(xlabel=f"Predicted ({words})")
        ax.grid(visible=False)
    axes[0].set(ylabel="True")
    cells = pd.MultiIndex.from_product([SIX_CLASSES, SIX_CLASSES], names=["true", "predicted"])
    rows = pd.DataFrame({"n": matrix.ravel(), "row_percent": percent.ravel()}, index=cells)
    return fig, rows.reset_index()


def draw_reliability(found: Mapping[str, Reliability]) -> tuple[plt.Figure, pd.DataFrame]:
    """Draw share right against confidence, and below it how many frames have which confidence.

    Args:
        found: F1 name (`six_class_f1`, `laterality_f1`) to its reliability. Bins of fewer than 10
            frames get no dot, but stay in the histogram, the ECE and the table that comes back.
    """
    fig, axes = plt.subplots(
        2, len(found), figsize=(WIDTH, 3.6), sharex=True, height_ratios=[3, 1],
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for (name, (bins, ece)), (top, low) in zip(found.items(), axes.T, strict=True):
        colour, wide = F1_COLOURS[name], bins["to_confidence"] - bins["from_confidence"]
        top.plot([0, 1], [0, 1], color="0.5", linestyle=":", linewidth=1)
        dots = bins[bins["n"] >= FEWEST]
        spans = [dots["right"] - dots["low"], dots["high"] - dots["right"]]
        top.errorbar(dots["confidence"], dots["right"], spans, color=colour, fmt="o-", capsize=2,
                     markersize=3, linewidth=1)  # fmt: skip
        text = f"{F1_NAMES[name]}: ECE {ece.value:.3f}\n({ece.low:.3f} to {ece.high:.3f})"
        top.text(0.03, 0.97, text, transform=top.transAxes, va="top", size=8)
        top.set(ylabel="Share right", ylim=(-0.02, 1.02), xlim=(0, 1))
        low.bar(bins["from_confidence"], bins["n"], wide, align="edge", color=colour, alpha=0.6)
        low.set(xlabel="Confidence of the answer", ylabel="Frames")
    return fig, pd.concat([r.bins.assign(f1_name=name) for name, r in found.items()])


def draw_mistakes(wrong: pd.DataFrame, folder: Path, note: str) -> tuple[plt.Figure, pd.DataFrame]:
    """Draw a contact sheet of the surest mistakes, one a cine.

    Args:
        wrong: In the order to draw: label, predicted, confidence, view, video_id, frame, png.
        folder: Run folder of notebook 00, which the pngs are relative to.
        note: What the pictures are, e.g. "digital phantom"; printed below.
    """
    n_rows = max(1, -(-len(wrong) // 4))
    fig, axes = plt.subplots(n_rows, 4, figsize=(WIDTH, 2.15 * n_rows), squeeze=False,
                             layout="constrained")  # fmt: skip
    for ax in axes.flat:
        ax.axis("off")
    for ax, row in zip(axes.flat, wrong.itertuples(), strict=False):
        ax.imshow(plt.imread(folder / row.png), cmap="gray", vmin=0, vmax=1)
        swapped = LATERALITY[row.label] != LATERALITY[row.predicted]
        text = f"is {row.label}, {row.view}\nsaid {row.predicted} ({row.confidence:.2f})"
        ax.set_title(text, fontsize=7, color=WRONG_SIDE if swapped else WRONG_QUALITY)
    fig.supxlabel(f"{note}; orange: wrong side, blue: wrong quality only", fontsize=7)
    return fig, wrong[["video_id", "frame", "label", "predicted", "confidence", "view"]]


def draw_groups(scores: pd.DataFrame, names: Mapping[str, str]) -> tuple[plt.Figure, pd.DataFrame]:
    """Draw the F1s of `evaluation.score_groups`, one panel a grouping column with its title."""
    n_columns = min(2, len(names))
    n_rows = -(-len(names) // n_columns)
    fig, axes = plt.subplots(n_rows, n_columns, figsize=(WIDTH, 2.5 * n_rows), squeeze=False,
                             layout="constrained", sharex=True)  # fmt: skip
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for ax, (by, title) in zip(axes.flat, names.items(), strict=False):
        own = scores[scores["by"] == by]
        groups = list(dict.fromkeys(own["group"]))
        for name, shift in (("six_class_f1", 0.13), ("laterality_f1", -0.13)):
            rows = own[own["f1_name"] == name].set_index("group").loc[groups]
            at = np.arange(len(groups)) + shift
            spans = [rows["f1"] - rows["low"], rows["high"] - rows["f1"]]
            ax.errorbar(rows["f1"], at, xerr=spans, fmt="o", markersize=4, capsize=2,
                        color=F1_COLOURS[name], label=F1_NAMES[name])  # fmt: skip
        counts = own.drop_duplicates("group").set_index("group")["frames"]
        ax.set_yticks(range(len(groups)), [f"{g} (n={counts[g]})" for g in groups], fontsize=7)
        ax.set(xlim=(0, 1.02), ylim=(len(groups) - 0.5, -0.5), xlabel="Weighted F1")
        ax.set_title(title, fontsize=8)
        ax.tick_params(labelbottom=True)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncol=2, fontsize=8)
    return fig, scores


def draw_maps(
    pictures: np.ndarray, maps: Mapping[str, np.ndarray], titles: Sequence[str], note: str
) -> plt.Figure:
    """Draw pictures and, below each, its saliency maps laid over it.

    Args:
        pictures: (n, px, px) uint8.
        maps: Row's name to (n, px, px); each map is shown from 0 to its own largest value.
        titles: (n,) above each picture.
        note: What the pictures are; printed below.
    """
    n = len(pictures)
    fig, axes = plt.subplots(1 + len(maps), n, figsize=(1.15 * n, 0.25 + 1.2 * (1 + len(maps))),
                             squeeze=False, layout="constrained")  # fmt: skip
    for row, (name, values) in zip(axes, [("frame", None), *maps.items()], strict=True):
        for i, ax in enumerate(row):
            ax.imshow(pictures[i], cmap="gray", vmin=0, vmax=255)
            if values is not None:
                heat = np.clip(values[i], 0, None)
                heat = heat / heat.max() if heat.max() > 0 else heat
                ax.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.65 * heat)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=8)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=6.5)
    fig.supxlabel(note, fontsize=7)
    return fig


def draw_pick_distances(picks: pd.DataFrame) -> tuple[plt.Figure, pd.DataFrame]:
    """Draw how far the picks of `evaluation.pick_firsts` are from the nearest and the best frame.

    Returns:
        The figure, and the distances: video_id, to, frames.
    """
    long = picks.melt("video_id", ["frames_to_nearest", "frames_to_best"], "to", "frames").dropna()
    long["to"] = long["to"].str.removeprefix("frames_to_")
    fig, ax = plt.subplots(figsize=(WIDTH / 2, 2.4), layout="constrained")
    looks = {"nearest": (PICKED, "-", "nearest better frame"), "best": (BEST, "--", "best frame")}
    for to, (colour, dash, words) in looks.items():
        if len(own := long.loc[long["to"] == to, "frames"]):
            ax.ecdf(own, color=colour, linestyle=dash, label=f"{words} ({len(own)} cines)")
    if len(long):
        ax.legend(fontsize=7, loc="lower right")
    ax.set(xlabel="Frames between", ylabel="Share of picks", ylim=(0, 1.02))
    ax.set_xlim(-0.5, max(5.0, long["frames"].max() if len(long) else 0) + 0.5)
    return fig, long


def draw_strips(
    picks: pd.DataFrame, seen: pd.DataFrame, folder: Path, note: str, most: int = 8
) -> tuple[plt.Figure, pd.DataFrame]:
    """Draw cines as strips of their sampled frames, the picked and the best one framed.

    Args:
        picks: The cines to draw, rows of `evaluation.pick_firsts`.
        seen: All sampled frames: video_id, frame, label, png.
        folder: Run folder of notebook 00, which the pngs are relative to.
        note: What the pictures are; printed below.
        most: Frames a strip; of longer cines an even choice, the framed ones always among them.

    Returns:
        The figure, and the frames drawn: video_id, frame, label, role ("picked", "best", "nearest"
        where no best is known, or "").
    """
    fig, axes = plt.subplots(max(1, len(picks)), most, squeeze=False, layout="constrained",
                             figsize=(WIDTH, 0.3 + 1.15 * max(1, len(picks))))  # fmt: skip
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], frame_on=False)
    rows = []
    for strip, pick in zip(axes, picks.itertuples(), strict=False):
        own = seen[seen["video_id"] == pick.video_id].sort_values("frame").reset_index(drop=True)
        marked, goal = (pick.best, "best") if pd.notna(pick.best) else (pick.nearest, "nearest")
        keep = set(np.flatnonzero(own["frame"].isin([pick.picked, marked])))
        for i in np.linspace(0, len(own) - 1, most).round().astype(int):
            keep |= {int(i)} if len(keep) < most else set()
        for ax, row in zip(strip, own.loc[sorted(keep)].itertuples(), strict=False):
            role = "picked" if row.frame == pick.picked else goal if row.frame == marked else ""
            both = role == "picked" and row.frame == marked
            ax.imshow(plt.imread(folder / row.png), cmap="gray", vmin=0, vmax=1)
            if role:
                colour = PICKED if role == "picked" else BEST
                ax.set(frame_on=True)
                ax.spines[:].set(visible=True, linewidth=3, edgecolor=colour)
                ax.set_xlabel(f"picked = {goal}" if both else role, fontsize=6.5)
            ax.set_title(f"{row.frame}: {row.label[4:]}", fontsize=6.5)
            rows.append((row.video_id, row.frame, row.label, role))
    fig.supxlabel(f"{note}; orange: picked, green: the best (or nearest) better frame", fontsize=7)
    return fig, pd.DataFrame(rows, columns=["video_id", "frame", "label", "role"])
