"""Shoot a cine: a tree in motion, its bolus, the catheter, drawn frame by frame."""

import math
from dataclasses import replace

import cv2
import numpy as np

from cag_utils.phantom.anatomy.tree import Tree
from cag_utils.phantom.imaging.chest import draw_backdrop
from cag_utils.phantom.imaging.contrast import NEVER, arrival_s, beds, inlet
from cag_utils.phantom.imaging.detector import NOISE_BORDER, Detector, compose, contrast_at, expose
from cag_utils.phantom.imaging.display import Display
from cag_utils.phantom.imaging.instruments import Instruments
from cag_utils.phantom.imaging.pose import (
    PIXEL_DIGITS,
    Pose,
    frame_truth,
    inside_shutters,
    pose_tree,
)
from cag_utils.phantom.imaging.shot import Shot
from cag_utils.phantom.imaging.sight import lesion_sights
from cag_utils.phantom.imaging.splat import draw_tubes, link_steps, wipe
from cag_utils.phantom.imaging.ventricle import flood_depth, heart_swell
from cag_utils.phantom.labels import FrameTruth
from cag_utils.phantom.streams import Streams
from cag_utils.phantom.subject import Subject

BLUSH_DELAY_S, VENTRICLE_DELAY_S = 1.2, 0.1
BLUR_STEP_PX = 1.3  # movement within a pulse from which more than one exposure is drawn


def film(
    rng: np.random.Generator, subject: Subject, tree: Tree, shot: Shot, pose: Pose | None = None
) -> tuple[np.ndarray, FrameTruth]:
    """Render a cine: (t, H, W) uint8 frames, and their truth.

    Args:
        rng: Generator of the chest, the noise and the reflux.
        subject: Supplies the chest and the access.
        tree: The injected tree, with its lesions.
        pose: From `pose_tree`, if it is already there.
    """
    pose, streams = pose or pose_tree(tree, shot), Streams(rng)
    depth = draw_backdrop(
        streams("chest"), shot.arm, subject.body, shot.margin_px, subject.hardware
    )
    detector = expose(streams("noise"), depth, shot.look, shot.margin_px)
    canvas = _Canvas(streams, subject, tree, shot, pose, detector)
    frames = np.empty((shot.n_frames, shot.arm.size_px, shot.arm.size_px), np.uint8)
    contrast = np.empty(pose.u.shape, np.float32)
    for index, frame in enumerate(frames):
        canvas.tree(index)
        contrast[index] = canvas.contrast(index)
        canvas.flood(index)
        canvas.instruments.draw(canvas.depth, canvas.spans, index)
        canvas.develop(index, frame)
    truth = frame_truth(tree, shot, pose, contrast)
    inside = inside_shutters(shot, pose.u, pose.v)
    noise = detector.noise_sigma / detector.gain
    sights = lesion_sights(tree, shot, pose, contrast, inside, noise)
    return frames, replace(truth, sights=sights)


