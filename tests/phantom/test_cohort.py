import filecmp
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from cag_utils.keyframes.labels import SIX_CLASSES, read_frame_labels
from cag_utils.phantom.anatomy.lesions import KIND_SHARES
from cag_utils.phantom.clinic.findings import PLANS
from cag_utils.phantom.cohort import CohortSettings, make_cohort
from cag_utils.phantom.dicom import Identity, encode_jpeg, make_uid, write_xa, xa_dataset
from cag_utils.phantom.imaging.carm import CArm
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import CINE_SHARES, KINDS, draw_kind
from cag_utils.phantom.labels import NOISE_MODELS, NoiseModel, label
from cag_utils.phantom.stills import scene, still
from cag_utils.segments import GRADES, artery_of, laterality_of

TINY = CohortSettings("corpus", 7, 2, 2, 6, 8, size_px=128)
UID = re.compile(r"2\.25\.(0|[1-9]\d*)")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("one") / "corpus", TINY, n_workers=1)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def table(folder, stem):
    return pd.read_csv(folder / f"{stem}.csv", dtype={"video": str, "exam": str})


def same_files(one, other):
    assert files(one) == files(other)
    return not any(filecmp.cmpfiles(one, other, files(one), shallow=False)[1:])


def test_two_workers_or_two_processes_at_once_write_the_same_bytes_as_one(tmp_path):
    settings = CohortSettings("corpus", 5, 2, 1, 3, 3, 64)
    code = "import sys; from cag_utils.phantom.cohort import *\n"
    code += f"make_cohort(Path(sys.argv[1]), {settings!r}, int(sys.argv[2]))"
    call = [sys.executable, "-c", code, str(tmp_path / "both")]
    running = [subprocess.Popen([*call, n], stderr=subprocess.DEVNULL) for n in ("1", "2")]
    alone = make_cohort(tmp_path / "alone", settings, 1)
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    assert same_files(alone, tmp_path / "both") and len(files(alone)) == 2 + 2 + 2 + 8
    assert not [name for name in files(alone) if name.endswith(".part")]


def test_a_finished_cohort_is_not_touched_again(cohort):
    before = {p: p.stat().st_mtime_ns for p in cohort.rglob("*")}
    assert make_cohort(cohort, TINY, n_workers=1) == cohort
    assert {p: p.stat().st_mtime_ns for p in cohort.rglob("*")} == before
    with pytest.raises(ValueError, match="cohort with other seed"):
        make_cohort(cohort, replace(TINY, seed=8))


def test_an_interrupted_cohort_keeps_its_finished_patients(cohort, tmp_path):
    folder = shutil.copytree(cohort, tmp_path / "again")
    kept = folder / "cines" / "patient_0001" / "cine_01.dcm"
    stamp = kept.stat().st_mtime_ns
    (folder / "finished.json").unlink()
    (folder / "patients" / "patient_0002.json").write_text('{"finger', encoding="utf-8")  # cut off
    (folder / "cines" / "patient_0002" / "cine_02.dcm").unlink()
    make_cohort(folder, TINY, n_workers=1)
    assert kept.stat().st_mtime_ns == stamp and same_files(cohort, folder)


def test_another_version_of_the_phantom_draws_every_patient_anew(cohort, tmp_path, monkeypatch):
    folder = shutil.copytree(cohort, tmp_path / "old")
    path = folder / "cines" / "patient_0001" / "cine_01.dcm"
    path.write_bytes(b"of an older version")
    make_cohort(folder, TINY, n_workers=1)
    assert path.read_bytes() == b"of an older version"  # finished is finished
    monkeypatch.setattr("cag_utils.phantom.cohort.VERSION", -1)
    make_cohort(folder, TINY, n_workers=1)
    assert path.read_bytes() == (cohort / path.relative_to(folder)).read_bytes()


