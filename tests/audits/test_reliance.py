"""What a model owes to picture and report, by hand; the corpus without pictures."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cag_utils.audits.reliance import MEASURES, blank_pairs, count_answers, measure_reliance
from cag_utils.corpus.examples import read_examples
from cag_utils.profiles import Stats
from cag_utils.scores.scorecard import score_generations
from tests.vlm.world import write_pairs

STATS = Stats(n_resamples=400, level=0.95)
SICK = {"LCA": ("LAD", 6), "RCA": ("RCA", 2)}


def corpus():
    """Of each of two patients, one per side, a picture with a lesion of 90 % and a clean one."""
    rows = []
    for patient, side in (("a", "LCA"), ("b", "RCA")):
        for sick in (1, 0):
            found = [{"segment": SICK[side][1], "percent": 90}] * sick
            row = {"case_id": f"{patient}{sick}", "patient_id": patient, "truth_laterality": side}
            row |= {"truth_lesions": json.dumps(found), "truth_plan": "pci" if sick else "none"}
            rows.append(row)
    return pd.DataFrame(rows)


def answers():
    """Five authors: the model, itself otherwise, the truth and a floor that calls all clean."""
    clean = {s: f"No significant stenosis in the {s}. No revascularization." for s in SICK}
    sick = {
        s: f"{artery} #{n} shows 90% stenosis. PCI is recommended."
        for s, (artery, n) in SICK.items()
    }
    right = {"a1": sick["LCA"], "a0": clean["LCA"], "b1": sick["RCA"], "b0": clean["RCA"]}
    silent = right | {"a1": clean["LCA"], "b1": clean["RCA"]}
    wrong = sick["LCA"].replace("#6", "#7")
    said = {"truth": right, "constant": silent, "m_lora": right, "m_lora@blank": silent}
    said |= {"m_lora@other": right | {"b1": clean["RCA"]}, "m_lora@noise": right}
    said |= {"m_lora@mirrored": right | {"a1": wrong}, "m_base@zero": silent}
    rows = [
        (case, model, text, "ok") for model, texts in said.items() for case, text in texts.items()
    ]
    return pd.DataFrame(rows, columns=["case_id", "model", "output", "status"])


def test_what_a_measure_loses_by_hand():
    marks = score_generations(answers(), corpus(), "en")
    table = measure_reliance(marks, STATS, 0)
    assert table["asked"].unique().tolist() == ["blank", "other", "noise", "mirrored"]
    assert set(table["model"]) == {"m_lora"} and (table["cases"] == 4).all()
    assert set(table["measure"]) == {*MEASURES, "skill"} and len(table) == 4 * 8
    found = table.set_index(["asked", "measure"])[["true", "score", "drop", "low", "high"]]

    def row(asked, measure):
        return found.loc[(asked, measure)].round(9).tolist()

    # none of two lesions named; every patient has one, so each resample says the same
    assert row("blank", "lesion_f1") == [1, 0, 1, 1, 1]
    assert row("blank", "lesion_recall") == [1, 0, 1, 1, 1]
    assert np.isnan(found.loc[("blank", "lesion_precision"), "score"])  # nothing was named
    assert row("blank", "healthy_right") == row("blank", "laterality_accuracy") == [1, 1, 0, 0, 0]
    assert row("blank", "plan_right") == [1, 0.5, 0.5, 0.5, 0.5]
    # patient b's lesion is lost: one hit of one named and two true; drawn twice, a or b alone
    assert row("other", "lesion_f1") == pytest.approx([1, 2 / 3, 1 / 3, 0, 1])
    # a number wrong: one hit of two named and two true
    assert row("mirrored", "lesion_f1") == [1, 0.5, 0.5, 0, 1]
    # the best floor of the study is another's picture, 2/3: (.5 - 2/3) / (1 - 2/3) = -.5
    assert row("mirrored", "skill")[:3] == pytest.approx([1, -0.5, 1.5])
    # scattered pixels are no floor of the study, however well they do
    assert row("noise", "skill")[:3] == [1, 1, 0] and row("noise", "overall")[2:] == [0, 0, 0]


def test_different_answers_are_counted_and_those_that_stay():
    found = count_answers(answers()).set_index(["model", "asked"])
    assert found.index.tolist() == [
        ("m_lora", asked) for asked in ("", "blank", "other", "noise", "mirrored")
    ]
    assert found["distinct"].tolist() == [4, 2, 3, 4, 4] and set(found["cases"]) == {4}
    assert found["same"].tolist() == [1, 0.5, 0.75, 1, 0.75]
    few = answers().query("model != 'm_lora@other' or case_id > 'b0'")  # one case was left out
    found = count_answers(few).set_index(["model", "asked"]).loc[("m_lora", "other")]
    assert found.tolist() == [1, 1, 0]


def test_a_corpus_without_pictures_is_one_picture_and_all_texts(tmp_path):
    pairs = write_pairs(tmp_path)
    outputs = pairs.parents[2]
    run = outputs / "A7_image_reliance" / "all"
    run.mkdir(parents=True)
    read = [read_examples(p, "ja", outputs) for p in (pairs, blank_pairs(pairs, run / "pairs.csv"))]
    texts = ["case_id", "patient_id", "split", "laterality", "report", "answer", "prompt"]
    assert read[0][texts].equals(read[1][texts])
    [path] = set(read[1]["image"])
    assert path == str(run / "blank.png") and set(np.asarray(Image.open(path)).ravel()) == {128}
    assert read[0]["image"].nunique() == len(read[0])
