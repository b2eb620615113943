import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, precision_recall_fscore_support

from cag_utils.corpus.pairs import choose_key_frames
from cag_utils.identity import study_id
from cag_utils.keyframes import evaluation
from cag_utils.keyframes.labels import MERGES, SIX_CLASSES
from cag_utils.keyframes.predict import describe
from cag_utils.profiles import Stats

STATS = Stats(n_resamples=200, level=0.95)
CINES = {
    "a": [(2, "LCA_other", 0.1), (10, "LCA_bad", 0.9), (16, "LCA_better", 0.6),
          (30, "LCA_better", 0.7)],
    "b": [(0, "LCA_better", 0.4), (9, "LCA_better", 0.3)],
    "c": [(5, "LCA_bad", 0.8)],
    "d": [(5, "RCA_better", 0.8), (11, "LCA_other", 0.2)],
    "e": [(1, "LCA_other", 0.2)],
}  # fmt: skip


def draw_answers(n=300, seed=0, classes=SIX_CLASSES):
    rng = np.random.default_rng(seed)
    label = rng.choice(classes, n)
    said = np.where(rng.random(n) < 0.7, label, rng.choice(SIX_CLASSES, n))
    table = pd.DataFrame({"patient_id": rng.integers(7, size=n).astype(str), "label": label})
    for name, merge in MERGES.items():
        table[name] = pd.Series(said).map(merge)
    return table


def test_classes_agree_with_scikit_learn_and_strange_rows_are_refused():
    answers = draw_answers()
    table = evaluation.score_classes(answers, "six_class_f1", STATS, 0).iloc[:-1]
    said = answers["six_class_f1"]
    wanted = precision_recall_fscore_support(answers["label"], said, labels=SIX_CLASSES)
    for column, values in zip(("precision", "recall", "f1", "n"), wanted, strict=True):
        assert table[column].to_numpy(float) == pytest.approx(values)
    assert ((table["low"] <= table["f1"]) & (table["f1"] <= table["high"])).all()
    answers = draw_answers(classes=SIX_CLASSES[:5])  # a class without a true frame has no F1
    table = evaluation.score_classes(answers, "six_class_f1", STATS, 0).set_index("class")
    assert table.loc["RCA_other", ["precision", "recall", "f1", "low", "high"]].isna().all()
    assert table.loc["RCA_other", "n"] == 0
    assert np.isfinite(table.loc["weighted", ["f1", "low", "high"]].astype(float)).all()
    answers = draw_answers(20)
    with pytest.raises(ValueError, match="must be among"):
        evaluation.score_classes(answers.assign(label="LM_better"), "six_class_f1", STATS, 0)
    with pytest.raises(ValueError, match="20 rows have no group"):
        evaluation.score_classes(answers.assign(patient_id=None), "six_class_f1", STATS, 0)


@pytest.mark.parametrize("name", MERGES)
def test_weighted_f1_and_interval_equal_the_plain_bootstrap(name):
    answers = draw_answers()
    who = answers["patient_id"]
    rows = [np.flatnonzero(who == k) for k in sorted(set(who))]

    def plain(drawn, name):
        at = np.concatenate([rows[k] for k in drawn])
        true, said = answers["label"].map(MERGES[name]), answers[name]
        return f1_score(true.iloc[at], said.iloc[at], average="weighted")

    draws = np.random.default_rng(3).integers(7, size=(40, 7))
    f1s, sixes = (np.array([plain(d, x) for d in draws]) for x in (name, "six_class_f1"))
    low, high = np.quantile(f1s, [0.025, 0.975])
    stats = Stats(n_resamples=40, level=0.95)
    last = evaluation.score_classes(answers, name, stats, 3).iloc[-1]
    assert tuple(last[["f1", "low", "high"]]) == pytest.approx((plain(range(7), name), low, high))
    gap = evaluation.f1_difference(answers, name, "six_class_f1", stats, 3)
    assert gap.value == pytest.approx(plain(range(7), name) - plain(range(7), "six_class_f1"))
    assert gap[1:] == pytest.approx(tuple(np.quantile(f1s - sixes, [0.025, 0.975])))


