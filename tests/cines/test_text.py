"""Burnt-in text: found in either polarity, not where there is none, masked or looked at."""

import cv2
import numpy as np
import pydicom
import pytest

from cag_utils.cines.dicom import iter_frames
from cag_utils.cines.sampling import sample_folder
from cag_utils.cines.text import Extremes, TextRules, find_text
from cag_utils.profiles import parse_profile
from tests.cines.test_dicom import write_cine
from tests.cines.test_sampling import KEY

SHAPE = 24, 320, 400


def noisy_cine(seed=0):
    """A grey field with a shutter, X-ray noise and something dark that passes, (T, H, W)."""
    rng = np.random.default_rng(seed)
    field = np.full(SHAPE[1:], 120.0)
    field[:30], field[:, -20:] = 8, 8
    cine = np.stack([cv2.line(field.copy(), (9 * t, 0), (9 * t, 399), 60, 5) for t in range(24)])
    return (cine + rng.normal(0, 9, SHAPE) * (field > 50)).clip(0, 255).astype(np.uint8)


def written_on(cine, text="SUZUKI ICHIRO", at=(60, 200), grey=255, size=0.5, quality=90):
    """The cine with a text on every frame, as a workstation exports it."""
    frames = [cv2.putText(x.copy(), text, at, 0, size, grey, 1, cv2.LINE_AA) for x in cine]
    jpegs = [cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, quality])[1] for x in frames]
    return np.stack([cv2.imdecode(x, cv2.IMREAD_GRAYSCALE) for x in jpegs])


def found(cine):
    extremes = Extremes()
    assert len(list(extremes.of(cine))) == len(cine)
    return find_text(extremes)


@pytest.mark.parametrize("grey, at, size", [
    (255, (60, 200), 0.5), (0, (60, 200), 0.5), (255, (8, 20), 0.6), (230, (150, 310), 0.4),
])  # fmt: skip
def test_text_is_found_where_it_stands_and_none_where_there_is_none(grey, at, size):
    assert found(noisy_cine()) == []
    [(left, top, right, bottom)] = found(written_on(noisy_cine(), grey=grey, at=at, size=size))
    (wide, high), _ = cv2.getTextSize("SUZUKI ICHIRO", 0, size, 1)
    assert left * 400 <= at[0] + 3 and right * 400 >= at[0] + wide - 3
    assert top * 320 <= at[1] - high + 2 and at[1] - 2 <= bottom * 320 <= at[1] + 1.5 * high


def test_long_thin_edges_are_no_letters():
    field = np.full((320, 400), 120, np.uint8)
    written = cv2.putText(field.copy(), "NAME", (150, 200), 0, 0.5, 255, 1)
    seen = Extremes()
    list(seen.of([cv2.line(written.copy(), (0, 20), (399, 90), 255, 1)]))
    edges = seen.still_edges()
    assert not edges[:100].any() and (edges[100:] > 0).sum() > 20  # the line, and the letters


def test_a_cine_with_text_is_rejected_until_it_is_masked_or_looked_at(tmp_path):
    archive, out, review = (tmp_path / name for name in ("in", "out", "review"))
    archive.mkdir()
    review.mkdir()
    write_cine(archive / "clean.dcm", noisy_cine(), video="1.1", BurnedInAnnotation="NO")
    write_cine(archive / "text.dcm", written_on(noisy_cine(1)), video="1.2")
    write_cine(archive / "told.dcm", noisy_cine(2), video="1.3", BurnedInAnnotation="YES")
    got = sample_folder(archive, out, KEY, text=TextRules(pictures=review))
    assert got.rejected["reason"].tolist() == ["burnt-in text"] * 2 and len(got.videos) == 1
    where, told = got.rejected["words"]
    assert "[0.1" in where and told.endswith("by its header")
    assert sorted(x.stem for x in review.iterdir()) == sorted([where.split()[0], told.split()[0]])
    assert cv2.imread(str(review / f"{where.split()[0]}.png")).shape == (320, 800, 3)
    assert len(list((out / "frames").iterdir())) == 1  # no frame of theirs is written

    box = [float(x) for x in where.split("[")[1].rstrip("]").split(", ")]
    rules = TextRules(masks=[box], pictures=review)  # as `rejected.csv` tells it
    got = sample_folder(archive, out, KEY, text=rules)
    assert len(got.videos) == 3 and not list(review.iterdir())
    for png in got.frames["png"]:
        assert (cv2.imread(str(out / png), 0)[192:203, 60:158] == 0).all()
    rules = TextRules(reviewed=[where.split()[0], told.split()[0]])
    assert len(sample_folder(archive, out, KEY, text=rules).videos) == 3


def test_overlays_are_not_drawn_and_noted(tmp_path):
    path = write_cine(tmp_path / "a.dcm", noisy_cine())
    dataset = pydicom.dcmread(path)
    dataset.add_new((0x6000, 0x0010), "US", 320)
    dataset.add_new((0x6000, 0x0011), "US", 400)
    dataset.add_new((0x6000, 0x0022), "LO", "SUZUKI ICHIRO")
    dataset.add_new((0x6000, 0x3000), "OW", bytes([255]) * (320 * 400 // 8))
    dataset.save_as(path)
    got = sample_folder(tmp_path, tmp_path.parent / "out", KEY)
    assert got.videos["notes"].tolist() == ["overlays left out"]
    np.testing.assert_array_equal(np.stack(list(iter_frames(path))), noisy_cine())


@pytest.mark.realdata
def test_a_real_cine_has_none(real_data):
    assert found(list(iter_frames(real_data / "philips_lca_75f.dcm"))) == []


@pytest.mark.parametrize("masks", ["[[0, 0, 1]]", "[[0.5, 0, 0.2, 1]]", "[[0, 0, 100, 20]]"])
def test_a_mask_that_hides_nothing_is_refused(masks):
    with pytest.raises(ValueError, match="shares of width and height"):
        parse_profile(f"like: paper\nsampling: {{masks: {masks}}}", "x", "x.yaml")
