"""What stands around the comparison with real pictures: their folder and labels, the film."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cag_utils.audits.realism_figures import embed_film, frame_states, list_real

LABELS = pd.DataFrame(
    {"file": ["a.dcm", "a.dcm", "b.png"], "frames": ["0-2", "4-5", "0"],
     "contrast": ["none", "full", "full"], "laterality": ["LCA"] * 3}
)  # fmt: skip


def test_a_range_holds_both_of_its_ends():
    states = frame_states(LABELS, "a.dcm", 7)
    assert states.tolist() == ["none"] * 3 + [""] + ["full"] * 2 + [""]
    with pytest.raises(ValueError, match=r"no row for c\.dcm"):
        frame_states(LABELS, "c.dcm", 7)


def test_a_named_folder_of_real_pictures_must_be_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_real(str(tmp_path / "nowhere"))
    monkeypatch.setenv("CAG_REAL_DATA", str(tmp_path))
    found = list_real()
    assert found.stills == [] and found.cines == [] and found.labels.empty
    LABELS.to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "b.png").touch()
    found = list_real()
    assert [path.name for path in found.stills] == ["b.png"] and len(found.labels) == 3


def test_an_embedded_film_plays_all_its_frames_at_its_pace(tmp_path):
    frames = np.stack([np.full((256, 256), 20 + 20 * i, np.uint8) for i in range(10)])
    tag = embed_film(frames, 12.5, tmp_path / "film.webp", size_px=128)
    coded = tag.split("base64,")[1].split('"')[0]
    film = Image.open(io.BytesIO(base64.b64decode(coded)))
    assert film.n_frames == 10 and film.size == (128, 128)
    for number in range(10):
        film.seek(number)
        assert np.asarray(film.convert("L")).mean() == pytest.approx(20 + 20 * number, abs=4)
        assert film.info["duration"] == 80  # ms
