"""Training: learns, keeps its best, shares batches between processes, and survives a kill."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from cag_utils.keyframes import training
from cag_utils.keyframes.network import FrameSet, autocast, load_model
from cag_utils.keyframes.training import (
    CHECKPOINT,
    AugmentedFrames,
    epoch_batches,
    frame_batches,
    stream,
    train_cnn,
)
from cag_utils.profiles import load_profile
from cag_utils.study import read_json
from cag_utils.workflow import launch

CPU = torch.device("cpu")
CNN = load_profile("smoke").cnn.model_copy(
    update={"image_px": 32, "batch_size": 8, "pretrained": False, "start_share": 0.0}
)
# no dropped paths: the only thing that differs between one process and two
PLAIN = CNN.model_copy(
    update={"model": "convnext_atto", "learning_rate": 1e-3, "average": 0.0, "batch_size": 4}
)
EPOCHS = 12


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing cuts off: its folder and its history."""
    folder = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the script below: others add up in another order
    history = train_cnn(make_data(), CNN, folder, seed=3, epochs=EPOCHS, device=CPU)
    torch.set_num_threads(before)
    return folder, history


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


def draw(frames, epoch, index):
    return frames.__getitems__([(epoch, index)])[0][0]


def test_what_a_frame_looks_like_depends_on_seed_epoch_and_index_alone(data):
    frames = AugmentedFrames(data["train"], seed=5)
    before = torch.get_rng_state()
    first = [draw(frames, 0, i) for i in range(12)]
    with pytest.raises(IndexError):
        draw(frames, 0, 99)
    assert torch.equal(torch.get_rng_state(), before)  # the network's own draws stay as they were
    torch.manual_seed(9)
    assert all(torch.equal(draw(frames, 0, i), first[i]) for i in reversed(range(12)))
    for other, epoch in ((AugmentedFrames(data["train"], seed=6), 0), (frames, 1)):
        assert sum(not torch.equal(draw(other, epoch, i), first[i]) for i in range(12)) > 8


def team(rank=0, size=1):
    return SimpleNamespace(device=CPU, process_index=rank, num_processes=size)


def test_loader_workers_change_nothing(data):
    two = frame_batches(data["train"], CNN.model_copy(update={"n_workers": 2}), 5, team())
    alone = frame_batches(data["train"], CNN, 5, team())
    for epoch in (4, 5):  # the second with the same workers
        for (n, here), (m, there) in zip(alone(epoch), two(epoch), strict=True):
            assert n == m and torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])


def test_processes_share_every_batch_also_when_nothing_is_left_for_one():
    """Batches of 4, 4 and 1 frames: of the last one a process has nothing, and no weight."""
    data = make_data(9)["train"]
    whole, first, second = (
        list(frame_batches(data, PLAIN, 0, team(*place))(0)) for place in ((0, 1), (0, 2), (1, 2))
    )
    assert [n for n, _ in whole] == [4, 4, 1]
    assert [weight for _, (_, _, weight) in first] == [1 / 4, 1 / 4, 1]
    assert [weight for _, (_, _, weight) in second] == [1 / 4, 1 / 4, 0]
    for step in (0, 1):
        pictures, one, other = (share[step][1][0] for share in (whole, first, second))
        assert torch.equal(pictures[::2], one) and torch.equal(pictures[1::2], other)


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


def without_seconds(history):
    return history.drop(columns="seconds")


def test_a_training_learns_and_its_best_epoch_is_what_is_saved(data, whole):
    folder, history = whole
    assert history["train_loss"].iloc[-1] < 0.9 * history["train_loss"].iloc[0]
    best = history["val_six_class_f1"].max()
    assert best > 0.4  # chance is about 0.1
    facts = read_json(folder / "model.json")
    assert facts["val_six_class_f1"] == best
    assert facts["epoch"] == history.loc[history["best"], "epoch"].iloc[-1]
    model, _ = load_model(folder, CPU)
    found = training._evaluate(model, data["val"], CNN, team())
    assert found["val_six_class_f1"] == pytest.approx(best)
    assert pd.read_csv(folder / "history.csv").shape == history.shape
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors", "history.csv", "model.json",
    ]  # fmt: skip


def test_the_callers_generator_neither_matters_nor_moves(data, tmp_path):
    histories = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        histories.append(train_cnn(data, CNN, tmp_path, seed=3, epochs=1, device=CPU))
        assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(*map(without_seconds, histories))


@pytest.mark.parametrize("pretrained, share", [(True, 0.5), (False, 0.0)])
def test_how_the_loop_is_asked(data, tmp_path, monkeypatch, pretrained, share):
    """Random weights are nothing to go back to; kernels lie as the network likes them."""
    asked = {}

    def heard(model, *rest, **how):
        asked.update(how, model=model, groups=rest[2][0].param_groups)
        return training_fit(model, *rest, **how)

    training_fit = training.fit
    monkeypatch.setattr(training, "fit", heard)
    cnn = CNN.model_copy(update={"start_share": 0.5, "pretrained": pretrained})
    train_cnn(data, cnn, tmp_path, seed=0, epochs=1, device=CPU)
    assert asked["start_share"] == share and asked["average"] == CNN.average
    kernels = [p for p in asked["model"].parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    free, shrunk = asked["groups"]
    assert (free["weight_decay"], shrunk["weight_decay"]) == (0, CNN.weight_decay)
    assert {p.ndim for p in free["params"]} == {1}


def test_every_cpu_computes_in_float32_and_cuda_alone_in_bfloat16(monkeypatch):
    ones = torch.ones(2, 2)
    with autocast(CPU):
        assert (ones @ ones).dtype == torch.float32
    monkeypatch.setattr(torch, "autocast", lambda *asked, enabled: (*asked, enabled))
    assert autocast(torch.device("cuda")) == ("cuda", torch.bfloat16, True)


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"processes": -1}])
def test_negative_counts_are_refused(data, tmp_path, wrong):
    with pytest.raises(ValueError, match="must be >= 0"):
        train_cnn(data, CNN, tmp_path, seed=0, **wrong)


