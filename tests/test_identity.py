import hashlib
import hmac
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pandera.pandas as pa
import papermill as pm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.identity import PREFIXES, pseudonym, read_table, save_links
from cag_utils.profiles import load_profile
from cag_utils.study import pseudonym_key
from tests.cines.test_dicom import name_the_samples, write_cine
from tests.cines.test_sampling import pulsing

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
    assert re.fullmatch(r"(pt|ex|vi|fi)-[0-9a-f]{12}", got)


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


COLUMNS = {"id": pa.Column(str, pa.Check.str_length(min_value=1))}
COLUMNS |= {"n": pa.Column(int, pa.Check.ge(0)), "note": pa.Column(str, required=False)}
SCHEMA = pa.DataFrameSchema(COLUMNS, unique=["id"], coerce=True)
ROW_RULES = {"id": "must not be empty", "n": "must be a whole number from 0"}


def read_text(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding=encoding)
    return read_table(path, SCHEMA, ROW_RULES, "this id stands above already")


def test_reads_what_excel_writes_strips_blanks_and_drops_more_columns(tmp_path):
    table = read_text(tmp_path, "extra,id,n\nx, 所見 ,3\n", encoding="utf-8-sig")
    assert list(table.columns) == ["id", "n", "note"]
    assert table.iloc[0].tolist() == ["所見", 3, ""]


@pytest.mark.parametrize("text, match", [
    ("id\na\n", r"t.csv: no column \['n'\]; it has \['id'\]"),
    ("id,n\na,1\nb,-2\nc,-3\n", r"row 3: n '-2' must be a whole number from 0 .2 rows"),
    ("id,n\n,1\n", "row 2: id '' must not be empty"),
    ("id,n\na,1\nb,1\na,2\n", "row 4: this id stands above already"),
])  # fmt: skip
def test_an_error_names_file_row_and_rule(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        read_text(tmp_path, text)


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
    content = {str(name): p.read_bytes() for name, p in written.items() if p.is_file()}
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
