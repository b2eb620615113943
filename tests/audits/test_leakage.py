"""The leakage audit's plan: who trains, who is tested, and what each network may know."""

import itertools

import cv2
import imagehash
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import f1_score
from torch import nn

from cag_utils.audits import leakage
from cag_utils.keyframes import network
from cag_utils.keyframes.labels import MERGES, SIX_CLASSES
from cag_utils.keyframes.network import FrameSet
from cag_utils.profiles import Stats, load_profile
from cag_utils.report import paper_table

STATS = Stats(n_resamples=60, level=0.9)
CNN = load_profile("smoke").cnn.model_copy(update={"pretrained": False, "image_px": 32})


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


def test_the_papers_table_puts_every_test_exam_in_train_and_one_of_cases_by_hand():
    cases = paper_table("table1_cnn_split").set_index("split")["cases"].to_dict()
    assert leakage.least_shared_cases(cases, 116) == {"train": 116, "val": 46, "test": 48}
    with pytest.raises(ValueError, match="5 exams out of 4"):
        leakage.least_shared_cases({"train": 5, "test": 1}, 4)
    frames = pd.DataFrame({"exam_id": ["e1", "e1", "e2", "e3", "e3", "e4"]})
    split = pd.Series(["train", "test", "train", "val", "train", "test"])
    got = leakage.tabulate_cases(frames, {"video": split}, {"train": 3, "val": 1, "test": 2}, 4)
    own = got[got["split by"] == "video"].iloc[:, 1:].to_numpy().tolist()
    assert own == [["train", 3, 3], ["val", 1, 1], ["test", 2, 1]]
    paper = got[got["split by"] != "video"].iloc[:, 1:].to_numpy().tolist()
    assert paper == [["train", 3, 3], ["val", 1, 0], ["test", 2, 1]]


@settings(max_examples=40, deadline=None)
@given(*[st.sets(st.integers(0, 9), min_size=1)] * 2, st.integers(10, 14))
def test_the_least_overlap_never_exceeds_the_true_one_and_can_be_had(train, test, n_exams):
    sizes = {"train": len(train), "test": len(test)}
    least = leakage.least_shared_cases(sizes, n_exams)
    assert least["test"] <= len(train & test)
    exams = range(n_exams)  # train from the front, test from the back: as far apart as can be
    apart = set(exams[: sizes["train"]]) & set(exams[n_exams - sizes["test"] :])
    assert least["test"] == len(apart)


@pytest.mark.parametrize("by", ["patient", "video", "frame"])
def test_a_split_keeps_together_what_it_says_and_no_more(by):
    frames = cohort([4] * 8)
    split = leakage.split_rows(frames, by, CNN, 0)
    assert set(split) == {"train", "val", "test"}
    for column in ("patient", "video"):
        crossing = split.groupby(frames[f"{column}_id"]).nunique().max() > 1
        assert crossing == (by == "frame" or (by, column) == ("video", "patient"))
    with pytest.raises(ValueError, match="cannot fill"):
        leakage.split_rows(frames[frames["patient_id"] < "pt-002"], "patient", CNN, 0)


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=12, max_size=24), st.integers(0, 5))
@pytest.mark.parametrize("n_folds, n_frames", [(2, 5), (3, 3)])
def test_every_plan_keeps_its_promises(n_folds, n_frames, n_videos, seed):
    frames = cohort([*n_videos, *[2] * 9], n_frames, seed)
    plan = leakage.plan_crossover(frames, n_folds, 0.12, seed, 0)
    assert len(plan) == 4 * n_folds
    leakage.describe_plan(plan, frames)  # raises if a network knows what it should not
    arms = ("patient", "video", "frame")
    tested = [sorted(row for t in plan for row in t.test.get(arm, [])) for arm in arms]
    counts = frames.groupby("patient_id")["video_id"].transform("nunique").to_numpy()
    assert (counts[tested[0]] > 1).all()  # a lone video is never tested
    assert len(tested[0]) == len(set(tested[0])) and tested == tested[:1] * 3  # once an arm
    for fold in range(n_folds):
        same = [t.train for t in plan if f"_fold{fold}_" in t.name]
        assert len({len(train) for train in same}) == 1  # as many frames
        assert all(len(train) == len(set(train)) for train in same)


