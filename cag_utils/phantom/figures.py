"""Pictures of how a phantom is made: the drawing behind the first eight parts of notebook A1."""

import base64
from collections.abc import Mapping
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from cag_utils.phantom.backdrop import draw_backdrop
from cag_utils.phantom.carm import VIEWS, aim, draw_carm
from cag_utils.phantom.pose import Pose
from cag_utils.phantom.shot import Shot
from cag_utils.phantom.subject import Subject
from cag_utils.phantom.tree import Tree
from cag_utils.phantom.xray import expose
from cag_utils.segments import AHA_SEGMENTS

ARTERY_COLOURS = {"RCA": "#009E73", "LM": "#000000", "LAD": "#0072B2", "LCX": "#D55E00"}
TITLE = 9  # points
Drawn = tuple[plt.Figure, pd.DataFrame]  # a figure, and the rows behind it for `save_figure`


def draw_trees(trees: Mapping[str, Tree], heading: str) -> Drawn:
    """Draw trees from the front and from the side, segments named in AHA and SYNTAX numbers.

    Args:
        trees: LCA, RCA or both.
        heading: Title.
    """
    fig, axes = plt.subplots(1, 2, figsize=(6.9, 3.7), layout="constrained")
    rows = []
    for tree in trees.values():
        colours = [ARTERY_COLOURS[AHA_SEGMENTS[s].artery] for s in tree.segment]
        for ax, across in zip(axes, (0, 2), strict=True):
            at = tree.points[:, [across, 1]].T
            ax.scatter(*at, s=4 * tree.radius**2, c=colours, lw=0, rasterized=True)
            _name_segments(ax, tree, across)
        x, y, z = tree.points.T
        facts = {"aha": tree.segment, "syntax": tree.syntax, "radius_mm": tree.radius}
        rows.append(pd.DataFrame(facts | {"x_mm": x, "y_mm": y, "z_mm": z}))
    axes[0].set(xlabel="To the patient's left (mm)", ylabel="Headwards (mm)")
    axes[1].set(xlabel="To the front (mm)", ylabel="Headwards (mm)")
    for ax in axes:
        ax.set_aspect("equal", adjustable="datalim")
    fig.suptitle(heading, fontsize=TITLE)
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
    """Project both trees as the standard views show them, one panel a view.

    Args:
        trees: LCA and RCA.
        heading: Title.
    """
    views = [(side, name) for side in trees for name, *_ in VIEWS[side]]
    n_rows = -(-len(views) // 6)
    fig, axes = plt.subplots(n_rows, 6, figsize=(6.9, 1.55 * n_rows), layout="constrained")
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
    fig.suptitle(heading, fontsize=TITLE)
    return fig, pd.DataFrame(rows, columns=["side", "view", "primary_deg", "secondary_deg"])


def _square(ax, title: str, size_px: int = 512) -> None:
    """A picture's frame without ticks, rows downwards."""
    ax.set(xlim=(0, size_px), ylim=(size_px, 0), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=6)


def draw_bolus(
    shot: Shot, tree: Tree, pose: Pose, filled: np.ndarray, places: Mapping, heading: str
) -> Drawn:
    """Draw contrast at a few places over time, and the wave through the tree at four moments.

    Args:
        shot: The cine.
        tree: The tree.
        pose: The tree in every frame.
        filled: (t, n) share of undiluted contrast.
        places: Name to index of a centreline point.
        heading: Title.
    """
    fig, axes = plt.subplots(
        1, 5, figsize=(6.9, 1.9), width_ratios=[1.9, 1, 1, 1, 1], layout="constrained"
    )
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
    fig.suptitle(heading, fontsize=TITLE)
    curves = pd.DataFrame({name: filled[:, i] for name, i in places.items()})
    return fig, curves.assign(time_s=shot.time_s).round(4)


def draw_motion(shot: Shot, pose: Pose, places: Mapping, heading: str) -> Drawn:
    """Draw the contraction curve and how a few points travel on the picture.

    Args:
        shot: The cine.
        pose: The tree in every frame.
        places: Name to index of a centreline point.
        heading: Title.
    """
    fig, axes = plt.subplots(1, 2, figsize=(6.9, 2.3), layout="constrained")
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
    fig.suptitle(heading, fontsize=TITLE)
    return fig, pd.concat(rows).round(2)


def frame_layers(rng: np.random.Generator, subject: Subject, shot: Shot) -> dict[str, np.ndarray]:
    """Compute what lies under a cine's frames, as `render.film` does.

    Args:
        rng: Generator; in the state that `film` is given, it draws the same chest.
        subject: The patient.
        shot: The cine's settings.

    Returns:
        Title to (H, W) picture: optical depth, scatter, grey levels without contrast, noise.
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
    """Draw pictures side by side.

    Args:
        pictures: Title to (H, W) picture.
        heading: Title of the whole.
        grey: Show grey levels 0 to 255 as they are; else from the 1st to the 99th percentile,
            which is written into its title.
    """
    fig, axes = plt.subplots(1, len(pictures), figsize=(6.9, 1.9), layout="constrained")
    for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
        low, high = (0, 255) if grey else np.percentile(picture, [1, 99])
        ax.imshow(picture, cmap="gray", vmin=low, vmax=high)
        ax.set_title(title if grey else f"{title}\n{low:.3g} to {high:.3g}", fontsize=6)
        ax.axis("off")
    fig.suptitle(heading, fontsize=TITLE)
    return fig


def embed_film(frames: np.ndarray, frame_rate: float, path: Path, size_px: int = 256) -> str:
    """Write a cine as an animated WebP and return an HTML tag that holds all of it.

    Args:
        frames: (t, H, W) uint8.
        frame_rate: Frames a second, as it is played.
        path: File to write, `.webp`.
        size_px: Rows and columns of the film.

    Returns:
        An `img` tag that plays in JupyterLab and in static HTML, without any other file.
    """
    square = (size_px, size_px)
    small = [Image.fromarray(cv2.resize(f, square, interpolation=cv2.INTER_AREA)) for f in frames]
    pace = {"duration": round(1000 / frame_rate), "loop": 0, "quality": 55}
    small[0].save(path, save_all=True, append_images=small[1:], **pace)
    coded = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="phantom cine" src="data:image/webp;base64,{coded}">'
