"""Trials of the tower's recipe: equal time, a kept state, a table, a tower to ship."""

import numpy as np
import pandas as pd
import pytest
import torch

from cag_utils.making import stills as drawn
from cag_utils.making import tower, trials
from tests.making.world import toy_stills


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Toy stills for drawn ones, and nothing of the package written to."""
    many = drawn.join([toy_stills()] * 4)
    asked = []
    monkeypatch.setattr(drawn, "cached_stills", lambda *wanted: asked.append(wanted) or many)
    monkeypatch.setattr(trials, "TABLE", tmp_path / "trials.csv")
    monkeypatch.setattr(trials, "SCORED", 4)
    monkeypatch.setattr(trials, "TIMED_STEPS", 2)
    for module in (trials, tower):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(tower, "seal_weights", asked.append)
    threads = torch.get_num_threads()
    yield tmp_path, asked
    torch.set_num_threads(threads)


def test_a_trial_is_scored_in_parts_kept_and_shipped(world, monkeypatch):
    folder, asked = world
    command = [str(folder), "--core-s", "0", "--recipes", "plain", "--ship"]
    trials.main(command)
    wanted = [(0, 10_000), (20_000_000, 2000), (10_000_000, 800)]
    assert [(first, count) for _, first, count, _ in asked[:3]] == wanted
    table = pd.read_csv(trials.TABLE)
    assert table["step"].tolist() == list(range(1, 9)) and set(table["stills"]) == {64}
    assert (np.diff(table["core_s"]) > 0).all()
    assert asked[3] == "siglip_tower"
    card = (folder / "weights" / "siglip_tower" / "README.md").read_text(encoding="utf-8")
    assert "recipe `plain` of `making.trials`: 8 steps of 32, 64 stills, commit " in card
    # done once, it is read: no step is taken again, and the rows stand once
    monkeypatch.setattr(tower.DenseTask, "losses", lambda *_: pytest.fail("trained again"))
    trials.main(command[:-1])
    pd.testing.assert_frame_equal(pd.read_csv(trials.TABLE), table)


def test_a_convolutional_network_cannot_be_shipped_as_the_tower(world, capsys):
    folder, asked = world
    with pytest.raises(SystemExit):
        trials.main([str(folder), "--recipes", "convnext", "--ship"])
    assert "no tower to ship" in capsys.readouterr().err and not asked
