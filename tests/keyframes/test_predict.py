"""The predict command: any picture of any size, one clear error, no half-written table."""

import json
import os
import shutil
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydicom.uid import CTImageStorage

from cag_utils.cines.dicom import iter_frames
from cag_utils.cines.reasons import REASONS
from cag_utils.cines.sampling import sample_folder
from cag_utils.cines.stills import read_still
from cag_utils.keyframes import __main__ as keyframes
from cag_utils.keyframes import predict as reading
from cag_utils.keyframes.labels import SIX_CLASSES
from cag_utils.keyframes.network import build_model, load_model, prepare, probabilities, save_model
from cag_utils.phantom.cohort import CohortSettings, make_cohort
from cag_utils.study import read_json, write_json
from tests.cines.test_dicom import write_cine
from tests.cines.test_stills import noise
from tests.conftest import ROOT

CPU = torch.device("cpu")
P = [f"p_{name}" for name in SIX_CLASSES]
COLUMNS = ["file", "frame", "laterality", "quality", "confidence", *P]
BROKEN = {
    "fake.png": (b"not a picture", "not a picture"),
    "empty.jpg": (b"", "empty file"),
    "fake.dcm": (b"not DICOM at all", "not a DICOM file"),
    "empty.dcm": (b"", "empty file"),
    "header_only": (b"\0" * 128 + b"DICM", "truncated"),
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model = build_model("convnext_twin", pretrained=True)
    facts = {"model": "convnext_twin", "image_px": 32, "temperature": 0.5}  # answers differ more
    save_model(model, folder, facts)
    return folder


@pytest.fixture
def folder(tmp_path):
    """A still and a cine side by side, and what must be passed over."""
    top = tmp_path / "pictures"
    (top / "deep" / ".hidden").mkdir(parents=True)
    cv2.imwrite(str(top / "deep" / "still.png"), noise(40, 60))
    write_cine(top / "cine", np.stack([noise(24, 30, seed) for seed in range(5)]))
    for name in (".hidden.png", "deep/.hidden/x.png", "notes.txt", "table.csv", "no_suffix"):
        (top / name).write_bytes(b"nothing to look at")
    (top / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    return top


def predict(place, out, *options):
    keyframes.main(["predict", str(place), "--out", str(out), *map(str, options)])
    return pd.read_csv(out)


def refused(capsys, *arguments):
    """What the command says when it gives up: one line, exit code 2."""
    with pytest.raises(SystemExit) as stop:
        keyframes.main(["predict", *map(str, arguments)])
    assert stop.value.code == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x and not x.startswith("\rfiles")]
    errors = [line for line in lines if "error: " in line]
    assert len(errors) == 1 and "Traceback" not in "".join(lines), lines
    return errors[0]


@pytest.mark.parametrize("facts, odds", [
    (None, [2, 1, 1, 4, 1, 1]),
    ({"temperature": 2.0}, [2**0.5, 1, 1, 2, 1, 1]),  # halved logits: roots of the odds
    ({"rca_logit_offset": np.log(3)}, [2, 1, 1, 12, 3, 3]),
    # the offset comes after the temperature: it is not divided
    ({"temperature": 2.0, "rca_logit_offset": np.log(3)}, [2**0.5, 1, 1, 6, 3, 3]),
])  # fmt: skip
def test_temperature_and_offset_worked_by_hand(facts, odds):
    def model(x):
        return torch.log(torch.tensor([2.0, 1, 1, 4, 1, 1])).expand(len(x), -1)

    seen = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    [got] = probabilities(model, "convnext_twin", seen, 8, CPU, facts)
    np.testing.assert_allclose(got, np.tile(np.array(odds) / sum(odds), (3, 1)), rtol=1e-2)
    assert got.dtype == np.float64 and got.shape == (3, 6)


def test_workers_answer_in_order_and_give_the_threads_back(model_dir):
    def fails(x):
        raise RuntimeError("no answer")

    before = torch.get_num_threads()
    seen = torch.from_numpy(np.stack([noise(32, 32, seed) for seed in range(21)])[:, None])
    whole, facts = load_model(model_dir, CPU)
    with torch.inference_mode():
        want = whole(prepare(seen, facts["model"])).double().softmax(1)
    assert not torch.allclose(want[0], want[1:], atol=1e-3)  # else any order would do
    rows = list(probabilities(whole, facts["model"], seen, 64, CPU))
    assert [len(row) for row in rows] == [8, 8, 5]
    np.testing.assert_allclose(np.concatenate(rows), want, atol=1e-5)
    with pytest.raises(RuntimeError, match="no answer"):
        list(probabilities(fails, "convnext_twin", seen, 64, CPU))
    assert torch.get_num_threads() == before


def copy_model(model_dir, target, **changes):
    shutil.copy(model_dir / "best.safetensors", target)
    write_json(target / "model.json", read_json(model_dir / "model.json") | changes)


def test_a_missing_broken_foreign_or_miscalibrated_network_is_named(model_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="01_train_cnn"):
        load_model(tmp_path, CPU)
    copy_model(model_dir, tmp_path)
    whole = (tmp_path / "model.json").read_text(encoding="utf-8")
    for settings, words in (
        (whole.replace("LCA_bad", "LCA_good"), "the study needs"),
        (whole.replace("convnext_twin", "convnext_atto"), "of convnext_atto: broken, or another"),
        (whole.replace("image_px", "px"), r"lacks \['image_px'\]"),
        ("{", "is not JSON"),
    ):
        (tmp_path / "model.json").write_text(settings, encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            load_model(tmp_path, CPU)
    wrong = [("temperature", x) for x in (0, -1.0, "1", float("inf"))]
    for key, value in (*wrong, ("rca_logit_offset", float("nan")), ("rca_logit_offset", None)):
        copy_model(model_dir, tmp_path, **{key: value})
        with pytest.raises(ValueError, match=rf"model\.json: {key} must be"):
            load_model(tmp_path, CPU)
    copy_model(model_dir, tmp_path)
    data = (tmp_path / "best.safetensors").read_bytes()
    (tmp_path / "best.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="does not hold the weights"):
        load_model(tmp_path, CPU)


@pytest.mark.parametrize("number", [1, None])
def test_a_single_frame_is_a_cine_of_one(model_dir, tmp_path, number):
    grey = noise(20, 20)
    write_cine(tmp_path / "a", grey[None], NumberOfFrames=number)
    cv2.imwrite(str(tmp_path / "b.png"), grey)
    table = predict(tmp_path, tmp_path / "o.csv", "--model", model_dir)
    assert table["frame"].tolist() == [0, 0]
    np.testing.assert_allclose(table[P].iloc[0], table[P].iloc[1], atol=2e-6)


def test_a_long_cine_comes_in_order_and_a_bounded_number_of_frames_ahead(tmp_path):
    ramp = np.arange(100, dtype=np.uint8)[:, None, None] + np.arange(48, dtype=np.uint8).reshape(
        6, 8
    )
    path = write_cine(tmp_path / "a", ramp)
    for n_workers in (1, 2):
        pieces = list(reading.read_pieces([path, path], 4, n_workers))
        assert [piece.frames[0] for piece in pieces] == [0, 32, 64, 96] * 2
        levels = np.concatenate([piece.squares for piece in pieces])[:, 0, 0].astype(int)
        assert (np.diff(levels[:100]) == 1).all() and (levels[:100] == levels[100:]).all()
    cv2.imwrite(str(tmp_path / "a.png"), noise(8, 8))
    asked = []

    def paths():
        for i in range(10 * reading.AHEAD):
            asked.append(i)
            yield tmp_path / "a.png"

    stream = reading.read_pieces(paths(), 8)
    for i in range(5):
        next(stream)
        assert len(asked) == reading.AHEAD + 1 + i
    stream.close()


def test_a_frame_from_dicom_is_predicted_as_the_studys_png_of_it(model_dir, tmp_path):
    settings = CohortSettings("corpus", 7, 1, 2, 30, 40, size_px=128)
    cines = make_cohort(tmp_path / "phantom", settings, n_workers=1) / "cines"
    study = tmp_path / "study"
    sampled = sample_folder(cines, study, b"secret")
    direct = predict(cines, tmp_path / "direct.csv", "--model", model_dir)
    assert len(direct) == sampled.videos["n_frames"].sum() and len(sampled.frames) >= 4
    names = sampled.links.set_index("video_id")["path"]
    wanted = sampled.frames.assign(file=sampled.frames["video_id"].map(names))
    same = wanted[["file", "frame"]].merge(direct, on=["file", "frame"], validate="1:1")
    png = reading.predict_frames(model_dir, [study / p for p in sampled.frames["png"]])
    np.testing.assert_allclose(same[P], png[P], atol=0.02)  # bfloat16, other batches
    assert np.ptp(png[P].to_numpy(), axis=0).max() > 0.1  # else the above would say nothing
    for row in wanted.itertuples():
        [grey] = iter_frames(cines / row.file, [row.frame])
        np.testing.assert_array_equal(read_still(study / row.png), grey)


def test_a_folder_of_everything(model_dir, folder, tmp_path, capsys):
    out = tmp_path / "new" / "deep" / "o.csv"
    table = predict(folder, out, "--model", model_dir)
    assert list(table.columns) == COLUMNS
    assert table["file"].tolist() == ["cine"] * 5 + ["deep/still.png"]
    assert table["frame"].tolist() == [0, 1, 2, 3, 4, 0]
    np.testing.assert_allclose(table[P].sum(axis=1), 1, atol=1e-5)
    n_left = (table["laterality"] == "LCA").sum()
    [summary] = capsys.readouterr().out.splitlines()
    assert summary.startswith(
        f"6 pictures: {n_left} LCA, {6 - n_left} RCA; of 8 files 2 read, 0 skipped, 6 passed over"
    )
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "o.csv",
        "o_cines.csv",
        "o_rejected.csv",
    ]
    alone = predict(folder / "cine", tmp_path / "cine.csv", "--model", model_dir)
    np.testing.assert_allclose(alone[P], table.loc[:4, P], atol=0.02)


def test_stills_of_any_size_are_predicted_as_the_notebooks_do(model_dir, tmp_path):
    sizes = [(1, 1), (3, 200), (200, 3), (512, 512), (700, 333)]
    paths = [tmp_path / f"{i}.{('png', 'jpg', 'JPEG')[i % 3]}" for i in range(15)]
    for i, path in enumerate(paths):
        Image.fromarray(noise(*sizes[i % 5], i)).save(path)
    [table] = reading.predict_files(model_dir, paths)
    notebook = reading.predict_frames(model_dir, paths)
    pd.testing.assert_frame_equal(table[notebook.columns], notebook)
    back = reading.predict_frames(model_dir, paths[::-1], batch_size=1)
    np.testing.assert_allclose(back[P].to_numpy()[::-1], notebook[P], atol=0.02)  # bfloat16
    none = reading.predict_frames(model_dir, [])
    assert none.empty and list(none.columns) == list(notebook.columns)


def test_a_broken_file_costs_itself_alone_and_is_listed(model_dir, folder, tmp_path, capsys):
    whole = predict(folder, tmp_path / "whole.csv", "--model", model_dir)
    (folder / "zz.png").write_bytes(b"not a picture")  # the last one of all
    arguments = ["predict", folder, "--out", tmp_path / "o.csv", "--model", model_dir]
    assert keyframes.main([*map(str, arguments)]) == 3
    assert f"skipped: {folder}/zz.png: not a picture" in capsys.readouterr().err
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "o.csv"), whole)
    for name, (content, _) in BROKEN.items():
        (folder / name).write_bytes(content)
    write_cine(folder / "ct.dcm", SOPClassUID=CTImageStorage, Modality="CT")
    long = write_cine(folder / "short.dcm", noise(16, 16)[None].repeat(100, 0))
    long.write_bytes(long.read_bytes()[: -256 * 60])
    table = predict(folder, tmp_path / "o.csv", "--model", model_dir, "--skip-unreadable")
    counts = table["file"].value_counts()
    assert counts.to_dict() == {"cine": 5, "deep/still.png": 1, "short.dcm": counts["short.dcm"]}
    assert keyframes.main([*map(str, arguments), "--quiet"]) == 3  # --skip-unreadable: no failure
    kept = table.loc[table["file"] == "short.dcm", "frame"]
    assert kept.tolist() == list(range(40))  # those before the cut
    said = capsys.readouterr()
    lines = [x for x in said.err.splitlines() if x.startswith("skipped: ")]
    for name in (*BROKEN, "ct.dcm", "zz.png"):
        assert sum(f"/{name}: " in line for line in lines) == 1, name
    assert len(lines) == len(BROKEN) + 2 + 100 - len(kept)
    assert f"of 16 files 3 read, {len(BROKEN) + 2} skipped, 6 passed over" in said.out
    reasons = {line.split(": ")[1].rsplit("/", 1)[1]: line for line in lines}
    assert all(reason in reasons[name] for name, (_, reason) in BROKEN.items())
    rejected = pd.read_csv(tmp_path / "o_rejected.csv")
    assert list(rejected.columns) == ["file", "frame", "reason", "words"]
    lost = rejected[rejected["file"] == "short.dcm"]
    assert lost["frame"].tolist() == list(range(len(kept), 100))
    assert set(lost["reason"]) == {"truncated"} and set(rejected["reason"]) <= set(REASONS)


