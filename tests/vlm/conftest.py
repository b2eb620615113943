"""Twins, a corpus and one adapter a backbone, made once a session for all that only read them."""

import pytest

from cag_utils.vlm import loading
from cag_utils.vlm.sft import run_job
from tests.vlm.world import NAMES, job_for, pairs_in, write_pairs, write_twins


@pytest.fixture(scope="session")
def weights(once):
    return once("twins", write_twins)


@pytest.fixture(scope="module")
def twins(weights):
    """Random twins in the shipped weights' place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "WEIGHTS", weights)
        yield weights


@pytest.fixture(scope="module")
def world(twins, once):
    """Twins, and a corpus: the path of `pairs.csv`, with 8, 3 and 3 cases.

    Its tower features are kept beside it, written whole or not at all, as runs share them.
    """
    return pairs_in(once("corpus", write_pairs))


@pytest.fixture(scope="module")
def tuned(world, once):
    """One finished run of each backbone, one epoch, one case answered: its job by name."""

    def jobs(folder):
        short = {"epochs": 1.0, "eval_cases": 1}
        spoken = zip(NAMES, ("en", "ja", "en"), strict=True)
        return {name: job_for(world, folder / name, name, la, **short) for name, la in spoken}

    return jobs(once("tuned", lambda folder: [run_job(job) for job in jobs(folder).values()]))
