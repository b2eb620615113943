"""The leakage audit's plan: who trains, who is tested, and what each network may know."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.crossover import describe_plan, flag_twins, plan_crossover
from cag_utils.labels import SIX_CLASSES
from cag_utils.leakage import (
    count_shared_cases,
    least_shared_cases,
    split_rows,
    tabulate_cases,
)
from cag_utils.profiles import load_profile
from cag_utils.report import paper_table

CNN = load_profile("smoke").cnn


def cohort(n_videos, n_frames=6, seed=0):
    """Frames of patients with these numbers of videos, in random order."""
    rng = np.random.default_rng(seed)
    rows = [
        {"patient_id": f"pt-{i:03d}", "video_id": f"vi-{i:03d}-{v}", "frame": 5 * f + 2}
        for i, n in enumerate(n_videos)
        for v, f in itertools.product(range(n), range(n_frames))
    ]
    frames = pd.DataFrame(rows)
    frames["exam_id"] = frames["patient_id"].str.replace("pt", "ex")
    side = frames["video_id"].map(lambda v: ("LCA", "RCA")[int(v[-1]) % 2])
    frames["label"] = side + "_" + pd.Series(rng.choice(["better", "bad", "other"], len(frames)))
    return frames.sample(frac=1, random_state=seed).reset_index(drop=True)


def test_the_papers_table_puts_every_test_exam_in_train():
    cases = paper_table("table1_cnn_split").set_index("split")["cases"].to_dict()
    assert least_shared_cases(cases, 116) == {"train": 116, "val": 46, "test": 48}


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.integers(0, 9), min_size=1),
    st.sets(st.integers(0, 9), min_size=1),
    st.integers(10, 14),
)
def test_the_least_overlap_never_exceeds_the_true_one(train, test, n_exams):
    least = least_shared_cases({"train": len(train), "test": len(test)}, n_exams)
    assert 0 <= least["test"] <= len(train & test)


def test_more_exams_in_a_split_than_there_are():
    with pytest.raises(ValueError, match="5 exams out of 4"):
        least_shared_cases({"train": 5, "test": 1}, 4)


def test_shared_cases_worked_by_hand():
    splits = pd.DataFrame(
        {
            "exam_id": ["e1", "e1", "e2", "e3", "e3", "e4"],
            "split": ["train", "test", "train", "val", "train", "test"],
        }
    )
    assert count_shared_cases(splits).to_numpy().tolist() == [
        ["train", 3, 3],
        ["val", 1, 1],
        ["test", 2, 1],
    ]


def test_the_table_of_cases_has_the_paper_and_every_split():
    frames = cohort([4] * 10)
    splits = {by: split_rows(frames, by, CNN, 0) for by in ("patient", "video")}
    paper = {"train": 8, "val": 3, "test": 4}
    got = tabulate_cases(frames, splits, paper, 10).set_index(["split by", "split"])
    assert got.loc[("video (paper; at least)", "test")].tolist() == [4, 2]
    assert got.loc[("patient", "test"), "also in train"] == 0
    assert got.loc[("video", "test"), "also in train"] > 0


@pytest.mark.parametrize("by", ["patient", "video", "frame"])
def test_a_split_keeps_together_what_it_says_and_no_more(by):
    frames = cohort([4] * 8)
    split = split_rows(frames, by, CNN, 0)
    assert set(split) == {"train", "val", "test"}
    for column in ("patient", "video"):
        crossing = split.groupby(frames[f"{column}_id"]).nunique().max() > 1
        assert crossing == (by == "frame" or (by, column) == ("video", "patient"))


def test_a_split_by_patient_is_notebook_01s():
    frames = cohort([2] * 3)
    with pytest.raises(ValueError, match="cannot fill"):
        split_rows(frames[frames["patient_id"] < "pt-002"], "patient", CNN, 0)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=12, max_size=24),
    st.integers(2, 3),
    st.integers(0, 5),
    st.integers(3, 5),
)
def test_every_plan_keeps_its_promises(n_videos, n_folds, seed, n_frames):
    frames = cohort([*n_videos, *[2] * 9], n_frames, seed)
    plan = plan_crossover(frames, n_folds, 0.12, seed)
    assert len(plan) == 4 * n_folds
    describe_plan(plan, frames)  # raises if a network knows what it should not
    tested = {
        arm: np.concatenate([t.test[arm] for t in plan if arm in t.test])
        for arm in ("patient", "video", "frame")
    }
    for arm, rows in tested.items():  # each test frame once an arm, and the same in all
        assert len(rows) == len(set(rows)), arm
        assert set(rows) == set(tested["patient"]), arm
    folds = {t.name.rsplit("_", 2)[0] for t in plan}
    for fold in folds:
        same = [t for t in plan if t.name.startswith(f"{fold}_")]
        assert len({len(t.train) for t in same}) == 1  # as many frames
        assert all(len(t.train) == len(set(t.train)) for t in same)


def test_the_plan_of_a_balanced_cohort_worked_by_hand():
    # 18 patients of 5 videos of 6 frames; 2 validate, 16 in 4 groups of 4. Of 5 videos 2 are
    # tested. A fold trains on the 8 others (240 frames) and 4 x 3 lent videos (72 frames).
    frames = cohort([5] * 18)
    table = describe_plan(plan_crossover(frames, 2, 0.12, 0), frames)
    assert (table["train frames"] == 240 + 72).all() and (table["train patients"] == 12).all()
    assert (table["val frames"] == 60).all()
    assert table["tested: patient"].dropna().tolist() == [24] * 4  # 4 x 2 videos, 3 of 6 frames
    assert table["tested: frame"].sum() == table["tested: video"].sum() == 96


def test_the_frame_arm_knows_the_other_frames_of_the_tested_videos():
    frames = cohort([5] * 18)
    for t in plan_crossover(frames, 2, 0.12, 0):
        if "frame" in t.test:
            tested = frames.iloc[t.test["frame"]]
            train = frames.iloc[t.train]
            assert set(tested["video_id"]) <= set(train["video_id"])
            gaps = tested.merge(train, on="video_id").eval("abs(frame_x - frame_y)")
            assert gaps.min() == 5  # the very neighbours, and never the frame itself


def test_another_repeat_deals_anew_and_the_same_one_does_not():
    frames = cohort([4] * 16)
    first, again, other = (plan_crossover(frames, 2, 0.12, 3, repeat) for repeat in (0, 0, 1))
    assert all((a.train == b.train).all() for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].train, other[0].train)


def test_a_lone_video_is_never_tested():
    frames = cohort([1] * 6 + [3] * 10)
    lone = set(np.flatnonzero(frames["patient_id"] < "pt-006"))  # the first six have one each
    for t in plan_crossover(frames, 2, 0.12, 0):
        assert not lone & set(np.concatenate(list(t.test.values())))


def test_videos_of_a_single_frame_cannot_be_tested():
    with pytest.raises(ValueError, match="no test frame is left"):
        plan_crossover(cohort([4] * 16, n_frames=1), 2, 0.12, 0)


@pytest.mark.parametrize(
    "n_videos, n_folds, match",
    [([3] * 9, 1, "n_folds must be 2"), ([1] * 9, 2, "folds need 4"), ([3] * 5, 3, "need 6")],
)
def test_a_plan_that_cannot_be_made(n_videos, n_folds, match):
    with pytest.raises(ValueError, match=match):
        plan_crossover(cohort(n_videos), n_folds, 0.12, 0)


@pytest.mark.parametrize(
    "spoil, match",
    [
        (lambda t: t._replace(test={"video": t.train[:3]}), "not 'video'"),
        (lambda t: t._replace(test={"frame": t.train[:3]}), "trains on frames"),
        (lambda t: t._replace(test={"frame": t.test["video"]}), "not 'frame'"),
        (lambda t: t._replace(test={"patient": t.test["video"]}), "not 'patient'"),
        (lambda t: t._replace(test={"video": t.test["patient"]}), "not 'video'"),
        (lambda t: t._replace(val=t.test["video"]), "not 'video'"),
    ],
)
def test_a_plan_that_leaks_is_noticed(spoil, match):
    frames = cohort([4] * 16)
    first = plan_crossover(frames, 2, 0.12, 0)[0]
    with pytest.raises(ValueError, match=match):
        describe_plan([spoil(first)], frames)


def test_labels_only_steer_the_deal_of_sides():
    frames = cohort([4] * 16).assign(label=SIX_CLASSES[0])
    describe_plan(plan_crossover(frames, 2, 0.12, 0), frames)


def test_twins_are_looked_for_in_the_networks_own_training_frames():
    frames = cohort([4] * 16)
    plan = plan_crossover(frames, 2, 0.12, 0)
    video = pd.get_dummies(frames["video_id"]).to_numpy(float)  # near: a frame of the same video
    flags = flag_twins(plan, video, "cosine", 0.5).groupby("arm")["near"].agg(["all", "any"])
    assert flags["all"].to_dict() == {"frame": True, "patient": False, "video": False}
    assert not flags.loc[["patient", "video"], "any"].any()
    patient = pd.get_dummies(frames["patient_id"]).to_numpy(float)
    flags = flag_twins(plan, patient, "cosine", 0.5).groupby("arm")["near"].mean()
    assert flags.to_dict() == {"frame": 1, "patient": 0, "video": 1}
