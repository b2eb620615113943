"""The network: what it sees, what it may not do (mirror), and that a killed training goes on."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from cag_utils import keyframes, training
from cag_utils.keyframes import describe, load_model, predict_frames, save_model
from cag_utils.labels import SIX_CLASSES
from cag_utils.networks import (
    FrameSet,
    build_model,
    pick_device,
    prepare,
    read_frame_set,
    read_pictures,
)
from cag_utils.settings import load_profile
from cag_utils.study import read_json, write_json
from cag_utils.training import Trainer, augment, rate_factor, train_cnn

CNN = load_profile("smoke").cnn.model_copy(update={"image_px": 32, "batch_size": 8})
CPU = torch.device("cpu")


@pytest.fixture
def stills(tmp_path):
    """Twelve PNGs: a bright bar on the left is LCA, on the right RCA; brighter is better."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        picture = rng.integers(0, 60, (40, 48), dtype=np.uint8)
        picture[:, slice(0, 16) if i % 2 else slice(32, 48)] += np.uint8(60 + 60 * (i % 3))
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), picture)
        rows.append({"png": f"{i:02d}.png", "label": SIX_CLASSES[3 * (1 - i % 2) + i % 3]})
    return pd.DataFrame(rows)


@pytest.fixture
def data(stills, tmp_path):
    whole = read_frame_set(stills, tmp_path, 32)
    return {"train": whole, "val": FrameSet(whole.pictures[:6], whole.targets[:6])}


def test_the_twin_and_the_papers_network_are_convnexts_with_six_outputs():
    for name in ("convnext_twin", "convnext_atto"):
        model = build_model(name, pretrained=False).eval()
        assert type(model).__name__ == "ConvNeXt"
        pictures = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
        assert model(prepare(pictures, name)).shape == (2, 6)


def test_the_papers_profile_names_a_published_convnext_base():
    import timm

    cnn = load_profile("paper").cnn
    assert timm.get_pretrained_cfg(cnn.model).architecture == "convnext_base" and cnn.pretrained
    assert (cnn.epochs, cnn.batch_size, cnn.learning_rate, cnn.image_px) == (200, 128, 1e-4, 224)


def test_an_unknown_network_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'convnext_twin'"):
        build_model("convnext_twinn", pretrained=False)


