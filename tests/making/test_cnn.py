"""Pretraining of the key-frame twin: what it is shown, losses, what is held out and shipped."""

import math
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from cag_utils.cines.stills import fit_picture
from cag_utils.keyframes.labels import QUALITY, SIX_CLASSES
from cag_utils.keyframes.network import NETWORKS, build_model, load_model, prepare
from cag_utils.making import cnn
from cag_utils.making.cnn import CELLS, FULL, TARGETS, class_loss, map_loss, scene_loss
from cag_utils.phantom.anatomy.growth import grow_tree
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import draw_shot
from cag_utils.phantom.labels import quality
from cag_utils.phantom.subject import draw_subject


def made_up(n_patients, frames_each=2):
    patients = torch.arange(n_patients).repeat_interleave(frames_each)
    targets, maps = torch.zeros(len(patients), 9), torch.zeros(len(patients), 2, CELLS, CELLS)
    pictures = torch.zeros(len(patients), 1, 32, 32, dtype=torch.uint8)
    return cnn.Scenes(pictures, targets, 0 * patients, patients, maps)


@pytest.fixture(scope="module")
def scenes():
    """Noise with something to learn: the right side is brighter."""
    draw, empty = torch.Generator().manual_seed(0), made_up(12)
    is_rca = torch.arange(24) % 2
    noise = torch.randint(0, 90, empty.pictures.shape, generator=draw)
    targets = torch.rand(24, 9, generator=draw)
    targets[:, 0] = is_rca
    pictures = (noise + 120 * is_rca[:, None, None, None] * (torch.arange(32) > 16)).byte()
    labels = 3 * is_rca + torch.arange(24) // 2 % 3
    return replace(empty, pictures=pictures, targets=targets, labels=labels)


@pytest.fixture(scope="module")
def taught(scenes):
    """A trunk that knows facts, its weights then, and the six-class network made of it."""
    trunk = cnn.pretrain(scenes, epochs=1, seed=0)
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    return trunk, before, cnn.teach_classes(trunk, scenes, epochs=1, seed=0)


PLAIN = torch.tensor([True])


def test_loss_worked_by_hand():
    outputs = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 9.0, 9.0, 9.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.0, 0.0, 0.0]])
    # side: ln 2. Smooth L1 with beta 0.1: 0.5 - 0.05, and 0.05^2 / 0.2; mean of five, times 4.
    # nothing opacified: blur, foreshortening and overlap do not count, however wrong
    wanted = math.log(2) + 4 * (0.45 + 0.0125) / 5
    assert scene_loss(outputs, targets, PLAIN).item() == pytest.approx(wanted)
    # half opacified they do: 0.2 - 0.05, mean of three, times 4
    outputs = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.2]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]])
    wanted = math.log(2) + 4 * 0.15 / 3
    assert scene_loss(outputs, targets, PLAIN).item() == pytest.approx(wanted)
    # of a randomised picture the side alone counts
    outputs = torch.tensor([[0.0, 9.0, 0.0, 0.0, 0.5, 9.0, 9.0, 9.0, 9.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]])
    assert scene_loss(outputs, targets, ~PLAIN).item() == pytest.approx(math.log(2))
    # beside a perfect plain one it weighs as much as that, and adds nothing but its side
    both = torch.cat([outputs, targets]), torch.cat([targets, targets])
    mean = (2 * math.log(2) + math.log(1 + math.exp(-1)) - math.log(2)) / 2
    plain = torch.tensor([False, True])
    assert scene_loss(*both, plain).item() == pytest.approx(mean)
    # six classes: 1/2 for each of two of the left; randomised, better and bad are one, other is not
    logits = torch.tensor([[0.0, 0.0, -99.0, -99.0, -99.0, -99.0]])
    nowhere = 99 + math.log(2)
    randomised = ((0, False, 0), (1, False, 0), (2, False, nowhere), (3, False, 99))
    for label, plain, loss in (*randomised, (2, True, nowhere), (0, True, math.log(2))):
        got = class_loss(logits, torch.tensor([label]), torch.tensor([plain]), 0.0)
        assert got.item() == pytest.approx(loss, rel=1e-6, abs=1e-6)


class Constant(torch.nn.Module):
    """Answers the same to every picture."""

    def __init__(self, *answer):
        super().__init__()
        self.answer = torch.nn.Parameter(torch.tensor(answer))

    def forward(self, pictures):
        return self.answer.expand(len(pictures), -1)


