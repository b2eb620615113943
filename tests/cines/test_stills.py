"""Stills: any mode and depth read alike, never half of one; what is open and what is flat."""

import cv2
import numpy as np
import pytest
from PIL import Image

from cag_utils.cines.stills import Unreadable, flat_patches, open_field, read_still

SIZE = 256
OPEN = np.ones((SIZE, SIZE), bool)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def barred(sigma=3.0, depth=60.0, noise_sigma=3.0):
    """Grey 150 with a dark Gaussian bar down the middle."""
    dip = 150 - depth * np.exp(-0.5 * ((np.arange(SIZE) - SIZE / 2) / sigma) ** 2)
    grain = noise_sigma * np.random.default_rng(0).standard_normal((SIZE, SIZE))
    return np.clip(dip + grain + 0.5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_a_still_is_the_same_in_any_colour_mode(tmp_path, mode):
    grey = noise(17, 31)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_still(tmp_path / "a.png"), grey)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_a_16_bit_file_fills_8_bits_however_deep_it_is(tmp_path, bits):
    deep = np.array([[0, 1, 2**bits // 2, 2**bits - 1]], np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    expected = np.round(deep[0] * 255.0 / (2**bits - 1))
    assert read_still(tmp_path / "a.png").tolist() == [expected.astype(int).tolist()]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_still_cut_short_is_never_half_a_picture(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(Unreadable, match=rf"a\{suffix}: No such file.*need a PNG or JPEG"):
        read_still(path)
    cv2.imwrite(str(path), noise(64, 64))
    assert read_still(path).shape == (64, 64)
    data = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.98):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(Unreadable, match=r"empty file|cut short"):
            read_still(path)
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(40) + data[middle + 40 :])
    if suffix == ".png":  # a JPEG has no checksum
        with pytest.raises(Unreadable, match="broken picture"):
            read_still(path)


def test_flat_patches_lose_a_smooth_trend_and_keep_the_noise():
    v, u = np.mgrid[:SIZE, :SIZE] / SIZE
    noise = 5 * np.random.default_rng(3).standard_normal((SIZE, SIZE))
    left = flat_patches(100 + 40 * u - 30 * v * v + noise, OPEN)
    assert left.shape[1:] == (32, 32)
    assert np.abs(left.mean(axis=(1, 2))).max() < 1e-9
    assert np.median(left.std(axis=(1, 2))) == pytest.approx(5, rel=0.08)
    barless = flat_patches(barred(), OPEN)  # structure is avoided
    assert np.median(barless.std(axis=(1, 2))) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("behind", [0, 45])
def test_shutters_and_black_corners_are_masked(behind):
    picture = np.random.default_rng(4).normal(130, 4, (SIZE, SIZE)).astype(np.uint8)
    picture[:, :20], picture[:15] = behind, behind
    field = open_field(picture)
    true = np.zeros_like(OPEN)
    true[15:, 20:] = True
    assert not (field & ~true).any()
    assert (true & ~field).sum() < 0.06 * true.sum()


def test_neither_a_dark_vessel_nor_a_step_is_a_shutter_and_bad_input_is_refused():
    picture = barred(4, 120)
    assert open_field(picture).all()
    picture[100:150, 100:150] = 0  # black, but not at the border
    assert open_field(picture).all()
    picture = np.full((SIZE, SIZE), 160, np.uint8)
    picture[:, :30] = 125  # the heart's edge against the lung: 35 levels, but far from dark
    assert open_field(picture).all()
    v, u = np.mgrid[:SIZE, :SIZE] - SIZE / 2  # round corners are
    disc = np.hypot(u, v) < 0.6 * SIZE
    assert (open_field((140 * disc).astype(np.uint8)) == disc).mean() > 0.98
    for picture in (np.zeros((80, 80)), np.zeros((80, 80, 3), "u1"), np.zeros((40, 80), "u1")):
        with pytest.raises(ValueError, match="uint8 of 64 px or more"):
            open_field(picture)
    with pytest.raises(ValueError, match="no flat patch"):
        flat_patches(np.zeros((80, 80)), np.zeros((80, 80), bool))
