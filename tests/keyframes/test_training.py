"""The loop by hand; training learns, keeps its best, shares batches, and survives a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import v2

from cag_utils.keyframes import training
from cag_utils.keyframes.network import PREDICTOR_WEIGHTS, FrameSet, autocast, load_model
from cag_utils.keyframes.training import epoch_batches, fit, frame_batches, train_cnn
from cag_utils.profiles import load_profile
from cag_utils.study import read_json
from cag_utils.workflow import launch

CPU = torch.device("cpu")
SMALL = {"image_px": 32, "batch_size": 8, "pretrained": False, "start_share": 0.0}
CNN = load_profile("smoke").cnn.model_copy(update=SMALL)
# no dropped paths: the only thing that differs between one process and two
ATTO = {"model": "convnext_atto", "learning_rate": 1e-3, "average": 0.0, "batch_size": 4}
PLAIN = CNN.model_copy(update=ATTO)
EPOCHS = 12
OUTPUTS = ("best.safetensors", "model.json", "history.csv")  # some are the workflow's to remove


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


DATA = make_data()


def train_alone(folder, **how):
    """Train on one thread, wherever this is called: more add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    history = train_cnn(DATA, CNN, folder, seed=3, epochs=EPOCHS, device=CPU, **how)
    torch.set_num_threads(before)
    return history


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing cuts off: its folder and its history."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_alone(folder)


class Killed(BaseException):
    """Stands for a dead process."""


