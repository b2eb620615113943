"""What a frame shows, in numbers, and the written rule that turns them into a label.

The rule is the study's own. The paper's reader sorted frames into "better", "bad" and "other" by
eye and gives no rule; this one uses only what a frame shows, measured on the phantom: how much of
the tree is dark enough to be seen within the picture, how sharply, whether vessels cover each
other, whether the lesions' pieces are seen from the side, and whether the view is one that is
taught. It knows nothing of a reader's taste.
"""

from dataclasses import dataclass

import numpy as np

from cag_utils.segments import GRADES, LATERALITIES

# All limits: choice.
VISIBLE = 0.10  # log exposure by which a vessel must stand out; 10 to 16 grey levels of 255 here
OTHER_OPACIFIED = 0.10  # below: nothing to see
BETTER_OPACIFIED = 0.60  # share of the open main tree, by calibre, visible and in the field
BETTER_BLUR_MM = 0.60  # movement within one X-ray pulse
BETTER_FORESHORTENING = 0.75  # of the worst lesion of 50 % or more; 0.75 is 76 degrees off the side
BETTER_OVERLAP = 0.50  # share of the main tree, by calibre, that other vessels cover

# When a frame shows a lesion; choices but for the signal's.
SHOWN_PX = 1.0  # narrowing, pixels of 512 rows: about 0.2 mm, as fine as edges are found
SHOWN_SHARE = 0.5  # of what the lesion takes; less, seen end on, would be named a milder one
SHOWN_SIGNAL = 5.0  # signal to noise that an eye needs (Rose 1973, "Vision: human and electronic")
SHOWN_COVERED = 0.5  # of the neck


@dataclass(frozen=True)
class LesionSight:
    """How t frames show one lesion; what the rule of `visible` reads."""

    lesion: dict  # segment, percent and artery
    size_px: int  # rows and columns of the frames
    width_px: np.ndarray  # (t,) the vessel's own width there, without the lesion
    # (t,) what is missing of it in the picture; as wide vessel stands before the neck when a piece
    # is seen end on, less than the lesion takes
    narrowing_px: np.ndarray
    filled: np.ndarray  # (t,) contrast of the vessel before and (if open) behind it, the lesser
    signal: np.ndarray  # (t,) missing shadow over the noise under the neck, blur of motion included
    in_field: np.ndarray  # (t,) share of the neck inside the shutters
    covered: np.ndarray  # (t,) share of the neck under another filled vessel

    def margins(self) -> dict[str, np.ndarray]:
        """Say by how much each part of the rule holds, (t,) each; below 0 it does not.

        | part | holds where | else |
        |---|---|---|
        | in_field | the whole neck is inside | shutters or the picture's edge hide it |
        | filled | contrast >= 0.10 on both sides | it has not arrived, or is gone |
        | size | narrowing >= 1 pixel of 512 rows | too fine for the picture |
        | side | narrowing >= half of what the lesion takes | foreshortened |
        | signal | signal to noise >= 5 | lost in the noise |
        | covered | <= 0.50 of the neck | another vessel lies over it |

        Source:
            The study's own rule. 1 pixel is about 0.2 mm here, as fine as quantitative angiography
            finds edges; 5 is Rose's criterion. An occlusion needs contrast before it alone.
        """
        taken = self.width_px * self.lesion["percent"] / 100
        return {
            "in_field": self.in_field - 1,
            "filled": self.filled / VISIBLE - 1,
            "size": self.narrowing_px * 512 / self.size_px / SHOWN_PX - 1,
            "side": self.narrowing_px / taken - SHOWN_SHARE,
            "signal": self.signal / SHOWN_SIGNAL - 1,
            "covered": SHOWN_COVERED - self.covered,
        }

    @property
    def visible(self) -> np.ndarray:
        """(t,) bool: whether a frame shows the lesion: every part of the rule holds."""
        return np.min(list(self.margins().values()), axis=0) >= 0

    def percent_at(self, size_px: int | None = None) -> np.ndarray:
        """Grade the lesion where it is visible, (t,) percent of `GRADES`, else 0.

        With `size_px` as an ideal reader of pictures of so many rows and columns would: the
        narrowing is measured in their whole pixels and the nearest grade taken, 0 where none is
        left; 100 is told by what does not flow behind it.
        """
        percent = self.lesion["percent"]
        if size_px is None:
            return np.where(self.visible, percent, 0)
        unit = size_px / self.size_px
        share = 100 * np.rint(self.narrowing_px * unit) / (self.width_px * unit)
        steps = np.array([0, *(GRADES[-1:] if percent == GRADES[-1] else GRADES[:-1])])
        nearest = steps[np.abs(np.minimum(share, 100)[:, None] - steps).argmin(axis=1)]
        return np.where(self.visible, nearest, 0)


