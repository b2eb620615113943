"""Public sets in small, in their published layouts: what is read, what is told, what is not."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from cag_utils.cines import public
from cag_utils.cines.__main__ import main
from cag_utils.corpus.pairs import read_findings, read_reports
from cag_utils.identity import study_id
from cag_utils.keyframes.labels import read_frame_labels
from cag_utils.profiles import load_profile
from cag_utils.scores.entities import Stenosis, read_entities
from cag_utils.study import data_dir
from tests.cines.published import box, draw_arcade, grey, write_cadica, write_split
from tests.running import execute

KEY = b"key"


@pytest.fixture
def arcade(tmp_path):
    """Seven pictures of syntax/train, of which the second is also in stenosis/train."""
    top, colour = tmp_path / "data" / "arcade" / "arcade", np.dstack([grey(2)] * 3)
    pictures = {f"{i}.png": grey(i) for i in range(1, 8)}
    drawn = [
        (1, "1", box(0, 0, 9, 9), 279), (1, "16b", box(20, 20, 9, 9), 279),  # one id, two things
        (2, "6", box(0, 0, 20, 20), 1), (2, "7", box(0, 20, 20, 20), 2),
        (2, "7", box(0, 20, 20, 20), 3),  # the same outline again
        (3, "5", box(0, 0, 9, 9), 4), (3, "2", box(9, 9, 9, 9), 5),  # both sides
        (4, "12a", box(200, 200, 9, 9), 6),  # outside a picture of 64 px
        (7, "9a", box(-2, 0, 9, 9), 7), (99, "1", box(0, 0, 9, 9), 8),  # no picture 99
    ]  # fmt: skip
    write_split(top / "syntax" / "train", pictures, drawn)
    (top / "syntax" / "train" / "images" / "5.png").unlink()
    (top / "syntax" / "train" / "images" / "6.png").write_bytes(b"\x89PNG cut short")
    cv2.imwrite(str(top / "syntax" / "train" / "images" / "extra.png"), grey(50))
    plaques = [(1, "stenosis", box(2, 17, 9, 9), 1), (1, "stenosis", box(50, 50, 9, 9), 2)]
    write_split(top / "stenosis" / "train", {"1.png": colour, "2.png": grey(60)}, plaques)
    for part in ("syntax", "stenosis"):
        for split in ("val", "test"):
            write_split(top / part / split, {}, [])
    return top


def by_name(stills):
    return {f"{p.parents[2].name} {p.name}": row for p, row in stills.set_index("path").iterrows()}


def test_arcade_gives_side_segments_and_the_segment_of_a_stenosis(arcade):
    stills = by_name(public.read_public("arcade", arcade.parent))
    problems = {name: row["problem"] for name, row in stills.items() if row["problem"]}
    assert problems == {
        "syntax 3.png": "segments of both sides",
        "syntax 4.png": "an outline outside the picture",
        "syntax 5.png": "no such picture",
        "syntax 6.png": "unreadable",
        "syntax extra.png": "picture without an entry",
        "stenosis 2.png": "side not told",
    }
    right, both, edge = (stills[f"syntax {i}.png"] for i in (1, 2, 7))
    assert (right["laterality"], right["segments"], right["lesions"]) == ("RCA", (1, 4), ())
    # rows 17 to 26 hold 3 rows of #6 and 6 of #7; the second plaque lies in no segment
    assert (both["laterality"], both["segments"]) == ("LCA", (6, 7))
    assert both["lesions"] == ((7, None), (None, None))
    assert edge["segments"] == (9,) and not edge["clean"]
    assert len({row["patient"] for row in stills.values()}) == len(stills) == 9


def test_every_syntax_label_has_a_side_and_other_json_is_refused(arcade):
    sides = {label: public.laterality_of(number) for label, number in public.AHA_OF.items()}
    right = {label for label, side in sides.items() if side == "RCA"}
    assert right == {"1", "2", "3", "4", "16", "16a", "16b", "16c"} and len(sides) == 25
    path = arcade / "syntax" / "val" / "annotations" / "val.json"
    path.write_text(json.dumps({"images": []}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"val.json is no COCO annotation: KeyError\('categories'"):
        public.read_arcade(arcade)
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(FileNotFoundError, match="val.JSON"):
        public.read_arcade(arcade)
    with pytest.raises(FileNotFoundError, match="holds no folder 'selectedVideos'"):
        public.read_public("cadica", arcade.parent)


def test_cadica_gives_side_by_cine_and_grades_without_a_segment(tmp_path):
    write_cadica(tmp_path / "CADICA")
    stills = public.read_public("cadica", tmp_path)
    assert stills["video"].tolist() == ["p1_v2", "p1_v2", "p1_v10", "p2_v1"]
    assert stills["frame"].tolist() == [3, 4, 2, 1] and set(stills["n_frames"]) == {5}
    assert stills["laterality"].tolist() == ["LCA", "LCA", "LCA", ""]
    assert stills["lesions"].tolist() == [((None, 75), (None, 99)), (), (), ()]
    assert stills["clean"].tolist() == [False, False, True, False]
    assert stills["problem"].tolist() == ["", "", "", "side not told"]
    (tmp_path / "CADICA" / "selectedVideos" / "CADICAprojections.json").unlink()
    with pytest.raises(FileNotFoundError, match="tells the sides"):
        public.read_public("cadica", tmp_path)


@pytest.mark.parametrize("told, en, stenoses, denied", [
    ({"segments": (5, 6, 7), "lesions": ((7, None),)},
     "LAD #7 shows a stenosis. Shown: LM #5; LAD #6, #7.", [Stenosis("LAD", 7, None)], False),
    ({"segments": (1, 4), "laterality": "RCA"}, "Shown: RCA #1, #4.", [], False),
    ({"lesions": ((None, 75), (None, 99))}, "LCA shows 75% stenosis. LCA shows 99% stenosis.",
     [Stenosis(None, None, 75), Stenosis(None, None, 99)], False),
    ({"clean": True}, "No significant stenosis in the LCA.", [], True),
])  # fmt: skip
def test_findings_say_what_the_labels_tell_and_are_read_so(told, en, stenoses, denied):
    row = {"laterality": "LCA", "segments": (), "lesions": (), "clean": False} | told
    texts = public.finding_texts(pd.Series(row))
    assert texts["en"] == f"{en} {public.ADVICE['en']}"
    for language, text in texts.items():
        read = read_entities(text, language)
        assert read.laterality == row["laterality"] and list(read.stenoses) == stenoses, text
        assert read.no_stenosis == denied and read.plans == ("context",)


def test_what_the_labels_do_not_tell_has_no_findings():
    row = {"laterality": "LCA", "segments": (), "lesions": (), "clean": False}
    assert public.finding_texts(pd.Series(row)) == {"en": "", "ja": ""}


def test_stills_become_the_tables_and_pictures_of_a_hospital(arcade, tmp_path):
    stills, out = public.read_public("arcade", arcade.parent), tmp_path / "out"
    sampled = public.sample_public(stills, arcade.parent, out, KEY)
    assert len(sampled.frames) == len(sampled.videos) == 3 and len(sampled.rejected) == 6
    assert len(sampled.links) == 9 and sampled.links["file_id"].is_unique
    assert sampled.frames["frame"].tolist() == [0, 0, 0] and sampled.frames["frame"].dtype == int
    assert set(sampled.rejected["reason"]) == set(stills["problem"]) - {""}
    first = sampled.frames.iloc[0]
    picture = cv2.imread(str(out / first["png"]), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(picture, grey(1))
    assert first["mean"] == pytest.approx(grey(1).mean())
    public.write_tables(stills, "arcade", tmp_path / "cohort", KEY)
    labels = read_frame_labels(tmp_path / "cohort" / "frame_labels.csv")
    assert labels["video"].tolist() == sampled.frames["video_id"].tolist()
    assert labels["label"].tolist() == ["RCA_better", "LCA_better", "LCA_better"]
    reports = read_reports(tmp_path / "cohort" / "reports.csv", KEY)
    findings = read_findings(tmp_path / "cohort" / "findings.csv", KEY)
    assert reports["exam_id"].tolist() == sampled.frames["exam_id"].tolist()
    assert findings["video_id"].tolist() == sampled.frames["video_id"].tolist()
    assert set(findings["validated_by"]) == {study_id("reader", "ARCADE", KEY)}


def test_fetch_says_whence_checks_what_is_there_and_links_it(arcade, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CAG_ROOT", str(tmp_path))
    assert main(["fetch", "cadica"]) == 1
    said = capsys.readouterr().out
    assert "data.mendeley.com" in said and "CC BY 4.0" in said and "is the archive unpacked" in said
    with pytest.raises(FileNotFoundError, match="cines fetch cadica"):
        data_dir(load_profile("cadica"))
    assert main(["fetch", "arcade"]) == 1  # 6 of 1,000 pictures
    (arcade.parent / "arcade.zip").write_bytes(b"half of it")
    found = list(public.check_download("arcade", arcade.parent))
    assert not found[0][0] and "not a396cdea" in found[0][1]
    said = capsys.readouterr().out
    assert "train/images: 7 of 1000" in said and "3 usable stills: {'LCA': 2, 'RCA': 1}" in said
    assert "1 left out: segments of both sides" in said
    labels = pd.read_csv(arcade.parent / "stills" / "labels.csv")
    linked = [cv2.imread(str(arcade.parent / "stills" / name), 0) for name in labels["file"]]
    assert any(np.array_equal(picture, grey(1)) for picture in linked)
    whole = public.PUBLIC_SETS["arcade"]
    counts = {place: len(list((arcade / place).glob("*.png"))) for place in whole.expected}
    changed = replace(whole, expected=counts)
    monkeypatch.setitem(public.PUBLIC_SETS, "arcade", changed)
    (arcade.parent / "arcade.zip").unlink()
    assert main(["fetch", "arcade"]) == 0


@pytest.mark.notebook
def test_the_profile_gives_the_shipped_networks_side_and_a_corpus(tmp_path, monkeypatch):
    # a made-up set, drawn by the phantom: it says that the way is open, not how real ones fare
    draw_arcade(tmp_path / "data" / "arcade" / "arcade", 40)
    monkeypatch.setenv("CAG_ROOT", str(tmp_path))
    steps = [("00_frame_sampling", {"cohort": "cnn"}), ("00_frame_sampling", {"cohort": "corpus"})]
    steps += [(name, {}) for name in ("01_train_cnn", "02_confusion_matrices", "03_build_corpus")]
    found = {}
    for stem, params in steps:
        found[stem] = execute(stem, tmp_path, profile="arcade", **params)
    sides = found["02_confusion_matrices"]
    assert sides["n_frames"] == found["01_train_cnn"]["n_test"] == 40
    for name in ("laterality_macro_f1", "laterality_auc", "ece_laterality"):
        assert sides[f"{name}_low"] <= sides[name] <= sides[f"{name}_high"]
    assert sides["laterality_macro_f1"] > 0.8 and sides["temperature"] is None
    assert found["01_train_cnn"]["val_six_class_f1"] is None
    folder = tmp_path / "arcade"
    assert (folder / "02_confusion_matrices/six_class/figure_wrong_frames.png").is_file()
    pairs = pd.read_csv(folder / "03_build_corpus" / "all" / "pairs.csv")
    assert len(pairs) >= 30 and "truth_lesions" not in pairs
    assert pairs["findings_ja"].str.contains("描出").all()
    assert pairs["report_en"].str.contains("No clinical report is published").all()
