"""One phantom patient: body, circulation and lesions."""

import functools
from dataclasses import dataclass

import numpy as np

from cag_utils.phantom.anatomy.atlas import DOMINANCE_SHARES, DOMINANCES, FEMALE_SCALE
from cag_utils.phantom.anatomy.growth import grow_tree
from cag_utils.phantom.anatomy.lesions import Lesion, draw_lesions, narrow
from cag_utils.phantom.anatomy.tree import Tree
from cag_utils.phantom.imaging.chest import Body, draw_body
from cag_utils.phantom.imaging.hardware import Hardware, draw_hardware
from cag_utils.phantom.streams import Streams
from cag_utils.segments import laterality_of

# Spread of the heart's lie about the left, head and front axes, degrees: upright in the slender,
# flat in the stout. Choice.
HEART_TURN_DEG = (6.0, 8.0, 8.0)


@dataclass(frozen=True)
class Subject:
    """What stays the same over a patient's cines."""

    sex: str  # M or F
    dominance: str  # right, balanced or left
    tortuosity: float  # size of the vessels' bends, mm
    fineness: float  # multiplies the number of twigs
    body: Body  # the chest
    heart_rate_bpm: float  # beats a minute
    radial: bool  # catheter from the arm, not from the groin
    lesions: tuple[dict, ...]  # dicts of segment, percent and artery, both sides
    hardware: Hardware = Hardware()  # metal the patient carries
    heart_size: float = 1.0  # multiplies the vessels' lengths
    heart_turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)  # about left, head, front axes


def draw_subject(rng: np.random.Generator, lesion_shares: tuple[float, ...]) -> Subject:
    """Draw a patient; `lesion_shares` are those of patients with 0, 1, 2 ... lesions.

    Trees grow later, from their own generators.
    """
    streams = Streams(rng)
    rng = streams("person")
    sex = str(rng.choice(["M", "F"], p=[0.7, 0.3]))
    dominance = str(rng.choice(DOMINANCES, p=DOMINANCE_SHARES))
    return Subject(
        sex=sex,
        dominance=dominance,
        tortuosity=float(np.exp(rng.normal(np.log(1.5), 0.35))),
        fineness=rng.uniform(0.7, 1.3),
        body=draw_body(streams("body")),
        heart_rate_bpm=rng.uniform(52, 95),
        radial=bool(rng.random() < 0.75),
        lesions=tuple(draw_lesions(streams("lesions"), lesion_shares, dominance)),
        hardware=draw_hardware(streams("hardware")),
        heart_size=(0.96 if sex == "F" else 1.0) * float(np.exp(0.06 * rng.standard_normal())),
        heart_turn_deg=tuple(map(float, rng.normal(0, HEART_TURN_DEG))),
    )


@functools.lru_cache(maxsize=4)
def _grown(key: tuple[int, ...], *settings) -> Tree:
    """A healthy tree: most of a picture's cost, where a patient is shown several times."""
    return grow_tree(Streams(key)("tree"), *settings)


def diseased_tree(
    rng: np.random.Generator, subject: Subject, laterality: str
) -> tuple[Tree, tuple[Lesion, ...]]:
    """Grow one side of a patient's circulation, LCA or RCA; return the tree and its lesions."""
    scale = FEMALE_SCALE if subject.sex == "F" else 1.0
    streams, looks = Streams(rng), (subject.tortuosity, subject.fineness, scale)
    tree = _grown(streams.key, laterality, subject.dominance, *looks)
    tree = tree.placed(subject.heart_size, subject.heart_turn_deg)
    healthy = tree
    for lesion in subject.lesions:
        if laterality_of(lesion["segment"]) == laterality:
            own = streams("lesion", lesion["segment"])
            tree, _ = narrow(own, tree, lesion["segment"], lesion["percent"], healthy=healthy)
    return tree, tree.lesions
