"""What `make reference` prints into the README."""

import subprocess
import sys

import pytest

from cag_utils import reference
from cag_utils.reference import update_readme
from cag_utils.shipped import write_card
from cag_utils.study import read_json, write_json

FIGURES = {f"cnn.{name}": 0.9 for name in ("laterality_f1", "three_class_f1", "six_class_f1")}
FIGURES |= {"finetune.gemma3.en.lesions_named": 0.5, "finetune.gemma3.en.overall_mean": 6.0}
FIGURES |= {"study.minutes": 11.25, "study.peak_gb": 2.5}


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A repository with a reference, and what the README was last given."""
    monkeypatch.setenv("CAG_ROOT", str(tmp_path))
    (tmp_path / "outputs" / "reference").mkdir(parents=True)
    return tmp_path


def test_only_what_lies_between_the_markers_is_replaced(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- results: make reference -->\nold\n<!-- end of results -->\nb\n")
    update_readme(page, FIGURES)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("a\n<!-- results") and text.endswith("<!-- end of results -->\nb\n")
    assert "old" not in text and "whole study" in text
    page.write_text("no markers\n")
    with pytest.raises(ValueError, match="lacks the markers"):
        update_readme(page, FIGURES)


def test_skill_lesions_floors_and_the_parser_are_kept_by_language():
    scores = {"gemma3_lora.skill": 0.2, "gemma3_lora.skill_low": 0.1, "gemma3_lora.n": 8}
    scores |= {"gemma3_base@zero.lesion_f1": 0.3, "o4-mini.skill": None, "primary": "lesion_f1"}
    scores |= {"gemma3_lora@blank.lesion_f1": 0.2, "floor.gemma3_lora@blank.lesion_f1": 0.2}
    scores |= {"parser.gold.ja.n": 200, "floor.constant.mild_f1": 0.0}
    assert reference.score_figures(scores, "ja") == {
        "scores.gemma3_lora.ja.skill": 0.2,
        "scores.gemma3_lora.ja.skill_low": 0.1,
        "scores.gemma3_base@zero.ja.lesion_f1": 0.3,
        "floor.gemma3_lora@blank.ja.lesion_f1": 0.2,
        "parser.gold.ja.n": 200,
    }


def test_the_cards_of_shipped_networks_are_read(tmp_path):
    cards = {
        "siglip_tower": {"segment_accuracy": 0.56, "ceiling, ideal": 0.99, "ceiling, blind": 0.1},
        "gemma3": {"told, en": 0.5, "told, ja": 0.8},
    }
    for name, measures in cards.items():
        (tmp_path / name).mkdir()
        write_card(tmp_path / name, "A twin.", "a test", 1, measures)
    assert reference.shipped_figures(tmp_path) == {
        "twins.gemma3.told.en": 0.5, "twins.gemma3.told.ja": 0.8, "twins.told_named": 0.65,
        "twins.tower.segment_named": 0.56, "ceiling.ideal_lesion_f1": 0.99,
        "ceiling.blind_lesion_f1": 0.1, "ceiling.lesion_f1": 0.99,
    }  # fmt: skip
    assert reference.shipped_figures()["twins.tower.segment_named"] > 0.4


def test_a_run_of_the_study_alone_keeps_what_stands_beside_it(at):
    old, tables = at / "outputs" / "reference", at / "run" / "08_paper_tables" / "all"
    tables.mkdir(parents=True)
    for name in ("A1_phantom_table_stills.md", "A3_leakage_crossover.md", "gpu.md", "gone.csv"):
        (old / name).write_text("old", encoding="utf-8")
    (tables / "table1.csv").write_text("new", encoding="utf-8")
    reference.copy_study(at / "run", old)
    kept = {"A1_phantom_table_stills.md", "A3_leakage_crossover.md", "gpu.md", "table1.csv"}
    assert {path.name for path in old.iterdir()} == kept


def test_an_appendix_alone_replaces_its_own_figures_and_nothing_else(at, monkeypatch):
    folder = at / "outputs" / "reference"
    run = at / "outputs" / "phantom" / "A6_ablations" / "conceptclip_gemma3_en"
    run.mkdir(parents=True)
    old = {"cnn.z": 0.9, "ablation.longer.overall": 1.0, "ablation.named_gone": 2.0}
    write_json(folder / "metrics.json", old)
    write_json(folder / "provenance.json", {"commit": "first"})
    write_json(run / "metrics.json", {"longer.overall": 3.0, "backbone": "gemma3"})
    for name in ("table_variants.md", "table_variants.csv", "other.md"):
        (run / name).write_text("new", encoding="utf-8")
    monkeypatch.setattr(reference, "provenance", lambda: {"commit": "second"})
    monkeypatch.setattr(reference.subprocess, "run", lambda *_, **__: None)
    printed = []
    monkeypatch.setattr(reference, "update_readme", lambda page, found: printed.append(found))
    reference.refresh_parts(["A6_ablations"])
    found = {"cnn.z": 0.9, "ablation.longer.overall": 3.0}
    assert read_json(folder / "metrics.json") == found and printed == [found]
    kept = {"metrics.json", "provenance.json", "A6_ablations_table_variants.md"}
    assert {path.name for path in folder.iterdir()} == kept
    facts = {"commit": "first", "commit of A6_ablations": "second"}
    assert read_json(folder / "provenance.json") == facts


def test_benchmarks_alone_replace_the_benchmarks(at, monkeypatch):
    path = at / "outputs" / "reference" / "metrics.json"
    write_json(path.with_name("provenance.json"), {})
    monkeypatch.setattr(reference, "measure_yardstick", lambda: {"seconds": 0.5})
    write_json(path, {"cnn.z": 0.9, "benchmark.gone": 1.0, "benchmark.kept_name": 1.0})
    scripts = at / "tests" / "benchmarks"
    scripts.mkdir(parents=True)
    (scripts / "bench_kept.py").write_text("print('noise')\nprint('{\"kept_name\": 2.0}')\n")
    (scripts / "bench_other.py").write_text("print('{\"other\": 3.0}')\n")
    monkeypatch.setattr(reference, "update_readme", lambda page, found: None)
    reference.refresh_parts(["bench_kept"])
    kept = {"cnn.z": 0.9, "benchmark.kept_name": 2.0, "benchmark.bench_kept.yardstick": 0.5}
    assert read_json(path) == kept | {"benchmark.gone": 1.0}
    reference.refresh_parts(["benchmarks"])
    kept |= {"benchmark.other": 3.0, "benchmark.bench_other.yardstick": 0.5}
    assert read_json(path) == kept


def test_the_commit_is_noted_before_a_tracked_file_is_written(at, monkeypatch):
    page, folder = at / "README.md", at / "outputs" / "reference"
    page.write_text("<!-- results: make reference -->\n<!-- end of results -->\n")
    (at / "outputs" / "phantom" / "08_paper_tables" / "all").mkdir(parents=True)
    write_json(folder / "metrics.json", {"benchmark.x": 2.0, "leakage.y": 0.1, "cnn.z": 0.9})
    (at / "cag_utils").mkdir()
    (at / "cag_utils" / "study.py").write_text("a = 1\n")
    for words in ("init -q", "add .", "-c user.name=x -c user.email=x commit -qm x"):
        subprocess.run(["git", *words.split()], cwd=at, check=True)
    monkeypatch.setattr(reference.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(reference, "measured_run", lambda command: {"study.minutes": 1.0})
    monkeypatch.setattr(reference, "headline_figures", lambda *_: FIGURES)
    reference.main(study_only=True)
    assert "dirty" not in read_json(folder / "provenance.json")["commit"]
    assert reference.provenance()["commit"].endswith("-dirty")
    found = read_json(folder / "metrics.json")
    assert found["benchmark.x"] == 2.0 and found["leakage.y"] == 0.1 and "cnn.z" not in found
    rooms = {k: v for k, v in found.items() if k.startswith("rooms.")}
    assert rooms == {f"rooms.{r}.{unit}": 1 for r in ("top", "all") for unit in ("lines", "files")}


def test_a_run_is_measured_in_minutes_and_in_yardsticks_of_three_kinds_of_work(monkeypatch):
    found = reference.measure_yardstick()
    assert set(found) == {"numpy", "numba", "decoding", "seconds"}
    parts = [value for name, value in found.items() if name != "seconds"]
    assert all(0.01 < value < 60 for value in parts)
    assert found["seconds"] == pytest.approx(sum(parts), abs=1e-3)
    monkeypatch.setattr(reference, "measure_yardstick", lambda: {"numpy": 0.1, "seconds": 0.01})
    found = reference.measured_run([sys.executable, "-c", "import time; time.sleep(2)"])
    assert 200 <= found["study.yardsticks"] < 12000 and found["study.yardstick"] == 0.01
    assert found["study.yardstick_numpy"] == 0.1 and found["study.minutes"] > 0.03
    with pytest.raises(RuntimeError, match="exit code 3"):
        reference.measured_run([sys.executable, "-c", "raise SystemExit(3)"])
