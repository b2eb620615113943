"""Training: learns, keeps its best, shares batches between processes, and survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from cag_utils import trainer, training
from cag_utils.augmentation import AugmentedFrames, BatchLoader, augment, epoch_batches, stream
from cag_utils.checkpoints import load_model
from cag_utils.networks import FrameSet
from cag_utils.processes import Team, count_processes, join_team, launch
from cag_utils.profiles import load_profile
from cag_utils.study import read_json
from cag_utils.trainer import Trainer, mix, moving_average, rate_factor
from cag_utils.training import train_cnn

CPU = torch.device("cpu")
ALONE = Team(0, 1, CPU)
CNN = load_profile("smoke").cnn.model_copy(
    update={"image_px": 32, "batch_size": 8, "pretrained": False, "start_share": 0.0}
)
# no dropped paths: the only thing that differs between one process and two
PLAIN = CNN.model_copy(update={"model": "convnext_atto", "learning_rate": 1e-3, "average": 0.0})


def make_data(n_train=12, n_val=6):
    """A bright bar on the left is LCA, on the right RCA; brighter is better."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 60, (n_train, 1, 32, 32), dtype=np.uint8)
    targets = np.empty(n_train, int)
    for i in range(n_train):
        pictures[i, 0, :, slice(0, 11) if i % 2 else slice(21, 32)] += np.uint8(60 + 60 * (i % 3))
        targets[i] = 3 * (1 - i % 2) + i % 3
    whole = FrameSet(torch.from_numpy(pictures), torch.from_numpy(targets))
    return {"train": whole, "val": FrameSet(whole.pictures[:n_val], whole.targets[:n_val])}


@pytest.fixture
def data():
    return make_data()


class Killed(BaseException):
    """Stands for a dead kernel."""


def killed():
    raise Killed


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


# --- augmentation ------------------------------------------------------------------------------


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


def test_what_a_frame_looks_like_depends_on_seed_epoch_and_index_alone(data):
    frames = AugmentedFrames(data["train"], seed=5)
    before = torch.get_rng_state()
    first = [frames[0, i][0] for i in range(12)]
    assert torch.equal(torch.get_rng_state(), before)  # the network's own draws stay as they were
    torch.manual_seed(9)
    assert all(torch.equal(frames[0, i][0], first[i]) for i in reversed(range(12)))
    for other in (AugmentedFrames(data["train"], seed=6), frames):
        epoch = 0 if other is not frames else 1
        assert sum(not torch.equal(other[epoch, i][0], first[i]) for i in range(12)) > 8


def test_loader_workers_change_nothing(data):
    frames, batches = AugmentedFrames(data["train"], seed=5), [[3, 1], [0, 2, 7], [11]]
    alone, two = (BatchLoader(frames, n, pin=False) for n in (0, 2))
    for epoch in (4, 5):  # the second with the same workers
        drawn = list(alone.epoch(batches, epoch))
        for here, there, batch in zip(drawn, two.epoch(batches, epoch), batches, strict=True):
            assert torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])
            assert torch.equal(here[0][0], frames[epoch, batch[0]][0])
            assert here[1].tolist() == data["train"].targets[batch].tolist()
        batches = batches[::-1]


def test_a_frame_that_cannot_be_drawn_leaves_the_generator_alone(data):
    before = torch.get_rng_state()
    with pytest.raises(IndexError):
        AugmentedFrames(data["train"], seed=5)[0, 99]
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_an_epoch_holds_every_frame_once(n, batch_size, seed, epoch):
    batches = epoch_batches(n, batch_size, seed, epoch)
    assert sorted(sum(batches, [])) == list(range(n))
    assert all(len(b) == batch_size for b in batches[:-1]) and 1 <= len(batches[-1]) <= batch_size
    assert batches == epoch_batches(n, batch_size, seed, epoch)


