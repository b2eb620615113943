"""The README's worked example, run word for word on an archive that says everywhere who it is."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom import uid

from cag_utils.cines.dicom import iter_frames
from cag_utils.cohorts import ensure_phantom
from cag_utils.profiles import load_profile
from cag_utils.study import read_json
from tests.conftest import ROOT

pytestmark = pytest.mark.notebook
NO_HOME = Path("/proc/no_home")  # nobody, not even root, can make it
EXAM, VIDEO = "1.2.392.200036.9125.2.7", "1.2.392.200036.9125.4.7"
IN_HEADERS = """PatientName PatientID OtherPatientIDs PatientAddress PatientMotherBirthName
    PatientTelephoneNumbers ReferringPhysicianName PerformingPhysicianName OperatorsName StudyID
    InstitutionName InstitutionAddress StationName AccessionNumber StudyDescription AdmissionID
    SeriesDescription ProtocolName RequestingPhysician PhysiciansOfRecord Occupation
    PatientComments ImageComments AdditionalPatientHistory DeviceSerialNumber ContentCreatorName
    RequestedProcedureDescription PerformedProcedureStepDescription CurrentPatientLocation
    NameOfPhysiciansReadingStudy InstitutionalDepartmentName CountryOfResidence
    ManufacturerModelName IssuerOfPatientID DerivationDescription FrameComments""".split()
NAMED = {name: f"KUROSAWA{i:02d}" for i, name in enumerate(IN_HEADERS)}
NAMED |= {f"private {i}": f"ISHIDA{i:02d}" for i in range(6)}
NAMED |= {f"overlay {i}": f"NODA{i:02d}" for i in range(2)}
NAMED |= {f"{what} {i}": f"{what.upper()}MORI{i}" for what in ("file", "folder") for i in range(4)}
NAMED |= {f"pixels {i}": f"OKUDA{i:02d}" for i in range(6)}
NAMED |= {"reader": "Dr_Hayashi", "validated_by": "Prof_Hirano"}
DATES = {"PatientBirthDate": "19370114", "StudyDate": "20210210", "SeriesDate": "20210211"}


def blocks(kind: str) -> list[str]:
    """The README's blocks of a kind, within the worked example."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("<!-- own data: a test runs this -->")[1].split("<!-- end")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def plant(path: Path, target: Path, number: int, text: str, renamed: dict[str, str]) -> None:
    """Write a phantom's cine as a hospital has it: names in every place, `text` in the pixels."""
    dataset = pydicom.dcmread(path)
    patient = dataset.PatientID
    for name in IN_HEADERS:
        setattr(dataset, name, NAMED[name])
    dataset.PatientID = f"{NAMED['PatientID']}-{patient}"
    for name, value in (DATES | renamed).items():
        setattr(dataset, name, value)
    block = dataset.private_block(0x0011, NAMED["private 0"], create=True)
    for i in range(1, 6):
        value = NAMED[f"private {i}"]
        block.add_new(i, *(("UN", value.encode()) if i > 3 else ("LO", value)))
    for element, name in ((0x0022, "overlay 0"), (0x1500, "overlay 1")):
        dataset.add_new((0x6000, element), "LO", NAMED[name])
    if text:
        frames = [cv2.putText(x.copy(), text, (40, 200), 0, 0.6, 255, 1) for x in iter_frames(path)]
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.PixelData = np.stack(frames).tobytes()
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", False
    target = target / NAMED[f"folder {number % 4}"] / f"{NAMED[f'file {number % 4}']}_{number}.dcm"
    target.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(target, implicit_vr=False, little_endian=True)


def fill_archive(hospital: Path) -> None:
    """Cines and tables of the smoke profile's phantom, under other names."""
    phantom = ensure_phantom(load_profile("smoke"))
    for cohort in ("cnn", "corpus"):
        cines = sorted((phantom / cohort / "cines").rglob("*.dcm"))
        for i, path in enumerate(cines):
            told = NAMED[f"pixels {i // 4}"] if cohort == "cnn" and i % 4 == 1 and i < 24 else ""
            renamed = {"StudyInstanceUID": EXAM} if cohort == "corpus" and i < 2 else {}
            renamed |= {"SOPInstanceUID": VIDEO} if renamed and i == 0 else {}
            plant(path, hospital / cohort / "cines", i, told, renamed)
    for name, told in zip(("reports", "findings"), blocks("csv"), strict=True):
        columns = pd.read_csv(io.StringIO(told)).columns
        table = pd.read_csv(phantom / "corpus" / f"{name}.csv", dtype=str)
        if name == "findings":
            table["validated_by"] = NAMED["validated_by"]
        text = told + table[columns].to_csv(index=False, header=False)
        (hospital / "corpus" / f"{name}.csv").write_text(text, encoding="utf-8")


