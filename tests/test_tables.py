import pandera.pandas as pa
import pytest

from cag_utils.tables import read_table

SCHEMA = pa.DataFrameSchema(
    {
        "id": pa.Column(str, pa.Check.str_length(min_value=1)),
        "n": pa.Column(int, pa.Check.ge(0)),
        "note": pa.Column(str, required=False),
    },
    unique=["id"],
    coerce=True,
)
RULES = {"id": "must not be empty", "n": "must be a whole number from 0"}


def read(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding=encoding)
    return read_table(path, SCHEMA, RULES, "this id stands above already")


def test_reads_what_excel_writes_strips_blanks_and_drops_more_columns(tmp_path):
    table = read(tmp_path, "extra,id,n\nx, 所見 ,3\n", encoding="utf-8-sig")
    assert list(table.columns) == ["id", "n", "note"]
    assert table.iloc[0].tolist() == ["所見", 3, ""]


@pytest.mark.parametrize(
    "text, match",
    [
        ("id\na\n", r"t.csv: no column \['n'\]; it has \['id'\]"),
        ("id,n\na,1\nb,-2\nc,-3\n", r"row 3: n '-2' must be a whole number from 0 .2 rows"),
        ("id,n\n,1\n", "row 2: id '' must not be empty"),
        ("id,n\na,1\nb,1\na,2\n", "row 4: this id stands above already"),
    ],
)
def test_an_error_names_file_row_and_rule(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        read(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="lost.csv is missing"):
        read_table(tmp_path / "lost.csv", SCHEMA, RULES, "")
