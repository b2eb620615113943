import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_windowing

from cag_utils.grey import to_eight_bits

EIGHT = np.array([[0, 100, 200, 255]], np.uint8)
TWELVE = np.array([[0, 1024, 2048, 4095]], np.uint16)


def header(bits=8, **facts):
    dataset = Dataset()
    dataset.BitsStored, dataset.PhotometricInterpretation = bits, "MONOCHROME2"
    for name, value in facts.items():
        setattr(dataset, name, value)
    return dataset


def lut(values, bits=8, first=0):
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), first, bits], list(values)
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    return {"ModalityLUTSequence": [item]}


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("facts", [{}, {"RescaleSlope": 1, "RescaleIntercept": 0}])
def test_eight_bits_are_kept_whatever_the_window(kind, facts):
    window = {"WindowCenter": 100, "WindowWidth": 10}
    got = to_eight_bits(EIGHT.astype(kind), header(**window, **facts))
    assert got.dtype == np.uint8 and got.tolist() == EIGHT.tolist()


def test_the_window_of_an_eight_bit_file_never_counts():
    facts = {"RescaleSlope": 0.5, "RescaleIntercept": 0, "WindowCenter": 100, "WindowWidth": 10}
    assert to_eight_bits(EIGHT, header(**facts)).tolist() == EIGHT.tolist()


def test_monochrome1_is_inverted():
    got = to_eight_bits(EIGHT, header(PhotometricInterpretation="MONOCHROME1"))
    assert got.tolist() == [[255, 155, 55, 0]]


def test_deep_pixels_without_a_window_use_their_full_range():
    assert to_eight_bits(TWELVE, header(12)).tolist() == [[0, 64, 128, 255]]  # 255 x / 4095


def test_deep_pixels_use_their_window():
    window = {"WindowCenter": 1024.5, "WindowWidth": 1025}  # LINEAR: 512.0 black, 1536.0 white
    assert to_eight_bits(TWELVE, header(12, **window)).tolist() == [[0, 128, 255, 255]]
    two = {"WindowCenter": [1024.5, 5], "WindowWidth": [1025, 2]}
    assert to_eight_bits(TWELVE, header(12, **two)).tolist() == [[0, 128, 255, 255]]


@pytest.mark.parametrize("slope, intercept", [(1, -1024), (0.25, 0), (0.25, 77)])
def test_a_rescale_alone_changes_no_picture(slope, intercept):
    """The full range moves with the values."""
    rescale = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    assert to_eight_bits(TWELVE, header(12, **rescale)).tolist() == [[0, 64, 128, 255]]


def test_a_negative_slope_turns_dark_into_bright():
    rescale = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    assert to_eight_bits(TWELVE, header(12, **rescale)).tolist() == [[255, 191, 127, 0]]


def test_a_window_counts_in_rescaled_values():
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    window = {"WindowCenter": 0.5, "WindowWidth": 1025}  # -512 black, 512 white
    got = to_eight_bits(TWELVE, header(12, **rescale, **window))
    assert got.tolist() == [[0, 128, 255, 255]]


def test_signed_pixels_span_their_whole_range():
    levels = np.array([[-2048, 0, 2047]], np.int16)
    assert to_eight_bits(levels, header(12, PixelRepresentation=1)).tolist() == [[0, 128, 255]]


def test_a_modality_lut_is_for_linear_pixels_only():
    squares = [x * x // 255 for x in range(256)]
    got = to_eight_bits(EIGHT, header(PixelIntensityRelationship="LIN", **lut(squares)))
    assert got.tolist() == [[0, 39, 156, 255]]  # x * x // 255
    for kind in ("LOG", "DISP"):
        got = to_eight_bits(EIGHT, header(PixelIntensityRelationship=kind, **lut(squares)))
        assert got.tolist() == EIGHT.tolist()


def test_a_modality_lut_may_widen_the_values():
    wide = [257 * x for x in range(256)]
    got = to_eight_bits(EIGHT, header(**lut(wide, bits=16)))
    assert got.tolist() == EIGHT.tolist()  # 257 x / 65535 * 255 = x


@pytest.mark.parametrize(
    "facts, match",
    [
        ({"RescaleSlope": 0, "RescaleIntercept": 3}, "maps every pixel to one value"),
        ({"WindowCenter": 10, "WindowWidth": 0}, "Window Width"),
    ],
)
def test_what_breaks_the_standard_is_refused(facts, match):
    with pytest.raises(ValueError, match=match):
        to_eight_bits(TWELVE, header(12, **facts))


@settings(deadline=None)
@given(
    hnp.arrays(np.uint16, (3, 5), elements=st.integers(0, 4095)),
    st.integers(0, 4095),
    st.integers(2, 4095),
)
def test_windows_agree_with_pydicom_and_keep_the_order(levels, center, width):
    facts = header(12, WindowCenter=center, WindowWidth=width, PixelRepresentation=0)
    got = to_eight_bits(levels, facts)
    np.testing.assert_allclose(got, apply_windowing(levels, facts) * 255 / 4095, atol=0.5001)
    order = np.argsort(levels, axis=None)
    assert (np.diff(got.ravel()[order].astype(int)) >= 0).all()
