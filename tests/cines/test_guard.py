import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
from distributed import LocalCluster

from cag_utils.cines import guard
from cag_utils.cines.guard import Cluster, Guard
from cag_utils.cines.reasons import NotACine
from cag_utils.cines.sampling import sample_folder
from tests.cines.test_dicom import write_cine
from tests.cines.test_sampling import pulsing


def behave(job):
    """A worker that does what its job says, after one good message."""
    yield f"{job} begins"
    if job == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "exits":
        os._exit(3)
    if job == "hangs":
        time.sleep(60)
    if job == "swells":
        np.ones((40_000, 40_000))
    if job == "refuses":
        raise NotACine("truncated", "at 7", "detail")
    if job == "stumbles":
        raise KeyError("no such thing")
    if job == "fails":
        raise OSError("no space left")
    yield None  # a sign of life, no message
    yield np.arange(3)


@pytest.fixture(scope="module")
def scheduler():
    """A Dask cluster of two processes of this machine, started as its own command would."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("kind", [1, 3, "dask"])
def test_who_is_lost_costs_its_own_job_and_the_rest_comes_in_order(kind, scheduler):
    jobs = ["a", "dies", "b", "hangs", "swells", "refuses", "stumbles", "exits", "c"]
    ends = {"dies": "the decoder died: SIGSEGV", "exits": "the decoder died: exit code 3"}
    ends |= {"hangs": "the decoder took too long", "swells": "out of memory"}
    ends |= {"refuses": "truncated: at 7", "stumbles": "unexpected error: KeyError"}
    with Cluster(scheduler) if kind == "dask" else Guard(kind) as workers:
        got = list(workers.run(behave, iter(jobs), lambda job: 1.5 if job == "hangs" else 30))
        again = [m for _, m in workers.run(behave, ["d"])]
    assert [job for job, _ in got] == [job for job in jobs for _ in range(2)]
    for job, message in got[1::2]:
        if job in ends:
            assert str(message).startswith(ends[job]), job
        else:
            assert message.tolist() == [0, 1, 2]
    details = {m.detail for _, m in got if isinstance(m, NotACine)}
    assert details == {"", "detail", "'no such thing'"}
    assert again[0] == "d begins" and again[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["here", "dask"])
def test_another_error_is_the_callers_and_says_where(kind, scheduler):
    with Cluster(scheduler) if kind == "dask" else Guard() as workers:
        with pytest.raises(OSError, match="no space left") as error:
            list(workers.run(behave, ["a", "fails", "b"]))
        assert "behave" in error.value.__notes__[0]
        assert len(list(workers.run(behave, ["a"]))) == 2  # it goes on working


@pytest.mark.parametrize("kind", ["here", "dask"])
def test_jobs_are_asked_for_only_as_far_ahead_as_it_says(kind, scheduler):
    asked = []
    with Cluster(scheduler) if kind == "dask" else Guard(2) as workers:
        messages = workers.run(behave, (asked.append(i) or i for i in range(500)))
        next(messages)
        assert len(asked) <= guard.AHEAD
        messages.close()  # in the midst of work
        assert len(list(workers.run(behave, ["a"]))) == 2


def test_a_cluster_samples_the_same_in_the_same_order_also_when_it_loses_a_worker(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(20):
        film = np.roll(pulsing(), i, axis=0)
        write_cine(folder / f"{i:02d}", film, video=f"1.2.{i}", PatientID=f"P{i}")
    (folder / "x").write_bytes(b"no cine")
    here = sample_folder(folder, tmp_path / "here", b"key")
    assert here.frames["video_id"].nunique() == 20 and len(here.rejected) == 1
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        for name in ("one", "two"):
            there = sample_folder(
                folder, tmp_path / name, b"key", scheduler=cluster.scheduler_address
            )
            for a, b in zip(here, there, strict=True):
                pd.testing.assert_frame_equal(a, b)
            for png in here.frames["png"]:
                mine, theirs = ((tmp_path / to / png).read_bytes() for to in ("here", name))
                assert mine == theirs
            if name == "one":
                os.kill(cluster.workers[0].pid, signal.SIGKILL)  # the second time it is missing


def test_processes_that_do_not_start_are_an_error(monkeypatch):
    monkeypatch.setattr(guard, "_serve", os._exit)
    with Guard() as workers, pytest.raises(RuntimeError, match="end before they begin"):
        list(workers.run(behave, ["a"]))
