import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cag_utils.profiles import Stats, Vlscore
from cag_utils.report import MODEL_NAMES, paper_table
from cag_utils.triangles import (
    embed,
    join_cases,
    score_controls,
    score_models,
    side_correlations,
    summarise,
    table3,
)

UNIT = Vlscore(size="tiny", embedders=["siglip2"], normalise=True, max_area=3 * 3**0.5 / 4)
STATS = Stats(n_resamples=50, level=0.95)
TRUTHS = ["no stenosis", "mild disease", "tight spot", "total occlusion"]


class Letters:
    """An embedder that can be followed by hand: grey level and letter counts."""

    def __init__(self):
        self.asked = []

    def images(self, pictures):
        levels = [float(np.asarray(x).mean()) for x in pictures]
        return np.array([[level, 255 - level, *[1.0] * 26] for level in levels])

    def texts(self, texts):
        assert all(texts)
        self.asked.append(list(texts))
        return np.array([[0, 0] + [t.count(chr(97 + k)) for k in range(26)] for t in texts], float)

    def truncated(self, texts):
        return np.array([len(t) > 12 for t in texts])


@pytest.fixture
def study(tmp_path):
    """Four cases of two patients; one model repeats the truth, one is wrong, one is silent."""
    for k in range(4):
        Image.fromarray(np.full((8, 8), 40 * k + 20, np.uint8)).save(tmp_path / f"{k}.png")
    pairs = pd.DataFrame(
        {
            "case_id": [f"case-{k}" for k in range(4)],
            "patient_id": ["pt-a", "pt-a", "pt-b", "pt-b"],
            "png": [f"{k}.png" for k in range(4)],
        }
    )
    said = {
        "gemma3_lora": TRUTHS,
        "gemma3_base": TRUTHS[1:] + TRUTHS[:1],
        "paligemma2_base": ["", np.nan, " ", "sorry"],
    }
    rows = [
        {"case_id": f"case-{k}", "model": model, "output": text, "ground_truth": TRUTHS[k]}
        | {"status": "ok" if isinstance(text, str) and text.strip() else "empty"}
        for model, texts in said.items()
        for k, text in enumerate(texts)
    ]
    return pd.DataFrame(rows), pairs, tmp_path


@pytest.fixture
def cases(study):
    return join_cases(*study[:2])


@pytest.fixture
def space(study, cases):
    return embed(Letters(), cases, study[2])


def test_each_case_keeps_its_patient_and_picture(study, cases):
    assert len(cases) == 12 and cases["patient_id"].tolist() == ["pt-a", "pt-a", "pt-b", "pt-b"] * 3
    assert cases["empty"].sum() == 3 and cases["output"].map(type).eq(str).all()


def test_every_distinct_text_is_embedded_once(study, cases):
    embedder = Letters()
    space = embed(embedder, cases, study[2])
    assert embedder.asked == [sorted({*TRUTHS, "sorry"})]
    assert space.truncated == {"total occlusion"} and len(space.images) == 4


def test_a_right_angle_worked_by_hand(tmp_path):
    # unit vectors along three axes: an equilateral triangle of side sqrt 2, area sqrt(3)/2
    class Axes(Letters):
        def images(self, pictures):
            return np.array([[1.0, 0, 0]] * len(pictures))

        def texts(self, texts):
            return np.array([{"a": [0.0, 1, 0], "b": [0, 0, 1.0]}[t] for t in texts])

    Image.new("L", (4, 4)).save(tmp_path / "0.png")
    row = {"case_id": "c", "model": "m", "output": "b", "ground_truth": "a", "status": "ok"}
    pairs = pd.DataFrame([{"case_id": "c", "patient_id": "p", "png": "0.png"}])
    cases = join_cases(pd.DataFrame([row]), pairs)
    [got] = score_models(cases, embed(Axes(), cases, tmp_path), "siglip2", UNIT).to_dict("records")
    assert got["area"] == pytest.approx(3**0.5 / 2) and got["vlscore"] == pytest.approx(1 / 3)