def test_the_plan_of_a_balanced_cohort_worked_by_hand():
    # 18 patients of 5 videos of 6 frames; 2 validate, 16 in 4 groups of 4. Of 5 videos 2 are
    # tested. A fold trains on the 8 others (240 frames) and 4 x 3 lent videos (72 frames).
    frames = cohort([5] * 18)
    plan = leakage.plan_crossover(frames, 2, 0.12, 0, 0)
    table = leakage.describe_plan(plan, frames)
    assert (table["train frames"] == 240 + 72).all() and (table["train patients"] == 12).all()
    assert (table["val frames"] == 60).all()
    assert table["tested: patient"].dropna().tolist() == [24] * 4  # 4 x 2 videos, 3 of 6 frames
    assert table["tested: frame"].sum() == table["tested: video"].sum() == 96
    again, other = (leakage.plan_crossover(frames, 2, 0.12, 0, repeat) for repeat in (0, 1))
    assert all((a.train == b.train).all() for a, b in zip(plan, again, strict=True))
    assert not np.array_equal(plan[0].train, other[0].train)  # another repeat deals anew
    for t in plan:
        if "frame" in t.test:  # knows the very neighbours, and never the frame itself
            both = frames.iloc[t.test["frame"]].merge(frames.iloc[t.train], on="video_id")
            assert (both["frame_x"] - both["frame_y"]).abs().min() == 5


@pytest.mark.parametrize("n_videos, n_frames, n_folds, match", [
    ([3] * 9, 6, 1, "n_folds must be 2"),
    ([1] * 9, 6, 2, "folds need 4"),
    ([3] * 5, 6, 3, "need 6"),
    ([4] * 16, 1, 2, "no test frame is left"),
])  # fmt: skip
def test_a_plan_that_cannot_be_made(n_videos, n_frames, n_folds, match):
    with pytest.raises(ValueError, match=match):
        leakage.plan_crossover(cohort(n_videos, n_frames), n_folds, 0.12, 0, 0)


@pytest.mark.parametrize("spoil, match", [
    (lambda t: t._replace(test={"video": t.train[:3]}), "not 'video'"),
    (lambda t: t._replace(test={"frame": t.train[:3]}), "trains on frames"),
    (lambda t: t._replace(test={"frame": t.test["video"]}), "not 'frame'"),
    (lambda t: t._replace(test={"patient": t.test["video"]}), "not 'patient'"),
    (lambda t: t._replace(test={"video": t.test["patient"]}), "not 'video'"),
    (lambda t: t._replace(val=t.test["video"]), "not 'video'"),
])  # fmt: skip
def test_a_plan_that_leaks_is_noticed(spoil, match):
    first = leakage.plan_crossover(frames := cohort([4] * 16), 2, 0.12, 0, 0)[0]
    with pytest.raises(ValueError, match=match):
        leakage.describe_plan([spoil(first)], frames)


def test_twins_are_looked_for_in_the_networks_own_training_frames():
    plan = leakage.plan_crossover(frames := cohort([4] * 16), 2, 0.12, 0, 0)
    for alike, in_video in (("video_id", 0), ("patient_id", 1)):  # near: of the same video, patient
        features = pd.get_dummies(frames[alike]).to_numpy(float)
        flags = leakage.flag_twins(plan, features, 0.5).groupby("arm")["near"].mean()
        assert flags.to_dict() == {"frame": 1, "patient": 0, "video": in_video}


def noise(n, px=48, seed=0):
    pictures = np.random.default_rng(seed).integers(0, 256, (n, 1, px, px), dtype=np.uint8)
    return torch.from_numpy(pictures)


def test_a_hash_sees_through_brightness_but_not_through_a_turn():
    smooth = nn.functional.interpolate(noise(1, 8).float() * 0.7, size=96, mode="bicubic")
    one = smooth.clamp(0, 200).to(torch.uint8)
    a, brighter, turned = (leakage.hash_frames(x)[0] for x in (one, one + 40, one.transpose(2, 3)))
    assert (a == imagehash.phash(Image.fromarray(one[0, 0].numpy())).hash.ravel()).all()
    assert leakage.hash_frames(one[:0]).shape == (0, 64)
    assert (a != brighter).sum() <= 2 < 10 < (a != turned).sum()


class Pooled(nn.Module):
    """Stands where a network does: its features are the picture's four quadrant means."""

    def forward_features(self, x):
        return nn.functional.adaptive_avg_pool2d(x[:, :1].float(), 2)

    def forward_head(self, features, pre_logits):
        assert pre_logits
        return features.flatten(1)


