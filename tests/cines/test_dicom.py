import math
import os
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from cag_utils.cines import dicom
from cag_utils.cines.dicom import angles_deg, frame_steps_ms, iter_frames, read_header, scan
from cag_utils.cines.reasons import REASONS, NotACine

SPACING = {"ImagerPixelSpacing": [0.3, 0.3]}
DISTANCES = {"DistanceSourceToDetector": 1200, "DistanceSourceToPatient": 800}
RAMP = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8)
TO_VECTOR = {"FrameIncrementPointer": 0x00181065}
LOSSLESS = [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.DeflatedExplicitVRLittleEndian]


def write_cine(path: Path, pixels=RAMP, bits=8, video="1.2.3.4", **changes) -> Path:
    """A small uncompressed XA cine; `changes` set or (None) remove attributes."""
    dataset = header(bits, Modality="XA", PatientID="P1", SamplesPerPixel=1, HighBit=bits - 1)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = uid.XRayAngiographicImageStorage
    dataset.SOPInstanceUID, dataset.StudyInstanceUID = video, "1.2.3"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    with warnings.catch_warnings(action="ignore"):
        for name, value in changes.items():
            delattr(dataset, name) if value is None else setattr(dataset, name, value)
        dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_eight_bit_frames_come_back_untouched(tmp_path, syntax):
    dataset = pydicom.dcmread(write_cine(tmp_path / "a", WindowCenter=10, WindowWidth=5))
    if syntax == uid.RLELossless:
        dataset.compress(syntax)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "b")
    assert read_header(tmp_path / "b").n_frames == 4
    np.testing.assert_array_equal(np.stack(list(iter_frames(tmp_path / "b"))), RAMP)
    np.testing.assert_array_equal(np.stack(list(iter_frames(tmp_path / "b", [1, 3]))), RAMP[[1, 3]])
    assert list(iter_frames(tmp_path / "b", [])) == []


def test_header_facts_in_their_units(tmp_path):
    facts = {"FrameTime": 66.5, "PositionerPrimaryAngle": -30, "PositionerSecondaryAngle": 25}
    cine = read_header(write_cine(tmp_path / "a", **facts, **SPACING, **DISTANCES))
    assert (cine.patient, cine.exam, cine.video, cine.n_frames) == ("P1", "1.2.3", "1.2.3.4", 4)
    assert cine.spacing_mm == pytest.approx(0.2)  # 0.3 / (1200 / 800)
    assert (cine.frame_time_ms, cine.primary_angle_deg) == (66.5, -30)
    assert read_header(write_cine(tmp_path / "b", PatientID="")).patient == "1.2.3"  # the exam's
    # a broken optional fact costs the fact, not the cine
    path = write_cine(tmp_path / "a", PositionerPrimaryAngle=123456, FrameTime=66.5)
    path.write_bytes(path.read_bytes().replace(b"123456", b"oblique"[:6]))
    cine = read_header(path)
    assert np.isnan(cine.primary_angle_deg) and cine.frame_time_ms == 66.5


@pytest.mark.parametrize("changes, reason", [
    ({"SOPClassUID": uid.CTImageStorage, "Modality": "CT"}, "not XA: modality CT"),
    ({"SOPClassUID": uid.CTImageStorage, "Modality": "Taro Y"}, "not XA: modality unknown"),
    ({"SOPClassUID": uid.XRay3DAngiographicImageStorage}, "3-D reconstruction"),
    ({"SamplesPerPixel": 3}, "colour"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
    ({"Rows": 5000, "Columns": 5000}, "too large: 25000000 pixels"),
    ({"Rows": None}, "broken header: AttributeError"),
    ({"BitsAllocated": 32}, "unsupported bit depth"),
    ({"NumberOfFrames": 10_000}, "number of frames that no file can hold"),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33"}, "passed over: report"),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1"}, "passed over: presentation state"),
    ({"StudyInstanceUID": ""}, "no SOP or study instance UID"),
])  # fmt: skip
def test_a_file_that_is_no_cine_says_why(tmp_path, changes, reason):
    with pytest.raises(NotACine, match=reason):
        read_header(write_cine(tmp_path / "a", **changes))


def encapsulated(path: Path, syntax: str, frame: bytes = b"not a codestream") -> Path:
    dataset = pydicom.dcmread(write_cine(path))
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.PixelData = pydicom.encaps.encapsulate([frame] * 4)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    return path


