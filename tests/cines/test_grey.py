import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_voi_lut, apply_windowing

from cag_utils.cines.dicom import iter_frames
from cag_utils.cines.grey import GreyScale, find
from cag_utils.cines.reasons import NOTES, NotACine
from tests.cines.test_dicom import header, write_cine
from tests.conftest import ROOT

CASES = Path(os.environ.get("CAG_CASES", ROOT.parent / "shared" / "cases"))
EIGHT = np.arange(256, dtype=np.uint8).reshape(16, 16)
TWELVE = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SIGNED = (TWELVE.astype(np.int16) - 2048).reshape(64, 64)


def grey_of(picture, bits, values, frame=0, **facts):
    """Grey levels of some stored values in a cine of one picture, and the notes."""
    scale = GreyScale(header(bits, **facts), {0: picture}, lambda: [picture])
    assert scale.notes <= set(NOTES)
    grey = scale(picture, frame)
    assert grey.dtype == np.uint8 and grey.shape == picture.shape
    return [int(grey[picture == value][0]) for value in values], scale.notes


def lut(values, bits=8, first=0, name="VOILUTSequence"):
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), first, bits], list(values)
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    return {name: [item]}


def window(center, width, **facts):
    return {"WindowCenter": center, "WindowWidth": width, **facts}


def rescaled(slope, intercept, **facts):
    return {"RescaleSlope": slope, "RescaleIntercept": intercept, **facts}


HALF = window(1024.5, 1025)  # LINEAR: 512.0 black, 1536.0 white
BACK = lut([255 - x for x in range(256)], name="ModalityLUTSequence")
FUNCTIONS = ["LINEAR", "LINEAR_EXACT", "SIGMOID"]
IN_WINDOW, FULL = [0, 128, 255, 255], [0, 64, 128, 255]  # of 0, 1024, 2048, 4095


@pytest.mark.parametrize("facts, want, noted", [
    ({}, FULL, ""),  # without a window the full range: 255 x / 4095
    (HALF, IN_WINDOW, ""),
    (window([1024.5, 5], [1025, 2]), IN_WINDOW, ""),
    (window([10, 1024.5], [0, 1025]), IN_WINDOW, "impossible window"),
    (HALF | {"VOILUTFunction": "UNHEARD_OF"}, IN_WINDOW, ""),
    # the full range moves with the values, so a rescale alone changes no picture
    *((rescaled(*pair), FULL, "") for pair in ((1, -1024), (0.25, 0), (0.25, 77))),
    (rescaled(-1, 4095), [255, 191, 127, 0], ""),  # dark becomes bright
    (rescaled(0, 3), FULL, "impossible rescale"),
    (rescaled(float("nan"), 0), FULL, "impossible rescale"),
    (rescaled("1e300", 1e300), FULL, "impossible rescale"),
    # a window counts in rescaled values: -512 black, 512 white; not those of LOG pixels
    (rescaled(1, -1024, **window(0.5, 1025)), IN_WINDOW, ""),
    (rescaled(1, -1024, PixelIntensityRelationship="LOG", **HALF), IN_WINDOW, ""),
    # what is no window is ignored, and one that leaves no picture too
    *((window(*pair), FULL, "impossible window") for pair in ((0, 0), (5, -3), (1e300, 0.5))),
    *((window(*pair), FULL, "full range") for pair in ((0, 1), (9000, 100), (-500, 20))),
    (lut([x * 16 for x in range(4096)], 16), FULL, ""),
    (lut(range(0, 2048, 8), 11, first=1024), [0, 0, 254, 254], ""),
    (lut([7] * 4096), FULL, "full range"),
    (lut(range(9), 3), FULL, "VOI LUT ignored"),
])  # fmt: skip
def test_twelve_bits_worked_by_hand(facts, want, noted):
    got, notes = grey_of(TWELVE, 12, [0, 1024, 2048, 4095], **facts)
    assert got == want and (noted in " ".join(notes) if noted else not notes), notes


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("facts", [
    {}, window(100, 10), window(100, 10, **rescaled(1, 0)), rescaled(0.5, 0), window(0, 0), BACK,
    BACK | {"PixelIntensityRelationship": "LIN"}, {"PixelIntensityRelationship": "DISP"},
])  # fmt: skip
def test_eight_bits_are_kept_whatever_window_and_modality_lut(kind, facts):
    values = [0, 100, 200, 255]
    assert grey_of(EIGHT.astype(kind), 8, values, **facts) == (values, set())
    inverse = {"PhotometricInterpretation": "MONOCHROME1", **facts}
    assert grey_of(EIGHT.astype(kind), 8, values, **inverse)[0] == [255, 155, 55, 0]


def test_bits_that_lie_or_lie_high_and_signs():
    assert grey_of(SIGNED, 12, [-2048, 0, 2047], PixelRepresentation=1)[0] == [0, 128, 255]
    bare = (SIGNED & 4095).astype(np.int16)  # no sign in the unused bits: 2048 stands for -2048
    assert grey_of(bare, 12, [2048, 0, 2047], PixelRepresentation=1)[0] == [0, 128, 255]
    high = TWELVE << 4
    values = [16 * x for x in (0, 1024, 2048, 4095)]
    assert grey_of(high, 12, values, HighBit=15) == (FULL, set())
    assert grey_of(TWELVE, 12, [0, 1024, 2048, 4095], HighBit=15) == (FULL, set())  # it lies
    got, notes = grey_of(TWELVE * 4, 12, [0, 4096, 8192, 16380])  # 14 bits, said to be 12
    assert got == FULL and notes == {"pixels exceed Bits Stored"}
    overlay = Dataset()
    overlay.add_new((0x6000, 0x0102), "US", 12)  # a drawing in bit 12 of some pixels
    drawn = TWELVE | np.where(np.arange(4096).reshape(64, 64) % 2, 4096, 0).astype(np.uint16)
    overlay.update(header(12))
    got = GreyScale(overlay, {0: drawn}, lambda: [drawn])(drawn, 0)
    np.testing.assert_array_equal(got, np.round(TWELVE * (255 / 4095)))
    for kind in (np.uint32, np.float32):
        with pytest.raises(NotACine, match="more than 16 bits"):
            GreyScale(header(12), {0: TWELVE.astype(kind)}, list)


