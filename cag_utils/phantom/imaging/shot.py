"""One cine as the laboratory shoots it: every choice that is made before the first frame."""

from dataclasses import dataclass, replace

import numpy as np

from cag_utils.phantom.anatomy.tree import Tree
from cag_utils.phantom.imaging.carm import CArm, aim, crop, draw_carm
from cag_utils.phantom.imaging.contrast import NEVER, SPEED_MM_S, Injection
from cag_utils.phantom.imaging.display import Look, draw_look
from cag_utils.phantom.imaging.hardware import tip_mm
from cag_utils.phantom.streams import Streams
from cag_utils.phantom.subject import Subject

FLOODED = ("ventriculogram", "aortogram")
NO_CORONARY = ("noninjected", "empty", *FLOODED)
# Shares of cines by kind. The CNN's cohort shows what an archive holds, the corpus is what a report
# would be written from. Choice.
CINE_SHARES = {
    "cnn": {
        "normal": 0.62, "weak": 0.08, "slow": 0.02, "short": 0.05, "noninjected": 0.05,
        "cropped": 0.07, "panned": 0.03, "blurred": 0.02, "oddview": 0.03, "empty": 0.01,
        "ventriculogram": 0.02,
    },
    "corpus": {
        "normal": 0.90, "weak": 0.02, "slow": 0.01, "short": 0.01, "noninjected": 0.01,
        "cropped": 0.01, "panned": 0.03, "blurred": 0.01,
    },
}  # fmt: skip
# All but the first fail in a way that a single frame shows; the last is in no cohort.
KINDS = (*CINE_SHARES["cnn"], "aortogram")
MARGIN_SHARE = 48 / 512  # border of the backdrop for breathing and panning


@dataclass(frozen=True)
class Shot:
    """The settings of one cine."""

    kind: str  # one of KINDS
    view: str  # name of the standard view, or odd
    standard: bool  # a standard view
    n_frames: int
    frame_rate: float  # frames a second
    arm: CArm  # C-arm, aimed
    look: Look  # display and noise
    injection: Injection  # the coronary bolus
    flood: Injection | None  # the bolus of a ventriculogram or aortogram, else None
    rr_s: float  # seconds a beat
    phase: float  # share of a beat over at the first frame
    breath_mm: float  # depth of breathing, 0 for a held breath
    breath_s: float  # seconds a breath
    breath_phase: float  # radians
    pan_px: np.ndarray  # (n_frames, 2) table movement
    pulse_s: float  # length of the X-ray pulse
    catheter_mm: float  # outer radius
    catheter_per_mm: float  # attenuation of its wall
    reflux: float  # contrast that spills into the aorta, share
    blush: float  # strength of the myocardial blush, log exposure
    guide_wire: bool  # a wire lies in the artery, as during an intervention

    @property
    def time_s(self) -> np.ndarray:
        """(n_frames,) seconds from the first frame."""
        return np.arange(self.n_frames) / self.frame_rate

    @property
    def margin_px(self) -> int:
        """Border of the backdrop."""
        return int(np.ceil(self.arm.size_px * MARGIN_SHARE))


def draw_kind(rng: np.random.Generator, cohort: str) -> str:
    """Draw the kind of a cine as a cohort (cnn or corpus) has them, one of `KINDS`."""
    shares = CINE_SHARES[cohort]
    return str(rng.choice(list(shares), p=list(shares.values())))


