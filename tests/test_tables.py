import errno

import pandas as pd
import pandera.pandas as pa
import pytest

from cag_utils.corpus.pairs import read_findings, read_reports
from cag_utils.keyframes.labels import read_frame_labels
from cag_utils.scores.scorecard import read_sheet
from cag_utils.tables import load_table, read_table, write_table
from tests.conftest import ROOT

COLUMNS = {"id": pa.Column(str, pa.Check.str_length(min_value=1))}
COLUMNS |= {"n": pa.Column(int, pa.Check.ge(0)), "note": pa.Column(str, required=False)}
COLUMNS |= {"kind": pa.Column(str, pa.Check.isin(["a", "b", ""]), required=False)}
COLUMNS |= {"at": pa.Column("Int64", pa.Check.ge(0), required=False, nullable=True)}
SCHEMA = pa.DataFrameSchema(COLUMNS, unique=["id", "at"], coerce=True)
RULES = {"id": "must not be empty", "n": "must be a whole number from 0", "kind": "must be a or b"}
RULES |= {"at": "must be a whole number from 0"}
CASES = ROOT.parent / "shared" / "cases" / "csv"


def read_bytes(tmp_path, data: bytes, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(data)
    return read_table(path, SCHEMA, RULES, "this id stands above already")


PLAIN = "id,n,note,kind,at\n読影医,3,心カテの所見,a,\nb,4,「右冠動脈」,b,7\n"
READ = [["読影医", 3, "心カテの所見", "a", pd.NA], ["b", 4, "「右冠動脈」", "b", 7]]


@pytest.mark.parametrize("data", [
    PLAIN.encode(), PLAIN.encode("utf-8-sig"), PLAIN.encode("cp932"), PLAIN.encode("utf-16"),
    PLAIN.encode("utf-16-le"), PLAIN.encode("utf-16-be"), PLAIN.replace("\n", "\r\n").encode(),
    PLAIN.replace(",", ";").encode(), PLAIN.replace(",", "\t").encode(),
    PLAIN.replace("\nb", ",\nb").encode(),  # a comma too many
    PLAIN.replace("\nb", "\n,,,,\n\nb").encode() + b",,,,\n\n",  # blank rows
    PLAIN.replace("3", "３").replace("7", "7.0").replace(",a,", ",ａ,").encode(),
    PLAIN.replace("id,n,note", " ID, N ,Ｎote").encode(),
    PLAIN.replace("id,", "more,id,").replace("\n読", "\nx,読").replace("\nb", "\ny,b").encode(),
])  # fmt: skip
def test_what_is_unambiguous_is_read(tmp_path, data):
    table = read_bytes(tmp_path, data)
    assert list(table) == list(COLUMNS) and table["n"].dtype == int and table["at"].dtype == "Int64"
    pd.testing.assert_frame_equal(
        table.reset_index(drop=True),
        pd.DataFrame(READ, columns=list(COLUMNS)).astype(table.dtypes),
        check_dtype=False,
    )


def test_a_workbook_is_read_also_in_the_place_of_a_missing_csv(tmp_path):
    rows = [["b", 4, "x", "b", 7], [None] * 5, ["c", 5.0, "10.5", None, None]]
    pd.DataFrame(rows, columns=list(COLUMNS)).to_excel(tmp_path / "t.xlsx", index=False)
    table = read_table(tmp_path / "t.csv", SCHEMA, RULES, "")
    assert table["n"].tolist() == [4, 5] and table["note"].tolist() == ["x", "10.5"]
    assert table["at"].tolist() == [7, pd.NA]
    with pytest.raises(ValueError, match=r"old Excel workbook .*save it as 'CSV UTF-8'"):
        read_bytes(tmp_path, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1....")
    (tmp_path / "t.csv").unlink()
    (tmp_path / "t.xlsx").unlink()
    with pytest.raises(FileNotFoundError, match="t.csv is missing; README"):
        read_table(tmp_path / "t.csv", SCHEMA, RULES, "")


@pytest.mark.parametrize("text, match", [
    ("", "is empty"),
    ("id\nYAMADA\n", r"row 1: no column \['n'\]; row 1 is the header$"),
    ("YAMADA Taro\nid,n\na,1\n", r"row 1: no column .*; delete the rows above row 2, the header$"),
    ("id,n,N\na,1,1\n", r"row 1: column \['n'\] stands twice"),
    ("id,n\na,1\nb,-2\nc,-3\n", r"row 3: n must be a whole number from 0 .2 rows in all.$"),
    ("id,n\na,1\n\nb,YAMADA\nc,1.5\nd,2\n", r"row 4: n must be a whole number from 0 .2 rows"),
    ("id,n\na,\n", r"row 2: n must be a whole number from 0$"),
    ("id,n\n,1\n", r"row 2: id must not be empty$"),
    ("id,n,kind\na,1,YAMADA\nb,x,a\n", r"row 3: n must .*; row 2: kind must be a or b$"),
    ("id,n\na,1\nb,1\na,2\n", r"row 4: this id stands above already$"),
    ("id,n\na,1\nb,1,YAMADA\n", "row 3: it has more cells than the header"),
    ('id,n,note\na,1,x\nb,1,"YAMADA "Taro" x"\n', "row 3: a quotation mark inside"),
    ('id,n,note\na,1,"x\ny"\nb,1,"YAMADA\nc,1,z\n', "row 3: a quotation mark inside"),
])  # fmt: skip
def test_an_error_names_file_true_row_column_and_rule_and_quotes_nobody(tmp_path, text, match):
    with pytest.raises(ValueError, match=rf"t\.csv.*{match}") as error:
        read_bytes(tmp_path, text.encode())
    assert "YAMADA" not in str(error.value)


@pytest.mark.parametrize("data", ["id,n\nMüller sténose,1\n".encode("cp1252"), b"id,n\n\x81\xff,1"])
def test_other_encodings_are_refused_and_not_guessed(tmp_path, data):
    with pytest.raises(ValueError, match="neither UTF-8 nor UTF-16 nor Japanese CP932: save"):
        read_bytes(tmp_path, data)


READERS = {
    "findings": lambda path: read_findings(path, b"k"),
    "reports": lambda path: read_reports(path, b"k"),
    "frame_labels": read_frame_labels,
    "scores": read_sheet,
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the handed cases are not on this machine")
@pytest.mark.parametrize("kind", READERS)
def test_what_excel_makes_of_each_table(kind):
    want = READERS[kind](CASES / f"csv_{kind}_utf8.csv")
    refused = {"empty": "is empty", "title_row": "delete the rows above row 2"}
    for path in sorted(CASES.glob(f"csv_{kind}_*.csv")):
        what = path.stem.removeprefix(f"csv_{kind}_")
        if what == "open_quote" and '"84"' in path.read_text(encoding="utf-8"):
            refused[what] = "row 2: a quotation mark"
        if what in refused:
            with pytest.raises(ValueError, match=f"{path.name}.*{refused[what]}"):
                READERS[kind](path)
        else:
            pd.testing.assert_frame_equal(READERS[kind](path), want)


def test_no_cell_becomes_a_formula_and_comes_back_as_it_was(tmp_path):
    texts = ["=1+1", "+x", "-3", "@y", "\tz", "'=a", "'quoted'", "75% - ok", None]
    table = pd.DataFrame({"a": texts, "b": range(-4, 5)})
    write_table(table, tmp_path / "x.csv")
    stored = pd.read_csv(tmp_path / "x.csv")
    guarded = ["'=1+1", "'+x", "'-3", "'@y", "'\tz", "''=a", "'quoted'", "75% - ok"]
    assert stored["a"].tolist()[:-1] == guarded
    assert stored["b"].equals(table["b"])
    pd.testing.assert_frame_equal(load_table(tmp_path / "x.csv"), table)


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_table(pd.DataFrame({"a": [1]}), tmp_path / "x.csv")

    def fill_the_disk(self, path, **how):
        path.write_text("a\n2", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fill_the_disk)
    with pytest.raises(OSError, match="No space left.*x.csv"):
        write_table(pd.DataFrame({"a": [2, 3]}), tmp_path / "x.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    assert (tmp_path / "x.csv").read_text(encoding="utf-8") == "a\n1\n"
