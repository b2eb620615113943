"""The README's four calls run as they are printed, and draw its picture again."""

import re

import matplotlib as mpl
import numpy as np
from PIL import Image

from tests.conftest import ROOT

README = ROOT / "cag_utils" / "phantom" / "README.md"


def test_the_readmes_calls_run_and_draw_its_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    names = {}
    calls = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    exec("\n".join(calls), names)
    assert len(names["cines"]) == 2 and len(names["findings"]) == len(names["labels"]) == 16
    assert names["shown"].image.shape == (512, 512) and names["frames"].shape == (36, 256, 256)
    assert len(names["grades"]) == 36 and "LCA_better" in names["grades"]
    drawn, shown = (Image.open(folder / "example.png") for folder in (tmp_path, README.parent))
    away = np.abs(np.asarray(drawn.convert("L"), int) - np.asarray(shown.convert("L"), int))
    assert drawn.size == shown.size and away.mean() < 1  # another Matplotlib may draw other dots
    assert (README.parent / "example.png").stat().st_size < 150_000