def run(block: str, root: Path) -> None:
    """Run it as who has no home to write to, as on many a compute node."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    env |= {"CAG_ROOT": str(root), "PYTHONPATH": str(ROOT), "CORES": "2", "HOME": str(NO_HOME)}
    env["JUPYTER_RUNTIME_DIR"] = str(root / "jupyter")  # README: papermill by hand needs it
    done = subprocess.run(["bash", "-ec", block], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.fixture(scope="module")
def root(once):
    """A repository beside this one in which the README's example was followed."""
    return once("own_data", follow_readme)


def follow_readme(root: Path) -> None:
    names = "notebooks cag_utils Snakefile Makefile pyproject.toml requirements.lock"
    for name in names.split():
        (root / name).symlink_to(ROOT / name)
    (root / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != "installed":
            (root / ".venv" / path.name).symlink_to(path)
    (root / ".venv" / "installed").touch()
    hospital = root / "data" / "hospital"
    fill_archive(hospital)
    first, second = blocks("sh")
    second = f"{first.splitlines()[0]}\n{second}"  # the same shell
    run(first, root)
    sheet = pd.read_csv(hospital / "cnn" / "frame_labels.csv", dtype=str)
    links = pd.read_csv(root / "data" / "private" / "hospital_small_cnn_links.csv", dtype=str)
    phantom = ensure_phantom(load_profile("smoke"))
    truth = pd.read_csv(phantom / "cnn" / "frame_labels.csv", dtype=str)
    truth["video"] = truth["video"].map(dict(zip(links["video"], links["video_id"], strict=True)))
    labels = truth.set_index(["video", "frame"])["label"]
    sheet["label"] = labels.loc[pd.MultiIndex.from_frame(sheet[["video", "frame"]])].to_numpy()
    sheet.assign(reader=NAMED["reader"]).to_csv(hospital / "cnn" / "frame_labels.csv", index=False)
    run(second, root)


def test_the_readmes_example_leads_to_a_corpus(root):
    runs = root / "outputs" / "hospital_small"
    assert read_json(runs / "02_confusion_matrices" / "six_class" / "metrics.json")
    pairs = pd.read_csv(runs / "03_build_corpus" / "all" / "pairs.csv")
    assert len(pairs) > 10
    lost = pd.read_csv(runs / "03_build_corpus" / "all" / "unpaired.csv")
    unknown = lost[lost["why"].str.contains("is the id right")]["what"].value_counts()
    assert unknown["exam"] == unknown["video"] == 1  # the names that these two had before
    assert pairs["validated_by"].str.fullmatch("rd-[0-9a-f]{12}").all()
    assert pairs["validated_by"].nunique() <= 2


def test_nobody_is_named_below_outputs(root):
    assert len(NAMED) + len(DATES) >= 60
    found = [p for p in (root / "outputs").rglob("*") if ".snakemake" not in p.parts]
    found = [*filter(Path.is_file, found), root / "sampled.ipynb", root / "corpus.ipynb"]
    content = {str(p.relative_to(root)): p.read_bytes() for p in found}
    content["names"] = " ".join(content).encode()
    archive = [pydicom.dcmread(p, stop_before_pixels=True) for p in (root / "data").rglob("*.dcm")]
    secrets = {*NAMED.values(), *DATES.values()}
    secrets |= {str(x[n].value) for x in archive for n in ("SOPInstanceUID", "StudyInstanceUID")}
    leaks = [(s, name) for s in secrets for name, data in content.items() if s.encode() in data]
    assert len(archive) == 44 and not leaks


def test_text_in_pixels_is_in_quarantine_alone(root):
    from rapidocr import RapidOCR

    runs = root / "outputs" / "hospital_small" / "00_frame_sampling"
    rejected = {c: pd.read_csv(runs / c / "rejected.csv")["reason"] for c in ("cnn", "corpus")}
    assert (rejected["cnn"] == "burnt-in text").sum() == 6
    assert not (rejected["corpus"] == "burnt-in text").any()  # of 20 clean ones
    review = sorted((root / "data" / "private" / "hospital_small_cnn_text").glob("*.png"))
    assert len(review) == 6
    read = RapidOCR()

    def words(pictures):
        found = []
        for i in range(0, len(pictures), 16):
            part = [cv2.resize(cv2.imread(str(x), 0), (256, 256)) for x in pictures[i : i + 16]]
            part += [np.zeros_like(part[0])] * (16 - len(part))
            sheet = cv2.vconcat([cv2.hconcat(part[j : j + 4]) for j in range(0, 16, 4)])
            found += read(cv2.cvtColor(sheet, cv2.COLOR_GRAY2BGR)).txts or ()
        return " ".join(found).upper()

    pictures = sorted(runs.rglob("frames/**/*.png"))
    assert len(pictures) > 100 and "OKUDA" not in words(pictures)
    both = read(cv2.imread(str(review[0]))).txts  # it can read them
    assert "OKUDA" in " ".join(both).upper()
