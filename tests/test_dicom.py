import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    XRayAngiographicImageStorage,
)

from cag_utils.dicom import NotACine, iter_frames, read_header, scan

RAMP = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8)


def write_cine(path: Path, pixels=RAMP, bits=8, video="1.2.3.4", **changes) -> Path:
    """A small uncompressed XA cine; `changes` set or (None) remove attributes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = XRayAngiographicImageStorage
    dataset.SOPInstanceUID = video
    dataset.StudyInstanceUID = "1.2.3"
    dataset.PatientID = "P1"
    dataset.Modality = "XA"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    for name, value in changes.items():
        delattr(dataset, name) if value is None else setattr(dataset, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)
    return path


def test_eight_bit_frames_come_back_untouched(tmp_path):
    path = write_cine(tmp_path / "a", WindowCenter=10, WindowWidth=5)
    np.testing.assert_array_equal(np.stack(list(iter_frames(path))), RAMP)


def test_single_frames_can_be_asked_for(tmp_path):
    path = write_cine(tmp_path / "a")
    got = list(iter_frames(path, [1, 3]))
    np.testing.assert_array_equal(np.stack(got), RAMP[[1, 3]])
    assert list(iter_frames(path, [])) == []


def test_monochrome1_is_inverted(tmp_path):
    path = write_cine(tmp_path / "a", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(np.stack(list(iter_frames(path))), 255 - RAMP)


def test_deeper_pixels_use_the_window_or_the_full_range(tmp_path):
    levels = np.array([[[0, 1000, 2000, 4095]]] * 2, dtype=np.uint16)
    full = next(iter_frames(write_cine(tmp_path / "a", levels, bits=12)))
    assert full.tolist() == [[0, 62, 125, 255]]  # 255 x / 4095
    window = {"WindowCenter": 1500.5, "WindowWidth": 1001}
    seen = next(iter_frames(write_cine(tmp_path / "b", levels, bits=12, **window)))
    assert seen.tolist() == [[0, 0, 255, 255]]  # below 1000.5 - 0.5: black, above 2000.0: white


def test_signed_pixels_span_the_whole_range(tmp_path):
    levels = np.array([[[-2048, 0, 2047]]] * 2, dtype=np.int16)
    got = next(iter_frames(write_cine(tmp_path / "a", levels, bits=12)))
    assert got.tolist() == [[0, 128, 255]]


def test_a_modality_lut_of_log_pixels_is_left_alone(tmp_path):
    rescale = {"RescaleSlope": 0.5, "RescaleIntercept": 0, "RescaleType": "US"}
    log = write_cine(tmp_path / "a", PixelIntensityRelationship="LOG", **rescale)
    np.testing.assert_array_equal(next(iter_frames(log)), RAMP[0])
    lin = write_cine(tmp_path / "b", PixelIntensityRelationship="LIN", **rescale)
    assert next(iter_frames(lin)).max() < RAMP[0].max()


def test_header_facts_in_their_units(tmp_path):
    facts = {
        "FrameTime": 66.5,
        "PositionerPrimaryAngle": -30,
        "PositionerSecondaryAngle": 25,
        "ImagerPixelSpacing": [0.3, 0.3],
        "DistanceSourceToDetector": 1200,
        "DistanceSourceToPatient": 800,
    }
    cine = read_header(write_cine(tmp_path / "a", **facts))
    assert (cine.patient, cine.exam, cine.video, cine.n_frames) == ("P1", "1.2.3", "1.2.3.4", 4)
    assert cine.spacing_mm == pytest.approx(0.2)  # 0.3 / (1200 / 800)
    assert (cine.frame_time_ms, cine.primary_angle_deg) == (66.5, -30)


@pytest.mark.parametrize(
    "facts, want",
    [({"CineRate": 15}, 1000 / 15), ({"FrameTimeVector": [0, 60, 70, 80]}, 70), ({}, np.nan)],
)
def test_frame_time_has_three_sources(tmp_path, facts, want):
    got = read_header(write_cine(tmp_path / "a", **facts)).frame_time_ms
    np.testing.assert_allclose(got, want)


def test_a_patient_without_an_id_is_told_apart_by_the_exam(tmp_path):
    assert read_header(write_cine(tmp_path / "a", PatientID="")).patient == "1.2.3"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"SOPClassUID": CTImageStorage, "Modality": "CT"}, "not XA: modality CT"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"NumberOfFrames": 1}, "single frame"),
        ({"NumberOfFrames": None}, "single frame"),
        ({"Rows": None}, "broken header: AttributeError"),
        ({"StudyInstanceUID": ""}, "no SOP or study instance UID"),
    ],
)
def test_a_file_that_is_no_cine_says_why(tmp_path, changes, reason):
    with pytest.raises(NotACine, match=reason):
        read_header(write_cine(tmp_path / "a", **changes))


def test_broken_pixels_are_found_when_decoding(tmp_path):
    whole = write_cine(tmp_path / "a").read_bytes()
    (tmp_path / "short").write_bytes(whole[:-100])
    with pytest.raises(NotACine, match="broken pixel data at frame"):
        list(iter_frames(tmp_path / "short"))
    with pytest.raises(NotACine, match="no pixel data"):
        next(iter_frames(write_cine(tmp_path / "b", PixelData=None)))


def test_a_wrong_transfer_syntax_is_broken_pixel_data(tmp_path):
    dataset = pydicom.dcmread(write_cine(tmp_path / "a"))
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"not a codestream"] * 4)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "b")
    with pytest.raises(NotACine, match="broken pixel data at frame 0"):
        list(iter_frames(tmp_path / "b"))


def test_every_file_is_a_cine_or_rejected_with_a_reason(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_cine(tmp_path / "deep" / "er" / "IM0001")
    write_cine(tmp_path / "twin.dcm")
    write_cine(tmp_path / "other.dcm", video="1.2.3.5")
    (tmp_path / ".hidden").write_bytes(b"x")
    (tmp_path / "empty").touch()
    (tmp_path / "note.txt").write_text("not an image " * 50, encoding="utf-8")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    cines, rejected = scan(tmp_path)
    reasons = {path.name: reason for path, reason in rejected}
    assert [c.path.name for c in cines] == ["IM0001", "other.dcm"]
    assert "duplicate" in reasons["twin.dcm"] and reasons["empty"] == "empty file"
    assert reasons["note.txt"] == reasons[".hidden"] == "not a DICOM file"
    assert "unreadable" in reasons["dangling"]
    assert not any(str(tmp_path) in reason for reason in reasons.values())


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(NotADirectoryError, match="not a folder"):
        scan(tmp_path / "nowhere")


@pytest.mark.realdata
def test_the_real_cine_reads(real_data):
    cines, rejected = scan(real_data)
    [cine] = cines
    assert (cine.n_frames, cine.rows, cine.columns) == (75, 512, 512)
    assert cine.frame_time_ms == pytest.approx(66.67, abs=0.01)
    assert (cine.primary_angle_deg, cine.secondary_angle_deg) == (40.1, 27.0)
    frame = next(iter_frames(cine.path, [40]))
    assert frame.shape == (512, 512) and 20 < frame.mean() < 230
    assert {reason for _, reason in rejected} == {"not a DICOM file"}
