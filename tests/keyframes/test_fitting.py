"""The one training loop: its schedule, average and best epoch by hand, and a kill at any time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cag_utils.keyframes.training import fit, mix


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


def test_steps_are_clipped_and_counted():
    done = one_weight()
    assert done.model.weight.item() == 3 and not done.model.training
    assert done.steps == [{"step": i, "loss": -0.5 * i} for i in range(3)]
    assert done.best is None and done.epochs[0]["train_loss"] == -0.5
    # a slope of 5 is cut to 1, and the rate is 2
    assert one_weight(slope=5, steps=1).model.weight.item() == pytest.approx(2)


def test_an_epochs_loss_weighs_each_step_by_its_items():
    batches = [(3, (torch.ones(1, 1),)), (1, (torch.ones(1, 1),))]
    assert one_weight(steps=2, batches=lambda epoch: batches).epochs[0]["train_loss"] == -0.5 / 4


def test_rates_by_hand():
    """Up over two steps, then a cosine over four: each epoch is one step of that rate."""
    done = one_weight(steps=1, epochs=6, schedule="cosine", warmup=2)
    fall = [0.5 * (1 + np.cos(np.pi * i / 4)) for i in range(4)]
    rates = [row["learning_rate"] for row in done.epochs]
    assert rates == pytest.approx([0, 1, *(2 * x for x in fall)])
    assert done.model.weight.item() == pytest.approx(0.5 + sum(fall))
    unasked = one_weight(steps=10, epochs=2, warmup=None)  # a tenth of 20 steps
    assert unasked.model.weight.item() == pytest.approx(18.5)
    with pytest.raises(ValueError, match="linnear"):
        one_weight(schedule="linnear")


def test_average_by_hand():
    second = 1 + (1 - 1 / 11) * (2 - 1)  # the first is taken over
    third = second + (1 - 2 / 12) * (3 - second)
    assert one_weight(average=0.999).model.weight.item() == pytest.approx(third)
    third = second + 0.9 * (3 - second)  # never more than the decay is kept
    assert one_weight(average=0.1).model.weight.item() == pytest.approx(third)


def test_halfway_back_to_the_start_by_hand():
    model = nn.BatchNorm1d(1)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model.weight.fill_(5.0)
    model.num_batches_tracked.fill_(7)  # a count is no weight
    mixed = mix(start, model, 0.25)
    assert mixed.weight.item() == 1 + 0.75 * 4 and model.weight.item() == 5
    assert mixed.num_batches_tracked == 7
    assert one_weight(start_share=0.5).model.weight.item() == 1.5


def judged(scores, **how):
    """Train an epoch a score, one step each."""
    seen = iter(scores)
    how = {"evaluate": lambda model: {"f1": next(seen)}, "best_by": "f1"} | how
    return one_weight(steps=1, **{"epochs": len(scores)} | how)


def test_the_first_of_the_best_epochs_is_held():
    done = judged([0.2, 0.5, 0.5, 0.1])
    assert [row["best"] for row in done.epochs] == [True, True, False, False]
    assert done.best["weight"].item() == 2 and done.model.weight.item() == 4
    assert [row["epoch"] for row in done.epochs] == [1, 2, 3, 4]


def test_patience_ends_a_training_that_no_longer_gets_better():
    assert len(judged([0.5, 0.4, 0.3, 0.9]).epochs) == 4  # 0: never
    done = judged([0.5, 0.4, 0.3, 0.9], patience=2)
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


def test_a_finished_training_is_not_run_again_and_another_ones_file_not_read(tmp_path):
    first, _ = noisy(tmp_path / "a.pt", key="settings")
    again, calls = noisy(tmp_path / "a.pt", key="settings")
    assert not calls and torch.equal(again.best["0.weight"], first.best["0.weight"])
    for other in ({"key": "others"}, {"key": "settings", "epochs": 5}):
        assert len(noisy(tmp_path / "a.pt", **other)[1]) == 3 * other.get("epochs", 4)


def test_patience_counts_on_over_a_kill(tmp_path):
    how = {"checkpoint": tmp_path / "a.pt", "patience": 2}
    with pytest.raises(StopIteration):  # no third score: as good as a kill
        judged([0.5, 0.4], epochs=5, **how)
    done = judged([0.3, 0.9, 0.9], epochs=5, **how)
    assert [row["best"] for row in done.epochs] == [True, False, False]


def test_a_save_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    first, _ = noisy(tmp_path / "a.pt", epochs=1)
    before = (tmp_path / "a.pt").read_bytes()

    def half(state, file):
        Path(file).write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Killed):
        noisy(tmp_path / "a.pt", epochs=2)
    assert (tmp_path / "a.pt").read_bytes() == before
