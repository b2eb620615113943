import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_utils.scores.readers import blank_sheet, read_sheet
from cag_utils.scores.rubric import CRITERIA

MODELS = ["gemma3_base", "gemma3_lora", "paligemma2_lora"]


def generations(n_cases=6, models=MODELS):
    rows = [(f"case-{i:04d}", m) for i in range(1, n_cases + 1) for m in models]
    table = pd.DataFrame(rows, columns=["case_id", "model"])
    # The text tells no model's name, and the seconds would give the model away.
    return table.assign(output=[f"text {i}" for i in range(len(rows))], seconds=1.0, prompt="shots")


def filled(tmp_path, **changes):
    """Write a filled sheet of two rows; `changes` maps a column to its two cells."""
    row = {"case_id": "case-0001", "model": "A", "reader": "r1", "overall": "7.5"}
    sheet = pd.DataFrame([row | {name: "0" for name in CRITERIA}] * 2)
    sheet["case_id"] = ["case-0001", "case-0002"]
    for name, cells in changes.items():
        sheet[name] = cells
    path = tmp_path / "scores.csv"
    sheet.to_csv(path, index=False)
    return path


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_every_text_is_on_the_sheet_once_and_the_key_finds_its_model(n_cases, seed):
    table = generations(n_cases)
    sheet, key = blank_sheet(table, seed)
    joined = sheet.rename(columns={"model": "code"}).merge(key, on=["case_id", "code"])
    back = joined.sort_values(["case_id", "model"])[["case_id", "model", "output"]]
    wanted = table.sort_values(["case_id", "model"])[["case_id", "model", "output"]]
    assert back.to_numpy().tolist() == wanted.to_numpy().tolist()
    assert (sheet[["reader", "overall", *CRITERIA]] == "").all(axis=None)


def test_the_sheet_is_blind_shuffled_and_repeatable():
    table = generations(40)
    sheet, key = blank_sheet(table, 3)
    text = sheet.to_csv()
    assert not any(model in text for model in MODELS) and "seconds" not in sheet
    assert "shots" not in text  # a few-shot prompt would tell the untuned models
    assert set(sheet["model"].str[:2]) == {"A-", "B-", "C-"} and sheet["model"].nunique() == 3
    # One letter stands for every model somewhere: a reader cannot learn who A is.
    assert key.groupby("code")["model"].nunique().tolist() == [3, 3, 3]
    assert sheet["case_id"].drop_duplicates().tolist() != sorted(set(table["case_id"]))
    pd.testing.assert_frame_equal(sheet, blank_sheet(table, 3)[0])
    assert not sheet.equals(blank_sheet(table, 4)[0])
    pd.testing.assert_frame_equal(sheet, blank_sheet(table.sample(frac=1, random_state=1), 3)[0])
    with pytest.raises(ValueError, match="gemma3_base has two texts for case-0001"):
        blank_sheet(pd.concat([table, table[:1]]), 0)


def test_a_filled_sheet_comes_back_unblinded(tmp_path):
    table = generations(3)
    sheet, key = blank_sheet(table, 1)
    sheet = sheet.assign(reader="reader 1", overall=range(9), **{name: 0 for name in CRITERIA})
    sheet.loc[0, "vessel_error"] = 1
    sheet.to_csv(tmp_path / "scores.csv", index=False, encoding="utf-8-sig")  # as Excel saves it
    read = read_sheet(tmp_path / "scores.csv", key)
    assert read["model"].tolist() == key["model"].tolist()
    assert read["overall"].tolist() == list(map(float, range(9)))
    assert read["vessel_error"].tolist() == [1] + [0] * 8
    assert list(read.columns) == ["case_id", "model", "reader", "overall", *CRITERIA]


@pytest.mark.parametrize(
    "column, cells, match",
    [
        ("overall", ["7", "11"], r"scores\.csv: row 3: overall '11' must be a number from 0 to 10"),
        ("overall", ["-0.5", "3"], r"row 2: overall '-0\.5' must be"),
        ("overall", ["", ""], r"row 2: overall '' must be a number .*\(2 rows in all\)"),
        ("overall", ["7,5", "3"], r"row 2: overall '7,5' must be"),
        ("overall", ["7", "nan"], r"row 3: overall 'nan' must be"),
        ("vessel_error", ["0", "2"], r"row 3: vessel_error '2' must be 0 \(no error\) or 1"),
        ("logical_error", ["yes", "0"], r"row 2: logical_error 'yes' must be 0"),
        ("stenosis_error", ["0", "0.5"], r"row 3: stenosis_error '0\.5' must be 0"),
        ("reader", ["r1", " "], r"row 3: reader '' must name or number"),
        ("case_id", ["", "case-0002"], r"row 2: case_id '' must name a case"),
        ("model", ["A", ""], r"row 3: model '' must be a model"),
        ("case_id", ["case-0001"] * 2, r"row 3: this reader scored this text twice"),
    ],
)
def test_names_file_row_and_rule(column, cells, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        read_sheet(filled(tmp_path, **{column: cells}))


def test_names_every_bad_column_at_once(tmp_path):
    path = filled(tmp_path, overall=["x", "3"], treatment_error=["0", "7"])
    with pytest.raises(ValueError, match=r"row 2: overall 'x'.*row 3: treatment_error '7'"):
        read_sheet(path)


def test_refuses_a_letter_or_case_the_key_does_not_know(tmp_path):
    a, b = "A-00ff00", "B-00ff00"
    key = pd.DataFrame({"case_id": ["case-0001"], "code": [a], "model": ["gemma3_lora"]})
    with pytest.raises(ValueError, match=f"row 3: model '{a}' of case-0002: the key has no such"):
        read_sheet(filled(tmp_path, model=[a, a]), key)
    path = filled(tmp_path, case_id=["case-0001"] * 2, model=[a, b])
    with pytest.raises(ValueError, match=rf"row 3: model '{b}' of case-0001: .* knows \['{a}'\]"):
        read_sheet(path, key)
    with pytest.raises(ValueError, match="use the key of this sheet"):
        read_sheet(path)


def test_the_key_of_another_run_is_refused_and_many_keys_can_be_offered(tmp_path):
    sheet, key = blank_sheet(generations(2), 1)
    later = generations(2).assign(output="another text")
    _, other = blank_sheet(later, 1)
    sheet.assign(reader="r", overall=5, **{name: 0 for name in CRITERIA}).to_csv(
        tmp_path / "scores.csv", index=False
    )
    with pytest.raises(ValueError, match="use the key of this sheet"):
        read_sheet(tmp_path / "scores.csv", other)
    both = pd.concat([other, key])
    assert read_sheet(tmp_path / "scores.csv", both)["model"].tolist() == key["model"].tolist()


def test_without_a_key_models_go_by_name_and_a_spreadsheets_decimals_are_marks(tmp_path):
    path = filled(tmp_path, vessel_error=["1.0", "0.0"])
    read = read_sheet(path)
    assert read["model"].tolist() == ["A", "A"] and read["vessel_error"].dtype == int
    assert read["vessel_error"].tolist() == [1, 0]
    read.drop(columns="reader").to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"scores\.csv: no column \['reader'\]"):
        read_sheet(path)
    with pytest.raises(FileNotFoundError, match="none.csv is missing"):
        read_sheet(tmp_path / "none.csv")