def test_embeddings_are_whitened_rows_of_length_one(monkeypatch):
    monkeypatch.setattr(network, "build_model", lambda name, pretrained: Pooled())
    monkeypatch.setattr(network, "prepare", lambda pictures, name: pictures)
    pictures = noise(60, 8)
    got = leakage.embed_frames(pictures, "convnext_twin")
    assert got.shape == (60, 4) and got.dtype == np.float32  # a tenth of 60 is 6, features are 4
    monkeypatch.setattr(leakage, "BATCH", 7)
    np.testing.assert_allclose(leakage.embed_frames(pictures, "convnext_twin"), got, atol=1e-5)
    for n, d in ((30, 3), (5, 2)):
        assert leakage.embed_frames(noise(n, 8), "convnext_twin").shape == (n, d)
    np.testing.assert_allclose((got**2).sum(1), 1, atol=1e-5)
    means = nn.functional.adaptive_avg_pool2d(pictures.float(), 2).flatten(1).numpy()
    centred = (means - means.mean(0)).astype(np.float64)
    inverse = np.linalg.inv(np.cov(centred.T))  # Mahalanobis: what whitening makes of cosines
    scale = np.sqrt(np.einsum("ij,jk,ik->i", centred, inverse, centred))
    cosines = centred @ inverse @ centred.T / scale[:, None] / scale
    np.testing.assert_allclose(got @ got.T, cosines, atol=0.02)  # features come in bfloat16


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_nearest_is_what_brute_force_finds(n, m, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((n, 64)) < 0.5, rng.random((m, 64)) < 0.5
    bits = (a[:, None] != b).sum(2)
    distance, index = leakage.find_nearest(a, b)
    np.testing.assert_allclose(distance, bits.min(1))
    np.testing.assert_array_equal(bits[np.arange(n), index], bits.min(1))


def test_relations_against_a_loop_over_all_pairs():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 5, 40)
    frames = pd.DataFrame({"patient_id": patients.astype(str)})
    frames["video_id"] = frames["patient_id"] + "/" + pd.Series(rng.integers(0, 3, 40).astype(str))
    bits = rng.random((40, 64)) < 0.5
    got = leakage.nearest_by_relation(bits, frames, 0)
    for i in range(40):
        names = "any other patient", "same patient, other video", "same video"
        best = dict.fromkeys(names, np.inf)
        for j in set(range(40)) - {i}:
            same = frames.iloc[i] == frames.iloc[j]  # patient, video
            name = names[same.sum()]
            best[name] = min(best[name], (bits[i] != bits[j]).sum())
        for name, distance in best.items():
            assert got[name].fillna(np.inf)[i] == pytest.approx(distance)
    known = got["one other patient"].dropna()
    assert len(known) and (known >= got["any other patient"][known.index] - 1e-9).all()
    # the one other patient is one, and leaves a video out:
    # each patient shines in dimensions of their own, each video in one of them
    videos = ["a1", "a2", "b1", "b2", "c1", "c2"]
    frames = pd.DataFrame({"patient_id": list("aabbcc"), "video_id": videos})
    got = leakage.nearest_by_relation(np.eye(6), frames, 0)
    assert (got["one other patient"] == 1).all()
    kin = pd.DataFrame({"same video": [0.0, 2.0, np.nan], "any other patient": [4.0, 5.0, 9.0]})
    table = leakage.describe_relations(kin, 4.5).set_index("nearest")  # without the missing
    found = table[["frames", "median distance", "share near"]].to_numpy().tolist()
    assert found == [[2, 1, 1], [3, 5, pytest.approx(1 / 3)]]
    lone = frames[frames["video_id"].str.endswith("1")].reset_index(drop=True)
    assert leakage.nearest_by_relation(np.eye(3), lone, 0)["one other patient"].isna().all()
    alone = leakage.nearest_by_relation(np.eye(2), frames[:2], 0)  # one patient has no strangers
    assert alone.notna().any().tolist() == [False, True, False, False]


@given(st.lists(st.integers(0, 20), min_size=1), st.floats(0.01, 0.99), st.integers(0, 3))
def test_at_most_the_rate_lies_below_the_threshold(distances, rate, n_missing):
    limit = leakage.chance_threshold(np.array([*distances, *[np.nan] * n_missing], float), rate)
    assert limit in distances
    assert np.mean(np.array(distances) < limit) <= rate


def test_the_threshold_worked_by_hand_and_what_it_refuses():
    # of 101 distances 0..100, the 5 % quantile is 5; strictly below lie 0..4, five of 101
    assert leakage.chance_threshold(np.arange(101.0), 0.05) == 5
    for rate, distance, match in ((0, 1, "rate"), (1, 1, "rate"), (0.01, np.nan, "no stranger")):
        with pytest.raises(ValueError, match=match):
            leakage.chance_threshold(np.array([distance]), rate)