def test_groups_are_scored_like_their_rows_alone():
    answers = draw_answers()
    answers["view"] = np.where(np.arange(300) < 100, "LAO", "RAO")
    answers["noise"] = evaluation.cut_thirds(pd.Series(np.arange(300.0)).where(lambda x: x > 5))
    table = evaluation.score_groups(answers, ["view", "noise"], STATS, 2)
    own = table[(table["group"] == "LAO") & (table["f1_name"] == "six_class_f1")].iloc[0]
    alone = evaluation.score_classes(answers[:100], "six_class_f1", STATS, 2).iloc[-1]
    assert (own["f1"], own["frames"]) == (alone["f1"], 100)
    noise = table[table["by"] == "noise"].drop_duplicates("group")
    assert noise["frames"].tolist() == [98, 98, 98]  # six missing ones are in none
    assert noise["group"].tolist()[0] == "1: 6 to 1e+02"
    few = evaluation.cut_thirds(pd.Series([0.0] * 8 + [1.0, 2.0]))  # of equal values fewer
    assert few.cat.categories.tolist() == ["1: 0 to 2"] and few.notna().all()


def write_still(path, darkness, sigma, seed=0, px=256):
    rng = np.random.default_rng(seed)
    picture = 150 + rng.normal(0, sigma, (px, px))
    for at in range(60, 200, 25):
        picture[at : at + 5, 40:216] -= darkness
    path.write_bytes(cv2.imencode(".png", picture.clip(0, 255).astype(np.uint8))[1].tobytes())
    return path


def test_darkening_and_noise_are_what_was_drawn(tmp_path):
    drawn = [(0, 2), (20, 2), (60, 2), (20, 8)]
    paths = [write_still(tmp_path / f"{i}.png", *pair) for i, pair in enumerate(drawn)]
    found = evaluation.measure_stills(paths)
    noise, dark = found["noise"].tolist(), found["darkening"].tolist()
    assert noise[0] == pytest.approx(2, rel=0.1) and noise[3] == pytest.approx(8, rel=0.15)
    assert dark[0] < 4 and dark[1] == pytest.approx(20, abs=4)
    assert dark[2] == pytest.approx(60, abs=6)
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((256, 256), np.uint8))
    assert evaluation.measure_stills([tmp_path / "black.png"]).isna().all(axis=None)
    with pytest.raises(ValueError, match="No such file"):
        evaluation.measure_stills([tmp_path / "none.png"])


def test_answers_are_gathered_in_order_or_refused_and_filling_is_a_product(tmp_path):
    ids, columns = {"patient_id": "p", "video_id": "v"}, {f"p_{c}": 0.0 for c in SIX_CLASSES}
    predictions = pd.DataFrame(ids | {"frame": [7, 3], "label": "LCA_bad"} | columns)
    predictions.loc[0, ["p_LCA_bad", "p_RCA_bad", "p_RCA_better"]] = [0.4, 0.3, 0.3]
    predictions.loc[1, "p_LCA_other"] = 1.0
    frames = pd.DataFrame(ids | {"frame": [3, 7], "png": ["3.png", "7.png"]})
    frames = frames.assign(primary_angle_deg=[30.0, np.nan], secondary_angle_deg=0.0)
    answers = evaluation.gather_answers(predictions, frames)
    assert answers["png"].tolist() == ["7.png", "3.png"]
    assert answers["predicted"].tolist() == ["LCA_bad", "LCA_other"]
    assert answers["laterality_f1"].tolist() == ["RCA", "LCA"]
    assert answers["confidence"].tolist() == [0.4, 1.0]
    assert answers["view"].tolist() == ["unknown", "LAO"]
    with pytest.raises(ValueError, match="1 predicted frames"):
        evaluation.gather_answers(predictions, frames[:1])
    path = tmp_path / "truth_frames.csv"
    path.write_text("video,frame,opacified,contrast\n1.2,4,0.5,0.8\n", encoding="utf-8")
    row = evaluation.read_filling(path, b"key").iloc[0]
    assert row["video_id"] == study_id("video", "1.2", b"key")
    assert (row["frame"], row["filling"]) == (4, pytest.approx(0.4))


