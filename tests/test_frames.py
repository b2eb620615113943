import cv2
import numpy as np
import pandas as pd
import pytest

from cag_utils.frames import FRAME_COLUMNS, sample_folder
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
