import ast
import base64

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.display import Markdown
from PIL import Image

from cag_utils import report
from cag_utils.report import Section, write_page
from tests.conftest import ROOT


def test_a_figure_and_its_rows_have_the_same_bytes_twice(tmp_path):
    rows = pd.DataFrame({"x": [0, 1], "y": [1.0, 3.5]})
    written = []
    for folder in ("a", "b"):
        fig, ax = plt.subplots()
        ax.plot(rows["x"], rows["y"])
        written.append(report.save_figure(fig, rows, tmp_path / folder / "figure5_v1.2"))
        plt.close(fig)
    assert [p.name for p in written[0]] == [f"figure5_v1.2{s}" for s in (".png", ".svg", ".csv")]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*written, strict=True))
    pd.testing.assert_frame_equal(pd.read_csv(written[0][2]), rows)


def test_a_table_keeps_full_precision_for_machines_and_rounds_for_readers(tmp_path):
    table = pd.DataFrame({"model": ["a_b", "c"], "mean": [1 / 3, np.nan], "n": [107, 5]})
    csv, md, tex = report.save_table(table, tmp_path / "t", "Caption.")
    pd.testing.assert_frame_equal(pd.read_csv(csv), table)
    text = md.read_text(encoding="utf-8")
    assert text.startswith("Caption.") and "0.333" in text and "–" in text and "107" in text
    assert r"a\_b" in tex.read_text(encoding="utf-8")
    copies = report.copy_result(tmp_path / "t", tmp_path / "table9")
    assert [p.name for p in copies] == ["table9.csv", "table9.md", "table9.tex"]
    assert copies[0].read_bytes() == csv.read_bytes()
    with pytest.raises(FileNotFoundError, match="no table or figure"):
        report.copy_result(tmp_path / "b", tmp_path / "table9")


def test_the_papers_tables_are_as_printed_estimates_have_intervals_and_models_colours():
    table = report.paper_table("table2_corpus_split").set_index("split")
    assert table.loc["train"].tolist() == [194, 425, 889]
    table3 = report.paper_table("table3_vlscore").set_index(["model", "embedder"])["mean"]
    assert table3["PaliGemma2 w/LoRA", "ConceptCLIP"] == 0.5823
    with pytest.raises(ValueError, match="unknown table of the paper 'table9'"):
        report.paper_table("table9")
    assert report.estimate_cell(0.9119, 0.88, 0.941) == "0.912 (0.880 to 0.941)"
    with pytest.raises(ValueError, match="outside its interval"):
        report.estimate_cell(0.95, 0.88, 0.941)
    assert report.scored_by("dr a, dr b") == "readers dr a, dr b"
    assert "no reader" in report.scored_by("rubric")
    assert report.scored_by("dr a") == "reader dr a"
    assert len(set(report.MODEL_COLOURS.values())) == len(report.MODEL_COLOURS)


def test_the_page_holds_text_tables_and_pictures_in_one_file_and_misses_none(tmp_path):
    Image.new("L", (2, 2)).save(picture := tmp_path / "f.png")
    table = pd.DataFrame({"Model": ["<b>Gemma3"], "Mean": [0.12345]})
    section = Section("Part", "One.\n\nTwo.", [("Table 9.", table)], [("Figure 9.", picture)])
    path = write_page(tmp_path / "r.html", "Title", "A phantom.", {"commit": "abc"}, [section])
    html = path.read_text(encoding="utf-8")
    for piece in ("<p>One.</p>", "<p>Two.</p>", "0.123", "Figure 9.", "A phantom.", "commit abc"):
        assert piece in html
    assert "&lt;b&gt;Gemma3" in html and "<b>Gemma3" not in html
    assert base64.b64encode(picture.read_bytes()).decode() in html
    assert "http" not in html.split("<body>")[1]  # nothing is fetched
    section = Section("Part", "", [], [("Figure 9.", tmp_path / "lost.png")])
    with pytest.raises(FileNotFoundError, match="lost.png"):
        write_page(tmp_path / "r.html", "T", "n", {}, [section])


ATTACK = "<img src=x onerror=alert(1)> costs $5 to $9"


@pytest.mark.parametrize("stem, mark, kind", [
    ("06_vlscore", "both.style", "text/html"),
    ("07_physician_scores", "**Truth:**", "text/markdown"),
])  # fmt: skip
def test_html_in_a_note_stays_text_where_a_notebook_shows_it(stem, mark, kind, tmp_path):
    """The very cell that shows answers, run on one that holds HTML and dollars."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", 4)
    [source] = [c.source for c in notebook.cells if c.cell_type == "code" and mark in c.source]
    told = {"case_id": "case-1", "ground_truth": ATTACK, "output": ATTACK, "vlscore": 0.5}
    cases = pd.DataFrame([told | {"model": "gemma3_lora"}])
    names = {"pd": pd, "Markdown": Markdown, "generations": cases, "AT": "@", "name_of": str}
    names |= {
        "models": ["gemma3_lora"],
        "cases": cases[["case_id", "model", "ground_truth", "output"]],
    }
    names["picked"] = cases[["case_id", "model", "vlscore"]]
    *before, last = ast.parse(source[source.index("both =") :] if stem[1] == "6" else source).body
    names["columns"] = ["case_id", "vlscore", "ground_truth", "output"]
    exec(compile(ast.Module(before, []), stem, "exec"), names)
    shown = eval(compile(ast.Expression(last.value), stem, "eval"), names)
    text = shown._repr_html_() if kind == "text/html" else shown._repr_markdown_()
    assert "onerror" in text and "<img" not in text
    report.save_table(cases, tmp_path / "a", "One case.")
    assert "<img" not in (tmp_path / "a.md").read_text(encoding="utf-8")
