"""The chest behind the heart: an optical-depth map of simple organs along every ray."""

from dataclasses import dataclass

import cv2
import numpy as np

from cag_utils.phantom.atlas import APEX_MM, HEART_BASE_MM, LONG_AXIS
from cag_utils.phantom.carm import CArm
from cag_utils.phantom.solids import box_chords, ellipsoid_spans
from cag_utils.phantom.splat import draw_discs

COARSE = (72, 112)  # fewest and most rays a side; organs are smooth, so one ray serves 5 pixels
SOFT_TISSUE_PER_MM = 0.0195  # effective attenuation at 70 to 90 kVp; assumption of the prototype


@dataclass(frozen=True)
class Body:
    """One patient's chest.

    Attributes:
        scale: Size against a middling adult.
        heart: Size of the heart shadow.
        diaphragm_mm: Height of the diaphragm's domes.
        scoliosis_mm: Sideways step a vertebra.
        bone: Density of the spine.
        rib: Density of the ribs.
        lung: Air in the lungs, share of soft tissue that is missing.
        texture: Strength of lung markings.
    """

    scale: float
    heart: float
    diaphragm_mm: float
    scoliosis_mm: float
    bone: float
    rib: float
    lung: float
    texture: float


def draw_body(rng: np.random.Generator) -> Body:
    """Draw a chest; ranges tuned by eye towards public real cines (prototype)."""
    return Body(
        scale=rng.uniform(0.9, 1.12),
        heart=rng.uniform(0.92, 1.1),
        diaphragm_mm=rng.uniform(-98, -68),
        scoliosis_mm=rng.normal(0, 0.6),
        bone=rng.uniform(0.7, 1.3),
        rib=rng.uniform(0.25, 0.6),
        lung=rng.uniform(0.45, 0.75),
        texture=rng.uniform(0.7, 1.6),
    )


def draw_backdrop(rng: np.random.Generator, arm: CArm, body: Body, margin_px: int) -> np.ndarray:
    """Trace the chest once for a cine.

    Args:
        rng: Generator; draws what differs between cines (outlines, markings).
        arm: Where source and detector are.
        body: The patient's chest.
        margin_px: Extra border for shifts with breathing and panning.

    Returns:
        (size + 2 margin, same) float32 optical depth.
    """
    span = arm.size_px + 2 * margin_px
    coarse = int(np.clip(span / 5, *COARSE))
    edge = (np.arange(coarse) + 0.5) / coarse * span - margin_px - 0.5
    u, v = np.meshgrid(edge, edge)
    wobble = [
        _lumps(rng, coarse, 5, 5.0) + _lumps(rng, coarse, 11, 2.2) for _ in range(2)
    ]  # mm at the detector
    source, bent = arm.rays(u + wobble[0] / arm.pixel_mm, v + wobble[1] / arm.pixel_mm)
    _, straight = arm.rays(u, v)
    soft, air = (w.reshape(coarse, coarse) for w in _organs(source, bent.reshape(-1, 3), body))
    bone = cv2.GaussianBlur(_spine(rng, source, straight.reshape(-1, 3), body), (0, 0), 0.8)
    depth = _enlarge(soft - SOFT_TISSUE_PER_MM * body.lung * air, span)
    depth += _enlarge(body.bone * bone, span)
    lung = _enlarge(np.clip(air / 110, 0, 1), span)
    depth += _resize(_ribs(rng, arm, body, margin_px), span, cv2.INTER_LINEAR)
    markings, texture = _lung_markings(rng, arm.size_px, span)
    depth += _resize(markings, span, cv2.INTER_LINEAR) * (0.35 + 0.9 * lung)
    depth += body.texture * _resize(texture, span, cv2.INTER_LINEAR) * (0.45 + 0.7 * lung)
    return depth


def _lumps(rng, coarse: int, cells: int, size: float) -> np.ndarray:
    """A smooth random field on the coarse grid."""
    return size * _resize(rng.standard_normal((cells, cells)), coarse, cv2.INTER_CUBIC)


def _resize(picture, span: int, how: int) -> np.ndarray:
    return cv2.resize(picture.astype(np.float32), (span, span), interpolation=how)


def _enlarge(coarse: np.ndarray, span: int) -> np.ndarray:
    return _resize(coarse, span, cv2.INTER_CUBIC)


def _shared(first, second) -> np.ndarray:
    """Length that two spans share."""
    return np.maximum(0, np.minimum(first[1], second[1]) - np.maximum(first[0], second[0]))


