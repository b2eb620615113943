"""Figures of the key frame a cine: how far from a good one, and what it looks like."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

WIDTH = 6.9  # inches, print
PICKED, BEST = "#D55E00", "#009E73"


def draw_distances(picks: pd.DataFrame) -> tuple[plt.Figure, pd.DataFrame]:
    """Draw how many frames picks are away from the nearest and the best `better` frame.

    Args:
        picks: Of `picks.pick_firsts`.

    Returns:
        The figure and the distances: video_id, to, frames. Panels without a distance are empty.
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
        picks: The cines to draw, rows of `picks.pick_firsts`.
        seen: video_id, frame, label, png (relative to `folder`) of all sampled frames.
        folder: Run folder of notebook 00.
        note: What the pictures are; printed below.
        most: Frames a strip; of longer cines an even choice, the framed ones always among them.

    Returns:
        The figure and the frames drawn: video_id, frame, label, role ("picked", "best",
            "nearest" where no best is known, or "").
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
            _frame(ax, plt.imread(folder / row.png), f"picked = {goal}" if both else role)
            ax.set_title(f"{row.frame}: {row.label[4:]}", fontsize=6.5)
            rows.append((row.video_id, row.frame, row.label, role))
    words = f"{note}; orange: picked, green: the best (or nearest) better frame"
    fig.supxlabel(words, fontsize=7)
    return fig, pd.DataFrame(rows, columns=["video_id", "frame", "label", "role"])


def _frame(ax: plt.Axes, picture: np.ndarray, role: str) -> None:
    """Show a picture within a coloured border that tells its role."""
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    if not role:
        return
    ax.set_frame_on(True)
    for spine in ax.spines.values():
        spine.set(
            visible=True, linewidth=3, edgecolor=PICKED if role.startswith("picked") else BEST
        )
    ax.set_xlabel(role, fontsize=6.5)
