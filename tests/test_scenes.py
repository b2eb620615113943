"""The single frames that the shipped key-frame network learns from."""

import numpy as np
import pytest
import torch

from cag_utils import making_scenes as scenes
from cag_utils.labels import SIX_CLASSES
from cag_utils.making_scenes import (
    CINES_A_SIDE,
    IMAGE_PX,
    LARGEST_BLUR_MM,
    TARGETS,
    Scenes,
    collect_scenes,
    shoot_scenes,
)
from cag_utils.phantom import stills
from cag_utils.phantom.exam import STREAMS
from cag_utils.phantom.grading import quality


def test_a_number_is_always_the_same_patient_from_both_sides():
    found, again = shoot_scenes(3), shoot_scenes(3)
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name])
    count = len(found["labels"])
    assert 2 * 4 * CINES_A_SIDE <= count <= 2 * 5 * CINES_A_SIDE
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


def test_no_cohort_draws_from_the_same_stream():
    assert scenes.STREAM not in {*STREAMS.values(), stills.STREAM}


def test_a_negative_patient_is_refused():
    with pytest.raises(ValueError, match="0 or more, got -1"):
        shoot_scenes(-1)


def test_scenes_are_filmed_once_and_know_their_patients(tmp_path, monkeypatch):
    first = collect_scenes(2, tmp_path, n_workers=1)
    assert set(first.patients.tolist()) == {0, 1} and (first.patients.diff() >= 0).all()
    assert len(first.pictures) == len(first.targets) == len(first.labels) == len(first.patients)
    monkeypatch.setattr("cag_utils.making_scenes.shoot_scenes", None)
    assert torch.equal(collect_scenes(2, tmp_path, n_workers=1).pictures, first.pictures)


def test_picking_takes_the_same_rows_of_everything():
    count = torch.arange(4)
    whole = Scenes(count[:, None, None, None], count[:, None].float(), count, count, count)
    part = whole.pick(torch.tensor([True, False, False, True]))
    for values in (part.pictures, part.targets, part.labels, part.patients, part.maps):
        assert values.flatten().tolist() == [0, 3]
