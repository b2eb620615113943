"""What a frame shows, in numbers, and the written rule that turns them into a label.

The rule is the study's own. The paper's reader sorted frames into "better", "bad" and "other" by
eye and gives no rule; this one uses only what a single frame shows: how much of the tree is
opacified within the picture, how strongly, and how sharply. It knows nothing of a reader's taste.
"""

from dataclasses import dataclass

import numpy as np

from cag_utils.segments import LATERALITIES

VISIBLE = 0.4  # share of undiluted contrast above which a vessel counts as opacified
BETTER_OPACIFIED = (
    0.70  # share of the open main tree, by calibre, opacified and inside the shutters
)
BETTER_CONTRAST = 0.50  # mean share of undiluted contrast in view, over the open main tree
BETTER_BLUR_MM = 0.60  # movement within one X-ray pulse
OTHER_CONTRAST = 0.08  # below: nothing to see


@dataclass(frozen=True)
class FrameTruth:
    """Known truth of every frame of a cine.

    Attributes:
        opacified: (t,) share of the open main tree opacified and inside the shutters, 0 to 1.
        contrast: (t,) mean concentration over the open main tree, share of undiluted contrast; what
            lies outside the shutters counts as none.
        in_field: (t,) share of the open main tree inside the shutters.
        blur_mm: (t,) median movement of the main tree within one X-ray pulse.
    """

    opacified: np.ndarray
    contrast: np.ndarray
    in_field: np.ndarray
    blur_mm: np.ndarray

    def labels(self, laterality: str) -> list[str]:
        """Return the label of every frame, e.g. LCA_better."""
        rows = zip(self.opacified, self.contrast, self.blur_mm, strict=True)
        return [label(laterality, *map(float, row)) for row in rows]


def quality(opacified: float, contrast: float, blur_mm: float) -> str:
    """Grade one frame: better, bad or other.

    | if | grade |
    |---|---|
    | contrast < 0.08 | other: nothing opacified |
    | opacified >= 0.70 and contrast >= 0.50 and blur <= 0.60 mm | better: a key frame |
    | else | bad: weak, partial, cropped or blurred |

    Args:
        opacified: Share of the open main tree, 0 to 1.
        contrast: Mean share of undiluted contrast, 0 or more.
        blur_mm: Movement within one X-ray pulse, 0 or more.

    Returns:
        better, bad or other.

    Raises:
        ValueError: A value lies outside its range.

    Source:
        The study's own rule; the paper (3.1) gives none.
    """
    if not (0 <= opacified <= 1 + 1e-9 and contrast >= 0 and blur_mm >= 0):
        raise ValueError(
            "a frame needs opacified 0 to 1, contrast >= 0 and blur_mm >= 0, "
            f"got {opacified}, {contrast} and {blur_mm}"
        )
    if contrast < OTHER_CONTRAST:
        return "other"
    good = opacified >= BETTER_OPACIFIED and contrast >= BETTER_CONTRAST
    return "better" if good and blur_mm <= BETTER_BLUR_MM else "bad"


def label(laterality: str, opacified: float, contrast: float, blur_mm: float) -> str:
    """Return one of the six classes, e.g. RCA_bad; see `quality`.

    Raises:
        ValueError: `laterality` is neither LCA nor RCA, or a value lies outside its range.
    """
    if laterality not in LATERALITIES:
        raise ValueError(f"laterality must be LCA or RCA, got {laterality!r}")
    return f"{laterality}_{quality(opacified, contrast, blur_mm)}"
