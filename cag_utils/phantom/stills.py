"""One patient at a time: a scene to film, or a single key frame with dense truth, cheap to draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cag_utils.phantom.anatomy.atlas import LATERALITIES
from cag_utils.phantom.anatomy.tree import Tree
from cag_utils.phantom.imaging.contrast import NEVER, arrival_s
from cag_utils.phantom.imaging.pose import Pose, inside_shutters, pose_tree
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import Shot, draw_shot
from cag_utils.phantom.labels import FrameTruth
from cag_utils.phantom.streams import Streams
from cag_utils.phantom.subject import Subject, diseased_tree, draw_subject
from cag_utils.segments import check_lesion, laterality_of

# The cohorts use streams 1 and 2, so no still or scene shows a patient of theirs.
STREAM, SCENE_STREAM = 3, 4
LESION_SHARES = (0.25, 0.45, 0.30)  # patients with 0, 1, 2 lesions
DIASTASIS = 0.78  # share of a beat at which the heart stands still


class Scene(NamedTuple):
    """A patient before the camera: `frames, truth = film(*scene(7, "LCA"))`."""

    rng: np.random.Generator  # of the chest, the noise and the reflux
    subject: Subject
    tree: Tree  # the injected side, with its lesions
    shot: Shot  # C-arm, injection, heartbeat, display
    pose: Pose  # where the tree is in every frame


def scene(
    seed: int,
    laterality: str | None = None,
    lesion: dict | Sequence[dict] | None = None,
    **shot: object,
) -> Scene:
    """Put a patient whom nobody else shares before the camera.

    Args:
        seed: 0 or more; the same seed gives the same scene.
        laterality: LCA or RCA, or None to draw one (60 % LCA); a lesion decides it.
        lesion: As for `still`.
        shot: `kind`, `n_frames`, `frame_rate`, `size_px`, `view`: see `shot.draw_shot`.

    Returns:
        The scene; film it once, since filming draws from its generator.

    Raises:
        ValueError: As `still`, or a setting of the shot breaks its rule.
    """
    streams = _streams(SCENE_STREAM, seed)
    side, subject = _subject(streams("subject"), laterality, lesion)
    tree, _ = diseased_tree(streams("tree"), subject, side)
    drawn = draw_shot(streams("shot"), subject, tree, **shot)
    return Scene(streams("film"), subject, tree, drawn, pose_tree(tree, drawn))


def _streams(stream: int, seed: int) -> Streams:
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    return Streams((stream, seed))


@dataclass(frozen=True)
class Still:
    """One key frame and everything known about it."""

    image: np.ndarray  # (H, W) uint8
    laterality: str  # LCA or RCA
    view: str  # name of the standard view
    label: str  # one of the six classes
    lesions: list[dict]  # dicts of segment, percent and artery on this side
    shown: list[dict]  # those that the picture shows, by the rule of `labels.LesionSight`
    ideal: list[dict]  # the same, as an ideal reader of this picture grades them
    # (n, 2) float32 column and row of visible main centreline points and lesions' centres
    points: np.ndarray
    segments: np.ndarray  # (n,) int64 AHA number of each point
    width_px: np.ndarray  # (n,) float32 lumen at each point
    narrowed: np.ndarray  # (n,) float32 share of the diameter that lesions take there, 0 to 1
    lesion_points: np.ndarray  # (k, 3) float32 column, row, percent of visible lesions' centres
    primary_deg: float  # DICOM primary angle
    secondary_deg: float  # DICOM secondary angle


def still(
    seed: int,
    size_px: int = 512,
    laterality: str | None = None,
    lesion: dict | Sequence[dict] | None = None,
    phase: float = DIASTASIS,
    wait_s: float = 0.45,
    patient: int | None = None,
) -> Still:
    """Draw one opacified key frame of a patient nobody else shares, with its truth.

    Args:
        seed: 0 or more; the same seed gives the same picture.
        size_px: Rows and columns, at least 64.
        laterality: LCA or RCA, or None to draw one (60 % LCA); a lesion decides it.
        lesion: `{segment, percent}` to show, the only one of its side, or several of one side;
            None draws 0 to 2.
        phase: Share of the heartbeat that is over; the default is diastasis, when it stands still.
        wait_s: Seconds after the last vessel has begun to fill.
        patient: Seed of the patient, where several pictures may share one; `seed` if None.

    Raises:
        ValueError: A seed is negative, the laterality is unknown, or a lesion is malformed or lies
            on the other side.
    """
    streams, own = _streams(STREAM, seed), _streams(STREAM, seed if patient is None else patient)
    side, subject = _subject(own("subject"), laterality, lesion)
    tree, lesions = diseased_tree(own("tree"), subject, side)
    shot = draw_shot(streams("shot"), subject, tree, n_frames=1, size_px=size_px)
    shot, full_at = _full(tree, shot, phase, wait_s)
    pose = replace(pose_tree(tree, shot), clock_s=np.array([full_at]))
    frames, truth = film(streams("film"), subject, tree, shot, pose)
    return _described(frames[0], truth, tree, lesions, shot, pose)


def _subject(rng, laterality: str | None, lesion) -> tuple[str, Subject]:
    """Draw the side and the patient; wanted lesions fix the one and go into the other."""
    if laterality is not None and laterality not in LATERALITIES:
        raise ValueError(f"laterality must be LCA or RCA, got {laterality!r}")
    drawn = str(rng.choice(LATERALITIES, p=[0.6, 0.4]))
    subject = draw_subject(rng, LESION_SHARES)
    side = laterality or drawn
    if lesion is None:
        return side, subject
    wanted = [check_lesion(x) for x in ([lesion] if isinstance(lesion, Mapping) else lesion)]
    owner, dominance = laterality_of(wanted[0]["segment"]), subject.dominance
    for segment in (x["segment"] for x in wanted):
        if laterality_of(segment) != (laterality or owner):
            raise ValueError(
                f"segment {segment} is seen from the {laterality_of(segment)}, "
                f"not {laterality or owner}"
            )
        dominance = {15: "left", 4: "right"}.get(segment, dominance)
    return owner, replace(subject, lesions=tuple(wanted), dominance=dominance)


def _full(tree: Tree, shot: Shot, phase: float, wait_s: float) -> tuple[Shot, float]:
    """Stop the heart at a phase, hold the breath; return the shot and when the tree is full, s.

    The injection lasts long enough for what flows slowly behind a tight lesion.
    """
    arrival = arrival_s(tree, shot.injection.speed_mm_s)[tree.main & tree.open]
    longest = float(arrival[arrival < NEVER].max())
    injection = replace(shot.injection, duration_s=max(shot.injection.duration_s, longest + 0.25))
    still = {"phase": phase, "breath_mm": 0.0, "pan_px": np.zeros((1, 2))}
    return replace(shot, injection=injection, **still), longest + wait_s


def _described(image, truth: FrameTruth, tree: Tree, lesions, shot: Shot, pose: Pose) -> Still:
    """Attach labels, centreline points and lesion centres that can be seen."""
    u, v = pose.u[0], pose.v[0]
    inside = inside_shutters(shot, u, v)
    centre = np.isin(np.arange(len(u)), [x.index for x in lesions])
    visible = (tree.main & tree.open | centre) & inside
    centres = [(u[x.index], v[x.index], x.percent) for x in lesions if inside[x.index]]
    return Still(
        image=image, laterality=tree.laterality, view=shot.view,
        label=truth.labels(tree.laterality)[0], lesions=[x.as_dict() for x in lesions],
        shown=truth.lesions(0), ideal=truth.lesions(0, shot.arm.size_px),
        points=np.stack([u[visible], v[visible]], axis=1).astype(np.float32),
        segments=tree.segment[visible],
        width_px=(2 * tree.radius * pose.scale[0])[visible].astype(np.float32),
        narrowed=tree.narrowed[visible].astype(np.float32),
        lesion_points=np.array(centres, np.float32).reshape(-1, 3),
        primary_deg=shot.arm.primary_deg, secondary_deg=shot.arm.secondary_deg,
    )  # fmt: skip