def test_no_file_model_or_table_is_an_error(model_dir, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    rest = ("--out", tmp_path / "o.csv", "--model", model_dir)
    assert "no picture in this folder" in refused(capsys, tmp_path / "empty", *rest)
    assert "no such folder or file" in refused(capsys, tmp_path / "gone", *rest)
    assert "not a picture" in refused(capsys, tmp_path / "notes.txt", *rest)
    none = refused(capsys, tmp_path / "bad", *rest, "--skip-unreadable")
    assert "none of 1 files can be read" in none and "x.png" in none
    assert not (tmp_path / "o.csv").exists()
    gone = refused(capsys, folder, "--out", tmp_path / "o.csv", "--model", tmp_path)
    assert "model.json is missing" in gone
    assert "is a folder" in refused(capsys, folder, "--out", tmp_path, "--model", model_dir)
    (tmp_path / "file").write_bytes(b"")
    blocked = tmp_path / "file" / "o.csv"
    assert "file" in refused(capsys, folder, "--out", blocked, "--model", model_dir)
    assert "no device 'cuda:77' here" in refused(capsys, folder, *rest, "--device", "cuda:77")


@pytest.mark.parametrize("trouble, code, words", [
    (KeyboardInterrupt(), 130, "interrupted; the rows so far are in"),
    (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left"),
])  # fmt: skip
def test_a_run_that_is_broken_off_keeps_its_rows_and_the_earlier_table(
    model_dir, folder, tmp_path, capsys, monkeypatch, trouble, code, words
):
    read = reading.predict_files

    def stop(*arguments, **options):
        yield from read(*arguments, **options)
        raise trouble

    write_cine(folder / "a_long_one", noise(8, 8)[None].repeat(150, 0))
    (tmp_path / "o.csv").write_text("of an earlier run", encoding="utf-8")
    monkeypatch.setattr(reading, "predict_files", stop)
    with pytest.raises(SystemExit) as error:
        predict(folder, tmp_path / "o.csv", "--model", model_dir, "--quiet")
    assert error.value.code == code
    assert capsys.readouterr().err.strip().startswith(words)
    assert (tmp_path / "o.csv").read_text(encoding="utf-8") == "of an earlier run"
    kept = pd.read_csv(tmp_path / "o.csv.part")
    assert kept["file"].value_counts().to_dict() == {"a_long_one": 150, "cine": 5}


def test_each_cine_has_a_row_with_its_key_frame_and_angles(model_dir, folder, tmp_path, capsys):
    arm = {"PositionerPrimaryAngle": "-30.5", "PositionerSecondaryAngle": "20"}
    turns = {"PositionerPrimaryAngle": "-30.5", "PositionerPrimaryAngleIncrement": [0, 1, 2]}
    write_cine(folder / "arm", np.stack([noise(9, 9, s) for s in range(70)]), **arm)
    write_cine(folder / "turns", np.stack([noise(9, 9, s) for s in range(3)]), **turns)
    table = predict(folder, tmp_path / "o.csv", "--model", model_dir, "--quiet", "--json")
    said = capsys.readouterr()
    cines = pd.read_csv(tmp_path / "o_cines.csv").set_index("file")
    assert cines["frames"].to_dict() == {"arm": 70, "cine": 5, "turns": 3}  # no stills
    for name, row in cines.iterrows():
        own = table[table["file"] == name].set_index("frame")
        sums = own[["p_LCA_better", "p_RCA_better"]].sum()
        assert row["laterality"] == ("LCA" if sums.iloc[0] >= sums.iloc[1] else "RCA")
        assert row["key_frame"] == own[f"p_{row['laterality']}_better"].idxmax()
        assert row["confidence"] == own[f"p_{row['laterality']}_better"].max()
    angles = cines[["primary_angle_deg", "secondary_angle_deg"]]
    assert angles.loc["arm"].tolist() == [-30.5, 20] and angles.loc["cine"].isna().all()
    assert angles.loc["turns"].iloc[0] == -30.5 + cines.loc["turns", "key_frame"]
    assert np.isnan(angles.loc["turns"].iloc[1])
    told = json.loads(said.out)
    assert told["pictures"] == 79 and told["read"] == 4 and told["passed_over"] == 6
    assert [row["key_frame"] for row in told["cines"]] == cines["key_frame"].tolist()
    assert told["cines"][1]["primary_angle_deg"] is None and said.err == ""


def test_the_cines_side_and_quality_worked_by_hand():
    better = {"p_LCA_better": [0.4, 0.1, 0.2], "p_RCA_better": [0.3, 0.35, 0.1]}
    rest = {"p_LCA_bad": [0.1, 0.1, 0.3], "p_RCA_bad": [0.1, 0.4, 0.2]}
    rest |= {"p_LCA_other": 0.05, "p_RCA_other": 0.05, "confidence": 0.0}
    rows = {name: (better | rest)[name] for name in P}
    table = pd.DataFrame({"file": Path("a"), "frame": range(3), "laterality": "", "quality": ""})
    table = table.assign(**rows, primary_angle_deg=np.nan, secondary_angle_deg=np.nan)
    [row] = reading.summarise_cines(table).itertuples()  # .75 of the right against .7
    assert (row.laterality, row.key_frame, row.quality, row.frames) == ("RCA", 1, "bad", 3)
    assert row.confidence == 0.35
    flipped = table.rename(columns=lambda n: n.translate(str.maketrans("LR", "RL")))
    [row] = reading.summarise_cines(flipped[table.columns]).itertuples()
    assert (row.laterality, row.key_frame, row.quality) == ("LCA", 1, "bad")
    assert reading.summarise_cines(table.assign(file=Path("a.png"))).empty


def test_the_shipped_network_is_packaged_and_ones_own_decides(model_dir, folder, tmp_path):
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns, top = packaged["tool"]["setuptools"]["package-data"]["cag_utils"], ROOT / "cag_utils"
    assert top / "weights" / "keyframe_cnn" == reading.DEFAULT_MODEL
    shipped = {path for pattern in patterns for path in top.glob(pattern)}
    needed = {reading.DEFAULT_MODEL / name for name in ("best.safetensors", "model.json")}
    assert needed <= shipped
    assert len(predict(folder, tmp_path / "o.csv")) == 6
    (own := tmp_path / "own").mkdir()
    for side, offset in (("RCA", 1e4), ("LCA", -1e4)):
        copy_model(model_dir, own, rca_logit_offset=offset)
        assert set(predict(folder, tmp_path / "r.csv", "--model", own)["laterality"]) == {side}


def test_help_explains_the_columns(capsys):
    with pytest.raises(SystemExit) as stop:
        keyframes.main(["predict", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    options = ("--device", "--quiet", "--json", "--skip-unreadable", "exit codes", "130")
    words = (*COLUMNS, *reading.CINE_COLUMNS, *options, "phantom", "examples")
    assert all(word in text for word in words)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = EntryPoint("cag-keyframes", scripts["scripts"]["cag-keyframes"], "console_scripts")
    with pytest.raises(SystemExit):
        found.load()(["--version"])
    assert capsys.readouterr().out == f"cag-keyframes {scripts['version']}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file names")
def test_a_file_name_that_is_not_utf8_or_is_a_formula_is_written_readably(model_dir, tmp_path):
    picture = cv2.imencode(".png", noise(9, 9))[1].tobytes()
    for name in (b"/caf\xe9.png", b"/=1+1.png"):
        Path(os.fsdecode(bytes(tmp_path) + name)).write_bytes(picture)
    table = predict(tmp_path, tmp_path / "o.csv", "--model", model_dir)
    assert sorted(table["file"]) == ["'=1+1.png", "caf\\xe9.png"]


@pytest.mark.realdata
def test_a_network_of_phantoms_tells_real_sides(real_data, tmp_path):
    """Seen, never tuned on; a coin would reach 0.9 on 30 stills once in 200,000 times."""
    table = predict(real_data, tmp_path / "o.csv", "--skip-unreadable").set_index("file")
    known = pd.read_csv(real_data / "labels.csv").drop_duplicates("file").set_index("file")
    stills = known[known["laterality"].notna() & known.index.str.endswith(".png")].index
    assert len(stills) >= 30
    right = table.loc[stills, "laterality"] == known.loc[stills, "laterality"]
    assert right.mean() >= 0.9
