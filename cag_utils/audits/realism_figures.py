"""The drawing behind notebook A1: how a phantom is made, and phantom beside real pictures.

Phantom is blue, real is orange (Okabe and Ito's colours); every title says which is which. A
`heading` is a figure's title; `places` are names and indices of centreline points; a `pose` is the
tree in every frame of the cine. `pictures` and `films` hold those of `phantom` and of `real`, which
may be empty, (H, W) or (t, H, W) uint8 each; `frame_rate` is frames a second.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from cag_utils.audits.realism import fill_curve, mean_curve, noise_power
from cag_utils.cines.stills import flat_patches, open_field
from cag_utils.phantom.anatomy.tree import Tree
from cag_utils.phantom.imaging.carm import VIEWS, aim, draw_carm
from cag_utils.phantom.imaging.chest import draw_backdrop
from cag_utils.phantom.imaging.detector import expose
from cag_utils.phantom.imaging.pose import Pose
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import Shot
from cag_utils.phantom.stills import scene
from cag_utils.phantom.subject import Subject
from cag_utils.segments import AHA_SEGMENTS
from cag_utils.study import root, under_root

SIDE_COLOURS = {"phantom": "#0072B2", "real": "#D55E00"}
ARTERY_COLOURS = {"RCA": "#009E73", "LM": "#000000", "LAD": "#0072B2", "LCX": "#D55E00"}
TITLE = 9  # points
FILM_PX = 256  # rows and columns of the embedded film
Drawn = tuple[plt.Figure, pd.DataFrame]  # a figure, and the rows behind it for `save_figure`


def _figure(heading: str, rows: int, columns: int, height: float, **options):
    """A figure 6.9 inches wide with a heading, and its axes."""
    size = {"figsize": (6.9, height), "layout": "constrained"}
    fig, axes = plt.subplots(rows, columns, **size, **options)
    fig.suptitle(heading, fontsize=TITLE)
    return fig, axes


def draw_trees(trees: Mapping[str, Tree], heading: str) -> Drawn:
    """Draw trees from the front and from the side, segments named in AHA and SYNTAX numbers."""
    fig, axes = _figure(heading, 1, 2, 3.7)
    rows = []
    for tree in trees.values():
        colours = [ARTERY_COLOURS[AHA_SEGMENTS[s].artery] for s in tree.segment]
        for ax, across in zip(axes, (0, 2), strict=True):
            at = tree.points[:, [across, 1]].T
            ax.scatter(*at, s=4 * tree.radius**2, c=colours, lw=0, rasterized=True)
            _name_segments(ax, tree, across)
        facts = {"aha": tree.segment, "syntax": tree.syntax, "radius_mm": tree.radius}
        facts |= dict(zip(("x_mm", "y_mm", "z_mm"), tree.points.T, strict=True))
        rows.append(pd.DataFrame(facts))
    axes[0].set(xlabel="To the patient's left (mm)", ylabel="Headwards (mm)")
    axes[1].set(xlabel="To the front (mm)", ylabel="Headwards (mm)")
    for ax in axes:
        ax.set_aspect("equal", adjustable="datalim")
    return fig, pd.concat(rows).round(2)


def _name_segments(ax, tree: Tree, across: int) -> None:
    """Write AHA number and SYNTAX labels at the middle of each segment."""
    for number in np.unique(tree.segment):
        named = tree.points_of(number)
        if len(named):
            at = tree.points[named[len(named) // 2]][[across, 1]]
            text = f"{number} ({'/'.join(sorted({*tree.syntax[named]}))})"
            back = {"fc": "white", "alpha": 0.75, "lw": 0, "pad": 0.4}
            ax.text(*at, text, fontsize=5, bbox=back)


def draw_views(trees: Mapping[str, Tree], heading: str) -> Drawn:
    """Project both trees (LCA and RCA) as the standard views show them, one panel a view."""
    views = [(side, name) for side in trees for name, *_ in VIEWS[side]]
    n_rows = -(-len(views) // 6)
    fig, axes = _figure(heading, n_rows, 6, 1.55 * n_rows)
    for ax in axes.flat[len(views) :]:
        ax.axis("off")
    rows = []
    for ax, (side, name) in zip(axes.flat, views, strict=False):
        tree = trees[side]
        _, arm = draw_carm(np.random.default_rng(1), side, 512, name)
        u, v, scale = aim(arm, tree.points[tree.main]).project(tree.points)
        ax.scatter(u, v, s=0.013 * (tree.radius * scale) ** 2, c="k", lw=0, rasterized=True)
        _square(ax, f"{side} {name}\n{arm.primary_deg:+.0f}°, {arm.secondary_deg:+.0f}°")
        rows.append((side, name, round(arm.primary_deg, 1), round(arm.secondary_deg, 1)))
    return fig, pd.DataFrame(rows, columns=["side", "view", "primary_deg", "secondary_deg"])


def _square(ax, title: str, size_px: int = 512) -> None:
    """A picture's frame without ticks, rows downwards."""
    ax.set(xlim=(0, size_px), ylim=(size_px, 0), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=6)


