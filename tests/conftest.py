import os
from pathlib import Path

import pytest

from tests.running import run_study

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real angiograms, read in place; skips where it is absent."""
    folder = Path(os.environ.get("CAG_REAL_DATA", ROOT.parent / "shared" / "real"))
    if not folder.is_dir():
        pytest.skip(f"no real angiograms at {folder}: set CAG_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    """Outputs of the whole study under the smoke profile, run once for all who read it."""
    out = tmp_path_factory.mktemp("study")
    done = run_study(out)
    assert done.returncode == 0, done.stderr[-4000:]
    return out