def test_twins_are_rows_of_the_table_and_never_validation_frames():
    features = np.array([[1, 0], [0.9, 0.1], [0, 1], [1, 0], [0.1, 0.9]], float)
    split = pd.Series(["test", "train", "train", "val", "test"])
    got = leakage.find_twins(features, split, 0.5)
    assert got["row"].tolist() == [0, 4] and got["twin"].tolist() == [1, 2] and got["near"].all()
    assert not leakage.find_twins(features, split, 1e-6)["near"].any()
    # within a patient: the nearest to frame 0 is b's, but 2 is its own
    got = leakage.find_twins(features, split, 0.5, pd.Series(list("abaac")))
    assert got[["row", "twin", "near"]].to_numpy().tolist() == [[0, 2, False]]
    for other, patients in (("val", None), ("train", pd.Series(["a", "b"]))):
        with pytest.raises(ValueError, match="no test frame has a training frame"):
            leakage.find_twins(np.eye(2), pd.Series(["test", other]), 0.5, patients)


def answers_of(truth, said, patients, arm="patient"):
    table = pd.DataFrame({"label": truth, "patient_id": patients, "arm": arm})
    return table.assign(**{k: pd.Series(said).map(merge) for k, merge in MERGES.items()})


def guesses(n, share_right, seed, arm, n_patients=12):
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).choice(SIX_CLASSES, n)
    said = np.where(rng.random(n) < share_right, truth, rng.choice(SIX_CLASSES, n))
    return answers_of(truth, said, np.arange(n) % n_patients, arm)


@pytest.mark.parametrize("name", list(MERGES))
def test_f1_and_gain_are_the_plain_bootstraps(name):
    more, less = guesses(150, 0.6, 0, "video"), guesses(150, 0.5, 1, "patient")
    more["patient_id"] += 3  # the two test sets share nine of fifteen patients
    owned = [dict(list(side.groupby("patient_id"))) for side in (more, less)]

    def f1(own, drawn):
        rows = pd.concat([own[k] for k in drawn if k in own])
        return f1_score(rows["label"].map(MERGES[name]), rows[name], average="weighted")

    def plain(drawn):
        return f1(owned[0], drawn) - f1(owned[1], drawn)

    draws = np.random.default_rng(5).integers(15, size=(60, 15))
    low, high = np.quantile([plain(drawn) for drawn in draws], [0.05, 0.95])
    got = leakage.estimate_f1(more, name, STATS, 5, less)
    assert got == pytest.approx((plain(range(15)), low, high))


def test_a_gain_worked_by_hand_and_paired_by_patient():
    # one patient; laterality right in 1 of 2 frames against 2 of 2: F1 1/3 against 1
    truth = ["LCA_bad", "RCA_bad"]
    less = answers_of(truth, ["LCA_bad", "LCA_bad"], ["p", "p"])
    more = answers_of(truth, truth, ["p", "p"], "video")
    got = leakage.estimate_f1(more, "laterality_f1", STATS, 0, less)
    assert got == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    # answers that differ on nothing: the gain is 0 whoever is drawn, with no width at all
    same = guesses(120, 0.5, 0, "video")
    assert leakage.estimate_f1(same, "six_class_f1", STATS, 0, same) == (0, 0, 0)
    # the table sets each arm against the base
    both = pd.concat([guesses(200, 0.9, 2, "video"), guesses(200, 0.5, 1, "patient")])
    table = leakage.tabulate_f1(both, STATS, 0).set_index(["f1_name", "arm"])
    assert list(dict.fromkeys(table.index.get_level_values("arm"))) == ["patient", "video"]
    base, leaky = (table.xs(arm, level="arm") for arm in ("patient", "video"))
    pd.testing.assert_series_equal(leaky["gain"], leaky["f1"] - base["f1"], check_names=False)
    assert (base[["gain", "gain_low", "gain_high"]] == 0).all(None)
    assert (table["frames"] == 200).all() and (table["patients"] == 12).all()
    with pytest.raises(KeyError, match="patient"):  # its base is not there
        leakage.tabulate_f1(guesses(20, 0.5, 0, "video"), STATS, 0)


