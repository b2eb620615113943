"""The same seed is the same patient on every processor: other kernels, the same truth."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Runs in a process of its own, since kernels are chosen when libraries load.
DRAW = """
import sys
from pathlib import Path

import numpy as np

from cag_utils.phantom.cohort import CohortSettings, make_cohort
from cag_utils.phantom.imaging.render import film
from cag_utils.phantom.imaging.shot import draw_shot
from cag_utils.phantom.stills import still
from cag_utils.phantom.subject import diseased_tree, draw_subject

folder, found = Path(sys.argv[1]), {}
for name in ("cnn", "corpus"):
    make_cohort(folder / name, CohortSettings(name, 4, 1, 2, 4, 6, 64), 1)
for seed, side in ((0, "LCA"), (1, "RCA")):
    subject = draw_subject(np.random.default_rng(seed), (0.0, 0.0, 1.0))
    tree, _ = diseased_tree(np.random.default_rng([seed, 1]), subject, side)
    shot = draw_shot(np.random.default_rng([seed, 2]), subject, tree, n_frames=4, size_px=128)
    found[f"pictures_{side}"], truth = film(np.random.default_rng([seed, 3]), subject, tree, shot)
    angles = shot.arm.primary_deg, shot.arm.secondary_deg, shot.arm.source_detector_mm
    facts = {"points": tree.points, "segment": tree.segment, "angles": angles, "seen": truth.seen}
    facts |= truth.measured() | {"labels": truth.labels(side)}
    found |= {f"{key}_{side}": value for key, value in facts.items()}
for seed in range(2):
    one = vars(still(seed, 96)).copy()
    found[f"pictures_{seed}"] = one.pop("image")
    one |= {name: repr(one[name]) for name in ("lesions", "shown", "ideal")}
    found |= {f"{key}_{seed}": value for key, value in one.items()}
np.savez(folder / "drawn.npz", **found)
"""
PROCESSORS = {
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    # neither numba, nor numpy, nor OpenCV may use what this machine has and an old one has not
    "plain": {
        "OPENBLAS_CORETYPE": "Nehalem", "NUMBA_CPU_NAME": "generic", "OPENCV_IPP": "disabled",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4", "OPENCV_CPU_DISABLE": "AVX2,FP16,AVX512-SKX",
    },
}  # fmt: skip


def draw(folder: Path, **processor: str) -> dict[str, np.ndarray]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS", "NPY", "OPENCV"))}
    env, root = keep | {"OMP_NUM_THREADS": "1"} | processor, Path(__file__).parents[2]
    call = [sys.executable, "-c", DRAW, str(folder)]
    done = subprocess.run(call, env=env, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(folder / "drawn.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    return folder, draw(folder)


def can_run(name: str) -> bool:
    """Whether this machine has the instructions that a kernel needs."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8") if info.is_file() else ""
    return {"Haswell": "avx2", "SkylakeX": "avx512f", "plain": "sse4_2"}[name] in flags


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_same_seed_is_the_same_patient_on_another_processor(here, name, tmp_path):
    if not can_run(name):
        pytest.skip(f"this machine cannot run the kernels of {name}")
    folder, mine = here
    other = draw(tmp_path, **PROCESSORS[name])
    tables = sorted(path.relative_to(folder) for path in folder.rglob("*.csv"))
    assert len(tables) == 14
    for table in tables:
        assert (tmp_path / table).read_bytes() == (folder / table).read_bytes(), table
    assert mine.keys() == other.keys()
    for key, value in mine.items():
        if key.startswith("pictures"):
            away = np.abs(value.astype(int) - other[key].astype(int))
            assert away.max() <= 1 and (away > 0).mean() < 2e-3, (key, away.max())
        else:
            np.testing.assert_array_equal(value, other[key], err_msg=key)
