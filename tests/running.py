"""The study and its notebooks under the smoke profile, run the way a person would."""

import os
import subprocess
import sys
from pathlib import Path

import papermill as pm

from cag_utils.study import read_json, root

NOTEBOOKS = root() / "notebooks"


def run_study(out: Path, *targets: str) -> subprocess.CompletedProcess:
    """Run the workflow into a folder, which holds its state as well."""
    command = [sys.executable, "-m", "cag_utils.workflow", "study", "--cores", "2", *targets]
    command += ["--snakefile", str(root() / "Snakefile"), "--directory", str(out)]
    command += ["--config", "profile=smoke", f"out_root={out}"]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def execute(stem: str, out: Path, **params) -> dict:
    """Run one notebook through papermill from a foreign folder; return its metrics."""
    settings = {"out_root": str(out), "profile": "smoke"} | params
    folder = out / settings["profile"] / stem
    before = set(folder.rglob("metrics.json"))
    source, executed = NOTEBOOKS / f"{stem}.ipynb", out / f"{stem}.ipynb"
    pm.execute_notebook(source, executed, settings, cwd=out, progress_bar=False)
    [found] = set(folder.rglob("metrics.json")) - before
    return read_json(found)
