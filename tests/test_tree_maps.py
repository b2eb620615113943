"""Where the tree lies: shares a cell worked by hand, what the head draws, and its loss."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cag_utils.making_scenes import CELLS, FULL, Drawing, map_loss, map_tree
from cag_utils.network import build_model


def test_shares_by_calibre_worked_by_hand():
    # five points: a wide one seen, a thin one unseen, one outside, a side branch, an occluded one
    tree = SimpleNamespace(
        main=np.array([1, 1, 1, 0, 1], bool),
        open=np.array([1, 1, 1, 1, 0], bool),
        radius=np.array([2.0, 1.0, 1.0, 5.0, 5.0]),
    )
    size = 8 * CELLS
    pose = SimpleNamespace(
        u=np.array([[4.0, 20.0, size + 1.0, 4.0, 4.0]]),
        v=np.array([[12.0, 4.0, 4.0, 4.0, 4.0]]),
        du=np.array([[8.0, 0.0, 0.0, 0.0, 0.0]]),  # half of it moves the first a cell on
        dv=np.zeros((1, 5)),
    )
    seen = np.array([[1, 0, 1, 1, 1]], bool)
    maps = map_tree(tree, pose, seen, size)
    assert maps.shape == (1, 2, CELLS, CELLS) and maps.dtype == np.float16
    expected = np.zeros((2, CELLS, CELLS))
    expected[0, 1, 1] = 0.5  # 2 of 4; row 12 and column 8 in cells of 8
    expected[1, 0, 2] = 0.25
    np.testing.assert_allclose(maps[0], expected)


@pytest.mark.parametrize("px", [64, 112, 160, 224])
def test_the_answers_are_the_networks_own(px):
    torch.manual_seed(0)
    network = build_model("convnext_twin", pretrained=False).eval()
    drawing, pictures = Drawing(network).eval(), torch.randn(2, 2, px, px)
    with torch.no_grad():
        outputs, alone = drawing(pictures), network(pictures)
    torch.testing.assert_close(outputs[:, :6], alone)
    assert outputs.shape == (2, 6 + 2 * (px // 8) ** 2)


def test_loss_worked_by_hand():
    maps = torch.zeros(2, 2, CELLS, CELLS)
    maps[0, 0, 0, 0] = math.log(2) / FULL  # half full
    drawn = torch.full((2, 2 * CELLS**2), -20.0)  # "nothing anywhere", surely
    drawn[0, 0] = 0.0
    wanted = maps.flatten(1)
    # the first cell costs ln 2, the others next to nothing; the second picture does not count
    found = map_loss(drawn, wanted, torch.tensor([True, False])).item()
    assert found == pytest.approx(math.log(2) / (2 * CELLS**2), rel=1e-4)
    both = map_loss(drawn, wanted, torch.tensor([True, True])).item()
    assert both == pytest.approx(found / 2, rel=1e-3)
    assert map_loss(drawn, wanted, torch.tensor([False, False])).item() == 0


def test_a_coarser_drawing_is_compared_with_the_same_tree():
    maps = torch.zeros(1, 2, CELLS, CELLS)
    maps[0, 1, 4:6, 8:10] = 0.01
    coarse = CELLS // 2
    full = torch.zeros(1, 2, coarse, coarse)
    full[0, 1, 2, 4] = 1 - math.exp(-FULL * 0.04)
    right = torch.logit(full, 1e-6).flatten(1)
    plain = torch.tensor([True])
    best = map_loss(right, maps.flatten(1), plain)
    entropy = -(full * full.clamp(min=1e-9).log() + (1 - full) * (1 - full).log())
    assert best.item() == pytest.approx(entropy.mean().item(), abs=1e-4)
    assert map_loss(right.roll(1, 1), maps.flatten(1), plain) > best