def test_ece_by_hand_and_bins_agree_with_scikit_learn():
    # two bins of ten: (0.9, 0.9, 0.9, 0.9) 3 of 4 right: gap 0.15; (0.2) wrong: gap 0.2
    p, right, who = [0.9] * 4 + [0.2], [1, 1, 1, 0, 0], list("aabbb")
    found = evaluation.reliability(p, right, who, STATS, 0, n_bins=10)
    assert found.ece.value == pytest.approx((4 * 0.15 + 1 * 0.2) / 5)
    assert found.bins[["n", "right"]].to_numpy().tolist() == [[1, 0.0], [4, 0.75]]
    assert found.bins["from_confidence"].tolist() == pytest.approx([0.1, 0.8])
    edges = evaluation.reliability([0.5, 1.0, 0.0], [1, 1, 0], list("abc"), STATS, 0, n_bins=2)
    assert edges.bins["n"].tolist() == [2, 1]  # the upper edge belongs to a bin
    rng = np.random.default_rng(3)
    p = rng.random(400)
    right = rng.random(400) < p**1.5
    bins = evaluation.reliability(p, right, rng.integers(9, size=400).astype(str), STATS, 0).bins
    true, said = calibration_curve(right, p, n_bins=15)
    assert bins["right"].to_numpy() == pytest.approx(true)
    assert bins["confidence"].to_numpy() == pytest.approx(said)
    assert ((bins["low"] <= bins["right"]) & (bins["right"] <= bins["high"])).all()


def test_ece_interval_equals_a_plain_bootstrap_over_patients_and_bad_input_is_refused():
    rng = np.random.default_rng(4)
    p, who = rng.random(60), rng.integers(5, size=60)
    right = rng.random(60) < p

    def plain(rows):
        where = np.ceil(p[rows] * 15)
        own = [where == k for k in np.unique(where)]
        return sum(abs(p[rows][o].sum() - right[rows][o].sum()) for o in own) / len(rows)

    draws = np.random.default_rng(7).integers(5, size=(STATS.n_resamples, 5))
    samples = [plain(np.concatenate([np.flatnonzero(who == k) for k in d])) for d in draws]
    value = plain(np.arange(60))
    low, high = np.quantile(samples, [0.025, 0.975])
    found = evaluation.reliability(p, right, who.astype(str), STATS, 7).ece
    assert found == pytest.approx((value, min(low, value), max(high, value)))
    for p, right, who, words in (
        ([], [], [], "0 confidences"),
        ([0.5], [1, 0], ["a"], "1 confidences, 2 answers"),
        ([1.2], [1], ["a"], "between 0 and 1"),
        ([float("nan")], [1], ["a"], "between 0 and 1"),
        ([0.5], [1], [None], "no group"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluation.reliability(p, right, who, STATS, 0)


@given(st.floats(0.5, 5), st.integers(0, 1000))
def test_temperature_keeps_order_and_can_be_undone(temperature, seed):
    p = softmax(np.random.default_rng(seed).normal(0, 1.5, (8, 6)), 1)
    warmed = evaluation.apply_temperature(p, temperature)
    assert warmed.sum(1) == pytest.approx(1)
    assert (warmed.argmax(1) == p.argmax(1)).all()
    assert evaluation.apply_temperature(warmed, 1 / temperature) == pytest.approx(p, abs=1e-6)
    assert evaluation.apply_temperature(np.array([[0.2, 0.8]]), 2.0)[0, 1] == pytest.approx(2 / 3)


def test_fit_finds_the_temperature_that_spoilt_the_logits_and_reads_a_file(tmp_path):
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 2, (20000, 6))
    truth = np.array([rng.choice(6, p=p) for p in softmax(logits, 1)])
    assert evaluation.fit_temperature(softmax(3 * logits, 1), truth) == pytest.approx(3, rel=0.05)
    with pytest.raises(ValueError, match="need n = n > 0"):
        evaluation.fit_temperature(np.ones((2, 2)) / 2, np.array([0]))
    with pytest.raises(ValueError, match="above 0"):
        evaluation.apply_temperature(np.ones((1, 2)) / 2, 0.0)
    assert evaluation.read_temperature(tmp_path / "none.csv") is None
    p = softmax(np.random.default_rng(1).normal(0, 2, (60, 6)), 1)
    truth = np.random.default_rng(2).integers(6, size=60)
    table = pd.DataFrame(p, columns=[f"p_{c}" for c in SIX_CLASSES])
    table.assign(label=[SIX_CLASSES[i] for i in truth]).to_csv(tmp_path / "val.csv", index=False)
    wanted = pytest.approx(evaluation.fit_temperature(p, truth))
    assert evaluation.read_temperature(tmp_path / "val.csv") == wanted


def make_seen(cines, filling=None):
    """Cines as lists of (frame, label, probability of LCA_better)."""
    rows, table = [], []
    for video, frames in cines.items():
        for frame, label, p in frames:
            rows.append((f"pt-{video}", video, frame, label, 100.0))
            table.append([p, 1 - p, 0, 0, 0, 0])
    seen = pd.DataFrame(rows, columns=["patient_id", "video_id", "frame", "label", "frame_time_ms"])
    if filling is not None:
        seen["filling"] = filling
    return pd.concat([seen, describe(pd.DataFrame(table, columns=list(SIX_CLASSES)))], axis=1)


def test_picks_shares_and_distances_by_hand():
    filling = [0, 0.3, 0.5, 0.9, 0.2, 0.2, 0.1, 0.4, 0.0, 0.0]
    found = evaluation.pick_firsts(make_seen(CINES, filling), 0.5).set_index("video_id")
    assert found["picked"].tolist()[0] == 10 and np.isnan(found.loc["b", "picked"])
    assert found.loc["a", ["nearest", "best"]].tolist() == [16, 30]
    assert found.loc["a", ["frames_to_nearest", "frames_to_best"]].tolist() == [6, 20]
    assert found.loc["b", "best"] == 0  # equally filled: the earlier
    assert found["is_better"].tolist() == [False, False, False, True, False]
    assert np.isnan(found.loc["c", "frames_to_nearest"]) and found.loc["d", "frames_to_best"] == 0
    chosen = choose_key_frames(make_seen(CINES), 1, 0.5).set_index("video_id")  # notebook 03's rule
    assert found["picked"].dropna().to_dict() == chosen["frame"].to_dict()
    assert evaluation.pick_firsts(make_seen(CINES), 0.0)["picked"].notna().all()
    # without the phantom's truth there is a nearest frame, but no best one
    found = evaluation.pick_firsts(make_seen(CINES), 0.5)
    assert found["best"].isna().all() and found["nearest"].notna().sum() == 2
    assert evaluation.measure_distances(found)["to"].tolist() == ["nearest"]
    table = evaluation.summarise_picks(found, STATS, 0)
    got = table.set_index("name")
    assert got["cines"].tolist() == [3, 2, 2, 0, 2, 3]
    assert got["share"].iloc[:3].tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 2])
    assert got["share"].iloc[4:].tolist() == pytest.approx([1 / 2, 1 / 3])
    assert got["chance"].iloc[0] == pytest.approx((2 / 4 + 0 + 1 / 2) / 3)
    assert got.iloc[3][["share", "low", "high"]].isna().all()
    assert (table["low"].dropna() <= table["share"].dropna()).all()
    row = evaluation.measure_distances(found).iloc[0]
    assert row[["cines", "median_frames", "median_s"]].tolist() == pytest.approx([2, 3.0, 0.3])
    none = evaluation.measure_distances(evaluation.pick_firsts(make_seen({"e": CINES["e"]}), 0.5))
    assert none["cines"].tolist() == [0] and none["median_frames"].isna().all()