def test_the_truth_scores_1_an_error_less_and_silence_0(cases, space):
    scores = score_models(cases, space, "siglip2", UNIT)
    by_model = scores.groupby("model")["vlscore"]
    assert (by_model.get_group("gemma3_lora") == 1).all()
    assert by_model.get_group("gemma3_base").lt(1).all()
    silent = scores[scores["model"] == "paligemma2_base"]
    assert silent["vlscore"].tolist()[:3] == [0, 0, 0] and silent["vlscore"].iloc[3] > 0
    assert silent["area"].isna().tolist() == [True, True, True, False]


def test_a_case_counts_as_truncated_when_its_output_or_its_truth_is(cases, space):
    scores = score_models(cases, space, "siglip2", UNIT)
    cut = scores[scores["truncated"]]
    assert sorted(zip(cut["model"], cut["case_id"], strict=True)) == [
        ("gemma3_base", "case-2"),
        ("gemma3_base", "case-3"),
        ("gemma3_lora", "case-3"),
        ("paligemma2_base", "case-3"),
    ]


def test_controls_leave_out_a_model_with_one_answer(cases, space):
    found = score_controls(cases, space, "siglip2", UNIT).set_index(["model", "control"])["vlscore"]
    assert set(found.index.levels[0]) == {"gemma3_lora", "gemma3_base"}
    lora = found["gemma3_lora"]
    assert lora["as written"] == lora["shuffled images"] == lora["blank image"] == 1
    assert lora["shuffled reports"] < 1


def test_what_the_area_follows(cases, space):
    found = side_correlations(cases, space)
    assert found["text_text"] < -0.5
    silent = side_correlations(cases[cases["empty"]], space)
    assert all(math.isnan(value) for value in silent.values())


def test_summary_counts_silence_and_keeps_the_mean_in_its_interval(cases, space):
    scores = score_models(cases, space, "siglip2", UNIT)
    rows = summarise(scores, STATS, seed=0).set_index("model")
    assert rows.loc["paligemma2_base", "empty"] == 0.75
    assert rows.loc["gemma3_lora", ["mean", "low", "high", "sd"]].tolist() == [1, 1, 1, 0]
    base = scores[scores["model"] == "gemma3_base"]
    assert rows["area_mean"]["gemma3_base"] == pytest.approx(base["area"].mean())
    assert rows["sd"]["gemma3_base"] == pytest.approx(base["vlscore"].std(ddof=1))
    assert ((rows["low"] <= rows["mean"]) & (rows["mean"] <= rows["high"])).all()


def test_table3_keeps_models_that_were_not_run_and_the_papers_figures(cases, space):
    summary = summarise(score_models(cases, space, "siglip2", UNIT), STATS, seed=0)
    table = table3(summary, paper_table("table3_vlscore"), ["siglip2"]).set_index("Model")
    assert list(table.index) == list(MODEL_NAMES.values())
    assert table["VLScore (interval)"]["o4-mini"] == "not run"
    assert table["Paper mean"]["o4-mini"] == 0.3116
    assert math.isnan(table["Paper mean"]["PaliGemma2 (unfine-tuned)"])
    assert table["VLScore (interval)"]["Gemma3 w/LoRA"] == "1.000 (1.000 to 1.000)"
    assert table["Cases"]["Gemma3 w/LoRA"] == 4


def test_refuses_what_it_cannot_score(study):
    generations, pairs, _ = study
    with pytest.raises(ValueError, match="no generations to score"):
        join_cases(generations.iloc[:0], pairs)
    with pytest.raises(ValueError, match="1 generated cases are not in pairs.csv, e.g. ..case-3"):
        join_cases(generations, pairs.iloc[:3])
    with pytest.raises(ValueError, match="no ground truth"):
        join_cases(generations.assign(ground_truth=""), pairs)