def draw_bolus(
    shot: Shot, tree: Tree, pose: Pose, filled: np.ndarray, places: Mapping, heading: str
) -> Drawn:
    """Draw contrast at places over time, and (t, n) undiluted shares in the tree four times."""
    fig, axes = _figure(heading, 1, 5, 1.9, width_ratios=[1.9, 1, 1, 1, 1])
    for (name, index), style in zip(places.items(), ("-", "--", ":"), strict=False):
        axes[0].plot(shot.time_s, filled[:, index], style, label=name)
    axes[0].set(xlabel="Time (s)", ylabel="Contrast (1 = undiluted)")
    axes[0].legend(fontsize=5)
    size = 1.2 * tree.radius**2
    shares = np.array([0.05, 0.3, 0.6, 0.95]) * filled.mean(axis=1).max()
    for ax, share in zip(axes[1:], shares, strict=True):
        i = int(np.argmax(filled.mean(axis=1) >= share))
        tint = {"cmap": "cividis", "vmin": 0, "vmax": 1, "lw": 0, "rasterized": True}
        ax.scatter(pose.u[i], pose.v[i], c=filled[i], s=size, **tint)
        _square(ax, f"{shot.time_s[i]:.1f} s", shot.arm.size_px)
    curves = pd.DataFrame({name: filled[:, i] for name, i in places.items()})
    return fig, curves.assign(time_s=shot.time_s).round(4)


def draw_motion(shot: Shot, pose: Pose, places: Mapping, heading: str) -> Drawn:
    """Draw the contraction curve and how a few points travel on the picture."""
    fig, axes = _figure(heading, 1, 2, 2.3)
    axes[0].plot(shot.time_s, pose.state, ".-", color="#0072B2")
    axes[0].set(xlabel="Time (s)", ylabel="Contraction (0 to 1)")
    rows = []
    for (name, i), mark in zip(places.items(), "osv", strict=False):
        u, v = pose.u[:, i] - pose.u[0, i], pose.v[:, i] - pose.v[0, i]
        axes[1].plot(u, v, f"{mark}-", ms=2, lw=0.5, label=name)
        rows.append(pd.DataFrame({"place": name, "time_s": shot.time_s, "u_px": u, "v_px": v}))
    axes[1].set(xlabel="To the right (px)", ylabel="Downwards (px)", aspect="equal")
    axes[1].invert_yaxis()
    axes[1].legend(fontsize=5)
    return fig, pd.concat(rows).round(2)


def frame_layers(rng: np.random.Generator, subject: Subject, shot: Shot) -> dict[str, np.ndarray]:
    """Compute what lies under a cine's frames: title to (H, W) picture.

    A generator in the state that `render.film` is given draws the same chest.
    """
    margin = shot.margin_px
    depth = draw_backdrop(rng, shot.arm, subject.body, margin, subject.hardware)
    detector = expose(rng, depth, shot.look, margin)
    return {
        "optical depth": depth[margin:-margin, margin:-margin],
        "scatter / primary": detector.scatter,
        "log display (grey)": detector.background[margin:-margin, margin:-margin],
        "noise sd (grey)": detector.noise_sigma,
    }


