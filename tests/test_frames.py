import os

import cv2
import numpy as np
import pandas as pd
import pytest

from cag_utils import frames as frames_module
from cag_utils.frames import FRAME_COLUMNS, sample_folder
from cag_utils.identity import save_links
from tests.test_dicom import write_cine

KEY = b"secret"


def pulsing(n=24, period=8):
    """A cine whose mean swings once per `period` frames."""
    level = 120 + 40 * np.sin(2 * np.pi * np.arange(n) / period)
    return np.broadcast_to(level[:, None, None], (n, 6, 8)).astype(np.uint8)


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "YAMADA_TARO"
    folder.mkdir()
    write_cine(folder / "a.dcm", pulsing(), video="1.1", PatientName="YAMADA^TARO")
    write_cine(folder / "b.dcm", pulsing() * 0 + 7, video="1.2")
    whole = write_cine(folder / "c.dcm", pulsing(), video="1.3").read_bytes()
    (folder / "c.dcm").write_bytes(whole[:-50])
    (folder / "letter.txt").write_text("Dear colleague", encoding="utf-8")
    return folder


def test_every_file_is_sampled_or_rejected(archive, tmp_path):
    got = sample_folder(archive, tmp_path / "out", KEY)
    assert len(got.videos) == 2 and len(got.rejected) == 2 and len(got.links) == 4
    assert got.videos["n_picks"].tolist()[1] == 0  # a constant cine is listed, with no picks
    reasons = " ".join(got.rejected["reason"])
    assert "broken pixel data" in reasons and "not a DICOM file" in reasons
    assert len(got.statistics) == 48


def test_pictures_hold_the_picked_frames(archive, tmp_path):
    frames = sample_folder(archive, tmp_path / "out", KEY, min_gap=4).frames
    assert list(frames.columns) == FRAME_COLUMNS
    assert frames["frame"].tolist() == [2, 6, 10, 14, 18, 22]
    for row in frames.itertuples():
        picture = cv2.imread(str(tmp_path / "out" / row.png), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(picture, pulsing()[row.frame])
        assert row.mean == pytest.approx(picture.mean())


def test_two_workers_give_what_one_gives(archive, tmp_path):
    one = sample_folder(archive, tmp_path / "one", KEY, n_workers=1)
    two = sample_folder(archive, tmp_path / "two", KEY, n_workers=2)
    for a, b in zip(one, two, strict=True):
        pd.testing.assert_frame_equal(a, b)


def test_nothing_that_names_a_patient_or_a_file_is_kept(archive, tmp_path):
    got = sample_folder(archive, tmp_path / "out", KEY)
    kept = "".join(t.to_csv() for t in (got.frames, got.videos, got.statistics, got.rejected))
    kept += "".join(str(path) for path in (tmp_path / "out").rglob("*.png"))[len(str(tmp_path)) :]
    assert not [word for word in ("YAMADA", "P1", "1.2.3", "letter", "a.dcm") if word in kept]
    assert "letter.txt" in got.links["path"].tolist()


def test_an_interrupted_copy_does_not_hide_a_whole_one(archive, tmp_path):
    """c.dcm is cut short; the same instance lies whole in z.dcm."""
    write_cine(archive / "z.dcm", pulsing(), video="1.3")
    got = sample_folder(archive, tmp_path / "out", KEY)
    assert len(got.videos) == 3 and len(got.rejected) == 2
    where = got.links.set_index("path")
    assert where["video"]["z.dcm"] == "1.3" and "broken pixel" in where["reason"]["c.dcm"]
    assert not got.rejected["reason"].str.contains("duplicate").any()


def test_where_no_copy_decodes_each_says_why(archive, tmp_path):
    (archive / "z.dcm").write_bytes((archive / "c.dcm").read_bytes())
    got = sample_folder(archive, tmp_path / "out", KEY)
    reasons = got.links.set_index("path")["reason"]
    assert "broken pixel" in reasons["c.dcm"] and "broken pixel" in reasons["z.dcm"]


def test_a_second_run_leaves_no_picture_of_the_first(archive, tmp_path):
    sample_folder(archive, tmp_path / "out", KEY, min_gap=1)
    frames = sample_folder(archive, tmp_path / "out", KEY, min_gap=8).frames
    found = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.png")}
    assert found == set(frames["png"])


def test_a_folder_without_cines_gives_tables_with_their_columns(tmp_path):
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    got = sample_folder(tmp_path, tmp_path / "out", KEY)
    assert got.frames.empty and "n_picks" in got.videos.columns and len(got.rejected) == 1


def test_file_names_may_be_any_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("CAG_ROOT", str(tmp_path / "root"))
    folder = tmp_path / "in"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/\xb1\xe9.dcm", "wb") as file:  # noqa: PTH123 - bytes path
        file.write(b"x" * 200)
    got = sample_folder(folder, tmp_path / "out", KEY)
    assert got.links["path"].tolist() == ["\\xb1\\xe9.dcm"]
    assert save_links("demo", got.links).is_file()


def test_what_stands_after_the_last_dot_is_printed_only_if_it_is_a_known_suffix(tmp_path):
    for name in ("b.YAMADA", "a.20210210", "c.TXT", "d"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    rejected = sample_folder(tmp_path, tmp_path / "out", KEY).rejected
    assert rejected["suffix"].tolist() == ["other", "other", ".txt", ""]
    assert rejected["bytes"].tolist() == [1, 1, 1, 1]


def test_a_picture_that_cannot_be_made_stops_the_run(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(frames_module.cv2, "imencode", lambda *_: (False, None))
    with pytest.raises(OSError, match="cannot encode"):
        sample_folder(archive, tmp_path / "out", KEY)
