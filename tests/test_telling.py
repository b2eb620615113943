"""Reports that say what the picture shows, in the twins' own words."""

import json

import pandas as pd
import pytest

from cag_utils.telling import tell_pairs

LESIONS = [{"segment": 6, "percent": 90}]


@pytest.fixture()
def pairs(tmp_path):
    rows = {
        "patient_id": ["1", "2"],
        "truth_laterality": ["LCA", "RCA"],
        "truth_lesions": [json.dumps(LESIONS), "[]"],
        "truth_plan": ["pci", "none"],
        "report_en": ["70M.", "60F."],
        "report_ja": ["70歳男性。", "60歳女性。"],
    }
    pd.DataFrame(rows).to_csv(tmp_path / "pairs.csv", index=False)
    return tmp_path / "pairs.csv"


def test_segment_and_grade_follow_the_report_in_words(pairs, tmp_path):
    told = pd.read_csv(tell_pairs(pairs, "en", tmp_path / "told.csv", seed=0))
    assert told["report_en"].tolist() == ["70M.\nproximal LAD: severe.", "60F.\nnone."]
    assert told["report_ja"].tolist() == ["70歳男性。", "60歳女性。"]  # the other one stays


def test_neither_number_nor_plan_is_told(pairs, tmp_path):
    told = pd.read_csv(tell_pairs(pairs, "ja", tmp_path / "told.csv", seed=0))
    added = told["report_ja"].iloc[0].split("\n")[1]
    assert "高度" in added and not any(c.isdigit() for c in added) and "PCI" not in added


def test_what_cannot_be_is_refused(pairs, tmp_path):
    with pytest.raises(ValueError, match="language"):
        tell_pairs(pairs, "de", tmp_path / "told.csv", seed=0)
    table = pd.read_csv(pairs)
    table["truth_laterality"] = "RCA"
    table.to_csv(pairs, index=False)
    with pytest.raises(ValueError, match="does not show"):
        tell_pairs(pairs, "en", tmp_path / "told.csv", seed=0)