def one_weight(**how):
    """Train a weight from 0 by SGD of rate 2 on -w / 2: every step adds 1."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    steps, epochs = how.pop("steps", 3), how.pop("epochs", 1)
    batches = how.pop("batches", lambda epoch: [(1, (torch.ones(1, 1),))] * steps)
    slope = how.pop("slope", 0.5)
    optimiser = torch.optim.SGD(model.parameters(), 2.0)
    flat = {"schedule": "constant", "warmup": 0} | how

    def loss(x):
        return {"loss": -slope * model(x).sum()}

    return fit(model, batches, loss, [optimiser], steps, epochs, **flat)


def test_steps_rates_averages_and_the_way_back_to_the_start_by_hand():
    done = one_weight()
    assert done.model.weight.item() == 3 and not done.model.training
    assert done.steps == [{"step": i, "loss": -0.5 * i} for i in range(3)]
    assert done.best is None and done.epochs[0]["train_loss"] == -0.5
    # a slope of 5 is cut to 1, and the rate is 2
    assert one_weight(slope=5, steps=1).model.weight.item() == pytest.approx(2)
    # an epoch's loss weighs each step by its items
    batches = [(3, (torch.ones(1, 1),)), (1, (torch.ones(1, 1),))]
    assert one_weight(steps=2, batches=lambda epoch: batches).epochs[0]["train_loss"] == -0.5 / 4
    done = one_weight(steps=1, epochs=6, schedule="cosine", warmup=2)  # up over 2, down over 4
    fall = [0.5 * (1 + np.cos(np.pi * i / 4)) for i in range(4)]
    rates = [row["learning_rate"] for row in done.epochs]
    assert rates == pytest.approx([0, 1, *(2 * x for x in fall)])
    assert done.model.weight.item() == pytest.approx(0.5 + sum(fall))
    unasked = one_weight(steps=10, epochs=2, warmup=None)  # a tenth of 20 steps
    assert unasked.model.weight.item() == pytest.approx(18.5)
    with pytest.raises(ValueError, match="linnear"):
        one_weight(schedule="linnear")
    second = 1 + (1 - 1 / 11) * (2 - 1)  # the first is taken over
    third = second + (1 - 2 / 12) * (3 - second)
    assert one_weight(average=0.999).model.weight.item() == pytest.approx(third)
    third = second + 0.9 * (3 - second)  # never more than the decay is kept
    assert one_weight(average=0.1).model.weight.item() == pytest.approx(third)
    model = nn.BatchNorm1d(1)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model.weight.fill_(5.0)
    model.num_batches_tracked.fill_(7)  # a count is no weight
    mixed = training.mix(start, model, 0.25)
    assert mixed.weight.item() == 1 + 0.75 * 4 and model.weight.item() == 5
    assert mixed.num_batches_tracked == 7
    assert one_weight(start_share=0.5).model.weight.item() == 1.5


def judged(scores, **how):
    """Train an epoch a score, one step each."""
    seen = iter(scores)
    how = {"evaluate": lambda model: {"f1": next(seen)}, "best_by": "f1"} | how
    return one_weight(steps=1, **{"epochs": len(scores)} | how)


def test_the_first_of_the_best_is_held_and_patience_counts_on_over_a_kill(tmp_path):
    done = judged([0.2, 0.5, 0.5, 0.1])
    assert [row["best"] for row in done.epochs] == [True, True, False, False]
    assert done.best["weight"].item() == 2 and done.model.weight.item() == 4
    assert [row["epoch"] for row in done.epochs] == [1, 2, 3, 4]
    patient, hasty = (judged([0.5, 0.4, 0.3, 0.9], patience=k).epochs for k in (0, 2))
    assert len(patient) == 4  # 0: it never ends early
    assert [row["best"] for row in hasty] == [True, False, False]
    how = {"checkpoint": tmp_path / "a.pt", "patience": 2}
    with pytest.raises(StopIteration):  # no third score: as good as a kill
        judged([0.5, 0.4], epochs=5, **how)
    done = judged([0.3, 0.9, 0.9], epochs=5, **how)
    assert [row["best"] for row in done.epochs] == [True, False, False]


def noisy(checkpoint: Path | None, dies_at=-1, epochs=4, **how):
    """A training of two optimisers that draws from torch's generator in batches and in loss."""
    torch.manual_seed(0)
    model, calls = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)), []

    def batches(epoch):
        return ((5, (torch.randn(5, 3),)) for _ in range(3))

    def loss(x):
        calls.append(1)
        if len(calls) == dies_at:
            raise Killed
        return {"a": model(x).square().mean(), "b": torch.rand(()) * model[0].weight.sum()}

    optimisers = [torch.optim.AdamW(part.parameters(), 0.1) for part in (model[0], model[2])]
    scores = {"evaluate": lambda kept: {"f1": kept[0].weight.sum().item()}, "best_by": "f1"}
    how = {"average": 0.9, "warmup": 2, "checkpoint": checkpoint} | scores | how
    return fit(model, batches, loss, optimisers, 3, epochs, **how), calls


@pytest.mark.parametrize("dies_at", [2, 5, 12])
def test_a_training_that_dies_goes_on_to_the_same_weights(tmp_path, dies_at):
    whole, _ = noisy(None)
    with pytest.raises(Killed):
        noisy(tmp_path / "a.pt", dies_at)
    done, calls = noisy(tmp_path / "a.pt")
    assert len(calls) == 12 - 3 * ((dies_at - 1) // 3)  # whole epochs are not run again
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(done.model.state_dict()[name], weight)
    assert all(torch.equal(done.best[name], weight) for name, weight in whole.best.items())
    for row, again in zip(whole.epochs, done.epochs, strict=True):
        assert row | {"seconds": 0} == again | {"seconds": 0}


def test_a_finished_file_is_read_another_ones_not_and_a_dying_save_keeps_it(tmp_path, monkeypatch):
    first, _ = noisy(tmp_path / "a.pt", key="settings")
    again, calls = noisy(tmp_path / "a.pt", key="settings")
    assert not calls and torch.equal(again.best["0.weight"], first.best["0.weight"])
    for other in ({"key": "others"}, {"key": "settings", "epochs": 5}):
        assert len(noisy(tmp_path / "a.pt", **other)[1]) == 3 * other.get("epochs", 4)
    noisy(tmp_path / "b.pt", epochs=1)
    before = (tmp_path / "b.pt").read_bytes()

    def half(state, file):
        Path(file).write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Killed):
        noisy(tmp_path / "b.pt", epochs=2)
    assert (tmp_path / "b.pt").read_bytes() == before


