"""Read XA cines from a folder, or say of each file why it is not one."""

import math
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom import uid
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from tqdm import tqdm

XA_CLASSES = (uid.XRayAngiographicImageStorage, uid.EnhancedXAImageStorage)
DUPLICATE = "duplicate: another file holds the same SOP instance"
WINDOW = ("WindowCenter", "WindowWidth", "VOILUTFunction")
SMALL_BYTES = 65536  # longer values, such as pixels, stay on disk until they are asked for


class NotACine(ValueError):
    """The file cannot be used.

    `reason` is one of few fixed phrases, which may land in `outputs/`; `detail`, what the decoder
    said, may quote the header or a path: for private eyes only.
    """

    def __init__(self, reason: str, detail: object = ""):
        super().__init__(reason)
        self.reason = reason
        self.detail = " ".join(str(detail).split())[:300]


class Rejected(NamedTuple):
    """A file that is no cine; `reason` and `detail` as in `NotACine`."""

    path: Path
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Cine:
    """What the header of one XA cine says; numbers that it does not give are NaN."""

    path: Path
    patient: str  # PatientID, or the study's UID when the header has none
    exam: str  # Study Instance UID
    video: str  # SOP Instance UID
    n_frames: int  # at least 2
    rows: int
    columns: int
    frame_time_ms: float  # mean time between frames
    primary_angle_deg: float  # LAO positive, RAO negative; signs of old files cannot be trusted
    secondary_angle_deg: float  # CRA positive, CAU negative
    spacing_mm: float  # pixel spacing at the isocentre
    copies: tuple[Path, ...] = ()  # further files of the same SOP instance, if this one is broken


