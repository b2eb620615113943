"""Optional facts of an XA header: a fact that is absent or unreadable is NaN, never an error."""

import math

import numpy as np
import pydicom


def frame_time_ms(header: pydicom.Dataset) -> float:
    """Return the mean time between frames in ms; NaN when the header gives none.

    FrameTime is present more often than CineRate, so it comes first; a FrameTimeVector is averaged
    without its first step, which is 0 by definition.

    Source:
        DICOM PS3.3 C.7.6.5.
    """
    if (time := number(header, "FrameTime")) > 0:
        return time
    steps = numbers(header, "FrameTimeVector")[1:]
    if steps.size and (mean := float(steps.mean())) > 0:
        return mean
    for rate in ("CineRate", "RecommendedDisplayFrameRate"):
        if (value := number(header, rate)) > 0:
            return 1000.0 / value
    return math.nan


def spacing_at_isocentre_mm(header: pydicom.Dataset) -> float:
    """Return the detector's pixel spacing divided by the magnification; NaN without either.

    The magnification is EstimatedRadiographicMagnificationFactor, or else source-to-detector over
    source-to-patient distance.

    Source:
        DICOM PS3.3 C.8.7.5 (Imager Pixel Spacing is at the detector's front plane).
    """
    magnification = number(header, "EstimatedRadiographicMagnificationFactor")
    if not magnification > 0:
        to_detector = number(header, "DistanceSourceToDetector")
        to_patient = number(header, "DistanceSourceToPatient")
        magnification = to_detector / to_patient if to_patient > 0 else math.nan
    spacing = number(header, "ImagerPixelSpacing")
    return spacing / magnification if spacing > 0 and magnification > 0 else math.nan


def number(header: pydicom.Dataset, name: str) -> float:
    """Return a numeric attribute, its first value if there are several; NaN when it has none."""
    values = numbers(header, name)
    return float(values[0]) if values.size else math.nan


def numbers(header: pydicom.Dataset, name: str) -> np.ndarray:
    """Return the finite values of a numeric attribute as float64 (n,); empty when unreadable."""
    try:
        value = header.get(name)
        values = np.atleast_1d(np.asarray(value, dtype=np.float64)) if value is not None else []
    except (ValueError, TypeError, ArithmeticError):  # text where a number belongs
        values = []
    values = np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values)]
