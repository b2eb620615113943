import shlex
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from cag_utils import study
from cag_utils.params import Params
from cag_utils.profiles import FOLDER, load_profile


@dataclass(frozen=True)
class Demo(Params):
    profile: str = "smoke"
    out_root: str = "outputs"
    seed: int = 0
    backbone: str = "gemma3"
    language: str = "en"
    epochs: float = 0.0
    n_workers: int = 2


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.delenv(study.BY_WORKFLOW, raising=False)
    at = f"{tmp_path}/my runs"
    return lambda **given: study.open_run(Demo(out_root=at, **given), "04_finetune")


def test_a_run_has_a_folder_of_its_own_that_nobody_writes_over_by_hand(demo, tmp_path, monkeypatch):
    run = demo(language="ja", n_workers=7)
    assert run.dir == tmp_path / "my runs/smoke/04_finetune/gemma3_ja" and run.dir.is_dir()
    assert run.outputs == tmp_path / "my runs" / "smoke"
    assert demo(epochs=1.0, seed=4).dir.name == "gemma3_en_seed4_epochs1"
    first = demo()
    (first.dir / "04_finetune.ipynb").touch()  # the executed notebook, the workflow's log
    assert demo().dir.name == "gemma3_en_by_hand" and demo(seed=1).dir.name == "gemma3_en_seed1"
    monkeypatch.setenv(study.BY_WORKFLOW, "1")  # an edited cell is the study itself there
    assert demo().dir == demo(epochs=1.0).dir == first.dir


def test_relative_paths_start_at_the_root_and_absolute_ones_and_data_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study.under_root("outputs") == study.root() / "outputs"
    assert (study.root() / "cag_utils" / "study.py").is_file()
    assert study.under_root(tmp_path) == tmp_path
    monkeypatch.setenv("CAG_ROOT", str(tmp_path))
    assert study.under_root("outputs") == tmp_path.resolve() / "outputs"
    smoke = load_profile("smoke")  # a phantom's folder follows its settings
    larger = smoke.model_copy(update={"data": smoke.data.model_copy(update={"scale": 2.0})})
    assert study.data_dir(smoke) != study.data_dir(larger)
    with pytest.raises(FileNotFoundError, match="data.folder"):
        study.data_dir(load_profile("paper"))


@pytest.mark.parametrize("notebook, path, told", [
    ("04_finetune", "03_build_corpus/all/pairs.csv", {}),
    ("05_generate_reports", "04_finetune/conceptclip_gemma3_ja/job.json",
     {"backbone": "conceptclip_gemma3", "language": "ja"}),
    ("03_build_corpus", "00_frame_sampling/corpus/frames.csv", {"cohort": "corpus"}),
    ("08_paper_tables", "06_vlscore/en/metrics.json", {"language": "en"}),
    ("02_confusion_matrices", "01_train_cnn/six_class_epochs3/splits.csv", {}),
])  # fmt: skip
def test_a_missing_input_names_the_command_that_makes_it(notebook, path, told, tmp_path):
    out = tmp_path / "my $(runs)"
    with pytest.raises(FileNotFoundError) as error:
        study.Run(notebook, out / "smoke" / notebook / "x", load_profile("smoke"), 0).need(path)
    whole, alone = [shlex.split(x.split(":  ")[1]) for x in str(error.value).splitlines()]
    assert whole == [f"OUT_ROOT={out}", "make", "study", "PROFILE=smoke"]
    assert alone[:3] == ["papermill", f"notebooks/{path.split('/')[0]}.ipynb", "out.ipynb"]
    given = dict(zip(alone[4::3], alone[5::3], strict=True))
    assert given == {"profile": "smoke", "out_root": str(out)} | told


def test_a_notebook_reads_lower_numbers_alone(demo):
    run = demo()
    path = run.outputs / "03_build_corpus/all/pairs.csv"
    path.parent.mkdir(parents=True)
    path.touch()
    assert run.need("03_build_corpus/all/pairs.csv") == path
    for later in ("04_finetune/x", "05_generate_reports/en/generations.csv"):
        with pytest.raises(ValueError, match="only lower-numbered"):
            run.need(later)


def test_metrics_are_flat_and_plain(demo):
    run = demo(seed=3)
    saved = run.save_metrics({"f1": np.float32(0.5), "n": np.int64(3), "note": None})
    assert saved == {"f1": 0.5, "n": 3, "note": None} == study.read_json(run.dir / "metrics.json")
    facts = study.read_json(run.dir / "provenance.json")
    assert facts["seed"] == 3 and facts["profile"] == "smoke" and facts["torch"]
    assert facts["seconds"] < 60 and facts["peak_gb"] > 0.05
    with pytest.raises(ValueError, match="flat"):
        run.save_metrics({"nested": {"a": 1}})


def test_two_runs_at_once_do_not_share_a_folder(tmp_path):
    hold = "import sys, pathlib; from cag_utils.study import _claim; "
    hold += "_claim(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RuntimeError, match="another run is writing"):
            study._claim(tmp_path)
        other.stdin.close()
    study._claim(tmp_path)
    study._claim(tmp_path)  # again from the same process


def test_a_profile_of_ones_own_is_a_file_and_its_name_is_the_outputs(tmp_path, monkeypatch):
    path = tmp_path / "my ward" / "ward_7.yaml"
    path.parent.mkdir()
    path.write_text((FOLDER / "hospital_small.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    profile = load_profile("my ward/ward_7.yaml")
    assert (profile.name, profile.given) == ("ward_7", str(path.resolve()))
    assert load_profile("smoke").given == "smoke"
    run = study.open_run(Demo(profile=str(path), out_root=str(tmp_path / "out")), "04_finetune")
    assert run.dir == tmp_path / "out" / "ward_7" / "04_finetune" / "gemma3_en"
    with pytest.raises(FileNotFoundError, match=r"make study PROFILE='.*my ward/ward_7.yaml'"):
        run.need("03_build_corpus/all/pairs.csv")
    with pytest.raises(FileNotFoundError, match="there is no profile none.yaml"):
        load_profile("none.yaml")
    for name in ("smoke.yaml", "患者.yaml"):
        with pytest.raises(ValueError, match="names its outputs"):
            load_profile(str(path.rename(path.with_name(name))))
        path = path.with_name(name)
