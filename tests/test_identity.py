import hashlib
import hmac
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill as pm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.identity import PREFIXES, find_identifying, pseudonym, save_links
from cag_utils.phantom.clinic.notes import write_report
from cag_utils.phantom.clinic.patients import draw_record
from cag_utils.profiles import load_profile
from cag_utils.study import pseudonym_key
from tests.cines.test_dicom import name_the_samples, write_cine
from tests.cines.test_sampling import pulsing
from tests.conftest import ROOT

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "00_frame_sampling.ipynb"


def test_worked_by_hand_and_bad_input_is_refused():
    want = hmac.new(b"key", b"video:1.2.3", hashlib.sha256).hexdigest()[:12]
    assert pseudonym("video", "1.2.3", b"key") == f"vi-{want}"
    with pytest.raises(ValueError, match="did you mean 'patient'"):
        pseudonym("patent", "7", b"k")
    with pytest.raises(ValueError, match="empty patient id"):
        pseudonym("patient", "", b"k")


@settings(deadline=None, max_examples=30)
@given(st.text(min_size=1, max_size=30), st.sampled_from(sorted(PREFIXES)), st.binary(min_size=1))
def test_stable_keyed_and_opaque(value, kind, key):
    got = pseudonym(kind, value, key)
    assert got == pseudonym(kind, value, key) != pseudonym(kind, value, key + b"x")
    assert len({pseudonym(k, value, key).split("-")[1] for k in PREFIXES}) == len(PREFIXES)
    assert re.fullmatch(r"(pt|ex|vi|fi|rd)-[0-9a-f]{12}", got)


@pytest.fixture
def private(tmp_path, monkeypatch):
    """Where a repository keeps what links ids to people."""
    monkeypatch.setenv("CAG_ROOT", str(tmp_path))
    return tmp_path / "data" / "private"


def test_links_are_private_and_own_files_get_one_key_never_the_phantoms_public_one(private):
    with ThreadPoolExecutor(8) as pool:  # notebooks that start together
        keys = list(pool.map(pseudonym_key, [load_profile("paper")] * 8))
    smoke = load_profile("smoke")
    [key] = {*keys, pseudonym_key(smoke, own_data=True)}  # one archive, one set of ids
    assert len(key) == 32 and key != pseudonym_key(smoke) == b"phantom:smoke"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    links = save_links("demo", pd.DataFrame({"video_id": ["vi-1"], "path": ["a/b.dcm"]}))
    assert links == private / "demo.csv" and pd.read_csv(links)["path"].tolist() == ["a/b.dcm"]
    for path in (private / "pseudonym.key", links):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_that_is_being_written_is_waited_for_and_half_a_key_refused(private, monkeypatch):
    path = private / "pseudonym.key"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr("cag_utils.study.time.sleep", lambda _: path.write_bytes(bytes(range(32))))
    assert pseudonym_key(load_profile("paper")) == bytes(range(32))
    monkeypatch.setattr("cag_utils.study.time.sleep", lambda _: None)
    ticks = iter(range(100))
    monkeypatch.setattr("cag_utils.study.time.monotonic", lambda: next(ticks))
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="holds 5 of 32 bytes"):
        pseudonym_key(load_profile("paper"))


FULL = """
import resource, signal
import pandas as pd
from cag_utils.cines.sampling import sample_folder
from cag_utils.identity import save_links
from cag_utils.profiles import load_profile
from cag_utils.study import pseudonym_key, root, write_json
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
for write in (
    lambda: write_json(root() / "metrics.json", {"new": "x" * 99}),
    lambda: save_links("demo", pd.DataFrame({"new": ["x" * 99]})),
    lambda: sample_folder(root() / "in", root() / "out", b"key"),
    lambda: print(len(pseudonym_key(load_profile("paper")))),
):
    try:
        write()
    except OSError as error:
        print(error)
"""