def draw_shot(
    rng: np.random.Generator,
    subject: Subject,
    tree: Tree,
    kind: str = "normal",
    n_frames: int = 60,
    frame_rate: float = 15.0,
    size_px: int = 512,
    view: str | None = None,
) -> Shot:
    """Draw the settings of one cine.

    Args:
        tree: The side that is injected; the arm is aimed at it.
        kind: One of `KINDS`.
        n_frames: At least 1.
        frame_rate: Frames a second, above 0.
        size_px: Rows and columns, at least 64.
        view: Standard view, or None to draw one.

    Raises:
        ValueError: A value breaks its rule, or the view is none of this side's.

    Source:
        Pulse 6.7 ms in the headers of 45 real XA cines, read once for this study; breathing
        Shechter et al. 2004 (IEEE Trans Med Imaging 23:1046); the rest are choices.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if n_frames < 1 or frame_rate <= 0 or size_px < 64:
        raise ValueError(
            "a cine needs n_frames >= 1, frame_rate > 0 and size_px >= 64, "
            f"got {n_frames}, {frame_rate} and {size_px}"
        )
    odd, streams = kind == "oddview", Streams(rng)
    name, arm = draw_carm(streams("arm"), tree.laterality, size_px, view, odd)
    arm = _aimed(streams("aim"), kind, tree, arm)
    pan_px = _pan(streams("pan"), kind, n_frames, size_px)
    pigtail, rng = streams("ventricle").uniform([0.3, 1.5], [0.8, 2.5]), streams("shot")
    return Shot(
        kind=kind,
        view=name,
        standard=not odd,
        n_frames=n_frames,
        frame_rate=frame_rate,
        arm=arm,
        look=draw_look(streams("look"), size_px),
        injection=_injection(streams("injection"), kind, tree.laterality),
        flood=Injection(*map(float, pigtail), 1.0, 1.0, 0.0) if kind in FLOODED else None,
        rr_s=60 / subject.heart_rate_bpm * np.exp(0.05 * rng.standard_normal()),
        phase=rng.uniform(),
        breath_mm=rng.uniform(2, 9) * (rng.random() < 0.5),
        breath_s=rng.uniform(2.8, 5.0),
        breath_phase=rng.uniform(0, 2 * np.pi),
        pan_px=pan_px,
        pulse_s=rng.uniform(*((0.035, 0.060) if kind == "blurred" else (0.004, 0.0067))),
        catheter_mm=rng.uniform(0.8, 1.05),
        catheter_per_mm=rng.uniform(0.12, 0.30),
        reflux=rng.uniform(0.15, 1.2) * (rng.random() < 0.7),
        blush=rng.uniform(0.02, 0.10),
        guide_wire=bool(rng.random() < 0.05) and kind not in NO_CORONARY,
    )


def _pan(rng, kind: str, n_frames: int, size_px: int) -> np.ndarray:
    """Pan the table in panned cines, and in one of eight others."""
    pans = rng.random() < 0.12 or kind == "panned"
    travel = rng.normal(0, 0.05, 2) * size_px
    return panning(n_frames, rng.uniform(0.35, 0.8), travel * pans, 0.7 * MARGIN_SHARE * size_px)


def panning(
    n_frames: int, start: float, travel_px: tuple[float, float], limit_px: float
) -> np.ndarray:
    """Return a table pan, (n_frames, 2) pixels: nothing until `start`, then off, faster and faster.

    Args:
        start: Share of the cine after which the table moves.
        travel_px: Right and down, at the end.
        limit_px: No larger shift than this either way.
    """
    progress = np.clip((np.arange(n_frames) / n_frames - start) / 0.35, 0, 1) ** 1.3
    return np.clip(progress[:, None] * np.asarray(travel_px), -limit_px, limit_px)


def _aimed(rng, kind: str, tree: Tree, arm: CArm) -> CArm:
    """Aim at the artery and the catheter's tip, with a slip of the hand; or crop most of it."""
    arm = aim(arm, tree.points[tree.main], tip_mm(tree.laterality))
    slip, share, towards = rng.normal(0, 0.05, 2), rng.uniform(0.40, 0.60), int(rng.integers(4))
    if kind == "cropped":
        return crop(arm, tree.points[tree.order == 0], share, towards)
    return replace(arm, shift_px=tuple(map(float, np.add(arm.shift_px, slip * arm.size_px))))


def _injection(rng, kind: str, laterality: str) -> Injection:
    """The bolus of one cine; weak, slow, short and missing ones by kind."""
    injection = Injection(
        start_s=rng.uniform(0.25, 0.7),
        duration_s=rng.uniform(1.7, 2.8),
        strength=rng.uniform(0.75, 1.15),
        speed_mm_s=SPEED_MM_S[laterality] * np.exp(0.15 * rng.standard_normal()),
        pulsatility=0.55 if laterality == "LCA" else 0.15,
    )
    other = {
        "weak": {"strength": rng.uniform(0.20, 0.33)},
        "slow": {"speed_mm_s": injection.speed_mm_s * rng.uniform(0.30, 0.45)},
        "short": {"duration_s": rng.uniform(0.25, 0.40)},
    } | dict.fromkeys(NO_CORONARY, {"start_s": NEVER})
    return replace(injection, **other.get(kind, {}))