def test_the_side_is_scored_by_macro_f1_and_auc():
    # left 0.9, 0.6, 0.3 and right 0.7, 0.2, 0.1: 7 of 9 pairs in order; 2 of 3 right on each side
    p_left = np.array([0.9, 0.6, 0.3, 0.7, 0.2, 0.1])
    table = pd.DataFrame({f"p_{c}": np.zeros(6) for c in SIX_CLASSES})
    table["p_LCA_better"], table["p_RCA_bad"] = p_left, 1 - p_left
    table["label"] = ["LCA_better"] * 3 + ["RCA_better"] * 3
    found = evaluation.score_sides(table.assign(patient_id=list("abcdef")), STATS, 0)
    assert found["laterality_macro_f1"].value == pytest.approx(2 / 3)
    assert found["laterality_auc"].value == pytest.approx(7 / 9)
    assert all(x.low < x.value < x.high for x in found.values())
    alone = evaluation.score_sides(table.assign(patient_id="a"), STATS, 0)
    assert all(x.low == x.value == x.high for x in alone.values())  # one patient, no interval
    left = table[:3].assign(patient_id="a")
    assert all(np.isnan(x.value) for x in evaluation.score_sides(left, STATS, 0).values())


def test_no_validation_predictions_no_temperature(tmp_path):
    assert evaluation.read_temperature(tmp_path / "none.csv") is None
    (tmp_path / "empty.csv").write_text("label,p_LCA_better\n", encoding="utf-8")
    assert evaluation.read_temperature(tmp_path / "empty.csv") is None