def test_augmentation_never_mirrors():
    policy = v2.TrivialAugmentWide()
    assert not [name for name in policy._AUGMENTATION_SPACE if "flip" in name.lower()]
    torch.manual_seed(0)
    # three dots, bright to dark, clockwise: turning and shearing keep that sense, a mirror not
    picture = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    for (y, x), grey in zip([(22, 32), (38, 40), (38, 24)], [250, 170, 90], strict=True):
        picture[..., y - 3 : y + 4, x - 3 : x + 4] = grey
    wide, how = policy._AUGMENTATION_SPACE, (policy.interpolation, policy._fill)
    for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        strengths = wide[name][0](31, 64, 64)
        for strength in (strengths[8], -strengths[8]):
            out = policy._apply_image_or_video_transform(picture, name, float(strength), *how)
            assert _turns_clockwise(out[0, 0]), (name, strength)
    assert not _turns_clockwise(picture[0, 0].flip(1))


def _turns_clockwise(picture):
    dots = [(picture == grey).nonzero().double().mean(0) for grey in (250, 170, 90)]
    (y0, x0), (y1, x1), (y2, x2) = (d.tolist() for d in dots)
    return (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0) > 0


def draw(frames, epoch, index):
    return frames.__getitems__([(epoch, index)])[0][0]


def test_what_a_frame_looks_like_depends_on_seed_epoch_and_index_alone():
    frames = training.AugmentedFrames(DATA["train"], seed=5)
    before = torch.get_rng_state()
    first = [draw(frames, 0, i) for i in range(12)]
    with pytest.raises(IndexError):
        draw(frames, 0, 99)
    assert torch.equal(torch.get_rng_state(), before)  # the network's own draws stay as they were
    torch.manual_seed(9)
    assert all(torch.equal(draw(frames, 0, i), first[i]) for i in reversed(range(12)))
    for other, epoch in ((training.AugmentedFrames(DATA["train"], seed=6), 0), (frames, 1)):
        assert sum(not torch.equal(draw(other, epoch, i), first[i]) for i in range(12)) > 8
    orders = {tuple(epoch_batches(30, 30, seed, epoch)[0]) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert len({training.stream(*words) for words in ((0, 1), (1, 0), (0, 1, 0))}) == 3


def team(rank=0, size=1):
    return SimpleNamespace(device=CPU, process_index=rank, num_processes=size)


def test_neither_workers_nor_processes_change_what_is_seen():
    two = frame_batches(DATA["train"], CNN.model_copy(update={"n_workers": 2}), 5, team())
    alone = frame_batches(DATA["train"], CNN, 5, team())
    for epoch in (4, 5):  # the second with the same workers
        for (n, here), (m, there) in zip(alone(epoch), two(epoch), strict=True):
            assert n == m and torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])
    # batches of 4, 4 and 1 frames: of the last one a process has nothing, and no weight
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


def without_seconds(history):
    return history.drop(columns="seconds")


def test_a_training_learns_and_its_best_epoch_is_what_is_saved(whole):
    folder, history = whole
    assert history["train_loss"].iloc[-1] < 0.9 * history["train_loss"].iloc[0]
    best = history["val_six_class_f1"].max()
    assert best > 0.4  # chance is about 0.1
    facts = read_json(folder / "model.json")
    epoch = history.loc[history["best"], "epoch"].iloc[-1]
    assert (facts["val_six_class_f1"], facts["epoch"]) == (best, epoch)
    model, _ = load_model(folder, CPU)
    found = training._evaluate(model, DATA["val"], CNN, team())
    assert found["val_six_class_f1"] == pytest.approx(best)
    assert pd.read_csv(folder / "history.csv").shape == history.shape
    assert {path.name for path in folder.iterdir()} == set(OUTPUTS)


