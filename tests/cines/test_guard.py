import os
import signal
import time

import numpy as np
import pytest

from cag_utils.cines import guard
from cag_utils.cines.guard import Guard
from cag_utils.cines.reasons import NotACine


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


@pytest.mark.parametrize("n_workers", [1, 3])
def test_who_is_lost_costs_its_own_job_and_the_rest_comes_in_order(n_workers):
    jobs = ["a", "dies", "b", "hangs", "swells", "refuses", "stumbles", "exits", "c"]
    ends = {"dies": "the decoder died: SIGSEGV", "exits": "the decoder died: exit code 3"}
    ends |= {"hangs": "the decoder took too long", "swells": "out of memory"}
    ends |= {"refuses": "truncated: at 7", "stumbles": "unexpected error: KeyError"}
    with Guard(n_workers) as workers:
        got = list(workers.run(behave, iter(jobs), lambda job: 1.5 if job == "hangs" else 30))
        again = [m for _, m in workers.run(behave, ["d"])]
    assert [job for job, _ in got] == [job for job in jobs for _ in range(2)]
    for job, message in got[1::2]:
        if job in ends:
            assert str(message).startswith(ends[job]), job
        else:
            assert message.tolist() == [0, 1, 2]
    assert {m.detail for _, m in got if isinstance(m, NotACine)} == {
        "",
        "detail",
        "'no such thing'",
    }
    assert again[0] == "d begins" and again[1].tolist() == [0, 1, 2]


def test_another_error_is_the_callers_and_says_where():
    with Guard() as workers:
        with pytest.raises(OSError, match="no space left") as error:
            list(workers.run(behave, ["a", "fails", "b"]))
        assert "behave" in error.value.__notes__[0]
        assert len(list(workers.run(behave, ["a"]))) == 2  # it goes on working


def test_jobs_are_asked_for_only_as_far_ahead_as_it_says():
    asked = []
    with Guard(2) as workers:
        messages = workers.run(behave, (asked.append(i) or i for i in range(500)))
        next(messages)
        assert len(asked) <= guard.AHEAD
        messages.close()  # in the midst of work
        assert len(list(workers.run(behave, ["a"]))) == 2


def test_processes_that_do_not_start_are_an_error(monkeypatch):
    monkeypatch.setattr(guard, "_serve", os._exit)
    with Guard() as workers, pytest.raises(RuntimeError, match="end before they begin"):
        list(workers.run(behave, ["a"]))
