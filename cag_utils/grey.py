"""Grey levels of a decoded angiogram as 8 bits, whatever the file stores."""

import numpy as np
import pydicom
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

WINDOW = ("WindowCenter", "WindowWidth", "VOILUTFunction")


def to_eight_bits(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Map one frame's stored values to 0-255, contrast agent dark.

    The rule, in order:

    1. A Modality LUT or rescale is applied, unless the pixels are LOG or DISP: there it leads
       back to X-ray intensity and is not meant for display.
    2. Values that now span exactly 0-255 are kept as they are, whatever the window: nothing may
       depend on a viewer's preset. That is the usual 8-bit cine.
    3. Files of more than 8 bits are mapped by their window, the first if there are several.
    4. Everything else is mapped by the full range its values could take, linearly.
    5. MONOCHROME1 is inverted.

    Args:
        stored: (H, W) integer, as decoded.
        header: The file's attributes; those of the frame's own functional group are not read.

    Returns:
        uint8 (H, W).

    Raises:
        ValueError: The window or the LUT breaks the standard.

    Source:
        DICOM PS3.3 C.8.7.1.1.2 (Pixel Intensity Relationship), C.11.1 (Modality LUT), C.11.2.1.2
        (window).
    """
    bits = int(header.BitsStored)
    has_sign = int(header.get("PixelRepresentation", 0)) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if has_sign else (0, 2**bits - 1)
    values = stored
    if header.get("PixelIntensityRelationship") not in ("LOG", "DISP"):
        values = apply_modality_lut(stored, header)
        low, high = _modality_range(low, high, header)
    if (low, high) == (0, 255):
        levels = values
    elif bits > 8 and _has_window(header):
        levels = apply_windowing(values, _window_to_eight_bits(header))
    else:
        levels = (np.asarray(values, dtype=np.float64) - low) * 255.0 / (high - low)
    if levels.dtype != np.uint8:
        levels = np.round(levels).clip(0, 255).astype(np.uint8)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        levels = 255 - levels
    return np.ascontiguousarray(levels)


def _modality_range(low: float, high: float, header: pydicom.Dataset) -> tuple[float, float]:
    """The least and the largest value the modality step can give."""
    if tables := header.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(tables[0].LUTDescriptor[2]) - 1)
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope is None or intercept is None:
        return low, high
    ends = sorted((low * float(slope) + float(intercept), high * float(slope) + float(intercept)))
    if ends[0] == ends[1]:
        raise ValueError(f"RescaleSlope {slope} maps every pixel to one value")
    return ends[0], ends[1]


def _has_window(header: pydicom.Dataset) -> bool:
    return all(header.get(name) not in (None, "") for name in ("WindowCenter", "WindowWidth"))


def _window_to_eight_bits(header: pydicom.Dataset) -> pydicom.Dataset:
    """The header's window alone: without depth and rescale, pydicom spans 0-255 with it."""
    view = pydicom.Dataset()
    for name in WINDOW:
        if name in header:
            view[name] = header[name]
    view.BitsStored, view.PixelRepresentation = 8, 0
    view.PhotometricInterpretation = "MONOCHROME2"
    return view
