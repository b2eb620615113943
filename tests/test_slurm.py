"""The study on a real Slurm of one node, by the committed profile: `make test-slurm`."""

import subprocess
import sys
from pathlib import Path

import pytest

from cag_utils.study import root
from cag_utils.workflow import end_jobs, slurm_name
from tests.one_node import one_node, why_not
from tests.test_workflow import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can")]

# What the committed profile says, as Slurm tells it: GPUs and time.
ASKED = {
    "sampling": {("N/A", "2:00:00")},
    "train_cnn": {("gres:gpu:2", "1-00:00:00")},
    "finetune": {("gres:gpu:4", "1-00:00:00")},
    "vlscore": {("gres:gpu:1", "2:00:00")},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with one_node(tmp_path_factory.mktemp("slurm")) as env:
        yield env


def told(env, *command):
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def test_what_a_dead_study_left_in_the_queue_is_cancelled_and_nothing_else(cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])
    name, other = (slurm_name(Path(at)) for at in ("/a", "/b"))
    for job in (f"{name}_1", f"{name}_2", f"{other}_1"):
        told(cluster, "sbatch", f"--job-name={job}", "--output=/dev/null", "--wrap=sleep 600")
    end_jobs(name)
    assert told(cluster, "squeue", "--noheader", "--format=%j") == [f"{other}_1"]
    end_jobs(other)
    assert told(cluster, "squeue", "--noheader") == []


def test_the_smoke_study_runs_outlives_a_kill_and_asks_for_what_the_profile_says(cluster, tmp_path):
    out = tmp_path / "study"
    out.mkdir()
    command = [sys.executable, "-m", "cag_utils.workflow", "study"]
    command += ["--profile", str(root() / "cag_utils" / "templates" / "slurm")]
    command += ["--snakefile", str(root() / "Snakefile"), "--directory", str(out)]
    # two cores are all there is here, no database of past jobs, and a disk that is not shared
    command += ["--jobs", "2", "--max-threads", "2", "--latency-wait", "5"]
    command += ["--slurm-status-command", "squeue", "--slurm-no-account"]
    command += ["--config", "profile=smoke", f"out_root={out}"]
    with (tmp_path / "first.log").open("wb") as log:
        first = subprocess.Popen(command, env=cluster, cwd=tmp_path, stdout=log, stderr=log)

    def said():
        return (tmp_path / "first.log").read_text(encoding="utf-8")

    def running():
        queue = told(cluster, "squeue", "--noheader", "--states=running", "--format=%k")
        return any("train_cnn" in line for line in queue)

    try:
        wait_for(lambda: first.poll() is not None or ("2 of " in said() and running()), 1200)
        assert first.poll() is None, said()[-3000:]
    finally:
        first.kill()
        first.wait()
    sampled = {path: path.stat().st_mtime_ns for path in out.glob("smoke/00*/*/metrics.json")}
    assert len(sampled) == 2
    again = subprocess.run(command, env=cluster, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-4000:]
    assert {path: path.stat().st_mtime_ns for path in sampled} == sampled  # not done twice
    assert len(list(out.glob("smoke/*/*/metrics.json"))) == 16
    assert (out / "smoke/08_paper_tables/all/report.html").is_file()
    fields = ("Comment", "tres-per-job", "TimeLimit", "MinMemory", "ArrayTaskID", "State")
    asked = ",".join(f"{name}:60" for name in fields)
    jobs = told(cluster, "squeue", "--noheader", "--states=completed", f"--Format={asked}")
    rows = [[line[i : i + 60].strip() for i in range(0, 360, 60)] for line in jobs]
    steps = {rule: {tuple(row[1:3]) for row in rows if f"_{rule}" in row[0]} for rule in ASKED}
    assert steps == ASKED
    assert {row[3] for row in rows if "_sampling" in row[0]} == {"16000M"}
    tuned = [row for row in rows if "finetune" in row[0]]
    assert len(tuned) == 6 and all(row[4].isdigit() for row in tuned)  # tasks of arrays
    dry = subprocess.run([*command, "--dry-run"], env=cluster, capture_output=True, text=True)
    assert "Nothing to be done" in dry.stdout + dry.stderr
