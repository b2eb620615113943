import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.signal import argrelextrema

from cag_utils.cines import dicom, sampling
from cag_utils.cines.dicom import read_header
from cag_utils.cines.sampling import (
    frame_statistics,
    local_extrema,
    pick_extrema,
    sample_cine,
    sample_folder,
)
from cag_utils.identity import save_links
from cag_utils.profiles import load_profile, profile_names
from tests.cines.test_dicom import write_cine

KEY = b"secret"
RIPPLE = [0, 1, 2, 3, 2.5, 4, 5, 6, 7]
levels = st.integers(-50, 50).map(float)
pairs = st.integers(0, 60).flatmap(
    lambda n: st.tuples(*[hnp.arrays(np.float64, n, elements=levels)] * 2)
)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))))
def test_statistics_agree_with_numpy(frames):
    mean, variance = frame_statistics(frames)
    np.testing.assert_allclose(mean, frames.mean((1, 2)))
    np.testing.assert_allclose(variance, frames.var((1, 2)), atol=1e-6)


@pytest.mark.parametrize("curve, found", [
    ([0, 2, 1, 3, 0], [(1, "max"), (2, "min"), (3, "max")]),
    # a plateau counts once, at its middle, the earlier of two
    ([0, 5, 5, 5, 0], [(2, "max")]),
    ([0, 5, 5, 5, 5, 0], [(2, "max")]),
    ([3, 1, 1, 4], [(1, "min")]),
    # ends, steps and flat curves are no extrema
    *((c, []) for c in ([], [1], [1, 2], [1, 2, 3], [3, 3, 3], [1, 2, 2, 3], [2, 2, 1])),
])  # fmt: skip
def test_extrema_worked_by_hand(curve, found):
    table = local_extrema(np.array(curve, dtype=float))
    assert list(zip(table["frame"], table["kind"], strict=True)) == found


@pytest.mark.parametrize("mean, variance, gap, frames, reasons", [
    # the most prominent wins: 2 and 6 are flickers close to the dip at 4
    ([5, 5, 4.9, 5, 1, 5, 5.1, 5, 5, 4, 5, 5], range(12), 5, [4, 9], ["mean_min"] * 2),
    ([0, 1, 0, 1, 0], [0] * 5, 2, [1, 3], ["mean_max"] * 2),
    ([0, 1, 0, 1, 0], [0] * 5, 3, [1], ["mean_max"]),  # of two equals the earlier
    ([1, 0, 1], [0, 1, 0], 5, [1], ["mean_min+variance_max"]),
    # a ripple's maximum and minimum are equally prominent: picks have a direction in time
    (RIPPLE, [0] * 9, 5, [3], ["mean_max"]),
    (RIPPLE[::-1], [0] * 9, 5, [4], ["mean_min"]),
    *((np.zeros(n), np.zeros(n), 5, [], []) for n in (0, 1, 2, 30)),  # constant or monotone
    *((np.arange(n), -np.arange(n), 5, [], []) for n in (1, 2, 30)),
])  # fmt: skip
def test_picks_worked_by_hand(mean, variance, gap, frames, reasons):
    picks = pick_extrema(np.array(mean, float), np.array(variance, float), gap)
    assert (picks["frame"].tolist(), picks["reason"].tolist()) == (frames, reasons)
    assert list(picks.columns) == ["frame", "reason", "prominence"]


@settings(max_examples=50, deadline=None)
@given(pairs, st.integers(1, 8))
def test_picks_are_extrema_in_order_and_apart(pair, gap):
    picks = pick_extrema(*pair, min_gap=gap)
    frames = picks["frame"].to_numpy()
    assert (np.diff(frames) >= gap).all()
    known = set(local_extrema(pair[0])["frame"]) | set(local_extrema(pair[1])["frame"])
    assert set(frames) <= known
    # nothing that could still be taken was left
    assert all(any(abs(f - k) < gap for f in frames) for k in known)
    # neither grey scale and offset nor swapping black and white (MONOCHROME1) changes a pick
    for mean, variance in ((4 * pair[0] + 8, 16 * pair[1]), (255 - pair[0], pair[1])):
        assert pick_extrema(mean, variance, gap)["frame"].tolist() == frames.tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-99, 99), unique=True, max_size=40))
def test_without_plateaus_scipy_agrees_and_played_backwards_nothing_changes(values):
    curve = np.array(values, dtype=float)
    ahead = local_extrema(curve)
    maxima = ahead.query("kind == 'max'")["frame"].tolist()
    assert maxima == argrelextrema(curve, np.greater)[0].tolist()
    back = local_extrema(curve[::-1])
    assert (len(values) - 1 - back["frame"][::-1]).tolist() == ahead["frame"].tolist()
    np.testing.assert_allclose(back["prominence"][::-1], ahead["prominence"])