def test_broken_pixels_an_index_and_an_unsupported_syntax_are_named(tmp_path):
    whole = write_cine(tmp_path / "a").read_bytes()
    (tmp_path / "short").write_bytes(whole[:-100])
    with pytest.raises(NotACine, match="truncated"):
        list(iter_frames(tmp_path / "short"))
    with pytest.raises(NotACine, match="no pixel data"):
        next(iter_frames(write_cine(tmp_path / "b", PixelData=None)))
    with pytest.raises(NotACine, match="broken pixel data"):  # a wrong syntax
        list(iter_frames(encapsulated(tmp_path / "c", uid.JPEG2000Lossless)))
    dataset = pydicom.dcmread(write_cine(tmp_path / "a"))
    dataset.file_meta.MediaStorageSOPClassUID = uid.MediaStorageDirectoryStorage
    dataset.save_as(tmp_path / "DICOMDIR")
    with pytest.raises(NotACine, match="DICOMDIR"):
        read_header(tmp_path / "DICOMDIR")
    names = {"1.2.840.10008.1.2.4.102": "MPEG-4", "1.3.46.670589.33.1.4.1": "unknown or private"}
    for syntax, name in names.items():
        with pytest.raises(NotACine, match=f"unsupported transfer syntax: {name}"):
            read_header(encapsulated(tmp_path / "a", syntax))


