"""The cohorts that a profile asks the phantom for."""

from collections.abc import Sequence
from pathlib import Path

from cag_utils.phantom.cohort import CohortSettings, make_cohort
from cag_utils.profiles import Profile
from cag_utils.study import data_dir

COHORTS = ("cnn", "corpus")


def cohort_settings(profile: Profile, name: str) -> CohortSettings:
    """Return the settings of one of a profile's two cohorts.

    Args:
        profile: Its `data` section counts patients, cines and frames; `scale` multiplies patients.
        name: cnn or corpus.

    Raises:
        ValueError: The profile reads own data, or a number breaks its rule.
    """
    data = profile.data
    if data.source != "phantom":
        raise ValueError(f"profile {profile.name!r} reads its own data from {data.folder!r}")
    return CohortSettings(
        name=name,
        seed=data.seed,
        n_patients=max(1, round(getattr(data, f"{name}_patients") * data.scale)),
        cines_per_patient=getattr(data, f"{name}_cines"),
        frames_low=data.frames_low,
        frames_high=data.frames_high,
        size_px=data.size_px,
    )


def ensure_phantom(profile: Profile, n_workers: int = 2, cohorts: Sequence[str] = COHORTS) -> Path:
    """Make the cohorts of a phantom profile that are missing.

    Args:
        profile: A profile whose data source is the phantom.
        n_workers: Processes.
        cohorts: Which ones; two notebooks that need one each can then run side by side.

    Returns:
        The folder that holds `cnn/` and `corpus/`.

    Raises:
        ValueError: The profile reads own data.
    """
    wanted = [cohort_settings(profile, name) for name in cohorts]
    folder = data_dir(profile)
    for settings in wanted:
        make_cohort(folder / settings.name, settings, n_workers)
    return folder
