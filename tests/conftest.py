import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

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
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)`: a folder that `make` fills once a session, whichever worker comes first.

    Each of pytest-xdist's workers has fixtures of its own; what is slow to make they share on the
    disk. A test that writes into such a folder spoils it for the others: copy it first.
    """
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"

    def find(name: str, make: Callable[[Path], object]) -> Path:
        folder, ended = base / name, base / f"{name}.ended"  # empty, or why it failed
        base.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not ended.exists():
                folder.mkdir()
                try:
                    make(folder)
                except Exception as error:
                    ended.write_text(f"{name} could not be made: {error}", encoding="utf-8")
                    raise
                ended.touch()
        if problem := ended.read_text(encoding="utf-8"):
            pytest.fail(problem)  # once is enough
        return folder

    return find


@pytest.fixture(scope="session")
def study(once) -> Path:
    """Outputs of the whole study under the smoke profile, run once for all who read it."""
    return once("study", run_study)
