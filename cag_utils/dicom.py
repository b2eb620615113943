"""Read XA cines from a folder, or say of each file why it is not one."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, apply_voi_lut, iter_pixels
from pydicom.uid import EnhancedXAImageStorage, JPEGBaseline8Bit, XRayAngiographicImageStorage

XA_CLASSES = (XRayAngiographicImageStorage, EnhancedXAImageStorage)
# Raised by pydicom and its decoders for files that break the standard.
BROKEN = (ValueError, KeyError, AttributeError, TypeError, IndexError, OSError, RuntimeError)
BROKEN += (NotImplementedError, EOFError, ArithmeticError)


class NotACine(ValueError):
    """The file cannot be used; the message is the reason that lands in rejected.csv."""


@dataclass(frozen=True)
class Cine:
    """What the header of one XA cine says.

    Attributes:
        path: The file.
        patient: PatientID, or the study's UID when the header has none.
        exam: Study Instance UID.
        video: SOP Instance UID.
        n_frames: Frames, at least 2.
        rows, columns: Pixels.
        frame_time_ms: Mean time between frames; NaN when the header gives none.
        primary_angle_deg: LAO positive, RAO negative; NaN when absent. Signs of old files cannot
            be trusted.
        secondary_angle_deg: CRA positive, CAU negative; NaN when absent.
        spacing_mm: Pixel spacing at the isocentre; NaN when it cannot be known.
    """

    path: Path
    patient: str
    exam: str
    video: str
    n_frames: int
    rows: int
    columns: int
    frame_time_ms: float
    primary_angle_deg: float
    secondary_angle_deg: float
    spacing_mm: float


def scan(folder: Path) -> tuple[list[Cine], list[tuple[Path, str]]]:
    """Sort every file below a folder into cines and rejected files.

    Args:
        folder: An archive in any layout; hidden files count, links to folders are not followed.

    Returns:
        The cines in path order, and (path, reason) of every other file. Together they are all
        files there are. Only headers are read, so broken pixels show later, in `iter_frames`.

    Raises:
        NotADirectoryError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder of DICOM files")
    cines: list[Cine] = []
    rejected: list[tuple[Path, str]] = []
    first_of: dict[str, Path] = {}
    for path in sorted(Path(top) / name for top, _, names in os.walk(folder) for name in names):
        try:
            cine = read_header(path)
            if cine.video in first_of:
                raise NotACine("duplicate: another file holds the same SOP instance")
        except NotACine as reason:
            rejected.append((path, str(reason)))
        else:
            first_of[cine.video] = path
            cines.append(cine)
    return cines, rejected


def read_header(path: Path) -> Cine:
    """Read one file's header, without its pixels.

    Raises:
        NotACine: It is not a readable, multi-frame, grey XA image; the message says which.
    """
    header = _read_dataset(path, stop_before_pixels=True)
    modality = str(header.get("Modality", "") or "missing")
    if header.get("SOPClassUID") not in XA_CLASSES and modality != "XA":
        raise NotACine(f"not XA: modality {modality}")
    try:
        if int(header.get("SamplesPerPixel", 1)) != 1:
            raise NotACine("colour image, not a grey XA cine")
        if int(header.get("NumberOfFrames") or 1) < 2:
            raise NotACine("single frame, not a cine")
        return _describe(path, header)
    except NotACine:
        raise
    except BROKEN as error:
        raise NotACine(f"broken header: {_short(error)}") from error


def iter_frames(path: Path, frames: Sequence[int] | None = None) -> Iterator[np.ndarray]:
    """Decode a cine frame by frame; only one is in memory at a time.

    Grey levels: values of up to 8 bits are kept as they are, so that nothing depends on a
    viewer's preset. Deeper ones are mapped to 0-255 by the file's window, or by their full range
    where it has none. MONOCHROME1 is inverted, so contrast is dark in every cine. A Modality LUT
    is applied unless the pixels are LOG or DISP, where it leads back to X-ray intensity and is
    not meant for display.

    Args:
        path: A file that `read_header` accepts.
        frames: Frame indices from 0, ascending; all if None.

    Yields:
        uint8 (H, W).

    Raises:
        NotACine: There are no pixels, or they do not decode, or frames are missing.

    Source:
        DICOM PS3.3 C.8.7.1.1.2 (Pixel Intensity Relationship), C.11.1, C.11.2.
    """
    dataset = _read_dataset(path, stop_before_pixels=False)
    if "PixelData" not in dataset:
        raise NotACine("no pixel data")
    wanted = list(range(int(dataset.NumberOfFrames))) if frames is None else list(frames)
    if not wanted:  # pydicom would take an empty list for all frames
        return
    n_decoded = 0
    is_baseline = dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    plugin = "pillow" if is_baseline else ""  # 2.5 times the speed of gdcm; "" tries all
    try:
        for raw in iter_pixels(dataset, indices=wanted, raw=True, decoding_plugin=plugin):
            yield _grey(raw, dataset)
            n_decoded += 1
    except BROKEN as error:
        problem = f"broken pixel data at frame {wanted[n_decoded]}: {_short(error)}"
        raise NotACine(problem) from error
    if n_decoded < len(wanted):
        raise NotACine(f"broken pixel data: {n_decoded} of {len(wanted)} frames decode")


