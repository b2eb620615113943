import base64

import pandas as pd
import pytest
from PIL import Image

from cag_utils.paper.report_page import Section, write_page


def test_the_page_holds_text_tables_and_pictures_in_one_file(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "f.png")
    table = pd.DataFrame({"Model": ["<b>Gemma3"], "Mean": [0.12345]})
    section = Section(
        "Part", "One.\n\nTwo.", [("Table 9.", table)], [("Figure 9.", tmp_path / "f.png")]
    )
    path = write_page(tmp_path / "r.html", "Title", "A phantom.", {"commit": "abc"}, [section])
    html = path.read_text(encoding="utf-8")
    for piece in ("<p>One.</p>", "<p>Two.</p>", "0.123", "Figure 9.", "A phantom.", "commit abc"):
        assert piece in html
    assert "&lt;b&gt;Gemma3" in html and "<b>Gemma3" not in html
    assert base64.b64encode((tmp_path / "f.png").read_bytes()).decode() in html
    assert "http" not in html.split("<body>")[1]  # nothing is fetched


def test_a_missing_figure_is_an_error(tmp_path):
    section = Section("Part", "", [], [("Figure 9.", tmp_path / "lost.png")])
    with pytest.raises(FileNotFoundError, match="lost.png"):
        write_page(tmp_path / "r.html", "T", "n", {}, [section])