def _organs(source, rays, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Soft-tissue depth and the way through air, both (n,): trunk, lungs, heart, liver, aorta."""
    k, dome = body.scale, body.diaphragm_mm

    def spans(centre, half_axes, turn=np.eye(3)):  # noqa: B008 - a constant
        return ellipsoid_spans(
            source, rays, np.array(centre, float), np.array(half_axes, float), turn
        )

    trunk = spans((-15, -40, -15), (175 * k, 2000, 118 * k))
    lungs = [spans((x * k, -20, -20), (68 * k, 140, 92 * k)) for x in (70, -98)]
    across = np.cross(LONG_AXIS, [0, 1.0, 0])
    across /= np.linalg.norm(across)
    turn = np.stack([LONG_AXIS, across, np.cross(LONG_AXIS, across)])
    middle = 0.55 * HEART_BASE_MM + 0.45 * APEX_MM + np.array([-10, 0, -6.0])
    heart = spans(middle, np.array([68.0, 54, 46]) * body.heart, turn)
    liver = spans((-70, dome - 105, 10), (110, 110, 100 * k))
    stomach = spans((70, dome - 112, 5), (95, 105, 95 * k))
    mediastinum = spans((-22, 10, -28), (34, 160, 55))
    aorta = spans((8, -20, -72), (12, 400, 12))
    air = 0
    for lung in lungs:
        solid = np.maximum(_shared(lung, heart), _shared(lung, liver))
        solid = np.maximum(
            solid, np.maximum(_shared(lung, stomach), 0.7 * _shared(lung, mediastinum))
        )
        air = air + np.maximum(0, _shared(lung, trunk) - solid)
    soft = SOFT_TISSUE_PER_MM * (trunk[1] - trunk[0]) + 0.003 * _shared(aorta, trunk)
    return soft, air


def _spine(rng, source, rays, body: Body) -> np.ndarray:
    """Vertebral bodies with end plates, spinous processes and pedicles, on the coarse grid."""
    bone = np.zeros(len(rays))
    top = rng.uniform(-12, 12)
    body_mm, plate_mm = np.array([17, 10.5, 14.0]), np.array([18, 1.2, 15.0])
    for level in range(-5, 6):
        centre = np.array(
            [-20 + body.scoliosis_mm * level, top - 40 + 26 * level, -76 * body.scale - 6]
        )
        tilt = np.deg2rad(3 * rng.standard_normal())
        turn = np.array(
            [[np.cos(tilt), np.sin(tilt), 0], [-np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]]
        )
        bone += 0.011 * box_chords(source, rays, centre, body_mm, turn)
        for side in (-1, 1):
            plate = centre + np.array([0, side * 10.5, 0])
            bone += 0.019 * box_chords(source, rays, plate, plate_mm, turn)
            pedicle = centre + np.array([side * 12.0, 3, -16])
            entry, leave = ellipsoid_spans(source, rays, pedicle, np.array([4.5, 6, 5]), np.eye(3))
            bone += 0.016 * (leave - entry)
        process = centre + np.array([0, -6, -32.0])
        bone += 0.010 * box_chords(source, rays, process, np.array([4.0, 8, 12]), turn)
    side = int(np.sqrt(len(rays)))
    return bone.reshape(side, side).astype(np.float32)


def _ribs(rng, arm: CArm, body: Body, margin_px: int) -> np.ndarray:
    """Hollow ribs at half resolution."""
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
    radius = rng.uniform(4.2, 5.8, side.shape) * scale / 2
    piece = np.linalg.norm(np.gradient(course, axis=1), axis=-1) * body.rib
    near = (u > -60) & (u < span + 60) & (v > -60) & (v < span + 60)
    where = u[near], v[near]
    draw_discs(picture, spans, *where, radius[near], 0.021 * piece[near])
    draw_discs(picture, spans, *where, 0.74 * radius[near], -0.012 * piece[near])
    return cv2.GaussianBlur(picture, (0, 0), 1.0 * arm.size_px / 512)


def _lung_markings(rng, size_px: int, span: int) -> tuple[np.ndarray, np.ndarray]:
    """Lung vessels and parenchyma, both at half resolution."""
    half, unit, count, steps = span // 2, size_px / 1024, 260, 24
    markings, spans = np.zeros((half, half), np.float32), np.zeros((half, 2), np.int64)
    share = (np.arange(steps) + 0.5) / steps
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + rng.normal(0, 0.8, (count, 1)) * share
    length = rng.uniform(25, 120, (count, 1)) * unit
    radius = rng.uniform(0.9, 3.6, (count, 1)) * unit * (1 - 0.5 * share)
    u = rng.uniform(0, half, (count, 1)) + np.cumsum(np.cos(angle), axis=1) * length / steps
    v = rng.uniform(0, half, (count, 1)) + np.cumsum(np.sin(angle), axis=1) * length / steps
    weight = np.repeat(0.0067 * length / unit / steps, steps, axis=1)
    draw_discs(markings, spans, u.ravel(), v.ravel(), radius.ravel(), weight.ravel())
    texture = np.zeros((half, half), np.float32)
    for grain, strength in ((5, 0.008), (11, 0.014), (24, 0.022), (56, 0.034)):
        cells = max(4, int(span / (grain * size_px / 512)))
        field = rng.standard_normal((cells, cells), dtype=np.float32)
        texture += strength * _resize(field, half, cv2.INTER_CUBIC)
    return cv2.GaussianBlur(markings, (0, 0), 0.8), texture
