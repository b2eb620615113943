"""A run's log as tables, and the order of its cases."""

import pytest

from cag_utils.vlm.sft import EpochGroups, answer_history, loss_history


def test_history_has_a_row_a_measurement():
    log = [
        {"step": 0, "epoch": 0.0, "eval_loss": 3.0, "eval_runtime": 1.0},
        {"step": 1, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-3},
        {"step": 2, "epoch": 1.0, "eval_loss": 1.5},
        {"step": 2, "epoch": 1.0, "train_runtime": 9.0},
    ]
    table = loss_history(log)
    assert table["loss"].tolist() == [3.0, 2.0, 1.5]
    assert table["split"].tolist() == ["val", "train", "val"]


def test_answers_have_a_row_an_evaluation_and_what_is_unknown_is_missing():
    log = [
        {"step": 0, "epoch": 0.0, "eval_loss": 3.0},
        {"step": 0, "epoch": 0.0, "eval_answers_segment": 0.0, "eval_answers_overall": 1.0},
        {"step": 2, "epoch": 1.0, "eval_answers_segment": 0.5, "eval_answers_overall": 4.0},
    ]
    table = answer_history(log)
    assert table["step"].tolist() == [0, 2] and table["segment"].tolist() == [0.0, 0.5]
    assert table["plan"].isna().all()
    assert answer_history(log[:1]).empty


@pytest.mark.parametrize(("n", "size"), [(1, 4), (50, 4), (203, 8)])
def test_every_case_comes_once_an_epoch_and_neighbours_are_alike(n, size):
    lengths = [(37 * i) % 101 for i in range(n)]
    groups = EpochGroups(lengths, size, seed=1)
    first = list(groups)
    assert sorted(first) == list(range(n)) and len(groups) == n
    if n > size:
        batches = [[lengths[i] for i in first[k : k + size]] for k in range(size, n, size)]
        assert sum(max(b) - min(b) for b in batches) / len(batches) < 35  # by chance about 60


def test_epochs_and_seeds_differ_and_come_back():
    groups = EpochGroups(range(64), 4, seed=1)
    first = list(groups)
    groups.set_epoch(1)
    assert list(groups) != first
    groups.set_epoch(0)
    assert list(groups) == first == list(EpochGroups(range(64), 4, 1))
    assert first != list(EpochGroups(range(64), 4, seed=2))
