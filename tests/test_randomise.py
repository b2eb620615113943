"""Domain randomisation: it changes pictures, never sides."""

import pytest
import torch

from cag_utils import making_cnn as module
from cag_utils.making_cnn import randomise


def batch(count=48, size=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(40, 200, (count, 1, size, size), dtype=torch.uint8, generator=generator)


def test_shape_range_and_repeatability():
    found = randomise(batch(), torch.Generator().manual_seed(3))
    assert found.shape == (48, 1, 64, 64) and found.dtype == torch.float32
    assert 0 <= found.min() and found.max() <= 255 and torch.isfinite(found).all()
    assert torch.equal(found, randomise(batch(), torch.Generator().manual_seed(3)))
    assert not torch.equal(found, randomise(batch(), torch.Generator().manual_seed(4)))


def test_every_picture_is_changed_on_its_own():
    same = batch(1).expand(32, -1, -1, -1)
    found = randomise(same, torch.Generator().manual_seed(0))
    assert len({round(float(p.mean()), 3) for p in found}) == 32


def test_nothing_is_ever_mirrored(monkeypatch):
    """A bright spot left of the middle stays left of a darker one on its right."""
    for name, still in {"SHIFT": 0.0, "TURN_DEG": 5.0, "NOISE_GREY": 0.0}.items():
        monkeypatch.setattr(module, name, still)
    pictures = torch.full((64, 1, 64, 64), 90, dtype=torch.uint8)
    pictures[:, :, 28:36, 20:28] = 250
    pictures[:, :, 28:36, 36:44] = 10
    grey = module._warp(pictures.float(), module._Draw(64, torch.Generator().manual_seed(2)))
    columns = torch.arange(64).float()
    for one in grey[:, 0, 16:48]:
        bright, dark = (one - 90).clamp(min=0), (90 - one).clamp(min=0)
        dark = dark * ((one < 60) & (one > 4))  # the black border is neither
        left = (bright.sum(0) * columns).sum() / bright.sum()
        right = (dark.sum(0) * columns).sum() / dark.sum()
        assert left < right


def test_zoom_and_shift_worked_by_hand(monkeypatch):
    """Zoom 0.5 shows the inner half twice as large."""
    for name, value in {"ZOOM": (0.5, 0.5), "ASPECT": 0.0, "SHIFT": 0.0, "TURN_DEG": 0.0}.items():
        monkeypatch.setattr(module, name, value)
    ramp = torch.arange(64).float().expand(1, 1, 64, 64)
    got = module._warp(ramp, module._Draw(1, torch.Generator().manual_seed(0)))
    assert got[0, 0, 32, 0].item() == pytest.approx(15.75, abs=0.01)
    assert got[0, 0, 32, 63].item() == pytest.approx(47.25, abs=0.01)