def test_truth_tables_agree_with_each_other(cohort):
    exams, videos = table(cohort, "truth_exams"), table(cohort, "truth_videos")
    frames, labels = table(cohort, "truth_frames"), table(cohort, "frame_labels")
    assert list(videos.columns) == [
        "video", "exam", "patient", "laterality", "view", "primary_angle_deg",
        "secondary_angle_deg", "kind", "lesions", "plan",
    ]  # fmt: skip
    assert videos["video"].is_unique and set(videos["exam"]) == set(exams["exam"])
    assert exams["patient"].is_unique and exams["patient"].str.contains("PHANTOM").all()
    assert labels[["video", "frame", "label"]].equals(frames[["video", "frame", "label"]])
    assert set(labels["reader"]) == {"phantom truth"} and set(labels["label"]) <= set(SIX_CLASSES)
    sides = frames["video"].map(videos.set_index("video")["laterality"])
    rule = ["opacified", "blur_mm", "foreshortening", "overlap", "standard_view"]
    shown = ["lesions", "plan", "ideal_lesions", "ideal_plan"]
    assert list(frames.columns) == ["video", "frame", "label", *rule, "contrast", *shown]
    rows = zip(sides, frames["label"], frames[rule].to_numpy(object), strict=True)
    for side, found, measured in rows:
        assert label(side, *measured) == found
    for _, exam in exams.iterrows():
        mine = videos[videos["exam"] == exam["exam"]]
        assert set(mine["laterality"]) == {"LCA", "RCA"}
        for _, video in mine.iterrows():
            side = video["laterality"]
            own = [x for x in json.loads(exam["lesions"]) if laterality_of(x["segment"]) == side]
            assert json.loads(video["lesions"]) == own and len(own) <= 2
            assert json.loads(exam["plan"])[side] == video["plan"]
            for x in own:
                assert x["percent"] in GRADES and x["artery"] == artery_of(x["segment"])
        lesions, shapes = json.loads(exam["lesions"]), json.loads(exam["lesion_shapes"])
        for lesion, shape in zip(lesions, shapes, strict=True):
            assert shape["segment"] == lesion["segment"] and shape["kind"] in KIND_SHARES
            assert shape["length_mm"] > 0 and (not shape["collateral"] or lesion["percent"] == 100)


def test_a_noise_source_is_one_entry_and_reaches_the_sheets(tmp_path, monkeypatch):
    hasty = NoiseModel("hasty reader", log_bias=0.0, share_bias=0.0, cine_error=2.0)
    monkeypatch.setattr("cag_utils.phantom.labels.NOISE_MODELS", (*NOISE_MODELS, hasty))
    settings = CohortSettings("cnn", 7, 1, 2, 12, 12, size_px=64)
    folder = make_cohort(tmp_path / "cnn", settings, 1)
    sheets = read_frame_labels(folder / "noise_model_labels.csv")
    by_reader = {name: own["label"].tolist() for name, own in sheets.groupby("reader")}
    assert list(by_reader) == ["hasty reader", "noise model A", "noise model B"]
    truth = read_frame_labels(folder / "frame_labels.csv")
    for _, own in sheets.groupby("reader"):
        assert own[["video", "frame"]].reset_index(drop=True).equals(truth[["video", "frame"]])
        assert (own["label"].str[:3].to_numpy() == truth["label"].str[:3].to_numpy()).all()
    assert len(truth) == 24 and not (folder / "reports.csv").exists()
    monkeypatch.undo()
    plain = read_frame_labels(make_cohort(tmp_path / "b", settings, 1) / "noise_model_labels.csv")
    for name, own in plain.groupby("reader"):  # the last entry shifts nobody's numbers
        assert by_reader[name] == own["label"].tolist()


