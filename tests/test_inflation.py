"""Gains in F1: against scikit-learn, against a plain bootstrap, and on planted leaks."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score

from cag_utils import leakage_figures
from cag_utils.crossover import describe_plan, plan_crossover
from cag_utils.duplicates import RELATIONS
from cag_utils.inflation import (
    estimate_f1,
    estimate_gain,
    tabulate_by_twin,
    tabulate_f1,
    weighted_f1,
)
from cag_utils.labels import MERGES, SIX_CLASSES
from cag_utils.leakage import split_rows
from cag_utils.networks import FrameSet
from cag_utils.profiles import Stats, load_profile
from cag_utils.retraining import fit_predict, run_crossover, run_splits
from cag_utils.stats import bootstrap_interval
from tests.test_leakage import cohort

STATS = Stats(n_resamples=60, level=0.9)
CNN = load_profile("smoke").cnn.model_copy(update={"pretrained": False, "image_px": 32})


def answers_of(truth, said, patients, arm="patient"):
    table = pd.DataFrame({"label": truth, "patient_id": patients, "arm": arm})
    return table.assign(**{k: pd.Series(said).map(merge) for k, merge in MERGES.items()})


def guesses(n, share_right, seed, arm, n_patients=12):
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).choice(SIX_CLASSES, n)
    said = np.where(rng.random(n) < share_right, truth, rng.choice(SIX_CLASSES, n))
    return answers_of(truth, said, np.arange(n) % n_patients, arm)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_the_f1_is_scikit_learns(pairs):
    truth, said = zip(*pairs, strict=True)
    matrix = confusion_matrix(truth, said, labels=range(4))
    assert weighted_f1(matrix) == pytest.approx(f1_score(truth, said, average="weighted"))


def test_the_f1_of_nothing_is_undefined():
    assert np.isnan(weighted_f1(np.zeros((3, 3))))


@pytest.mark.parametrize("name", list(MERGES))
def test_adding_up_matrices_is_the_plain_bootstrap(name):
    data = guesses(150, 0.6, 0, "patient")

    def plain(rows):
        return f1_score(rows["label"].map(MERGES[name]), rows[name], average="weighted")

    slow = bootstrap_interval(data, "patient_id", plain, 60, 5, 0.9)
    np.testing.assert_allclose(estimate_f1(data, name, STATS, 5), slow, atol=1e-12)


def test_a_gain_worked_by_hand():
    # one patient; laterality right in 1 of 2 frames against 2 of 2: F1 1/3 against 1
    truth = ["LCA_bad", "RCA_bad"]
    less = answers_of(truth, ["LCA_bad", "LCA_bad"], ["p", "p"])
    more = answers_of(truth, truth, ["p", "p"], "video")
    got = estimate_gain(more, less, "laterality_f1", STATS, 0)
    assert got == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_the_comparison_is_paired_by_patient():
    # answers that differ on nothing: the gain is 0 whoever is drawn, with no width at all
    same = guesses(120, 0.5, 0, "video")
    assert estimate_gain(same, same, "six_class_f1", STATS, 0) == (0, 0, 0)
    alone = estimate_f1(same, "six_class_f1", STATS, 0)
    assert alone.high > alone.low


def test_a_planted_gain_is_found_and_a_missing_one_is_not():
    base = guesses(600, 0.5, 1, "patient")
    better = estimate_gain(guesses(600, 0.8, 2, "video"), base, "six_class_f1", STATS, 0)
    alike = estimate_gain(guesses(600, 0.5, 3, "video"), base, "six_class_f1", STATS, 0)
    assert better.low > 0.1
    assert alike.low < 0 < alike.high


def test_two_test_sets_may_share_some_patients_only():
    first, second = guesses(100, 0.7, 1, "patient"), guesses(100, 0.7, 2, "video")
    second["patient_id"] += 6
    got = estimate_gain(second, first, "laterality_f1", STATS, 0)
    f1s = [estimate_f1(side, "laterality_f1", STATS, 0).value for side in (second, first)]
    assert got.value == pytest.approx(f1s[0] - f1s[1])


def test_the_table_sets_each_arm_against_the_base():
    both = pd.concat([guesses(200, 0.9, 2, "video"), guesses(200, 0.5, 1, "patient")])
    table = tabulate_f1(both, "patient", STATS, 0).set_index(["f1_name", "arm"])
    assert list(dict.fromkeys(table.index.get_level_values("arm"))) == ["patient", "video"]
    assert (table.xs("patient", level="arm")[["gain", "gain_low", "gain_high"]] == 0).all(None)
    f1 = {arm: table["f1"].xs(arm, level="arm") for arm in ("video", "patient")}
    gain = table["gain"].xs("video", level="arm")
    pd.testing.assert_series_equal(gain, f1["video"] - f1["patient"], check_names=False)
    assert (table["frames"] == 200).all() and (table["patients"] == 12).all()


def test_the_table_needs_its_base():
    with pytest.raises(ValueError, match="no answers of 'patient'"):
        tabulate_f1(guesses(20, 0.5, 0, "video"), "patient", STATS, 0)


def with_rows(table):
    return table.assign(repeat=0, row=range(len(table)))


def test_gains_of_look_alikes_are_told_apart():
    # the leaky network is right on every look-alike and guesses like the other one elsewhere
    near = np.arange(300) % 3 == 0
    base, leaky = guesses(300, 0.4, 1, "patient"), guesses(300, 0.4, 1, "video")
    for name, merge in MERGES.items():
        leaky[name] = np.where(near, leaky["label"].map(merge), leaky[name])
    answers = pd.concat([with_rows(base), with_rows(leaky)])
    twins = pd.DataFrame({"repeat": 0, "row": range(300), "arm": "video", "near": near})
    got = tabulate_by_twin(answers, twins, "patient", STATS, 0)
    gains = got[got["f1_name"] == "six_class_f1"].set_index("near_duplicate")
    assert gains.loc["no", "gain"] == 0 and gains.loc["yes", "gain_low"] > 0.2
    assert gains["frames"].to_dict() == {"no": 200, "yes": 100}
    assert (gains["base_f1"] + gains["gain"] - gains["f1"]).abs().max() < 1e-12


def test_gains_of_look_alikes_need_every_flag():
    answers = pd.concat([with_rows(guesses(20, 0.5, 1, arm)) for arm in ("patient", "video")])
    twins = pd.DataFrame({"repeat": 0, "row": range(19), "arm": "video", "near": True})
    with pytest.raises(ValueError, match="2 answers have no flag in arm 'video'"):
        tabulate_by_twin(answers, twins, "patient", STATS, 0)


@pytest.fixture(scope="module")
def pictures():
    """Two classes that a network learns in seconds: dark left ones, bright right ones."""
    frames = cohort([3] * 8, 3).assign(label=lambda t: t["label"].str[:3] + "_bad")
    right = torch.tensor((frames["label"] == "RCA_bad").to_numpy())
    grey = torch.randint(0, 60, (len(frames), 1, 32, 32), generator=torch.manual_seed(0))
    half = torch.where(right[:, None], 0, 16) + torch.arange(16)
    for i, columns in enumerate(half):
        grey[i, 0, :, columns] += 150
    targets = torch.tensor([SIX_CLASSES.index(label) for label in frames["label"]])
    return frames, FrameSet(grey.to(torch.uint8), targets)


def test_retraining_answers_its_own_test_frames_and_leaves_no_weights(pictures, tmp_path):
    frames, data = pictures
    split = split_rows(frames, "video", CNN, 0)
    answers = run_splits({"video": split}, frames, data, CNN, tmp_path, 0, 2)
    assert sorted(answers["row"]) == sorted(np.flatnonzero(split == "test"))
    ids = frames.iloc[answers["row"]][["video_id", "frame", "label"]]
    assert (answers[ids.columns].to_numpy() == ids.to_numpy()).all()
    for name, merge in MERGES.items():
        assert set(answers[name]) <= set(merge.values())
    assert [path.name for path in (tmp_path / "by_video").iterdir()] == ["history.csv"]


def test_the_crossover_answers_each_test_frame_in_three_ways(pictures, tmp_path):
    frames, data = pictures
    plan = plan_crossover(frames, 2, 0.2, 0)
    describe_plan(plan, frames)
    answers = run_crossover(plan, frames, data, CNN, tmp_path, 0, 1)
    rows = answers.groupby("arm")["row"].agg(sorted)
    assert rows["patient"] == rows["video"] == rows["frame"]
    assert len(list(tmp_path.glob("*/history.csv"))) == len(plan)


def test_retraining_needs_frames_in_every_part(pictures, tmp_path):
    rows = {"train": np.arange(4), "val": np.arange(0), "test": np.arange(4, 6)}
    with pytest.raises(ValueError, match=r"no frames in \['val'\]"):
        fit_predict(pictures[1], rows, CNN, tmp_path, 0, 1)


def test_the_figure_of_gains_draws_what_it_returns():
    resplit = pd.concat([guesses(60, 0.7, 1, arm) for arm in ("patient", "video", "frame")])
    table = tabulate_f1(resplit, "patient", STATS, 0)
    fig, drawn = leakage_figures.draw_gains(table, table, table.assign(repeat=0))
    assert len(fig.axes) == len(MERGES) and "patient" not in set(drawn["arm"])
    assert set(drawn["design"]) == {"new split", "same frames", "one deal"}
    [dots] = [x for x in fig.axes[0].lines if x.get_marker() == "|" and x.get_markersize() == 12]
    own = drawn[(drawn["f1_name"] == "six_class_f1") & (drawn["design"] == "one deal")]
    np.testing.assert_allclose(dots.get_xdata(), own["gain"])


def test_the_figures_of_look_alikes_draw_what_they_return(tmp_path):
    kin = pd.DataFrame(np.arange(12.0).reshape(3, 4), columns=list(RELATIONS))
    kin.loc[0, RELATIONS[0]] = np.nan
    fig, drawn = leakage_figures.draw_distances(
        {"hash": kin, "embedding": kin}, dict.fromkeys(("hash", "embedding"), 1.0)
    )
    assert len(drawn) == 22 and len(fig.axes) == 2
    frames = cohort([3] * 3, 2)
    frames["png"] = [f"{i}.png" for i in range(len(frames))]
    for i, name in enumerate(frames["png"]):
        cv2.imwrite(str(tmp_path / name), np.full((8, 8), i, np.uint8))
    rows = frames.index[frames["patient_id"] == "pt-001"]
    twins = pd.DataFrame({"row": rows[:3], "twin": rows[3:], "distance": [0.3, 0.1, 0.2]})
    fig, drawn = leakage_figures.draw_pairs(twins, frames, tmp_path, "phantom")
    assert drawn["distance"].tolist() == [0.1]  # one pair a patient, the nearest
    shown = [int(image.get_array().max() * 255 + 0.5) for ax in fig.axes for image in ax.images]
    assert sorted(shown) == sorted([rows[1], rows[4]])