def test_a_cine_in_a_corner_of_its_range_is_mapped_by_its_own():
    for dim in (TWELVE, TWELVE // 4 + 30000):  # 12 and 10 of 16 bits
        dim = dim.copy()
        dim[0, 0] = 65535  # one broken pixel does not count
        got, notes = grey_of(dim, 16, [dim[0, 1], np.median(dim).astype(int), dim[-1, -1]])
        assert notes == {"mapped by the cine's own range"}
        assert got == pytest.approx([0, 127, 255], abs=1)
        black = grey_of(dim, 16, [dim[0, 1]], PhotometricInterpretation="MONOCHROME1")[0]
        assert black == [255]
    saved = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert grey_of(TWELVE, 16, [0, 4095], **saved) == ([0, 255], set())
    for level in (0, 7, 255):
        with pytest.raises(NotACine, match="no picture"):
            grey_of(np.full((9, 9), level, np.uint8), 8, [level])


def test_windows_of_enhanced_xa_hold_for_their_frames():
    groups = [Dataset(), Dataset()]
    shared, view = Dataset(), Dataset()
    view.WindowCenter, view.WindowWidth = 1024.5, 1025
    shared.FrameVOILUTSequence = [view]
    facts = {"PerFrameFunctionalGroupsSequence": groups, "SharedFunctionalGroupsSequence": [shared]}
    assert grey_of(TWELVE, 12, [0, 1024, 2048, 4095], frame=1, **facts)[0] == IN_WINDOW
    groups[1].FrameVOILUTSequence = [Dataset()]
    groups[1].FrameVOILUTSequence[0].WindowCenter = 2048
    groups[1].FrameVOILUTSequence[0].WindowWidth = 4096
    assert grey_of(TWELVE, 12, [0, 1024, 2048, 4095], frame=0, **facts)[0] == IN_WINDOW
    assert grey_of(TWELVE, 12, [0, 1024, 2048, 4095], frame=1, **facts)[0] == FULL


@settings(deadline=None, max_examples=60)
@given(st.integers(300, 3800), st.integers(200, 4095), st.sampled_from(FUNCTIONS))
def test_windows_and_luts_agree_with_pydicom_and_keep_the_order(center, width, function):
    facts = header(12, PixelRepresentation=0, VOILUTFunction=function, **window(center, width))
    got = GreyScale(facts, {0: TWELVE}, lambda: [TWELVE])(TWELVE, 0)
    np.testing.assert_allclose(got, apply_windowing(TWELVE, facts) * 255 / 4095, atol=0.5001)
    assert (np.diff(got.ravel().astype(int)) >= 0).all()
    table = header(12, **lut((np.linspace(0, 1, 4096) ** (center / 2000) * 65535).astype(int), 16))
    table.set_original_encoding(False, True)
    got = GreyScale(table, {0: TWELVE}, lambda: [TWELVE])(TWELVE, 0)
    np.testing.assert_allclose(got, apply_voi_lut(TWELVE, table) * (255 / 65535), atol=0.5001)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_file_without_window_is_as_gdcm_shows_it(tmp_path, photometric):
    gdcm = pytest.importorskip("gdcm")
    stored = np.random.default_rng(0).integers(0, 4096, (4, 24, 32)).astype(np.uint16)
    path = write_cine(tmp_path / "a", stored, bits=12, PhotometricInterpretation=photometric)
    reader, change = gdcm.ImageReader(), gdcm.ImageChangePhotometricInterpretation()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetInput(reader.GetImage())
    interpretation = gdcm.PhotometricInterpretation
    change.SetPhotometricInterpretation(interpretation(interpretation.MONOCHROME2))
    assert change.Change()
    shown = change.GetOutput().GetBuffer().encode("utf-8", "surrogateescape")
    theirs = np.frombuffer(shown, np.uint16).reshape(stored.shape) * (255.0 / 4095)
    ours = np.stack(list(iter_frames(path)))
    np.testing.assert_allclose(ours, theirs, atol=0.5)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases at {CASES}: set CAG_CASES")
@pytest.mark.parametrize("name", ["voi_lut_sequence_only", "enhanced_xa_window_in_groups"])
def test_a_hospitals_windows_and_luts_are_as_pydicom_shows_them(name):
    path = CASES / "dicom" / f"{name}.dcm"
    dataset = pydicom.dcmread(path)
    for index, ours in enumerate(iter_frames(path)):
        view = Dataset()
        view.set_original_encoding(*dataset.original_encoding)
        view.BitsStored, view.PixelRepresentation = dataset.BitsStored, 0
        view.PhotometricInterpretation = "MONOCHROME2"
        for part in ("VOILUTSequence", "WindowCenter", "WindowWidth"):
            if (value := find(dataset, part, index)) is not None:
                setattr(view, part, value)
        theirs = apply_voi_lut(dataset.pixel_array[index], view).astype(float)
        top = 2 ** view.VOILUTSequence[0].LUTDescriptor[2] - 1 if "VOILUTSequence" in view else 0
        theirs *= 255 / (top or 2**dataset.BitsStored - 1)
        assert np.abs(ours - theirs).max() <= 1