def test_epochs_and_seeds_are_shuffled_differently():
    orders = {tuple(epoch_batches(30, 30, seed, epoch)[0]) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4 and len({stream(0, 1), stream(1, 0), stream(0, 1, 0)}) == 3


# --- schedule and average ----------------------------------------------------------------------


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


def test_moving_average_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    average = moving_average(model, 0.5)
    values = []
    for value in (4.0, 8.0, 0.0):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update_parameters(model)
        values.append(average.module.weight.item())
    # the first is taken over; then the decay is min(0.5, (n + 1) / (n + 11)) for n = 1, 2
    second = 4 + (1 - 2 / 12) * (8 - 4)
    assert values == pytest.approx([4.0, second, second * (3 / 13)])
    for _ in range(40):  # in the long run one half
        average.update_parameters(model)
    before = average.module.weight.item()
    with torch.no_grad():
        model.weight.fill_(2.0)
    average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx((before + 2) / 2)


def test_only_matrices_are_shrunk():
    trainer = Trainer(CNN, 1, 0, 12, ALONE)
    shrunk, free = trainer.optimiser.param_groups
    assert shrunk["weight_decay"] == CNN.weight_decay and free["weight_decay"] == 0
    assert {p.ndim for p in free["params"]} == {1}
    n_parameters = sum(len(group["params"]) for group in trainer.optimiser.param_groups)
    assert n_parameters == len(list(trainer.model.parameters()))


# --- one process -------------------------------------------------------------------------------


def without_seconds(history):
    return history.drop(columns="seconds")


def test_a_training_learns_and_its_best_epoch_is_what_is_saved(data, tmp_path):
    history = train_cnn(data, CNN, tmp_path, seed=0, epochs=25, device=CPU)
    assert history["train_loss"].iloc[-1] < 0.85 * history["train_loss"].iloc[0]
    best = history["val_six_class_f1"].max()
    assert best > 0.5  # chance is about 0.1
    facts = read_json(tmp_path / "model.json")
    assert facts["val_six_class_f1"] == best
    assert facts["epoch"] == history.loc[history["best"], "epoch"].iloc[-1]
    trainer = Trainer(CNN.model_copy(update={"average": 0.0}), 1, 5, 12, ALONE)
    trainer.model, _ = load_model(tmp_path, CPU)
    assert trainer.evaluate(data["val"])["six_class_f1"] == pytest.approx(best)
    assert pd.read_csv(tmp_path / "history.csv").shape == history.shape
    assert not (tmp_path / "last.pt").exists()


def test_the_callers_generator_neither_matters_nor_moves(data, tmp_path):
    histories = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        histories.append(train_cnn(data, CNN, tmp_path, seed=3, epochs=1, device=CPU))
        assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(*map(without_seconds, histories))


def test_the_average_is_what_is_judged_and_kept(data, tmp_path):
    trainer = Trainer(CNN.model_copy(update={"average": 0.9}), 1, 0, 12, ALONE)
    trainer.train_epoch(data["train"])
    kept, last = (m.state_dict()["head.fc.weight"] for m in (trainer.best_model, trainer.model))
    assert not torch.equal(kept, last)
    off = Trainer(CNN.model_copy(update={"average": 0.0}), 1, 0, 12, ALONE)
    assert off.best_model is off.model


def test_halfway_back_to_the_start_by_hand():
    model = torch.nn.BatchNorm1d(1)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model.weight.fill_(5.0)
    model.num_batches_tracked.fill_(7)  # a count is no weight
    mixed = mix(start, model, 0.25)
    assert mixed.weight.item() == 1 + 0.75 * 4 and model.weight.item() == 5
    assert mixed.num_batches_tracked == 7


def test_part_of_the_start_stays_in_what_is_judged_and_kept(data, tmp_path):
    halfway = CNN.model_copy(update={"average": 0.0, "start_share": 0.5})
    assert Trainer(halfway, 1, 0, 12, ALONE).start is None  # random weights: nothing to keep
    trainer = Trainer(halfway.model_copy(update={"pretrained": True}), 1, 0, 12, ALONE)
    start = trainer.model.state_dict()["stem.0.weight"].clone()
    trainer.train_epoch(data["train"])
    end, kept = (m.state_dict()["stem.0.weight"] for m in (trainer.model, trainer.best_model))
    assert not torch.equal(start, end)
    torch.testing.assert_close(kept, (start + end) / 2)


def test_patience_stops_a_training_that_no_longer_gets_better(data, tmp_path):
    # without a learning rate worth the name the first epoch stays the best
    still = CNN.model_copy(update={"learning_rate": 1e-12, "average": 0.0})
    whole = train_cnn(data, still, tmp_path, seed=0, epochs=5, device=CPU)
    assert len(whole) == 5  # patience 0: never
    patient = still.model_copy(update={"patience": 2})
    history = train_cnn(data, patient, tmp_path, seed=0, epochs=5, device=CPU)
    assert history["best"].tolist() == [True, False, False]


def test_patience_counts_on_over_a_kill(data, tmp_path, monkeypatch):
    still = CNN.model_copy(update={"learning_rate": 1e-12, "average": 0.0, "patience": 2})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 2)
        train_cnn(data, still, tmp_path, seed=0, epochs=5, device=CPU)
    with monkeypatch.context() as patch, pytest.raises(Killed):  # one more, dies before the end
        patch.setattr(Path, "unlink", lambda path: killed())
        killed_after(patch, 1)
        train_cnn(data, still, tmp_path, seed=0, epochs=5, device=CPU)
    killed_after(monkeypatch, 0)  # it is over: not one epoch is left
    history = train_cnn(data, still, tmp_path, seed=0, epochs=5, device=CPU)
    assert history["best"].tolist() == [True, False, False]