def test_clinic_tables_cover_every_exam_and_frame(tmp_path):
    slow = replace(TINY, n_patients=3, frame_rate=3.0)  # so that contrast comes within 8 frames
    cohort = make_cohort(tmp_path / "corpus", slow, 1)
    reports, findings = table(cohort, "reports"), table(cohort, "findings")
    assert list(reports.columns) == ["exam", "report_ja", "report_en"]
    assert list(findings) == ["video", "frame", "findings_ja", "findings_en", "validated_by"]
    assert set(reports["exam"]) == set(table(cohort, "truth_exams")["exam"])
    videos = table(cohort, "truth_videos").set_index("video")
    frames, sights = table(cohort, "truth_frames"), table(cohort, "truth_lesions")
    assert findings[["video", "frame"]].equals(frames[["video", "frame"]])
    assert set(findings["validated_by"]) == {"phantom truth"}
    visible = sights[sights["visible"]].groupby(["video", "frame"])["segment"].agg(set)
    each = videos["lesions"].map(lambda text: len(json.loads(text)))
    assert len(sights) == frames["video"].map(each).sum() and 0 < len(visible) < len(frames)
    for text, frame in zip(findings.itertuples(), frames.itertuples(), strict=True):
        lesions, ideal = json.loads(frame.lesions), json.loads(frame.ideal_lesions)
        named = {x["segment"] for x in lesions}
        assert named == visible.get((frame.video, frame.frame), set())
        assert {x["segment"] for x in ideal} <= named
        assert all(x in json.loads(videos.loc[frame.video, "lesions"]) for x in lesions)
        for written in (text.findings_en, text.findings_ja):
            assert {int(n) for n in re.findall(r"#(\d+)", written)} == named
            assert all(f"{x['percent']}%" in written for x in lesions)
            assert written.endswith(PLANS[frame.plan][written == text.findings_ja])
        assert (frame.plan == "none") == (not lesions)


def test_every_stream_belongs_to_one_cohort_patient_and_purpose():
    purposes = [("shot", 1), ("shot", 2), ("film", 1), ("tree", "LCA"), ("tree", "RCA")]
    words = [(n, s, i, w) for n in ("cnn", "corpus") for s in (1, 2) for i in (0, 1)
             for w in purposes]  # fmt: skip
    cohorts = [(replace(TINY, name=name, seed=seed), i, w) for name, seed, i, w in words]
    first = {settings.streams(i)(*w).integers(2**62) for settings, i, w in cohorts}
    assert len(first) == len(words)


def test_every_cine_is_a_valid_xa_object(cohort):
    videos = table(cohort, "truth_videos").set_index("video")
    frames = table(cohort, "truth_frames").groupby("video").size()
    for path in sorted((cohort / "cines").rglob("*.dcm")):
        data = pydicom.dcmread(path)
        row = videos.loc[data.SOPInstanceUID]
        assert data.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.50"
        assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.12.1" and data.Modality == "XA"
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
        for uid in (data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID):
            assert UID.fullmatch(uid) and len(uid) <= 64
        assert data.StudyInstanceUID == row["exam"] and data.PatientID == row["patient"]
        assert str(data.PatientName).startswith("PHANTOM")
        assert data.ImageType == ["ORIGINAL", "PRIMARY", "SINGLE PLANE"]
        assert data.FrameIncrementPointer == 0x00181063
        assert float(data.FrameTime) == pytest.approx(1000 / 15, abs=1e-3)
        assert data.NumberOfFrames == frames[data.SOPInstanceUID]
        assert (data.Rows, data.Columns, data.BitsAllocated, data.BitsStored) == (128, 128, 8, 8)
        assert data.PhotometricInterpretation == "MONOCHROME2" and data.SamplesPerPixel == 1
        assert float(data.PositionerPrimaryAngle) == row["primary_angle_deg"]
        assert float(data.PositionerSecondaryAngle) == row["secondary_angle_deg"]
        ratio = float(data.DistanceSourceToDetector) / float(data.DistanceSourceToPatient)
        enlarged = float(data.EstimatedRadiographicMagnificationFactor)
        assert enlarged == pytest.approx(ratio, rel=1e-3)
        assert data.ImagerPixelSpacing[0] == data.ImagerPixelSpacing[1]
        assert (data.WindowCenter, data.WindowWidth) == (128, 256)
        assert not [name for name in REQUIRED if name not in data]
        assert data.LossyImageCompression == "01" and data.PixelIntensityRelationship == "DISP"


# PS3.3 A.14.3: type 1 and 2 attributes of the mandatory modules
REQUIRED = """PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime
ReferringPhysicianName StudyID AccessionNumber Modality SeriesInstanceUID SeriesNumber
Manufacturer InstanceNumber PatientOrientation SamplesPerPixel PhotometricInterpretation
Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelData FrameTime
NumberOfFrames FrameIncrementPointer ImageType PixelIntensityRelationship KVP
RadiationSetting ExposureTime XRayTubeCurrent Exposure PositionerMotion
PositionerPrimaryAngle PositionerSecondaryAngle ContrastBolusAgent SOPClassUID
SOPInstanceUID""".split()


