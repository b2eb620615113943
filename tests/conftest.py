import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real angiograms, read in place; skips where it is absent."""
    folder = Path(os.environ.get("CAG_REAL_DATA", ROOT.parent / "shared" / "real"))
    if not folder.is_dir():
        pytest.skip(f"no real angiograms at {folder}: set CAG_REAL_DATA")
    return folder