def test_three_channels_are_timms_normalisation():
    grey = torch.full((1, 1, 32, 32), 255 // 5, dtype=torch.uint8)  # 0.2
    got = prepare(grey, "convnext_atto")[0, :, 0, 0]
    expected = (0.2 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


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


def test_high_pass_against_opencv():
    grey = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.float32)
    got = prepare(torch.from_numpy(grey)[None, None], "convnext_twin")[0, 1].numpy()
    blurred = cv2.GaussianBlur(grey, (9, 9), 2, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(got, (grey - blurred) / 8, atol=1e-3)


def test_augmentation_never_mirrors():
    policy = v2.TrivialAugmentWide()
    assert not [name for name in policy._AUGMENTATION_SPACE if "flip" in name.lower()]
    torch.manual_seed(0)
    # three dots, bright to dark, clockwise: turning and shearing keep that sense, a mirror not
    picture = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    for (y, x), grey in zip([(22, 32), (38, 40), (38, 24)], [250, 170, 90], strict=True):
        picture[..., y - 3 : y + 4, x - 3 : x + 4] = grey
    wide = policy._AUGMENTATION_SPACE
    for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        strengths = wide[name][0](31, 64, 64)
        for strength in (strengths[8], -strengths[8]):
            out = policy._apply_image_or_video_transform(
                picture, name, float(strength), policy.interpolation, policy._fill
            )
            assert _turns_clockwise(out[0, 0]), (name, strength)
    assert not _turns_clockwise(picture[0, 0].flip(1))


def _turns_clockwise(picture):
    dots = [(picture == grey).nonzero().double().mean(0) for grey in (250, 170, 90)]
    (y0, x0), (y1, x1), (y2, x2) = (d.tolist() for d in dots)
    return (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0) > 0


def test_augment_draws_for_each_picture_and_keeps_the_form():
    torch.manual_seed(0)
    same = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8).expand(20, -1, -1, -1)
    out = augment(same, v2.TrivialAugmentWide())
    assert out.shape == same.shape and out.dtype == torch.uint8
    assert len({picture.numpy().tobytes() for picture in out}) > 10


@pytest.mark.parametrize(
    "step, warmup, schedule, expected",
    [
        (0, 4, "constant", 0.25),
        (50, 4, "constant", 1.0),
        (0, 0, "cosine", 1.0),
        (50, 0, "cosine", 0.5),
        (25, 0, "cosine", 0.5 + 0.5**1.5),  # cos 45 degrees
        (1, 4, "cosine", 0.5 * 0.5 * (1 + np.cos(np.pi / 100))),
    ],
)
def test_learning_rate_worked_by_hand(step, warmup, schedule, expected):
    assert rate_factor(step, 100, warmup, schedule) == pytest.approx(expected)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'linear'"):
        rate_factor(0, 10, 0, "linear")


def test_only_matrices_are_shrunk():
    trainer = Trainer(CNN, 1, 0, 12, CPU)
    shrunk, free = trainer.optimiser.param_groups
    assert shrunk["weight_decay"] == CNN.weight_decay and free["weight_decay"] == 0
    assert {p.ndim for p in free["params"]} == {1}
    n_parameters = sum(len(group["params"]) for group in trainer.optimiser.param_groups)
    assert n_parameters == len(list(trainer.model.parameters()))


def test_a_training_learns_and_its_best_epoch_is_what_is_saved(data, tmp_path):
    history = train_cnn(data, CNN, tmp_path, seed=0, epochs=25, device=CPU)
    assert history["train_loss"].iloc[-1] < 0.8 * history["train_loss"].iloc[0]
    best = history["val_six_class_f1"].max()
    assert best > 0.5  # chance is about 0.1
    facts = read_json(tmp_path / "model.json")
    assert facts["val_six_class_f1"] == best
    assert facts["epoch"] == history.loc[history["best"], "epoch"].iloc[-1]
    trainer = Trainer(CNN, 1, 5, 12, CPU)
    trainer.model, _ = load_model(tmp_path, CPU)
    assert trainer.evaluate(data["val"])["six_class_f1"] == pytest.approx(best)
    assert pd.read_csv(tmp_path / "history.csv").shape == history.shape
    assert not (tmp_path / "last.pt").exists()


class Killed(BaseException):
    """Stands for a dead kernel."""


def killed_after(monkeypatch, n_epochs):
    """Let `n_epochs` epochs run, then die inside the next one, after some of its steps."""
    whole, runs = Trainer.train_epoch, []

    def epoch(self, frames):
        runs.append(1)
        loss = whole(self, frames)
        if len(runs) > n_epochs:
            raise Killed
        return loss

    monkeypatch.setattr(Trainer, "train_epoch", epoch)


def test_a_killed_training_resumes_with_identical_losses_and_weights(data, tmp_path, monkeypatch):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    torch.manual_seed(1)  # the caller's generator must neither matter nor move
    before = torch.get_rng_state()
    whole = train_cnn(data, CNN, tmp_path / "whole", seed=3, epochs=4, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 2)
        train_cnn(data, CNN, tmp_path / "cut", seed=3, epochs=4, device=CPU)
    assert (tmp_path / "cut" / "last.pt").is_file()
    torch.manual_seed(2)
    with monkeypatch.context() as patch:  # only two epochs are left to run: the third would die
        killed_after(patch, 2)
        cut = train_cnn(data, CNN, tmp_path / "cut", seed=3, epochs=4, device=CPU)
    pd.testing.assert_frame_equal(cut.drop(columns="seconds"), whole.drop(columns="seconds"))
    files = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_a_leftover_of_other_settings_is_not_resumed(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 1)
        train_cnn(data, CNN, tmp_path, seed=3, epochs=2, device=CPU)
    history = train_cnn(data, CNN, tmp_path, seed=4, epochs=2, device=CPU)
    (tmp_path / "fresh").mkdir()
    fresh = train_cnn(data, CNN, tmp_path / "fresh", seed=4, epochs=2, device=CPU)
    assert history["train_loss"].tolist() == fresh["train_loss"].tolist()


def test_negative_epochs_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="epochs must be >= 0"):
        train_cnn(data, CNN, tmp_path, seed=0, epochs=-1)


