"""The single frames that the shipped key-frame network learns from, and where their tree lies."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cag_utils.keyframes.labels import SIX_CLASSES
from cag_utils.keyframes.network import build_model
from cag_utils.making import scenes
from cag_utils.making.scenes import (
    CELLS,
    FULL,
    IMAGE_PX,
    LARGEST_BLUR_MM,
    TARGETS,
    Drawing,
    Scenes,
    collect_scenes,
    map_loss,
    map_tree,
    shoot_scenes,
)
from cag_utils.phantom.labels import quality


@pytest.fixture
def one_view(monkeypatch):
    """One view a side instead of three: a third of the work."""
    monkeypatch.setattr(scenes, "CINES_A_SIDE", 1)


def test_a_patient_is_filmed_from_both_sides_and_kept(one_view, tmp_path, monkeypatch):
    found, kept = shoot_scenes(0), collect_scenes(1, tmp_path, n_workers=1)
    for name in ("targets", "labels", "maps"):  # a number is always the same patient
        np.testing.assert_array_equal(found[name], getattr(kept, name))
    np.testing.assert_array_equal(found["pictures"], kept.pictures[:, 0])
    assert set(kept.patients.tolist()) == {0} and len(kept.patients) == len(kept.labels)
    monkeypatch.setattr("cag_utils.making.scenes.shoot_scenes", None)  # once
    assert torch.equal(collect_scenes(1, tmp_path, n_workers=1).pictures, kept.pictures)
    count = len(found["labels"])
    assert 2 * 4 <= count <= 2 * 5
    assert (
        found["pictures"].shape == (count, IMAGE_PX, IMAGE_PX)
        and found["pictures"].dtype == np.uint8
    )
    sides = found["targets"][:, TARGETS.index("is_rca")]
    assert (np.diff(sides) >= 0).all() and set(sides) == {0, 1}
    np.testing.assert_array_equal(found["labels"] // 3, sides)  # the label names the same side
    assert np.abs(found["targets"][:, 1:3]).max() <= 2.2  # 95 degrees and a scatter over 45
    rule = found["targets"][:, 3:]  # the label follows from these
    assert rule.min() >= 0 and rule[:, TARGETS.index("blur_mm") - 3].max() <= LARGEST_BLUR_MM
    columns = dict(zip(TARGETS[3:], rule.T.astype(float), strict=True))
    for i, label in enumerate(found["labels"]):
        measured = {k: round(v[i], 4) for k, v in columns.items() if k != "contrast"}
        measured["standard_view"] = bool(measured["standard_view"])
        assert SIX_CLASSES[label].endswith(quality(**measured))
    shares = found["maps"].astype(float).sum((2, 3))
    opacified = columns["opacified"]
    # the map is of mid-pulse and the label of its beginning, so a border may lie between them
    assert np.median(np.abs(shares[:, 0] - opacified)) < 0.005
    assert np.abs(shares[:, 0] - opacified).max() < 0.1 and shares.sum(1).max() < 1.01


def test_a_negative_patient_is_refused():
    with pytest.raises(ValueError, match="0 or more, got -1"):
        shoot_scenes(-1)


def test_picking_takes_the_same_rows_of_everything():
    count = torch.arange(4)
    whole = Scenes(count[:, None, None, None], count[:, None].float(), count, count, count)
    part = whole.pick(torch.tensor([True, False, False, True]))
    for values in (part.pictures, part.targets, part.labels, part.patients, part.maps):
        assert values.flatten().tolist() == [0, 3]


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


@pytest.mark.parametrize("px", [112, 224])
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