class _Canvas:
    """The optical-depth picture of one frame, reused for the next."""

    def __init__(self, streams, subject, tree, shot: Shot, pose: Pose, detector: Detector):
        self.shot, self.pose, self.detector = shot, pose, detector
        self.per_mm, self.display = detector.contrast_per_mm, Display(shot.look)
        size = shot.arm.size_px
        self.depth, self.grey = np.zeros((2, size, size), np.float32)
        self.spans = np.tile(np.array([size, -1]), (size, 1))
        blur, reach = shot.look.blur_px, math.ceil(3 * shot.look.blur_px)
        self.taps = cv2.getGaussianKernel(2 * reach + 1, blur, cv2.CV_32F).ravel()
        self.radius = tree.radius
        steps = link_steps(tree.points, tree.radius, tree.links, shot.arm.isocentre_pixel_mm)
        self.arrival = arrival_s(tree, shot.injection.speed_mm_s)
        self.beds = [
            (bed.table, bed.strength * self.per_mm, tree.links[own], steps[own])
            for bed in beds(tree, shot.injection.duration_s)
            for own in [bed.points[tree.links]]
        ]
        moved = np.hypot(pose.du, pose.dv)[:, tree.main]
        moved = np.round(np.median(moved, axis=1), PIXEL_DIGITS)
        self.exposures = np.clip(np.ceil(moved / BLUR_STEP_PX), 1, 9).astype(int)
        frames = [streams("frame", i) for i in range(shot.n_frames)]
        self.grain = np.array([rng.integers(0, NOISE_BORDER, 2) for rng in frames])
        self.instruments = Instruments(
            streams("instruments"), subject, tree, shot, pose, self.per_mm
        )
        self.swell = heart_swell(shot.arm, detector)
        self._place_blush(tree)
        self.error = shot.look.flicker * np.array([rng.standard_normal() for rng in frames])
        if shot.flood:
            clock = shot.flood.clock(shot.time_s, shot.rr_s, shot.phase)
            since = np.maximum(clock - VENTRICLE_DELAY_S, -9)
            self.flooded = inlet(since, shot.flood.duration_s, 0.5, 0.9)

    def _place_blush(self, tree):
        """A soft cloud around the small vessels, and how strong it is in each frame."""
        size, cells = len(self.depth), 40
        tips = tree.open & (tree.order >= 1)
        places = [w[0, tips][::7] / size * cells for w in (self.pose.v, self.pose.u)]
        at = [np.clip(w, 0, cells - 1) for w in places]
        cloud = np.zeros((cells, cells), np.float32)
        np.add.at(cloud, tuple(w.astype(int) for w in at), 1.0)
        cloud = cv2.GaussianBlur(cloud, (0, 0), 2.5)
        cloud = cv2.resize(cloud, self.swell.shape[::-1], interpolation=cv2.INTER_CUBIC)
        cloud = np.maximum(cloud, 0)
        shot = self.shot
        strength = shot.blush * shot.look.gain / 1.6 * min(1, shot.injection.strength)
        self.blush = (cloud * strength / max(1e-6, float(cloud.max()))).astype(np.float32)
        since = np.maximum(self.pose.clock_s - BLUSH_DELAY_S, -9)
        self.blush_share = inlet(since, shot.injection.duration_s + 0.8, 0.5, 1.3)

    def tree(self, i: int):
        """Draw the opacified vessels of frame `i`."""
        if self.pose.clock_s[i] <= -NEVER:
            return
        pose, strength = self.pose, self.shot.injection.strength
        moving = pose.u[i], pose.v[i], pose.scale[i], pose.du[i], pose.dv[i], pose.points[i]
        for table, per_mm, links, steps in self.beds:
            draw_tubes(
                self.depth, self.spans, *moving, self.radius, self.arrival, links, steps,
                pose.clock_s[i], *table, per_mm * strength, self.exposures[i],
            )  # fmt: skip

    def contrast(self, i: int) -> np.ndarray:
        """Measure the (n,) subject contrast of frame `i` at the centreline points, mid-pulse."""
        pose, still = self.pose, self.detector
        u, v = pose.u[i] + 0.5 * pose.du[i], pose.v[i] + 0.5 * pose.dv[i]
        return contrast_at(self.depth, still.scatter, still.transmission, u, v)

    def flood(self, i: int):
        """Fill the ventricle of frame `i` in a ventriculogram, in an aortogram the aorta."""
        if self.shot.flood is None or self.flooded[i] < 0.01:
            return
        shot, pose = self.shot, self.pose
        dilution, chord = flood_depth(shot.kind, shot.arm, pose.state[i], pose.breath_mm[i])
        self.depth += np.float32(self.per_mm * dilution * self.flooded[i]) * chord
        self.spans[:] = 0, len(self.depth) - 1

    def develop(self, i: int, frame: np.ndarray):
        """Blur, add the background and its noise, and wipe the canvas for the next frame."""
        still, grain = self.detector, self.grain[i]
        compose(
            self.grey, still.background, *self._shift(i), self.depth, self.spans, still.scatter,
            still.gain, still.transmission, self._veil(i), still.texture, *grain,
            still.noise_sigma, still.field, self.taps,
        )  # fmt: skip
        self.display.finish(self.grey, frame, self.error[i])
        wipe(self.depth, self.spans)

    def _veil(self, i: int) -> np.ndarray:
        """Grey levels that heartbeat and blush add to frame `i`, at few rows."""
        return cv2.addWeighted(self.swell, self.pose.state[i], self.blush, -self.blush_share[i], 0)

    def _shift(self, i: int) -> tuple[float, float]:
        """Where the background's cut-out begins: breathing, heartbeat, panning."""
        shot, margin = self.shot, self.shot.margin_px
        unit = shot.arm.size_px / 512
        down = (0.55 * self.pose.breath_mm[i, 1] * -1 + 1.5 * self.pose.state[i]) / (
            shot.arm.isocentre_pixel_mm
        )
        u = margin - 1.2 * unit * self.pose.state[i] - shot.pan_px[i, 0]
        return tuple(float(np.clip(w, 1, 2 * margin - 2))
                     for w in (u, margin - down - shot.pan_px[i, 1]))  # fmt: skip
