"""Write cines as XA DICOM files that any viewer opens.

Pixels are JPEG Baseline at quality 85: about 3 MB for 60 frames of 512 x 512, a fifth of the raw
size, with a mean error below the quantum noise. The real cine in `../shared/real` has it too.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, XRayAngiographicImageStorage

from cag_utils.phantom.imaging.carm import CArm

JPEG_QUALITY = 85
MANUFACTURER = "CAG-VLM study phantom"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:cag-vlm-study:phantom")


@dataclass(frozen=True)
class Identity:
    """Who and what a cine belongs to."""

    patient: str  # patient id; must say PHANTOM
    sex: str  # M or F
    age: int  # years
    study_uid: str  # studyInstanceUID of the exam
    series_uid: str  # seriesInstanceUID
    cine_uid: str  # SOPInstanceUID
    number: int  # running number of the cine within the exam, from 1
    date: str  # YYYYMMDD, made up
    time: str  # HHMMSS, made up


def make_uid(*parts: object) -> str:
    """Return a valid UID of at most 64 characters that depends on nothing but its parts' text.

    `2.25.` and the decimal form of a name-based UUID (DICOM PS3.5 B.2).
    """
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(map(str, parts))).int}"


def encode_jpeg(frame: np.ndarray) -> bytes:
    """Encode one frame, (H, W) uint8, as JPEG Baseline.

    Raises:
        ValueError: The frame is not a grey 8-bit picture.
    """
    if frame.ndim != 2 or frame.dtype != np.uint8:
        raise ValueError(f"a frame must be (H, W) uint8, got {frame.shape} {frame.dtype}")
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 0]
    return cv2.imencode(".jpg", frame, options)[1].tobytes()


def xa_dataset(
    frames: np.ndarray, identity: Identity, arm: CArm, frame_rate: float, pulse_s: float
) -> FileDataset:
    """Build the dataset of one cine: an XA image with encapsulated pixels, ready to save.

    Args:
        frames: (T, H, W) uint8.

    Raises:
        ValueError: `frames` is not (T, H, W) uint8, or the patient id does not say PHANTOM.

    Source:
        DICOM PS3.3 A.14 (X-Ray Angiographic Image IOD) and the modules it lists.
    """
    if frames.ndim != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be (T, H, W) uint8, got {frames.shape} {frames.dtype}")
    if "PHANTOM" not in identity.patient:
        raise ValueError(f"a phantom's patient id must say PHANTOM, got {identity.patient!r}")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = XRayAngiographicImageStorage
    meta.MediaStorageSOPInstanceUID = identity.cine_uid
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.ImplementationClassUID = make_uid("implementation")
    meta.ImplementationVersionName = "CAGPHANTOM"
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    _identify(data, identity)
    _describe_pixels(data, frames)
    _describe_exposure(data, arm, frame_rate, pulse_s, len(frames))
    encoded = [encode_jpeg(frame) for frame in frames]
    data.LossyImageCompression = "01"
    data.LossyImageCompressionMethod = "ISO_10918_1"
    data.LossyImageCompressionRatio = f"{frames.nbytes / sum(map(len, encoded)):.2f}"
    data.PixelData = encapsulate(encoded)
    data["PixelData"].VR = "OB"
    return data


def _identify(data: Dataset, identity: Identity) -> None:
    """Patient, study, series, equipment and SOP modules."""
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = XRayAngiographicImageStorage
    data.SOPInstanceUID = identity.cine_uid
    data.StudyInstanceUID, data.SeriesInstanceUID = identity.study_uid, identity.series_uid
    data.PatientID = identity.patient
    data.PatientName = identity.patient.replace("-", "^", 1).replace("-", " ")
    data.PatientSex, data.PatientAge = identity.sex, f"{identity.age:03d}Y"
    data.PatientBirthDate = ""
    data.PatientComments = "Digital phantom, not a person"
    for kind in ("Study", "Series", "Acquisition", "Content"):
        setattr(data, f"{kind}Date", identity.date)
        setattr(data, f"{kind}Time", identity.time)
    data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "1", "", ""
    data.StudyDescription = "Coronary angiography, digital phantom"
    data.Modality = "XA"
    data.SeriesNumber = data.InstanceNumber = data.AcquisitionNumber = identity.number
    data.Manufacturer, data.ManufacturerModelName = MANUFACTURER, "phantom"
    data.InstitutionName = ""
    data.BodyPartExamined = "HEART"
    data.PatientOrientation = ""
    data.ContrastBolusAgent = "Simulated iodinated contrast"


def _describe_pixels(data: Dataset, frames: np.ndarray) -> None:
    """General image, pixel, multi-frame and window modules."""
    data.ImageType = ["ORIGINAL", "PRIMARY", "SINGLE PLANE"]
    data.NumberOfFrames, data.Rows, data.Columns = frames.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelIntensityRelationship = "DISP"  # LOG would need a LUT back to the exposure
    data.WindowCenter, data.WindowWidth = 128, 256
    data.VOILUTFunction = "LINEAR"
    data.BurnedInAnnotation = "NO"


def _describe_exposure(
    data: Dataset, arm: CArm, frame_rate: float, pulse_s: float, n_frames: int
) -> None:
    """Cine, XA acquisition and XA positioner modules."""
    data.FrameIncrementPointer = 0x00181063  # FrameTime
    data.FrameTime = f"{1000 / frame_rate:.6g}"
    data.CineRate = data.RecommendedDisplayFrameRate = round(frame_rate)
    data.StartTrim, data.StopTrim = 1, n_frames
    data.KVP, data.RadiationSetting, data.RadiationMode = "87", "GR", "PULSED"
    data.ExposureTime = round(1000 * pulse_s * n_frames)
    data.XRayTubeCurrent = 650
    data.Exposure = round(650 * pulse_s * n_frames)
    data.AveragePulseWidth = f"{1000 * pulse_s:.4g}"
    data.PositionerMotion = "STATIC"
    data.PositionerPrimaryAngle = f"{arm.primary_deg:.1f}"
    data.PositionerSecondaryAngle = f"{arm.secondary_deg:.1f}"
    data.DistanceSourceToDetector = f"{arm.source_detector_mm:.1f}"
    data.DistanceSourceToPatient = f"{arm.source_isocentre_mm:.1f}"
    data.EstimatedRadiographicMagnificationFactor = f"{arm.magnification:.4f}"
    data.ImagerPixelSpacing = [f"{arm.pixel_mm:.5f}"] * 2
    field = arm.pixel_mm * arm.size_px
    data.FieldOfViewShape, data.FieldOfViewDimensions = "RECTANGLE", [round(field)] * 2


def write_xa(path: Path, data: FileDataset) -> None:
    """Save a dataset from `xa_dataset`; the file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    data.save_as(part, enforce_file_format=True)
    part.replace(path)