def test_statistics_and_prominence_by_hand_and_bad_input_is_refused():
    frames = [np.array([[0, 2], [4, 6]], np.uint8), np.full((2, 2), 9, np.uint8)]
    mean, variance = frame_statistics(iter(frames))
    assert mean.tolist() == [3, 9] and variance.tolist() == pytest.approx([5, 0])  # (9+1+1+9) / 4
    curve = np.array([0.0, 4.0, 3.0, 4.5, 0.0])
    table = local_extrema(curve).set_index("frame")["prominence"] * curve.std()
    assert table[1] == pytest.approx(1.0) and table[3] == pytest.approx(4.5)
    with pytest.raises(ValueError, match="same cine"):
        pick_extrema(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="min_gap must be at least 1"):
        pick_extrema(np.zeros(3), np.zeros(3), min_gap=0)
    with pytest.raises(ValueError, match="finite"):
        local_extrema(np.array([0, np.nan, 0]))


def pulsing(n=24, period=8):
    """A cine whose mean swings once per `period` frames."""
    level = 120 + 40 * np.sin(2 * np.pi * np.arange(n) / period)
    return (level[:, None, None] * np.linspace(0.5, 1, 48).reshape(6, 8)).astype(np.uint8)


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "YAMADA_TARO"
    folder.mkdir()
    write_cine(folder / "a.dcm", pulsing(), video="1.1", PatientName="YAMADA^TARO")
    write_cine(folder / "b.dcm", pulsing()[:1].repeat(24, 0), video="1.2")
    whole = write_cine(folder / "c.dcm", pulsing(), video="1.3").read_bytes()
    (folder / "c.dcm").write_bytes(whole[: -22 * 48 - 40])  # less than two frames
    (folder / "letter.txt").write_text("Dear colleague", encoding="utf-8")
    return folder


def test_every_file_is_sampled_or_rejected_and_pictures_hold_the_picked(archive, tmp_path):
    got = sample_folder(archive, tmp_path / "out", KEY)
    assert len(got.videos) == 2 and len(got.rejected) == 2 and len(got.links) == 4
    assert got.videos["n_picks"].tolist()[1] == 0  # a constant cine is listed, with no picks
    reasons = " ".join(got.rejected["reason"])
    assert "truncated" in reasons and "not a DICOM file" in reasons
    assert len(got.statistics) == 48 and "letter.txt" in got.links["path"].tolist()
    sample_folder(archive, tmp_path / "out", KEY, min_gap=1)
    frames = sample_folder(archive, tmp_path / "out", KEY, min_gap=4).frames
    found = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.png")}
    assert found == set(frames["png"])  # none of the first run
    assert list(frames.columns) == sampling.FRAME_COLUMNS
    assert frames["frame"].tolist() == [2, 6, 10, 14, 18, 22]
    for row in frames.itertuples():
        picture = cv2.imread(str(tmp_path / "out" / row.png), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(picture, pulsing()[row.frame])
        assert row.mean == pytest.approx(picture.mean())


def test_a_rule_is_added_in_one_place(archive, tmp_path, monkeypatch):
    assert all(load_profile(n).sampling.rule in sampling.SAMPLING_RULES for n in profile_names())

    def first_and_last(mean, variance, min_gap):
        return pd.DataFrame({"frame": [0, len(mean) - 1], "reason": "end"})

    monkeypatch.setitem(sampling.SAMPLING_RULES, "ends", first_and_last)
    one = sample_folder(archive, tmp_path / "one", KEY, rule="ends")
    assert one.frames["frame"].tolist() == [0, 23] * 2 and set(one.frames["reason"]) == {"end"}
    two = sample_folder(archive, tmp_path / "two", KEY, n_workers=2, rule="ends")
    for a, b in zip(one, two, strict=True):  # another process gets the rule itself, not its name
        pd.testing.assert_frame_equal(a, b)
    with pytest.raises(ValueError, match="unknown sampling rule 'end'.*did you mean 'ends'"):
        sample_folder(archive, tmp_path / "out", KEY, rule="end")


def test_a_cine_too_long_to_be_held_gives_the_same(archive, tmp_path, monkeypatch):
    cine = read_header(archive / "a.dcm")
    settings = {"key": KEY, "pick": pick_extrema, "min_gap": 5}
    [held] = sample_cine(cine, tmp_path / "held", **settings)
    monkeypatch.setattr(dicom, "KEEP_BYTES", 24 * 6 * 8 - 1)
    [again] = sample_cine(cine, tmp_path / "again", **settings)
    pd.testing.assert_frame_equal(held.frames, again.frames)
    pd.testing.assert_frame_equal(held.statistics, again.statistics)
    for png in held.frames["png"]:
        assert (tmp_path / "held" / png).read_bytes() == (tmp_path / "again" / png).read_bytes()
    monkeypatch.setattr(sampling.cv2, "imencode", lambda *_: (False, None))
    with pytest.raises(OSError, match="cannot encode"):
        list(sample_cine(cine, tmp_path / "out", **settings))


SLOW = """
import sys, time
from pathlib import Path
from cag_utils.cines import sampling
log, folder, out = map(Path, sys.argv[1:])
def rule(mean, variance, min_gap):
    with log.open("a", encoding="utf-8") as file:
        file.write("one\\n")
    time.sleep(0.05)
    return sampling.pick_extrema(mean, variance, min_gap)
sampling.SAMPLING_RULES["extrema"] = rule
sampling.sample_folder(folder, out, b"secret")
"""


def test_a_run_that_was_killed_goes_on(tmp_path):
    folder, out, log = (tmp_path / name for name in ("in", "out", "log"))
    folder.mkdir()
    for i in range(40):
        write_cine(folder / f"{i:02d}", np.roll(pulsing(), i, axis=0), video=f"1.{i}")
    whole = write_cine(folder / "99", pulsing(), video="1.99").read_bytes()
    (folder / "99").write_bytes(whole[: -48 * 3])  # three frames lost: it is read again each time
    command = [sys.executable, "-c", SLOW, log, folder, out]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        while not log.exists() or log.read_text(encoding="utf-8").count("one") < 12:
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    journal = out / sampling.JOURNAL
    n_done = journal.read_bytes().count(b"\n")
    assert 5 < n_done < 40
    with journal.open("ab") as file:
        file.write(b'{"of": "a line that was not wri')
    (out / "frames" / "stale").mkdir()
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True)  # to the end
    n_again = log.read_text(encoding="utf-8").count("one") - 41
    assert 0 <= n_again <= 3  # what was begun when the run was killed
    os.utime(folder / "05", ns=(0, 0))  # a file that has changed is read again
    got, want = (sample_folder(folder, to, KEY) for to in (out, tmp_path / "at once"))
    assert journal.read_bytes().count(b"\n") == 41 + 2  # 05, and the broken one again
    for a, b in zip(got, want, strict=True):
        pd.testing.assert_frame_equal(a, b)
    assert {p.name for p in (out / "frames").iterdir()} == set(want.videos["video_id"])
    assert b"1.5" not in journal.read_bytes() and b"/in/" not in journal.read_bytes()
    next((out / "frames").iterdir()).joinpath("0002.png").unlink(missing_ok=True)
    sample_folder(folder, out, KEY)
    assert all((out / png).is_file() for png in want.frames["png"])