def test_memory_does_not_grow_with_the_length_of_a_cine(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "KEEP_BYTES", 60 * 128 * 128 - 1)
    path = write_cine(tmp_path / "a", np.resize(RAMP, (60, 128, 128)))
    list(iter_frames(path))  # imports and caches count once
    tracemalloc.start()
    sum(1 for _ in iter_frames(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 15 * 128 * 128  # of 60 frames


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_damaged_file_never_raises_anything_else(data):
    with tempfile.TemporaryDirectory() as folder:
        content = bytearray(write_cine(Path(folder) / "a").read_bytes())
        for at in data.draw(st.lists(st.integers(128, len(content) - 1), max_size=8)):
            content[at] = data.draw(st.integers(0, 255))
        path = Path(folder) / "b"
        path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
        try:
            read_header(path)
            assert all(frame.dtype == np.uint8 for frame in iter_frames(path))
        except NotACine as problem:
            assert problem.reason in REASONS


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
    (tmp_path / "round").symlink_to(tmp_path / "round")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    cines, rejected = scan(tmp_path)
    reasons = {found.path.name: found.reason for found in rejected}
    assert [c.path.name for c in cines] == ["IM0001", "other.dcm"]
    assert reasons["twin.dcm"] == "duplicate" and reasons["empty"] == "empty file"
    assert reasons["note.txt"] == reasons[".hidden"] == "not a DICOM file"
    assert reasons["dangling"] == reasons["round"] == "unreadable file"
    assert {found.note for found in rejected if "unreadable" in found.reason} == {
        "No such file or directory", "Too many levels of symbolic links"}  # fmt: skip
    assert reasons["loop"] == "link to a folder" and reasons["pipe"] == "not a regular file"
    with pytest.raises(NotADirectoryError, match="not a folder"):
        scan(tmp_path / "nowhere")
    n_files = sum(path.is_symlink() or not path.is_dir() for path in tmp_path.rglob("*"))
    assert len(cines) + len(rejected) == n_files
    assert cines[0].copies == (tmp_path / "twin.dcm",)


def test_a_closed_folder_is_listed_not_skipped(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    write_cine(tmp_path / "closed" / "a.dcm")
    write_cine(tmp_path / "b.dcm")
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    cines, [closed] = scan(tmp_path)
    assert [cine.path.name for cine in cines] == ["b.dcm"]
    assert closed[:3] == (tmp_path / "closed", "closed folder", "Permission denied")


def test_reasons_quote_neither_the_header_nor_a_path(tmp_path, recwarn):
    folder = tmp_path / "YAMADA TARO JIRO"
    folder.mkdir()
    (folder / "gone").symlink_to(folder / "nowhere at all")
    path = write_cine(folder / "a")
    path.write_bytes(path.read_bytes().replace(b"1.2.3.4\0", b"HANAKO-7"))  # an invalid UID
    bad = write_cine(folder / "b", video="1.2.5")
    name_the_samples(bad, b"TARO")
    cines, rejected = scan(folder)
    assert len(cines) == 1 and len(rejected) == 2 and not recwarn.list
    text = " ".join(f"{found} {dicom.public_words(found)}" for found in map(open_part, rejected))
    assert not [word for word in ("YAMADA", "TARO", "JIRO", "nowhere") if word in text]
    assert "TARO" in " ".join(found.detail for found in rejected)


def name_the_samples(path, word):
    """Put a word of four letters where Samples per Pixel belongs."""
    content = path.read_bytes()
    at = content.index(b"\x28\0\x02\0US")
    path.write_bytes(content[: at + 4] + b"IS\4\0" + word + content[at + 10 :])


def open_part(found):
    """What of a rejected file may be shown."""
    return found._replace(path=Path("x"), detail="")


def test_a_librarys_words_are_kept_without_what_they_quote(tmp_path):
    path = write_cine(tmp_path / "SUZUKI.dcm", PatientName="YAMADA^TARO")
    detail = "invalid 'YAMADA': 20210210 is no number, see TARO in /x/suzuki.dcm (12 of 24)"
    [shown] = [dicom.public_words(dicom.Rejected(path, "truncated", "in 3", detail))]
    assert shown.startswith("in 3: invalid") and "is no number" in shown and "of 24)" in shown
    assert not [w for w in ("YAMADA", "2021", "TARO", "suzuki") if w.lower() in shown.lower()]


@pytest.mark.realdata
def test_the_real_cine_reads(real_data):
    cines, rejected = scan(real_data)
    [cine] = cines
    assert (cine.n_frames, cine.rows, cine.columns) == (75, 512, 512)
    assert cine.frame_time_ms == pytest.approx(66.67, abs=0.01)
    assert (cine.primary_angle_deg, cine.secondary_angle_deg) == (40.1, 27.0)
    frame = next(iter_frames(cine.path, [40]))
    assert frame.shape == (512, 512) and 20 < frame.mean() < 230
    assert {found.reason for found in rejected} == {"not a DICOM file"}


def header(bits=8, **facts):
    dataset = Dataset()
    dataset.BitsStored, dataset.PhotometricInterpretation = bits, "MONOCHROME2"
    for name, value in facts.items():
        setattr(dataset, name, value)
    return dataset


def test_frame_times_angles_and_spacing_have_their_sources_and_are_nan_without():
    groups = [Dataset() for _ in range(4)]
    for i, group in enumerate(groups):
        group.FrameContentSequence, group.PositionerPositionSequence = [Dataset()], [Dataset()]
        group.FrameContentSequence[0].FrameReferenceDateTime = f"20200101120000.{i * i}"
        group.PositionerPositionSequence[0].PositionerPrimaryAngle = 10 * i
    grouped = {"PerFrameFunctionalGroupsSequence": groups}
    for facts, want in (
        ({"FrameTime": 66.5, "CineRate": 30}, [66.5] * 3),
        ({"FrameTimeVector": [0, 60, 70, 80]}, [60, 70, 80]),
        ({"FrameTimeVector": [0, 60, 80]}, [70] * 3),  # another length: the mean
        ({"FrameTime": 5, "FrameTimeVector": [0, 1, 2, 3]}, [5] * 3),
        ({"FrameTime": 5, "FrameTimeVector": [0, 1, 2, 3], **TO_VECTOR}, [1, 2, 3]),
        ({"FrameTime": 0, "FrameTimeVector": [0], "CineRate": 15}, [1000 / 15] * 3),
        ({"RecommendedDisplayFrameRate": 10}, [100] * 3),
        (grouped, [100, 300, 500]),
    ):  # fmt: skip
        assert frame_steps_ms(header(**facts), 4) == pytest.approx(want)
    groups[1].FrameContentSequence[0].FrameReferenceDateTime = "20200101120000.0001"  # 0.1 ms
    assert frame_steps_ms(header(**grouped, CineRate=10), 4) == pytest.approx([100] * 3)
    assert angles_deg(header(**grouped), "Primary", 4).tolist() == [0, 10, 20, 30]
    turning = {"PositionerPrimaryAngle": -30, "PositionerPrimaryAngleIncrement": [0, 1, 2]}
    assert angles_deg(header(**turning), "Primary", 3).tolist() == [-30, -29, -28]
    assert np.isnan(angles_deg(header(), "Secondary", 2)).all()
    flat = {"EstimatedRadiographicMagnificationFactor": 1.2, "ImagerPixelSpacing": [0, 0]}
    at_source = SPACING | {"DistanceSourceToPatient": 0}
    for facts in ({}, SPACING, at_source, DISTANCES, flat, {"CineRate": ""}):
        assert math.isnan(dicom.spacing_at_isocentre_mm(header(**facts)))
        assert np.isnan(frame_steps_ms(header(**facts), 3)).all()
    assert dicom.spacing_at_isocentre_mm(header(**SPACING, **DISTANCES)) == pytest.approx(0.2)
    factor = {"EstimatedRadiographicMagnificationFactor": 1.2}  # comes first
    got = dicom.spacing_at_isocentre_mm(header(**SPACING, **DISTANCES, **factor))
    assert got == pytest.approx(0.25)


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=3))
def test_a_path_that_was_written_down_is_found_again_whatever_its_bytes(names):
    names = [name.replace(b"/", b"\\").replace(b".", b"x") for name in names]
    folder, path = Path("/f"), Path("/f", *map(os.fsdecode, names))
    assert dicom.path_from(folder, dicom.path_within(path, folder)) == path
