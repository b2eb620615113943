"""What a frame shows, in numbers, and the written rule that turns them into a label.

The rule is the study's own. The paper's reader sorted frames into "better", "bad" and "other" by
eye and gives no rule; this one uses only what is measured of a frame: how much of the tree is
opacified within the picture, how strongly and how sharply, whether vessels cover each other,
whether the lesions' pieces are seen from the side, and whether the view is one that is taught. It
knows nothing of a reader's taste.
"""

from dataclasses import dataclass

import numpy as np

from cag_utils.segments import LATERALITIES

# All limits: choice.
VISIBLE = 0.4  # share of undiluted contrast above which a vessel counts as opacified
BETTER_OPACIFIED = 0.70  # share of the open main tree, by calibre, opacified and in the field
BETTER_CONTRAST = 0.50  # mean share of undiluted contrast in view, over the open main tree
BETTER_BLUR_MM = 0.60  # movement within one X-ray pulse
BETTER_FORESHORTENING = 0.60  # of the worst lesion of 50 % or more; 0.60 is 66 degrees off the side
BETTER_OVERLAP = 0.40  # share of the main tree, by calibre, that other vessels cover
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
        foreshortening: (t,) of the worst lesion of 50 % or more, 0 to 1; see `visibility`.
        overlap: (t,) share of the main tree covered by another of its vessels, 0 to 1.
        standard_view: Whether the view is a standard one.
    """

    opacified: np.ndarray
    contrast: np.ndarray
    in_field: np.ndarray
    blur_mm: np.ndarray
    foreshortening: np.ndarray
    overlap: np.ndarray
    standard_view: bool

    def measured(self) -> dict[str, np.ndarray]:
        """Return what the rule reads, by the names of `quality`'s arguments.

        Returns:
            (t,) columns, rounded to four decimals: a table of them gives the labels back exactly.
        """
        names = "opacified", "contrast", "blur_mm", "foreshortening", "overlap"
        columns = {name: np.round(getattr(self, name), 4) for name in names}
        return columns | {"standard_view": np.full(len(self.opacified), bool(self.standard_view))}

    def labels(self, laterality: str) -> list[str]:
        """Return the label of every frame, e.g. LCA_better."""
        columns = [column.tolist() for column in self.measured().values()]
        return [label(laterality, *row) for row in zip(*columns, strict=True)]


def quality(
    opacified: float,
    contrast: float,
    blur_mm: float,
    foreshortening: float = 0.0,
    overlap: float = 0.0,
    standard_view: bool = True,
) -> str:
    """Grade one frame: better, bad or other.

    The first line that holds decides:

    | if | grade | which frames these are |
    |---|---|---|
    | contrast < 0.08 | other | before and after the bolus, catheter only, or not coronary |
    | opacified < 0.70 | bad | filling, washing out, slow, or cropped |
    | contrast < 0.50 | bad | weak contrast |
    | blur > 0.60 mm | bad | blurred by motion |
    | foreshortening > 0.60 | bad | a lesion of 50 % or more is seen nearly end on |
    | overlap > 0.40 | bad | vessels cover each other |
    | not a standard view | bad | an odd view |
    | else | better | a key frame |

    A ventriculogram or aortogram opacifies no coronary artery, so its contrast is 0 here and its
    frames are other, however dark its ventricle is.

    Args:
        opacified: Share of the open main tree, 0 to 1.
        contrast: Mean share of undiluted coronary contrast, 0 or more.
        blur_mm: Movement within one X-ray pulse, 0 or more.
        foreshortening: Of the worst lesion of 50 % or more, 0 to 1.
        overlap: Share of the main tree covered by another of its vessels, 0 to 1.
        standard_view: Whether the view is a standard one.

    Returns:
        better, bad or other.

    Raises:
        ValueError: A value lies outside its range.

    Source:
        The study's own rule; the paper (3.1) gives none.
    """
    _check(opacified, contrast, blur_mm, foreshortening, overlap)
    if contrast < OTHER_CONTRAST:
        return "other"
    good = (
        opacified >= BETTER_OPACIFIED
        and contrast >= BETTER_CONTRAST
        and blur_mm <= BETTER_BLUR_MM
        and foreshortening <= BETTER_FORESHORTENING
        and overlap <= BETTER_OVERLAP
        and standard_view
    )
    return "better" if good else "bad"


def _check(opacified, contrast, blur_mm, foreshortening, overlap) -> None:
    """Refuse impossible measurements, NaN among them."""
    shares = opacified, foreshortening, overlap
    if not (all(0 <= x <= 1 + 1e-9 for x in shares) and contrast >= 0 and blur_mm >= 0):
        raise ValueError(
            "a frame needs opacified, foreshortening and overlap 0 to 1, contrast >= 0 and "
            f"blur_mm >= 0, got {opacified}, {foreshortening}, {overlap}, {contrast} and {blur_mm}"
        )


def label(laterality: str, *measured: float, **more: float) -> str:
    """Return one of the six classes, e.g. RCA_bad; further arguments as in `quality`.

    Raises:
        ValueError: `laterality` is neither LCA nor RCA, or a value lies outside its range.
    """
    if laterality not in LATERALITIES:
        raise ValueError(f"laterality must be LCA or RCA, got {laterality!r}")
    return f"{laterality}_{quality(*measured, **more)}"