def test_weights_stay_float32_and_channels_last(data):
    trainer = Trainer(CNN, 1, 0, 12, ALONE)
    trainer.train_epoch(data["train"])
    for model in (trainer.model, trainer.best_model):
        kernels = [p for p in model.parameters() if p.ndim == 4]
        assert kernels and {p.dtype for p in model.parameters()} == {torch.float32}
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"processes": -1}])
def test_negative_counts_are_refused(data, tmp_path, wrong):
    with pytest.raises(ValueError, match="must be >= 0"):
        train_cnn(data, CNN, tmp_path, seed=0, **wrong)


# --- a kill ------------------------------------------------------------------------------------


SCRIPT = """
import sys
from pathlib import Path
import torch
from tests.test_training import CNN, make_data
from cag_utils.training import train_cnn
torch.set_num_threads(1)
train_cnn(make_data(), CNN, Path(sys.argv[1]), seed=3, epochs=25, device=torch.device("cpu"))
"""


@pytest.fixture
def one_thread():
    """As in the script: another number of threads adds up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_kill_9_and_resume_give_identical_losses_and_weights(data, tmp_path, one_thread):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "cut")], stderr=subprocess.DEVNULL
    )
    last = tmp_path / "cut" / "last.pt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still at work
    assert 1 <= len(torch.load(last, weights_only=True)["history"]) < 25
    cut, whole = (
        train_cnn(data, CNN, tmp_path / name, seed=3, epochs=25, device=CPU)
        for name in ("cut", "whole")
    )
    pd.testing.assert_frame_equal(without_seconds(cut), without_seconds(whole), check_exact=True)
    files = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1] and not last.exists()


def test_a_leftover_of_other_settings_is_not_resumed(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 1)
        train_cnn(data, CNN, tmp_path, seed=3, epochs=2, device=CPU)
    history = train_cnn(data, CNN, tmp_path, seed=4, epochs=2, device=CPU)
    (tmp_path / "fresh").mkdir()
    fresh = train_cnn(data, CNN, tmp_path / "fresh", seed=4, epochs=2, device=CPU)
    assert history["train_loss"].tolist() == fresh["train_loss"].tolist()


def test_only_what_changes_nothing_may_change_before_a_resume(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 2)
        train_cnn(data, CNN, tmp_path, seed=3, epochs=4, device=CPU)
    more = CNN.model_copy(update={"n_workers": 1})
    with monkeypatch.context() as patch:  # two epochs are left: a third would die
        killed_after(patch, 2)
        assert len(train_cnn(data, more, tmp_path, seed=3, epochs=4, device=CPU)) == 4


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


# --- several processes -------------------------------------------------------------------------


def gradients(monkeypatch, team, data):
    """Loss (nats) and each step's gradients of one process, in float32, weights left alone."""
    steps = []

    def record(optimiser, *_):
        groups = [group["params"] for group in optimiser.param_groups]
        steps.append(torch.cat([p.grad.flatten() for params in groups for p in params]))

    with monkeypatch.context() as patch:
        patch.setattr(Team, "share", lambda self, model: model)
        patch.setattr(Team, "gather", lambda self, item: [item])
        patch.setattr(trainer, "autocast", lambda device: nullcontext())
        patch.setattr(trainer, "CLIP_NORM", float("inf"))
        patch.setattr(torch.optim.AdamW, "step", record)
        one = Trainer(PLAIN.model_copy(update={"batch_size": 4}), 1, 0, 13, team)
        return one.train_epoch(data["train"]), torch.stack(steps)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_shares_add_up_to_the_whole_batch_also_when_one_is_empty(monkeypatch):
    """Batches of 4, 4, 4 and 1 frames, for one, two and three processes."""
    data = make_data(13, 6)
    loss, whole = gradients(monkeypatch, ALONE, data)
    assert len(whole) == 4 and whole.norm(dim=1).min() > 0.1
    for size in (2, 3):
        parts = [gradients(monkeypatch, Team(rank, size, CPU), data) for rank in range(size)]
        assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-5)
        mean = torch.stack([steps for _, steps in parts]).mean(0)  # as DistributedDataParallel does
        torch.testing.assert_close(mean, whole, atol=1e-4, rtol=1e-3)
        assert not parts[-1][1][-1].any()  # nothing of the last batch was left for this one


