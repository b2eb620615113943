"""The bones of the chest: vertebrae and ribs as optical depth."""

import cv2
import numpy as np

from cag_utils.phantom.carm import CArm
from cag_utils.phantom.solids import box_chords, ellipsoid_spans, rays_near
from cag_utils.phantom.splat import draw_discs

# Attenuation above soft tissue's, per mm at about 60 keV; spongy bone is mostly marrow. Choice.
SPONGY_PER_MM, PLATE_PER_MM, PEDICLE_PER_MM, PROCESS_PER_MM = 0.011, 0.018, 0.016, 0.012
RIB_PER_MM, MARROW_PER_MM = 0.021, -0.012
# A sphere about a vertebra's middle that holds it with its processes.
VERTEBRA_MIDDLE_MM, VERTEBRA_REACH_MM = np.array([0, -2.0, -16]), 42.0


def spine(rng: np.random.Generator, source: np.ndarray, rays: np.ndarray, body) -> np.ndarray:
    """Trace vertebral bodies with end plates, pedicles, facets and spinous processes.

    Args:
        rng: Generator.
        source: (3,) mm.
        rays: (n, 3) unit vectors.
        body: The chest, a `backdrop.Body`.

    Returns:
        (n,) float32 optical depth of a spine of density 1.
    """
    bone = np.zeros(len(rays))
    top = rng.uniform(-12, 12)
    for level in range(-5, 6):
        middle = [-20 + body.scoliosis_mm * level, top - 40 + 26 * level, -76 * body.scale - 6]
        centre = np.array(middle) + rng.normal(0, 0.8, 3)
        tilt = np.deg2rad(3 * rng.standard_normal())
        turn = np.array(
            [[np.cos(tilt), np.sin(tilt), 0], [-np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]]
        )
        near = rays_near(source, rays, centre + VERTEBRA_MIDDLE_MM, VERTEBRA_REACH_MM)
        bone[near] += _vertebra(source, rays[near], centre, turn)
    return bone.astype(np.float32)


def _vertebra(source, rays, centre, turn) -> np.ndarray:
    """Optical depth of one vertebra with its processes, (n,), for the rays that come near it."""
    depth, straight = np.zeros(len(rays)), np.eye(3)

    def add(per_mm, place, half_mm, box):
        half_mm = np.array(half_mm)
        reach = np.linalg.norm(half_mm) if box else half_mm.max()
        near = rays_near(source, rays, place, reach)
        if box:
            chord = box_chords(source, rays[near], place, half_mm, turn)
        else:
            entry, leave = ellipsoid_spans(source, rays[near], place, half_mm, straight)
            chord = leave - entry
        depth[near] += per_mm * chord

    add(SPONGY_PER_MM, centre, (16, 10.0, 14.0), box=True)
    for side in (-1, 1):
        add(PLATE_PER_MM, centre + np.array([0, side * 10.5, 0]), (18, 1.1, 15.5), box=True)
        for offset, half_axes in (
            ((12.0, 3, -16), (4.5, 6.5, 5)),  # pedicle
            ((15.0, -9, -24), (4.5, 8, 3.5)),  # facets
            ((26.0, 2, -26), (11.0, 4, 3.5)),  # transverse process
        ):
            add(PEDICLE_PER_MM, centre + np.array([side, 1, 1]) * offset, half_axes, box=False)
    add(PROCESS_PER_MM, centre + np.array([0, -8, -34.0]), (3.0, 9, 13), box=True)
    return depth


def ribs(rng: np.random.Generator, arm: CArm, body, margin_px: int) -> np.ndarray:
    """Draw hollow ribs.

    Args:
        rng: Generator.
        arm: Where source and detector are.
        body: The chest, a `backdrop.Body`.
        margin_px: Border of the backdrop.

    Returns:
        Optical depth at half the backdrop's resolution, float32.
    """
    span = (arm.size_px + 2 * margin_px) // 2
    picture, spans = np.zeros((span, span), np.float32), np.zeros((span, 2), np.int64)
    turn = np.linspace(0.15, 2.8, 300)
    side, level = (w.ravel()[:, None] for w in np.meshgrid([-1, 1], np.arange(-4, 7)))
    x = -15 + side * 152 * body.scale * np.sin(turn)
    z = -15 - 110 * body.scale * np.cos(turn) + 0 * side
    y = 25 * level - 10 + rng.normal(0, 2, side.shape) - 34 * (1 - np.cos(turn))
    course = np.stack([x, y, z], axis=-1)
    u, v, scale = arm.project(course)
    u, v = (u + margin_px) / 2, (v + margin_px) / 2
    radius = rng.uniform(3.8, 6.2, side.shape) * scale / 2
    piece = np.linalg.norm(np.gradient(course, axis=1), axis=-1) * body.rib
    near = (u > -60) & (u < span + 60) & (v > -60) & (v < span + 60)
    where = u[near], v[near]
    draw_discs(picture, spans, *where, radius[near], RIB_PER_MM * piece[near])
    draw_discs(picture, spans, *where, 0.74 * radius[near], MARROW_PER_MM * piece[near])
    return cv2.GaussianBlur(picture, (0, 0), 0.7 * arm.size_px / 512)
