import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_fscore_support

from cag_utils import strata
from cag_utils.inflation import estimate_f1
from cag_utils.labels import MERGES, SIX_CLASSES
from cag_utils.profiles import Stats

STATS = Stats(n_resamples=200, level=0.95)


def draw_answers(n=300, seed=0, classes=SIX_CLASSES):
    rng = np.random.default_rng(seed)
    label = rng.choice(classes, n)
    said = np.where(rng.random(n) < 0.7, label, rng.choice(SIX_CLASSES, n))
    table = pd.DataFrame({"patient_id": rng.integers(7, size=n).astype(str), "label": label})
    for name, merge in MERGES.items():
        table[name] = pd.Series(said).map(merge)
    return table


@pytest.mark.parametrize("name", MERGES)
def test_weighted_f1_and_interval_equal_the_plain_bootstrap(name):
    answers = draw_answers()
    last = strata.score_classes(answers, name, STATS, 3).iloc[-1]
    assert tuple(last[["f1", "low", "high"]]) == pytest.approx(estimate_f1(answers, name, STATS, 3))


def test_classes_agree_with_scikit_learn():
    answers = draw_answers()
    table = strata.score_classes(answers, "six_class_f1", STATS, 0).iloc[:-1]
    wanted = precision_recall_fscore_support(
        answers["label"], answers["six_class_f1"], labels=SIX_CLASSES
    )
    for column, values in zip(("precision", "recall", "f1", "n"), wanted, strict=True):
        assert table[column].to_numpy(float) == pytest.approx(values)
    assert ((table["low"] <= table["f1"]) & (table["f1"] <= table["high"])).all()


def test_a_class_without_a_true_frame_has_no_f1():
    answers = draw_answers(classes=SIX_CLASSES[:5])
    table = strata.score_classes(answers, "six_class_f1", STATS, 0).set_index("class")
    assert table.loc["RCA_other", ["precision", "recall", "f1", "low", "high"]].isna().all()
    assert table.loc["RCA_other", "n"] == 0
    assert np.isfinite(table.loc["weighted", ["f1", "low", "high"]].astype(float)).all()


def test_unknown_labels_and_missing_patients_are_refused():
    answers = draw_answers(20)
    with pytest.raises(ValueError, match="must be among"):
        strata.score_classes(answers.assign(label="LM_better"), "six_class_f1", STATS, 0)
    with pytest.raises(ValueError, match="needs a patient"):
        strata.score_classes(answers.assign(patient_id=None), "six_class_f1", STATS, 0)
    with pytest.raises(ValueError, match="there must be rows"):
        strata.draw_weights([], 5, 0)


def test_weights_count_as_many_draws_as_there_are_patients():
    codes, weights = strata.draw_weights(["b", "a", "b"], 50, 1)
    assert codes.tolist() == [1, 0, 1]
    assert weights.shape == (50, 2) and (weights.sum(1) == 2).all()


def test_bracket_holds_its_value_and_knows_when_there_is_none():
    assert strata.bracket(5.0, np.array([1.0, 2.0, np.nan]), 0.9).high == 5.0
    assert np.isnan(strata.bracket(np.nan, np.array([1.0]), 0.9)).all()
    assert np.isnan(strata.bracket(1.0, np.array([np.nan]), 0.9)).all()


def test_groups_are_scored_like_their_rows_alone():
    answers = draw_answers()
    answers["view"] = np.where(np.arange(300) < 100, "LAO", "RAO")
    answers["noise"] = strata.cut_thirds(pd.Series(np.arange(300.0)).where(lambda x: x > 5))
    table = strata.score_groups(answers, ["view", "noise"], STATS, 2)
    own = table[(table["group"] == "LAO") & (table["f1_name"] == "six_class_f1")].iloc[0]
    alone = strata.score_classes(answers[:100], "six_class_f1", STATS, 2).iloc[-1]
    assert (own["f1"], own["frames"]) == (alone["f1"], 100)
    noise = table[table["by"] == "noise"].drop_duplicates("group")
    assert noise["frames"].tolist() == [98, 98, 98]  # six missing ones are in none
    assert noise["group"].tolist()[0] == "1: 6 to 1e+02"


def test_thirds_of_equal_values_are_fewer():
    cut = strata.cut_thirds(pd.Series([0.0] * 8 + [1.0, 2.0]))
    assert cut.cat.categories.tolist() == ["1: 0 to 2"] and cut.notna().all()


def test_views_are_named_and_unknown_without_an_angle():
    names = strata.name_views(pd.Series([30.0, -30, 2, np.nan]), pd.Series([25.0, 0, -30, 5]))
    assert names.tolist() == ["LAO cranial", "RAO", "AP caudal", "unknown"]


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
    found = strata.measure_stills(paths)
    assert found["noise"].iloc[0] == pytest.approx(2, rel=0.1)
    assert found["noise"].iloc[3] == pytest.approx(8, rel=0.15)
    assert found["darkening"].iloc[0] < 4
    assert found["darkening"].iloc[1] == pytest.approx(20, abs=4)
    assert found["darkening"].iloc[2] == pytest.approx(60, abs=6)


def test_a_black_still_has_no_measures_and_a_missing_one_is_an_error(tmp_path):
    black = write_still(tmp_path / "black.png", 200, 0)
    cv2.imwrite(str(black), np.zeros((256, 256), np.uint8))
    assert strata.measure_stills([black]).isna().all(axis=None)
    with pytest.raises(ValueError, match="is missing"):
        strata.measure_stills([tmp_path / "none.png"])
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(ValueError, match="is no picture"):
        strata.measure_stills([tmp_path / "text.png"])


def test_answers_are_gathered_in_order_and_lost_frames_are_an_error():
    columns = {f"p_{c}": [0.0, 0.0] for c in SIX_CLASSES}
    predictions = pd.DataFrame(
        {"patient_id": "p", "video_id": "v", "frame": [7, 3], "label": "LCA_bad"} | columns
    )
    predictions.loc[0, ["p_LCA_bad", "p_RCA_bad", "p_RCA_better"]] = [0.4, 0.3, 0.3]
    predictions.loc[1, "p_LCA_other"] = 1.0
    frames = pd.DataFrame(
        {"patient_id": "p", "video_id": "v", "frame": [3, 7], "png": ["3.png", "7.png"]}
    ).assign(primary_angle_deg=30.0, secondary_angle_deg=0.0)
    answers = strata.gather_answers(predictions, frames)
    assert answers["png"].tolist() == ["7.png", "3.png"]
    assert answers["predicted"].tolist() == ["LCA_bad", "LCA_other"]
    assert answers["laterality_f1"].tolist() == ["RCA", "LCA"]
    assert answers["confidence"].tolist() == [0.4, 1.0] and set(answers["view"]) == {"LAO"}
    with pytest.raises(ValueError, match="1 predicted frames"):
        strata.gather_answers(predictions, frames[:1])