def test_errors_are_in_degrees_and_shares_of_the_last_tenth_of_the_patients():
    train, held_out = cnn.split_scenes(made_up(20))
    assert set(held_out.patients.tolist()) == {18, 19} and len(held_out.labels) == 4
    assert set(train.patients.tolist()) == set(range(18))
    rows = [[1.0, 0, 0, 0, 0, 0, 0, 0, 0], [0.0, 0, 0, 0, 1, 0.5, 0, 0, 0.3]]
    found = replace(made_up(1), targets=torch.tensor(rows))
    got = cnn.assess(Constant(1.0, 0.2, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.1), found)
    assert got["held_out_side_accuracy"] == 0.5
    assert got["held_out_error_primary_angle"] == pytest.approx(9.0)  # 0.2 of 45 degrees
    assert got["held_out_error_opacified"] == 0.5
    # the first frame has no contrast and does not count
    assert got["held_out_error_overlap"] == pytest.approx(0.2)


def test_calibration_by_hand():
    """Three right frames of four, all scores equal: the right side has to be lifted by ln 3."""
    labels = torch.tensor([SIX_CLASSES.index(c) for c in ["LCA_bad"] + 3 * ["RCA_bad"]])
    found = replace(made_up(2), labels=labels)
    got = cnn.calibrate(Constant(0.0, 5.0, 0.0, 0.0, 5.0, 0.0), found, seed=0)
    assert got["rca_logit_offset"] == pytest.approx(math.log(3), abs=0.02)
    assert got["temperature"] < 1  # never wrong about the quality: surer than the scores say
    assert cnn.IS_RCA.tolist() == [False] * 3 + [True] * 3
    # before: a tie counts as left, so one frame of four is right: F1 0.4 and 0
    assert got["held_out_randomised_laterality_f1"] == pytest.approx(0.2, abs=1e-4)
    assert got["held_out_laterality_f1"] == pytest.approx(0.1, abs=1e-4)  # weighted by counts


def test_what_is_trained_is_what_notebook_01_and_predict_start_from(taught, tmp_path, monkeypatch):
    trunk, before, made = taught
    for name, weight in trunk.state_dict().items():
        torch.testing.assert_close(weight, before[name])  # the trunk itself stays as it was
    facts = {"image_px": 32, "temperature": 1.5, "rca_logit_offset": -0.2}
    folder = cnn.save_predictor(made, tmp_path / "new", facts)
    predictor, read = load_model(folder, torch.device("cpu"))
    assert facts.items() <= read.items() and read["classes"] == list(SIX_CLASSES)
    entry = replace(NETWORKS["convnext_twin"], weights=folder)
    monkeypatch.setitem(NETWORKS, "convnext_twin", entry)
    start = build_model("convnext_twin", pretrained=True)
    for name, weight in made.state_dict().items():
        for loaded in (predictor, start):
            torch.testing.assert_close(loaded.state_dict()[name], weight, atol=2e-3, rtol=2e-3)


def test_a_taught_network_keeps_its_head_and_sees_full_pictures(taught, scenes, monkeypatch):
    trunk, _, knows = taught
    shrunk = []
    monkeypatch.setattr(cnn, "_shrink", lambda pictures: shrunk.append(1) or pictures)
    again = cnn.teach_classes(knows, scenes, epochs=2, seed=1, rate=1e-12)  # as good as no step
    assert not shrunk
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(weight, knows.state_dict()[name], atol=1e-6, rtol=1e-6)
    cnn.teach_classes(trunk, scenes, epochs=2, seed=1)
    assert shrunk == [1]  # once, for the first half


def test_training_lowers_the_loss_and_a_finished_one_is_not_run_again(scenes, tmp_path, taught):
    longer = cnn.pretrain(scenes, epochs=12, seed=0, checkpoint=tmp_path / "facts.pt")
    with torch.inference_mode():
        seen = prepare(scenes.pictures, "convnext_twin")
        plain = torch.ones(len(scenes.labels), dtype=torch.bool)
        networks = taught[0], longer
        first, last = (scene_loss(m(seen), scenes.targets, plain).item() for m in networks)
    assert last < 0.85 * first
    with mock.patch.object(cnn, "randomise", side_effect=AssertionError("a picture is drawn")):
        again = cnn.pretrain(scenes, epochs=12, seed=0, checkpoint=tmp_path / "facts.pt")
    assert all(torch.equal(v, longer.state_dict()[k]) for k, v in again.state_dict().items())


