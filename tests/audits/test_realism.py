"""Measures of realism on pictures whose answers are known, and what stands around them."""

import base64
import io

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from cag_utils.audits import realism
from cag_utils.audits.realism import dark_lines, measure_cine, measure_picture
from cag_utils.audits.realism_figures import embed_film, frame_states, list_real
from cag_utils.phantom.stills import still

SIZE = 256
OPEN = np.ones((SIZE, SIZE), bool)
FWHM = 2 * np.sqrt(2 * np.log(2))  # of a Gaussian of unit standard deviation


def picture_of(profile, noise=0.0, seed=0, angle_deg=0.0):
    """A picture of one straight line with this profile of grey levels across, turned."""
    v, u = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    turn = np.deg2rad(angle_deg)
    flat = np.interp(u * np.cos(turn) + v * np.sin(turn) + SIZE / 2, np.arange(SIZE), profile)
    rng = np.random.default_rng(seed)
    return np.clip(flat + noise * rng.standard_normal(flat.shape) + 0.5, 0, 255).astype(np.uint8)


def dip(sigma_px, depth, level=150.0):
    """A dark Gaussian dip in the middle."""
    at = np.arange(SIZE) - SIZE / 2
    return level - depth * np.exp(-0.5 * (at / sigma_px) ** 2)


@pytest.mark.parametrize("sigma_px", [1.5, 3.0, 4.5])
@pytest.mark.parametrize("angle_deg", [0, 30, 63])
def test_a_gaussian_line_has_its_width_and_depth(sigma_px, angle_deg):
    lines = dark_lines(picture_of(dip(sigma_px, 60), angle_deg=angle_deg), OPEN)
    assert len(lines) > 100
    assert lines["width_px"].median() == pytest.approx(FWHM * sigma_px, abs=0.5)
    assert lines["depth"].median() == pytest.approx(60, rel=0.05)
    # 20 % of the depth is reached at sqrt(-2 ln 0.8) sigma, 80 % at sqrt(-2 ln 0.2) sigma
    edge = (np.sqrt(-2 * np.log(0.2)) - np.sqrt(-2 * np.log(0.8))) * sigma_px
    assert lines["edge_px"].median() == pytest.approx(edge, abs=0.4)
    if angle_deg == 0:  # the points lie on the line, and not near the border
        assert (lines["column"] - SIZE / 2).abs().max() <= 1
        assert lines["row"].between(12, SIZE - 13).all()


def test_a_box_line_has_the_boxes_width_and_overshoots_only_if_enhanced():
    box = np.full(SIZE, 150.0)
    box[120:132] -= 50  # 12 px wide
    soft = gaussian_filter1d(box, 1.0)
    lines = dark_lines(picture_of(soft), OPEN)
    assert lines["width_px"].median() == pytest.approx(12, abs=0.3)
    assert lines["depth"].median() == pytest.approx(50, abs=1)
    assert lines["overshoot"].median() == pytest.approx(0, abs=0.02)
    enhanced = soft + 0.8 * (soft - gaussian_filter1d(soft, 4.0))  # edge enhancement
    assert dark_lines(picture_of(enhanced), OPEN)["overshoot"].median() > 0.06
    # bright lines and empty pictures have no dark lines
    bright = dark_lines(picture_of(dip(3, -60)), OPEN)  # its faint dark flanks are no vessels
    assert bright.empty or bright["depth"].median() < 15
    assert dark_lines(np.full((SIZE, SIZE), 120, np.uint8), OPEN).empty


def test_contrast_to_noise_is_depth_over_sigma():
    facts = measure_picture(picture_of(dip(3, 40), noise=4.0))
    assert facts["noise_sigma"] == pytest.approx(4, rel=0.08)
    assert facts["line_cnr"] == pytest.approx(10, rel=0.15)
    assert facts["line_width_px"] == pytest.approx(FWHM * 3, abs=0.8)
    facts = measure_picture(still(70_001, 256).image)  # a phantom's still has every measure
    assert np.isfinite(list(facts.values())).all(), facts
    assert 2 < facts["line_width_px"] < 15 and facts["line_cnr"] > 2


def test_white_noise_is_flat_and_blurred_noise_falls_as_the_blurs_transfer_function():
    for sigma in (2.0, 8.0):
        noise = sigma * np.random.default_rng(1).standard_normal((200, 32, 32))
        at, power = realism.noise_power(noise)
        assert at[0] == 2 / 32 and at[-1] == 0.5 and len(at) == 15
        np.testing.assert_allclose(power, sigma**2, rtol=0.12)
    white = np.random.default_rng(2).standard_normal((300, 48, 48))
    blurred = np.stack([cv2.GaussianBlur(w, (0, 0), 1.0) for w in white])[:, 8:40, 8:40]
    at, power = realism.noise_power(blurred)
    transfer = np.exp(-0.5 * (2 * np.pi * at) ** 2) ** 2  # of a Gaussian of 1 px, squared
    low = at < 0.3
    np.testing.assert_allclose(power[low], transfer[low], rtol=0.2)
    assert power[-1] < 0.01


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=30), st.integers(0, 55))
def test_a_shifted_histogram_is_as_far_as_the_shift(greys, shift):
    assert realism.grey_distance(greys, np.array(greys) + shift) == pytest.approx(shift)
    # half of the mass stays at 10, half goes from 20 to 50: 0.5 * 30
    assert realism.grey_distance([10, 20], [10, 10, 50, 50]) == pytest.approx(15)


