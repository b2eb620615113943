import re
from dataclasses import dataclass
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cag_utils.params import Params, check_choice, did_you_mean, slugify


@dataclass(frozen=True)
class Demo(Params):
    profile: str = "phantom"
    epochs: int = 5
    rate: float = 0.0
    ship: bool = False
    scores: str = ""
    data_dir: str = ""


GOOD = {"profile": "smoke", "epochs": 3, "rate": 0.5, "ship": False, "scores": "", "data_dir": ""}


def test_reads_the_declared_names_and_a_whole_number_for_a_float():
    assert Demo.read(GOOD | {"other": 1}) == Demo("smoke", 3, 0.5, False)
    rate = Demo.read(GOOD | {"rate": 2}).rate
    assert rate == 2.0 and type(rate) is float


@pytest.mark.parametrize("change, match", [
    ({"epochs": True}, "epochs should be int, got True"),
    ({"epochs": 1.5}, "epochs should be int"),
    ({"profile": 7}, "profile should be str, got 7"),
    ({"ship": 1}, "ship should be bool"),
    ({"rate": None}, "rate should be float"),
    ({"epochs": "missing"}, "epochs should be int, got None"),
])  # fmt: skip
def test_refuses_a_wrong_type_and_a_missing_name(change, match):
    with pytest.raises(ValueError, match=match):
        Demo.read({k: v for k, v in (GOOD | change).items() if v != "missing"})


NAMES = st.text("abcdef_", min_size=1, max_size=8)


@given(NAMES, st.lists(NAMES, min_size=1, max_size=4))
def test_suggestions_only_name_what_exists(name, known):
    if name in known:
        assert check_choice("thing", name, known) == name
    else:
        with pytest.raises(ValueError, match="unknown thing"):
            check_choice("thing", name, known)
    assert any(k in did_you_mean(name, known) for k in known)


@pytest.mark.parametrize("change, words", [
    ({}, []),
    ({"profile": "smoke"}, []),
    ({"epochs": 3, "rate": 1e-4}, ["epochs3", "rate0.0001"]),
    ({"ship": True}, ["ship"]),
    ({"scores": "../a b/sheet (1).csv"}, ["scores_sheet_1_csv_8a570cb1"]),
])  # fmt: skip
def test_what_differs_from_the_defaults_names_a_run(change, words):
    assert Demo(**change).changes({"profile"}) == words


def test_folders_may_look_like_numbers_and_papermill_may_inject_its_paths():
    paths = {"In": ["# Parameters\nPAPERMILL_OUTPUT_PATH = 'x.ipynb'\ndata_dir = 2021\n"]}
    assert Demo.read(GOOD | paths | {"data_dir": 2021}).data_dir == "2021"
    with pytest.raises(ValueError, match="papermill -r scores keeps"):
        Demo.read(GOOD | {"scores": 7})


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), unique=True))
def test_no_two_folders_share_a_run(texts):
    likely = ["a/dicom", "b/dicom", "患者データ", "心カテ", "\udcb1"]
    texts = [*{str(PurePath(text)) for text in texts}, *likely]
    slugs = [slugify(text, is_path=True) for text in texts]
    assert len(set(slugs)) == len(set(texts))
    assert all(re.fullmatch(r"[\w-]+", slug, re.A) for slug in slugs)