def test_pixels_survive_the_file_and_decoders_agree(tmp_path):
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    frames = np.stack([ramp, 200 - ramp, np.full_like(ramp, 90)])
    write_xa(tmp_path / "a.dcm", xa_dataset(frames, identity(), ARM, 12.5, 0.006))
    data = pydicom.dcmread(tmp_path / "a.dcm")
    decoder = get_decoder(data.file_meta.TransferSyntaxUID)
    got = {name: decoder.as_array(data, decoding_plugin=name)[0] for name in ("gdcm", "pillow")}
    np.testing.assert_array_equal(got["gdcm"], got["pillow"])
    np.testing.assert_array_equal(got["gdcm"], data.pixel_array)
    coded = generate_frames(data.PixelData, number_of_frames=3)
    plain = [np.array(Image.open(BytesIO(x))) for x in coded]
    np.testing.assert_array_equal(got["pillow"], plain)
    assert np.abs(got["gdcm"].astype(int) - frames).max() <= 5  # quality 85 on smooth pictures
    assert float(data.FrameTime) == 80 and data.CineRate == 12


BLACK = np.zeros((1, 64, 64), np.uint8)
ARM = CArm(-30.0, 25.0, 1090.0, 780.0, 0.3, 64)


def identity(patient="PHANTOM-CNN-0001"):
    return Identity(patient, "F", 71, *map(make_uid, "abc"), 1, "20200101", "090100")


def test_angles_keep_their_signs_and_uids_depend_on_their_parts_alone():
    data = xa_dataset(BLACK, identity(), ARM, 15, 0.006)
    assert (data.PositionerPrimaryAngle, data.PositionerSecondaryAngle) == (-30, 25)  # RAO, CRA
    assert str(data.PatientName) == "PHANTOM^CNN 0001" and data.PatientAge == "071Y"
    assert make_uid("cine", 1, 2) == make_uid("cine", 1, 2) != make_uid("cine", 12)
    assert all(UID.fullmatch(make_uid(i)) and len(make_uid(i)) <= 64 for i in range(50))


@pytest.mark.parametrize("cohort", ["cnn", "corpus"])
def test_cines_come_in_the_shares_of_their_cohort(cohort):
    shares = CINE_SHARES[cohort]
    assert set(shares) <= set(KINDS) and sum(shares.values()) == pytest.approx(1)
    rng = np.random.default_rng(0)
    drawn = [draw_kind(rng, cohort) for _ in range(2000)]
    for kind in KINDS:  # four standard errors
        expected = shares.get(kind, 0)
        spread = 4 * np.sqrt(expected * (1 - expected) / 2000)
        assert abs(drawn.count(kind) / 2000 - expected) <= spread


# --- stills ---


def test_stills_are_key_frames_and_their_truth_lies_in_the_picture():
    shown = [still(seed, 96) for seed in range(20)]
    np.testing.assert_array_equal(shown[3].image, still(3, 96).image)
    assert (shown[3].image != shown[4].image).any()
    better = [got.label == f"{got.laterality}_better" for got in shown]
    assert sum(better) >= 14  # others are foreshortened, overlap or slip out of the field
    for got in shown:
        assert got.image.shape == (96, 96) and got.image.dtype == np.uint8
        assert got.points.dtype == np.float32 and got.points.shape == (len(got.segments), 2)
        assert got.points.min() > 0 and got.points.max() < 95
        assert {laterality_of(int(s)) for s in got.segments} == {got.laterality}
        assert got.lesion_points.shape[0] <= len(got.lesions) and got.lesion_points.shape[1] == 3
        assert all(laterality_of(x["segment"]) == got.laterality for x in got.lesions)


def test_centreline_points_lie_on_dark_vessels():
    darker = []
    for seed in range(4):
        got = still(seed, 256)
        u, v = np.rint(got.points).astype(int).T
        near = [got.image[np.clip(v + a, 0, 255), np.clip(u + a, 0, 255)] for a in (12, -12)]
        darker.append(np.mean(near) - got.image[v, u].mean())
    assert np.mean(darker) > 5 and min(darker) > 0


