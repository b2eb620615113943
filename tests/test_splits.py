import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.splits import assert_disjoint, read_splits, split_counts, split_groups, write_splits

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
ROWS = ["p1 e1 v1 train", "p1 e1 v2 test", "p2 e2 v3 val", "p3 e3 v4 test"]
COLUMNS = ["patient_id", "exam_id", "video_id", "split"]
TABLE = pd.DataFrame([row.split() for row in ROWS], columns=COLUMNS)
GROUP = st.text("abcdef0123", min_size=1, max_size=4)
groups_st = st.lists(GROUP, min_size=8, max_size=80).filter(lambda g: len(set(g)) >= 3)


@pytest.mark.parametrize("n, expected", [
    (10, [8, 1, 1]),
    (25, [20, 3, 2]),  # 20, 2.5, 2.5: one spare group goes to the first of the equal remainders
    (3, [1, 1, 1]),  # 2.4, 0.3, 0.3: nobody may be empty
    (243, [195, 24, 24]),  # the paper's corpus has 194, 24, 25
])  # fmt: skip
def test_hand_worked_counts(n, expected):
    assert list(split_counts(n, SHARES).values()) == expected
    assert split_counts(n, {"train": 1.0, "test": 0.0}) == {"train": n, "test": 0}


@settings(max_examples=30, deadline=None)  # a loaded machine is no failure
@given(groups_st, st.integers(0, 10), st.randoms(use_true_random=False))
def test_complete_whole_and_as_many_as_asked_whatever_the_order_of_rows(groups, seed, shuffler):
    got = split_groups(groups, SHARES, seed)
    assert set(got) == set(groups)
    counts = split_counts(len(set(groups)), SHARES)
    assert {s: list(got.values()).count(s) for s in SHARES} == counts
    again = groups + groups[:3]
    shuffler.shuffle(again)
    assert split_groups(again, SHARES, seed) == got


@settings(max_examples=30, deadline=None)  # a loaded machine is no failure
@given(st.integers(2, 5), st.integers(0, 20))
def test_strata_are_shared_out_evenly(n_tens, seed):
    strata = {f"g{i:03d}": "LCA" if i < 10 * n_tens else "RCA" for i in range(20 * n_tens)}
    got = split_groups(strata, SHARES, seed, strata)
    assert got != split_groups(strata, SHARES, seed + 1, strata)
    for side in ("LCA", "RCA"):
        tested = sum(got[g] == "test" and strata[g] == side for g in strata)
        assert abs(tested - n_tens) <= 1


def test_a_patient_in_two_splits_is_caught_and_a_video_split_is_not(capsys):
    with pytest.raises(ValueError, match=r"first 'p1' in \['test', 'train'\]"):
        assert_disjoint(TABLE, "patient_id")
    assert_disjoint(TABLE, "video_id")
    assert "train 1, test 2, val 1" in capsys.readouterr().out


def test_written_and_read_back(tmp_path):
    images = pd.concat([TABLE, TABLE]).assign(frame=np.arange(8))
    path = write_splits(images, tmp_path / "run" / "splits.csv")
    assert read_splits(path, "video_id").equals(TABLE)
    with pytest.raises(ValueError, match="more than one split"):
        read_splits(path, "exam_id")


@pytest.mark.parametrize("call, match", [
    (lambda _: split_counts(10, {"train": 0.8, "test": 0.1}), "add up to 1"),
    (lambda _: split_counts(10, {"train": 1.5, "test": -0.5}), ">= 0"),
    (lambda _: split_groups(["a", "b", "b"], SHARES, 0), "2 groups cannot fill 3 splits"),
    (lambda _: split_groups([], SHARES, 0), "no groups"),
    (lambda _: split_groups(["a", None, "b"], SHARES, 0), "missing"),
    (lambda _: split_groups(list("abc"), SHARES, 0, {"a": "L", "b": "L"}), "no stratum.*'c'"),
    (lambda _: assert_disjoint(TABLE.drop(columns="split")), "lacks"),
    (lambda _: assert_disjoint(TABLE.assign(split=[None, *["val"] * 3])), "empty"),
    (lambda folder: write_splits(TABLE.drop(columns="exam_id"), folder / "s.csv"), "lacks"),
])  # fmt: skip
def test_refuses_what_it_cannot_split(call, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        call(tmp_path)
