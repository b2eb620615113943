import subprocess
import sys
import time

import psutil
import pytest

from cag_utils.cohorts import cohort_settings, ensure_phantom
from cag_utils.phantom.__main__ import main
from cag_utils.profiles import load_profile


def small(**data):
    profile = load_profile("smoke")
    return profile.model_copy(update={"data": profile.data.model_copy(update=data)})


def test_profile_numbers_reach_the_cohorts_and_own_data_have_no_phantom():
    profile = small(scale=2.0)
    got = cohort_settings(profile, "corpus")
    assert got["n_patients"] == 2 * profile.data.corpus_patients
    assert got["cines_per_patient"] == profile.data.corpus_cines
    assert (got["size_px"], got["seed"]) == (profile.data.size_px, profile.data.seed)
    with pytest.raises(ValueError, match="reads its own data"):
        cohort_settings(load_profile("paper"), "cnn")
    with pytest.raises(ValueError, match="cohort"):
        cohort_settings(profile, "others")


def test_the_command_draws_what_the_profile_asks_and_says_why_not(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("cag_utils.cohorts.data_dir", lambda _: tmp_path)
    profile = small(corpus_patients=1, corpus_cines=1, frames_low=2, frames_high=2, size_px=128)
    assert ensure_phantom(profile, 1, ["corpus"]) == tmp_path
    assert len(list((tmp_path / "corpus").rglob("*.dcm"))) == 1
    with pytest.raises(RuntimeError, match="version .* drew no corpus cohort"):
        ensure_phantom(small(corpus_patients=1, frames_low=3, frames_high=2), 1, ["corpus"])
    assert "frames_low 3 must not exceed" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--name", "cnn"])


def test_the_command_ends_with_its_caller(tmp_path):
    settings = cohort_settings(small(), "corpus") | {"n_patients": 500}
    command = [sys.executable, "-m", "cag_utils.phantom", str(tmp_path / "corpus"), "--follow"]
    command += [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    while not list(tmp_path.rglob("*.dcm")):
        assert process.poll() is None
        time.sleep(0.2)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.stdin.close()
    assert process.wait(30) == 1
    _, alive = psutil.wait_procs(workers, 30)
    assert alive == []