def test_the_callers_generator_neither_matters_nor_moves_and_counts_are_checked(tmp_path):
    histories = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        histories.append(train_cnn(DATA, CNN, tmp_path, seed=3, epochs=1, device=CPU))
        assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(*map(without_seconds, histories))
    for counts in ({"epochs": -1}, {"processes": -1}):
        with pytest.raises(ValueError, match="must be >= 0"):
            train_cnn(DATA, CNN, tmp_path, seed=0, **counts)


@pytest.mark.parametrize("pretrained, share", [(True, 0.5), (False, 0.0)])
def test_how_the_loop_is_asked(tmp_path, monkeypatch, pretrained, share):
    """Random weights are nothing to go back to; kernels lie as the network likes them."""
    asked = {}

    def heard(model, *rest, **how):
        asked.update(how, model=model, groups=rest[2][0].param_groups)
        return training_fit(model, *rest, **how)

    training_fit = training.fit
    monkeypatch.setattr(training, "fit", heard)
    cnn = CNN.model_copy(update={"start_share": 0.5, "pretrained": pretrained})
    train_cnn(DATA, cnn, tmp_path, seed=0, epochs=1, device=CPU)
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


def test_kill_9_and_resume_give_identical_losses_and_weights(tmp_path, whole, monkeypatch):
    script = f"from tests.keyframes.test_training import *\ntrain_alone(Path({str(tmp_path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    file = tmp_path / training.CHECKPOINT
    while not file.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still at work
    done = len(torch.load(file, weights_only=True)["epochs"])
    assert 1 <= done < EPOCHS and not any((tmp_path / name).exists() for name in OUTPUTS)
    folder, history = whole
    cut = train_alone(tmp_path, keep_checkpoint=True)
    pd.testing.assert_frame_equal(without_seconds(cut), without_seconds(history), check_exact=True)
    weights = [(path / "best.safetensors").read_bytes() for path in (tmp_path, folder)]
    assert weights[0] == weights[1]
    # a later cell fails, the workflow removes what it calls outputs, and the job is run again
    for name in OUTPUTS:
        (tmp_path / name).unlink()
    monkeypatch.setattr(training, "frame_loss", lambda *_: None)  # not one step is left
    pd.testing.assert_frame_equal(train_alone(tmp_path), cut)
    assert (tmp_path / "best.safetensors").read_bytes() == weights[1] and not file.exists()


def test_what_decides_a_training_is_in_its_fingerprint():
    mine = training._fingerprint(DATA, CNN, 3)
    more = CNN.model_copy(update={"n_workers": 1})
    assert training._fingerprint(DATA, more, 3) == mine  # changes the speed alone
    other = {"train": DATA["train"], "val": DATA["train"]}
    slow = CNN.model_copy(update={"learning_rate": 1e-9})
    for changed in ((DATA, CNN, 4), (DATA, slow, 3), (other, CNN, 3)):
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


def test_no_process_and_no_frame_outlives_a_killed_notebook(job_folder):
    (job_folder / "frames").mkdir()
    script = "from pathlib import Path\nfrom cag_utils.workflow import launch\n"
    script += f"launch('team_job', Path({str(job_folder)!r}), 2)"
    notebook = subprocess.Popen([sys.executable, "-c", script])
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


def test_without_an_epoch_the_shipped_network_is_kept_as_it_is(tmp_path):
    cnn = load_profile("arcade").cnn
    history = train_cnn({}, cnn, tmp_path, 0)
    assert history["epoch"].tolist() == [0] and history["val_six_class_f1"].isna().all()
    for name in ("best.safetensors", "model.json"):
        assert (tmp_path / name).read_bytes() == (PREDICTOR_WEIGHTS / name).read_bytes()
    paper = load_profile("paper").cnn.model_copy(update={"epochs": 0})
    with pytest.raises(ValueError, match="no network 'convnext_base"):
        train_cnn({}, paper, tmp_path, 0)