@dataclass(frozen=True)
class FrameTruth:
    """Known truth of every frame of a cine."""

    opacified: np.ndarray  # (t,) share of the open main tree visible and in the field, 0 to 1
    # (t,) mean subject contrast over the open main tree, log exposure (0.69 halves the light); what
    # lies outside the shutters counts as none
    contrast: np.ndarray
    in_field: np.ndarray  # (t,) share of the open main tree inside the shutters
    blur_mm: np.ndarray  # (t,) median movement of the main tree within one X-ray pulse
    foreshortening: np.ndarray  # (t,) of the worst lesion of 50 % or more, 0 to 1; see pose
    overlap: np.ndarray  # (t,) share of the main tree covered by another of its vessels, 0 to 1
    standard_view: bool  # whether the view is a standard one
    # (t, n) bool, the tree's points that are visible and in the field; not read by the rule
    seen: np.ndarray | None = None
    sights: tuple[LesionSight, ...] = ()  # of the tree's lesions

    def lesions(self, frame: int, size_px: int | None = None) -> list[dict]:
        """Return the lesions that a frame shows: segment, percent and artery, by AHA number.

        With `size_px`, as an ideal reader of pictures of that size sees and grades them.
        """
        seen = [x.lesion | {"percent": int(x.percent_at(size_px)[frame])} for x in self.sights]
        shown = [lesion for lesion in seen if lesion["percent"]]
        return sorted(shown, key=lambda lesion: lesion["segment"])

    def measured(self) -> dict[str, np.ndarray]:
        """Return what the rule reads, by the names of `quality`'s arguments.

        (t,) columns, rounded to four decimals: a table of them gives the labels back exactly.
        """
        names = "opacified", "blur_mm", "foreshortening", "overlap"
        columns = {name: np.round(getattr(self, name), 4) for name in names}
        return columns | {"standard_view": np.full(len(self.opacified), bool(self.standard_view))}

    def labels(self, laterality: str) -> list[str]:
        """Return the label of every frame, e.g. LCA_better."""
        columns = [column.tolist() for column in self.measured().values()]
        return [label(laterality, *row) for row in zip(*columns, strict=True)]


