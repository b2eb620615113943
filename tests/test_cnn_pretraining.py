"""Pretraining of the key-frame twin: which loss, what is held out, what is shipped."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cag_utils import making_cnn as fitting
from cag_utils.keyframes import load_model
from cag_utils.labels import SIX_CLASSES
from cag_utils.making_cnn import (
    IS_RCA,
    assess,
    calibrate,
    class_loss,
    pretrain,
    save_predictor,
    scene_loss,
    split_scenes,
    teach_classes,
)
from cag_utils.making_scenes import Scenes, collect_scenes
from cag_utils.network import NETWORKS, PREDICTOR_WEIGHTS, build_model, prepare


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    found = collect_scenes(2, tmp_path_factory.mktemp("cache"), n_workers=1)
    return replace(found, pictures=found.pictures[..., ::4, ::4].contiguous())


def made_up(n_patients, frames_each=2):
    count = n_patients * frames_each
    patients = torch.arange(n_patients).repeat_interleave(frames_each)
    pictures = torch.zeros(count, 1, 32, 32, dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.long)
    return Scenes(pictures, torch.zeros(count, 9), labels, patients, torch.zeros(count, 2, 28, 28))


def test_the_last_tenth_of_the_patients_is_held_out():
    train, held_out = split_scenes(made_up(20))
    assert set(held_out.patients.tolist()) == {18, 19} and len(held_out.labels) == 4
    assert set(train.patients.tolist()) == set(range(18))


PLAIN = torch.tensor([True])


def test_loss_worked_by_hand():
    outputs = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 9.0, 9.0, 9.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.0, 0.0, 0.0]])
    # side: ln 2. Smooth L1 with beta 0.1: 0.5 - 0.05, and 0.05^2 / 0.2; mean of five, times 4.
    # nothing opacified: blur, foreshortening and overlap do not count, however wrong
    expected = math.log(2) + 4 * (0.45 + 0.0125) / 5
    assert scene_loss(outputs, targets, PLAIN).item() == pytest.approx(expected)
    # half opacified they do: 0.2 - 0.05, mean of three, times 4
    outputs = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.2]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]])
    wanted = math.log(2) + 4 * 0.15 / 3
    assert scene_loss(outputs, targets, PLAIN).item() == pytest.approx(wanted)


def test_of_a_randomised_picture_the_side_alone_counts():
    outputs = torch.tensor([[0.0, 9.0, 0.0, 0.0, 0.5, 9.0, 9.0, 9.0, 9.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]])
    assert scene_loss(outputs, targets, ~PLAIN).item() == pytest.approx(math.log(2))
    # beside a perfect plain one it weighs as much as that, and adds nothing but its side
    both = torch.cat([outputs, targets]), torch.cat([targets, targets])
    mean = (2 * math.log(2) + math.log(1 + math.exp(-1)) - math.log(2)) / 2
    plain = torch.tensor([False, True])
    assert scene_loss(*both, plain).item() == pytest.approx(mean)
    # six classes: 1/2 for each of two of the left; labelled the third of the left
    logits = torch.tensor([[0.0, 0.0, -99.0, -99.0, -99.0, -99.0]])
    label = torch.tensor([2])
    assert class_loss(logits, label, ~PLAIN).item() == pytest.approx(0, abs=1e-6)
    assert class_loss(logits, label, PLAIN, 0.0).item() == pytest.approx(99 + math.log(2))
    assert class_loss(logits, torch.tensor([0]), PLAIN, 0.0).item() == pytest.approx(math.log(2))


class Constant(torch.nn.Module):
    """Answers the same to every picture."""

    def __init__(self, *answer):
        super().__init__()
        self.answer = torch.nn.Parameter(torch.tensor(answer))

    def forward(self, pictures):
        return self.answer.expand(len(pictures), -1)


def test_errors_are_in_degrees_and_shares():
    rows = [[1.0, 0, 0, 0, 0, 0, 0, 0, 0], [0.0, 0, 0, 0, 1, 0.5, 0, 0, 0.3]]
    found = replace(made_up(1), targets=torch.tensor(rows))
    got = assess(Constant(1.0, 0.2, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.1), found)
    assert got["held_out_side_accuracy"] == 0.5
    assert got["held_out_error_primary_angle"] == pytest.approx(9.0)  # 0.2 of 45 degrees
    assert got["held_out_error_opacified"] == 0.5
    # the first frame has no contrast and does not count
    assert got["held_out_error_overlap"] == pytest.approx(0.2)


def test_calibration_by_hand():
    """Three right frames of four, all scores equal: the right side has to be lifted by ln 3."""
    labels = torch.tensor([SIX_CLASSES.index(c) for c in ["LCA_bad"] + 3 * ["RCA_bad"]])
    found = replace(made_up(2), labels=labels)
    got = calibrate(Constant(0.0, 5.0, 0.0, 0.0, 5.0, 0.0), found, seed=0)
    assert got["rca_logit_offset"] == pytest.approx(math.log(3), abs=0.02)
    assert got["temperature"] > 0
    assert IS_RCA.tolist() == [False] * 3 + [True] * 3
    # before: a tie counts as left, so one frame of four is right: F1 0.4 and 0
    assert got["held_out_randomised_laterality_f1"] == pytest.approx(0.2, abs=1e-4)
    assert got["held_out_laterality_f1"] == pytest.approx(0.1, abs=1e-4)  # weighted by counts


def test_what_is_trained_is_what_notebook_01_starts_from(scenes, tmp_path, monkeypatch):
    made = teach_classes(pretrain(scenes, epochs=1, seed=0), scenes, epochs=1, seed=0)
    folder = save_predictor(made, tmp_path / "new", {"image_px": 32})
    entry = NETWORKS["convnext_twin"]
    monkeypatch.setitem(NETWORKS, "convnext_twin", replace(entry, weights=folder))
    loaded = build_model("convnext_twin", pretrained=True).state_dict()
    for name, weight in made.state_dict().items():
        torch.testing.assert_close(loaded[name], weight, atol=2e-3, rtol=2e-3)


def test_the_six_class_network_is_read_back_by_the_predict_tool(scenes, tmp_path):
    trunk = pretrain(scenes, epochs=1, seed=0)
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    model = teach_classes(trunk, scenes, epochs=1, seed=0)
    for name, weight in trunk.state_dict().items():
        torch.testing.assert_close(weight, before[name])  # the trunk itself stays as it was
    facts = {"image_px": 32, "temperature": 1.5, "rca_logit_offset": -0.2}
    folder = save_predictor(model, tmp_path / "new", facts)
    loaded, read = load_model(folder, torch.device("cpu"))
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight, atol=2e-3, rtol=2e-3)
    assert facts.items() <= read.items() and read["classes"] == list(SIX_CLASSES)


def test_a_network_that_knows_classes_keeps_its_head_and_sees_full_pictures(scenes, monkeypatch):
    knows = teach_classes(pretrain(scenes, epochs=1, seed=0), scenes, epochs=1, seed=0)
    shrunk = []
    monkeypatch.setattr(fitting, "_shrink", lambda pictures, px: shrunk.append(px) or pictures)
    again = teach_classes(knows, scenes, epochs=2, seed=1, rate=1e-12)  # as good as no step
    assert not shrunk
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(weight, knows.state_dict()[name], atol=1e-6, rtol=1e-6)
    teach_classes(pretrain(scenes, epochs=1, seed=0), scenes, epochs=2, seed=1)
    assert shrunk == [fitting.COARSE_PX]


def test_training_lowers_the_loss(scenes):
    few = scenes.pick(torch.arange(12))
    trunk = pretrain(few, epochs=1, seed=0)
    longer = pretrain(few, epochs=25, seed=0)
    with torch.inference_mode():
        seen = prepare(few.pictures, "convnext_twin")
        plain = torch.ones(len(few.labels), dtype=torch.bool)
        first, last = (scene_loss(m(seen), few.targets, plain).item() for m in (trunk, longer))
    assert last < 0.8 * first


def test_shipped_weights_are_small_and_load():
    assert (PREDICTOR_WEIGHTS / "best.safetensors").stat().st_size < 3e6
    torch.manual_seed(0)
    shipped = build_model("convnext_twin", pretrained=True).state_dict()
    fresh = build_model("convnext_twin", pretrained=False).state_dict()
    assert not torch.equal(shipped["stem.0.weight"], fresh["stem.0.weight"])
    assert all(np.isfinite(weight.numpy()).all() for weight in shipped.values())


def test_a_pretraining_that_was_cut_off_goes_on_to_the_same_weights(scenes, tmp_path, monkeypatch):
    few, file = scenes.pick(torch.arange(10)), tmp_path / "facts.pt"
    whole = pretrain(few, epochs=4, seed=0)
    kept, calls = fitting._keep, []

    def die_after_two(*arguments):
        kept(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "_keep", die_after_two)
    with pytest.raises(KeyboardInterrupt):
        pretrain(few, epochs=4, seed=0, checkpoint=file)
    torch.manual_seed(99)  # whatever happens to the generator in between
    resumed = pretrain(few, epochs=4, seed=0, checkpoint=file)
    assert len(calls) == 4
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)
    # a training of another length starts afresh
    assert len(calls) == 4 and pretrain(few, epochs=1, seed=0, checkpoint=file)
    assert len(calls) == 5


@pytest.mark.parametrize("randomised", [0.0, 1.0])
def test_the_share_of_randomised_pictures(scenes, randomised):
    torch.manual_seed(0)
    plain = scenes.pictures[:12]
    seen, unchanged = fitting._look(plain, randomised)
    same = (seen == plain).flatten(1).all(1)
    assert torch.equal(unchanged, same)
    assert same.all() == (randomised == 0) and (randomised == 0 or not same.any())
