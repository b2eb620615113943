"""Two simulated label sheets that disagree near the rule's limits: noise models, never readers.

Nobody looked at a picture. A sheet is the written rule of `grading`, applied to the measured
quantities after a fixed bias of the sheet and random errors of cine and frame, with a small share
of slips. The sheets exist to exercise what the study does with several readers.
"""

from dataclasses import dataclass

import numpy as np

from cag_utils.phantom.grading import OTHER_OPACIFIED, FrameTruth, label

SLIP_SHARE = 0.01  # frames whose label is off by one step for no reason; choice


@dataclass(frozen=True)
class NoiseModel:
    """How one sheet strays from the measured truth; all sizes are choices.

    Attributes:
        name: As in the column `reader`.
        log_bias: Of opacified and blur, natural logarithm; above 0 the frame seems fuller.
        share_bias: Taken from foreshortening and overlap.
        cine_error: Standard deviation of the error that a whole cine shares.
        frame_error: Standard deviation of each frame's own error.
    """

    name: str
    log_bias: float
    share_bias: float
    cine_error: float = 0.05
    frame_error: float = 0.03


NOISE_MODELS = (
    NoiseModel("noise model A", 0.06, 0.03),
    NoiseModel("noise model B", -0.06, -0.03),
)


def simulate_labels(
    rng: np.random.Generator, truth: FrameTruth, laterality: str, model: NoiseModel
) -> list[str]:
    """Label a cine's frames as one noise model does.

    Opacified and blur are multiplied by exp(bias + errors), so nothing is ever seen in a frame
    without contrast; foreshortening and overlap are shifted by bias + errors; shares are clipped to
    0 to 1. A slip turns other into bad, better into bad, and bad into better, the last only where
    opacified is at least 0.10. The side is known from the catheter and never wrong.

    Args:
        rng: Generator of this cine.
        truth: What the frames show.
        laterality: LCA or RCA.
        model: The noise model.

    Returns:
        One of the six classes a frame.

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