def quality(
    opacified: float,
    blur_mm: float,
    foreshortening: float = 0.0,
    overlap: float = 0.0,
    standard_view: bool = True,
) -> str:
    """Grade one frame: better, bad or other.

    The first line that holds decides:

    | if | grade | which frames these are |
    |---|---|---|
    | opacified < 0.10 | other | before and after the bolus, catheter only, or not coronary |
    | opacified < 0.60 | bad | filling, washing out, slow, weak, or cropped |
    | blur > 0.60 mm | bad | blurred by motion |
    | foreshortening > 0.75 | bad | a lesion of 50 % or more is seen nearly end on |
    | overlap > 0.50 | bad | vessels cover each other |
    | not a standard view | bad | an odd view |
    | else | better | a key frame |

    A ventriculogram or aortogram opacifies no coronary artery, so its opacified share is 0 here and
    its frames are other, however dark its ventricle is.

    Args:
        opacified: Visible share of the open main tree, 0 to 1.
        blur_mm: Movement within one X-ray pulse, 0 or more.
        foreshortening: Of the worst lesion of 50 % or more, 0 to 1.
        overlap: Share of the main tree covered by another of its vessels, 0 to 1.
        standard_view: Whether the view is a standard one.

    Raises:
        ValueError: A value lies outside its range.

    Source:
        The study's own rule; the paper (3.1) gives none.
    """
    shares = opacified, foreshortening, overlap
    if not (all(0 <= x <= 1 + 1e-9 for x in shares) and blur_mm >= 0):
        raise ValueError(
            "a frame needs opacified, foreshortening and overlap 0 to 1 and blur_mm >= 0, "
            f"got {opacified}, {foreshortening}, {overlap} and {blur_mm}"
        )
    if opacified < OTHER_OPACIFIED:
        return "other"
    good = (
        opacified >= BETTER_OPACIFIED
        and blur_mm <= BETTER_BLUR_MM
        and foreshortening <= BETTER_FORESHORTENING
        and overlap <= BETTER_OVERLAP
        and standard_view
    )
    return "better" if good else "bad"


def label(laterality: str, *measured: float, **more: float) -> str:
    """Return one of the six classes, e.g. RCA_bad; further arguments as in `quality`.

    Raises:
        ValueError: `laterality` is neither LCA nor RCA, or a value lies outside its range.
    """
    if laterality not in LATERALITIES:
        raise ValueError(f"laterality must be LCA or RCA, got {laterality!r}")
    return f"{laterality}_{quality(*measured, **more)}"


SLIP_SHARE = 0.01  # frames whose label is off by one step for no reason; choice


@dataclass(frozen=True)
class NoiseModel:
    """How one sheet strays from the measured truth; all sizes are choices."""

    name: str  # as in the column reader
    log_bias: float  # of opacified and blur, natural logarithm; above 0 the frame seems fuller
    share_bias: float  # taken from foreshortening and overlap
    cine_error: float = 0.05  # standard deviation of the error that a whole cine shares
    frame_error: float = 0.03  # standard deviation of each frame's own error


NOISE_MODELS = (NoiseModel("noise model A", 0.06, 0.03), NoiseModel("noise model B", -0.06, -0.03))


def simulate_labels(
    rng: np.random.Generator, truth: FrameTruth, laterality: str, model: NoiseModel
) -> list[str]:
    """Label a cine's frames as one noise model does: one of the six classes a frame.

    Opacified and blur are multiplied by exp(bias + errors), so nothing is ever seen in a frame
    without contrast; foreshortening and overlap are shifted by bias + errors; shares are clipped to
    0 to 1. A slip turns other into bad, better into bad, and bad into better, the last only where
    opacified is at least 0.10. The side is known from the catheter and never wrong.

    Raises:
        ValueError: `laterality` is neither LCA nor RCA.
    """
    count = len(truth.opacified)
    error = model.cine_error * rng.standard_normal(4)[:, None]
    error = error + model.frame_error * rng.standard_normal((4, count))
    seen = truth.measured()
    seen["opacified"] = np.minimum(seen["opacified"] * np.exp(model.log_bias + error[0]), 1)
    seen["blur_mm"] = seen["blur_mm"] * np.exp(error[1] - model.log_bias)
    for name, away in zip(("foreshortening", "overlap"), error[2:], strict=True):
        seen[name] = np.clip(seen[name] - model.share_bias + away, 0, 1)
    rows = zip(*(column.tolist() for column in seen.values()), strict=True)
    given = [label(laterality, *row) for row in rows]
    slips = rng.random(count) < SLIP_SHARE
    return [
        _slipped(name, share) if slip else name
        for name, share, slip in zip(given, truth.opacified, slips, strict=True)
    ]


def _slipped(name: str, opacified: float) -> str:
    """Return the label one step away."""
    side, grade = name.split("_")
    if grade != "bad":
        return f"{side}_bad"
    return f"{side}_better" if opacified >= OTHER_OPACIFIED else f"{side}_other"