def scan(folder: Path) -> tuple[list[Cine], list[Rejected]]:
    """Sort everything below a folder into cines and rejected files, each in path order.

    Hidden files count; links to folders, which could lead round in circles, are rejected. Only
    headers are read: broken pixels show later, in `iter_frames`.

    Raises:
        NotADirectoryError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder of DICOM files")
    files, rejected = _list_files(folder)
    cines: dict[str, Cine] = {}
    for path in tqdm(files, desc="headers", mininterval=30):
        try:
            cine = read_header(path)
        except NotACine as problem:
            rejected.append(Rejected(path, problem.reason, problem.detail))
            continue
        if first := cines.get(cine.video):
            cines[cine.video] = replace(first, copies=(*first.copies, path))
            rejected.append(Rejected(path, DUPLICATE))
        else:
            cines[cine.video] = cine
    return list(cines.values()), sorted(rejected)


def path_within(path: Path, folder: Path) -> str:
    """Return a path within a folder as text; names that are not UTF-8 are legal on Linux."""
    name = os.fsencode(path.relative_to(folder).as_posix())
    return name.decode("utf-8", "backslashreplace")


def read_header(path: Path) -> Cine:
    """Read one file's header, without its pixels.

    Raises:
        NotACine: It is not a readable, multi-frame, grey XA image; the reason says which.
    """
    header = _read(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # they quote the header
            _check_kind(header)
            return _describe(path, header)
    except NotACine:
        raise
    except Exception as error:  # pydicom and its readers raise nearly anything on a broken file
        raise NotACine(f"broken header ({type(error).__name__})", error) from error


def iter_frames(path: Path, frames: Sequence[int] | None = None) -> Iterator[np.ndarray]:
    """Decode a cine that `read_header` accepts; only one frame is in memory at a time.

    Args:
        path: The file.
        frames: Indices from 0, ascending; all if None.

    Yields:
        uint8 (H, W), by the rule of `to_eight_bits`.

    Raises:
        NotACine: There are no pixels, or they do not decode, or frames are missing.
    """
    header = _read(path)
    if "PixelData" not in header:
        raise NotACine("no pixel data")
    wanted = list(range(int(header.NumberOfFrames))) if frames is None else list(frames)
    if not wanted:  # pydicom would take an empty list for all frames
        return
    syntax = header.file_meta.TransferSyntaxUID
    plugin = "pillow" if syntax == uid.JPEGBaseline8Bit else ""  # 2.5 times as fast as gdcm
    source = pydicom.dcmread(path) if syntax == uid.DeflatedExplicitVRLittleEndian else path
    n_decoded = 0
    try:
        for stored in iter_pixels(source, indices=wanted, raw=True, decoding_plugin=plugin):
            yield to_eight_bits(stored, header)
            n_decoded += 1
    except Exception as error:  # decoders raise nearly anything on broken data
        reason = f"broken pixel data at frame {wanted[n_decoded]} ({type(error).__name__})"
        raise NotACine(reason, error) from error
    if n_decoded < len(wanted):
        raise NotACine(f"broken pixel data: {n_decoded} of {len(wanted)} frames decode")


def _list_files(folder: Path) -> tuple[list[Path], list[Rejected]]:
    """Everything below a folder that is no folder, and the folders that cannot be entered."""
    files: list[Path] = []
    closed: list[Rejected] = []

    def remember(error: OSError) -> None:
        closed.append(Rejected(Path(error.filename), f"closed folder: {error.strerror}", error))

    for top, folders, names in os.walk(folder, onerror=remember):
        files += [Path(top) / name for name in names]
        links = [Path(top) / name for name in folders]
        closed += [Rejected(p, "link to a folder, not followed") for p in links if p.is_symlink()]
    return sorted(files), closed


def _read(path: Path) -> pydicom.Dataset:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # reading a pipe would wait for ever
            raise NotACine("not a regular file")
        if facts.st_size == 0:
            raise NotACine("empty file")
        with warnings.catch_warnings(action="ignore"):
            return pydicom.dcmread(path, defer_size=SMALL_BYTES)
    except NotACine:
        raise
    except InvalidDicomError as error:
        raise NotACine("not a DICOM file", error) from error
    except OSError as error:
        raise NotACine(f"unreadable file: {error.strerror or 'input error'}", error) from error
    except Exception as error:  # see read_header
        raise NotACine(f"unreadable DICOM ({type(error).__name__})", error) from error


def _check_kind(header: pydicom.Dataset) -> None:
    """Raise NotACine unless the header describes grey XA frames that can be decoded."""
    kind = header.get("SOPClassUID", "")
    if header.file_meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
        raise NotACine("DICOMDIR, an index without pixels")
    if kind == uid.XRay3DAngiographicImageStorage:
        raise NotACine("not a cine: a 3-D reconstruction")
    modality = str(header.get("Modality", "") or "missing")
    if kind not in XA_CLASSES and modality != "XA":
        is_code = re.fullmatch("[A-Z]{2,8}|missing", modality)  # else it could say anything
        raise NotACine(f"not XA: modality {modality if is_code else 'unknown'}")
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if int(header.get("SamplesPerPixel", 1)) != 1 or not photometric.startswith("MONOCHROME"):
        raise NotACine("colour image, not a grey XA cine")
    if int(header.get("NumberOfFrames") or 1) < 2:
        raise NotACine("single frame, not a cine")
    syntax = header.file_meta.TransferSyntaxUID
    with suppress(NotImplementedError):
        if get_decoder(syntax).is_available:
            return
    name = syntax.name if syntax.name != syntax else "unknown or private"
    raise NotACine(f"unsupported transfer syntax: {name}")


def _describe(path: Path, header: pydicom.Dataset) -> Cine:
    video, exam = str(header.SOPInstanceUID), str(header.StudyInstanceUID)
    if not video or not exam:
        raise NotACine("broken header: no SOP or study instance UID")
    patient = str(header.get("PatientID", "") or "").strip() or exam
    sizes = (int(header.NumberOfFrames), int(header.Rows), int(header.Columns))
    return Cine(
        *(path, patient, exam, video, *sizes),
        frame_time_ms=frame_time_ms(header),
        primary_angle_deg=_number(header, "PositionerPrimaryAngle"),
        secondary_angle_deg=_number(header, "PositionerSecondaryAngle"),
        spacing_mm=spacing_at_isocentre_mm(header),
    )


def to_eight_bits(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Map one frame's stored values to 0-255, contrast agent dark.

    A Modality LUT or rescale is applied, unless the pixels are LOG or DISP: there it leads back to
    X-ray intensity and is not meant for display. Values that now span exactly 0-255, as in the
    usual 8-bit cine, are kept whatever the window: nothing may depend on a viewer's preset. Files
    of more than 8 bits are mapped by their (first) window, everything else linearly by the full
    range its values could take. MONOCHROME1 is inverted.

    Args:
        stored: (H, W) integer, as decoded; uint8 of the same shape comes back.
        header: The file's attributes; those of the frame's own functional group are not read.

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
    elif bits > 8 and (window := _window_to_eight_bits(header)):
        levels = apply_windowing(values, window)
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
    least, most = sorted(end * float(slope) + float(intercept) for end in (low, high))
    if least == most:
        raise ValueError(f"RescaleSlope {slope} maps every pixel to one value")
    return least, most


def _window_to_eight_bits(header: pydicom.Dataset) -> pydicom.Dataset | None:
    """The header's window alone, if any: without depth and rescale, pydicom spans 0-255 with it."""
    view = pydicom.Dataset()
    for name in WINDOW:
        if header.get(name) not in (None, ""):
            view[name] = header[name]
    if "WindowCenter" not in view or "WindowWidth" not in view:
        return None
    view.BitsStored, view.PixelRepresentation = 8, 0
    view.PhotometricInterpretation = "MONOCHROME2"
    return view