def test_on_a_full_disk_each_write_says_so_and_nothing_is_lost(private, tmp_path):
    (tmp_path / "metrics.json").write_text("old", encoding="utf-8")
    save_links("demo", pd.DataFrame({"old": [1]}))
    (tmp_path / "in").mkdir()
    write_cine(tmp_path / "in" / "a.dcm", pulsing())
    command = [sys.executable, "-c", FULL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    told = done.stdout.splitlines()
    assert len(told) == 4 and all("File too large" in line for line in told[:3]), done
    assert ".png" in told[2]
    assert (tmp_path / "metrics.json").read_text(encoding="utf-8") == "old"
    assert (private / "demo.csv").read_text(encoding="utf-8") == "old\n1\n"
    assert not [p for p in tmp_path.rglob("*") if ".part" in p.name or p.name.endswith(".key")]
    assert len(pseudonym_key(load_profile("paper"))) == 32


IDENTITIES = {
    "PatientName": "YAMADA^TARO", "PatientID": "PID-0815-77", "PatientBirthDate": "19370114",
    "StudyDate": "20210210", "AccessionNumber": "ACC55123", "InstitutionName": "HOSPITAL-SAKURA",
    "ReferringPhysicianName": "SUZUKI^HANAKO",
    "StudyInstanceUID": "1.2.392.200036.9116.7777", "SeriesInstanceUID": "1.2.392.200036.9116.8888",
}  # fmt: skip
VIDEO = "1.2.392.200036.9116.9999"
PLACES = "KIMURA JIRO CAG_20210210 brief_an_ITO 19520607 MORI KATO cut.dcm odd.dcm".split()


@pytest.fixture
def hospital(tmp_path):
    """Cines and other files whose names, folders and headers all say who it is."""
    folder = tmp_path / "archive" / "KIMURA JIRO X" / "CAG_20210210"
    folder.mkdir(parents=True)
    write_cine(folder / "KIMURA.dcm", pulsing(48), video=f"{VIDEO}.1", **IDENTITIES)
    cut = write_cine(folder / "cut.dcm", pulsing(), video=f"{VIDEO}.2", **IDENTITIES)
    cut.write_bytes(cut.read_bytes()[:-300])
    header = write_cine(folder / "h.dcm", video=f"{VIDEO}.3", NumberOfFrames=1234, **IDENTITIES)
    header.write_bytes(header.read_bytes().replace(b"1234", b"MORI"))
    samples = write_cine(folder / "s.dcm", video=f"{VIDEO}.6", **IDENTITIES)
    name_the_samples(samples, b"KATO")
    odd = write_cine(folder / "odd.dcm", pulsing(), video=f"{VIDEO}.4", **IDENTITIES)
    odd.write_bytes(odd.read_bytes().replace(f"{VIDEO}.4".encode(), f"{VIDEO}.Y".encode()))
    write_cine(folder / "ct", video=f"{VIDEO}.5", SOPClassUID="1.2", Modality="ct", **IDENTITIES)
    (folder / "brief_an_ITO.19520607").write_text("Dear Dr. ITO", encoding="utf-8")
    (folder / "KIMURA JIRO gone").symlink_to(folder / "no such KIMURA")
    return tmp_path / "archive"


@pytest.mark.notebook
def test_no_identity_in_anything_a_run_writes(hospital, tmp_path, monkeypatch):
    monkeypatch.setenv("CAG_ROOT", str(tmp_path / "root"))
    out, executed = tmp_path / "out", tmp_path / "executed.ipynb"
    told = {"out_root": str(out), "profile": "smoke", "n_workers": 1, "data_dir": str(hospital)}
    pm.execute_notebook(NOTEBOOK, executed, told, cwd=tmp_path, progress_bar=False)
    [run] = (out / "smoke" / "00_frame_sampling").iterdir()
    rejected = pd.read_csv(run / "rejected.csv")
    assert len(pd.read_csv(run / "videos.csv")) == 4 and rejected["frame"].isna().sum() == 4
    assert rejected["words"].str.contains("invalid literal").any() and rejected["frame"].any()
    shown = [c.outputs for c in nbformat.read(executed, 4).cells if c.cell_type == "code"]
    written = {path.relative_to(out): path for path in out.rglob("*")}
    # A picture's own grey levels spell any four letters by chance; its text lies outside of them.
    grey = partial(re.compile(b"IDAT.*IEND", re.DOTALL).sub, b"")
    content = {str(name): grey(p.read_bytes()) for name, p in written.items() if p.is_file()}
    assert {".csv", ".png", ".svg", ".json"} <= {Path(name).suffix for name in content}
    content |= {"file names": " ".join(content).encode(), "printed": str(shown).encode()}
    secrets = [*IDENTITIES.values(), *PLACES, VIDEO, str(hospital)]
    secrets += [part for s in secrets for part in s.split("^") if len(part) > 3]
    leaks = [(s, name) for s in secrets for name, data in content.items() if s.encode() in data]
    assert not leaks
    private = (tmp_path / "root" / "data" / "private").glob("*_links.csv")
    links = pd.concat([pd.read_csv(path) for path in private])
    assert links["file_id"].nunique() == 8 and links["path"].str.contains("KIMURA").all()
    assert np.isin(pd.read_csv(run / "rejected.csv")["file_id"], links["file_id"]).all()


def test_what_names_somebody_in_a_note_is_flagged_and_clinical_numbers_are_not():
    told = {
        "date": ["2021/02/10", "令和3年2月10日に", "R3.2.10 CAG", "on 12 March 2021", "3/12/2021"],
        "phone": ["TEL 03-1234-5678", "09012345678", "call +81 90 1234 5678"],
        "id": ["ID:00123456", "カルテ番号 12345", "1.2.392.200036.9116.2", "MRN 55123"],
        "mail": ["x.y@example.org"],
        "name": ["Dr. Suzuki reports", "山田太郎様", "術者：鈴木", "YAMADA^TARO", "佐藤 先生から"],
    }  # fmt: skip
    for kind, texts in told.items():
        found = find_identifying(pd.Series(texts))
        assert set(found.loc[found["kind"] == kind, "row"]) == set(range(len(texts))), kind
    clean = [
        "84-year-old male. LAD #6-7 75-90%, FFR 0.78. CK 2820 U/L, BP 120/80, LVEF 35.5 %.",
        "84歳男性、労作時胸痛。#6に90%狭窄。PCIを推奨する。患者様へ説明済み。奥様同席。",
        "2015年PCI, 3/12 stents, No. 3",
    ]  # fmt: skip
    assert find_identifying(pd.Series([*clean, None], index=list("abcd"))).empty


def test_no_note_of_the_phantom_is_flagged():
    notes = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        notes += write_report(rng, draw_record(rng, [], "MF"[seed % 2])).values()
    assert find_identifying(pd.Series(notes)).empty
