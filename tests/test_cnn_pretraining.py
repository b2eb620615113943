"""Pretraining of the key-frame twin: whose frames, which loss, and what is shipped."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cag_utils.cnn_pretraining import (
    TARGETS,
    Scenes,
    assess,
    collect_scenes,
    pretrain,
    save_trunk,
    scene_loss,
    shoot_scenes,
)
from cag_utils.networks import NETWORKS, TWIN_WEIGHTS, build_model
from cag_utils.phantom.exam import STREAMS


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return collect_scenes(2, tmp_path_factory.mktemp("cache"), n_workers=1)


def test_a_number_is_always_the_same_patient_from_both_sides():
    pictures, targets = shoot_scenes(3)
    again, _ = shoot_scenes(3)
    np.testing.assert_array_equal(pictures, again)
    assert pictures.shape == (10, 128, 128) and pictures.dtype == np.uint8
    assert targets[:, TARGETS.index("is_rca")].tolist() == [0] * 5 + [1] * 5
    assert np.abs(targets[:, 1:3]).max() < 2 and 0 <= targets[:, 3:].min()
    assert targets[:, TARGETS.index("opacified")].max() <= 1


def test_no_cohort_draws_from_the_same_stream():
    from cag_utils import cnn_pretraining
    from cag_utils.phantom import stills

    assert cnn_pretraining.STREAM not in {*STREAMS.values(), stills.STREAM}


def test_a_negative_patient_is_refused():
    with pytest.raises(ValueError, match="0 or more, got -1"):
        shoot_scenes(-1)


def test_scenes_are_filmed_once(tmp_path, monkeypatch):
    first = collect_scenes(1, tmp_path, n_workers=1)
    monkeypatch.setattr("cag_utils.cnn_pretraining.shoot_scenes", None)
    assert torch.equal(collect_scenes(1, tmp_path, n_workers=1).pictures, first.pictures)


def test_loss_worked_by_hand():
    outputs = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.05]])
    # side: ln 2. Smooth L1 with beta 0.1: 0.5 - 0.05, and 0.05^2 / 0.2; mean of four, times 4
    expected = math.log(2) + 0.45 + 0.0125
    assert scene_loss(outputs, targets).item() == pytest.approx(expected)


def test_errors_are_in_degrees_and_shares():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.answer = torch.nn.Parameter(torch.tensor([1.0, 0.2, 0.0, 0.5, 0.0]))

        def forward(self, pictures):
            return self.answer.expand(len(pictures), -1)

    targets = torch.tensor([[1.0, 0, 0, 0, 0], [0.0, 0, 0, 1, 0]])
    got = assess(Constant(), Scenes(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), targets))
    assert got["held_out_side_accuracy"] == 0.5
    assert got["held_out_error_primary_angle"] == pytest.approx(9.0)  # 0.2 of 45 degrees
    assert got["held_out_error_opacified"] == 0.5


def test_what_is_trained_is_what_notebook_01_starts_from(scenes, tmp_path, monkeypatch):
    small = Scenes(scenes.pictures[..., ::4, ::4].contiguous(), scenes.targets)
    model, report = pretrain(small, epochs=1, seed=0, batch_size=8)
    folder = save_trunk(model, tmp_path, report)
    entry = NETWORKS["convnext_twin"]
    monkeypatch.setitem(NETWORKS, "convnext_twin", replace(entry, weights=folder))
    loaded = build_model("convnext_twin", pretrained=True).state_dict()
    for name, weight in model.state_dict().items():
        if name.startswith("head.fc"):
            assert loaded[name].shape[0] == 6
        else:
            torch.testing.assert_close(loaded[name], weight, atol=2e-3, rtol=2e-3)
    assert json.loads((folder / "model.json").read_text(encoding="utf-8")) == report


def test_shipped_weights_are_small_and_load():
    assert (TWIN_WEIGHTS / "model.safetensors").stat().st_size < 2e6
    torch.manual_seed(0)
    shipped = build_model("convnext_twin", pretrained=True).state_dict()
    fresh = build_model("convnext_twin", pretrained=False).state_dict()
    assert not torch.equal(shipped["stem.0.weight"], fresh["stem.0.weight"])
