"""The network: the registry, what it sees, and where it runs."""

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.keyframes.labels import SIX_CLASSES
from cag_utils.keyframes.network import build_model, prepare, read_frame_set, read_pictures
from cag_utils.profiles import load_profile


def test_networks_are_convnexts_with_six_outputs_the_papers_is_published_a_slip_refused():
    for name in ("convnext_twin", "convnext_atto"):
        model = build_model(name, pretrained=False).eval()
        assert type(model).__name__ == "ConvNeXt"
        pictures = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
        assert model(prepare(pictures, name)).shape == (2, 6)
    cnn = load_profile("paper").cnn
    assert timm.get_pretrained_cfg(cnn.model).architecture == "convnext_base"
    with pytest.raises(ValueError, match="did you mean 'convnext_twin'"):
        build_model("convnext_twinn", pretrained=False)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.sampled_from([0.5, 1.0]))
def test_the_twin_does_not_see_brightness(offset, gain):
    rng = np.random.default_rng(offset)
    grey = torch.from_numpy(rng.integers(40, 120, (1, 1, 64, 64)).astype(np.float32))
    base, moved = prepare(grey, "convnext_twin"), prepare(grey + offset, "convnext_twin")
    torch.testing.assert_close(moved, base, atol=1e-3, rtol=0)
    # a flat picture has nothing in either channel, edges included
    flat = torch.full((1, 1, 64, 64), 100.0 * gain)
    assert prepare(flat, "convnext_twin").abs().max() < 1e-3


def test_normalisation_against_timms_and_high_pass_against_opencv():
    grey = torch.full((1, 1, 32, 32), 255 // 5, dtype=torch.uint8)  # 0.2
    got = prepare(grey, "convnext_atto")[0, :, 0, 0]
    expected = (0.2 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    grey = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.float32)
    got = prepare(torch.from_numpy(grey)[None, None], "convnext_twin")[0, 1].numpy()
    blurred = cv2.GaussianBlur(grey, (9, 9), 2, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(got, (grey - blurred) / 8, atol=1e-3)


def test_frame_sets_are_read_as_grey_squares_or_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((40, 48), 7, np.uint8))
    stills = pd.DataFrame({"png": ["a.png"] * 2, "label": [SIX_CLASSES[4], SIX_CLASSES[0]]})
    read = read_frame_set(stills, tmp_path, 32)
    assert read.targets.tolist() == [4, 0] and read.pictures.unique().tolist() == [7]
    with pytest.raises(ValueError, match="no frames"):
        read_frame_set(stills[:0], tmp_path, 32)
    with pytest.raises(ValueError, match="LCA_good"):
        read_frame_set(stills.assign(label="LCA_good"), tmp_path, 32)
    # pictures are grey squares, whatever their shape
    colour = np.zeros((20, 40, 3), np.uint8)
    colour[:, 20:] = (90, 90, 90)
    cv2.imwrite(str(tmp_path / "é.png"), colour)  # a name that cv2.imread fails on under Windows
    got = read_pictures([tmp_path / "é.png"], 10)
    assert got.shape == (1, 1, 10, 10) and got.dtype == torch.uint8
    assert got[0, 0, 0].tolist() == [0] * 5 + [90] * 5