def test_frame_sets_refuse_what_they_cannot_use(stills, tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        read_frame_set(stills[:0], tmp_path, 32)
    with pytest.raises(ValueError, match="LCA_good"):
        read_frame_set(stills.assign(label="LCA_good"), tmp_path, 32)


def test_pictures_are_grey_squares_whatever_their_shape(tmp_path):
    colour = np.zeros((20, 40, 3), np.uint8)
    colour[:, 20:] = (90, 90, 90)
    cv2.imwrite(str(tmp_path / "é.png"), colour)  # a name that cv2.imread fails on under Windows
    got = read_pictures([tmp_path / "é.png"], 10)
    assert got.shape == (1, 1, 10, 10) and got.dtype == torch.uint8
    assert got[0, 0, 0].tolist() == [0] * 5 + [90] * 5


def test_a_missing_or_broken_still_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"broken\.png is no picture"):
        read_pictures([tmp_path / "broken.png"], 8)
    with pytest.raises(ValueError, match=r"gone\.png is missing"):
        read_pictures([tmp_path / "gone.png"], 8)


def test_side_is_decided_before_quality():
    row = pd.DataFrame([[0.05, 0.4, 0.0, 0.25, 0.3, 0.0]], columns=list(SIX_CLASSES))
    got = describe(row).iloc[0]
    assert (got["laterality"], got["quality"], got["confidence"]) == ("RCA", "bad", 0.3)
    assert got["p_LCA_bad"] == 0.4


@pytest.fixture
def model_dir(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    model = build_model("convnext_twin", pretrained=False)
    save_model(model, folder, {"model": "convnext_twin", "image_px": 32})
    return folder


def test_prediction_does_not_depend_on_the_batch_and_keeps_the_order(model_dir, stills, tmp_path):
    paths = [tmp_path / p for p in stills["png"]]
    whole, single = predict_frames(model_dir, paths), predict_frames(model_dir, paths, 1)
    p = [f"p_{c}" for c in SIX_CLASSES]
    np.testing.assert_allclose(whole[p].sum(axis=1), 1)
    np.testing.assert_allclose(whole[p], single[p], atol=0.02)  # bfloat16
    back = predict_frames(model_dir, paths[::-1])
    np.testing.assert_allclose(back[p].to_numpy()[::-1], whole[p], atol=0.02)
    assert predict_frames(model_dir, []).empty


def test_a_missing_or_foreign_model_is_refused(model_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="01_train_cnn"):
        load_model(tmp_path, CPU)
    write_json(model_dir / "model.json", {"model": "convnext_twin", "classes": ["LCA", "RCA"]})
    with pytest.raises(ValueError, match="the study needs"):
        load_model(model_dir, CPU)


def test_command_line_predicts_a_folder(model_dir, stills, tmp_path):
    keyframes.main(
        ["predict", str(tmp_path), "--out", str(tmp_path / "o.csv"), "--model", str(model_dir)]
    )
    table = pd.read_csv(tmp_path / "o.csv")
    assert table["file"].tolist() == stills["png"].tolist()
    assert set(table["laterality"]) <= {"LCA", "RCA"}
    with pytest.raises(SystemExit):
        keyframes.main(["predict", str(model_dir), "--out", "x.csv"])


def test_the_device_is_the_gpu_exactly_when_there_is_one():
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_save_that_dies_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    training._save_whole({"epoch": 1}, path)

    def half(state, file):
        file.write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Killed):
        training._save_whole({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
