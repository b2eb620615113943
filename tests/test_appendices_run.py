"""The appendices under the smoke profile: a lane of its own, `make test-appendices`."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cag_utils.desk.viewer import cine_paths
from cag_utils.profiles import load_profile
from cag_utils.study import read_json
from tests.running import execute, run_study

pytestmark = pytest.mark.appendix


@pytest.fixture(scope="session")
def cases(once):
    """As much of a study as the appendices read; each writes into a folder of its own."""
    last = "smoke/07_physician_scores/en/metrics.json"
    return once("cases", lambda out: run_study(out, f"{out}/{last}"))


@pytest.mark.parametrize("stem, facts", [
    # lines as wide as vessels
    ("A1_phantom", {"realism.line_width_px.phantom": (3, 15)}),
    # the shipped network's size: the same class was made
    ("A2_pretrain_cnn", {"size_mb": (2.3, 2.5)}),
    # of 1800 tokens, guessing costs 7.5 nats: a few steps already beat it
    ("A4_pretrain_twins", {"gemma3.final_loss": (2, 6.5), "paligemma2.final_loss": (2, 6.5)}),
    ("A13_pretrain_tower", {"ceiling.ideal_f1": (0.8, 1), "tower.laterality_accuracy": (0.3, 1)}),
    ("A5_pretrain_embedders", {"siglip2.loss_last": (20, 42), "medclip.chance_top1": (0.06, 0.07)}),
])  # fmt: skip
def test_the_appendices_run_and_measure_what_they_say(stem, facts, tmp_path):
    metrics = execute(stem, tmp_path)
    for name, (low, high) in facts.items():
        assert low <= metrics[name] <= high, name


def test_the_ablations_run_over_the_studys_cases(cases):
    metrics = execute("A6_ablations", cases)
    folder = cases / "smoke" / "A6_ablations" / "conceptclip_gemma3_en"
    variants = pd.read_csv(folder / "table_variants.csv").set_index("variant")
    assert list(variants.index) == ["as in 04", "projector first", "longer", "told"]
    assert variants["overall_gain"].isna().tolist() == [True, False, False, False]
    gain = variants.loc["longer", "overall"] - variants.loc["as in 04", "overall"]
    assert metrics["longer.overall_gain"] == pytest.approx(gain)
    jobs = [read_json(path) for path in sorted(folder.glob("*/job.json"))]
    steps = [job["settings"]["warmup_projector_steps"] for job in jobs]
    assert steps == [0, 2, 0]  # the longer one, the projector first, told
    told, plain = (pd.read_csv(x) for x in (jobs[2]["pairs"], jobs[0]["pairs"]))
    added = [a.removeprefix(b) for a, b in zip(told["report_en"], plain["report_en"], strict=True)]
    assert all(line.startswith("\n") and not any(c.isdigit() for c in line) for line in added)
    assert (told["findings_en"] == plain["findings_en"]).all()


def test_loras_settings_are_tried_on_validation_cases_once(cases):
    metrics = execute("A14_lora_settings", cases)
    folder = cases / "smoke" / "A14_lora_settings"
    table = pd.read_csv(folder / "all" / "table_settings.csv").set_index("setting")
    assert list(table.index) == ["profile", "lower"]
    assert metrics["lower.gain"] == pytest.approx(
        table.loc["lower", "mean"] - table["mean"].iloc[0]
    )
    jobs = {path.parent.name: read_json(path) for path in folder.glob("adapters/*/job.json")}
    rates = [jobs[f"paligemma2_en_{name}"]["settings"]["learning_rate"] for name in table.index]
    assert len(jobs) == 4 and rates[1] == pytest.approx(rates[0] / 2)
    splits = pd.read_csv(cases / "smoke" / "03_build_corpus" / "all" / "pairs.csv")
    splits = splits.set_index("case_id")["split"]
    answers = {path: pd.read_csv(path) for path in folder.glob("adapters/*/answers.csv")}
    assert {splits[case] for rows in answers.values() for case in rows["case_id"]} == {"val"}
    written = {path: path.stat().st_mtime_ns for path in answers}
    (folder / "all" / "metrics.json").unlink()
    execute("A14_lora_settings", cases)  # nothing is trained twice
    assert {path: path.stat().st_mtime_ns for path in answers} == written


def test_models_are_asked_before_other_pictures_and_reports_and_one_is_trained_on_reports(cases):
    smoke = cases / "smoke"
    run_study(cases, f"{smoke}/05_generate_reports/ja/metrics.json")
    metrics = execute("A7_image_reliance", cases)
    folder = smoke / "A7_image_reliance" / "all"
    pairs = pd.read_csv(smoke / "03_build_corpus" / "all" / "pairs.csv")
    for case, png in pairs.loc[pairs["split"] == "test", ["case_id", "png"]].to_numpy():
        paths = smoke / png, folder / "noise" / f"{case}.png", folder / "mirrored" / f"{case}.png"
        true, noise, mirrored = (np.asarray(Image.open(path)) for path in paths)
        assert np.array_equal(np.sort(noise, None), np.sort(true, None))
        assert np.array_equal(np.fliplr(mirrored), true) and not np.array_equal(noise, true)
    said = pd.read_csv(folder / "generations.csv", keep_default_na=False)
    # reports alone: the study's own job but for the pictures
    study, alone = (
        read_json(path / "job.json")
        for path in (smoke / "04_finetune" / "gemma3_en", folder / "text_only")
    )
    changed = {"pairs", "pairs_hash", "folder", "features"}
    assert {name for name in study if study[name] != alone[name]} == changed
    assert set(pd.read_csv(alone["pairs"])["png"]) == {"A7_image_reliance/all/blank.png"}
    assert metrics["val_loss.reports_alone"] != metrics["val_loss.with_pictures"]
    # notebook 07's marks and verdict, and as many answers as there are
    marks = pd.read_csv(smoke / "07_physician_scores" / "en" / "scores.csv")
    mean = marks.groupby("model")["overall"].mean()
    drop = mean["gemma3_lora"] - mean["gemma3_lora@blank"]
    assert metrics["overall_drop.gemma3_lora.en.blank"] == pytest.approx(drop)
    verdict = read_json(smoke / "07_physician_scores" / "en" / "metrics.json")["gemma3_lora.looks"]
    assert metrics["looks.gemma3_lora.en"] == verdict
    texts = said.query("language == 'en' and model == 'gemma3_lora@text_only'")["output"]
    assert metrics["distinct.gemma3_lora.en.text_only"] == texts.nunique()
    table = pd.read_csv(folder / "table_reliance.csv")
    assert set(table.query("model == 'paligemma2_lora'")["language"]) == {"en", "ja"}


def test_the_leakage_audit_runs_over_the_studys_frames(cases):
    metrics = execute("A3_leakage", cases, epochs=0, n_repeats=1)
    folder = cases / "smoke" / "A3_leakage" / "all_epochs0_n_repeats1"
    fair = pd.read_csv(folder / "crossover.csv").set_index(["f1_name", "arm"])
    assert set(fair.index.get_level_values("arm")) == {"patient", "video", "frame"}
    assert len(set(fair["frames"])) == 1  # the same test frames in every arm
    video, patient = (fair.loc[("six_class_f1", arm), "f1"] for arm in ("video", "patient"))
    assert metrics["inflation_six_class_f1"] == pytest.approx(video - patient)
    assert metrics["paper_test_cases_also_in_train"] == 48
    assert not list(folder.rglob("*.safetensors"))


def test_the_power_page_runs_over_the_studys_scores(cases):
    run_study(cases, f"{cases}/smoke/07_physician_scores/en/scores.csv")
    metrics = execute("A8_power", cases, language="en", second="paligemma2_lora")
    folder = cases / "smoke" / "A8_power" / "en_second_paligemma2_lora"
    table = pd.read_csv(folder / "table_exams.csv")
    assert metrics["gap"] == pytest.approx(7.20 - 6.58)  # the paper's
    fewer = table.groupby("world")["exams for 80%"].agg(["first", "last"])
    assert (fewer["last"] <= fewer["first"]).all()  # five readers need no more exams than one
    assert metrics["readers_always_agree.1.exams_80"] == metrics["readers_always_agree.5.exams_80"]


def test_exams_are_reported_in_one_prompt_and_frame_by_frame(cases):
    metrics = execute("A12_exam_reports", cases)
    folder = cases / "smoke" / "A12_exam_reports" / "gemma3_en"
    table = pd.read_csv(folder / "table_exams.csv").set_index("way")
    assert {"one_prompt", "merged", "merged_blank", "constant", "commonest"} < set(table.index)
    assert metrics["n_frames"] >= metrics["n_exams"] == table["exams"].iloc[0] > 0
    assert metrics["truth.lesion_f1"] == 1 and metrics["shown.lesion_precision"] == 1
    said = pd.read_csv(folder / "generations.csv", keep_default_na=False)
    pairs = pd.read_csv(cases / "smoke" / "03_build_corpus" / "all" / "pairs.csv")
    assert set(said["exam_id"]) == set(pairs.loc[pairs["split"] == "test", "exam_id"])


def test_the_desks_open_on_the_studys_frames_findings_and_answers_with_nobody_simulated(
    cases, tmp_path
):
    sheets = {"sheets": str(tmp_path / "none")}
    profile = load_profile("smoke")
    for cohort in ("cnn", "corpus"):
        cines = cine_paths(profile, cohort)
        assert cines and all(path.is_file() for path in cines.values())
    labels = execute("A9_label_frames", cases, **sheets)
    assert labels["frames"] > 0 and labels["readers"] == labels["labels"] == 0
    drafts = execute("A10_validate_findings", cases, **sheets)
    assert drafts["drafts"] > 0 and drafts["read"] == 0
    answers = execute("A11_review_reports", cases, language="en", **sheets)
    assert answers["answers"] == answers["complete"] == 0 and answers["icc_overall"] is None
    sheet = pd.read_csv(cases / "smoke" / "A11_review_reports" / "en" / "sheet.csv")
    assert sheet.empty and {"case_id", "model", "reader", "overall"} <= set(sheet)