def test_filling_by_hand():
    # four seconds at 15 a second: from 2 at 1 s up to 5 at 1.5 s, and there it stays
    facts = realism.filling(2 + 3 * np.clip((np.arange(60) / 15 - 1) / 0.5, 0, 1), 15)
    assert facts["fill"] == pytest.approx(3, abs=0.01)
    assert facts["half_fill_s"] == pytest.approx(1.25, abs=0.03)
    assert facts["fill_s"] == pytest.approx(0.6 * 0.5, abs=0.06)  # the smoothing adds a little
    assert facts["late_share"] == pytest.approx(1)
    facts = realism.filling(np.linspace(5, 1, 60), 15)  # a curve that never rises has no pace
    assert facts["fill"] < 0.1 and np.isnan(facts["fill_s"])


def cine(noise=3.0, swing=0.0):
    """Four seconds at 15 a second: noise, a swing of the whole picture, and a fading-in line."""
    frames = []
    for i in range(60):
        share = np.clip((i - 20) / 10, 0, 1)
        level = 150 + swing * np.sin(2 * np.pi * i / 12)  # a beat of 0.8 s
        frames.append(picture_of(dip(3, 50 * share, level), noise, seed=i))
    return np.stack(frames)


def test_a_cines_noise_is_a_frames_noise_and_its_line_is_its_filling():
    frames = cine()
    facts = measure_cine(frames, 15)
    assert facts["cine_noise"] == pytest.approx(3, rel=0.1)
    assert facts["cine_fine_noise"] == pytest.approx(1, rel=0.1)  # white
    assert facts["half_fill_s"] == pytest.approx(25 / 15, abs=0.15)
    assert facts["beat_swing"] < 0.5
    hats = realism.fill_curve(frames, OPEN)
    assert hats[-1] - hats[0] > 0.5 and np.ptp(hats[:18]) < 0.3
    facts = measure_cine(cine(swing=5), 15)  # a swinging picture, whose filling does not swing
    assert facts["beat_swing"] == pytest.approx(10, rel=0.2)
    assert facts["half_fill_s"] == pytest.approx(25 / 15, abs=0.15)


def compare(real, phantom):
    return realism.compare_measures(pd.DataFrame(real), pd.DataFrame(phantom)).set_index("measure")


def test_comparison_by_hand():
    real = {"a": [1.0, 2, 3, 4, 5], "b": [1.0, 1, 1, 1, 1], "c": [0.0, 1, 2, 3, 4]}
    table = compare(real, {"a": [7.0, 7, np.nan], "b": [2.0, 2, 2], "c": [2.0, 2, 2]})
    assert list(table.index) == ["a", "c", "b"]  # largest first, unknown last
    assert table.loc["a", "difference"] == pytest.approx((7 - 3) / (2 / 1.349))
    assert table.loc["a", ["real_low", "real_high", "n_phantom"]].tolist() == [2, 4, 2]
    assert table.loc["c", "difference"] == 0 and np.isnan(table.loc["b", "difference"])
    # one real picture is compared in phantom spreads
    table = compare({"a": [9.0]}, {"a": [1.0, 2, 3, 4, 5]})
    assert table.loc["a", "unit"] == "phantom spread"
    assert table.loc["a", "difference"] == pytest.approx(-6 / (2 / 1.349))


@pytest.mark.realdata
def test_real_stills_have_every_measure(real_data):
    for path in sorted(real_data.glob("*.png"))[:3]:
        facts = measure_picture(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        assert all(np.isfinite(v) for v in facts.values()), facts


@pytest.mark.parametrize("call, match", [
    (lambda: realism.grey_distance([], [1]), "at least one"),
    (lambda: realism.noise_power(np.zeros((0, 8, 8))), "n >= 1"),
    (lambda: realism.noise_power(np.zeros((3, 8, 9))), "patches must be"),
    (lambda: measure_picture(np.zeros((80, 80), np.uint8)), "no flat patch"),
    (lambda: measure_cine(np.zeros((10, 80, 80), np.uint8), 15.0), "1.5 s"),
    (lambda: measure_cine(np.zeros((10, 80, 80), np.uint8), 0.0), "1.5 s"),
    (lambda: realism.difference_noise(np.zeros((1, 80, 80), np.uint8), OPEN), "two frames"),
    (lambda: compare({"a": [1]}, {"b": [1]}), "nothing"),
    (lambda: compare({"a": []}, {"a": [1]}), "nothing"),
])  # fmt: skip
def test_bad_input_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


ROWS = ["a.dcm 0-2 none LCA", "a.dcm 4-5 full LCA", "b.png 0 full LCA"]
NAMES = ["file", "frames", "contrast", "laterality"]
LABELS = pd.DataFrame([row.split() for row in ROWS], columns=NAMES)


def test_a_named_folder_must_be_there_and_a_labels_range_holds_its_ends(tmp_path, monkeypatch):
    states = frame_states(LABELS, "a.dcm", 7)
    assert states.tolist() == ["none"] * 3 + [""] + ["full"] * 2 + [""]
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_real(str(tmp_path / "nowhere"))
    monkeypatch.setenv("CAG_REAL_DATA", str(tmp_path))
    stills, cines, labels = list_real()
    assert stills == cines == [] and labels.empty
    LABELS.to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "b.png").touch()
    stills, _, labels = list_real()
    assert [path.name for path in stills] == ["b.png"] and len(labels) == 3


def test_an_embedded_film_plays_all_its_frames_at_its_pace(tmp_path):
    frames = np.stack([np.full((512, 512), 20 + 20 * i, np.uint8) for i in range(10)])
    tag = embed_film(frames, 12.5, tmp_path / "film.webp")
    coded = tag.split("base64,")[1].split('"')[0]
    film = Image.open(io.BytesIO(base64.b64decode(coded)))
    assert film.n_frames == 10 and film.size == (256, 256)
    for number in range(10):
        film.seek(number)
        assert np.asarray(film.convert("L")).mean() == pytest.approx(20 + 20 * number, abs=4)
        assert film.info["duration"] == 80  # ms