def draw_strip(pictures: Mapping[str, np.ndarray], heading: str, grey: bool = False) -> plt.Figure:
    """Draw (H, W) pictures side by side under their titles.

    `grey` shows levels 0 to 255 as they are; else each picture spans its 1st to 99th percentile,
    which is written into its title.
    """
    fig, axes = _figure(heading, 1, len(pictures), 1.9)
    for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
        low, high = (0, 255) if grey else np.percentile(picture, [1, 99])
        ax.imshow(picture, cmap="gray", vmin=low, vmax=high)
        ax.set_title(title if grey else f"{title}\n{low:.3g} to {high:.3g}", fontsize=6)
        ax.axis("off")
    return fig


def draw_limits(seeds: Sequence[int], n_frames: int, heading: str) -> Drawn:
    """Draw frames at the limits of the rule by which a frame shows a lesion.

    Above, for each part of the rule of `labels.LesionSight`, the visible lesion with least room;
    below, the one that fails by this part alone, and by least. `n_frames` of 15 a second are filmed
    of a scene a seed, of normal, weak and odd kinds; a part by which none fails stays empty.
    """
    kinds = cycle(("normal", "weak", "oddview"))
    best: dict[tuple[str, bool], tuple] = {}
    for seed, kind in zip(seeds, kinds, strict=False):
        shown = scene(seed, kind=kind, n_frames=n_frames)
        frames, truth = film(*shown)
        for lesion, sight in zip(shown.tree.lesions, truth.sights, strict=True):
            margins = pd.DataFrame(sight.margins())
            for part, passes in product(margins, (True, False)):
                others = margins.drop(columns=part).min(axis=1) >= 0
                room = margins.loc[others & ((margins[part] >= 0) == passes), part].abs()
                if len(room) and room.min() < best.get((part, passes), (np.inf,))[0]:
                    i = int(room.idxmin())
                    at = (int(w[i, lesion.index]) for w in (shown.pose.u, shown.pose.v))
                    best[part, passes] = (room.min(), _crop(frames[i], *at), seed, i, sight.lesion)
    parts = list(dict.fromkeys(part for part, _ in best))
    fig, axes = _figure(heading, 2, len(parts), 3.0, squeeze=False)
    rows = []
    for ax, (passes, part) in zip(axes.flat, product((True, False), parts), strict=True):
        ax.axis("off")
        if (part, passes) in best:
            room, crop, seed, i, lesion = best[part, passes]
            ax.imshow(crop, cmap="gray", vmin=0, vmax=255)
            said = f"{part}: {'visible' if passes else 'not'}"
            ax.set_title(f"{said}\n#{lesion['segment']} {lesion['percent']} %", fontsize=6)
            row = {"part": part, "visible": passes, "room": room, "seed": seed, "frame": i}
            rows.append(row | lesion)
    return fig, pd.DataFrame(rows)