def _read_dataset(path: Path, stop_before_pixels: bool) -> pydicom.Dataset:
    try:
        if path.stat().st_size == 0:
            raise NotACine("empty file")
        return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except NotACine:
        raise
    except InvalidDicomError as error:
        raise NotACine("not a DICOM file") from error
    except PermissionError as error:
        raise NotACine("not readable: permission denied") from error
    except BROKEN as error:
        raise NotACine(f"unreadable: {_short(error)}") from error


def _describe(path: Path, header: pydicom.Dataset) -> Cine:
    video, exam = str(header.SOPInstanceUID), str(header.StudyInstanceUID)
    if not video or not exam:
        raise NotACine("broken header: no SOP or study instance UID")
    return Cine(
        path=path,
        patient=str(header.get("PatientID", "") or exam),
        exam=exam,
        video=video,
        n_frames=int(header.NumberOfFrames),
        rows=int(header.Rows),
        columns=int(header.Columns),
        frame_time_ms=_frame_time_ms(header),
        primary_angle_deg=_number(header, "PositionerPrimaryAngle"),
        secondary_angle_deg=_number(header, "PositionerSecondaryAngle"),
        spacing_mm=_spacing_at_isocentre_mm(header),
    )


def _frame_time_ms(header: pydicom.Dataset) -> float:
    """FrameTime is present more often than CineRate; a vector of times is averaged."""
    if not np.isnan(time := _number(header, "FrameTime")) and time > 0:
        return time
    if vector := header.get("FrameTimeVector"):
        steps = np.asarray(vector, dtype=float).ravel()[1:]
        return float(steps.mean()) if steps.size else float("nan")
    for rate in ("CineRate", "RecommendedDisplayFrameRate"):
        if not np.isnan(value := _number(header, rate)) and value > 0:
            return 1000.0 / value
    return float("nan")


def _spacing_at_isocentre_mm(header: pydicom.Dataset) -> float:
    """Detector spacing divided by the magnification SID / SOD.

    Source: DICOM PS3.3 C.8.7.5 (Imager Pixel Spacing is at the detector's front plane).
    """
    spacing = _number(header, "ImagerPixelSpacing")
    magnification = _number(header, "EstimatedRadiographicMagnificationFactor")
    if np.isnan(magnification):
        detector = _number(header, "DistanceSourceToDetector")
        magnification = detector / _number(header, "DistanceSourceToPatient")
    return spacing / magnification


def _number(header: pydicom.Dataset, name: str) -> float:
    """A numeric attribute, its first value if there are several; NaN when absent or empty."""
    value = header.get(name)
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return float("nan") if value in (None, "") else float(value)


def _grey(raw: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """One decoded frame as uint8; the rule stands in `iter_frames`."""
    for_display = dataset.get("PixelIntensityRelationship") not in ("LOG", "DISP")
    values = apply_modality_lut(raw, dataset) if for_display else raw
    bits = int(dataset.BitsStored)
    if values.dtype != np.uint8 or bits > 8:
        values = _to_eight_bits(values, dataset, bits)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        values = 255 - values
    return np.ascontiguousarray(values)


def _to_eight_bits(values: np.ndarray, dataset: pydicom.Dataset, bits: int) -> np.ndarray:
    signed = int(dataset.get("PixelRepresentation", 0)) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        values = apply_voi_lut(values, dataset, prefer_lut=False)  # spans the output range
    scaled = (np.asarray(values, dtype=np.float64) - low) * 255.0 / (high - low)
    return scaled.round().clip(0, 255).astype(np.uint8)


def _short(error: Exception) -> str:
    """The first sentence of an error, without the paths that decoders like to print."""
    words = [w for w in str(error).split() if os.sep not in w]
    return f"{type(error).__name__}: {' '.join(words)[:120]}"
