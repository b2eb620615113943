"""Every notebook, executed under the smoke profile, the way a person would run it."""

import shutil
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill as pm
import pytest
from nbclient import NotebookClient
from sklearn.metrics import f1_score

from cag_utils.keyframes.labels import SIX_CLASSES
from cag_utils.profiles import load_profile
from cag_utils.reference import headline_figures
from cag_utils.study import read_json
from tests.running import NOTEBOOKS, execute, run_study

pytestmark = pytest.mark.notebook


def test_the_whole_study_leaves_every_notebooks_metrics_and_the_headline_figures(study):
    finetune, both = load_profile("smoke").finetune, ("05_generate_reports", "07_physician_scores")
    slugs = {f"04_finetune/{b}_{la}" for b in finetune.backbones for la in finetune.languages}
    slugs |= {f"{name}/{la}" for la in finetune.languages for name in both}
    slugs |= {"00_frame_sampling/cnn", "00_frame_sampling/corpus", "01_train_cnn/six_class"}
    slugs |= {"02_confusion_matrices/six_class", "03_build_corpus/all", "06_vlscore/en"}
    slugs |= {"08_paper_tables/all"}
    found = {str(p.parent.relative_to(study / "smoke")) for p in study.rglob("metrics.json")}
    assert found == slugs
    headline = headline_figures(study / "smoke", finetune.backbones)
    assert 0 < headline["cnn.training_minutes"] < 3
    said = pd.read_csv(study / "smoke" / "01_train_cnn" / "six_class" / "predictions_test.csv")
    likeliest = said[[f"p_{c}" for c in SIX_CLASSES]].idxmax(axis=1).str.removeprefix("p_")
    wanted = f1_score(said["label"], likeliest, average="weighted")
    assert headline["cnn.six_class_f1"] == pytest.approx(wanted)
    assert {f"finetune.{b}.en.overall_mean" for b in finetune.backbones} <= set(headline)
    assert headline["parser.gold.en.precision"] > 0.97 < headline["parser.gold.ja.recall"]
    assert all(isinstance(value, int | float) for value in headline.values())


def test_the_report_and_notebook_02_hold_every_table_figure_and_measure(study):
    folder = study / "smoke" / "08_paper_tables" / "all"
    html = (folder / "report.html").read_text(encoding="utf-8")
    for name in (*(f"Table {i}" for i in range(1, 5)), *(f"Figure {i}" for i in range(3, 7))):
        assert name in html
    assert "phantom" in html.lower() and "rubric" in html.lower()
    stems = {path.stem for path in folder.glob("table*.csv")}
    assert len(stems) >= 4
    assert all((folder / f"{s}{e}").exists() for s in stems for e in (".md", ".tex", ".csv"))
    folder = study / "smoke" / "02_confusion_matrices" / "six_class"
    metrics = read_json(folder / "metrics.json")
    wanted = {"pick_better_share", "pick_median_distance_frames", "f1_LCA_better_low"}
    assert wanted | {"ece_six_class_warmed", "temperature"} <= set(metrics)
    bins = pd.read_csv(folder / "figure_calibration.csv")
    for name, part in bins.groupby("f1_name"):
        gaps = (part["confidence"] - part["right"]).abs()
        ece = np.average(gaps.fillna(0), weights=part["n"])
        assert metrics[f"ece_{name.removesuffix('_f1')}"] == pytest.approx(ece)
    for stem in ("figure4_confusion", "figure_maps", "figure_groups", "figure_pick_strips"):
        assert (folder / f"{stem}.png").stat().st_size > 5000


def test_a_second_run_does_nothing_and_soon(study):
    assert "Nothing to be done" in run_study(study).stderr


def test_no_identity_lands_in_the_outputs(study):
    for path in [*study.rglob("*.csv"), *study.rglob("*.json")]:
        if ".snakemake" not in path.parts:
            text = path.read_text(encoding="utf-8")
            assert "PHANTOM-" not in text and "1.2.826" not in text and ".dcm" not in text, path


def test_the_same_seed_gives_the_same_metrics_from_jupyterlabs_kernel_folder(study, tmp_path):
    notebook = nbformat.read(NOTEBOOKS / "00_frame_sampling.ipynb", as_version=4)
    [cell] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    cell.source += f"\nprofile, out_root = 'smoke', {str(tmp_path)!r}"
    NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    [again] = (tmp_path / "smoke" / "00_frame_sampling").iterdir()
    first = study / "smoke" / "00_frame_sampling" / "cnn"
    assert read_json(again / "metrics.json") == read_json(first / "metrics.json")
    assert (again / "frames.csv").read_bytes() == (first / "frames.csv").read_bytes()


def test_a_finished_study_lets_a_single_notebook_run_alone_and_stays_as_it_is(study, tmp_path):
    out = Path(shutil.copytree(study, tmp_path / "study"))
    run = out / "smoke" / "04_finetune" / "gemma3_en"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    metrics = read_json(run / "metrics.json")
    assert execute("04_finetune", out, backbone="gemma3") == metrics
    assert (run.parent / "gemma3_en_by_hand" / "metrics.json").exists()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_before_the_study_or_with_a_typo_it_fails_within_seconds_and_says_what_to_do(tmp_path):
    began = time.monotonic()
    with pytest.raises(pm.PapermillExecutionError, match="make study PROFILE=smoke"):
        execute("04_finetune", tmp_path, backbone="gemma3")
    assert time.monotonic() - began < 120  # a hang, not a speed, is what this guards against
    with pytest.raises(pm.PapermillExecutionError, match="did you mean 'backbone'"):
        execute("04_finetune", tmp_path, backbon="gemma3")


@pytest.mark.realdata
def test_any_folder_of_cines_can_be_sampled(real_data, tmp_path):
    metrics = execute("00_frame_sampling", tmp_path, data_dir=str(real_data))
    [folder] = (tmp_path / "smoke" / "00_frame_sampling").iterdir()
    frames, rejected = (pd.read_csv(folder / f"{name}.csv") for name in ("frames", "rejected"))
    assert len(set(frames["video_id"])) == 1 and frames["frame"].diff().dropna().ge(5).all()
    n_files = sum(path.is_file() for path in real_data.rglob("*"))
    assert len(rejected) == n_files - 1 and rejected["reason"].str.len().min() > 3
    assert metrics["picks_per_cine"] == len(frames)