def test_gains_of_look_alikes_are_told_apart():
    # the leaky network is right on every look-alike and guesses like the other one elsewhere
    near = np.arange(300) % 3 == 0
    base, leaky = guesses(300, 0.4, 1, "patient"), guesses(300, 0.4, 1, "video")
    for name, merge in MERGES.items():
        leaky[name] = np.where(near, leaky["label"].map(merge), leaky[name])
    answers = pd.concat([base, leaky]).assign(repeat=0, row=[*range(300)] * 2)
    twins = pd.DataFrame({"repeat": 0, "row": range(300), "arm": "video", "near": near})
    got = leakage.tabulate_by_twin(answers, twins, STATS, 0)
    gains = got[got["f1_name"] == "six_class_f1"].set_index("near_duplicate")
    assert gains.loc["no", "gain"] == 0 and gains.loc["yes", "gain_low"] > 0.2
    assert gains["frames"].to_dict() == {"no": 200, "yes": 100}
    assert (gains["base_f1"] + gains["gain"] - gains["f1"]).abs().max() < 1e-12
    with pytest.raises(ValueError, match="2 answers have no flag in arm 'video'"):
        leakage.tabulate_by_twin(answers, twins[:299], STATS, 0)


def test_trainings_answer_their_own_test_frames_and_leave_no_weights(tmp_path):
    # two classes that a network learns in seconds: dark left ones, bright right ones
    frames = cohort([3] * 8, 3).assign(label=lambda t: t["label"].str[:3] + "_bad")
    grey = torch.randint(0, 60, (len(frames), 1, 32, 32), generator=torch.manual_seed(0))
    for i, label in enumerate(frames["label"]):
        grey[i, 0, :, slice(16) if label == "RCA_bad" else slice(16, 32)] += 150
    targets = torch.tensor([SIX_CLASSES.index(label) for label in frames["label"]])
    run = (frames, FrameSet(grey.to(torch.uint8), targets), CNN, tmp_path, 0, 1)
    split = leakage.split_rows(frames, "video", CNN, 0)
    plan = leakage.plan_crossover(frames, 2, 0.2, 0, 0)
    leakage.describe_plan(plan, frames)
    plan = plan[:4]  # of one fold
    answers = leakage.run_trainings(leakage.plan_splits({"alone": split}) + plan, *run)
    rows = answers.groupby("arm")["row"].agg(sorted)
    assert rows["alone"] == np.flatnonzero(split == "test").tolist()
    assert rows["patient"] == rows["video"] == rows["frame"]  # each frame in three ways
    ids = frames.iloc[answers["row"]][["video_id", "frame", "label"]]
    assert (answers[ids.columns].to_numpy() == ids.to_numpy()).all()
    assert all(set(answers[name]) <= set(merge.values()) for name, merge in MERGES.items())
    assert {path.name for path in tmp_path.glob("*/*")} == {"history.csv"}
    assert len(list(tmp_path.iterdir())) == len(plan) + 1
    with pytest.raises(ValueError, match=r"no frames in \['val'\]"):
        leakage.run_trainings([plan[0]._replace(val=plan[0].val[:0])], *run)


def test_the_figures_of_gains_and_of_look_alikes_draw_what_they_return(tmp_path):
    resplit = pd.concat([guesses(60, 0.7, 1, arm) for arm in ("patient", "video", "frame")])
    table = leakage.tabulate_f1(resplit, STATS, 0)
    fig, drawn = leakage.draw_gains(table, table, table.assign(repeat=0))
    assert len(fig.axes) == len(MERGES) and "patient" not in set(drawn["arm"])
    [dots] = [x for x in fig.axes[0].lines if x.get_marker() == "|" and x.get_markersize() == 12]
    own = drawn[(drawn["f1_name"] == "six_class_f1") & (drawn["design"] == "one deal")]
    np.testing.assert_allclose(dots.get_xdata(), own["gain"])
    kin = pd.DataFrame(np.arange(12.0).reshape(3, 4), columns=list(leakage.RELATIONS))
    kin.loc[0, leakage.RELATIONS[0]] = np.nan
    both = dict.fromkeys(("hash", "embedding"), kin)
    fig, drawn = leakage.draw_distances(both, dict.fromkeys(both, 1))
    assert len(drawn) == 22 and len(fig.axes) == 2
    frames = cohort([3] * 3, 2)
    frames["png"] = [f"{i}.png" for i in range(len(frames))]
    for i, name in enumerate(frames["png"]):
        cv2.imwrite(str(tmp_path / name), np.full((8, 8), i, np.uint8))
    rows = frames.index[frames["patient_id"] == "pt-001"]
    twins = pd.DataFrame({"row": rows[:3], "twin": rows[3:], "distance": [0.3, 0.1, 0.2]})
    fig, drawn = leakage.draw_pairs(twins, frames, tmp_path, "phantom")
    assert drawn["distance"].tolist() == [0.1]  # one pair a patient, the nearest
    shown = [int(image.get_array().max() * 255 + 0.5) for ax in fig.axes for image in ax.images]
    assert sorted(shown) == sorted([rows[1], rows[4]])