def test_two_processes_train_as_one_does(tmp_path):
    """Batches of 8 and 5 frames: shares of 4 and 4, then 3 and 2. bfloat16 rounds them apart."""
    data = make_data(13, 5)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = train_cnn(data, PLAIN, tmp_path / "one", seed=1, epochs=2, device=CPU)
    two = train_cnn(data, PLAIN, tmp_path / "two", seed=1, epochs=2, processes=2)
    pd.testing.assert_frame_equal(without_seconds(two), without_seconds(one), rtol=2e-2)
    assert (tmp_path / "two" / "best.safetensors").is_file()
    assert "rank" not in (tmp_path / "two" / "processes.log").read_text().lower()


JOB = """
import json, os, sys, time
from pathlib import Path
from cag_utils.processes import join_team, read_job
sets, job = read_job(Path(sys.argv[1]))
team = join_team()
me = {"rank": team.rank, "own": team.own(list(range(5))), "pid": os.getpid()}
everyone = team.gather(me)
if team.writes:
    found = [team.size, sets["a"].targets.tolist(), everyone]
    Path(job["out"] + ".tmp").write_text(json.dumps(found))
    Path(job["out"] + ".tmp").replace(job["out"])
if job["word"] == "fail" and team.rank == 1:
    raise ValueError("rank 1 cannot go on")
team.gather(time.sleep(600) if job["word"] == "wait" else team.rank)
"""


@pytest.fixture
def job_module(tmp_path, monkeypatch):
    (tmp_path / "team_job.py").write_text(JOB)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    return "team_job"


def test_processes_are_really_two_and_the_one_that_fails_is_quoted(job_module, tmp_path):
    """Rank 0 waits for rank 1 when that one dies: an error, and no hang."""
    job = {"word": "fail", "out": str(tmp_path / "out.json")}
    with pytest.raises(RuntimeError, match="rank 1 cannot go on"):
        launch(job_module, 2, {"a": make_data(4, 2)["train"]}, job, tmp_path / "log")
    size, targets, everyone = json.loads((tmp_path / "out.json").read_text())
    assert size == 2 and targets == make_data(4, 2)["train"].targets.tolist()
    assert [(one["rank"], one["own"]) for one in everyone] == [(0, [0, 2, 4]), (1, [1, 3])]
    assert len({one["pid"] for one in everyone} | {os.getpid()}) == 3


ORPHANS = """
import sys
from pathlib import Path
from cag_utils.processes import launch
from tests.test_training import make_data
out = Path(sys.argv[1])
job = {"word": "wait", "out": str(out)}
launch("team_job", 2, {"a": make_data()["train"]}, job, out.with_name("log"))
"""


def test_no_process_and_no_frame_outlives_a_killed_notebook(job_module, tmp_path, monkeypatch):
    out, handed_over = tmp_path / "out.json", tmp_path / "temporary"
    handed_over.mkdir()
    monkeypatch.setenv("TMPDIR", str(handed_over))
    notebook = subprocess.Popen([sys.executable, "-c", ORPHANS, str(out)])
    while not out.exists() and notebook.poll() is None:
        time.sleep(0.05)
    ranks = [psutil.Process(one["pid"]) for one in json.loads(out.read_text())[2]]
    assert len(ranks) == 2 and list(handed_over.rglob("a.safetensors"))
    notebook.kill()
    notebook.wait()
    assert not psutil.wait_procs(ranks, timeout=30)[1]
    assert not list(handed_over.rglob("a.safetensors"))


def test_alone_there_is_nobody_to_ask():
    team = join_team(CPU)
    assert (team.rank, team.size, team.writes) == (0, 1, True)
    assert team.gather(7) == [7] and team.own([1, 2, 3]) == [1, 2, 3]
    assert count_processes() == max(1, torch.cuda.device_count())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_papers_network_takes_two_steps_in_bfloat16(tmp_path):
    cnn = load_profile("paper").cnn.model_copy(
        update={"pretrained": False, "batch_size": 6, "n_workers": 0}
    )
    history = train_cnn(make_data(12, 6), cnn, tmp_path, seed=0, epochs=1)
    assert np.isfinite(history["train_loss"]).all()
