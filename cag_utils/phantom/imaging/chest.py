"""The chest behind the heart: an optical-depth map of simple organs along every ray."""

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from cag_utils.phantom.anatomy.atlas import APEX_MM, HEART_AXES, HEART_BASE_MM
from cag_utils.phantom.imaging.carm import CArm
from cag_utils.phantom.imaging.hardware import Hardware, fixed_strands
from cag_utils.phantom.imaging.splat import draw_discs
from cag_utils.phantom.streams import Streams

COARSE = (72, 128)  # fewest and most rays a side; organs are smooth, so one ray serves 5 pixels
BONE = (96, 224)  # bones have edges: one ray serves 2 to 3 pixels
SOFT_TISSUE_PER_MM = 0.0195  # effective attenuation at 70 to 90 kVp; assumption of the prototype


@dataclass(frozen=True)
class Body:
    """One patient's chest."""

    scale: float  # size against a middling adult
    heart: float  # size of the heart shadow
    diaphragm_mm: float  # height of the diaphragm's domes
    scoliosis_mm: float  # sideways step a vertebra
    bone: float  # density of the spine
    rib: float  # density of the ribs
    lung: float  # air in the lungs, share of soft tissue that is missing
    texture: float  # strength of lung markings


def draw_body(rng: np.random.Generator) -> Body:
    """Draw a chest; ranges by eye, wider than in public real cines."""
    return Body(
        scale=rng.uniform(0.88, 1.15),
        heart=rng.uniform(0.9, 1.15),
        diaphragm_mm=rng.uniform(-104, -58),
        scoliosis_mm=rng.normal(0, 0.9),
        bone=rng.uniform(0.6, 1.7),
        rib=rng.uniform(0.25, 1.1),
        lung=rng.uniform(0.4, 0.85),
        texture=float(np.exp(rng.uniform(np.log(0.6), np.log(2.6)))),
    )


