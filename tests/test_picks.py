import numpy as np
import pandas as pd
import pytest

from cag_utils import picks
from cag_utils.identity import study_id
from cag_utils.keyframes import describe
from cag_utils.labels import SIX_CLASSES
from cag_utils.pairs import choose_key_frames
from cag_utils.pick_figures import draw_distances, draw_strips
from cag_utils.profiles import Stats

STATS = Stats(n_resamples=100, level=0.95)


def make_seen(cines, filling=None):
    """Cines as lists of (frame, label, probability of LCA_better)."""
    rows, table = [], []
    for video, frames in cines.items():
        for frame, label, p in frames:
            rows.append((f"pt-{video}", video, frame, label, 100.0))
            table.append([p, 1 - p, 0, 0, 0, 0])
    seen = pd.DataFrame(rows, columns=["patient_id", "video_id", "frame", "label", "frame_time_ms"])
    if filling is not None:
        seen["filling"] = filling
    return pd.concat([seen, describe(pd.DataFrame(table, columns=list(SIX_CLASSES)))], axis=1)


CINES = {
    "a": [(2, "LCA_other", 0.1), (10, "LCA_bad", 0.9), (16, "LCA_better", 0.6),
          (30, "LCA_better", 0.7)],
    "b": [(0, "LCA_better", 0.4), (9, "LCA_better", 0.3)],
    "c": [(5, "LCA_bad", 0.8)],
    "d": [(5, "RCA_better", 0.8), (11, "LCA_other", 0.2)],
    "e": [(1, "LCA_other", 0.2)],
}  # fmt: skip


def test_picks_by_hand():
    filling = [0, 0.3, 0.5, 0.9, 0.2, 0.2, 0.1, 0.4, 0.0, 0.0]
    found = picks.pick_firsts(make_seen(CINES, filling), 0.5).set_index("video_id")
    assert found["picked"].tolist()[0] == 10 and np.isnan(found.loc["b", "picked"])
    assert found.loc["a", ["nearest", "best"]].tolist() == [16, 30]
    assert found.loc["a", ["frames_to_nearest", "frames_to_best"]].tolist() == [6, 20]
    assert found.loc["b", "best"] == 0  # equally filled: the earlier
    assert found["is_better"].tolist() == [False, False, False, True, False]
    assert np.isnan(found.loc["c", "frames_to_nearest"]) and found.loc["d", "frames_to_best"] == 0


def test_without_the_phantoms_truth_there_is_a_nearest_but_no_best():
    found = picks.pick_firsts(make_seen(CINES), 0.5)
    assert found["best"].isna().all() and found["nearest"].notna().sum() == 2
    assert picks.measure_distances(found)["to"].tolist() == ["nearest"]


def test_the_pick_is_the_corpus_notebooks():
    seen = make_seen(CINES)
    found = picks.pick_firsts(seen, 0.5).dropna(subset="picked")
    chosen = choose_key_frames(seen, 1, 0.5)
    assert found["picked"].tolist() == chosen["frame"].tolist()
    assert found["video_id"].tolist() == chosen["video_id"].tolist()


def test_a_threshold_of_zero_always_picks():
    assert picks.pick_firsts(make_seen(CINES), 0.0)["picked"].notna().all()


def test_shares_by_hand():
    table = picks.summarise_picks(picks.pick_firsts(make_seen(CINES), 0.5), STATS, 0)
    got = table.set_index("name")
    assert got["cines"].tolist() == [3, 2, 2, 0, 2, 3]
    assert got["share"].iloc[:3].tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 2])
    assert got["share"].iloc[4:].tolist() == pytest.approx([1 / 2, 1 / 3])
    assert got["chance"].iloc[0] == pytest.approx((2 / 4 + 0 + 1 / 2) / 3)
    assert got.iloc[3][["share", "low", "high"]].isna().all()
    assert (table["low"].dropna() <= table["share"].dropna()).all()


def test_distances_by_hand_in_frames_and_seconds():
    row = picks.measure_distances(picks.pick_firsts(make_seen(CINES), 0.5)).iloc[0]
    assert (row["cines"], row["median_frames"]) == (2, 3.0)
    assert row["median_s"] == pytest.approx(0.3)
    none = picks.measure_distances(picks.pick_firsts(make_seen({"e": CINES["e"]}), 0.5))
    assert none["cines"].tolist() == [0] and none["median_frames"].isna().all()


def test_no_frames_are_refused():
    with pytest.raises(ValueError, match="no frames"):
        picks.pick_firsts(make_seen(CINES).iloc[:0], 0.5)


def test_filling_is_the_product_under_the_studys_names(tmp_path):
    path = tmp_path / "truth_frames.csv"
    path.write_text("video,frame,opacified,contrast\n1.2,4,0.5,0.8\n", encoding="utf-8")
    row = picks.read_filling(path, b"key").iloc[0]
    assert row["video_id"] == study_id("video", "1.2", b"key")
    assert (row["frame"], row["filling"]) == (4, pytest.approx(0.4))


def test_figures_mark_the_picked_and_the_best_frame(tmp_path):
    import matplotlib.pyplot as plt

    seen = make_seen(CINES, np.linspace(0, 1, 10)).assign(png="still.png")
    plt.imsave(tmp_path / "still.png", np.zeros((8, 8)), cmap="gray")
    found = picks.pick_firsts(seen, 0.5)
    fig, rows = draw_strips(found[:1], seen, tmp_path, "Digital phantom", most=3)
    roles = rows.set_index("frame")["role"]
    assert roles[10] == "picked" and roles[30] == "best" and len(rows) == 3
    unknown = picks.pick_firsts(seen.drop(columns="filling"), 0.5)
    _, rows = draw_strips(unknown[:1], seen, tmp_path, "Own data", most=3)
    assert rows.set_index("frame")["role"].to_dict().get(16) == "nearest"
    _, long = draw_distances(found)
    assert sorted(long["frames"]) == [0, 0, 6, 20]
    _, none = draw_distances(found[found["picked"].isna()])
    assert none.empty
    plt.close("all")