def batch(count=48, size=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(40, 200, (count, 1, size, size), dtype=torch.uint8, generator=generator)


def test_pictures_are_changed_within_range_again_and_each_on_its_own():
    found = cnn.randomise(batch(), torch.Generator().manual_seed(3))
    assert found.shape == (48, 1, 64, 64) and found.dtype == torch.float32
    assert 0 <= found.min() and found.max() <= 255 and torch.isfinite(found).all()
    assert torch.equal(found, cnn.randomise(batch(), torch.Generator().manual_seed(3)))
    assert not torch.equal(found, cnn.randomise(batch(), torch.Generator().manual_seed(4)))
    same = cnn.randomise(batch(1).expand(32, -1, -1, -1), torch.Generator().manual_seed(0))
    assert len({round(float(p.mean()), 3) for p in same}) == 32  # each on its own


def test_nothing_is_ever_mirrored(monkeypatch):
    """A bright spot left of the middle stays left of a darker one on its right."""
    for name, still in {"SHIFT": 0.0, "TURN_DEG": 5.0, "NOISE_GREY": 0.0}.items():
        monkeypatch.setattr(cnn, name, still)
    pictures = torch.full((64, 1, 64, 64), 90, dtype=torch.uint8)
    pictures[:, :, 28:36, 20:28] = 250
    pictures[:, :, 28:36, 36:44] = 10
    grey = cnn._warp(pictures.float(), cnn._Draw(64, torch.Generator().manual_seed(2)))
    columns = torch.arange(64).float()
    for one in grey[:, 0, 16:48]:
        bright, dark = (one - 90).clamp(min=0), (90 - one).clamp(min=0)
        dark = dark * ((one < 60) & (one > 4))  # the black border is neither
        left, right = ((x.sum(0) * columns).sum() / x.sum() for x in (bright, dark))
        assert left < right


def test_zoom_and_shift_worked_by_hand(monkeypatch):
    """Zoom 0.5 shows the inner half twice as large."""
    for name, value in {"ZOOM": (0.5, 0.5), "ASPECT": 0.0, "SHIFT": 0.0, "TURN_DEG": 0.0}.items():
        monkeypatch.setattr(cnn, name, value)
    ramp = torch.arange(64).float().expand(1, 1, 64, 64)
    got = cnn._warp(ramp, cnn._Draw(1, torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(got[0, 0, 32, [0, 63]], [15.75, 47.25], atol=0.01)


def test_a_patient_is_filmed_from_both_sides_and_kept(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="non-negative"):
        cnn.shoot_scenes(-1)
    monkeypatch.setattr(cnn, "CINES_A_SIDE", 1)  # a third of the work
    found, kept = cnn.shoot_scenes(0), cnn.collect_scenes(1, tmp_path, n_workers=1)
    for name in ("targets", "labels", "maps"):  # a number is always the same patient
        np.testing.assert_array_equal(found[name], getattr(kept, name))
    np.testing.assert_array_equal(found["pictures"], kept.pictures[:, 0])
    assert set(kept.patients.tolist()) == {0} and len(kept.patients) == len(kept.labels)
    monkeypatch.setattr(cnn, "shoot_scenes", None)  # once
    assert torch.equal(cnn.collect_scenes(1, tmp_path, n_workers=1).pictures, kept.pictures)
    assert 2 * 4 <= len(found["labels"]) <= 2 * 5
    assert found["pictures"].shape == (len(found["labels"]), cnn.IMAGE_PX, cnn.IMAGE_PX)
    sides = found["targets"][:, TARGETS.index("is_rca")]
    assert (np.diff(sides) >= 0).all() and set(sides) == {0, 1}
    np.testing.assert_array_equal(found["labels"] // 3, sides)  # the label names the same side
    assert np.abs(found["targets"][:, 1:3]).max() <= 2.2  # 95 degrees and a scatter over 45
    rule = found["targets"][:, 3:]  # the label follows from these
    columns = dict(zip(TARGETS[3:], rule.T.astype(float), strict=True))
    assert rule.min() >= 0 and columns["blur_mm"].max() <= cnn.LARGEST_BLUR_MM
    for i, label in enumerate(found["labels"]):
        measured = {k: round(v[i], 4) for k, v in columns.items() if k != "contrast"}
        measured["standard_view"] = bool(measured["standard_view"])
        assert SIX_CLASSES[label].endswith(quality(**measured))
    shares = found["maps"].astype(float).sum((2, 3))
    # the map is of mid-pulse and the label of its beginning, so a border may lie between them
    away = np.abs(shares[:, 0] - columns["opacified"])
    assert np.median(away) < 0.005 and away.max() < 0.1 and shares.sum(1).max() < 1.01


def test_shares_by_calibre_worked_by_hand():
    # five points: a wide one seen, a thin one unseen, one outside, a side branch, an occluded one
    main, open_, seen = np.array([[1, 1, 1, 0, 1], [1, 1, 1, 1, 0], [1, 0, 1, 1, 1]], bool)
    tree = SimpleNamespace(main=main, open=open_, radius=np.array([2.0, 1.0, 1.0, 5.0, 5.0]))
    size = 8 * CELLS
    u, v = np.array([[4.0, 20.0, size + 1.0, 4.0, 4.0]]), np.array([[12.0, 4.0, 4.0, 4.0, 4.0]])
    du = np.array([[8.0, 0.0, 0.0, 0.0, 0.0]])  # half of it moves the first a cell on
    maps = cnn.map_tree(tree, SimpleNamespace(u=u, v=v, du=du, dv=0 * du), seen[None], size)
    expected = np.zeros((1, 2, CELLS, CELLS))
    expected[0, 0, 1, 1] = 0.5  # 2 of 4; row 12 and column 8 in cells of 8
    expected[0, 1, 0, 2] = 0.25
    np.testing.assert_array_equal(maps, expected)
    assert maps.dtype == np.float16


@pytest.mark.parametrize("px", [112, 224])
def test_the_answers_are_the_networks_own(px):
    torch.manual_seed(0)
    network = build_model("convnext_twin", pretrained=False).eval()
    drawing, pictures = cnn.Drawing(network).eval(), torch.randn(2, 2, px, px)
    with torch.no_grad():
        outputs, alone = drawing(pictures), network(pictures)
    torch.testing.assert_close(outputs[:, :6], alone)
    assert outputs.shape == (2, 6 + 2 * (px // 8) ** 2)


def test_the_maps_loss_worked_by_hand():
    maps = torch.zeros(2, 2, CELLS, CELLS)
    maps[0, 0, 0, 0] = math.log(2) / FULL  # half full
    drawn = torch.full((2, 2 * CELLS**2), -20.0)  # "nothing anywhere", surely
    drawn[0, 0] = 0.0
    one = math.log(2) / (2 * CELLS**2)
    # the first cell costs ln 2, the others next to nothing; what is not plain does not count
    for plain, loss in (([True, False], one), ([True, True], one / 2), ([False, False], 0)):
        found = map_loss(drawn, maps.flatten(1), torch.tensor(plain)).item()
        assert found == pytest.approx(loss, rel=1e-3)
    # a coarser drawing is compared with the same tree
    maps, full = torch.zeros(1, 2, CELLS, CELLS), torch.zeros(1, 2, CELLS // 2, CELLS // 2)
    maps[0, 1, 4:6, 8:10] = 0.01
    full[0, 1, 2, 4] = 1 - math.exp(-FULL * 0.04)
    right = torch.logit(full, 1e-6).flatten(1)
    best = map_loss(right, maps.flatten(1), PLAIN)
    entropy = -(full * full.clamp(min=1e-9).log() + (1 - full) * (1 - full).log())
    assert best.item() == pytest.approx(entropy.mean().item(), abs=1e-4)
    assert map_loss(right.roll(1, 1), maps.flatten(1), PLAIN) > best


def test_the_shipped_network_calls_aortograms_other():
    pictures = []
    for seed, side in enumerate(("LCA", "RCA") * 2):
        rng = np.random.default_rng([98, seed])
        subject = draw_subject(rng, (1.0,))
        tree = grow_tree(rng, side, subject.dominance)
        shot = draw_shot(rng, subject, tree, "aortogram", 4, 1.3, 256)
        frames, _ = film(rng, subject, tree, shot)
        pictures += [fit_picture(frame, cnn.IMAGE_PX) for frame in frames]
    shown = prepare(torch.from_numpy(np.array(pictures))[:, None].float(), cnn.NETWORK)
    with torch.inference_mode():
        answers = build_model(cnn.NETWORK, pretrained=True).eval()(shown).argmax(1)
    said = [QUALITY[SIX_CLASSES[answer]] for answer in answers]
    assert len(said) == 16 and said.count("other") >= 14