def frame_time_ms(header: pydicom.Dataset) -> float:
    """Return the mean time between frames in ms; NaN when the header gives none.

    FrameTime is there more often than CineRate; the first step of a FrameTimeVector is always 0.

    Source:
        DICOM PS3.3 C.7.6.5.
    """
    if (time := _number(header, "FrameTime")) > 0:
        return time
    steps = _numbers(header, "FrameTimeVector")[1:]
    if steps.size and steps.mean() > 0:
        return float(steps.mean())
    for rate in ("CineRate", "RecommendedDisplayFrameRate"):
        if (value := _number(header, rate)) > 0:
            return 1000.0 / value
    return math.nan


def spacing_at_isocentre_mm(header: pydicom.Dataset) -> float:
    """Return the detector's pixel spacing divided by the magnification; NaN without either.

    Source:
        DICOM PS3.3 C.8.7.5 (Imager Pixel Spacing is at the detector's front plane).
    """
    magnification = _number(header, "EstimatedRadiographicMagnificationFactor")
    if not magnification > 0:
        to_detector = _number(header, "DistanceSourceToDetector")
        to_patient = _number(header, "DistanceSourceToPatient")
        magnification = to_detector / to_patient if to_patient > 0 else math.nan
    spacing = _number(header, "ImagerPixelSpacing")
    return spacing / magnification if spacing > 0 and magnification > 0 else math.nan


def _number(header: pydicom.Dataset, name: str) -> float:
    """A numeric attribute, its first value if there are several; NaN when it has none."""
    return next(iter(_numbers(header, name)), math.nan)


def _numbers(header: pydicom.Dataset, name: str) -> np.ndarray:
    """The finite values of a numeric attribute, (n,) float64; none when it is unreadable."""
    try:
        values = np.atleast_1d(np.asarray(header.get(name), dtype=np.float64))  # None becomes NaN
    except (ValueError, TypeError, ArithmeticError):  # text where a number belongs
        return np.empty(0)
    return values[np.isfinite(values)]


def name_view(primary_deg: float, secondary_deg: float) -> str:
    """Name a projection from the positioner angles in degrees, e.g. `LAO cranial`, `AP caudal`.

    LAO and cranial are positive; within 10 degrees counts as none.

    Source:
        DICOM PS3.3 C.8.7.5 (Positioner Primary and Secondary Angle) for the signs.
    """
    sideways = "AP" if abs(primary_deg) < 10 else ("LAO" if primary_deg > 0 else "RAO")
    tilt = "" if abs(secondary_deg) < 10 else (" cranial" if secondary_deg > 0 else " caudal")
    return sideways + tilt
