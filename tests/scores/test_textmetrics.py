"""Word counts against numbers worked by hand."""

from math import exp

import pandas as pd
import pytest

from cag_utils.profiles import Stats
from cag_utils.scores.textmetrics import METRICS, correlate, measure_answers, text_metrics


def test_metrics_of_a_short_answer_by_hand():
    # 3 of 3 words, 2 of 2 pairs, 1 of 1 triple, and 3 words for 4: exp(1 - 4/3); F1 of 1 and 3/4
    [row] = text_metrics(["the artery narrows"], ["the artery narrows here"], "en").to_dict(
        "records"
    )
    assert row["bleu"] == pytest.approx(exp(1 - 4 / 3))
    assert row["rouge_l"] == pytest.approx(2 * 0.75 / 1.75)
    assert row["length_ratio"] == pytest.approx(18 / 23)
    # characters: 2 of 3 in order, of 4
    [row] = text_metrics(["左冊犹"], ["左 冠犹窄"], "ja").to_dict("records")
    assert row["rouge_l"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert 0 < row["chrf"] < 1


@pytest.mark.parametrize(
    "language, text", [("en", "No stenosis in the LAD."), ("ja", "犹窄なしです。")]
)
def test_the_truth_has_one_silence_nothing_and_a_blind_text_little(language, text):
    found = text_metrics([text, " ", "q" * len(text)], [text] * 3, language)
    assert list(found) == list(METRICS)
    assert found.iloc[0].tolist() == pytest.approx([1.0] * 4) and (found.iloc[1] == 0).all()
    # letters that say nothing: only the length, which reads nothing, likes them
    assert found.iloc[2].tolist() == pytest.approx([0, 0, 0, 1], abs=0.05)


def test_a_metric_that_only_tells_kinds_apart_knows_nothing_within_them():
    rows = pd.DataFrame({"case_id": range(4), "model": "m", "kind": list("xxyy")})
    scores = rows.assign(patient_id=list("abcd"), reader="r", overall=[1, 2, 9, 8])
    scores = scores.drop(columns="kind")
    rows = rows.assign(kinds=[0, 0, 1, 1], judge=[1, 2, 9, 8], half=[1, 2, None, None])
    stats = Stats(n_resamples=20, level=0.95)
    found = correlate(rows, ["kinds", "judge", "half"], scores, stats, 0)
    table = found.set_index("metric")
    assert table.loc["kinds", "rho"] == pytest.approx(4 / 20**0.5)  # of ranks 1.5, 3.5 and 1 to 4
    assert table.loc["kinds", ["within", "within_low"]].isna().all()
    assert tuple(table.loc["judge", ["rho", "within"]]) == pytest.approx((1, 1))
    assert table["answers"].tolist() == [4, 4, 2]
    two = pd.concat([scores, scores.assign(reader="s", overall=[8, 9, 2, 1])])
    found = correlate(rows, ["judge"], two, stats, 0).set_index("scorer")["rho"]
    # s: 1 - 6 x 16 / 60; their means 4.5, 5.5, 5.5, 4.5 rank as 1.5, 3.5, 3.5, 1.5
    assert found.to_dict() == pytest.approx({"r": 1, "s": -0.6, "mean": 2 / 20**0.5})


def test_answers_get_their_triangles_and_the_kind_of_their_truth():
    pairs = pd.DataFrame(
        {"case_id": list("ab"), "findings_en": ["No stenosis.", "RCA #2 shows 75% stenosis."]}
    )
    said = pd.DataFrame({"case_id": list("aab"), "model": list("mnm"), "output": ["x", None, "y"]})
    said["ground_truth"] = said["case_id"].map(pairs.set_index("case_id")["findings_en"])
    scores = pd.DataFrame(
        {"case_id": list("ab"), "model": "m", "embedder": "e", "vlscore": [0.5, 0.25]}
    )
    found = measure_answers(said[::-1], pairs, "en", scores)
    assert found["kind"].tolist() == ["mTrue", "nFalse", "mFalse"]
    assert found["e"].tolist()[::2] == [0.25, 0.5] and found["e"].isna().sum() == 1
    assert found["bleu"][1] == 0 and "e" not in measure_answers(said, pairs, "en", None)
    assert measure_answers(said[:0], pairs, "en", scores).empty


@pytest.mark.parametrize("case, match", [
    ((["a"], [], "en"), "1 outputs for 0 truths"),
    ((["a"], [" "], "en"), "a truth is empty"),
    ((["a"], ["b"], "de"), "unknown language 'de'"),
])  # fmt: skip
def test_bad_input_is_refused(case, match):
    with pytest.raises(ValueError, match=match):
        text_metrics(*case)
