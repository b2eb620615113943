import cv2
import numpy as np
import pytest
import torch
from torch import nn

from cag_utils.keyframes.labels import SIX_CLASSES
from cag_utils.keyframes.network import build_model, prepare, save_model
from cag_utils.keyframes.saliency import compare_random, explain, grad_cam, occlude

PX = 64
NAME = "convnext_twin"  # two channels: standardised grey and its high-pass


class Quarters(nn.Module):
    """Two channels: the brightness of the upper left quarter, and of the lower right one."""

    def forward(self, x):
        mask = torch.zeros(2, 8, 8)
        mask[0, :4, :4], mask[1, 4:, 4:] = 1, 1
        return x[:, :1].relu() * mask


class Corner(nn.Module):
    """Class 0 asks how bright the upper left quarter is, class 1 the lower right one."""

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.AvgPool2d(8), Quarters(), nn.Identity())

    def forward(self, x):
        return self.stages(x).sum((2, 3))


def spots():
    """Grey pictures with two equal bright spots, one in each of the two corners."""
    pictures = torch.full((2, 1, PX, PX), 60, dtype=torch.uint8)
    pictures[:, :, 8:16, 8:16] = pictures[:, :, 48:56, 48:56] = 250
    return pictures


@pytest.mark.parametrize("method", [grad_cam, occlude])
def test_a_map_peaks_where_the_class_looks(method):
    first, last = method(Corner().eval(), NAME, spots(), [0, 1])
    assert first.shape == last.shape == (PX, PX)
    row, column = np.unravel_index(first.argmax(), first.shape)
    assert row < 32 and column < 32 and first[48:56, 48:56].max() <= 0
    row, column = np.unravel_index(last.argmax(), last.shape)
    assert row >= 32 and column >= 32 and last[8:16, 8:16].max() <= 0


def test_grad_cam_by_hand_is_gradient_mean_times_activation():
    model = Corner().eval()
    maps = grad_cam(model, NAME, spots(), [0, 1], upsample=False)
    with torch.no_grad():
        active = model.stages[1](model.stages[0](prepare(spots(), NAME))).numpy()
    assert maps[0] == pytest.approx(active[0, 0])  # each gradient is 1
    assert maps[1] == pytest.approx(active[1, 1])


def random_twin(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(NAME, pretrained=False).eval()


def test_maps_of_a_real_network_differ_from_random_ones_and_explain_reads_a_saved_one(tmp_path):
    model = random_twin()
    pictures = torch.randint(0, 255, (2, 1, PX, PX), dtype=torch.uint8)
    maps = grad_cam(model, NAME, pictures, [0, 3])
    assert maps.shape == (2, PX, PX) and np.isfinite(maps).all()
    before = torch.get_rng_state()
    same = compare_random(random_twin(5), NAME, pictures, [0, 3], seed=5)
    assert np.nanmin(same) == pytest.approx(1)  # the same random weights: the same map
    other = compare_random(model, NAME, pictures, [0, 3], seed=6)
    assert np.isnan(other).all() or np.nanmax(other) < 0.9
    assert torch.equal(before, torch.get_rng_state())  # random weights have their own
    save_model(random_twin(), tmp_path, {"model": NAME, "image_px": PX})
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 255, (80, 80)))
    pictures, maps, likeness = explain(tmp_path, [tmp_path / "a.png"], [SIX_CLASSES[2]], 0)
    assert pictures.shape == (1, PX, PX) and pictures.dtype == np.uint8
    assert set(maps) == {"Grad-CAM", "occlusion"} and likeness.shape == (1,)
    assert all(m.shape == (1, PX, PX) for m in maps.values())