def _crop(frame: np.ndarray, u: int, v: int, side: int = 120) -> np.ndarray:
    left, top = (int(np.clip(w - side // 2, 0, len(frame) - side)) for w in (u, v))
    return frame[top : top + side, left : left + side]


def embed_film(frames: np.ndarray, frame_rate: float, path: Path) -> str:
    """Write a cine, (t, H, W) uint8, as an animated WebP; return an HTML tag that holds all of it.

    The `img` tag plays in JupyterLab and in static HTML, without any other file.
    """
    size = (FILM_PX, FILM_PX)
    small = [Image.fromarray(cv2.resize(f, size, interpolation=cv2.INTER_AREA)) for f in frames]
    pace = {"duration": round(1000 / frame_rate), "loop": 0, "quality": 55}
    small[0].save(path, save_all=True, append_images=small[1:], **pace)
    coded = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="phantom cine" src="data:image/webp;base64,{coded}">'


def draw_realism(pictures: Mapping[str, list], stills: Mapping[str, pd.DataFrame]) -> Drawn:
    """Draw histograms, noise power spectra, and of `measure_picture` line widths and contrast."""
    shown = [side for side in SIDE_COLOURS if len(pictures[side])]
    heading = "Phantom stills" + " beside real ones" * ("real" in shown)
    fig, axes = _figure(heading, 1, 4, 2.2, width_ratios=[1.2, 1.2, 1, 1])
    rows = []
    for side in shown:
        pairs = [(x, open_field(x)) for x in pictures[side]]
        style = {"density": True, "histtype": "step", "color": SIDE_COLOURS[side]}
        inside = np.concatenate([x[field] for x, field in pairs])
        axes[0].hist(inside, 64, (0, 256), label=f"{side}, n = {len(pairs)}", **style)
        spectra = [noise_power(flat_patches(*pair)) for pair in pairs]
        at, power = spectra[0][0], np.percentile([w for _, w in spectra], [25, 50, 75], axis=0)
        axes[1].fill_between(at, power[0], power[2], color=SIDE_COLOURS[side], alpha=0.25)
        axes[1].semilogy(at, power[1], color=SIDE_COLOURS[side])
        quartiles = dict(zip(("low", "power", "high"), power, strict=True))
        rows.append(pd.DataFrame({"side": side, "cycles_px": at, **quartiles}))
    for ax, name in zip(axes[2:], ("line_width_px", "line_cnr"), strict=True):
        ax.boxplot([stills[side][name].dropna() for side in shown], tick_labels=shown, widths=0.6)
        ax.tick_params(axis="x", labelsize=7)
    axes[0].set(xlabel="Grey level", ylabel="Density (per level)")
    axes[0].legend(fontsize=5)
    axes[1].set(xlabel="Frequency (cycles/px)", ylabel="Noise (grey² px²)")
    axes[2].set(ylabel="Line width (px)")
    axes[3].set(ylabel="Contrast / noise")
    return fig, pd.concat(rows)


def draw_curves(films: Mapping[str, Sequence], frame_rate: float) -> Drawn:
    """Draw how the mean grey level and the black hat of cines change over time."""
    heading = "Phantom LCA cines" + " beside a real one" * bool(len(films["real"]))
    fig, axes = _figure(heading, 1, 2, 2.3)
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
    return fig, pd.concat(rows).round(3)


def draw_grades(grades: Mapping[str, pd.Series], states: pd.Series, heading: str) -> plt.Figure:
    """Draw three grades' (t,) probabilities over a real cine, its `frame_states` shaded."""
    fig, ax = _figure(heading, 1, 1, 2.3)
    for state in [state for state in states.unique() if state]:
        frames = states.index[states == state]
        ax.axvspan(frames[0], frames[-1], color="0.5", alpha=0.15)
        ax.text(frames.to_series().mean(), 1.03, state, ha="center", fontsize=6)
    for (name, curve), style in zip(grades.items(), ("-", ":", "--"), strict=True):
        ax.plot(states.index, curve, style, label=name)
    ax.set(xlabel="Frame", ylabel="Probability", ylim=(0, 1.12))
    ax.legend(fontsize=6, loc="center right")
    return fig


def list_real(folder: str = "") -> tuple[list[Path], list[Path], pd.DataFrame]:
    """List a folder of real angiograms; they are read in place, never copied.

    Args:
        folder: The folder; empty for `$CAG_REAL_DATA`, else `../shared/real` beside the repository.

    Returns:
        PNG stills and DICOM cines by name, and `labels.csv`, one row a file and frame range; all
        empty where no folder was named and none is there.

    Raises:
        FileNotFoundError: A folder was named and is not there.
    """
    default = os.environ.get("CAG_REAL_DATA") or root().parent / "shared" / "real"
    place = under_root(folder or default)
    if folder and not place.is_dir():
        raise FileNotFoundError(f"{place} is no folder: name one that holds real pictures, or none")
    labels = pd.DataFrame(columns=["file", "frames", "laterality", "contrast"])
    if (place / "labels.csv").exists():
        labels = pd.read_csv(place / "labels.csv", dtype=str)
    return sorted(place.glob("*.png")), sorted(place.glob("*.dcm")), labels


def frame_states(labels: pd.DataFrame, file: str, n_frames: int) -> pd.Series:
    """Return the contrast state of each frame of a cine's file, empty between labelled ranges.

    The ranges of `list_real`'s labels are `first-last`, both included.
    """
    states = pd.Series("", pd.RangeIndex(n_frames, name="frame"))
    for row in labels[labels["file"] == file].itertuples():
        first, last = map(int, row.frames.split("-"))
        states.loc[first:last] = row.contrast  # .loc includes its end
    return states
