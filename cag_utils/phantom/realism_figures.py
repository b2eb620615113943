"""Phantom and real pictures side by side: the drawing behind the last parts of notebook A1.

Phantom is blue, real is orange (Okabe and Ito's colours); every title says which is which.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cag_utils.phantom.realism import flat_patches, noise_power, open_field
from cag_utils.phantom.realism_cine import fill_curve, mean_curve

SIDE_COLOURS = {"phantom": "#0072B2", "real": "#D55E00"}
TITLE = 9  # points
Drawn = tuple[plt.Figure, pd.DataFrame]  # a figure, and the rows behind it for `save_figure`


def draw_realism(pictures: Mapping[str, list], stills: Mapping[str, pd.DataFrame]) -> Drawn:
    """Draw histograms, noise power spectra, line widths and contrast to noise.

    Args:
        pictures: `phantom` and `real`, (H, W) uint8 each; `real` may be empty.
        stills: Their measures, from `realism.measure_picture`.
    """
    fig, axes = plt.subplots(
        1, 4, figsize=(6.9, 2.2), layout="constrained", width_ratios=[1.2, 1.2, 1, 1]
    )
    shown = [side for side in SIDE_COLOURS if len(pictures[side])]
    rows = []
    for side in shown:
        colour, fields = SIDE_COLOURS[side], [open_field(x) for x in pictures[side]]
        pairs = list(zip(pictures[side], fields, strict=True))
        inside = np.concatenate([x[f] for x, f in pairs])
        style = {"density": True, "histtype": "step", "color": colour}
        axes[0].hist(inside, 64, (0, 256), label=f"{side}, n = {len(pairs)}", **style)
        spectra = [noise_power(flat_patches(*pair)) for pair in pairs]
        at, power = spectra[0][0], np.percentile([w for _, w in spectra], [25, 50, 75], axis=0)
        axes[1].fill_between(at, power[0], power[2], color=colour, alpha=0.25)
        axes[1].semilogy(at, power[1], color=colour)
        names = ("low", "power", "high")
        quartiles = dict(zip(names, power, strict=True))
        rows.append(pd.DataFrame({"side": side, "cycles_px": at, **quartiles}))
    for ax, name in zip(axes[2:], ("line_width_px", "line_cnr"), strict=True):
        ax.boxplot([stills[side][name].dropna() for side in shown], tick_labels=shown, widths=0.6)
        ax.tick_params(axis="x", labelsize=7)
    axes[0].set(xlabel="Grey level", ylabel="Density (per level)")
    axes[0].legend(fontsize=5)
    axes[1].set(xlabel="Frequency (cycles/px)", ylabel="Noise (grey² px²)")
    axes[2].set(ylabel="Line width (px)")
    axes[3].set(ylabel="Contrast / noise")
    fig.suptitle("Phantom stills" + " beside real ones" * ("real" in shown), fontsize=TITLE)
    return fig, pd.concat(rows)


def draw_curves(films: Mapping[str, Sequence], frame_rate: float) -> Drawn:
    """Draw how the mean grey level and the black hat of cines change over time.

    Args:
        films: `phantom` and `real`, (t, H, W) uint8 each; `real` may be empty.
        frame_rate: Frames a second.
    """
    fig, axes = plt.subplots(1, 2, figsize=(6.9, 2.3), layout="constrained")
    rows = []
    for side, number, frames in [(s, i, f) for s in SIDE_COLOURS for i, f in enumerate(films[s])]:
        field = open_field(np.median(frames[::5], axis=0).astype(np.uint8))
        curves = {"mean": mean_curve(frames, field), "black_hat": fill_curve(frames, field)}
        time_s = np.arange(len(frames)) / frame_rate
        look = {"color": SIDE_COLOURS[side], "lw": 0.8 if side == "phantom" else 1.8}
        label = f"{side}, n = {len(films[side])}" if number == 0 else None
        for ax, curve in zip(axes, curves.values(), strict=True):
            ax.plot(time_s, curve - np.median(curve[:4]), label=label, **look)
        rows.append(pd.DataFrame({"side": side, "cine": number, "time_s": time_s, **curves}))
    axes[0].set(xlabel="Time (s)", ylabel="Mean, change (grey)")
    axes[1].set(xlabel="Time (s)", ylabel="Black hat, change (grey)")
    axes[0].legend(fontsize=6)
    fig.suptitle(
        "Phantom LCA cines" + " beside a real one" * bool(len(films["real"])), fontsize=TITLE
    )
    return fig, pd.concat(rows).round(3)


def draw_grades(grades: Mapping[str, pd.Series], states: pd.Series, heading: str) -> plt.Figure:
    """Draw a network's three grades over a real cine, its labelled ranges shaded.

    Args:
        grades: other, bad and better, (t,) probabilities each.
        states: (t,) contrast state of every frame, empty where there is none.
        heading: Title.
    """
    fig, ax = plt.subplots(figsize=(6.9, 2.3), layout="constrained")
    for state in [state for state in states.unique() if state]:
        frames = states.index[states == state]
        ax.axvspan(frames[0], frames[-1], color="0.5", alpha=0.15)
        ax.text(frames.to_series().mean(), 1.03, state, ha="center", fontsize=6)
    for (name, curve), style in zip(grades.items(), ("-", ":", "--"), strict=True):
        ax.plot(states.index, curve, style, label=name)
    ax.set(xlabel="Frame", ylabel="Probability", ylim=(0, 1.12))
    ax.legend(fontsize=6, loc="center right")
    fig.suptitle(heading, fontsize=TITLE)
    return fig