def draw_backdrop(
    rng: np.random.Generator,
    arm: CArm,
    body: Body,
    margin_px: int,
    hardware: Hardware = Hardware(),  # noqa: B008 - frozen
) -> np.ndarray:
    """Trace the chest once for a cine.

    Args:
        rng: Generator; draws what differs between cines (outlines, markings).
        margin_px: Extra border for shifts with breathing and panning.

    Returns:
        (size + 2 margin, same) float32 optical depth.
    """
    span, streams = arm.size_px + 2 * margin_px, Streams(rng)
    rng = streams("organs")
    coarse, u, v = _grid(span, margin_px, 5, COARSE)
    # mm at the detector
    wobble = [_lumps(rng, coarse, 5, 5.0) + _lumps(rng, coarse, 11, 2.2) for _ in range(2)]
    source, bent = arm.rays(u + wobble[0] / arm.pixel_mm, v + wobble[1] / arm.pixel_mm)
    soft, air = (w.reshape(coarse, coarse) for w in _organs(source, bent.reshape(-1, 3), body))
    fine, u, v = _grid(span, margin_px, 2.5, BONE)
    rng = streams("spine")
    wobble = [_lumps(rng, fine, 14, 2.0) + _lumps(rng, fine, 40, 0.5) for _ in range(2)]
    _, knobbly = arm.rays(u + wobble[0] / arm.pixel_mm, v + wobble[1] / arm.pixel_mm)
    bone = spine(rng, source, knobbly.reshape(-1, 3), body).reshape(fine, fine)
    bone *= 1 + _lumps(rng, fine, 60, 0.06)
    depth = _resize(soft - SOFT_TISSUE_PER_MM * body.lung * air, span)
    depth += _resize(body.bone * bone, span)
    # ribs and lung markings are soft: they meet at half the resolution and are enlarged once
    lung = _resize(np.clip(air / 110, 0, 1), span // 2)
    marks = ribs(streams("ribs"), arm, body, margin_px)
    markings, texture = _lung_markings(streams("lungs"), arm.size_px, span)
    marks += markings * (0.35 + 0.9 * lung) + body.texture * texture * (0.45 + 0.7 * lung)
    depth += _resize(marks, span, cv2.INTER_LINEAR)
    _draw_hardware(depth, arm, body, margin_px, hardware)
    return depth


def _grid(span: int, margin_px: int, step_px: float, limits: tuple[int, int]):
    """Rays a side and the picture positions (2-D) of a coarse grid over the whole backdrop."""
    rays = int(np.clip(span / step_px, *limits))
    edge = (np.arange(rays) + 0.5) / rays * span - margin_px - 0.5
    return rays, *np.meshgrid(edge, edge)


def _draw_hardware(depth, arm: CArm, body: Body, margin_px: int, hardware: Hardware) -> None:
    """Draw the wires that move with the chest, at full resolution."""
    spans = np.zeros((len(depth), 2), np.int64)
    for strand in fixed_strands(hardware, body.scale):
        u, v, scale = arm.project(strand.points)
        piece = np.linalg.norm(np.gradient(strand.points, axis=0), axis=1)
        weight = strand.per_mm * np.maximum(piece, 0.2)
        draw_discs(depth, spans, u + margin_px, v + margin_px, strand.radius_mm * scale, weight)


def _lumps(rng, coarse: int, cells: int, size: float) -> np.ndarray:
    """A smooth random field on the coarse grid."""
    return size * _resize(rng.standard_normal((cells, cells)), coarse)


def _resize(picture, span: int, how: int = cv2.INTER_CUBIC) -> np.ndarray:
    return cv2.resize(picture.astype(np.float32), (span, span), interpolation=how)


def _shared(first, second) -> np.ndarray:
    """Length that two spans share."""
    return np.maximum(0, np.minimum(first[1], second[1]) - np.maximum(first[0], second[0]))


def _organs(source, rays, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Soft-tissue depth and the way through air, both (n,): trunk, lungs, heart, liver, aorta."""
    k, dome = body.scale, body.diaphragm_mm

    def spans(centre, half_axes, turn=np.eye(3)):  # noqa: B008 - a constant
        placed = np.array(centre, float), np.array(half_axes, float)
        return ellipsoid_spans(source, rays, *placed, turn)

    trunk = spans((-15, -40, -15), (175 * k, 2000, 118 * k))
    lungs = [spans((x * k, -20, -20), (68 * k, 140, 92 * k)) for x in (70, -98)]
    middle = 0.55 * HEART_BASE_MM + 0.45 * APEX_MM + np.array([-10, 0, -6.0])
    heart = spans(middle, np.array([68.0, 54, 46]) * body.heart, HEART_AXES)
    liver = spans((-70, dome - 105, 10), (110, 110, 100 * k))
    stomach = spans((70, dome - 112, 5), (95, 105, 95 * k))
    mediastinum = spans((-22, 10, -28), (34, 160, 55))
    aorta = spans((8, -20, -72), (12, 400, 12))
    air = 0
    for lung in lungs:
        organs = (_shared(lung, organ) for organ in (heart, liver, stomach))
        solid = np.maximum.reduce([*organs, 0.7 * _shared(lung, mediastinum)])
        air = air + np.maximum(0, _shared(lung, trunk) - solid)
    soft = SOFT_TISSUE_PER_MM * (trunk[1] - trunk[0]) + 0.003 * _shared(aorta, trunk)
    return soft, air


def _lung_markings(rng, size_px: int, span: int) -> tuple[np.ndarray, np.ndarray]:
    """Lung vessels and parenchyma, both at half resolution."""
    half, unit, count, steps = span // 2, size_px / 1024, 380, 24
    markings, spans = np.zeros((half, half), np.float32), np.zeros((half, 2), np.int64)
    share = (np.arange(steps) + 0.5) / steps
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + rng.normal(0, 0.8, (count, 1)) * share
    length = rng.uniform(25, 120, (count, 1)) * unit
    radius = np.exp(rng.uniform(np.log(0.7), np.log(3.6), (count, 1))) * unit * (1 - 0.5 * share)
    u = rng.uniform(0, half, (count, 1)) + np.cumsum(np.cos(angle), axis=1) * length / steps
    v = rng.uniform(0, half, (count, 1)) + np.cumsum(np.sin(angle), axis=1) * length / steps
    weight = np.repeat(0.0085 * length / unit / steps, steps, axis=1)
    draw_discs(markings, spans, u.ravel(), v.ravel(), radius.ravel(), weight.ravel())
    texture = np.zeros((half, half), np.float32)
    for grain, strength in ((5, 0.008), (11, 0.014), (24, 0.022), (56, 0.034)):
        cells = max(4, int(span / (grain * size_px / 512)))
        field = rng.standard_normal((cells, cells), dtype=np.float32)
        texture += strength * _resize(field, half)
    return cv2.GaussianBlur(markings, (0, 0), 0.6), texture


# Attenuation above soft tissue's, per mm at about 60 keV; spongy bone is mostly marrow. Choice.
SPONGY_PER_MM, PLATE_PER_MM, PEDICLE_PER_MM, PROCESS_PER_MM = 0.011, 0.018, 0.016, 0.012
RIB_PER_MM, MARROW_PER_MM = 0.021, -0.012
# A sphere about a vertebra's middle that holds it with its processes.
VERTEBRA_MIDDLE_MM, VERTEBRA_REACH_MM = np.array([0, -2.0, -16]), 42.0


def spine(rng: np.random.Generator, source: np.ndarray, rays: np.ndarray, body) -> np.ndarray:
    """Trace vertebral bodies with end plates, pedicles, facets and spinous processes.

    Returns:
        Optical depth of a spine of density 1 along n rays from `source`, (n,) float32.
    """
    bone = np.zeros(len(rays))
    top = rng.uniform(-12, 12)
    for level in range(-5, 6):
        middle = [-20 + body.scoliosis_mm * level, top - 40 + 26 * level, -76 * body.scale - 6]
        centre = np.array(middle) + rng.normal(0, 0.8, 3)
        tilt = np.deg2rad(3 * rng.standard_normal())
        cos, sin = np.cos(tilt), np.sin(tilt)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
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
    """Draw hollow ribs: optical depth at half the backdrop's resolution, float32."""
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


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def rays_near(source, rays, centre, reach):
    """Return the rising indices of the (n, 3) unit rays that pass a point within `reach` mm.

    `source` and `centre` are (3,) mm, farther apart than that.
    """
    away = source - centre
    limit = (away**2).sum() - reach * reach
    kept, count = np.empty(len(rays), np.int64), 0
    for n in range(len(rays)):
        along = rays[n, 0] * away[0] + rays[n, 1] * away[1] + rays[n, 2] * away[2]
        kept[count] = n
        count += along * along > limit
    return kept[:count]


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def ellipsoid_spans(source, rays, centre, half_axes, turn):
    """Return where rays enter and leave an ellipsoid.

    Args:
        source: (3,) mm.
        rays: (n, 3) unit vectors.
        centre: (3,) mm.
        half_axes: (3,) mm.
        turn: (3, 3) rows are the ellipsoid's own axes.

    Returns:
        ((n,) entry, (n,) exit) mm from the source; equal where the ray misses.
    """
    entry, leave = np.empty(len(rays)), np.empty(len(rays))
    own = turn / half_axes.reshape(3, 1)  # to where the ellipsoid is the unit sphere
    start = (own * (source - centre)).sum(axis=1)
    constant = (start**2).sum() - 1
    for n in range(len(rays)):
        x, y, z = rays[n, 0], rays[n, 1], rays[n, 2]
        square = half = 0.0
        for i in range(3):
            d = own[i, 0] * x + own[i, 1] * y + own[i, 2] * z
            square += d * d
            half += d * start[i]
        inside = half * half - square * constant
        root = np.sqrt(max(inside, 0.0))
        entry[n] = (-half - root) / square if inside > 0 else 0.0
        leave[n] = (-half + root) / square if inside > 0 else 0.0
    return entry, leave


@njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
def box_chords(source, rays, centre, half_mm, turn):
    """Return the length of rays within a box; arguments as for `ellipsoid_spans`."""
    chord = np.zeros(len(rays))
    start = np.empty(3)
    for i in range(3):
        start[i] = ((source - centre) * turn[i]).sum()
    for n in range(len(rays)):
        enter, leave = 0.0, 1e9
        for i in range(3):
            d = rays[n, 0] * turn[i, 0] + rays[n, 1] * turn[i, 1] + rays[n, 2] * turn[i, 2]
            d = d if abs(d) > 1e-9 else 1e-9
            a, b = (-half_mm[i] - start[i]) / d, (half_mm[i] - start[i]) / d
            enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
        chord[n] = max(0.0, leave - enter)
    return chord
