import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cag_utils.keyframes import figures
from cag_utils.keyframes.evaluation import pick_firsts, reliability
from cag_utils.keyframes.labels import SIX_CLASSES
from cag_utils.profiles import Stats
from tests.keyframes.test_evaluation import CINES, make_seen


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_confusion_shows_each_count_and_a_dash_for_an_empty_row():
    matrix = np.diag([3, 2, 1, 4, 5, 0])
    matrix[0, 1] = 1
    fig, cells = figures.draw_confusion(matrix)
    texts = [t.get_text() for t in fig.axes[1].texts]
    assert texts[:2] == ["75", "25"] and texts[-6:] == ["–"] * 6
    assert [t.get_text() for t in fig.axes[0].texts][-6:] == ["0"] * 6
    cell = cells.set_index(["true", "predicted"]).loc[("LCA_better", "LCA_bad")]
    assert cell["n"] == 1 and cell["row_percent"] == 25


def test_reliability_has_no_dot_for_a_handful_of_frames():
    p, stats = [0.95] * 12 + [0.2] * 3, Stats(n_resamples=20, level=0.95)
    found = reliability(p, [1] * 6 + [0] * 9, ["a", "b", "c"] * 5, stats, 0)
    fig, bins = figures.draw_reliability({"six_class_f1": found})
    dots = fig.axes[0].containers[0].lines[0].get_xydata()
    assert dots.tolist() == [pytest.approx([0.95, 0.5])]
    assert bins["n"].tolist() == [3, 12] and set(bins["f1_name"]) == {"six_class_f1"}
    assert f"{found.ece.value:.3f}" in fig.axes[0].texts[0].get_text()


def test_mistakes_say_what_is_and_what_was_said(tmp_path):
    plt.imsave(tmp_path / "a.png", np.zeros((8, 8)), cmap="gray")
    wrong = pd.DataFrame(
        [("LCA_bad", "LCA_other", 0.9, "LAO", "v", 3, "a.png"),
         ("LCA_bad", "RCA_bad", 0.8, "RAO", "w", 4, "a.png")],
        columns=["label", "predicted", "confidence", "view", "video_id", "frame", "png"],
    )  # fmt: skip
    fig, rows = figures.draw_mistakes(wrong, tmp_path, "Digital phantom")
    titles = [ax.title for ax in fig.axes[:2]]
    assert titles[1].get_text() == "is LCA_bad, RAO\nsaid RCA_bad (0.80)"
    assert [t.get_color() for t in titles] == [figures.WRONG_QUALITY, figures.WRONG_SIDE]
    assert len(rows) == 2 and "Digital phantom" in fig.get_supxlabel()
    empty, _ = figures.draw_mistakes(wrong[:0], tmp_path, "Digital phantom")
    assert not any(ax.images for ax in empty.axes)


def test_maps_lie_over_their_pictures_and_negative_values_are_not_shown():
    pictures = np.zeros((2, 8, 8), np.uint8)
    values = np.stack([np.full((8, 8), -1.0), np.eye(8) * 4])
    fig = figures.draw_maps(pictures, {"Grad-CAM": values}, SIX_CLASSES[:2], "Digital phantom")
    assert fig.axes[2].get_ylabel() == "Grad-CAM"
    assert [ax.images[1].get_array().max() for ax in fig.axes[2:4]] == [0, 1]


def test_strips_and_distances_show_the_picked_and_the_best_frame(tmp_path):
    seen = make_seen(CINES, np.linspace(0, 1, 10)).assign(png="still.png")
    plt.imsave(tmp_path / "still.png", np.zeros((8, 8)), cmap="gray")
    found = pick_firsts(seen, 0.5)
    _, rows = figures.draw_strips(found[:1], seen, tmp_path, "Digital phantom", most=3)
    roles = rows.set_index("frame")["role"]
    assert roles[10] == "picked" and roles[30] == "best" and len(rows) == 3
    unknown = pick_firsts(seen.drop(columns="filling"), 0.5)
    _, rows = figures.draw_strips(unknown[:1], seen, tmp_path, "Own data", most=3)
    assert rows.set_index("frame")["role"].to_dict().get(16) == "nearest"
    _, long = figures.draw_pick_distances(found)
    assert sorted(long["frames"]) == [0, 0, 6, 20]
    _, none = figures.draw_pick_distances(found[found["picked"].isna()])
    assert none.empty