def test_a_full_disk_is_the_error_of_the_run_not_of_a_file(archive, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "frames").write_bytes(b"")  # no folder can be made there
    with pytest.raises(OSError, match="frames"):
        sample_folder(archive, tmp_path / "out", KEY)


def test_an_interrupted_copy_does_not_hide_a_whole_one(archive, tmp_path):
    (archive / "z.dcm").write_bytes((archive / "c.dcm").read_bytes())  # c.dcm is cut short
    reasons = sample_folder(archive, tmp_path / "out", KEY).links.set_index("path")["reason"]
    assert reasons["c.dcm"] == reasons["z.dcm"] == "truncated"
    write_cine(archive / "z.dcm", pulsing(), video="1.3")
    got = sample_folder(archive, tmp_path / "out", KEY)
    assert len(got.videos) == 3 and len(got.rejected) == 2
    where = got.links.set_index("path")
    assert where["video"]["z.dcm"] == "1.3" and where["reason"]["c.dcm"] == "truncated"
    assert not got.rejected["reason"].str.contains("duplicate").any()


def test_file_names_may_be_any_bytes_and_only_a_known_suffix_is_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("CAG_ROOT", str(tmp_path / "root"))
    folder = tmp_path / "in"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/\xb1\xe9.dcm", "wb") as file:  # noqa: PTH123 - bytes path
        file.write(b"x" * 200)
    got = sample_folder(folder, tmp_path / "out", KEY)
    assert got.links["path"].tolist() == ["\\xb1\\xe9.dcm"]
    assert save_links("demo", got.links).is_file()
    (tmp_path / "none").mkdir()
    for name in ("b.YAMADA", "a.20210210", "c.TXT", "d"):
        (tmp_path / "none" / name).write_text("x", encoding="utf-8")
    got = sample_folder(tmp_path / "none", tmp_path / "out", KEY)
    assert got.frames.empty and "n_picks" in got.videos.columns
    assert got.rejected["suffix"].tolist() == ["other", "other", ".txt", ""]
    assert got.rejected["bytes"].tolist() == [1, 1, 1, 1]