@pytest.mark.parametrize("segment", range(1, 16))
def test_a_wanted_lesion_is_the_one_shown(segment):
    got = still(segment, 96, lesion={"segment": segment, "percent": 90})
    assert got.lesions == [{"segment": segment, "percent": 90, "artery": artery_of(segment)}]
    assert got.shown in ([], got.lesions)
    assert got.laterality == laterality_of(segment)
    if len(got.lesion_points):
        at = got.lesion_points[0]
        assert at[2] == 90
        nearest = np.argmin(np.hypot(*(got.points - at[:2]).T))
        assert np.hypot(*(got.points[nearest] - at[:2])) < 2


def test_a_still_knows_the_lumen_along_its_vessels():
    got = still(3, 256, lesion={"segment": 7, "percent": 90})
    assert got.width_px.shape == got.narrowed.shape == got.segments.shape
    assert got.narrowed.max() == pytest.approx(0.9, abs=0.01)
    assert set(got.segments[got.narrowed > 0.5]) <= {6, 7, 8, 9, 10}  # a lesion may reach a fork
    neck, healthy = got.narrowed > 0.85, (got.segments == 7) & (got.narrowed == 0)
    assert got.width_px[neck].max() < 0.5 * np.median(got.width_px[healthy])


MANY = [{"segment": s, "percent": 75} for s in (6, 11, 12)]


def test_a_still_may_be_taken_in_another_moment_and_show_several_lesions():
    rest, beat = still(5, 96, lesion=MANY), still(5, 96, lesion=MANY, phase=0.3, wait_s=0.2)
    assert [x["segment"] for x in rest.lesions] == [6, 11, 12]
    assert rest.laterality == "LCA" and not np.array_equal(rest.image, beat.image)


def test_a_scene_is_filmed_as_it_was_set():
    one, again = (scene(3, "RCA", n_frames=4, size_px=96, view="LAO") for _ in range(2))
    frames, truth = film(*one)
    assert frames.shape == (4, 96, 96) and len(truth.labels("RCA")) == 4
    assert one.tree.laterality == "RCA" and one.shot.view == "LAO"
    np.testing.assert_array_equal(frames, film(*again)[0])
    tight = scene(3, lesion={"segment": 7, "percent": 90}, n_frames=1, size_px=96)
    assert [(x.segment, x.percent) for x in tight.tree.lesions] == [(7, 90)]


@pytest.mark.parametrize(("call", "match"), [
    (lambda: replace(TINY, name="test"), "a cohort is one of"),
    (lambda: replace(TINY, n_patients=0), "needs patients"),
    (lambda: replace(TINY, seed=-1), "seed >= 0"),
    (lambda: replace(TINY, frames_low=9), "must not exceed frames_high"),
    (lambda: replace(TINY, size_px=32), "size_px must be >= 64"),
    (lambda: make_cohort("unused", TINY, n_workers=0), "n_workers must be at least 1"),
    (lambda: xa_dataset(BLACK[0], identity(), ARM, 15, 0.006), "T, H, W"),
    (lambda: xa_dataset(BLACK.astype(float), identity(), ARM, 15, 0.006), "uint8"),
    (lambda: xa_dataset(BLACK, identity("Doe"), ARM, 15, 0.006), "must say PHANTOM"),
    (lambda: encode_jpeg(np.zeros((4, 4))), "uint8"),
    (lambda: still(-1, 64), "seed must be 0 or more"),
    (lambda: scene(-1), "seed must be 0 or more"),
    (lambda: still(0, 64, "LAD"), "laterality must be LCA or RCA"),
    (lambda: still(0, 64, lesion={"segment": 2, "percent": 80}), "grades are"),
    (lambda: still(0, 64, "LCA", {"segment": 2, "percent": 90}), "seen from the RCA"),
    (lambda: still(0, 64, lesion=[*MANY, {"segment": 2, "percent": 75}]), "2 is seen from the R"),
])  # fmt: skip
def test_bad_settings_pixels_and_stills_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
