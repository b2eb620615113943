import os
from pathlib import Path

import pandas as pd
import pytest

from cag_utils.scores.gold import GOLD, blank_check, parser_agreement, read_gold
from cag_utils.study import PACKAGE

LEAST = 0.97  # of the study's issue
COLUMNS = ["language", "text", "stenoses", "laterality", "no_stenosis", "plan"]
CASES = Path(os.environ.get("CAG_CASES", PACKAGE.parents[1] / "shared" / "cases"))


def test_at_least_200_gold_sentences_a_language_are_read_as_labelled():
    found = parser_agreement(read_gold())
    assert set(found.index) == {"en", "ja"} and (found["sentences"] >= 200).all()
    assert (found[["precision", "recall"]] >= LEAST).all(axis=None), found


def test_hospital_sentences_are_read_in_full():
    path = CASES / "sentences.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not here (CAG_CASES names its folder)")
    found = parser_agreement(read_gold(path))
    assert (found["whole"] >= LEAST).all(), found


def test_agreement_by_hand_and_a_blind_parser_gets_nothing(monkeypatch):
    gold = pd.DataFrame([
        ("en", "LAD #7 90%. PCI is recommended.", "LAD #7 90", "LCA", "0", "pci"),  # 3 of 3
        ("en", "RCA #2 75%.", "RCA #2 90", "RCA", "0", "medical"),  # 1 of the hand's 3, of 2 read
        ("ja", "右冠動脈に狭窄なし", "", "RCA", "1", ""),
    ], columns=COLUMNS)  # fmt: skip
    found = parser_agreement(gold)
    assert found.loc["en"].tolist() == [4 / 5, 4 / 6, 6, 2, 0.5]
    assert found.loc["ja"].tolist() == [1, 1, 2, 1, 1]
    blind = parser_agreement(read_gold().assign(text="Sorry."))
    assert (blind["recall"] == 0).all() and blind["precision"].isna().all()


def test_a_check_on_own_findings_is_drawn_filled_and_read_back(tmp_path):
    texts = ["LAD #7 90%.", "RCA #2 75%.", "LAD #7 90%.", "RCA n.p.", None]
    blank = blank_check(texts, "en", 2, seed=0)
    assert list(blank) == COLUMNS and len(blank) == 2 and set(blank["text"]) < set(texts)
    assert len(blank_check(texts, "en", 50, seed=0)) == 3
    path = tmp_path / "parser_check.csv"
    blank.to_csv(path, index=False)
    with pytest.raises(ValueError, match="parser_check.csv: row 2: no_stenosis '' must be 1"):
        read_gold(path)  # not filled yet
    filled = blank.assign(stenoses="LAD #7 90; ? ? 75", laterality="LCA", no_stenosis=0, plan="")
    filled.to_csv(path, index=False)
    assert parser_agreement(read_gold(path)).loc["en", "n"] == 6


@pytest.mark.parametrize("column, wrong, match", [
    ("language", "de", "must be en or ja"), ("stenoses", "#7 90%", "must be like"),
    ("laterality", "left", "must be LCA, RCA or empty"), ("plan", "pills", "must be empty or one"),
    ("text", "", "must hold a findings text"), ("no_stenosis", "yes", "must be 1 if"),
])  # fmt: skip
def test_a_wrong_cell_is_named(tmp_path, column, wrong, match):
    path = tmp_path / "gold.csv"
    read_gold(GOLD).head(2).assign(**{column: wrong}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=match):
        read_gold(path)