SCRIPT = f"""
import sys
from pathlib import Path
import torch
from tests.keyframes.test_training import CNN, make_data
from cag_utils.keyframes.training import train_cnn
torch.set_num_threads(1)
train_cnn(make_data(), CNN, Path(sys.argv[1]), 3, {EPOCHS}, torch.device("cpu"))
"""
OUTPUTS = ("best.safetensors", "model.json", "history.csv")  # some are the workflow's to remove


def test_kill_9_and_resume_give_identical_losses_and_weights(data, tmp_path, whole, monkeypatch):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    file = tmp_path / CHECKPOINT
    while not file.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still at work
    done = len(torch.load(file, weights_only=True)["epochs"])
    assert 1 <= done < EPOCHS and not any((tmp_path / name).exists() for name in OUTPUTS)
    folder, history = whole
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cut = train_cnn(data, CNN, tmp_path, 3, EPOCHS, CPU, keep_checkpoint=True)
    torch.set_num_threads(before)
    pd.testing.assert_frame_equal(without_seconds(cut), without_seconds(history), check_exact=True)
    weights = [(path / "best.safetensors").read_bytes() for path in (tmp_path, folder)]
    assert weights[0] == weights[1]
    # a later cell fails, the workflow removes what it calls outputs, and the job is run again
    for name in OUTPUTS:
        (tmp_path / name).unlink()
    monkeypatch.setattr(training, "frame_loss", lambda *_: None)  # not one step is left
    again = train_cnn(data, CNN, tmp_path, 3, EPOCHS, CPU)
    pd.testing.assert_frame_equal(again, cut)
    assert (tmp_path / "best.safetensors").read_bytes() == weights[1] and not file.exists()


def test_what_decides_a_training_is_in_its_fingerprint(data):
    mine = training._fingerprint(data, CNN, 3)
    more = CNN.model_copy(update={"n_workers": 1})
    assert training._fingerprint(data, more, 3) == mine  # changes the speed alone
    other = {"train": data["train"], "val": data["train"]}
    slow = CNN.model_copy(update={"learning_rate": 1e-9})
    for changed in ((data, CNN, 4), (data, slow, 3), (other, CNN, 3)):
        assert training._fingerprint(*changed) != mine


def test_two_processes_train_as_one_does(tmp_path):
    """Of the last batch, one frame, nothing is left for the second process."""
    data = make_data(13, 5)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = train_cnn(data, PLAIN, tmp_path / "one", seed=1, epochs=1, device=CPU)
    two = train_cnn(data, PLAIN, tmp_path / "two", seed=1, epochs=1, processes=2)
    pd.testing.assert_frame_equal(without_seconds(two), without_seconds(one), rtol=1e-3)
    assert (tmp_path / "two" / "best.safetensors").is_file()
    assert "rank" not in (tmp_path / "two" / "processes.log").read_text().lower()


JOB = """
import os, sys, time
from pathlib import Path
from cag_utils.workflow import follow_parent
folder = Path(sys.argv[1])
follow_parent(folder / "frames")
rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
(folder / f"{rank}.tmp").write_text(f"{os.getpid()} {size}")
(folder / f"{rank}.tmp").replace(folder / f"{rank}.pid")
if rank == "1" and (folder / "fail").exists():
    while not (folder / "0.pid").exists():
        time.sleep(0.01)
    raise ValueError("rank 1 cannot go on")
time.sleep(600)
"""


@pytest.fixture
def job_folder(tmp_path, monkeypatch):
    (tmp_path / "team_job.py").write_text(JOB)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path


def read_ranks(folder):
    return [[int(x) for x in (folder / f"{k}.pid").read_text().split()] for k in (0, 1)]


def test_processes_are_really_two_and_the_one_that_fails_is_quoted(job_folder):
    """Rank 0 still works when rank 1 dies: an error, and no hang."""
    (job_folder / "fail").touch()
    with pytest.raises(RuntimeError, match="2 processes failed:\n(.*\n)*.*rank 1 cannot go on"):
        launch("team_job", job_folder, 2, job_folder / "log")
    (first, size), (second, _) = read_ranks(job_folder)
    assert size == 2 and len({first, second, os.getpid()}) == 3


ORPHANS = """
import sys
from pathlib import Path
from cag_utils.workflow import launch
launch("team_job", Path(sys.argv[1]), 2)
"""


def test_no_process_and_no_frame_outlives_a_killed_notebook(job_folder):
    (job_folder / "frames").mkdir()
    notebook = subprocess.Popen([sys.executable, "-c", ORPHANS, str(job_folder)])
    while len(list(job_folder.glob("*.pid"))) < 2 and notebook.poll() is None:
        time.sleep(0.05)
    ranks = [psutil.Process(pid) for pid, _ in read_ranks(job_folder)]
    notebook.kill()
    notebook.wait()
    assert not psutil.wait_procs(ranks, timeout=30)[1]
    assert not (job_folder / "frames").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_papers_network_takes_two_steps_in_bfloat16(tmp_path):
    few = {"pretrained": False, "batch_size": 6, "n_workers": 0}
    cnn = load_profile("paper").cnn.model_copy(update=few)
    history = train_cnn(make_data(12, 6), cnn, tmp_path, seed=0, epochs=1)
    assert np.isfinite(history["train_loss"]).all()
