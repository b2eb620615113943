"""The chest, the beam, the detector and the display."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from cag_utils.phantom.anatomy.growth import grow_tree
from cag_utils.phantom.imaging import detector
from cag_utils.phantom.imaging.carm import aim, draw_carm
from cag_utils.phantom.imaging.chest import box_chords, draw_backdrop, draw_body, ellipsoid_spans
from cag_utils.phantom.imaging.display import FIELDS, Display, draw_look, shutter_field, wedge_depth
from cag_utils.phantom.imaging.hardware import draw_catheter, follow_ostium, ostium_mm
from tests.phantom.world import rng


def test_chords_by_hand():
    rays = np.array([[0.0, 0, 1], [0.0, 1, 0]])
    seen = np.array([0.0, 0, -10]), rays, np.zeros(3), np.array([1.0, 2, 3]), np.eye(3)
    np.testing.assert_allclose(ellipsoid_spans(*seen), [[7, 0], [13, 0]])  # the second ray misses
    np.testing.assert_allclose(box_chords(*seen), [6, 0])


def test_the_chest_is_finite_and_differs_between_patients():
    view = aim(draw_carm(rng(4), "LCA", 128, "AP CRA")[1], grow_tree(rng(4), "LCA").points)
    first = draw_backdrop(rng(5), view, draw_body(rng(6)), 12)
    assert first.shape == (152, 152) and first.dtype == np.float32 and np.isfinite(first).all()
    np.testing.assert_array_equal(first, draw_backdrop(rng(5), view, draw_body(rng(6)), 12))
    assert np.abs(first - draw_backdrop(rng(5), view, draw_body(rng(7)), 12)).max() > 0.1
    with pytest.raises(ValueError, match="NaN or infinity"):
        detector.expose(rng(), np.full((88, 88), np.nan, np.float32), plain_look(), 12)


def test_contrast_under_scatter_by_hand():
    # primary halves (depth ln 2) under as much scatter as primary: ln((0.5 + 1) / 2) = -0.2877
    size, margin = 64, 4
    flat = np.full((size + 2 * margin,) * 2, 120, np.float32)
    depth, spans = np.zeros((size, size), np.float32), np.tile(np.array([size, -1]), (size, 1))
    depth[10, 20], spans[10] = np.log(2), (20, 20)
    zero, one = np.zeros((size, size), np.float32), np.ones((size, size), np.float32)
    out = np.empty((size, size), np.float32)
    halving = np.exp(-np.arange(detector.TABLE_SIZE) * detector.TABLE_STEP).astype(np.float32)
    detector.compose(
        out, flat, 4.0, 4.0, depth, spans, one, np.float32(100), halving, zero,
        np.zeros((size + 96,) * 2, np.float32), 0, 0, zero, one, np.ones(1, np.float32),
    )  # fmt: skip
    assert out[0, 0] == 120 and out[10, 20] == pytest.approx(120 - 28.77, abs=0.01)


def plain_look(**changes):
    """A look without wedge, glare and read-out noise, so that numbers can be worked by hand."""
    plain = {"wedge": 0.0, "glare": 0.0, "electronic": 0.0, "field": "box", "scatter": 0.6}
    return replace(draw_look(rng(8), 128), **plain | changes)


def test_noise_has_the_size_that_its_quanta_promise():
    look = plain_look()
    still = detector.expose(rng(9), np.zeros((152, 152), np.float32), look, 12)
    assert still.texture.std() == pytest.approx(1, abs=0.01)
    sigma = look.gain / np.sqrt(look.photons * 16 * (1 + look.scatter))
    assert still.noise_sigma[64, 64] == pytest.approx(sigma, rel=1e-3)


def radial_spectrum(picture):
    """Noise power at the middles of ten rings up to the Nyquist frequency."""
    size = picture.shape[0]
    power = np.abs(np.fft.fft2(picture)) ** 2 / size**2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    rings = np.linspace(0, 0.5, 11)
    found = [power[(frequency >= a) & (frequency < b)].mean() for a, b in pairwise(rings)]
    return (rings[1:] + rings[:-1]) / 2, np.array(found)


@pytest.mark.parametrize("electronic", [0.0, 0.2])
def test_noise_power_is_the_square_of_the_detectors_transfer_function(electronic):
    look = plain_look(grain_px=0.9, electronic=electronic)
    frequency, power = radial_spectrum(detector.noise_texture(rng(1), look, 512))
    transfer = np.exp(-2 * (np.pi * frequency * 0.9) ** 2)  # of a Gaussian of 0.9 px
    quantum = transfer**2 * (4 * np.pi * 0.9**2)  # a Gaussian's variance is 1 / (4 pi sigma^2)
    wanted = (1 - electronic) * quantum + electronic
    np.testing.assert_allclose(power, wanted, rtol=0.15, atol=0.02)


def test_scatter_and_glare_take_contrast_away():
    shade = np.zeros((152, 152), np.float32)
    for glare, scatter in ((0.0, 0.4), (0.1, 0.5)):
        look = plain_look(scatter=0.4, glare=glare)
        got = detector.expose(rng(9), shade, look, 12).scatter
        np.testing.assert_allclose(got, scatter, atol=1e-4)


@pytest.mark.parametrize("field", FIELDS)
def test_shutters_darken_the_border_and_leave_the_middle(field):
    look = plain_look(field=field, shutters=(0.1, 0, 0, 0), shutter_grey=0.2, shutter_soft=0.004)
    light = shutter_field(look, 128)
    assert light.shape == (128, 128) and light.dtype == np.float32
    assert light[64, 64] == pytest.approx(1, abs=1e-3) and light.min() >= 0.2 - 1e-6
    if field != "round":
        assert light[64, 2] == pytest.approx(0.2, abs=0.01)
    assert light[0, -1] < 0.7 if field != "box" else light[64, 126] > 0.8  # rounded corners


def test_a_wedge_darkens_one_side_only():
    depth = wedge_depth(plain_look(wedge=0.5, wedge_at=(0.0, 0.3, 0.02)), 100)
    assert depth[50, 99] == pytest.approx(0.5, abs=0.01) and depth[50, 50] < 1e-4
    assert depth[50, 80] == pytest.approx(0.5 / (1 + np.exp(-(0.305 - 0.3) / 0.02)), abs=1e-3)


def test_edge_enhancement_by_hand_and_the_curve():
    # a step of 100 grey levels: far from it nothing changes, beside it the light side overshoots
    step, frame = np.full((64, 64), 60, np.float32), np.empty((64, 64), np.uint8)
    step[:, 32:] = 160
    Display(plain_look(sharpen=0.8, sharpen_px=3.0, curve=1.0)).finish(step, frame)
    assert (frame[:, [2, 61]] == [60, 160]).all()
    # Gaussian of 3 px, half a pixel from the edge: 60 + 100 Phi(1/6) = 116.6 on the light side
    assert frame[32, 32] == pytest.approx(160 + 0.8 * (160 - 116.6), abs=3)
    assert frame[32, 31] == pytest.approx(60 + 0.8 * (60 - 103.4), abs=3)
    Display(plain_look(sharpen=0.0, curve=2.0)).finish(step, frame)
    assert frame[0, 0] == round(255 * (60 / 255) ** 2) and frame[0, 63] == 100  # 160^2 / 255


def test_one_energy_attenuates_exponentially_and_many_harden():
    single = (np.arange(131) == 40).astype(float)  # 60 keV
    table = detector.transmission_table(single)
    depth = detector.TABLE_STEP * np.arange(detector.TABLE_SIZE)
    np.testing.assert_allclose(table, np.exp(-depth), atol=1e-6)
    # NIST at 60 keV: 7.579 cm^2/g times 0.32 g/ml
    assert detector.contrast_per_mm(single) == pytest.approx(0.2425, abs=1e-4)
    broad = detector.transmission_table(detector.detected_spectrum(87, 0.1, 220))
    assert broad[0] == 1 and (np.diff(broad) < 0).all()
    assert (broad[0] - broad[1]) / detector.TABLE_STEP == pytest.approx(1, abs=0.02)
    assert (broad[32:] > table[32:]).all()


def test_copper_water_and_voltage_harden_the_beam():
    beams = (80, 0.0, 200), (80, 0.3, 200), (80, 0.0, 260), (105, 0.0, 200)
    found = [detector.detected_spectrum(*beam) for beam in beams]
    base, copper, water, voltage = (weights @ np.linspace(20, 150, 131) for weights in found)
    assert 50 < base < min(copper, water) and base < min(65, voltage - 5)
    np.testing.assert_allclose(np.sum(found, axis=1), 1)
    assert found[1][60:].sum() == 0  # nothing above 80 keV
    for beam in ((20, 0.1, 200), (80, -0.1, 200), (80, 0.1, -1)):
        with pytest.raises(ValueError, match="need kvp 40 to 150"):
            detector.detected_spectrum(*beam)


def test_the_catheter_starts_at_its_ostium_and_its_shaft_stays():
    for side in ("LCA", "RCA"):
        course = draw_catheter(rng(), side, radial=True)
        assert np.linalg.norm(course[0] - ostium_mm(side)) < 3
        moved = follow_ostium(course, np.array([[0.0, 0, 0], [0, -6, 0]]))
        np.testing.assert_allclose(moved[1, 0] - moved[0, 0], [0, -6, 0])
        assert np.abs(moved[1, -1] - moved[0, -1]).max() < 0.2
